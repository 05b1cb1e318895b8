//! A pair of the interface's queues and its queue of the tap.
//!
//! Receiving: buffers are taken from the ring ahead of packets, enough for the largest packet; one `readv`
//! puts a packet straight into them; as many as it filled are given back together. What was taken and not
//! filled is kept for the next packet, and put back into the ring when the device stops or pauses. Sending:
//! one `writev` per packet straight from guest memory, behind a checked copy of its header.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use libc::iovec;
use nix::poll::PollFlags;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::control::{Control, Shared};
use super::header::outgoing;
use crate::backend::tap::{
    HEADER, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUN_F_USO4, TUN_F_USO6, Tap,
};
use crate::virtio::chain::{MAX_PIECES, Segments, collect};
use crate::virtio::vring::Vring;
use crate::virtio::worker::{Engine, Ready, Turn, borrow};
use crate::virtio::{ActivateError, Activation, Memory, QueueProgress, bits};

/// Largest packet with its header: 64 KiB of IP, Ethernet with a VLAN tag, and ours.
pub const MAX_PACKET: usize = 65_535 + 18 + HEADER;

/// Packets moved in each direction before looking at the other one and at orders.
const BUDGET: usize = 64;

/// Place of `num_buffers` in the header.
const NUM_BUFFERS_AT: usize = 10;

/// A buffer taken from the receive ring.
struct Buffer {
    head: u16,
    room: Segments,
    len: usize,
}

struct Active {
    receive: Vring,
    send: Vring,
    features: u64,
    /// Buffers taken and not filled, in ring order.
    buffers: VecDeque<Buffer>,
    /// Their bytes.
    room: usize,
    /// The driver has no more buffers; its kick brings us back.
    starved: bool,
    /// The tap takes no more packets now.
    blocked: bool,
    /// A limit holds packets from the network back until then.
    held: Option<Instant>,
}

/// The data path of a network interface.
pub struct NetEngine {
    tap: Arc<Tap>,
    shared: Arc<Shared>,
    /// In the worker of the first pair.
    control: Option<Control>,
    /// The tap is gone (its interface was deleted): nothing more comes, and asking again would spin.
    gone: bool,
    active: Option<Active>,
    spare: Vec<Segments>,
    pieces: Vec<iovec>,
    /// Takes what a packet has beyond the buffers, so that it is seen to be too long.
    overflow: Box<[u8]>,
}

// SAFETY: `pieces` is only a place to build lists in; it holds nothing between calls.
unsafe impl Send for NetEngine {}

/// How a direction's turn ended.
#[derive(Clone, Copy)]
enum Ended {
    /// Something else has to happen first.
    Waiting,
    /// There may be more.
    Budget,
    /// A limit holds the next packet back until then.
    Held(Instant),
}

/// What became of a packet.
enum Moved {
    Packet,
    Dropped,
    WouldBlock,
}

impl NetEngine {
    /// An idle engine for a pair of queues over a queue of a tap.
    #[must_use]
    pub fn new(tap: Arc<Tap>, shared: Arc<Shared>) -> Self {
        let overflow = vec![0; MAX_PACKET].into_boxed_slice();
        Self {
            tap,
            shared,
            control: None,
            gone: false,
            active: None,
            spare: Vec::new(),
            pieces: Vec::new(),
            overflow,
        }
    }

    fn segments(&mut self, memory: &Arc<Memory>) -> Segments {
        self.spare.pop().unwrap_or_else(|| Segments::new(Arc::clone(memory)))
    }

    fn give_back(&mut self, mut segments: Segments) {
        segments.clear();
        self.spare.push(segments);
    }

    /// Takes buffers until the largest packet fits, or one when packets must fit a single one. Answers
    /// whether there is any.
    fn take_buffers(&mut self, active: &mut Active, mergeable: bool) -> bool {
        let memory = Arc::clone(active.receive.memory());
        active.starved = false;
        loop {
            let enough = if mergeable { active.room >= MAX_PACKET } else { !active.buffers.is_empty() };
            if enough {
                active.receive.ignore_kicks();
                return true;
            }
            let Some(chain) = active.receive.pop(&memory) else {
                if active.receive.want_kicks() {
                    continue;
                }
                active.starved = active.buffers.is_empty();
                return !active.starved;
            };
            let head = chain.head_index();
            let mut readable = self.segments(&memory);
            let mut room = self.segments(&memory);
            let taken = collect(chain, &mut readable, &mut room);
            let len = room.len();
            if taken.is_err() || !readable.is_empty() || len < HEADER {
                // Buffers are kept in order to be put back; one that is given back between them would break
                // that.
                active.receive.break_off("a receive buffer makes no sense");
            } else {
                active.room = active.room.saturating_add(len);
                active.buffers.push_back(Buffer { head, room, len });
                self.give_back(readable);
                continue;
            }
            self.give_back(readable);
            self.give_back(room);
        }
    }

    fn receive(&mut self, active: &mut Active) -> Ended {
        let mergeable = active.features & bits(&[VIRTIO_NET_F_MRG_RXBUF]) != 0;
        for _ in 0..BUDGET {
            if self.gone || !self.take_buffers(active, mergeable) {
                return Ended::Waiting;
            }
            if let Some(then) = self.shared.receive.wait() {
                return Ended::Held(then);
            }
            match self.receive_one(active, mergeable) {
                Moved::Packet | Moved::Dropped => {}
                Moved::WouldBlock => return Ended::Waiting,
            }
        }
        Ended::Budget
    }

    fn receive_one(&mut self, active: &mut Active, mergeable: bool) -> Moved {
        self.pieces.clear();
        let most = if mergeable { active.buffers.len() } else { 1 };
        let (mut count, mut room) = (0_usize, 0_usize);
        for buffer in active.buffers.iter().take(most) {
            let pieces = buffer.room.as_iovecs();
            if room >= MAX_PACKET || self.pieces.len().saturating_add(pieces.len()) >= MAX_PIECES {
                break;
            }
            self.pieces.extend_from_slice(pieces);
            room = room.saturating_add(buffer.len);
            count = count.saturating_add(1);
        }
        self.pieces.push(iovec { iov_base: self.overflow.as_mut_ptr().cast(), iov_len: self.overflow.len() });
        // SAFETY: the pieces lie in guest memory, kept mapped by `active.buffers`, and in `overflow`, which
        // is borrowed alone.
        let got = match unsafe { self.tap.read(&self.pieces) } {
            Ok(got) => got,
            Err(error) => {
                self.look_at(&error);
                return Moved::WouldBlock;
            }
        };
        if count == 0 || got > room || got < HEADER {
            self.shared.received.failed();
            return Moved::Dropped;
        }
        self.shared.received.moved(got.saturating_sub(HEADER) as u64);
        self.shared.receive.charge(got.saturating_sub(HEADER) as u64);
        self.deliver(active, got);
        Moved::Packet
    }

    /// Gives the buffers that a packet of `len` bytes filled to the driver.
    fn deliver(&mut self, active: &mut Active, len: usize) {
        let mut given: Vec<(u16, u32)> = Vec::with_capacity(1);
        let mut first: Option<Segments> = None;
        let mut left = len;
        while left > 0 {
            let Some(buffer) = active.buffers.pop_front() else { break };
            let part = buffer.len.min(left);
            left = left.saturating_sub(part);
            active.room = active.room.saturating_sub(buffer.len);
            given.push((buffer.head, u32::try_from(part).unwrap_or(u32::MAX)));
            if first.is_none() {
                first = Some(buffer.room);
            } else {
                self.give_back(buffer.room);
            }
        }
        if let Some(mut first) = first {
            let number = u16::try_from(given.len()).unwrap_or(u16::MAX);
            first.skip(NUM_BUFFERS_AT);
            first.put(&number.to_le_bytes());
            self.give_back(first);
        }
        active.receive.give_together(&given);
    }

    fn send(&mut self, active: &mut Active) -> Ended {
        let memory = Arc::clone(active.send.memory());
        active.blocked = false;
        active.send.ignore_kicks();
        for _ in 0..BUDGET {
            if let Some(then) = self.shared.send.wait() {
                return Ended::Held(then);
            }
            let Some(chain) = active.send.pop(&memory) else {
                if active.send.want_kicks() {
                    active.send.ignore_kicks();
                    continue;
                }
                return Ended::Waiting;
            };
            let head = chain.head_index();
            let mut packet = self.segments(&memory);
            let mut writable = self.segments(&memory);
            let moved = match collect(chain, &mut packet, &mut writable) {
                Ok(_) if writable.is_empty() => self.send_one(&mut packet, active.features),
                Ok(_) | Err(_) => Moved::Dropped,
            };
            if let Moved::Dropped = moved {
                self.shared.sent.failed();
            }
            self.give_back(packet);
            self.give_back(writable);
            match moved {
                Moved::Packet | Moved::Dropped => active.send.give(head, 0),
                Moved::WouldBlock => {
                    active.send.unpop(1);
                    active.blocked = true;
                    return Ended::Waiting;
                }
            }
        }
        Ended::Budget
    }

    fn send_one(&mut self, packet: &mut Segments, features: u64) -> Moved {
        let mut raw = [0; HEADER];
        if packet.take(&mut raw) < HEADER || packet.len() > MAX_PACKET - HEADER || self.gone {
            return Moved::Dropped;
        }
        let Some(mut header) = outgoing(raw, packet.len(), features) else { return Moved::Dropped };
        let pieces = packet.as_iovecs();
        if pieces.len() >= MAX_PIECES {
            return Moved::Dropped;
        }
        self.pieces.clear();
        self.pieces.push(iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER });
        self.pieces.extend_from_slice(pieces);
        // SAFETY: the pieces are `header` and guest memory, which `packet` keeps mapped.
        match unsafe { self.tap.write(&self.pieces) } {
            Ok(sent) => {
                self.shared.sent.moved(sent.saturating_sub(HEADER) as u64);
                self.shared.send.charge(sent.saturating_sub(HEADER) as u64);
                Moved::Packet
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Moved::WouldBlock,
            // A header that the kernel does not like, an interface that is down, no memory.
            Err(error) => {
                self.look_at(&error);
                Moved::Dropped
            }
        }
    }

    /// Notices when the tap is gone for good.
    fn look_at(&mut self, error: &io::Error) {
        if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EBADF)) && !self.gone {
            self.gone = true;
            eprintln!("virtio-net: the tap is gone ({error}): the interface carries nothing more");
        }
    }
}

/// The features that the control queue switches, by the same bits.
pub const OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// What the kernel may leave to a guest with these features, for the tap.
#[must_use]
pub fn offloads(features: u64) -> u32 {
    let has = |bit: u32| features & bits(&[bit]) != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut flags = TUN_F_CSUM;
    for (bit, flag) in [(VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6)] {
        flags |= if has(bit) { flag } else { 0 };
    }
    let segments_tcp = flags != TUN_F_CSUM;
    flags |= if has(VIRTIO_NET_F_GUEST_UFO) { TUN_F_UFO } else { 0 };
    // The kernel takes both or neither.
    if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
        flags |= TUN_F_USO4 | TUN_F_USO6;
    }
    if segments_tcp && has(VIRTIO_NET_F_GUEST_ECN) {
        flags |= TUN_F_TSO_ECN;
    }
    flags
}

impl Engine for NetEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues.into_iter();
        let (Some(receive), Some(send), control, None) =
            (queues.next(), queues.next(), queues.next(), queues.next())
        else {
            return Err(ActivateError::Driver("a network interface has pairs of queues".to_owned()));
        };
        let first = receive.index == 0;
        let (memory, interrupt, features) = (&activation.memory, &activation.interrupt, activation.features);
        let receive = Vring::new("virtio-net", receive, memory, interrupt, features)?;
        let send = Vring::new("virtio-net", send, memory, interrupt, features)?;
        let control = control
            .map(|queue| Vring::new("virtio-net", queue, memory, interrupt, features))
            .transpose()?
            .map(|ring| Control::new(ring, features, Arc::clone(&self.shared)));
        if first {
            // Of the whole tap, whichever queue says it.
            self.shared.apply_offloads(features).map_err(|source| ActivateError::Host {
                what: "tell the tap what the guest's driver takes",
                source,
            })?;
        }
        self.control = control;
        self.active = Some(Active {
            receive,
            send,
            features,
            buffers: VecDeque::new(),
            room: 0,
            starved: false,
            blocked: false,
            held: None,
        });
        Ok(())
    }

    fn quiesce(&mut self) {
        let Some(active) = self.active.as_mut() else { return };
        // So that the ring alone says what is still to be done.
        active.receive.unpop(u16::try_from(active.buffers.len()).unwrap_or(u16::MAX));
        active.buffers.clear();
        active.room = 0;
    }

    fn stop(&mut self) {
        self.quiesce();
        self.active = None;
        self.control = None;
        // They keep guest memory mapped.
        self.spare.clear();
    }

    fn progress(&self) -> Vec<QueueProgress> {
        let pair = self.active.iter().flat_map(|active| [active.receive.progress(), active.send.progress()]);
        pair.chain(self.control.iter().map(|control| control.ring.progress())).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        let Some(active) = &self.active else { return };
        into.push((borrow(active.receive.kick()), PollFlags::POLLIN));
        into.push((borrow(active.send.kick()), PollFlags::POLLIN));
        into.extend(self.control.iter().map(|control| (borrow(control.ring.kick()), PollFlags::POLLIN)));
        let mut wanted = PollFlags::empty();
        let takes = !active.starved && active.held.is_none() && !active.receive.is_broken();
        wanted.set(PollFlags::POLLIN, takes);
        wanted.set(PollFlags::POLLOUT, active.blocked);
        if !self.gone && !wanted.is_empty() {
            into.push((self.tap.as_fd(), wanted));
        }
    }

    fn turn(&mut self, ready: Ready) -> Turn {
        let Some(mut active) = self.active.take() else { return Turn::Sleep };
        if ready.has(0) {
            active.receive.heard();
        }
        if ready.has(1) {
            active.send.heard();
        }
        let mut more = false;
        if let Some(control) = self.control.as_mut().filter(|_| ready.has(2)) {
            control.ring.heard();
            more = control.turn();
        }
        let received = self.receive(&mut active);
        active.held = if let Ended::Held(then) = received { Some(then) } else { None };
        let sent = self.send(&mut active);
        active.receive.tell();
        active.send.tell();
        self.active = Some(active);
        match (received, sent) {
            _ if more => Turn::Again,
            (Ended::Budget, _) | (_, Ended::Budget) => Turn::Again,
            (Ended::Held(one), Ended::Held(other)) => Turn::Until(one.min(other)),
            (Ended::Held(then), Ended::Waiting) | (Ended::Waiting, Ended::Held(then)) => Turn::Until(then),
            (Ended::Waiting, Ended::Waiting) => Turn::Sleep,
        }
    }
}
