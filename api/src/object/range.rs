//! `Range` headers.

/// A span of bytes, `start < end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Reads a `Range` header about content of `length` bytes. `None` for what RFC 9110 says to ignore (another unit, several
/// ranges, nonsense); `Some(Err)` when nothing of it can be satisfied.
pub(crate) fn parse(header: &str, length: u64) -> Option<Result<Span, ()>> {
    let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let suffix = number(last)?;
        let none = suffix == 0 || length == 0;
        return Some(if none {
            Err(())
        } else {
            Ok(Span { start: length.saturating_sub(suffix), end: length })
        });
    }
    let start = number(first)?;
    let end = if last.is_empty() { u64::MAX } else { number(last)?.saturating_add(1) };
    if end <= start {
        return None;
    }
    Some(if start >= length { Err(()) } else { Ok(Span { start, end: end.min(length) }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_within_the_content() {
        assert_eq!(parse("bytes=0-3", 10), Some(Ok(Span { start: 0, end: 4 })));
        assert_eq!(parse("bytes=-3", 10), Some(Ok(Span { start: 7, end: 10 })));
        assert_eq!(parse("bytes=4-", 10), Some(Ok(Span { start: 4, end: 10 })));
        assert_eq!(parse("bytes=10-", 10), Some(Err(())));
        assert_eq!(parse("bytes=-0", 10), Some(Err(())));
        for ignored in ["bytes=3-1", "bytes=0-1,3-4", "lines=0-1", "bytes=a-", ""] {
            assert_eq!(parse(ignored, 10), None, "{ignored}");
        }
    }
}
