//! The driver's side of a queue, for tests, fuzzing and benchmarks: guest memory with a ring that can also be
//! written wrongly on purpose.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, Interrupt, Memory};

/// Flag of a descriptor that has a next one.
pub const NEXT: u16 = 1;
/// Flag of a descriptor that the device writes.
pub const WRITE: u16 = 2;
/// Flag of a descriptor that points to a table.
pub const INDIRECT: u16 = 4;

/// Bytes of guest memory.
pub const MEMORY: usize = 8 << 20;

/// Where buffers may be put: rings lie below.
pub const BUFFERS: u64 = 1 << 20;

/// Guest memory in two regions that touch, so that buffers can cross from one to the other.
///
/// # Panics
/// When the host has no memory.
#[must_use]
pub fn memory() -> Arc<Memory> {
    let half = MEMORY / 2;
    let ranges = [(GuestAddress(0), half), (GuestAddress(half as u64), half)];
    Arc::new(Memory::from_ranges(&ranges).unwrap_or_else(|error| panic!("no guest memory: {error}")))
}

/// Counts interrupts.
#[derive(Debug, Default)]
pub struct Counter {
    /// Queue interrupts.
    pub queue: AtomicU64,
    /// Configuration interrupts.
    pub config: AtomicU64,
    /// What interrupts directly, once it was asked for.
    pub event: OnceLock<Option<EventFd>>,
}

impl Counter {
    /// Waits for the first queue interrupt. Before looking at the used ring: a driver that has seen all needs
    /// no interrupt.
    ///
    /// # Panics
    /// After 10 seconds.
    pub fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.queue.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "no interrupt came");
            std::thread::yield_now();
        }
    }
}

impl Interrupt for Counter {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }
    fn config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
    fn event(&self, _index: u16) -> std::io::Result<EventFd> {
        self.event
            .get_or_init(|| EventFd::new(EFD_NONBLOCK).ok())
            .as_ref()
            .map_or_else(|| Err(std::io::ErrorKind::OutOfMemory.into()), EventFd::try_clone)
    }
}

/// A piece of a chain: address, length, and whether the device writes it.
pub type Piece = (u64, u32, bool);

/// One queue as the driver sees it. Descriptors are handed out in a circle, so a test must not have more
/// under way than the ring holds.
pub struct Ring {
    memory: Arc<Memory>,
    base: u64,
    size: u16,
    next: u16,
    available: u16,
    used: u16,
    /// Tells the device that there is something.
    pub kick: EventFd,
}

impl Ring {
    /// A ring of `size` at `base`; it takes less than 64 KiB.
    ///
    /// # Panics
    /// When there are no more descriptors.
    #[must_use]
    pub fn new(memory: &Arc<Memory>, base: u64, size: u16) -> Self {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap_or_else(|error| panic!("no event: {error}"));
        Self { memory: Arc::clone(memory), base, size, next: 0, available: 0, used: 0, kick }
    }

    fn available_at(&self) -> u64 {
        self.base + 0x4000
    }

    fn used_at(&self) -> u64 {
        self.base + 0x8000
    }

    /// The device's side, ready, and its kick event.
    ///
    /// # Panics
    /// When `size` is no valid size.
    #[must_use]
    pub fn device(&self, index: u16) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap_or_else(|error| panic!("{error}"));
        let address = |at: u64| u32::try_from(at).ok();
        queue.set_size(self.size);
        queue.set_desc_table_address(address(self.base), Some(0));
        queue.set_avail_ring_address(address(self.available_at()), Some(0));
        queue.set_used_ring_address(address(self.used_at()), Some(0));
        queue.set_ready(true);
        let kick = self.kick.try_clone().unwrap_or_else(|error| panic!("no event: {error}"));
        ActiveQueue { index, queue, kick }
    }

    fn store<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(at))
            .unwrap_or_else(|error| panic!("outside of memory: {error}"));
    }

    fn load<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).unwrap_or_else(|error| panic!("outside of memory: {error}"))
    }

    /// Writes a descriptor as it is into a table at `table`.
    pub fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.store(at, address);
        self.store(at + 8, len);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Writes a descriptor as it is into the ring's own table.
    pub fn raw(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor(self.base, index, address, len, flags, next);
    }

    /// Makes the chain that starts at `head` available, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let slot = self.available_at() + 4 + u64::from(self.available % self.size) * 2;
        self.store(slot, head);
        self.available = self.available.wrapping_add(1);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.store(self.available_at() + 2, self.available);
    }

    /// Makes a chain available; answers its head.
    pub fn add(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.next;
        for (index, (address, len, write)) in pieces.iter().enumerate() {
            let here = self.next;
            self.next = (self.next + 1) % self.size;
            let more = index + 1 < pieces.len();
            let flags = if *write { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.raw(here, *address, *len, flags, if more { self.next } else { 0 });
        }
        self.offer(head);
        head
    }

    /// Makes a chain available through an indirect table at `table`; answers its head.
    pub fn add_indirect(&mut self, table: u64, pieces: &[Piece]) -> u16 {
        let count = u16::try_from(pieces.len()).unwrap_or(u16::MAX);
        for (index, (address, len, write)) in (0..count).zip(pieces) {
            let more = index + 1 < count;
            let flags = if *write { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.descriptor(table, index, *address, *len, flags, index + 1);
        }
        let head = self.next;
        self.next = (self.next + 1) % self.size;
        self.raw(head, table, u32::from(count) * 16, INDIRECT, 0);
        self.offer(head);
        head
    }

    /// Tells the device.
    ///
    /// # Panics
    /// When the event cannot be written.
    pub fn kick(&self) {
        self.kick.write(1).unwrap_or_else(|error| panic!("cannot kick: {error}"));
    }

    /// The next used chain, if there is one: head and written bytes.
    pub fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.load(self.used_at() + 2);
        std::sync::atomic::fence(Ordering::SeqCst);
        if index == self.used {
            return None;
        }
        let slot = self.used_at() + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        // The driver's word for EVENT_IDX: interrupt at the next one.
        self.store(self.available_at() + 4 + u64::from(self.size) * 2, self.used);
        Some((self.load(slot), self.load(slot + 4)))
    }

    /// Waits for the next used chain.
    ///
    /// # Panics
    /// After 10 seconds.
    pub fn wait(&mut self) -> (u32, u32) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(Instant::now() < deadline, "the device does not answer");
            std::thread::yield_now();
        }
    }
}

/// All that a device needs to work `rings`.
#[must_use]
pub fn activation(
    memory: &Arc<Memory>,
    rings: &[&Ring],
    interrupt: &Arc<Counter>,
    features: u64,
) -> Activation {
    let interrupt: Arc<dyn Interrupt> = Arc::<Counter>::clone(interrupt);
    let queues = (0_u16..).zip(rings).map(|(index, ring)| ring.device(index)).collect();
    Activation { memory: Arc::clone(memory), queues, interrupt, features }
}
