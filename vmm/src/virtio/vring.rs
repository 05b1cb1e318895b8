//! A queue as a device's worker uses it: the queue crate's ring with its kick and interrupt, and what happens
//! when the ring itself is broken.
//!
//! A broken *chain* is one bad request and is given back; a broken *ring* (an available index that the ring
//! cannot have, rings that are not in memory) says that the driver is mad or hostile: nothing more is taken
//! from the ring until the driver resets the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{ActivateError, ActiveQueue, Interrupt, Memory, QueueProgress, bits};

/// Broken rings that this process logs before silence: a guest breaks a ring and resets the device as often as it likes, and the log is
/// not the guest's to fill.
const LOG_LINES: u32 = 100;
static LOGGED: AtomicU32 = AtomicU32::new(0);

/// One working queue of a device.
pub struct Vring {
    /// For messages.
    device: &'static str,
    index: u16,
    memory: Arc<Memory>,
    queue: Queue,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
    /// The used index when the driver was last told, or would have been had it wanted to.
    told: u16,
}

impl Vring {
    /// Takes over a queue.
    ///
    /// # Errors
    /// When the driver did not set it up.
    pub fn new(
        device: &'static str,
        ActiveQueue { index, mut queue, kick }: ActiveQueue,
        memory: &Arc<Memory>,
        interrupt: &Arc<dyn Interrupt>,
        features: u64,
    ) -> Result<Self, ActivateError> {
        if !queue.ready() || !queue.is_valid(memory.as_ref()) {
            return Err(ActivateError::Driver(format!("queue {index} of the {device} is not set up")));
        }
        queue.set_event_idx(features & bits(&[VIRTIO_RING_F_EVENT_IDX]) != 0);
        let told = queue.next_used();
        let (memory, interrupt) = (Arc::clone(memory), Arc::clone(interrupt));
        Ok(Self { device, index, memory, queue, kick, interrupt, broken: false, told })
    }

    /// How far it is: chains that were put back count as not taken.
    #[must_use]
    pub fn progress(&self) -> QueueProgress {
        QueueProgress {
            queue: self.index,
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The kick, to wait for.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Forgets kicks that came. To be called before looking into the ring.
    pub fn heard(&self) {
        // A nonblocking read of the counter; an empty one is an error that means nothing.
        let _ = self.kick.read();
    }

    /// The next available chain; `memory` is the ring's own.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Option<DescriptorChain<&'m Memory>> {
        if self.broken {
            return None;
        }
        match self.queue.iter(memory) {
            Ok(mut chains) => chains.next(),
            Err(_) => {
                self.break_off("its available index makes no sense");
                None
            }
        }
    }

    /// Puts the last `count` chains that were popped back, to be popped again. None of them may have been
    /// given back.
    pub fn unpop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Asks the driver not to kick.
    pub fn ignore_kicks(&mut self) {
        if !self.broken && self.queue.disable_notification(self.memory.as_ref()).is_err() {
            self.break_off("its rings are not in memory");
        }
    }

    /// Asks the driver to kick for the next chain. Answers whether one has come already, for which it may not
    /// kick.
    pub fn want_kicks(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let more = self.queue.enable_notification(self.memory.as_ref());
        more.unwrap_or_else(|_| {
            self.break_off("its rings are not in memory");
            false
        })
    }

    /// Gives a chain back, of which `len` bytes were written.
    pub fn give(&mut self, head: u16, len: u32) {
        if !self.broken && self.queue.add_used(self.memory.as_ref(), head, len).is_err() {
            self.break_off("a chain's head is outside of the ring");
        }
    }

    /// Gives several chains back that belong together: the driver sees all of them at once or none.
    pub fn give_together(&mut self, chains: &[(u16, u32)]) {
        let Some(((last, last_len), others)) = chains.split_last() else { return };
        let next = self.queue.next_used();
        for (offset, (head, len)) in (0_u16..).zip(others) {
            let slot = u64::from(next.wrapping_add(offset) % self.queue.size().max(1));
            // An element: the head, then the length, each of 32 bits, little-endian.
            let element = (u64::from(*len) << 32 | u64::from(*head)).to_le();
            // Used ring: flags, index, then elements of 8 bytes.
            let at = self.queue.used_ring().checked_add(4 + slot * 8).map(GuestAddress);
            let stored = at.is_some_and(|at| self.memory.write_obj(element, at).is_ok());
            if *head >= self.queue.size() || !stored {
                self.break_off("a chain's head is outside of the ring");
                return;
            }
        }
        let count = u16::try_from(others.len()).unwrap_or(u16::MAX);
        self.queue.set_next_used(next.wrapping_add(count));
        self.give(*last, *last_len);
    }

    /// Interrupts the driver if chains were given back and it wants to know.
    pub fn tell(&mut self) {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.told, new);
        if new != old && self.wants_interrupt(old, new) {
            self.interrupt.queue(self.index);
        }
    }

    fn wants_interrupt(&self, old: u16, new: u16) -> bool {
        // What was given must be visible before the driver's wish is read; it does the same the other way
        // round.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let read = |at: u64| {
            let at = available.checked_add(at).map(GuestAddress);
            at.and_then(|at| self.memory.load::<u16>(at, Ordering::Relaxed).ok()).map(u16::from_le)
        };
        if self.queue.event_idx_enabled() {
            // Available ring: flags, index, `size` heads, then the used index after which the driver wants to
            // be told.
            let event = read(4 + 2 * u64::from(self.queue.size()));
            event.is_none_or(|event| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            const NO_INTERRUPT: u16 = 1;
            read(0).is_none_or(|flags| flags & NO_INTERRUPT == 0)
        }
    }

    /// Whether the ring is given up.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Gives the ring up until the driver resets the device.
    pub fn break_off(&mut self, why: &str) {
        if !self.broken {
            self.broken = true;
            let more = match LOGGED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1)) {
                Ok(0..LOG_LINES) => "",
                Ok(LOG_LINES) => "; no more lines like this will follow",
                Ok(_) | Err(_) => return,
            };
            eprintln!(
                "{}: the guest's queue {} is broken ({why}); it is not served until the driver resets the device{more}",
                self.device, self.index
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Vring;
    use crate::virtio::testing::{Counter, Ring, memory};
    use crate::virtio::{Interrupt, bits};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use vm_memory::{Bytes, GuestAddress};

    const EVENT_IDX: u64 = 1 << 29;

    fn pair(features: u64) -> (Ring, Vring, Arc<Counter>) {
        let memory = memory();
        let ring = Ring::new(&memory, 0, 8);
        let counter = Arc::new(Counter::default());
        let interrupt: Arc<dyn Interrupt> = Arc::<Counter>::clone(&counter);
        let vring = Vring::new("test", ring.device(0), &memory, &interrupt, features).unwrap();
        (ring, vring, counter)
    }

    #[test]
    fn interrupts_only_when_wanted() {
        let (mut ring, mut vring, counter) = pair(EVENT_IDX);
        let count = || counter.queue.load(Ordering::SeqCst);
        vring.tell();
        assert_eq!(count(), 0);
        // The driver wants to be told after the third used chain (event index 2).
        vring.memory().write_obj(2_u16, GuestAddress(0x4000 + 4 + 16)).unwrap();
        vring.give(0, 0);
        vring.tell();
        vring.give(0, 0);
        vring.tell();
        assert_eq!(count(), 0);
        vring.give_together(&[(1, 10), (2, 20), (3, 30)]);
        vring.tell();
        assert_eq!(count(), 1);
        let all: Vec<_> = std::iter::from_fn(|| ring.used()).collect();
        assert_eq!(all, [(0, 0), (0, 0), (1, 10), (2, 20), (3, 30)]);
        let (_ring, mut vring, counter) = pair(bits(&[]));
        vring.memory().write_obj(1_u16, GuestAddress(0x4000)).unwrap();
        vring.give(0, 0);
        vring.tell();
        assert_eq!(counter.queue.load(Ordering::SeqCst), 0);
        vring.memory().write_obj(0_u16, GuestAddress(0x4000)).unwrap();
        vring.give(0, 0);
        vring.tell();
        assert_eq!(counter.queue.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn chains_put_back_come_again() {
        let (mut ring, mut vring, _) = pair(0);
        let memory = Arc::clone(vring.memory());
        let heads = [ring.add(&[(0x10_0000, 1, true)]), ring.add(&[(0x10_0000, 1, true)])];
        for _ in 0..3 {
            let popped: Vec<u16> =
                std::iter::from_fn(|| vring.pop(&memory).map(|chain| chain.head_index())).collect();
            assert_eq!(popped, heads);
            vring.unpop(2);
        }
    }

    #[test]
    fn heads_outside_of_the_ring_break_it() {
        let (mut ring, mut vring, _) = pair(0);
        vring.give_together(&[(900, 1), (0, 1)]);
        assert!(vring.is_broken());
        vring.give(0, 1);
        assert_eq!(ring.used(), None);
    }
}
