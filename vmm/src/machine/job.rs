//! A transfer's thread and the driver, which talk here.
//!
//! The thread copies memory while the machine runs; only the driver may stop the machine and read its state:
//!
//! ```text
//!   thread:   copy, copy, ...   stop() waits       copy what is left     finish
//!   driver:   (answers calls)   pause, give state  (answers calls)       resume, or end
//! ```

use super::signals::Signals;
use crate::snapshot::dirty::Log;
use crate::snapshot::{MachineState, SnapshotError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::Refused;
use wire::machine::{TransferKind, TransferPhase, TransferStatus};

/// How often progress alone wakes the driver.
const NEWS: Duration = Duration::from_millis(100);

/// How a transfer ended.
#[derive(Debug)]
pub enum Outcome {
    /// All is in its files; so many bytes of memory were written.
    Saved(u64),
    /// The machine runs at its destination.
    Gone,
    /// The machine was handed over, and nobody answered.
    InDoubt(String),
    /// It did not work.
    Failed(Refused),
    /// Somebody did not want it any more.
    Cancelled,
}

struct Inner {
    status: TransferStatus,
    /// When the driver last heard of progress.
    told: Instant,
    /// The machine is to stop.
    stop: bool,
    state: Option<Result<Box<MachineState>, SnapshotError>>,
    cancelled: bool,
    /// Too late to cancel.
    committed: bool,
    /// The machine is to run afterwards.
    runs: bool,
    outcome: Option<(Outcome, Option<Log>)>,
}

/// A transfer.
pub struct Job {
    inner: Mutex<Inner>,
    changed: Condvar,
    signals: Arc<Signals>,
}

impl Job {
    /// One that begins.
    #[must_use]
    pub fn new(kind: TransferKind, signals: Arc<Signals>) -> Self {
        let inner = Inner {
            status: begun(kind),
            told: Instant::now(),
            stop: false,
            state: None,
            cancelled: false,
            committed: false,
            runs: true,
            outcome: None,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), signals }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> TransferStatus {
        self.inner().status.clone()
    }

    /// Thread: changes how it is, and tells the driver before long.
    pub fn report(&self, change: impl FnOnce(&mut TransferStatus)) {
        let mut inner = self.inner();
        let before = inner.status.phase;
        change(&mut inner.status);
        if before != inner.status.phase || inner.told.elapsed() >= NEWS {
            inner.told = Instant::now();
            drop(inner);
            self.signals.wake();
        }
    }

    /// Thread: whether to give up.
    #[must_use]
    pub fn cancelled(&self) -> bool {
        self.inner().cancelled
    }

    /// Thread: whether the machine, which stands still, is to run afterwards.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.inner().runs
    }

    /// Thread: from now on it cannot be cancelled. Answers whether it still was not.
    #[must_use]
    pub fn commit(&self) -> bool {
        let mut inner = self.inner();
        inner.committed = !inner.cancelled;
        inner.committed
    }

    /// Thread: has the machine stopped, and waits for its state. It stands still until the thread finishes.
    ///
    /// # Errors
    /// Why there is no state. The machine stands still all the same.
    pub fn stop(&self) -> Result<Box<MachineState>, SnapshotError> {
        let mut inner = self.inner();
        inner.stop = true;
        inner.status.phase = TransferPhase::Stopped;
        self.signals.wake();
        loop {
            if let Some(state) = inner.state.take() {
                return state;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Thread: that was it. The log is for the next snapshot.
    pub fn finish(&self, outcome: Outcome, log: Option<Log>) {
        self.inner().outcome = Some((outcome, log));
        self.signals.wake();
    }

    /// Driver: whether the machine is to stop.
    #[must_use]
    pub fn wants_stop(&self) -> bool {
        self.inner().stop
    }

    /// Driver: the machine stands still, this is its state, and it is to run afterwards or not.
    pub fn give(&self, state: Result<MachineState, SnapshotError>, runs: bool) {
        let mut inner = self.inner();
        inner.runs = runs;
        inner.state = Some(state.map(Box::new));
        drop(inner);
        self.changed.notify_all();
    }

    /// Driver: wants it no more. Answers whether it was in time.
    pub fn cancel(&self) -> bool {
        let mut inner = self.inner();
        inner.cancelled |= !inner.committed;
        inner.cancelled
    }

    /// Driver: how it ended, once it has.
    pub fn take_outcome(&self) -> Option<(Outcome, Option<Log>)> {
        self.inner().outcome.take()
    }
}

/// A transfer of which nothing is known yet.
#[must_use]
pub fn begun(kind: TransferKind) -> TransferStatus {
    TransferStatus {
        kind,
        phase: TransferPhase::Preparing,
        detail: String::new(),
        rounds: 0,
        bytes: 0,
        remaining: 0,
        expected_downtime_ms: None,
        stood_us: 0,
        throttle: 0,
    }
}
