//! Hands out opened taps on `netd.fd.sock` to those whom the kernel vouches for.

use crate::engine::Engine;
use base::{CancellationToken, fdpass};
use nix::sys::socket::{getsockopt, sockopt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wire::Refused;
use wire::fd::{FdReply, FdRequest};

/// Serves until cancelled. A peer whose uid is not in `allow` is turned away.
///
/// # Errors
/// When the socket cannot be watched.
pub async fn serve(
    listener: OwnedFd,
    engine: Engine,
    allow: Vec<u32>,
    end: CancellationToken,
) -> std::io::Result<()> {
    nonblocking(listener.as_fd())?;
    let (listener, allow) = (watch(listener)?, Arc::new(allow));
    loop {
        let mut ready =
            tokio::select! { () = end.cancelled() => return Ok(()), ready = listener.readable() => ready? };
        match accept(listener.get_ref()) {
            Ok(peer) => {
                let (engine, allow) = (engine.clone(), allow.clone());
                tokio::spawn(async move {
                    if let Err(error) = converse(peer, &engine, &allow).await {
                        tracing::warn!(%error, "a conversation about taps broke off");
                    }
                });
            }
            Err(nix::Error::EAGAIN) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[allow(unsafe_code)]
fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open and the same until the AsyncFd lets go of it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

#[allow(unsafe_code)]
fn accept(listener: &OwnedFd) -> nix::Result<OwnedFd> {
    use nix::sys::socket::{SockFlag, accept4};
    use std::os::fd::{AsRawFd, FromRawFd};
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 just made it, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

async fn converse(peer: OwnedFd, engine: &Engine, allow: &[u32]) -> std::io::Result<()> {
    let uid = getsockopt(&peer, sockopt::PeerCredentials)?.uid();
    if !allow.contains(&uid) {
        tracing::warn!(uid, "turned a stranger away");
        return Ok(());
    }
    let peer = watch(peer)?;
    loop {
        let (bytes, _) = peer.async_io(Interest::READABLE, |fd| fdpass::receive(fd.as_fd())).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let outcome = match serde_json::from_slice::<FdRequest>(&bytes) {
            Ok(FdRequest::Tap { port }) => {
                let engine = engine.clone();
                tokio::task::spawn_blocking(move || engine.open_tap(port))
                    .await
                    .unwrap_or_else(|error| Err(Refused::internal(error.to_string())))
            }
            Ok(FdRequest::Blob { .. }) => Err(Refused::invalid("the network daemon has no blobs")),
            Err(error) => Err(Refused::invalid(format!("the request is not understood: {error}"))),
        };
        match outcome {
            Ok(tap) => fdpass::send(peer.as_fd(), &serde_json::to_vec(&FdReply::Here)?, &[tap.as_fd()])?,
            Err(refused) => {
                fdpass::send(peer.as_fd(), &serde_json::to_vec(&FdReply::Refused(refused))?, &[])?
            }
        }
    }
}
