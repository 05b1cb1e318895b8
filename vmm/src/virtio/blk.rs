//! virtio-blk (virtio 1.2, section 5.2): a raw file as a disk.
//!
//! The configuration space lives here, the queue in [`engine`], the words of a request in [`request`].

pub mod engine;
pub mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::engine::BlkEngine;
use super::worker::{Confine, Worker};
use super::{
    ActivateError, Activation, DeviceState, Interrupt, QueueProgress, RestoreError, Snapshot, VirtioDevice,
    bits, read_space,
};
use crate::backend::file::{DiskFile, FileQueue, SECTOR};

/// Size of the request queue.
pub const QUEUE_SIZE: u16 = 256;

/// Longest serial number, in bytes.
pub const SERIAL_MAX: usize = 20;

/// Most ranges of one discard or write-zeroes request.
pub const MAX_RANGES: u32 = 16;

/// Most sectors of one such range: 2 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// What a disk is made of, besides its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkConfig {
    /// Guest may not write.
    pub read_only: bool,
    /// Serial number; cut after [`SERIAL_MAX`] bytes.
    pub serial: String,
    /// Use io_uring where the kernel allows it.
    pub io_uring: bool,
}

/// What the device and its worker share.
#[derive(Debug)]
pub struct Shared {
    /// Size of the disk in sectors.
    pub sectors: AtomicU64,
    /// Whether the guest is content with writes in a volatile cache until it flushes.
    pub write_back: AtomicBool,
}

/// What the driver knows and set of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Size that it was last told, in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether it is content with writes in a volatile cache until it flushes.
    pub write_back: bool,
}

impl Snapshot for Blk {
    type State = BlkState;

    fn save(&self) -> BlkState {
        BlkState {
            sectors: self.shared.sectors.load(Ordering::Acquire),
            write_back: self.shared.write_back.load(Ordering::Acquire),
        }
    }

    /// The file must be at least as large as it was; one that has grown since is told to the driver by the next
    /// [`Blk::resize`].
    fn restore(&mut self, state: &BlkState) -> Result<(), RestoreError> {
        let now = self.shared.sectors.load(Ordering::Acquire);
        if now < state.sectors {
            let (was, is) = (state.sectors.saturating_mul(SECTOR), now.saturating_mul(SECTOR));
            return Err(RestoreError::Host(format!(
                "the disk had {was} bytes and its file has {is} now; give the file that belongs to the snapshot"
            )));
        }
        self.shared.sectors.store(state.sectors, Ordering::Release);
        self.shared.write_back.store(state.write_back, Ordering::Release);
        Ok(())
    }
}

/// A disk.
pub struct Blk {
    worker: Worker,
    shared: Arc<Shared>,
    size: DiskFile,
    features: u64,
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl Blk {
    /// Makes a disk of an open raw file; see [`Worker::new`] for `confine`. What is left of the file after
    /// its last whole sector is not reachable.
    ///
    /// # Errors
    /// When the file cannot be asked for its size.
    pub fn new(file: DiskFile, config: &BlkConfig, confine: Confine) -> io::Result<Self> {
        let size = file.try_clone()?;
        let shared = Arc::new(Shared {
            sectors: AtomicU64::new(file.size()? / SECTOR),
            write_back: AtomicBool::new(true),
        });
        let mut features = bits(&[
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
        ]);
        if config.read_only {
            features |= bits(&[VIRTIO_BLK_F_RO]);
        } else if file.punches() {
            features |= bits(&[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        let mut serial = [0; SERIAL_MAX];
        for (to, from) in serial.iter_mut().zip(config.serial.bytes()) {
            *to = from;
        }
        let (seen, read_only, io_uring) = (Arc::clone(&shared), config.read_only, config.io_uring);
        let make = move || {
            let queue = FileQueue::new(file, engine::DEPTH, io_uring);
            Ok(BlkEngine::new(queue, seen, serial, read_only))
        };
        let worker = Worker::new("blk", make, confine);
        Ok(Self { worker, shared, size, features, interrupt: None })
    }

    /// Looks at the size of the file again and tells the guest when it changed. Answers the size in bytes.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn resize(&mut self) -> io::Result<u64> {
        let sectors = self.size.size()? / SECTOR;
        if self.shared.sectors.swap(sectors, Ordering::Release) != sectors
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
        Ok(sectors.saturating_mul(SECTOR))
    }

    /// The configuration space, `struct virtio_blk_config`.
    fn space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = at.checked_add(bytes.len()).and_then(|end| space.get_mut(at..end)) {
                to.copy_from_slice(bytes);
            }
        };
        put(0, &self.shared.sectors.load(Ordering::Acquire).to_le_bytes());
        // Data pieces of a request that fills the queue: all but its header and status.
        put(12, &u32::from(QUEUE_SIZE.saturating_sub(2)).to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        // Physical blocks of 2^3 sectors: what the host's file systems and page cache work with.
        put(24, &[3, 0]);
        put(26, &8_u16.to_le_bytes());
        put(32, &[u8::from(self.shared.write_back.load(Ordering::Acquire))]);
        put(34, &1_u16.to_le_bytes());
        if self.features & bits(&[VIRTIO_BLK_F_DISCARD]) != 0 {
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &8_u32.to_le_bytes());
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}

/// Offset of the write-back byte in the configuration space.
const WRITE_BACK_AT: u64 = 32;

impl VirtioDevice for Blk {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_BLOCK).unwrap_or(2)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (WRITE_BACK_AT, [value @ (0 | 1)]) = (offset, data) {
            self.shared.write_back.store(*value == 1, Ordering::Release);
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
        self.shared.write_back.store(true, Ordering::Release);
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn refresh_size(&mut self) -> io::Result<Option<u64>> {
        self.resize().map(Some)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Blk(state) => Snapshot::restore(self, state),
            DeviceState::Net(_) | DeviceState::Rng => Err(state.is_not("a disk")),
        }
    }
}
