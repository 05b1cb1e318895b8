//! The socket device's queues, and its connections by the host's port.
//!
//! Sockets are watched edge-triggered: one that has data which the guest does not take makes no noise. Each is read into the guest's
//! buffers directly; what comes from the guest waits in a bounded buffer when the host's program is slow, and the guest knows how much
//! room there is.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::iovec;
use nix::poll::PollFlags;

use super::HOST;
use super::connection::{Connection, Flow, Stage};
use super::packet::{HEADER, Header, NO_RECEIVE, Op, STREAM};
use crate::virtio::chain::{Segments, collect};
use crate::virtio::vring::Vring;
use crate::virtio::worker::{Engine, Ready, Turn, borrow};
use crate::virtio::{ActivateError, Activation, Memory, QueueProgress};

/// Most connections at once; more wait in the listening socket's backlog.
const MOST: usize = 256;

/// Packets moved in each direction, and events of sockets, before looking at orders again.
const BUDGET: usize = 64;

/// Refusals that wait for a buffer of the guest's; a guest that asks for more gets none.
const MOST_REFUSALS: usize = 64;

/// Host's ports of our connections: from here on, where nobody listens by number.
const FIRST_PORT: u32 = 1 << 30;

/// Most data of one packet.
const MOST_DATA: usize = 64 << 10;

/// What the listening socket is called by the poll; connections are called by their ports.
const LISTENER: u64 = u64::MAX;

struct Active {
    receive: Vring,
    send: Vring,
    events: Vring,
    readable: Segments,
    writable: Segments,
    pieces: Vec<iovec>,
}

// SAFETY: `pieces` is only a place to build lists in; it holds nothing between calls.
unsafe impl Send for Active {}

/// The data path of a socket device.
pub struct VsockEngine {
    guest: u64,
    listener: OwnedFd,
    poll: OwnedFd,
    /// The driver is to be told that all connections are gone.
    broken: Arc<AtomicBool>,
    connections: BTreeMap<u32, Connection>,
    next_port: u32,
    /// The port served last: the next one has its turn.
    served: u32,
    refusals: VecDeque<Header>,
    /// Somebody may wait at the listening socket.
    knocked: bool,
    active: Option<Active>,
}

/// What the guest is to get next.
enum Next {
    Refusal,
    Of(u32),
}

impl VsockEngine {
    /// An idle engine for a guest's address over a listening socket.
    ///
    /// # Errors
    /// When the system gives no poll, or the descriptor cannot be polled.
    pub fn new(guest: u64, listener: OwnedFd, broken: Arc<AtomicBool>) -> io::Result<Self> {
        // SAFETY: takes a number, answers a descriptor.
        let poll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if poll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let poll = unsafe { OwnedFd::from_raw_fd(poll) };
        nonblocking(&listener)?;
        let engine = Self {
            guest,
            listener,
            poll,
            broken,
            connections: BTreeMap::new(),
            next_port: FIRST_PORT,
            served: 0,
            refusals: VecDeque::new(),
            knocked: true,
            active: None,
        };
        engine.watch(engine.listener.as_raw_fd(), LISTENER)?;
        Ok(engine)
    }

    fn watch(&self, fd: i32, name: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: name };
        // SAFETY: the kernel reads one event.
        let done = unsafe { libc::epoll_ctl(self.poll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Lets in who waits, while there is room.
    fn accept(&mut self) {
        while self.knocked && self.connections.len() < MOST {
            let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: no address is asked for.
            let fd = unsafe { libc::accept4(self.listener.as_raw_fd(), address, length, flags) };
            if fd < 0 {
                // Nobody, or one that left again: then the next event tells of the next one.
                self.knocked = io::Error::last_os_error().kind() == io::ErrorKind::ConnectionAborted;
                continue;
            }
            // SAFETY: just made, owned by nobody else.
            let connection = Connection::new(unsafe { OwnedFd::from_raw_fd(fd) });
            while self.connections.contains_key(&self.next_port) {
                self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            }
            let port = self.next_port;
            self.next_port = port.wrapping_add(1).max(FIRST_PORT);
            if self.watch(connection.fd(), port.into()).is_ok() {
                self.connections.insert(port, connection);
                self.greet(port);
            }
        }
    }

    fn greet(&mut self, port: u32) {
        if let Some(connection) = self.connections.get_mut(&port)
            && !connection.greet()
        {
            self.connections.remove(&port);
        }
    }

    /// Takes note of what sockets have become ready for. Answers whether there may be more.
    fn hear_sockets(&mut self) -> bool {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BUDGET];
        let most = i32::try_from(events.len()).unwrap_or(1);
        // SAFETY: the kernel writes at most `most` events.
        let count = unsafe { libc::epoll_wait(self.poll.as_raw_fd(), events.as_mut_ptr(), most, 0) };
        let count = usize::try_from(count).unwrap_or(0);
        for event in events.iter().take(count) {
            let (name, what) = (event.u64, event.events.cast_signed());
            if name == LISTENER {
                self.knocked = true;
                continue;
            }
            let Ok(port) = u32::try_from(name) else { continue };
            let Some(connection) = self.connections.get_mut(&port) else { continue };
            connection.readable |= what & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP) != 0;
            if what & (libc::EPOLLHUP | libc::EPOLLERR) != 0 {
                connection.hung_up = true;
            }
            match connection.stage {
                Stage::Greeting(_) => self.greet(port),
                // Nobody waits for the answer any more.
                Stage::Asked if connection.hung_up => connection.due.reset = true,
                Stage::Asked => {}
                Stage::Open => {
                    if !connection.flush() || connection.is_over() {
                        connection.due.reset = true;
                    }
                    if connection.hung_up {
                        // It takes nothing more; what it sent is still to be read.
                        connection.end(NO_RECEIVE);
                        connection.readable = true;
                    }
                }
            }
        }
        self.accept();
        count == BUDGET
    }

    fn refuse(&mut self, header: &Header) {
        if header.op != Some(Op::Reset) && self.refusals.len() < MOST_REFUSALS {
            self.refusals.push_back(Header {
                from: header.to,
                to: header.from,
                from_port: header.to_port,
                to_port: header.from_port,
                len: 0,
                kind: header.kind,
                op: Some(Op::Reset),
                flags: 0,
                room: 0,
                passed: 0,
            });
        }
    }

    /// One packet of the guest's.
    fn packet(&mut self, words: &mut Segments) {
        let mut raw = [0; HEADER];
        if words.take(&mut raw) < HEADER {
            return;
        }
        let header = Header::read(&raw);
        if header.from != self.guest || header.to != HOST {
            return;
        }
        let port = header.to_port;
        let known = self.connections.get_mut(&port).filter(|own| own.guest_port == header.from_port);
        let Some(connection) = known.filter(|own| !matches!(own.stage, Stage::Greeting(_))) else {
            return self.refuse(&header);
        };
        if header.kind != STREAM {
            return self.refuse(&header);
        }
        connection.hear(&header);
        match header.op {
            Some(Op::Response) => connection.accepted(port),
            Some(Op::Reset) => drop(self.connections.remove(&port)),
            Some(Op::Shutdown) => {
                connection.guest_ends(header.flags);
                if !connection.flush() || connection.is_over() {
                    connection.due.reset = true;
                }
            }
            Some(Op::Data) => {
                let len = usize::try_from(header.len).unwrap_or(usize::MAX);
                if connection.stage != Stage::Open || len > connection.room() || len > words.len() {
                    connection.due.reset = true;
                    return;
                }
                let mut bytes = vec![0; len];
                words.take(&mut bytes);
                connection.take(&bytes);
                if !connection.flush() {
                    connection.due.reset = true;
                }
            }
            Some(Op::CreditUpdate) => {}
            Some(Op::CreditRequest) => connection.due.credit = true,
            Some(Op::Request) | None => connection.due.reset = true,
        }
    }

    /// Takes packets from the guest. Answers whether there may be more.
    fn hear_guest(&mut self, active: &mut Active) -> bool {
        let memory = Arc::clone(active.send.memory());
        for _ in 0..BUDGET {
            let Some(chain) = active.send.pop(&memory) else {
                if active.send.want_kicks() {
                    continue;
                }
                return false;
            };
            let head = chain.head_index();
            active.readable.clear();
            active.writable.clear();
            if collect(chain, &mut active.readable, &mut active.writable).is_ok() {
                self.packet(&mut active.readable);
            }
            active.send.give(head, 0);
        }
        true
    }

    fn next(&mut self) -> Option<Next> {
        if !self.refusals.is_empty() {
            return Some(Next::Refusal);
        }
        // What is over after all was passed on.
        let behind = (Bound::Excluded(self.served), Bound::Unbounded);
        let ports = self.connections.range(behind).chain(self.connections.range(..=self.served));
        let has_news = |connection: &Connection| {
            let due = connection.due;
            due.request || due.reset || due.credit || due.shutdown != 0 || connection.has_data()
        };
        let port = ports.into_iter().find(|(_, connection)| has_news(connection)).map(|(port, _)| *port)?;
        self.served = port;
        Some(Next::Of(port))
    }

    /// Gives packets to the guest. Answers whether there may be more.
    fn tell_guest(&mut self, active: &mut Active) -> bool {
        let memory: Arc<Memory> = Arc::clone(active.receive.memory());
        for _ in 0..BUDGET {
            let Some(next) = self.next() else {
                active.receive.ignore_kicks();
                return false;
            };
            let Some(chain) = active.receive.pop(&memory) else {
                if active.receive.want_kicks() {
                    continue;
                }
                return false;
            };
            let head = chain.head_index();
            active.readable.clear();
            active.writable.clear();
            let taken = collect(chain, &mut active.readable, &mut active.writable);
            if taken.is_err() || active.writable.len() < HEADER {
                active.receive.break_off("a receive buffer makes no sense");
                return false;
            }
            let header = match next {
                Next::Refusal => self.refusals.pop_front(),
                Next::Of(port) => self.news(port, active),
            };
            let Some(header) = header else {
                active.receive.unpop(1);
                continue;
            };
            active.writable.put(&header.write());
            let used = header.len.saturating_add(u32::try_from(HEADER).unwrap_or(44));
            active.receive.give(head, used);
        }
        true
    }

    /// What a connection has for the guest, its data already behind the place of the header.
    fn news(&mut self, port: u32, active: &mut Active) -> Option<Header> {
        let connection = self.connections.get_mut(&port)?;
        let (mut len, mut flags) = (0, 0);
        let op = if connection.due.reset {
            Op::Reset
        } else if std::mem::take(&mut connection.due.request) {
            Op::Request
        } else if connection.has_data() {
            behind_header(
                active.writable.as_iovecs(),
                connection.credit().min(MOST_DATA),
                &mut active.pieces,
            );
            if active.pieces.is_empty() {
                // Only a header fits: nothing can be said by such buffers.
                active.receive.break_off("a receive buffer has no room for data");
                return None;
            }
            // SAFETY: the pieces lie in guest memory, which `writable` keeps mapped.
            match unsafe { connection.read(&active.pieces) } {
                Flow::Moved(count) => len = u32::try_from(count).unwrap_or(0),
                Flow::Blocked | Flow::Ended => return None,
            }
            active.writable.wrote();
            Op::Data
        } else if connection.due.shutdown != 0 {
            flags = std::mem::take(&mut connection.due.shutdown);
            Op::Shutdown
        } else {
            Op::CreditUpdate
        };
        let (room, passed) = connection.tell();
        let to_port = connection.guest_port;
        if op == Op::Reset {
            self.connections.remove(&port);
            self.accept();
        }
        let (from, to) = (HOST, self.guest);
        Some(Header {
            from,
            to,
            from_port: port,
            to_port,
            len,
            kind: STREAM,
            op: Some(op),
            flags,
            room,
            passed,
        })
    }

    /// Tells the driver that all connections are gone, when they are and it has a buffer for it.
    fn tell_broken(&mut self, active: &mut Active) {
        active.events.heard();
        if !self.broken.load(Ordering::Acquire) {
            return;
        }
        let memory = Arc::clone(active.events.memory());
        if let Some(chain) = active.events.pop(&memory) {
            let head = chain.head_index();
            active.readable.clear();
            active.writable.clear();
            let taken = collect(chain, &mut active.readable, &mut active.writable);
            // Event 0: the transport was reset.
            let len = if taken.is_ok() { active.writable.put(&[0; 4]) } else { 0 };
            active.events.give(head, u32::try_from(len).unwrap_or(0));
            active.events.tell();
            self.broken.store(false, Ordering::Release);
        }
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The pieces behind the first [`HEADER`] bytes, at most `most` bytes of them.
fn behind_header(pieces: &[iovec], most: usize, into: &mut Vec<iovec>) {
    into.clear();
    let (mut skip, mut room) = (HEADER, most);
    for piece in pieces {
        let skipped = skip.min(piece.iov_len);
        skip = skip.saturating_sub(skipped);
        let len = piece.iov_len.saturating_sub(skipped).min(room);
        room = room.saturating_sub(len);
        if len > 0 {
            // SAFETY: `skipped` is within the piece.
            let base = unsafe { piece.iov_base.cast::<u8>().add(skipped) }.cast();
            into.push(iovec { iov_base: base, iov_len: len });
        }
    }
}

impl Engine for VsockEngine {
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (memory, interrupt, features) = (&activation.memory, &activation.interrupt, activation.features);
        let mut rings = activation
            .queues
            .into_iter()
            .map(|queue| Vring::new("virtio-vsock", queue, memory, interrupt, features));
        let mut next = || {
            rings
                .next()
                .unwrap_or_else(|| Err(ActivateError::Driver("a socket device has three queues".to_owned())))
        };
        let (receive, send, events) = (next()?, next()?, next()?);
        let readable = Segments::new(Arc::clone(memory));
        let writable = Segments::new(Arc::clone(memory));
        self.active = Some(Active { receive, send, events, readable, writable, pieces: Vec::new() });
        Ok(())
    }

    fn quiesce(&mut self) {}

    fn stop(&mut self) {
        self.active = None;
        self.connections.clear();
        self.refusals.clear();
    }

    fn progress(&self) -> Vec<QueueProgress> {
        let rings = self.active.iter().flat_map(|active| [&active.receive, &active.send, &active.events]);
        rings.map(Vring::progress).collect()
    }

    fn sources<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if let Some(active) = &self.active {
            let rings = [&active.receive, &active.send, &active.events];
            into.extend(rings.map(|ring| (borrow(ring.kick()), PollFlags::POLLIN)));
            into.push((self.poll.as_fd(), PollFlags::POLLIN));
        }
    }

    fn turn(&mut self, _ready: Ready) -> Turn {
        let Some(mut active) = self.active.take() else { return Turn::Sleep };
        active.receive.heard();
        active.send.heard();
        let mut more = self.hear_sockets();
        more |= self.hear_guest(&mut active);
        more |= self.tell_guest(&mut active);
        self.tell_broken(&mut active);
        active.receive.tell();
        active.send.tell();
        self.active = Some(active);
        if more { Turn::Again } else { Turn::Sleep }
    }
}
