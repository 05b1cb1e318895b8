//! What a device moved: counted by its workers, read by the driver thread. Figures for people, so nothing is ordered by them.

use std::sync::atomic::{AtomicU64, Ordering};

use wire::machine::Counts;

/// Counts of one direction of a device, shared by the workers of its queues.
#[derive(Debug, Default)]
pub struct Counter {
    operations: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

impl Counter {
    /// A request or packet of so many bytes.
    pub fn moved(&self, bytes: u64) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A request that failed, or a packet that was dropped.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    #[must_use]
    pub fn read(&self) -> Counts {
        Counts {
            operations: self.operations.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}
