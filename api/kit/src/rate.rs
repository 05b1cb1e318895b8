//! A token bucket per caller, so that one tenant's loop does not take the API from the others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much one caller may ask.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Requests a second in the long run.
    pub per_second: f64,
    /// Requests at once after a pause.
    pub burst: f64,
}

/// Buckets kept at most; beyond it full ones are forgotten, which loses nothing.
const KEPT: usize = 10_000;

#[derive(Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

/// The buckets of all callers.
#[derive(Debug)]
pub struct Rate {
    limit: Limit,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Rate {
    /// No caller has asked yet.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self { limit, buckets: Mutex::default() }
    }

    /// Takes one request out of the caller's bucket.
    ///
    /// # Errors
    /// How long to wait when it is empty.
    pub fn take(&self, who: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= KEPT && !buckets.contains_key(who) {
            let limit = self.limit;
            buckets.retain(|_, bucket| limit.filled(bucket, now) < limit.burst);
            if buckets.len() >= KEPT {
                return Err(Duration::from_secs(1));
            }
        }
        if let Some(bucket) = buckets.get_mut(who) {
            bucket.level = self.limit.filled(bucket, now);
            bucket.at = now;
            if bucket.level < 1.0 {
                let wait = (1.0 - bucket.level) / self.limit.per_second.max(0.001);
                return Err(Duration::from_secs_f64(wait.clamp(0.0, 3600.0)));
            }
            bucket.level -= 1.0;
        } else {
            buckets.insert(who.to_owned(), Bucket { level: self.limit.burst - 1.0, at: now });
        }
        Ok(())
    }
}

impl Limit {
    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.level + passed * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_served_then_the_rate_and_callers_do_not_share() {
        let rate = Rate::new(Limit { per_second: 2.0, burst: 3.0 });
        let start = Instant::now();
        for _ in 0..3 {
            rate.take("a", start).unwrap();
        }
        let wait = rate.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        rate.take("b", start).unwrap();
        rate.take("a", start + Duration::from_millis(510)).unwrap();
        assert!(rate.take("a", start + Duration::from_millis(520)).is_err());
    }

    #[test]
    fn many_callers_do_not_fill_the_memory() {
        let rate = Rate::new(Limit { per_second: 1.0, burst: 2.0 });
        let start = Instant::now();
        for n in 0..KEPT {
            rate.take(&n.to_string(), start).unwrap();
        }
        assert!(rate.take("one more", start).is_err());
        rate.take("one more", start + Duration::from_secs(3)).unwrap();
        assert!(rate.buckets.lock().unwrap().len() < KEPT);
    }
}
