//! virtio-mem (virtio 1.2, section 5.15): memory that is plugged in and out while the guest runs.
//!
//! The device has an area of guest-physical addresses in blocks of 2 MiB, none of which is plugged in at first. It says how much the
//! guest is to have (`requested_size`), and the driver plugs blocks in, up to that, or out, down to that as far as it can. A block that
//! is plugged out goes back to the host at once. What is plugged in outlives a reset of the device; a new machine starts without.
//!
//! The driver promises not to touch what is not plugged in (`UNPLUGGED_INACCESSIBLE`). One that does so all the same gets pages of the
//! host for it, never more than the area: who plans for the machine's most memory plans for that.

pub mod engine;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use wire::machine::MemoryStatus;

use self::engine::MemEngine;
use super::worker::{Confine, Worker};
use super::{
    ActivateError, Activation, DeviceState, Interrupt, QueueProgress, RestoreError, Snapshot, VirtioDevice,
    bits, read_space,
};
use crate::machine::memory::plugged::Pluggable;

/// Size of the queue.
pub const QUEUE_SIZE: u16 = 128;

/// Device id (virtio 1.2, section 5).
const VIRTIO_ID_MEM: u16 = 24;

/// Feature: the driver leaves memory that is not plugged in alone.
pub const UNPLUGGED_INACCESSIBLE: u32 = 1;

/// What the device and its worker share.
#[derive(Debug)]
pub struct Shared {
    /// The area.
    pub area: Pluggable,
    /// Bytes that are to be plugged in.
    pub requested: AtomicU64,
    /// Take memory from the host when it is plugged in, not when it is touched.
    pub prefault: bool,
}

/// What is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    /// Bytes that are to be.
    pub requested: u64,
    /// Runs of blocks that are: the first, and how many.
    pub plugged: Vec<(usize, usize)>,
}

/// The device.
pub struct Mem {
    worker: Worker,
    shared: Arc<Shared>,
    interrupt: Option<Arc<dyn Interrupt>>,
    /// Bytes that the machine has besides.
    base: u64,
}

impl Mem {
    /// A device for an area, in a machine that has so many bytes besides; see [`Worker::new`] for `confine`.
    #[must_use]
    pub fn new(area: Pluggable, base: u64, prefault: bool, confine: Confine) -> Self {
        let shared = Arc::new(Shared { area, requested: AtomicU64::new(0), prefault });
        let seen = Arc::clone(&shared);
        let worker = Worker::new("memory", move || Ok(MemEngine::new(seen)), confine);
        Self { worker, shared, interrupt: None, base }
    }
}

impl Snapshot for Mem {
    type State = MemState;

    fn save(&self) -> MemState {
        let runs = self.shared.area.plugged.runs().map(|run| (run.start, run.len()));
        MemState { requested: self.shared.requested.load(Ordering::Acquire), plugged: runs.collect() }
    }

    fn restore(&mut self, state: &MemState) -> Result<(), RestoreError> {
        let wrong = |text: &str| Err(RestoreError::Damaged(text.to_owned()));
        let plugged = &self.shared.area.plugged;
        if state.requested > self.shared.area.length as u64 {
            return wrong("more memory is to be plugged in than there can be");
        }
        let mut from = 0;
        for (first, count) in &state.plugged {
            match first.checked_add(*count) {
                Some(end) if *first >= from && *count > 0 && end <= plugged.blocks() => {
                    plugged.set(*first..end, true);
                    from = end;
                }
                _ => return wrong("memory is plugged in where there is none, or twice"),
            }
        }
        self.shared.requested.store(state.requested, Ordering::Release);
        Ok(())
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        bits(&[
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            UNPLUGGED_INACCESSIBLE,
        ])
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let area = &self.shared.area;
        let length = area.length as u64;
        let mut space = [0; 56];
        // Block size; node (none) and padding; address; size of the area, and of what of it can be used: all.
        let words = [
            area.plugged.block() as u64,
            0,
            area.start.0,
            length,
            length,
            area.plugged.bytes(),
            self.shared.requested.load(Ordering::Acquire),
        ];
        for (to, word) in space.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = Arc::clone(&activation.interrupt);
        self.worker.start(activation)?;
        self.interrupt = Some(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker.stop();
        self.interrupt = None;
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn set_plugged(&mut self, bytes: u64) -> bool {
        let bytes = bytes.min(self.shared.area.length as u64);
        if self.shared.requested.swap(bytes, Ordering::AcqRel) != bytes
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
        true
    }

    fn plugged(&mut self) -> Option<MemoryStatus> {
        let base = self.base;
        Some(MemoryStatus {
            target: base.saturating_add(self.shared.requested.load(Ordering::Acquire)),
            actual: base.saturating_add(self.shared.area.plugged.bytes()),
            least: base,
            most: base.saturating_add(self.shared.area.length as u64),
        })
    }

    fn save(&self) -> DeviceState {
        DeviceState::Mem(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if let DeviceState::Mem(state) = state {
            return Snapshot::restore(self, state);
        }
        Err(state.is_not("a memory device"))
    }
}
