//! Bytes of blobs into the pool.

use super::{BlobInfo, Digests, publish};
use crate::pool::Pool;
use crate::sys;
use axum::body::BodyDataStream;
use bytes::Bytes;
use futures::StreamExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::sync::mpsc;
use wire::Refused;
use wire::ids::BlobId;

/// Chunks in flight between the socket and the disk.
const DEPTH: usize = 8;
/// Bytes after which write-back is started and the free space looked at.
const STRIDE: u64 = 16 << 20;

/// Receives a new blob. Returns when it is durable; whatever fails, nothing is left.
///
/// # Errors
/// [`Refused::conflict`] when it exists, [`Refused::no_space`] when the pool or the limit is reached,
/// [`Refused::invalid`] when the sender went away before the end.
pub async fn receive(
    pool: Arc<Pool>,
    id: BlobId,
    announced: Option<u64>,
    sha512: bool,
    mut body: BodyDataStream,
) -> Result<BlobInfo, Refused> {
    let outcome = take(pool, id, announced, sha512, &mut body).await;
    if outcome.is_err() {
        tokio::spawn(drain(body));
    }
    outcome
}

async fn take(
    pool: Arc<Pool>,
    id: BlobId,
    announced: Option<u64>,
    sha512: bool,
    body: &mut BodyDataStream,
) -> Result<BlobInfo, Refused> {
    let held = pool.locks.take(id).await;
    if pool.blob(id).exists() {
        return Err(Refused::conflict(format!("blob {id} exists, and blobs never change"))
            .remedy("upload under a new id"));
    }
    check_size(&pool, announced.unwrap_or(0))?;
    pool.room_for(announced.unwrap_or(0))?;
    let (sender, receiver) = mpsc::channel(DEPTH);
    let writer = tokio::task::spawn_blocking(move || {
        let _held = held;
        write(&pool, id, sha512, receiver)
    });
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| {
            Refused::invalid(format!("the upload ended before its end: {error}")).remedy("upload it again")
        });
        let broken = piece.is_err();
        if sender.send(piece).await.is_err() || broken {
            break;
        }
    }
    drop(sender);
    writer.await.map_err(|error| Refused::internal(format!("the writer died: {error}")))?
}

/// Reads on while the refusal is on its way: a sender that is still writing sees it only if nobody hangs up first. Ends by
/// itself, with the connection or after five seconds.
async fn drain(mut body: BodyDataStream) {
    let rest = async { while let Some(Ok(_)) = body.next().await {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), rest).await;
}

fn check_size(pool: &Pool, bytes: u64) -> Result<(), Refused> {
    if bytes <= pool.limits.blob_bytes {
        return Ok(());
    }
    Err(Refused::invalid(format!(
        "an upload may have at most {} MiB (limits.blob_bytes of the storage daemon)",
        pool.limits.blob_bytes >> 20
    )))
}

fn write(
    pool: &Pool,
    id: BlobId,
    sha512: bool,
    mut receiver: mpsc::Receiver<Result<Bytes, Refused>>,
) -> Result<BlobInfo, Refused> {
    let making = pool.make()?;
    let mut digests = Digests::new(sha512);
    let mut started = 0u64;
    while let Some(piece) = receiver.blocking_recv() {
        let (piece, at) = (piece?, digests.bytes());
        check_size(pool, at.saturating_add(piece.len() as u64))?;
        making.file().write_all_at(&piece, at).map_err(|error| pool.fault("write", making.path(), &error))?;
        digests.update(&piece);
        if digests.bytes() - started >= STRIDE {
            sys::start_writeback(making.file(), started, digests.bytes() - started);
            started = digests.bytes();
            pool.room_for(STRIDE)?;
        }
    }
    publish(pool, making, id, digests)
}
