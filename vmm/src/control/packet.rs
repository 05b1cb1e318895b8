//! Packets with a descriptor, on non-blocking `SOCK_SEQPACKET` sockets.

#![allow(unsafe_code)]

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, SockFlag, accept4, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use wire::fd::received_rights;
use wire::machine::{MAX_PACKET, MachineReply};

/// What a read found.
pub enum Received {
    /// Nothing for now.
    Nothing,
    /// The other side is gone, or broke the rules.
    Closed,
    /// A packet and the descriptors that came along.
    Packet(Vec<u8>, Vec<OwnedFd>),
}

/// Makes a descriptor answer at once.
///
/// # Errors
/// What the system says.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// The next client, if one waits.
pub fn accept(listener: BorrowedFd<'_>) -> Option<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC).ok()?;
    // SAFETY: the kernel just made this descriptor for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Most descriptors that a call has.
const MOST_FDS: usize = 2;

/// The next packet of at most `limit` bytes. Descriptors beyond [`MOST_FDS`] are closed.
pub fn receive(socket: BorrowedFd<'_>, limit: usize) -> Received {
    let mut buffer = vec![0u8; limit];
    let mut space = cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)
        .map(|message| (message.bytes, message.flags));
    let (length, flags) = match received {
        Ok(received) => received,
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::Closed,
    };
    // SAFETY: the kernel just installed these descriptors for us, and nobody else knows them.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    let mut fds: Vec<OwnedFd> = received_rights(&space).into_iter().map(own).collect();
    let cut = flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    if length == 0 || cut {
        return Received::Closed;
    }
    buffer.truncate(length);
    fds.truncate(MOST_FDS);
    Received::Packet(buffer, fds)
}

/// Sends a packet with a descriptor, without waiting.
///
/// # Errors
/// What the system says; `EAGAIN` when the other side does not read.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> nix::Result<()> {
    send_with(socket, bytes, fd.as_slice())
}

/// [`send`] with any number of descriptors.
///
/// # Errors
/// As [`send`].
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control: Vec<ControlMessage<'_>> =
        (!raw.is_empty()).then(|| ControlMessage::ScmRights(&raw)).into_iter().collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None).map(drop)
}

pub fn send_reply(socket: BorrowedFd<'_>, reply: &MachineReply) -> nix::Result<()> {
    let bytes = serde_json::to_vec(reply).map_err(|_| Errno::EINVAL)?;
    send(socket, &bytes, None)
}

/// For clients: waits for the next reply on a blocking socket.
///
/// # Errors
/// What the system says, or a reply that cannot be read.
pub fn receive_reply(socket: &impl AsFd) -> std::io::Result<MachineReply> {
    let mut buffer = vec![0u8; MAX_PACKET];
    let length = nix::sys::socket::recv(socket.as_fd().as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    if length == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(buffer.get(..length).unwrap_or_default())?)
}
