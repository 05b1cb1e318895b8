//! virtio-rng (virtio 1.2, section 5.4): random bytes from the host's kernel.

use std::io;
use std::os::fd::BorrowedFd;

use nix::poll::PollFlags;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::chain::{Segments, collect};
use super::vring::Vring;
use super::worker::{Confine, Engine, Ready, Turn, Worker, borrow};
use super::{ActivateError, Activation, DeviceState, QueueProgress, RestoreError, VirtioDevice, bits};

/// Size of the request queue.
pub const QUEUE_SIZE: u16 = 64;

/// Most bytes given for one request; the specification lets a device give fewer than there is room for.
pub const MAX_BYTES: usize = 16 << 10;

/// Requests answered before looking at orders again.
const BUDGET: usize = 16;

/// An entropy device.
pub struct Rng {
    worker: Worker,
}

impl Rng {
    /// Makes the device; see [`Worker::new`] for `confine`.
    #[must_use]
    pub fn new(confine: Confine) -> Self {
        Self { worker: Worker::new("rng", || Ok(RngEngine { ring: None }), confine) }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_RNG).unwrap_or(4)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        bits(&[VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC])
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if *state == DeviceState::Rng { Ok(()) } else { Err(state.is_not("an entropy device")) }
    }
}

/// The data path.
pub struct RngEngine {
    ring: Option<Vring>,
}

impl RngEngine {
    /// An idle engine.
    #[must_use]
    pub fn new() -> Self {
        Self { ring: None }
    }
}

impl Default for RngEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for RngEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues.into_iter();
        let (Some(queue), None) = (queues.next(), queues.next()) else {
            return Err(ActivateError::Driver("an entropy device has one queue".to_owned()));
        };
        let (memory, interrupt) = (&activation.memory, &activation.interrupt);
        self.ring = Some(Vring::new("virtio-rng", queue, memory, interrupt, activation.features)?);
        Ok(())
    }

    fn quiesce(&mut self) {}

    fn stop(&mut self) {
        self.ring = None;
    }

    fn progress(&self) -> Vec<QueueProgress> {
        self.ring.iter().map(Vring::progress).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        into.extend(self.ring.iter().map(|ring| (borrow(ring.kick()), PollFlags::POLLIN)));
    }

    fn turn(&mut self, _ready: Ready) -> Turn {
        let Some(ring) = self.ring.as_mut() else { return Turn::Sleep };
        ring.heard();
        let memory = std::sync::Arc::clone(ring.memory());
        let mut readable = Segments::new(std::sync::Arc::clone(&memory));
        let mut writable = Segments::new(std::sync::Arc::clone(&memory));
        for _ in 0..BUDGET {
            let Some(chain) = ring.pop(&memory) else {
                if ring.want_kicks() {
                    continue;
                }
                ring.tell();
                return Turn::Sleep;
            };
            let head = chain.head_index();
            readable.clear();
            writable.clear();
            let len = match collect(chain, &mut readable, &mut writable) {
                Ok(_) => fill(&mut writable),
                Err(_) => 0,
            };
            ring.give(head, len);
        }
        ring.tell();
        Turn::Again
    }
}

/// Fills guest memory with random bytes, at most [`MAX_BYTES`]; answers how many.
fn fill(room: &mut Segments) -> u32 {
    let mut bytes = vec![0; room.len().min(MAX_BYTES)];
    let mut got = 0;
    while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match random(rest) {
            Ok(count) => got = got.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    bytes.truncate(got);
    u32::try_from(room.put(&bytes)).unwrap_or(0)
}

#[allow(unsafe_code)]
fn random(into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`.
    let got = unsafe { libc::getrandom(into.as_mut_ptr().cast(), into.len(), 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::{MAX_BYTES, Rng};
    use crate::virtio::testing::{BUFFERS, Counter, MEMORY, NEXT, Ring, WRITE, activation, memory};
    use crate::virtio::worker::unconfined;
    use crate::virtio::{ActivateError, VirtioDevice};
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn gives_random_bytes_within_bounds() {
        let memory = memory();
        let mut ring = Ring::new(&memory, 0, 16);
        let counter = Arc::new(Counter::default());
        let mut rng = Rng::new(unconfined());
        rng.activate(activation(&memory, &[&ring], &counter, rng.features())).unwrap();
        let get = |at: u64| {
            let mut bytes = [0; 64];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        ring.add(&[(BUFFERS, 32, true), (BUFFERS + 0x1000, 16, true)]);
        ring.kick();
        counter.wait();
        assert_eq!(ring.wait().1, 48);
        let first = get(BUFFERS);
        assert_ne!(first[..32], [0; 32]);
        assert_eq!(first[32..], [0; 32]);
        ring.add(&[(BUFFERS, 32, true)]);
        ring.kick();
        assert_eq!(ring.wait().1, 32);
        assert_ne!(get(BUFFERS)[..32], first[..32]);
        // A buffer larger than the bound, one that is only readable, one outside of memory, a circle.
        ring.add(&[(BUFFERS, 1 << 20, true)]);
        ring.add(&[(BUFFERS, 32, false)]);
        ring.add(&[(MEMORY as u64, 32, true)]);
        ring.raw(15, BUFFERS, 8, NEXT | WRITE, 15);
        ring.offer(15);
        ring.kick();
        let lengths = [ring.wait().1, ring.wait().1, ring.wait().1, ring.wait().1];
        assert_eq!(lengths, [u32::try_from(MAX_BYTES).unwrap(), 0, 0, 0]);
        rng.reset();
    }

    #[test]
    fn a_worker_that_cannot_be_confined_does_nothing() {
        let memory = memory();
        let mut ring = Ring::new(&memory, 0, 16);
        let mut rng = Rng::new(Box::new(|| Err(std::io::Error::other("no filter"))));
        let refused = rng.activate(activation(&memory, &[&ring], &Arc::default(), rng.features()));
        assert!(matches!(refused, Err(ActivateError::Host { .. })), "{refused:?}");
        ring.add(&[(BUFFERS, 32, true)]);
        ring.kick();
        rng.pause();
        rng.resume();
        rng.reset();
        assert_eq!(ring.used(), None);
    }

    #[test]
    fn queues_that_are_not_set_up_are_refused() {
        let memory = memory();
        let mut rng = Rng::new(unconfined());
        let none = activation(&memory, &[], &Arc::default(), 0);
        assert!(matches!(rng.activate(none), Err(ActivateError::Driver(_))));
        let outside = Ring::new(&memory, MEMORY as u64 * 2, 16);
        let outside = activation(&memory, &[&outside], &Arc::default(), 0);
        assert!(matches!(rng.activate(outside), Err(ActivateError::Driver(_))));
    }
}
