//! Connections for a machine that can open none itself: a process of its own outside of the machine's walls.
//!
//! It knows a fixed list of sockets from its start, and all that can be asked of it is to connect to one of them, by number. So a monitor
//! that was broken into reaches nothing that it was not given anyway. For machines run by hand; `hostd` hands connections in by itself.

#![allow(unsafe_code)]

use super::slots::{Role, Slots};
use crate::control::{Received, receive, send};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, socketpair};
use nix::unistd::{ForkResult, fork};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::machine::{BackendName, BackendState};

/// How soon to try again to reach a back end that nobody listens for.
const AGAIN: Duration = Duration::from_millis(200);
/// And how soon when one was reached that does not say what it is good for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a socket.
///
/// # Errors
/// Nobody listens there.
pub fn connect(path: &Path) -> std::io::Result<OwnedFd> {
    UnixStream::connect(path).map(OwnedFd::from)
}

/// Keeps the devices of a machine connected to their back ends.
pub struct Connector {
    process: OwnedFd,
    devices: Vec<Device>,
}

struct Device {
    role: Role,
    /// When to ask for a connection, should there be none.
    next: Option<Instant>,
    /// The process is at it.
    asked: bool,
}

impl Connector {
    /// Starts the process, which connects to these sockets. Before the first thread is started.
    ///
    /// # Errors
    /// There can be no further process.
    pub fn start(sockets: &[PathBuf]) -> std::io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: there is one thread, so the child may do whatever this process may.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(ours);
                serve(&theirs, sockets);
                // SAFETY: ends the child without what the parent is to do at its end.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { .. } => Ok(Self { process: ours, devices: Vec::new() }),
        }
    }

    /// Whose back end listens at the socket after that of the device before.
    pub fn add(&mut self, role: Role) {
        self.devices.push(Device { role, next: None, asked: false });
    }

    /// What to wait for.
    #[must_use]
    pub fn answers(&self) -> std::os::fd::BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// When to call [`Connector::turn`] even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.devices.iter().filter(|device| !device.asked).filter_map(|device| device.next).min()
    }

    /// Hands in connections that have come, and asks for those that are missing. Answers whether the process is still there.
    pub fn turn(&mut self, slots: &Slots) -> bool {
        loop {
            let (bytes, mut fds) = match receive(self.process.as_fd(), 1) {
                Received::Packet(bytes, fds) => (bytes, fds),
                Received::Nothing => break,
                Received::Closed => return false,
            };
            let index = bytes.first().copied().unwrap_or(u8::MAX);
            let Some(device) = self.devices.get_mut(usize::from(index)) else { continue };
            device.asked = false;
            if let (Some(slot), Some(connection)) = (slots.role(&device.role), fds.pop()) {
                let _ = slots.connect(slot, connection);
                device.next = Some(Instant::now() + PATIENCE);
            }
        }
        let states = slots.backends();
        for (index, device) in (0u8..).zip(&mut self.devices) {
            let own = |name: &BackendName| super::devices::role_of(name) == device.role;
            let state = states.iter().find(|status| own(&status.device)).map(|status| status.state);
            match state {
                Some(BackendState::Connecting) => {}
                // Those that could not be used are not asked again at once.
                Some(BackendState::Lost) => {
                    let soon = Instant::now() + AGAIN;
                    device.next = device.next.map(|next| next.min(soon));
                }
                Some(BackendState::Connected | BackendState::Stuck) | None => {
                    device.next = None;
                    continue;
                }
            }
            if !device.asked && device.next.is_none_or(|next| next <= Instant::now()) {
                device.next = Some(Instant::now() + AGAIN);
                device.asked = send(self.process.as_fd(), &[index], None).is_ok();
            }
        }
        true
    }
}

/// Connects, as asked, until nobody asks any more.
fn serve(asked: &OwnedFd, sockets: &[PathBuf]) {
    let mut byte = [0u8; 1];
    while let Ok(1) = recv(asked.as_raw_fd(), &mut byte, nix::sys::socket::MsgFlags::empty()) {
        let socket = sockets.get(usize::from(byte[0]));
        let connection = socket.and_then(|socket| connect(socket).ok());
        if send(asked.as_fd(), &byte, connection.as_ref().map(AsFd::as_fd)).is_err() {
            return;
        }
    }
}
