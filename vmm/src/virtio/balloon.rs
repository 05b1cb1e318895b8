//! virtio-balloon (virtio 1.2, section 5.5): memory that the guest does not need goes back to the host.
//!
//! Two ways: the *balloon*, which the guest fills with as many pages as it is asked for and empties again when it runs out of
//! memory otherwise (`DEFLATE_ON_OOM`), and *free-page reporting*, by which the guest tells of pages that it happens not to use. The
//! pages are given up with `madvise(MADV_DONTNEED)`; the guest's next touch brings a fresh one. The
//! guest also tells statistics when it is asked.

pub mod engine;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use wire::machine::{BalloonStatistics, BalloonStatus};

use self::engine::BalloonEngine;
use super::worker::{Confine, Worker};
use super::{
    ActivateError, Activation, DeviceState, Interrupt, QueueProgress, RestoreError, Snapshot, VirtioDevice,
    bits, read_space,
};

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 128;

/// Bytes of a page as the balloon counts them, whatever the guest's or host's are.
pub const PAGE: u64 = 4096;

/// Feature: the guest has a queue for statistics.
pub const STATISTICS: u32 = 1;
/// Feature: the guest may empty the balloon instead of killing a process.
pub const DEFLATE_ON_OOM: u32 = 2;
/// Feature: the guest reports free pages.
pub const REPORTING: u32 = 5;

/// What the device and its worker share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Pages that the balloon is to hold.
    target: AtomicU32,
    /// Pages that the guest says it holds.
    actual: AtomicU32,
    /// Bytes given back to the host since the start.
    pub given_back: AtomicU64,
    /// Fresh statistics are wanted.
    pub wanted: AtomicBool,
    statistics: Mutex<BalloonStatistics>,
}

impl Shared {
    /// Takes statistics over, and counts that they came.
    pub fn set_statistics(&self, now: BalloonStatistics) {
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        *statistics = BalloonStatistics { updates: statistics.updates.saturating_add(1), ..now };
    }
}

/// What the driver knows and set of a balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages that it is to hold.
    pub target: u32,
    /// Pages that the driver says it holds.
    pub actual: u32,
}

/// A balloon.
pub struct Balloon {
    worker: Worker,
    shared: Arc<Shared>,
    features: u64,
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl Balloon {
    /// An empty balloon; see [`Worker::new`] for `confine`.
    #[must_use]
    pub fn new(deflate_on_oom: bool, confine: Confine) -> Self {
        let shared = Arc::<Shared>::default();
        let seen = Arc::clone(&shared);
        let worker = Worker::new("balloon", move || Ok(BalloonEngine::new(seen)), confine);
        let mut features = bits(&[
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            STATISTICS,
            REPORTING,
        ]);
        if deflate_on_oom {
            features |= bits(&[DEFLATE_ON_OOM]);
        }
        Self { worker, shared, features, interrupt: None }
    }

    fn set_target(&self, pages: u32) {
        if self.shared.target.swap(pages, Ordering::AcqRel) != pages
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
    }
}

impl Snapshot for Balloon {
    type State = BalloonState;

    fn save(&self) -> BalloonState {
        BalloonState {
            target: self.shared.target.load(Ordering::Acquire),
            actual: self.shared.actual.load(Ordering::Acquire),
        }
    }

    fn restore(&mut self, state: &BalloonState) -> Result<(), RestoreError> {
        self.shared.target.store(state.target, Ordering::Release);
        self.shared.actual.store(state.actual, Ordering::Release);
        Ok(())
    }
}

/// Where the driver writes how many pages it holds.
const ACTUAL_AT: u64 = 4;

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_BALLOON).unwrap_or(5)
    }

    fn queue_sizes(&self) -> &[u16] {
        // Inflate, deflate, statistics, reporting.
        &[QUEUE_SIZE; 4]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        let (target, actual) = space.split_at_mut(4);
        target.copy_from_slice(&self.shared.target.load(Ordering::Acquire).to_le_bytes());
        actual.copy_from_slice(&self.shared.actual.load(Ordering::Acquire).to_le_bytes());
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_AT, Ok(pages)) = (offset, <[u8; 4]>::try_from(data)) {
            self.shared.actual.store(u32::from_le_bytes(pages), Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = Arc::clone(&activation.interrupt);
        self.worker.start(activation)?;
        self.interrupt = Some(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker.stop();
        self.interrupt = None;
        self.shared.actual.store(0, Ordering::Release);
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn set_balloon(&mut self, bytes: u64) -> bool {
        self.set_target(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX));
        true
    }

    fn balloon(&mut self) -> Option<BalloonStatus> {
        let bytes = |pages: &AtomicU32| u64::from(pages.load(Ordering::Acquire)).saturating_mul(PAGE);
        let statistics = *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wanted.store(true, Ordering::Release);
        self.worker.nudge();
        Some(BalloonStatus {
            target: bytes(&self.shared.target),
            actual: bytes(&self.shared.actual),
            given_back: self.shared.given_back.load(Ordering::Acquire),
            statistics,
        })
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if let DeviceState::Balloon(state) = state {
            return Snapshot::restore(self, state);
        }
        Err(state.is_not("a balloon"))
    }
}
