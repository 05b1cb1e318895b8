//! Hands out opened blobs on `blockd.fd.sock` to those whom the kernel vouches for.
//!
//! Blobs never change, so whoever may ask for one gets its file, for reading, and reads at the speed of the page cache instead
//! of through a socket. One request a connection.

use crate::object;
use crate::pool::Pool;
use base::rpc::Allow;
use base::{CancellationToken, fdpass};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use wire::Refused;
use wire::fd::{FdReply, FdRequest};

/// How long a caller may take to say what it wants: callers ask at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Conversations at the same time; each takes a thread for a moment.
const WIDTH: usize = 32;

/// Takes the socket (replacing a stale one) and returns the future that serves it until cancelled.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(
    path: &Path,
    pool: Arc<Pool>,
    allow: Allow,
    shutdown: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    use std::os::unix::fs::PermissionsExt;
    let listener = std::os::unix::net::UnixListener::from(fdpass::listen(path)?);
    // The kernel's word on the caller's uid decides, not the mode.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let path = path.to_owned();
    Ok(async move {
        let width = Arc::new(Semaphore::new(WIDTH));
        while let Some(stream) = allow.next(&listener, &path, &shutdown).await {
            let (Ok(permit), Ok(stream)) = (width.clone().acquire_owned().await, stream.into_std()) else {
                continue;
            };
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = converse(&stream, &pool) {
                    tracing::warn!(%error, "a conversation about a blob broke off");
                }
                drop(permit);
            });
        }
        let _ = std::fs::remove_file(&path);
    })
}

fn converse(stream: &std::os::unix::net::UnixStream, pool: &Pool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (bytes, _) = fdpass::receive(stream.as_fd())?;
    let outcome = match serde_json::from_slice::<FdRequest>(&bytes) {
        Ok(FdRequest::Blob { blob }) => object::open(pool, blob).map(|(file, _)| OwnedFd::from(file)),
        Ok(FdRequest::Tap { .. }) => Err(Refused::invalid("the storage daemon has no taps")),
        Err(error) => Err(Refused::invalid(format!("the request is not understood: {error}"))),
    };
    match outcome {
        Ok(file) => fdpass::send(stream.as_fd(), &serde_json::to_vec(&FdReply::Here)?, &[file.as_fd()]),
        Err(refused) => fdpass::send(stream.as_fd(), &serde_json::to_vec(&FdReply::Refused(refused))?, &[]),
    }
}
