//! File descriptors over unix sockets: packets of at most [`PACKET`] bytes, with up to [`FDS`] descriptors each.

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Largest packet in bytes.
pub const PACKET: usize = 64 << 10;
/// Most descriptors in one packet.
pub const FDS: usize = 64;

/// Sends one packet with descriptors.
///
/// # Errors
/// What the kernel says.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent =
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(std::io::Error::other("the packet was cut")) }
}

/// Receives one packet with its descriptors (close-on-exec); empty bytes mean that the other side closed.
///
/// # Errors
/// What the kernel says; `InvalidData` when the packet or its descriptors were cut.
#[allow(unsafe_code)]
pub fn receive(socket: BorrowedFd<'_>) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0u8; PACKET];
    let mut space = nix::cmsg_space!([RawFd; FDS]);
    let (length, flags) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        (message.bytes, message.flags)
    };
    // SAFETY: the kernel just installed these descriptors for us, nobody else owns them.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    let fds: Vec<OwnedFd> = wire::fd::received_rights(&space).into_iter().map(own).collect();
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a packet was cut on receipt"));
    }
    bytes.truncate(length);
    Ok((bytes, fds))
}

/// How long connecting and sending may take, in seconds.
const PATIENCE_SECS: i64 = 30;

/// Connects to a `SOCK_SEQPACKET` socket, blocking for a bounded time. Only root or our own uid may serve it: what it hands out is believed.
///
/// # Errors
/// What the kernel says; `PermissionDenied` when another uid listens there.
pub fn connect(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    connect_to(path, &crate::rpc::Allow::own())
}

/// The same, when the daemon may run as another uid.
///
/// # Errors
/// As [`connect`].
pub fn connect_to(path: &std::path::Path, trusted: &crate::rpc::Allow) -> std::io::Result<OwnedFd> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
    };
    use nix::sys::time::{TimeVal, TimeValLike};
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    // Also of the connecting itself, which waits for room in the queue of a daemon that hangs.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(PATIENCE_SECS))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials)?.uid();
    if !trusted.allows(peer) {
        let message = format!("it is served by uid {peer}, which is not the daemon's; stop that process");
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, message));
    }
    Ok(fd)
}

/// Listens on a `SOCK_SEQPACKET` socket, replacing a stale file.
///
/// # Errors
/// What the kernel says.
pub fn listen(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_arrives_with_its_packet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fd.sock");
        let listener = listen(&path).unwrap();
        let client = connect(&path).unwrap();
        let served = nix::sys::socket::accept(listener.as_raw_fd()).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: accept just returned it.
        let served = unsafe { OwnedFd::from_raw_fd(served) };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        send(client.as_fd(), b"hello", &[file.as_fd()]).unwrap();
        let (bytes, mut fds) = receive(served.as_fd()).unwrap();
        assert_eq!((bytes.as_slice(), fds.len()), (b"hello".as_slice(), 1));
        let mut got = std::fs::File::from(fds.remove(0));
        got.rewind().unwrap();
        let mut text = String::new();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        drop(client);
        assert_eq!(receive(served.as_fd()).unwrap().0, b"");
    }

    #[test]
    fn descriptors_of_a_packet_that_was_cut_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fd.sock");
        let listener = listen(&path).unwrap();
        let client = connect(&path).unwrap();
        let served = nix::sys::socket::accept(listener.as_raw_fd()).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: accept just returned it.
        let served = unsafe { OwnedFd::from_raw_fd(served) };
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(client.as_fd(), b"many", &vec![writer.as_fd(); FDS + 5]).unwrap();
        drop(writer);
        let error = receive(served.as_fd()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        // Nobody has the pipe's other end any more.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_strangers_socket_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fd.sock");
        let _listener = crate::testing::as_uid(64_999, dir.path(), || listen(&path).unwrap());
        let error = connect(&path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("64999"), "{error}");
    }
}
