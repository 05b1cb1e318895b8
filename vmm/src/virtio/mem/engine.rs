//! The queue of requests: plug blocks in or out, tell how they are.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::PollFlags;
use vm_memory::{Address, GuestMemoryBackend};

use super::Shared;
use crate::machine::memory::backing::{Return, populate};
use crate::virtio::chain::{Segments, collect};
use crate::virtio::vring::Vring;
use crate::virtio::worker::{Engine, Ready, Turn, borrow};
use crate::virtio::{ActivateError, Activation, Memory, QueueProgress};

/// Requests answered before looking at orders again.
const BUDGET: usize = 32;

/// Bytes of a request: its type and padding, an address, a number of blocks and padding.
const REQUEST: usize = 24;
/// Bytes of an answer: its type and padding, and a state.
const ANSWER: usize = 10;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// More than is to be plugged in.
    Nack,
    /// Not now: the host has no memory.
    Busy,
    /// A request that makes no sense.
    Error,
    /// These blocks are all plugged in.
    Plugged,
    /// None of them is.
    Unplugged,
    /// Some are.
    Mixed,
}

impl Answer {
    fn bytes(self) -> [u8; ANSWER] {
        let (kind, state): (u8, u8) = match self {
            Self::Ack | Self::Plugged => (0, 0),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
            Self::Unplugged => (0, 1),
            Self::Mixed => (0, 2),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

struct Active {
    ring: Vring,
    readable: Segments,
    writable: Segments,
}

/// The data path.
pub struct MemEngine {
    shared: Arc<Shared>,
    active: Option<Active>,
}

impl MemEngine {
    /// An idle engine.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, active: None }
    }
}

impl Shared {
    /// The blocks that a request is about; `None` when they are not all in the area.
    fn blocks(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = usize::try_from(address.checked_sub(self.area.start.0)?).ok()?;
        let block = self.area.plugged.block();
        let first = offset / block;
        let end = first.checked_add(usize::from(count))?;
        let fits = count > 0 && offset % block == 0 && end <= self.area.plugged.blocks();
        fits.then_some(first..end)
    }

    /// Address in this process of a block.
    fn host(&self, memory: &Memory, block: usize) -> Option<usize> {
        let offset = block.checked_mul(self.area.plugged.block())?;
        let address = self.area.start.checked_add(offset as u64)?;
        Some(memory.get_host_address(address).ok()?.expose_provenance())
    }

    fn plug(&self, memory: &Memory, blocks: Range<usize>) -> Answer {
        let plugged = &self.area.plugged;
        if plugged.of(blocks.clone()) > 0 {
            return Answer::Error;
        }
        let length = blocks.len().saturating_mul(plugged.block());
        let after = plugged.bytes().saturating_add(length as u64);
        if after > self.requested.load(Ordering::Acquire) {
            return Answer::Nack;
        }
        if self.prefault {
            let taken = self.host(memory, blocks.start).is_some_and(|at| populate(at, length).is_ok());
            if !taken {
                // What was taken of it goes back.
                self.give_back(memory, blocks);
                return Answer::Busy;
            }
        }
        plugged.set(blocks, true);
        Answer::Ack
    }

    fn unplug(&self, memory: &Memory, blocks: Range<usize>) -> Answer {
        if self.area.plugged.of(blocks.clone()) != blocks.len() {
            return Answer::Error;
        }
        self.give_back(memory, blocks.clone());
        self.area.plugged.set(blocks, false);
        Answer::Ack
    }

    fn give_back(&self, memory: &Memory, blocks: Range<usize>) {
        let length = blocks.len().saturating_mul(self.area.plugged.block());
        if let Some(at) = self.host(memory, blocks.start) {
            // SAFETY: the blocks are in the area, one mapping of guest memory; all accesses to it take any content, and the driver
            // said that it does not need this one.
            let _ = unsafe { Return::of(memory).give(at, length) };
        }
    }

    /// Does what a request says.
    fn answer(&self, memory: &Memory, request: &[u8; REQUEST]) -> Answer {
        let [a, b, _, _, _, _, _, _, address @ .., c, d, _, _, _, _, _, _] = *request;
        let kind = u16::from_le_bytes([a, b]);
        if kind == UNPLUG_ALL {
            // All of it, also what a driver touched that it had not plugged in.
            let all = 0..self.area.plugged.blocks();
            self.give_back(memory, all.clone());
            self.area.plugged.set(all, false);
            return Answer::Ack;
        }
        let blocks = self.blocks(u64::from_le_bytes(address), u16::from_le_bytes([c, d]));
        let Some(blocks) = blocks else { return Answer::Error };
        match kind {
            PLUG => self.plug(memory, blocks),
            UNPLUG => self.unplug(memory, blocks),
            STATE => match self.area.plugged.of(blocks.clone()) {
                0 => Answer::Unplugged,
                count if count == blocks.len() => Answer::Plugged,
                _ => Answer::Mixed,
            },
            _ => Answer::Error,
        }
    }
}

impl Active {
    fn turn(&mut self, shared: &Shared) -> bool {
        self.ring.heard();
        let memory = Arc::clone(self.ring.memory());
        for _ in 0..BUDGET {
            let Some(chain) = self.ring.pop(&memory) else {
                if self.ring.want_kicks() {
                    continue;
                }
                self.ring.tell();
                return false;
            };
            let head = chain.head_index();
            self.readable.clear();
            self.writable.clear();
            let mut used = 0;
            if collect(chain, &mut self.readable, &mut self.writable).is_ok() {
                let mut request = [0; REQUEST];
                // A request whose answer has no place is not done: nobody would know.
                let whole = self.readable.take(&mut request) == REQUEST && self.writable.len() >= ANSWER;
                let answer = if whole { shared.answer(&memory, &request) } else { Answer::Error };
                used = u32::try_from(self.writable.put(&answer.bytes())).unwrap_or(0);
            }
            self.ring.give(head, used);
        }
        self.ring.tell();
        true
    }
}

impl Engine for MemEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (memory, interrupt, features) = (&activation.memory, &activation.interrupt, activation.features);
        let queue = activation.queues.into_iter().next();
        let queue = queue.ok_or_else(|| ActivateError::Driver("a memory device has one queue".to_owned()))?;
        let ring = Vring::new("virtio-mem", queue, memory, interrupt, features)?;
        let readable = Segments::new(Arc::clone(memory));
        let writable = Segments::new(Arc::clone(memory));
        self.active = Some(Active { ring, readable, writable });
        Ok(())
    }

    fn quiesce(&mut self) {}

    fn stop(&mut self) {
        self.active = None;
    }

    fn progress(&self) -> Vec<QueueProgress> {
        self.active.iter().map(|active| active.ring.progress()).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        into.extend(self.active.iter().map(|active| (borrow(active.ring.kick()), PollFlags::POLLIN)));
    }

    fn turn(&mut self, _ready: Ready) -> Turn {
        let Some(active) = &mut self.active else { return Turn::Sleep };
        if active.turn(&self.shared) { Turn::Again } else { Turn::Sleep }
    }
}
