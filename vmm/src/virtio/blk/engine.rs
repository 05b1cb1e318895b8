//! The disk's queue: from descriptor chains to jobs of the file, and from what is done back to used buffers.
//!
//! Requests finish in any order. At most [`DEPTH`] are under way; more stay in the guest's ring until one is
//! done.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::poll::PollFlags;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::request::{HEADER, RANGE, Range, Status, Verb, range, range_count, span, verb};
use super::{SERIAL_MAX, Shared};
use crate::backend::file::{Access, Done, FileQueue, Job};
use crate::virtio::chain::{Segments, collect};
use crate::virtio::vring::Vring;
use crate::virtio::worker::{Engine, Ready, Turn, borrow};
use crate::virtio::{ActivateError, Activation, Memory, QueueProgress, bits};

/// Most requests under way.
pub const DEPTH: u16 = 128;

/// Most requests taken from the ring before looking at orders again.
const BUDGET: usize = 256;

/// A request under way.
struct Pending {
    head: u16,
    status_at: GuestAddress,
    /// What the used entry says when all goes well: bytes written to guest memory.
    used: u32,
    /// It writes to the disk.
    writes: bool,
    /// Ranges still to change, last first.
    ranges: Vec<Range>,
}

struct Active {
    ring: Vring,
    features: u64,
}

/// The data path of a disk.
pub struct BlkEngine {
    file: FileQueue,
    shared: Arc<Shared>,
    serial: [u8; SERIAL_MAX],
    read_only: bool,
    active: Option<Active>,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    spare: Vec<Segments>,
}

/// Why no more chains are taken from the ring.
enum Stopped {
    /// There are none, and the driver will kick.
    Empty,
    /// Enough for one turn.
    Budget,
    /// As many as can be are under way; a completion brings us back.
    Full,
    /// A limit holds the next one back until then.
    Held(Instant),
}

/// What became of a chain.
enum Taken {
    /// It is answered.
    Answered,
    /// It is under way.
    UnderWay,
}

impl BlkEngine {
    /// An idle engine over a file.
    #[must_use]
    pub fn new(file: FileQueue, shared: Arc<Shared>, serial: [u8; SERIAL_MAX], read_only: bool) -> Self {
        let depth = usize::from(DEPTH);
        Self {
            file,
            shared,
            serial,
            read_only,
            active: None,
            pending: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            spare: Vec::new(),
        }
    }

    fn segments(&mut self, memory: &Arc<Memory>) -> Segments {
        self.spare.pop().unwrap_or_else(|| Segments::new(Arc::clone(memory)))
    }

    fn give_back(&mut self, mut segments: Segments) {
        segments.clear();
        self.spare.push(segments);
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() && self.file.has_room()
    }

    /// Takes chains from the ring while there is room and budget.
    fn take_chains(&mut self, active: &mut Active) -> Stopped {
        let memory = Arc::clone(active.ring.memory());
        active.ring.ignore_kicks();
        for _ in 0..BUDGET {
            if !self.has_room() {
                return Stopped::Full;
            }
            if let Some(then) = self.shared.limiter.wait() {
                return Stopped::Held(then);
            }
            match active.ring.pop(&memory) {
                Some(chain) => self.take_chain(active, chain),
                None if active.ring.want_kicks() => active.ring.ignore_kicks(),
                None => return Stopped::Empty,
            }
        }
        Stopped::Budget
    }

    fn take_chain(&mut self, active: &mut Active, chain: DescriptorChain<&Memory>) {
        let head = chain.head_index();
        let mut readable = self.segments(active.ring.memory());
        let mut writable = self.segments(active.ring.memory());
        let last = collect(chain, &mut readable, &mut writable);
        // The status byte is the last one that the device may write, wherever descriptors end.
        let status_at = last.ok().flatten().and_then(|(address, len)| {
            let last = u64::from(len).checked_sub(1)?;
            address.0.checked_add(last).map(GuestAddress)
        });
        let Some(status_at) = status_at else {
            // Nowhere to say what is wrong.
            self.give_back(readable);
            self.give_back(writable);
            active.ring.give(head, 0);
            return;
        };
        match self.start(active, head, status_at, &mut readable, &mut writable) {
            Ok(Taken::UnderWay) => {}
            Ok(Taken::Answered) => active.answer(head, status_at, Status::Ok, 1),
            Err(status) => active.answer(head, status_at, status, 1),
        }
        self.give_back(readable);
        self.give_back(writable);
    }

    /// Starts a request. Memory that a job needs is taken out of `readable` or `writable`.
    fn start(
        &mut self,
        active: &mut Active,
        head: u16,
        status_at: GuestAddress,
        readable: &mut Segments,
        writable: &mut Segments,
    ) -> Result<Taken, Status> {
        let mut header = [0; HEADER];
        if readable.take(&mut header) < HEADER {
            return Err(Status::IoError);
        }
        let disk = self.shared.geometry();
        let room = writable.len().saturating_sub(1);
        let mut pending = Pending { head, status_at, used: 1, writes: true, ranges: Vec::new() };
        let job = match verb(&header)? {
            Verb::Read(sector) => {
                let offset = span(sector, room as u64, disk)?;
                pending.used =
                    u32::try_from(room).ok().and_then(|room| room.checked_add(1)).ok_or(Status::IoError)?;
                writable.truncate(room);
                pending.writes = false;
                self.shared.read.moved(room as u64);
                self.shared.limiter.charge(room as u64);
                let segments = self.swap(active, writable);
                Job::Transfer { access: Access::Read, segments, offset, durable: false }
            }
            Verb::Write(sector) => {
                if self.read_only {
                    return Err(Status::IoError);
                }
                let offset = span(sector, readable.len() as u64, disk)?;
                self.shared.written.moved(readable.len() as u64);
                self.shared.limiter.charge(readable.len() as u64);
                let segments = self.swap(active, readable);
                Job::Transfer { access: Access::Write, segments, offset, durable: self.write_through(active) }
            }
            Verb::Flush if self.read_only => return Ok(Taken::Answered),
            Verb::Flush => {
                self.shared.limiter.charge(0);
                Job::Flush
            }
            Verb::Identify => {
                if room < SERIAL_MAX {
                    return Err(Status::IoError);
                }
                writable.put(&self.serial);
                let used = u32::try_from(SERIAL_MAX).map_or(1, |len| len.saturating_add(1));
                active.answer(head, status_at, Status::Ok, used);
                return Ok(Taken::UnderWay);
            }
            kind @ (Verb::Discard | Verb::WriteZeroes) => {
                if self.read_only || !self.file.disk().punches() {
                    return Err(Status::Unsupported);
                }
                let zeroes = kind == Verb::WriteZeroes;
                for _ in 0..range_count(readable.len())? {
                    let mut words = [0; RANGE];
                    readable.take(&mut words);
                    pending.ranges.extend(range(&words, zeroes, disk)?);
                }
                // They move no bytes; each range costs the host about as much as a request.
                for _ in &pending.ranges {
                    self.shared.limiter.charge(0);
                }
                let Some(first) = pending.ranges.pop() else { return Ok(Taken::Answered) };
                change(first)
            }
        };
        self.submit(pending, job).map(|()| Taken::UnderWay)
    }

    /// Takes the content of `segments`, leaving an empty one.
    fn swap(&mut self, active: &Active, segments: &mut Segments) -> Segments {
        let empty = self.segments(active.ring.memory());
        std::mem::replace(segments, empty)
    }

    /// Whether each write has to be durable by itself: the driver does not flush, or turned the cache off.
    fn write_through(&self, active: &Active) -> bool {
        let has = |bit| active.features & bits(&[bit]) != 0;
        !has(VIRTIO_BLK_F_FLUSH)
            || (has(VIRTIO_BLK_F_CONFIG_WCE) && !self.shared.write_back.load(Ordering::Acquire))
    }

    fn submit(&mut self, pending: Pending, job: Job) -> Result<(), Status> {
        // Room was looked at before the chain was taken.
        let Some(index) = self.free.pop() else { return Err(Status::IoError) };
        if self.file.submit(index as u64, job).is_err() {
            self.free.push(index);
            return Err(Status::IoError);
        }
        if let Some(slot) = self.pending.get_mut(index) {
            *slot = Some(pending);
        }
        Ok(())
    }

    /// Collects what is done.
    fn collect_done(&mut self, active: &mut Active) {
        while let Some(Done { token, segments, result }) = self.file.done() {
            if let Some(segments) = segments {
                self.give_back(segments);
            }
            let index = usize::try_from(token).unwrap_or(usize::MAX);
            let Some(mut pending) = self.pending.get_mut(index).and_then(Option::take) else { continue };
            self.free.push(index);
            match (result, pending.ranges.pop()) {
                (Ok(()), Some(next)) => {
                    let (head, status_at) = (pending.head, pending.status_at);
                    if self.submit(pending, change(next)).is_err() {
                        active.answer(head, status_at, Status::IoError, 1);
                    }
                }
                (Ok(()), None) => active.answer(pending.head, pending.status_at, Status::Ok, pending.used),
                (Err(_), _) => {
                    if pending.writes { &self.shared.written } else { &self.shared.read }.failed();
                    active.answer(pending.head, pending.status_at, Status::IoError, 1);
                }
            }
        }
        // A next range may have been submitted, and nothing else would take it to the kernel.
        self.file.push();
    }
}

fn change(range: Range) -> Job {
    Job::Change { change: range.change, offset: range.offset, len: range.len }
}

impl Active {
    /// Writes the status and gives the chain back.
    fn answer(&mut self, head: u16, status_at: GuestAddress, status: Status, used: u32) {
        // It was in guest memory when the chain was taken, and memory does not go away.
        let _ = self.ring.memory().write_obj(status as u8, status_at);
        self.ring.give(head, used);
    }
}

impl Engine for BlkEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues.into_iter();
        let (Some(queue), None) = (queues.next(), queues.next()) else {
            return Err(ActivateError::Driver("a worker of a disk has one queue".to_owned()));
        };
        let (memory, interrupt, features) = (&activation.memory, &activation.interrupt, activation.features);
        let ring = Vring::new("virtio-blk", queue, memory, interrupt, features)?;
        self.active = Some(Active { ring, features });
        Ok(())
    }

    fn quiesce(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        while self.pending.iter().any(Option::is_some) {
            self.file.push();
            self.file.drain();
            self.collect_done(&mut active);
        }
        active.ring.tell();
        self.active = Some(active);
    }

    fn stop(&mut self) {
        self.quiesce();
        self.active = None;
        // They keep guest memory mapped.
        self.spare.clear();
    }

    fn progress(&self) -> Vec<QueueProgress> {
        self.active.iter().map(|active| active.ring.progress()).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if let Some(active) = &self.active {
            into.push((borrow(active.ring.kick()), PollFlags::POLLIN));
        }
        into.extend(self.file.completions().map(|fd| (fd, PollFlags::POLLIN)));
    }

    fn turn(&mut self, ready: Ready) -> Turn {
        let Some(mut active) = self.active.take() else { return Turn::Sleep };
        if ready.has(0) {
            active.ring.heard();
        }
        self.collect_done(&mut active);
        let stopped = self.take_chains(&mut active);
        self.file.push();
        self.collect_done(&mut active);
        active.ring.tell();
        self.active = Some(active);
        match stopped {
            // The kernel had no resources for what was submitted; nothing but asking again will tell when it
            // has.
            _ if self.file.is_behind() => Turn::Again,
            Stopped::Empty => Turn::Sleep,
            Stopped::Budget => Turn::Again,
            // Done already when there is no ring to wait for.
            Stopped::Full if self.has_room() => Turn::Again,
            Stopped::Full => Turn::Sleep,
            Stopped::Held(then) => Turn::Until(then),
        }
    }
}
