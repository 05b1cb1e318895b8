//! One stream between a unix socket and a program in the guest.
//!
//! ```text
//!   greeting --CONNECT--> asked --Response--> open --both ends closed--> gone
//! ```
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::iovec;

use super::packet::{Header, NO_RECEIVE, NO_SEND};

/// Bytes that wait for the host's program at most; what the guest is told that it may send.
pub const ROOM: u32 = 64 << 10;

/// Longest first line.
const LINE: usize = 32;

/// How far a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// The host's program says where it wants to go; what it said so far.
    Greeting(Vec<u8>),
    /// The guest is asked.
    Asked,
    /// Data flows.
    Open,
}

/// What the guest is to be told of a connection, besides data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// Asked for the connection.
    pub request: bool,
    /// Told how much there is room for.
    pub credit: bool,
    /// Told which directions end.
    pub shutdown: u32,
    /// Told that it is gone; then it is.
    pub reset: bool,
}

/// What became of a read or write.
#[derive(Debug, PartialEq, Eq)]
pub enum Flow {
    /// So many bytes.
    Moved(usize),
    /// Not now.
    Blocked,
    /// The other end is gone, or will send nothing more.
    Ended,
}

/// A connection.
pub struct Connection {
    socket: OwnedFd,
    /// How far it is.
    pub stage: Stage,
    /// The guest's port.
    pub guest_port: u32,
    /// What the guest is to be told.
    pub due: Due,
    /// The socket may have something to read.
    pub readable: bool,
    /// The socket is closed by its other end: it is not polled any more.
    pub hung_up: bool,
    /// Bytes from the guest that the socket did not take yet.
    waiting: VecDeque<u8>,
    /// Bytes at their front that are ours: the answer to the greeting.
    own: usize,
    /// Bytes of the guest's passed on, and how many it was told of.
    passed: u32,
    told: u32,
    /// The guest's room, and what it has passed on, by its own words.
    guest_room: u32,
    guest_passed: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// Directions that the guest has ended.
    guest_ended: u32,
    /// Directions that the host's program has ended.
    pub host_ended: u32,
}

fn flow(result: isize) -> Flow {
    match usize::try_from(result) {
        Ok(0) => Flow::Ended,
        Ok(count) => Flow::Moved(count),
        Err(_) => match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Flow::Blocked,
            _ => Flow::Ended,
        },
    }
}

impl Connection {
    /// A new one on a non-blocking socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            stage: Stage::Greeting(Vec::new()),
            guest_port: 0,
            due: Due::default(),
            readable: true,
            hung_up: false,
            waiting: VecDeque::new(),
            own: 0,
            passed: 0,
            told: 0,
            guest_room: 0,
            guest_passed: 0,
            sent: 0,
            guest_ended: 0,
            host_ended: 0,
        }
    }

    /// The socket's number, to poll it.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Reads on in the first line, a byte at a time so that nothing behind it is taken. Answers false when the connection is to be
    /// forgotten: it is not understood, or closed.
    pub fn greet(&mut self) -> bool {
        while let Stage::Greeting(line) = &mut self.stage {
            let mut byte = 0_u8;
            // SAFETY: the kernel writes at most one byte.
            match flow(unsafe { libc::read(self.socket.as_raw_fd(), (&raw mut byte).cast(), 1) }) {
                Flow::Moved(_) if byte == b'\n' => {
                    let port = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("CONNECT "));
                    let Some(port) = port.and_then(|port| port.trim_end_matches('\r').parse().ok()) else {
                        return false;
                    };
                    self.guest_port = port;
                    self.stage = Stage::Asked;
                    self.due.request = true;
                }
                Flow::Moved(_) if line.len() < LINE => line.push(byte),
                Flow::Moved(_) | Flow::Ended => return false,
                Flow::Blocked => {
                    self.readable = false;
                    return true;
                }
            }
        }
        true
    }

    /// The guest accepted: tells the host's program.
    pub fn accepted(&mut self, own_port: u32) {
        if self.stage == Stage::Asked {
            self.stage = Stage::Open;
            self.readable = true;
            self.waiting.extend(format!("OK {own_port}\n").into_bytes());
            self.own = self.waiting.len();
            if !self.flush() {
                self.due.reset = true;
            }
        }
    }

    /// Takes over what a packet says of the guest's room.
    pub fn hear(&mut self, header: &Header) {
        self.guest_room = header.room;
        self.guest_passed = header.passed;
    }

    /// Bytes that the guest can take now.
    #[must_use]
    pub fn credit(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.guest_passed);
        usize::try_from(self.guest_room.saturating_sub(under_way)).unwrap_or(usize::MAX)
    }

    /// Whether there may be data for the guest, and it takes any.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.stage == Stage::Open
            && self.readable
            && (self.host_ended & NO_SEND) == 0
            && (self.guest_ended & NO_RECEIVE) == 0
            && self.credit() > 0
    }

    /// Reads data for the guest.
    ///
    /// # Safety
    /// The pieces must be valid memory to write to.
    pub unsafe fn read(&mut self, pieces: &[iovec]) -> Flow {
        let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: by this function's contract.
        let flow = flow(unsafe { libc::readv(self.socket.as_raw_fd(), pieces.as_ptr(), count) });
        match &flow {
            Flow::Moved(count) => self.sent = self.sent.wrapping_add(u32::try_from(*count).unwrap_or(0)),
            Flow::Blocked => self.readable = false,
            Flow::Ended => {
                self.readable = false;
                self.end(if self.hung_up { NO_SEND | NO_RECEIVE } else { NO_SEND });
            }
        }
        flow
    }

    /// The host's program ends directions.
    pub fn end(&mut self, directions: u32) {
        let new = directions & !self.host_ended;
        self.host_ended |= directions;
        self.due.shutdown |= new;
    }

    /// Room for data of the guest's.
    #[must_use]
    pub fn room(&self) -> usize {
        let taken = self.waiting.len().saturating_sub(self.own);
        usize::try_from(ROOM).unwrap_or(usize::MAX).saturating_sub(taken)
    }

    /// Takes data over from the guest, for which there is room.
    pub fn take(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
    }

    /// Passes on what waits. Answers false when nobody is there to take it.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            // SAFETY: the kernel reads at most `front.len()` bytes; a closed socket gives an error instead of a signal.
            let sent = unsafe {
                libc::send(self.socket.as_raw_fd(), front.as_ptr().cast(), front.len(), libc::MSG_NOSIGNAL)
            };
            match flow(sent) {
                Flow::Moved(count) => {
                    self.waiting.drain(..count.min(self.waiting.len()));
                    let own = self.own.min(count);
                    self.own = self.own.saturating_sub(own);
                    self.passed =
                        self.passed.wrapping_add(u32::try_from(count.saturating_sub(own)).unwrap_or(0));
                }
                Flow::Blocked => return true,
                Flow::Ended => {
                    self.waiting.clear();
                    return false;
                }
            }
        }
        // Before the guest believes that there is no room.
        if self.passed.wrapping_sub(self.told) >= ROOM / 2 {
            self.due.credit = true;
        }
        if self.guest_ended & NO_SEND != 0 {
            // SAFETY: takes numbers. A socket that is closed already does not matter.
            unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_WR) };
        }
        true
    }

    /// Whether the socket is to be waited for until it takes more.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The guest ends directions. Both: once everything is passed on, the connection is gone.
    pub fn guest_ends(&mut self, directions: u32) {
        self.guest_ended |= directions & (NO_RECEIVE | NO_SEND);
    }

    /// Whether everything that can flow has.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.guest_ended == NO_RECEIVE | NO_SEND && self.waiting.is_empty()
    }

    /// The room and what was passed on, for a header; the guest is told now.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.passed;
        self.due.credit = false;
        (ROOM, self.passed)
    }
}
