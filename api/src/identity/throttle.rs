//! Failed log-ins make the next one wait: per source and claimed user, so that guessing is slow and nobody can keep a
//! user out from elsewhere. Users that do not exist are counted like those that do.
//!
//! What is remembered is in memory only. Locking an account for everybody is the operator's choice
//! (`[security_compliance]`, see [`super::lockout`]).

use api_kit::Fault;
use axum::http::{StatusCode, header};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures that cost nothing: people mistype.
const FREE: u32 = 5;
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(64);
/// Failures are forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);
/// Pairs of source and user kept at most.
const KEPT: usize = 20_000;

#[derive(Debug, Clone, Copy)]
struct Entry {
    failures: u32,
    last: Instant,
}

impl Entry {
    fn until(&self) -> Instant {
        let over = self.failures.saturating_sub(FREE);
        let wait = if over == 0 { Duration::ZERO } else { Duration::from_secs(1 << (over - 1).min(6)) };
        self.last + wait.min(LONGEST)
    }
}

/// Who failed lately.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<HashMap<String, Entry>>);

impl Throttle {
    /// Whether this source may try this user now. One that had to wait may try once: others that come before the
    /// outcome is known wait as if this one had failed, so that trying many at the same time gains nothing.
    ///
    /// # Errors
    /// 429 with the seconds to wait.
    pub fn may_try(&self, who: &str, now: Instant) -> Result<(), Fault> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.get_mut(who) else { return Ok(()) };
        let wait = entry.until().saturating_duration_since(now);
        if wait.is_zero() {
            if entry.failures > FREE {
                entry.last = now;
            }
            return Ok(());
        }
        let seconds = wait.as_secs() + 1;
        let message = format!("Too many failed log-ins from this address. Try again in {seconds} s.");
        Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, message)
            .header(header::RETRY_AFTER, seconds.to_string()))
    }

    /// Notes how it went.
    pub fn note(&self, who: &str, passed: bool, now: Instant) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if passed {
            entries.remove(who);
            return;
        }
        if entries.len() >= KEPT && !entries.contains_key(who) {
            entries.retain(|_, entry| now.saturating_duration_since(entry.last) < FORGOTTEN);
        }
        if entries.len() >= KEPT && !entries.contains_key(who) {
            // A flood of names: those that are not held up anyway lose least.
            entries.retain(|_, entry| entry.until() > now);
            if entries.len() >= KEPT {
                entries.clear();
            }
        }
        let entry = entries.entry(who.to_owned()).or_insert(Entry { failures: 0, last: now });
        if now.saturating_duration_since(entry.last) >= FORGOTTEN {
            entry.failures = 0;
        }
        entry.failures = entry.failures.saturating_add(1);
        entry.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_end_and_are_per_source() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for _ in 0..FREE {
            throttle.may_try("a", start).unwrap();
            throttle.note("a", false, start);
        }
        throttle.may_try("a", start).unwrap();
        throttle.note("a", false, start);
        assert_eq!(throttle.may_try("a", start).unwrap_err().status, 429);
        throttle.may_try("b", start).unwrap();
        throttle.may_try("a", at(1)).unwrap();
        for _ in 0..40 {
            throttle.note("a", false, at(1));
        }
        assert!(throttle.may_try("a", at(60)).is_err());
        throttle.may_try("a", at(65)).unwrap();
        throttle.note("a", true, at(65));
        throttle.note("a", false, at(65));
        throttle.may_try("a", at(65)).unwrap();
        // Old failures count no more.
        for _ in 0..50 {
            throttle.note("c", false, start);
        }
        throttle.note("c", false, at(16 * 60));
        throttle.may_try("c", at(16 * 60)).unwrap();
    }

    #[test]
    fn who_had_to_wait_tries_once_and_not_many_times_at_once() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..FREE + 3 {
            throttle.note("a", false, now);
        }
        let later = now + Duration::from_secs(60);
        throttle.may_try("a", later).unwrap();
        assert_eq!(throttle.may_try("a", later).unwrap_err().status, 429);
        // The one that went ahead was right: nobody is held up any more.
        throttle.note("a", true, later);
        throttle.may_try("a", later).unwrap();
        throttle.may_try("a", later).unwrap();
    }

    #[test]
    fn a_flood_of_names_is_bounded() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..KEPT + 10 {
            throttle.note(&n.to_string(), false, now);
        }
        assert!(throttle.0.lock().unwrap().len() <= KEPT);
    }
}
