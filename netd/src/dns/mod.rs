//! DNS for the hosts of one network: their names in the network's domain, and their addresses backwards. Names outside
//! are passed to the configured name servers, or refused when there are none.
//!
//! The codec is small on purpose: one question is read, the answer is built from scratch, nothing is decompressed.

use crate::responder::View;
use std::net::IpAddr;

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const ANY: u16 = 255;
/// Seconds that an answer may be kept. Short: ports come and go.
const TTL: u32 = 30;

/// Largest query in bytes that is read.
pub const LARGEST: usize = 4096;

/// What to do with a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// Ask the configured name servers; without them, [`refusal`] is the answer.
    Elsewhere,
    /// Not a query; say nothing, so that no two servers talk to each other for ever.
    Silence,
}

/// A question: name in lower case without the final dot, type, and its bytes.
struct Question<'a> {
    name: String,
    kind: u16,
    raw: &'a [u8],
}

fn question(query: &[u8]) -> Option<Question<'_>> {
    let mut at = 12usize;
    let mut name = String::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // 64 and more would be a pointer, which has no place in a question.
        if length > 63 || name.len() + length > 253 {
            return None;
        }
        let label = query.get(at..at + length)?;
        if !label.iter().all(|c| c.is_ascii_graphic() && *c != b'.') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|c| char::from(c.to_ascii_lowercase())));
        at += length;
    }
    let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    let class = u16::from_be_bytes(query.get(at + 2..at + 4)?.try_into().ok()?);
    (class == 1).then_some(Question { name, kind, raw: &query[12..at + 4] })
}

/// Looks at a query.
#[must_use]
pub fn answer(view: &View, query: &[u8]) -> Verdict {
    let Some(header) = query.get(..12) else { return Verdict::Silence };
    if header[2] & 0x80 != 0 || query.len() > LARGEST {
        return Verdict::Silence;
    }
    let opcode = header[2] >> 3 & 0xf;
    if opcode != 0 {
        return Verdict::Answer(message(header, 4, false, &[], &[]));
    }
    let Some(question) = question(query).filter(|_| header[4..6] == [0, 1]) else {
        return Verdict::Answer(message(header, 1, false, &[], &[]));
    };
    let Some(found) = lookup(view, &question.name) else { return Verdict::Elsewhere };
    let (exists, data) = found;
    let records: Vec<(u16, Vec<u8>)> = data
        .into_iter()
        .filter(|(kind, _)| question.kind == ANY || *kind == question.kind)
        .take(16)
        .collect();
    Verdict::Answer(message(header, if exists { 0 } else { 3 }, true, question.raw, &records))
}

/// The answer that the question goes to the wrong server (`REFUSED`).
#[must_use]
pub fn refusal(query: &[u8]) -> Vec<u8> {
    let raw = question(query).map(|question| question.raw).unwrap_or_default();
    message(query.get(..12).unwrap_or(&[0; 12]), 5, false, raw, &[])
}

/// The answer that the configured name servers do not answer (`SERVFAIL`).
#[must_use]
pub fn failure(query: &[u8]) -> Vec<u8> {
    let raw = question(query).map(|question| question.raw).unwrap_or_default();
    message(query.get(..12).unwrap_or(&[0; 12]), 2, false, raw, &[])
}

type Found = (bool, Vec<(u16, Vec<u8>)>);

/// What we know of a name; `None` when it is not ours to know.
fn lookup(view: &View, name: &str) -> Option<Found> {
    let domain = view.spec.dns_domain.trim_end_matches('.').to_ascii_lowercase();
    if let Some(address) = backwards(name) {
        let ours = view.spec.subnets.iter().any(|subnet| subnet.cidr.contains(&address));
        if !ours {
            return None;
        }
        let port =
            view.spec.ports.iter().find(|port| port.addresses.iter().any(|(_, there)| *there == address));
        let host = port.map(|port| port.hostname.as_str()).filter(|host| !host.is_empty());
        return Some(match host {
            Some(host) if domain.is_empty() => (true, vec![(PTR, encoded(host)?)]),
            Some(host) => (true, vec![(PTR, encoded(&format!("{host}.{domain}"))?)]),
            None => (false, Vec::new()),
        });
    }
    let host = match name.strip_suffix(domain.as_str()).map(|host| host.strip_suffix('.')) {
        _ if domain.is_empty() => name,
        Some(Some(host)) => host,
        Some(None) if name == domain => return Some((true, Vec::new())),
        // A bare host name, from a guest without a search list.
        Some(None) | None if !name.contains('.') => name,
        Some(None) | None => return None,
    };
    let mut records = Vec::new();
    let mut exists = false;
    for port in view.spec.ports.iter().filter(|port| !port.hostname.is_empty()) {
        if port.hostname.eq_ignore_ascii_case(host) {
            exists = true;
            records.extend(port.addresses.iter().map(|(_, address)| match address {
                IpAddr::V4(address) => (A, address.octets().to_vec()),
                IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
            }));
        }
    }
    if !exists && domain.is_empty() && name.contains('.') {
        return None;
    }
    Some((exists, records))
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for.
fn backwards(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = rest.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let [d, c, b, a] = octets.try_into().ok()?;
        return Some(IpAddr::from([a, b, c, d]));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut number = 0u128;
    let digits: Vec<&str> = rest.split('.').collect();
    if digits.len() != 32 {
        return None;
    }
    for digit in digits.iter().rev() {
        let mut chars = digit.chars();
        let (value, None) = (chars.next()?.to_digit(16)?, chars.next()) else { return None };
        number = number << 4 | u128::from(value);
    }
    Some(IpAddr::from(number.to_be_bytes()))
}

fn encoded(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

fn message(header: &[u8], code: u8, authority: bool, question: &[u8], records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let recursion = header[2] & 1;
    let mut bytes = vec![header[0], header[1]];
    bytes.push(0x80 | (header[2] & 0x78) | if authority { 4 } else { 0 } | recursion);
    bytes.push(0x80 | code);
    bytes.extend_from_slice(&u16::from(!question.is_empty()).to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(records.len()).unwrap_or_default().to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(question);
    for (kind, data) in records {
        // The name is the question's, at offset 12.
        bytes.extend_from_slice(&[0xc0, 12]);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(&TTL.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(data);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::tests::view;
    use proptest::prelude::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(encoded(name).unwrap());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes
    }

    fn code_and_data(name: &str, kind: u16) -> (u8, Vec<u8>) {
        match answer(&view().0, &query(name, kind)) {
            Verdict::Answer(bytes) => {
                let data =
                    if bytes[7] == 1 { bytes[query(name, kind).len() + 12..].to_vec() } else { vec![] };
                (bytes[3] & 0xf, data)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_of_ports_are_known_and_others_are_not() {
        assert_eq!(code_and_data("one.cloud.test", A), (0, vec![10, 0, 0, 5]));
        assert_eq!(code_and_data("ONE", A), (0, vec![10, 0, 0, 5]));
        assert_eq!(code_and_data("one.cloud.test", AAAA), (0, vec![]));
        assert_eq!(code_and_data("nobody.cloud.test", A), (3, vec![]));
        assert_eq!(code_and_data("5.0.0.10.in-addr.arpa", PTR), (0, encoded("one.cloud.test").unwrap()));
        assert_eq!(answer(&view().0, &query("example.org", A)), Verdict::Elsewhere);
        assert_eq!(answer(&view().0, &query("8.8.8.8.in-addr.arpa", PTR)), Verdict::Elsewhere);
        assert_eq!(refusal(&query("example.org", A))[3] & 0xf, 5);
        let mut response = query("one", A);
        response[2] |= 0x80;
        assert_eq!(answer(&view().0, &response), Verdict::Silence);
    }

    proptest! {
        #[test]
        fn no_query_harms(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = answer(&view().0, &bytes);
            let mut framed = query("one", A);
            framed.truncate(12);
            framed.extend_from_slice(&bytes);
            if let Verdict::Answer(reply) = answer(&view().0, &framed) {
                prop_assert_eq!(&reply[..2], &[0xab, 0xcd]);
            }
            let _ = (refusal(&bytes), failure(&bytes));
        }
    }
}
