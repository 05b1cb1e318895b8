//! Metadata in headers: what is taken, what is kept, how it is shown.

use super::records::Meta;
use api_kit::{Call, Fault, Reply};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Longest name and value of one metadata item, and how many and how much together; as `/info` says.
pub(super) const NAME: usize = 128;
pub(super) const VALUE: usize = 256;
pub(super) const COUNT: usize = 90;
pub(super) const OVERALL: usize = 4096;
/// Longest names.
pub(super) const CONTAINER: usize = 256;
pub(super) const OBJECT: usize = 1024;
/// Largest object.
pub(super) const FILE: u64 = 5 * (1 << 30) + 2;
/// Most entries of a listing.
pub(super) const LISTING: i64 = 10_000;

/// Headers of an object that are kept as they are.
pub(super) const OBJECT_HEADERS: [&str; 4] =
    ["content-encoding", "content-disposition", "cache-control", "content-language"];
/// Headers of a container that are kept as they are.
pub(super) const CONTAINER_HEADERS: [&str; 2] = ["x-container-read", "x-container-write"];

/// Changes `meta` by the request's `X-{kind}-Meta-*`, `X-Remove-{kind}-Meta-*` and `plain` headers. An empty value removes.
pub(super) fn change<S>(call: &Call<S>, kind: &str, plain: &[&str], meta: &mut Meta) -> Result<(), Fault> {
    let (prefix, remove) = (format!("x-{kind}-meta-"), format!("x-remove-{kind}-"));
    for (name, value) in &call.headers {
        let name = name.as_str();
        if let Some(rest) = name.strip_prefix(&remove) {
            meta.remove(&format!("x-{kind}-{rest}"));
            continue;
        }
        let item = name.strip_prefix(&prefix);
        if item.is_none() && !plain.contains(&name) {
            continue;
        }
        let value = std::str::from_utf8(value.as_bytes())
            .map_err(|_| Fault::bad_request("Metadata must be valid UTF-8"))?;
        if let Some(item) = item {
            if item.is_empty() {
                return Err(Fault::bad_request("Metadata name cannot be empty"));
            }
            if item.len() > NAME {
                return Err(Fault::bad_request(format!("Metadata name too long: {prefix}{item}")));
            }
        }
        if value.is_empty() {
            meta.remove(name);
        } else if item.is_some() && value.len() > VALUE {
            return Err(Fault::bad_request(format!("Metadata value longer than {VALUE}: {name}")));
        } else {
            meta.insert(name.to_owned(), value.to_owned());
        }
    }
    let items = || meta.iter().filter(|(name, _)| name.starts_with(&prefix));
    if items().count() > COUNT {
        return Err(Fault::bad_request(format!("Too many metadata items; max {COUNT}")));
    }
    if items().map(|(name, value)| name.len() - prefix.len() + value.len()).sum::<usize>() > OVERALL {
        return Err(Fault::bad_request(format!("Total metadata too large; max {OVERALL}")));
    }
    Ok(())
}

/// Shows metadata.
pub(super) fn show(mut reply: Reply, meta: &Meta) -> Reply {
    for (name, value) in meta {
        reply = reply.header(name, value);
    }
    reply
}

/// A time as HTTP writes it.
pub(super) fn http_date(micros: i64) -> String {
    // Last-Modified has whole seconds; rounded up, it never lies before the change.
    let seconds = micros.div_euclid(1_000_000) + i64::from(micros.rem_euclid(1_000_000) > 0);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Reads a time as HTTP writes it, in seconds.
pub(super) fn parse_http_date(text: &str) -> Option<i64> {
    let civil = jiff::civil::DateTime::strptime("%a, %d %b %Y %H:%M:%S GMT", text.trim()).ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

/// A time as `X-Timestamp` shows it.
pub(super) fn stamp(micros: i64) -> String {
    format!("{:010}.{:05}", micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000) / 10)
}

/// A time as JSON listings show it.
pub(super) fn listed(micros: i64) -> String {
    let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}

/// Adds the transaction id that Swift's clients print.
pub(super) fn mark<S>(call: &Call<S>, reply: Reply) -> Reply {
    let hex: String = call.request_id.chars().filter(char::is_ascii_hexdigit).collect();
    let hex = hex.get(hex.len().saturating_sub(21)..).unwrap_or_default();
    reply.header("x-trans-id", format!("tx{hex}-{:010x}", Timestamp::now().as_second()))
}

/// Whether the client wants a listing as JSON.
pub(super) fn wants_json<S>(call: &Call<S>) -> bool {
    match call.query.get("format") {
        Some(format) => format == "json",
        None => call.header("accept").is_some_and(|accept| accept.contains("application/json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_clients_read_them() {
        assert_eq!(http_date(784_111_777_000_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse_http_date("yesterday"), None);
        assert_eq!(stamp(1_500_000_000_123_456), "1500000000.12345");
        assert_eq!(listed(1_500_000_000_123_456), "2017-07-14T02:40:00.123456");
    }
}
