//! Why the kernel is not yet as it should be, and the switch by which tests stop the work between any two steps.

use std::sync::atomic::{AtomicI64, Ordering};
use wire::Refused;

/// Why a step did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("'{command}' failed: {message}")]
    Command {
        /// Which.
        command: String,
        /// What it printed.
        message: String,
    },
    /// What was asked for cannot be, until something else changes.
    #[error("{0}")]
    Unmet(Refused),
    /// A test stopped the work here.
    #[error("stopped by a test")]
    Stopped,
}

impl Fault {
    /// A failed system call.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unmet(refused) => refused,
            Fault::Io { .. } | Fault::Command { .. } | Fault::Stopped => {
                Self::unavailable(fault.to_string()).remedy("netd tries again by itself; its log has more")
            }
        }
    }
}

/// Counts changes of the kernel. Tests arm it to stop before the n-th change, as a crash would.
#[derive(Debug)]
pub struct Steps(AtomicI64);

impl Default for Steps {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MAX))
    }
}

impl Steps {
    /// Lets `count` more changes through, then fails each.
    pub fn stop_after(&self, count: i64) {
        self.0.store(count, Ordering::SeqCst);
    }

    /// To be called before each change.
    ///
    /// # Errors
    /// [`Fault::Stopped`] when a test wants the work to end here.
    pub fn step(&self) -> Result<(), Fault> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            Ok(())
        } else {
            self.0.store(0, Ordering::SeqCst);
            Err(Fault::Stopped)
        }
    }

    /// How many of `count` changes may happen.
    pub(crate) fn allowance(&self, count: usize) -> usize {
        (0..count).take_while(|_| self.step().is_ok()).count()
    }
}
