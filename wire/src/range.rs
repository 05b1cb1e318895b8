//! `Range` headers, as every server of bytes here reads them.

/// A range of bytes, `start < end` when it was asked for by a header; all of an empty content is `start == end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// Reads a `Range` header about content of `length` bytes. `None` for what RFC 9110 says to ignore (another unit,
    /// several ranges, nonsense); `Some(Err)` when nothing of it can be satisfied.
    #[must_use]
    pub fn parse(header: &str, length: u64) -> Option<Result<Self, ()>> {
        let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        let (first, last) = (first.trim(), last.trim());
        if first.is_empty() {
            let suffix = number(last)?;
            return Some(if suffix == 0 || length == 0 {
                Err(())
            } else {
                Ok(Self { start: length.saturating_sub(suffix), end: length })
            });
        }
        let start = number(first)?;
        let end = if last.is_empty() { u64::MAX } else { number(last)?.saturating_add(1) };
        if end <= start {
            return None;
        }
        Some(if start >= length { Err(()) } else { Ok(Self { start, end: end.min(length) }) })
    }

    /// The header that asks for this, which must not be empty.
    #[must_use]
    pub fn header(self) -> String {
        format!("bytes={}-{}", self.start, self.end.saturating_sub(1))
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_standard_says() {
        let span = |start, end| Some(Ok(Span { start, end }));
        assert_eq!(Span::parse("bytes=0-3", 10), span(0, 4));
        assert_eq!(Span::parse("bytes=4-", 10), span(4, 10));
        assert_eq!(Span::parse("bytes=-3", 10), span(7, 10));
        assert_eq!(Span::parse("bytes=-30", 10), span(0, 10));
        assert_eq!(Span::parse("bytes=5-99999999999999999999999", 10), span(5, 10));
        assert_eq!(Span::parse("bytes=10-", 10), Some(Err(())));
        assert_eq!(Span::parse("bytes=-0", 10), Some(Err(())));
        for ignored in ["bytes=3-1", "bytes=0-1,3-4", "lines=0-1", "bytes=a-", "bytes=-", "", "bytes=+1-2"] {
            assert_eq!(Span::parse(ignored, 10), None, "{ignored}");
        }
        assert_eq!(Span::parse(&Span { start: 3, end: 7 }.header(), 10), span(3, 7));
        assert_eq!(Span { start: 3, end: 7 }.bytes(), 4);
    }

    #[test]
    fn a_span_lies_within_the_content() {
        let ends = ["", "0", "1", "7", "8", "9", "18446744073709551615", "99999999999999999999"];
        for (first, last, length) in ends.iter().flat_map(|first| {
            ends.iter().flat_map(move |last| [0, 1, 8, u64::MAX].map(move |length| (first, last, length)))
        }) {
            if let Some(Ok(span)) = Span::parse(&format!("bytes={first}-{last}"), length) {
                assert!(span.start < span.end && span.end <= length, "{first}-{last} of {length}");
            }
        }
    }
}
