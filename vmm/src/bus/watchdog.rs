//! The watchdog: a machine whose guest stops calling ends, stands still, or is counted, as its owner wants.
//!
//! Its registers are described to the guest by ACPI's WDAT table, which stock cloud kernels have a driver for (`wdat_wdt`), where they
//! have none for the usual chips (`i6300esb` among them).
//!
//! | port | width | what |
//! |---|---|---|
//! | +0 | 4 | how long it waits, in periods of [`PERIOD`] |
//! | +4 | 4 | read: how long it still waits |
//! | +8 | 1 | 1 while it runs; write to start or stop |
//! | +9 | 1 | write 1: begin to wait anew |
//!
//! A vCPU only changes the deadline and wakes the driver thread, which waits for it. It stands still while the machine is paused.

use crate::machine::signals::Signals;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::machine::WatchdogAction;

/// The unit of its waiting.
pub const PERIOD: Duration = Duration::from_millis(100);
/// Most periods: nearly two hours.
pub const MOST: u32 = 0xffff;
/// Periods before anything is set.
const FIRST: u32 = 300;

/// Offset of the time to wait.
pub const COUNTDOWN: u16 = 0;
/// Offset of the time that is left.
pub const LEFT: u16 = 4;
/// Offset of the switch.
pub const RUNNING: u16 = 8;
/// Offset of the call that the guest is alive.
pub const ALIVE: u16 = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Off,
    /// Until then.
    Until(Instant),
    /// So much is left once the machine goes on.
    Held(Duration),
}

struct State {
    periods: u32,
    wait: Wait,
    paused: bool,
}

/// The watchdog.
pub struct Watchdog {
    signals: Arc<Signals>,
    action: WatchdogAction,
    state: Mutex<State>,
}

/// [`Watchdog`] in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    /// How long it waits, in periods.
    pub periods: u32,
    /// Milliseconds that are left; `None` when it is off.
    pub left_ms: Option<u64>,
}

impl State {
    fn whole(&self) -> Duration {
        PERIOD.saturating_mul(self.periods)
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        match self.wait {
            Wait::Off => None,
            Wait::Until(then) => Some(then.saturating_duration_since(now)),
            Wait::Held(left) => Some(left),
        }
    }

    fn set(&mut self, left: Option<Duration>, now: Instant) {
        self.wait = match left {
            None => Wait::Off,
            Some(left) if self.paused => Wait::Held(left),
            Some(left) => Wait::Until(now + left),
        };
    }
}

impl Watchdog {
    /// A watchdog that is off, in a machine that is not running yet.
    #[must_use]
    pub fn new(signals: Arc<Signals>, action: WatchdogAction) -> Self {
        Self { signals, action, state: Mutex::new(State { periods: FIRST, wait: Wait::Off, paused: true }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a register; zero beside them.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let (state, now) = (self.state(), Instant::now());
        let value = match offset {
            COUNTDOWN => state.periods,
            LEFT => {
                let left = state.left(now).unwrap_or_default();
                u32::try_from(left.as_millis().div_ceil(PERIOD.as_millis())).unwrap_or(MOST)
            }
            RUNNING => u32::from(state.wait != Wait::Off),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Writes a register.
    pub fn write(&self, offset: u16, data: &[u8]) {
        let (mut state, now) = (self.state(), Instant::now());
        let running = state.wait != Wait::Off;
        let wait = match (offset, data) {
            (COUNTDOWN, [a, b, c, d]) => {
                state.periods = u32::from_le_bytes([*a, *b, *c, *d]).clamp(1, MOST);
                running
            }
            (RUNNING, [on]) => on & 1 != 0,
            (ALIVE, [1]) => running,
            _ => return,
        };
        let whole = wait.then(|| state.whole());
        state.set(whole, now);
        drop(state);
        // It may wait for an earlier moment than the driver thread does.
        self.signals.wake();
    }

    /// When it bites, unless the guest calls before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state().wait {
            Wait::Until(then) => Some(then),
            Wait::Off | Wait::Held(_) => None,
        }
    }

    /// What happens when it bites.
    #[must_use]
    pub fn action(&self) -> WatchdogAction {
        self.action
    }

    /// Begins to wait anew. Harmless when it is off.
    pub fn rewind(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let left = state.left(now).map(|_| state.whole());
        state.set(left, now);
    }

    /// Stands still. Harmless when it does.
    pub fn pause(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let left = state.left(now);
        state.paused = true;
        state.set(left, now);
    }

    /// Goes on. Harmless when it does.
    pub fn resume(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let left = state.left(now);
        state.paused = false;
        state.set(left, now);
    }

    /// What a snapshot holds.
    #[must_use]
    pub fn save(&self) -> WatchdogState {
        let state = self.state();
        let left = state.left(Instant::now());
        let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        WatchdogState { periods: state.periods, left_ms: left.map(millis) }
    }

    /// Takes over what [`Watchdog::save`] said.
    pub fn restore(&self, saved: &WatchdogState) {
        let mut state = self.state();
        state.periods = saved.periods.clamp(1, MOST);
        let left = saved.left_ms.map(|left| Duration::from_millis(left).min(state.whole()));
        state.set(left, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIVE, COUNTDOWN, LEFT, MOST, RUNNING, Watchdog, WatchdogState};
    use crate::machine::signals::Signals;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn watchdog() -> Watchdog {
        Watchdog::new(Arc::new(Signals::new().unwrap()), wire::machine::WatchdogAction::End)
    }

    fn read(watchdog: &Watchdog, offset: u16) -> u32 {
        let mut word = [0; 4];
        watchdog.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn it_waits_as_long_as_it_was_told_from_the_last_call_on() {
        let watchdog = watchdog();
        watchdog.resume();
        watchdog.write(COUNTDOWN, &50_u32.to_le_bytes());
        assert_eq!((read(&watchdog, RUNNING), watchdog.deadline()), (0, None));
        watchdog.write(ALIVE, &[1]);
        assert_eq!(watchdog.deadline(), None, "a call does not start it");
        watchdog.write(RUNNING, &[1]);
        let first = watchdog.deadline().unwrap();
        assert!(first > Instant::now() + Duration::from_secs(4));
        assert!((40..=50).contains(&read(&watchdog, LEFT)));
        watchdog.write(ALIVE, &[1]);
        assert!(watchdog.deadline().unwrap() > first);
        watchdog.write(COUNTDOWN, &u32::MAX.to_le_bytes());
        assert_eq!(read(&watchdog, COUNTDOWN), MOST);
        watchdog.write(COUNTDOWN, &0_u32.to_le_bytes());
        assert!(watchdog.deadline().unwrap() <= Instant::now() + Duration::from_millis(100));
        watchdog.write(RUNNING, &[0]);
        assert_eq!((read(&watchdog, RUNNING), read(&watchdog, LEFT), watchdog.deadline()), (0, 0, None));
        // Odd widths and places change nothing.
        for offset in 0..16 {
            watchdog.write(offset, &[9, 9, 9]);
            watchdog.read(offset, &mut [0; 9]);
        }
        assert_eq!(read(&watchdog, RUNNING), 0);
    }

    #[test]
    fn it_stands_still_with_the_machine_and_in_a_snapshot() {
        let watchdog = watchdog();
        watchdog.write(RUNNING, &[1]);
        assert_eq!(watchdog.deadline(), None, "not running yet");
        watchdog.resume();
        watchdog.pause();
        assert_eq!(watchdog.deadline(), None);
        let saved = watchdog.save();
        assert!(saved.left_ms.is_some_and(|left| (29_000..=30_000).contains(&left)), "{saved:?}");
        let copy = self::watchdog();
        copy.restore(&saved);
        assert_eq!(copy.save(), saved);
        copy.resume();
        assert!(copy.deadline().is_some());
        copy.restore(&WatchdogState { periods: 0, left_ms: Some(u64::MAX) });
        assert!(copy.save().left_ms.is_some_and(|left| left <= 100));
    }
}
