//! A hostile back end, for tests and fuzzing: it answers every question, with what it likes.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::kind::Kind;
use super::link::{Link, LinkError, Ring as LinkRing, Rings};
use crate::virtio::testing::{Counter, Ring};
use crate::virtio::worker::borrow;
use crate::virtio::{Interrupt, Memory};

/// Guest memory that other processes can map.
///
/// # Panics
/// When the host has no memory.
#[must_use]
pub fn shared_memory() -> Arc<Memory> {
    const SIZE: u64 = 1 << 20;
    let file = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).map(std::fs::File::from);
    let file = file.unwrap_or_else(|error| panic!("no memory file: {error}"));
    file.set_len(SIZE).unwrap_or_else(|error| panic!("no memory: {error}"));
    let range = (GuestAddress(0), 1 << 20, Some(FileOffset::new(file, 0)));
    let memory = Memory::from_ranges_with_files([range]);
    Arc::new(memory.unwrap_or_else(|error| panic!("no guest memory: {error}")))
}

/// The queues of a device, as its driver set them up.
///
/// # Panics
/// When the host has no more descriptors.
#[must_use]
pub fn rings(memory: &Arc<Memory>, count: u16) -> (Vec<Ring>, Rings, Arc<Counter>) {
    let counter = Arc::new(Counter::default());
    let interrupt: Arc<dyn Interrupt> = Arc::<Counter>::clone(&counter);
    let drivers: Vec<Ring> =
        (0..count).map(|index| Ring::new(memory, u64::from(index) * 0x1_0000, 8)).collect();
    let rings = (0..count).zip(&drivers).map(|(index, driver)| {
        let active = driver.device(index);
        let call = interrupt.event(index).unwrap_or_else(|error| panic!("no event: {error}"));
        LinkRing { index, queue: active.queue, kick: active.kick, call }
    });
    let rings = Rings { memory: Arc::clone(memory), features: 1 << 32, rings: rings.collect(), interrupt };
    (drivers, rings, counter)
}

/// Makes whoever writes an event block, as everybody can who holds it.
///
/// # Panics
/// When it is full already.
pub fn fill(event: &EventFd) {
    let blocking = fcntl(borrow(event), FcntlArg::F_SETFL(OFlag::empty()));
    blocking.unwrap_or_else(|error| panic!("no other flags: {error}"));
    event.write(u64::MAX - 1).unwrap_or_else(|error| panic!("cannot fill it: {error}"));
}

/// Size of an honest answer's body to a request; `None` for those that have none of their own.
fn answer_size(request: u32, body: &[u8]) -> Option<usize> {
    match request {
        1 | 15 | 17 => Some(8),
        11 => Some(8),
        24 | 31 => Some(body.len()),
        _ => None,
    }
}

/// What a back end says that agrees to everything.
fn yes(request: u32, body: &[u8]) -> Vec<u8> {
    match request {
        1 | 15 => vec![0xff; 8],
        17 => 4_u64.to_le_bytes().to_vec(),
        11 => body.to_vec(),
        // Where and how much, then a configuration of ones.
        24 => (0..).zip(body).map(|(at, byte)| if at < 12 { *byte } else { 1 }).collect(),
        // So many bytes, then how many queues of which size.
        31 => 4096_u64.to_le_bytes().into_iter().chain(body.iter().skip(8).copied()).collect(),
        _ => vec![0; 8],
    }
}

/// Answers questions with bytes of `script` until it ends. The first byte for each answer says how honest it is: its head may be right and
/// its body anything, or all of it anything, after which the connection ends.
pub(super) fn answer(mut line: UnixStream, mut script: &[u8]) -> Option<()> {
    let mut take = |count: usize| {
        let (taken, rest) = script.split_at_checked(count)?;
        script = rest;
        Some(taken.to_vec())
    };
    loop {
        let mut head = [0u8; 12];
        line.read_exact(&mut head).ok()?;
        let [request, flags, size] = [0, 4, 8].map(|at| {
            head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
        });
        let mut body = vec![0; usize::try_from(size).ok()?.min(4096)];
        line.read_exact(&mut body).ok()?;
        let asked = answer_size(request, &body).or((flags & 8 != 0).then_some(8));
        let Some(length) = asked else { continue };
        let honesty = take(1)?.first().copied()?;
        let mut reply = Vec::new();
        for word in [request, 5, u32::try_from(length).ok()?] {
            reply.extend(word.to_le_bytes());
        }
        match honesty {
            0..=63 => reply.extend(yes(request, &body)),
            64..=191 => reply.extend(take(length)?),
            192..=255 => {
                let length = usize::from(take(1)?.first().copied()?);
                line.write_all(&take(length)?).ok()?;
                return None;
            }
        }
        // Not its own line: whoever holds that would never hear of its end.
        let gift = memfd_create(c"gift", MFdFlags::MFD_CLOEXEC).ok()?;
        let fds = [gift.as_raw_fd(); 4];
        let with = match (request, honesty) {
            (31, _) => 1,
            (_, 190) => 4,
            _ => 0,
        };
        let control = [ControlMessage::ScmRights(fds.get(..with)?)];
        let control = if with == 0 { &[][..] } else { &control[..] };
        let parts = [std::io::IoSlice::new(&reply)];
        sendmsg::<()>(line.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None).ok()?;
    }
}

/// Speaks to a back end that answers with these bytes: all that is ever asked of one.
///
/// # Errors
/// What the first thing was that it did wrong.
///
/// # Panics
/// When the host has no more descriptors.
pub fn converse(kind: &Kind, memory: &Arc<Memory>, script: &[u8]) -> Result<(), LinkError> {
    let (ours, theirs) = UnixStream::pair().unwrap_or_else(|error| panic!("no socket: {error}"));
    std::thread::scope(|scope| {
        scope.spawn(|| answer(theirs, script));
        let (mut link, offer) = Link::open(ours, kind)?;
        let (_drivers, mut rings, _counter) = rings(memory, offer.queues.min(2));
        let mut inflight = None;
        for _ in 0..2 {
            link.start(&rings, &mut inflight)?;
            link.rewire(&rings)?;
            link.space(kind)?;
            link.stop(&mut rings)?;
        }
        link.reset()
    })
}
