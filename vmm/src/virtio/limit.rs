//! Limits on what a device moves: token buckets for bytes and operations.
//!
//! A bucket holds at most its burst and fills at its rate. What is asked for is let through while there is anything in the
//! bucket, and its whole cost is taken out then, below zero if need be: so a request that costs more than the bucket
//! holds is not stuck for ever, and the debt holds the next one back for as long as it should. Over any time the
//! cost let through is at most burst + rate × time + one request for each queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::machine::{Limit, Limits};

/// Nanoseconds of a second: a level counts tokens × this, so that no part of a token is lost.
const SECOND: i128 = 1_000_000_000;

/// One bucket. Times are nanoseconds since any fixed moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    rate: u64,
    full: i128,
    level: i128,
    at: u64,
}

impl Bucket {
    /// A full bucket. A limit of nothing is taken as 1, which [`Limits`] with a zero never reach (see [`check`]).
    #[must_use]
    pub fn new(limit: Limit, now: u64) -> Self {
        let full = i128::from(limit.burst.max(1)).saturating_mul(SECOND);
        Self { rate: limit.per_second.max(1), full, level: full, at: now }
    }

    /// Pours in what came since the last time. Time that goes backwards brings nothing.
    fn fill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let more = u128::from(elapsed).saturating_mul(u128::from(self.rate));
        let more = i128::try_from(more).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(more).min(self.full);
    }

    /// Nanoseconds until something may be let through; 0 for now.
    pub fn wait(&mut self, now: u64) -> u64 {
        self.fill(now);
        if self.level > 0 {
            return 0;
        }
        // The first moment at which the level is above zero.
        let missing = 1_i128.saturating_sub(self.level);
        let rate = i128::from(self.rate);
        let wait = missing.saturating_add(rate.saturating_sub(1)) / rate;
        u64::try_from(wait).unwrap_or(u64::MAX)
    }

    /// Takes a cost out.
    pub fn charge(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(i128::from(cost).saturating_mul(SECOND));
    }

    /// A bucket for another limit that owes what this one owes and holds no more than it does.
    #[must_use]
    fn changed(mut self, limit: Limit, now: u64) -> Self {
        self.fill(now);
        let new = Self::new(limit, now);
        Self { level: self.level.min(new.full), ..new }
    }
}

#[derive(Debug, Default)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

/// The limits of one device or direction, shared by the workers of its queues.
#[derive(Debug)]
pub struct Limiter {
    /// Whether there is any limit: without one, a request costs a load.
    on: AtomicBool,
    start: Instant,
    buckets: Mutex<Buckets>,
}

impl Limiter {
    /// A limiter that starts with full buckets.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limiter = Self {
            on: AtomicBool::new(false),
            start: Instant::now(),
            buckets: Mutex::new(Buckets::default()),
        };
        limiter.set(limits);
        limiter
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits. What is owed stays owed. A worker that waits is to be woken, it may go on now.
    pub fn set(&self, limits: Limits) {
        let now = self.now();
        let mut buckets = self.buckets();
        let change = |bucket: &mut Option<Bucket>, limit: Option<Limit>| {
            *bucket = limit.map(|limit| match *bucket {
                Some(old) => old.changed(limit, now),
                None => Bucket::new(limit, now),
            });
        };
        change(&mut buckets.bytes, limits.bytes);
        change(&mut buckets.operations, limits.operations);
        self.on.store(buckets.bytes.is_some() || buckets.operations.is_some(), Ordering::Release);
    }

    /// When the next request may be looked at; `None` for now.
    #[must_use]
    pub fn wait(&self) -> Option<Instant> {
        if !self.on.load(Ordering::Acquire) {
            return None;
        }
        let now = self.now();
        let mut buckets = self.buckets();
        let Buckets { bytes, operations } = &mut *buckets;
        let waits = [bytes, operations].into_iter().flatten().map(|bucket| bucket.wait(now));
        let wait = waits.max().filter(|wait| *wait > 0)?;
        // Far beyond any life of a machine, where the clock's arithmetic ends.
        let wait = Duration::from_nanos(wait).min(Duration::from_secs(3600));
        Some(Instant::now() + wait)
    }

    /// Takes the cost of one request out.
    pub fn charge(&self, bytes: u64) {
        if !self.on.load(Ordering::Acquire) {
            return;
        }
        let mut buckets = self.buckets();
        if let Some(bucket) = &mut buckets.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut buckets.operations {
            bucket.charge(1);
        }
    }
}

/// Says what is wrong with limits.
///
/// # Errors
/// A rate or burst of nothing.
pub fn check(limits: &Limits) -> Result<(), String> {
    for (limit, what) in [(limits.bytes, "bytes"), (limits.operations, "operations")] {
        if limit.is_some_and(|limit| limit.per_second == 0 || limit.burst == 0) {
            return Err(format!(
                "a limit of 0 {what} would stop the device for ever; leave the limit out for none, and give a burst of at least 1"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Bucket, Limiter, check};
    use proptest::prelude::{any, prop};
    use std::time::Instant;
    use wire::machine::{Limit, Limits};

    fn limit(per_second: u64, burst: u64) -> Limit {
        Limit { per_second, burst }
    }

    #[test]
    fn a_bucket_lets_its_burst_through_and_then_its_rate() {
        let mut bucket = Bucket::new(limit(1000, 10), 0);
        let mut passed = Vec::new();
        let mut now = 0;
        for _ in 0..15 {
            now += bucket.wait(now);
            bucket.charge(1);
            passed.push(now);
        }
        assert_eq!(passed[9], 0, "ten at once");
        // The eleventh passes as soon as there is anything in the bucket again, then one each millisecond.
        assert_eq!(passed[10..], [1, 1_000_001, 2_000_001, 3_000_001, 4_000_001]);
    }

    #[test]
    fn what_costs_more_than_the_bucket_holds_passes_and_is_paid_for() {
        let mut bucket = Bucket::new(limit(100, 10), 0);
        assert_eq!(bucket.wait(0), 0);
        bucket.charge(110);
        assert_eq!(bucket.wait(0), 1_000_000_001 - 1 + 1);
        assert_eq!(bucket.wait(1_000_000_001), 0);
    }

    #[test]
    fn changed_limits_hold_at_once_and_debts_stay() {
        let limiter = Limiter::new(Limits { bytes: Some(limit(1, 1)), operations: None });
        assert_eq!(limiter.wait(), None);
        limiter.charge(3600);
        assert!(limiter.wait().is_some());
        limiter.set(Limits { bytes: Some(limit(1 << 40, 1)), operations: None });
        let wait = limiter.wait().map(|then| then.saturating_duration_since(Instant::now()));
        assert!(wait.is_none_or(|wait| wait.as_millis() < 10), "{wait:?}");
        limiter.set(Limits { bytes: Some(limit(1, 1 << 20)), operations: None });
        limiter.charge(3600);
        limiter.set(Limits::default());
        assert_eq!(limiter.wait(), None);
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        assert!(check(&Limits::default()).is_ok());
        assert!(check(&Limits { bytes: Some(limit(1, 1)), operations: Some(limit(1, 1)) }).is_ok());
        assert!(check(&Limits { bytes: Some(limit(0, 1)), operations: None }).is_err());
        assert!(check(&Limits { bytes: None, operations: Some(limit(1, 0)) }).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_burst_and_rate_and_one_request(per_second in 1..1_u64 << 40, burst in 1..1_u64 << 40,
                                                          steps in prop::collection::vec((0..1_u64 << 34, 1..1_u64 << 32), 1..80)) {
            let mut bucket = Bucket::new(limit(per_second, burst), 0);
            let (mut now, mut passed) = (0_u64, 0_u128);
            for (pause, cost) in steps {
                now += pause;
                if bucket.wait(now) == 0 {
                    // Before each one: at most what the bucket gave until then.
                    let given = u128::from(burst) * 1_000_000_000 + u128::from(now) * u128::from(per_second);
                    proptest::prop_assert!(passed * 1_000_000_000 < given);
                    bucket.charge(cost);
                    passed += u128::from(cost);
                }
            }
        }

        #[test]
        fn who_waits_as_long_as_told_passes_and_not_before(per_second in any::<u64>(), burst in any::<u64>(),
                                                           costs in prop::collection::vec(any::<u64>(), 1..20), start in any::<u32>()) {
            let mut bucket = Bucket::new(limit(per_second, burst), start.into());
            let mut now = u64::from(start);
            for cost in costs {
                let wait = bucket.wait(now);
                if wait > 0 {
                    let mut early = bucket;
                    proptest::prop_assert!(early.wait(now.saturating_add(wait - 1)) > 0);
                }
                let Some(then) = now.checked_add(wait) else { break };
                now = then;
                proptest::prop_assert_eq!(bucket.wait(now), 0);
                bucket.charge(cost);
            }
        }

        #[test]
        fn nothing_overflows(per_second in any::<u64>(), burst in any::<u64>(), steps in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20)) {
            let mut bucket = Bucket::new(limit(per_second, burst), 0);
            for (now, cost) in steps {
                let _ = bucket.wait(now);
                bucket.charge(cost);
            }
        }
    }
}
