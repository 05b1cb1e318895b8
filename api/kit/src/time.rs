//! Times as the services write them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Now, as it is stored: RFC 3339 with microseconds in UTC, so that text order is time order.
#[must_use]
pub fn now() -> String {
    stored(Timestamp::now())
}

/// A time as it is stored.
#[must_use]
pub fn stored(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A stored time without its fraction, `2026-01-31T12:00:00Z`: how compute, network and image show times.
#[must_use]
pub fn seconds(stored: &str) -> String {
    match stored.split_once('.') {
        Some((head, _)) => format!("{head}Z"),
        None => stored.to_owned(),
    }
}

/// A stored time without its zone, `2026-01-31T12:00:00.000000`: how volume shows times.
#[must_use]
pub fn naive(stored: &str) -> String {
    stored.trim_end_matches('Z').to_owned()
}

/// Reads a client's time in any ISO 8601 form (without a zone it is UTC) into the stored form.
#[must_use]
pub fn parse_time(text: &str) -> Option<String> {
    if text.len() > 64 {
        return None;
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(stored(time));
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    Some(stored(civil.to_zoned(TimeZone::UTC).ok()?.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sort_as_text_and_are_read_in_the_forms_that_clients_send() {
        assert_eq!(parse_time("2026-01-31T12:00:00Z").as_deref(), Some("2026-01-31T12:00:00.000000Z"));
        assert_eq!(parse_time("2026-01-31T13:00:00.5+01:00").as_deref(), Some("2026-01-31T12:00:00.500000Z"));
        assert_eq!(parse_time("2026-01-31T12:00:00").as_deref(), Some("2026-01-31T12:00:00.000000Z"));
        assert_eq!(parse_time("2026-01-31").as_deref(), Some("2026-01-31T00:00:00.000000Z"));
        assert_eq!(parse_time("yesterday"), None);
        assert_eq!(seconds("2026-01-31T12:00:00.500000Z"), "2026-01-31T12:00:00Z");
        assert_eq!(naive("2026-01-31T12:00:00.500000Z"), "2026-01-31T12:00:00.500000");
        assert_eq!(now().len(), 27);
    }
}
