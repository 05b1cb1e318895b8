//! The interface's control queue: what a driver changes while packets flow (virtio 1.2, section 5.1.6.5).
//!
//! The tap takes every packet, so receive modes and address tables need no more than a polite answer. What matters is how many
//! queue pairs are used, which the kernel must know to steer packets, and which offloads the driver takes.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
};
use vm_memory::{Bytes, GuestAddress};

use super::engine::{OFFLOADS, offloads};
use crate::backend::tap::Tap;
use crate::virtio::bits;
use crate::virtio::chain::{Segments, collect};
use crate::virtio::counters::Counter;
use crate::virtio::limit::Limiter;
use crate::virtio::vring::Vring;
use wire::machine::Limits;

/// Commands answered before looking at packets again.
const BUDGET: usize = 8;

/// Longest command that is read: class, command and a number.
const COMMAND: usize = 10;

const RX: u8 = 0;
const MAC: u8 = 1;
const ANNOUNCE: u8 = 3;
const MQ: u8 = 4;
const GUEST_OFFLOADS: u8 = 5;

/// What the device, its workers and the control queue share.
#[derive(Debug)]
pub struct Shared {
    /// The tap's queues, one for each pair.
    taps: Vec<Arc<Tap>>,
    /// The hardware address, as 6 bytes of a little-endian number.
    mac: AtomicU64,
    /// Queue pairs in use.
    pairs: AtomicU16,
    /// The offloads that the driver set since it started, if it did.
    offloads: Mutex<Option<u64>>,
    /// The driver is asked to tell the network where it is.
    announce: AtomicBool,
    /// Limits towards the guest.
    pub receive: Limiter,
    /// Limits from the guest.
    pub send: Limiter,
    /// What came to the guest.
    pub received: Counter,
    /// What came from it.
    pub sent: Counter,
}

impl Shared {
    /// Of an interface with these queues of a tap.
    #[must_use]
    pub fn new(taps: Vec<Arc<Tap>>, mac: [u8; 6], [receive, send]: [Limits; 2]) -> Self {
        let shared = Self {
            taps,
            mac: AtomicU64::new(0),
            pairs: AtomicU16::new(1),
            offloads: Mutex::new(None),
            announce: AtomicBool::new(false),
            receive: Limiter::new(receive),
            send: Limiter::new(send),
            received: Counter::default(),
            sent: Counter::default(),
        };
        shared.set_mac(mac);
        shared
    }

    /// The hardware address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.mac.load(Ordering::Acquire).to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Sets it.
    pub fn set_mac(&self, [a, b, c, d, e, f]: [u8; 6]) {
        self.mac.store(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), Ordering::Release);
    }

    /// Queue pairs in use.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Acquire)
    }

    /// Says how many are to be used, before [`Shared::steer`].
    pub fn set_pairs(&self, pairs: u16) {
        self.pairs.store(pairs, Ordering::Release);
    }

    /// Lets the kernel give packets to the pairs in use only.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn steer(&self) -> std::io::Result<()> {
        let used = usize::from(self.pairs());
        // The first pair is always in use.
        for (index, tap) in self.taps.iter().enumerate().skip(1) {
            tap.attach(index < used)?;
        }
        Ok(())
    }

    /// The offloads that the driver set.
    #[must_use]
    pub fn offloads(&self) -> Option<u64> {
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets them, before the device starts.
    pub fn set_offloads(&self, to: Option<u64>) {
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// Whether the driver is asked to announce itself.
    #[must_use]
    pub fn announces(&self) -> bool {
        self.announce.load(Ordering::Acquire)
    }

    /// Asks it to, or takes note that it did.
    pub fn set_announce(&self, on: bool) {
        self.announce.store(on, Ordering::Release);
    }

    /// Tells the tap what the driver takes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn apply_offloads(&self, features: u64) -> std::io::Result<()> {
        let set = self.offloads().map_or(features, |set| (features & !OFFLOADS) | (set & features));
        self.taps.first().map_or(Ok(()), |tap| tap.set_offload(offloads(set)))
    }
}

/// The working control queue.
pub struct Control {
    /// Its ring.
    pub ring: Vring,
    features: u64,
    shared: Arc<Shared>,
}

impl Control {
    /// Takes over the queue.
    #[must_use]
    pub fn new(ring: Vring, features: u64, shared: Arc<Shared>) -> Self {
        Self { ring, features, shared }
    }

    /// Answers commands. Says whether there may be more.
    pub fn turn(&mut self) -> bool {
        let memory = Arc::clone(self.ring.memory());
        let mut readable = Segments::new(Arc::clone(&memory));
        let mut writable = Segments::new(Arc::clone(&memory));
        for _ in 0..BUDGET {
            let Some(chain) = self.ring.pop(&memory) else {
                if self.ring.want_kicks() {
                    continue;
                }
                self.ring.tell();
                return false;
            };
            let head = chain.head_index();
            readable.clear();
            writable.clear();
            let last = collect(chain, &mut readable, &mut writable).ok().flatten();
            let Some((address, _)) = last else {
                // Nowhere to answer to.
                self.ring.give(head, 0);
                continue;
            };
            let ok = self.command(&mut readable);
            // In guest memory, as `collect` found.
            let _ = memory.write_obj(u8::from(!ok), GuestAddress(address.0));
            self.ring.give(head, 1);
        }
        self.ring.tell();
        true
    }

    fn command(&mut self, words: &mut Segments) -> bool {
        let mut command = [0; COMMAND];
        let got = words.take(&mut command);
        let has = |bit: u32| self.features & bits(&[bit]) != 0;
        let [class, kind, number @ ..] = command;
        let [a, b, c, d, e, f, ..] = number;
        match (class, kind, got.saturating_sub(2)) {
            // Promiscuous, all multicast.
            (RX, 0 | 1, 1..) => has(VIRTIO_NET_F_CTRL_RX),
            // A table of addresses: all come anyway.
            (MAC, 0, 8) => has(VIRTIO_NET_F_CTRL_RX),
            (MAC, 1, 6..) if has(VIRTIO_NET_F_CTRL_MAC_ADDR) => {
                self.shared.set_mac([a, b, c, d, e, f]);
                true
            }
            (ANNOUNCE, 0, _) if has(VIRTIO_NET_F_GUEST_ANNOUNCE) => {
                self.shared.set_announce(false);
                true
            }
            (MQ, 0, 2..) if has(VIRTIO_NET_F_MQ) => self.use_pairs(u16::from_le_bytes([a, b])),
            (GUEST_OFFLOADS, 0, 8) if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) => {
                let set = u64::from_le_bytes(number);
                if set & !(self.features & OFFLOADS) != 0 {
                    return false;
                }
                let before = self.shared.offloads();
                self.shared.set_offloads(Some(set));
                let done = self.shared.apply_offloads(self.features).is_ok();
                if !done {
                    self.shared.set_offloads(before);
                }
                done
            }
            _ => false,
        }
    }

    fn use_pairs(&self, pairs: u16) -> bool {
        if !(1..=self.shared.taps.len()).contains(&usize::from(pairs)) {
            return false;
        }
        let before = self.shared.pairs();
        self.shared.set_pairs(pairs);
        let done = self.shared.steer().is_ok();
        if !done {
            self.shared.set_pairs(before);
            let _ = self.shared.steer();
        }
        done
    }
}
