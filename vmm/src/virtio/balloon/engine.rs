//! The balloon's queues: lists of pages to give up, reports of free pages, statistics.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::PollFlags;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use wire::machine::BalloonStatistics;

use super::{PAGE, REPORTING, STATISTICS, Shared};
use crate::machine::memory::backing::Return;
use crate::virtio::chain::{Segments, collect};
use crate::virtio::vring::Vring;
use crate::virtio::worker::{Engine, Ready, Turn, borrow};
use crate::virtio::{ActivateError, Activation, Memory, QueueProgress, bits};

/// Chains of each queue answered before looking at orders again.
const BUDGET: usize = 32;

/// Most page numbers taken from one chain, 256 MiB of pages: Linux sends 256 at once. What is beyond stays the guest's.
const MOST_PAGES: usize = 1 << 16;

/// Bytes of one statistic: a tag of 2, a value of 8.
const STATISTIC: usize = 10;

/// Most statistics taken from one buffer.
const MOST_STATISTICS: usize = 32;

struct Active {
    inflate: Vring,
    deflate: Vring,
    statistics: Option<Vring>,
    reporting: Option<Vring>,
    /// The driver's statistics buffer: given back when fresh ones are wanted.
    held: Option<u16>,
    readable: Segments,
    writable: Segments,
}

/// The data path of a balloon.
pub struct BalloonEngine {
    shared: Arc<Shared>,
    active: Option<Active>,
}

impl BalloonEngine {
    /// An idle engine.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, active: None }
    }
}

/// Gives a range of host memory back, its whole pages; answers how many bytes.
fn give_up(how: Return, address: usize, len: usize) -> u64 {
    // SAFETY: the callers give ranges of guest memory, which stays mapped; all accesses to it take any content, and the guest said that
    // it does not need this one.
    unsafe { how.give(address, len) }
}

/// Gives a run of guest pages back; what is not in guest memory is left alone.
fn give_up_run(memory: &Memory, first: u64, count: u64) -> u64 {
    let (Some(start), Ok(len)) = (first.checked_mul(PAGE), usize::try_from(count.saturating_mul(PAGE)))
    else {
        return 0;
    };
    let how = Return::of(memory);
    let slices = GuestMemoryBackend::get_slices(memory, GuestAddress(start), len);
    slices
        .map_while(Result::ok)
        .map(|slice| give_up(how, slice.ptr_guard_mut().as_ptr().expose_provenance(), slice.len()))
        .sum()
}

/// Gives back the pages whose numbers stand in a chain.
fn inflate(memory: &Memory, numbers: &mut Segments) -> u64 {
    let mut given = 0_u64;
    // Pages are listed one by one; neighbours, which Linux lists downwards, are given back by one call.
    let mut run: Option<(u64, u64)> = None;
    for _ in 0..MOST_PAGES {
        let mut word = [0; 4];
        if numbers.take(&mut word) < word.len() {
            break;
        }
        let page = u64::from(u32::from_le_bytes(word));
        run = Some(match run {
            Some((first, count)) if page == first.saturating_add(count) => (first, count.saturating_add(1)),
            Some((first, count)) if page.checked_add(1) == Some(first) => (page, count.saturating_add(1)),
            Some((first, count)) => {
                given = given.saturating_add(give_up_run(memory, first, count));
                (page, 1)
            }
            None => (page, 1),
        });
    }
    run.map_or(given, |(first, count)| given.saturating_add(give_up_run(memory, first, count)))
}

/// Reads statistics; what is not known is passed over.
fn statistics(words: &mut Segments) -> BalloonStatistics {
    let mut now = BalloonStatistics::default();
    for _ in 0..MOST_STATISTICS {
        let mut word = [0; STATISTIC];
        if words.take(&mut word) < STATISTIC {
            break;
        }
        let [a, b, value @ ..] = word;
        let value = Some(u64::from_le_bytes(value));
        match u16::from_le_bytes([a, b]) {
            0 => now.swap_in = value,
            1 => now.swap_out = value,
            2 => now.major_faults = value,
            3 => now.minor_faults = value,
            4 => now.free = value,
            5 => now.total = value,
            6 => now.available = value,
            7 => now.caches = value,
            _ => {}
        }
    }
    now
}

/// Takes up to [`BUDGET`] chains, does something with each, and gives them back. Answers whether there may be more.
fn serve(
    ring: &mut Vring,
    readable: &mut Segments,
    writable: &mut Segments,
    mut each: impl FnMut(&Memory, &mut Segments, &mut Segments) -> u32,
) -> bool {
    ring.heard();
    let memory = Arc::clone(ring.memory());
    for _ in 0..BUDGET {
        let Some(chain) = ring.pop(&memory) else {
            if ring.want_kicks() {
                continue;
            }
            ring.tell();
            return false;
        };
        let head = chain.head_index();
        readable.clear();
        writable.clear();
        let used = match collect(chain, readable, writable) {
            Ok(_) => each(&memory, readable, writable),
            Err(_) => 0,
        };
        ring.give(head, used);
    }
    ring.tell();
    true
}

impl Active {
    fn turn(&mut self, shared: &Shared) -> bool {
        let given = |bytes: u64| {
            shared.given_back.fetch_add(bytes, Ordering::AcqRel);
        };
        let (readable, writable) = (&mut self.readable, &mut self.writable);
        let mut more = serve(&mut self.inflate, readable, writable, |memory, numbers, _| {
            given(inflate(memory, numbers));
            0
        });
        // What comes back needs nothing: a page is there again when it is touched.
        more |= serve(&mut self.deflate, readable, writable, |_, _, _| 0);
        if let Some(ring) = &mut self.reporting {
            more |= serve(ring, readable, writable, |memory, _, pages| {
                let how = Return::of(memory);
                for piece in pages.as_iovecs() {
                    given(give_up(how, piece.iov_base.expose_provenance(), piece.iov_len));
                }
                // Nothing that the driver may rely on was written.
                0
            });
        }
        self.statistics(shared);
        more
    }

    fn statistics(&mut self, shared: &Shared) {
        let Some(ring) = &mut self.statistics else { return };
        ring.heard();
        if self.held.is_some()
            && shared.wanted.swap(false, Ordering::AcqRel)
            && let Some(head) = self.held.take()
        {
            ring.give(head, 0);
        }
        let memory = Arc::clone(ring.memory());
        loop {
            if let Some(chain) = ring.pop(&memory) {
                let head = chain.head_index();
                self.readable.clear();
                self.writable.clear();
                if collect(chain, &mut self.readable, &mut self.writable).is_ok() {
                    shared.set_statistics(statistics(&mut self.readable));
                }
                // There is one buffer by the specification; of more, all but the last are given back.
                if let Some(before) = self.held.replace(head) {
                    ring.break_off("there is more than one statistics buffer");
                    ring.give(before, 0);
                }
            } else if !ring.want_kicks() {
                break;
            }
        }
        ring.tell();
    }

    fn rings(&self) -> impl Iterator<Item = &Vring> {
        [&self.inflate, &self.deflate].into_iter().chain(&self.statistics).chain(&self.reporting)
    }
}

impl Engine for BalloonEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (memory, interrupt, features) = (&activation.memory, &activation.interrupt, activation.features);
        let has = |bit: u32| features & bits(&[bit]) != 0;
        let mut rings = activation
            .queues
            .into_iter()
            .map(|queue| Vring::new("virtio-balloon", queue, memory, interrupt, features));
        let mut next = || {
            rings.next().unwrap_or_else(|| Err(ActivateError::Driver("a balloon has four queues".to_owned())))
        };
        let (inflate, deflate) = (next()?, next()?);
        // A queue of a feature that the driver did not take is not there, and later ones move up.
        let statistics = if has(STATISTICS) { Some(next()?) } else { None };
        let reporting = if has(REPORTING) { Some(next()?) } else { None };
        let readable = Segments::new(Arc::clone(memory));
        let writable = Segments::new(Arc::clone(memory));
        let held = None;
        self.active = Some(Active { inflate, deflate, statistics, reporting, held, readable, writable });
        Ok(())
    }

    fn quiesce(&mut self) {
        let Some(active) = &mut self.active else { return };
        // So that the ring alone says what is still to be done.
        if let (Some(ring), Some(_)) = (&mut active.statistics, active.held.take()) {
            ring.unpop(1);
        }
    }

    fn stop(&mut self) {
        self.active = None;
    }

    fn progress(&self) -> Vec<QueueProgress> {
        self.active.iter().flat_map(Active::rings).map(Vring::progress).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        let rings = self.active.iter().flat_map(Active::rings);
        into.extend(rings.map(|ring| (borrow(ring.kick()), PollFlags::POLLIN)));
    }

    fn turn(&mut self, _ready: Ready) -> Turn {
        let Some(active) = &mut self.active else { return Turn::Sleep };
        if active.turn(&self.shared) { Turn::Again } else { Turn::Sleep }
    }
}
