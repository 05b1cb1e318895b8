//! No more than so many bytes a second.

use std::time::{Duration, Instant};

/// Longest single wait, so that whoever waits looks up in between.
const NAP: Duration = Duration::from_millis(20);

/// A limit on how fast bytes go.
#[derive(Debug)]
pub struct Pace {
    per_second: Option<u64>,
    /// When what went so far will have taken its time.
    free: Instant,
}

impl Pace {
    /// A limit, or none.
    #[must_use]
    pub fn new(per_second: Option<u64>) -> Self {
        Self { per_second: per_second.map(|rate| rate.max(1)), free: Instant::now() }
    }

    /// Some bytes went.
    pub fn spend(&mut self, bytes: u64) {
        if let Some(rate) = self.per_second {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            // What was not used is not saved up.
            let from = self.free.max(Instant::now());
            self.free = from.checked_add(time).unwrap_or(from);
        }
    }

    /// How long the next bytes have to wait, at most as long as one should without looking up.
    #[must_use]
    pub fn nap(&self) -> Option<Duration> {
        let left = self.free.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.min(NAP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time() {
        let mut free = Pace::new(None);
        free.spend(u64::MAX);
        assert_eq!(free.nap(), None);
        let mut slow = Pace::new(Some(1000));
        assert_eq!(slow.nap(), None);
        slow.spend(10_000);
        assert_eq!(slow.nap(), Some(NAP));
        slow.spend(u64::MAX);
        assert!(slow.nap().is_some());
        assert!(Pace::new(Some(0)).nap().is_none());
    }
}
