//! Bytes of blobs in and out of the socket.

use super::{BlobInfo, Digests, publish};
use crate::pool::Pool;
use crate::sys;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::sync::mpsc;
use wire::Refused;
use wire::ids::BlobId;

/// Bytes read from disk at once on the way out.
const CHUNK: usize = 512 << 10;
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

/// A range of bytes to send, `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// Reads a `Range` header about content of `length` bytes. `None` for what RFC 9110 says to ignore (another unit,
    /// several ranges, nonsense); `Some(Err)` when nothing of it can be satisfied.
    #[must_use]
    pub fn parse(header: &str, length: u64) -> Option<Result<Self, ()>> {
        let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        let (first, last) = (first.trim(), last.trim());
        if first.is_empty() {
            let suffix = number(last)?;
            return Some(if suffix == 0 || length == 0 {
                Err(())
            } else {
                Ok(Self { start: length.saturating_sub(suffix), end: length })
            });
        }
        let start = number(first)?;
        let end = if last.is_empty() { u64::MAX } else { number(last)?.saturating_add(1) };
        if end <= start {
            return None;
        }
        Some(if start >= length { Err(()) } else { Ok(Self { start, end: end.min(length) }) })
    }
}

/// A body that reads a span of a file, a few chunks ahead of the socket.
pub fn read_body(file: File, span: Span) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(2);
    tokio::task::spawn_blocking(move || {
        let mut at = span.start;
        while at < span.end {
            let wanted = usize::try_from(span.end - at).unwrap_or(CHUNK).min(CHUNK);
            let mut chunk = BytesMut::zeroed(wanted);
            let piece = match file.read_at(&mut chunk, at) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    chunk.truncate(read);
                    at = at.saturating_add(read as u64);
                    Ok(chunk.freeze())
                }
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    Body::from_stream(futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_as_the_standard_says() {
        let span = |start, end| Some(Ok(Span { start, end }));
        assert_eq!(Span::parse("bytes=0-3", 10), span(0, 4));
        assert_eq!(Span::parse("bytes=4-", 10), span(4, 10));
        assert_eq!(Span::parse("bytes=-3", 10), span(7, 10));
        assert_eq!(Span::parse("bytes=-30", 10), span(0, 10));
        assert_eq!(Span::parse("bytes=5-99999999999999999999999", 10), span(5, 10));
        assert_eq!(Span::parse("bytes=10-", 10), Some(Err(())));
        assert_eq!(Span::parse("bytes=-0", 10), Some(Err(())));
        for ignored in ["bytes=3-1", "bytes=0-1,3-4", "lines=0-1", "bytes=a-", "bytes=-", "", "bytes=+1-2"] {
            assert_eq!(Span::parse(ignored, 10), None, "{ignored}");
        }
    }

    proptest! {
        #[test]
        fn a_span_lies_within_the_content(header in "bytes=[0-9]{0,22}-[0-9]{0,22}", length in 0u64..1000) {
            if let Some(Ok(span)) = Span::parse(&header, length) {
                prop_assert!(span.start < span.end && span.end <= length);
            }
        }
    }
}
