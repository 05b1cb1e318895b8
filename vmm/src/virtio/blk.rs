//! virtio-blk (virtio 1.2, section 5.2): a raw file as a disk.
//!
//! The configuration space lives here, a queue in [`engine`], the words of a request in [`request`].

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
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use wire::machine::{BlockSize, DeviceCounts, Limits};

use self::engine::BlkEngine;
use self::request::Geometry;
use super::counters::Counter;
use super::limit::Limiter;
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

/// Most request queues.
pub const MAX_QUEUES: u16 = 16;

/// What a disk is made of, besides its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkConfig {
    /// Guest may not write.
    pub read_only: bool,
    /// Serial number; cut after [`SERIAL_MAX`] bytes.
    pub serial: String,
    /// Use io_uring where the kernel allows it.
    pub io_uring: bool,
    /// Request queues, each with a thread and a ring of its own once the guest uses it; 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Unit of all requests; the file is to be opened with the same ([`DiskFile::new`]).
    pub block_size: BlockSize,
    /// Limits, over all queues together.
    pub limits: Limits,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self {
            read_only: false,
            serial: String::new(),
            io_uring: true,
            queues: 1,
            block_size: BlockSize::B512,
            limits: Limits::default(),
        }
    }
}

/// What the device and its workers share.
#[derive(Debug)]
pub struct Shared {
    /// Size of the disk in sectors.
    sectors: AtomicU64,
    block: u64,
    /// Whether the guest is content with writes in a volatile cache until it flushes.
    write_back: AtomicBool,
    limiter: Limiter,
    read: Counter,
    written: Counter,
}

impl Shared {
    /// Of a disk of `bytes` bytes; what is left after its last whole block is not reachable.
    #[must_use]
    pub fn new(bytes: u64, block_size: BlockSize, limits: Limits) -> Self {
        let block = u64::from(block_size.bytes());
        Self {
            sectors: AtomicU64::new(sectors(bytes, block)),
            block,
            write_back: AtomicBool::new(true),
            limiter: Limiter::new(limits),
            read: Counter::default(),
            written: Counter::default(),
        }
    }

    /// What requests have to fit now.
    fn geometry(&self) -> Geometry {
        Geometry { sectors: self.sectors.load(Ordering::Acquire), block: self.block }
    }

    /// Sets whether writes may stay in a volatile cache until the driver flushes.
    pub fn set_write_back(&self, on: bool) {
        self.write_back.store(on, Ordering::Release);
    }
}

/// Sectors of the whole blocks in so many bytes.
fn sectors(bytes: u64, block: u64) -> u64 {
    (bytes - bytes % block) / SECTOR
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
    /// One for each queue.
    workers: Vec<Worker>,
    sizes: Vec<u16>,
    shared: Arc<Shared>,
    size: DiskFile,
    features: u64,
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl Blk {
    /// Makes a disk of an open raw file; see [`Worker::new`] for what `confine` gives each worker. What is left of the
    /// file after its last whole block is not reachable.
    ///
    /// # Errors
    /// When the file cannot be asked for its size, or there are no more descriptors.
    pub fn new(file: DiskFile, config: &BlkConfig, confine: fn() -> Confine) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(file.size()?, config.block_size, config.limits));
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
        let queues = config.queues.clamp(1, MAX_QUEUES);
        if queues > 1 {
            features |= bits(&[VIRTIO_BLK_F_MQ]);
        }
        let (read_only, io_uring) = (config.read_only, config.io_uring);
        let mut workers = Vec::with_capacity(queues.into());
        for _ in 0..queues {
            let (file, seen) = (file.try_clone()?, Arc::clone(&shared));
            let make = move || {
                let queue = FileQueue::new(file, engine::DEPTH, io_uring);
                Ok(BlkEngine::new(queue, seen, serial, read_only))
            };
            workers.push(Worker::new("blk", make, confine()));
        }
        let sizes = vec![QUEUE_SIZE; queues.into()];
        Ok(Self { workers, sizes, shared, size: file, features, interrupt: None })
    }

    /// Looks at the size of the file again and tells the guest when it changed. Answers the size in bytes.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn resize(&mut self) -> io::Result<u64> {
        let sectors = sectors(self.size.size()?, self.shared.block);
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
        put(20, &u32::try_from(self.shared.block).unwrap_or(512).to_le_bytes());
        // Physical blocks of 4 KiB, what the host's file systems and page cache work with; both in logical blocks.
        let (exponent, least) = if self.shared.block == SECTOR { (3, 8_u16) } else { (0, 1) };
        put(24, &[exponent, 0]);
        put(26, &least.to_le_bytes());
        put(32, &[u8::from(self.shared.write_back.load(Ordering::Acquire))]);
        put(34, &u16::try_from(self.sizes.len()).unwrap_or(1).to_le_bytes());
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
        &self.sizes
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
        let Activation { memory, queues, interrupt, features } = activation;
        if !queues.iter().any(|active| active.queue.ready()) {
            return Err(ActivateError::Driver("no queue of the disk is set up".to_owned()));
        }
        for (active, worker) in queues.into_iter().zip(&mut self.workers) {
            if active.queue.ready() {
                let (memory, interrupt) = (Arc::clone(&memory), Arc::clone(&interrupt));
                worker.start(Activation { memory, queues: vec![active], interrupt, features })?;
            }
        }
        self.interrupt = Some(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        for worker in &self.workers {
            worker.stop();
        }
        self.interrupt = None;
        self.shared.set_write_back(true);
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.workers.iter().flat_map(Worker::pause).collect()
    }

    fn resume(&mut self) {
        for worker in &self.workers {
            worker.resume();
        }
    }

    fn set_limits(&mut self, [limits, _]: [Limits; 2]) -> bool {
        self.shared.limiter.set(limits);
        for worker in &self.workers {
            worker.nudge();
        }
        true
    }

    fn counts(&self) -> Option<DeviceCounts> {
        Some(DeviceCounts { to_guest: self.shared.read.read(), from_guest: self.shared.written.read() })
    }

    fn refresh_size(&mut self) -> io::Result<Option<u64>> {
        self.resize().map(Some)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if let DeviceState::Blk(state) = state {
            return Snapshot::restore(self, state);
        }
        Err(state.is_not("a disk"))
    }
}
