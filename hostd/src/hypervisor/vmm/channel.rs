//! A connection to a monitor's control socket.

use base::fdpass;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::unix::AsyncFd;
use wire::machine::{MachineCall, MachineReply};

/// A connection to a monitor's control socket.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Takes a connected `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// What the kernel says.
    #[allow(unsafe_code)]
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped.
        Ok(Self(unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?))
    }

    /// Sends a call and waits for its reply. When this is dropped in between, the channel is out of step: drop it too.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` when the monitor closed the connection.
    pub async fn exchange(&self, call: &MachineCall, fds: &[BorrowedFd<'_>]) -> io::Result<MachineReply> {
        let bytes = serde_json::to_vec(call)?;
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(sent) = ready.try_io(|socket| fdpass::send(socket.as_fd(), &bytes, fds)) {
                sent?;
                break;
            }
        }
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|socket| fdpass::receive(socket.as_fd())) {
                let (bytes, _) = received?;
                if bytes.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
                }
                return Ok(serde_json::from_slice(&bytes)?);
            }
        }
    }
}
