//! Bytes of blobs on their way out. The storage daemon hands the file over; what a client is sent is read from the page cache
//! here, without a socket in between.

use crate::config::Sockets;
use axum::body::Body;
use base::fdpass;
use base::rpc::Allow;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use wire::Refused;
use wire::fd::{FdReply, FdRequest};
use wire::ids::BlobId;
use wire::range::Span;

/// Bytes read at once. One such piece is read ahead of the client, so a slow one holds two of them and no thread.
const CHUNK: u64 = 512 << 10;
/// How long the storage daemon may take to hand a file over.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the storage daemon hands out files, beside the socket of its calls.
fn fd_socket(calls: &Path) -> PathBuf {
    calls.with_extension("fd.sock")
}

/// Has the storage daemon open a blob.
///
/// # Errors
/// What the daemon refused; `Unavailable` when it does not answer.
pub(super) async fn open(sockets: &Sockets, blob: BlobId) -> Result<File, Refused> {
    let (socket, trusted) = (fd_socket(&sockets.block), Allow::own().and(sockets.block_uid));
    let asked = tokio::task::spawn_blocking(move || {
        ask(&socket, &trusted, blob).unwrap_or_else(|error| {
            Err(Refused::unavailable(format!("the daemon at {} does not answer: {error}", socket.display()))
                .remedy("see whether it runs and what its log says"))
        })
    });
    asked.await.map_err(|error| Refused::internal(error.to_string()))?
}

fn ask(socket: &Path, trusted: &Allow, blob: BlobId) -> io::Result<Result<File, Refused>> {
    let stream = std::os::unix::net::UnixStream::from(fdpass::connect_to(socket, trusted)?);
    stream.set_read_timeout(Some(PATIENCE))?;
    fdpass::send(stream.as_fd(), &serde_json::to_vec(&FdRequest::Blob { blob })?, &[])?;
    let (bytes, mut fds) = fdpass::receive(stream.as_fd())?;
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(match serde_json::from_slice(&bytes)? {
        FdReply::Here => {
            let fd =
                fds.pop().ok_or_else(|| Refused::internal("the storage daemon sent no file with its answer"));
            fd.map(File::from)
        }
        FdReply::Refused(refused) => Err(refused),
    })
}

/// A body that reads this span of the file, which nobody else reads from.
pub(super) fn body(file: File, span: Span) -> Body {
    let file = Arc::new(file);
    let first = fetch(&file, span.start, span.end);
    Body::from_stream(futures::stream::unfold((file, span, first), |(file, rest, pending)| async move {
        let piece = match pending?.await {
            Ok(piece) => piece,
            Err(error) => Err(io::Error::other(error)),
        };
        let read = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        // After an error there is nothing more to come.
        let rest = Span { start: if read == 0 { rest.end } else { rest.start + read }, end: rest.end };
        let next = fetch(&file, rest.start, rest.end);
        Some((piece, (file, rest, next)))
    }))
}

type Pending = JoinHandle<io::Result<Bytes>>;

fn fetch(file: &Arc<File>, start: u64, end: u64) -> Option<Pending> {
    let wanted = end.checked_sub(start).filter(|left| *left > 0)?.min(CHUNK);
    let file = file.clone();
    Some(tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
        let mut file: &File = &file;
        file.seek(SeekFrom::Start(start))?;
        // Into memory that nobody has to clear first.
        file.take(wanted).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::from(bytes))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Write;

    #[tokio::test]
    async fn a_body_is_exactly_its_span() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..3 * CHUNK + 17).map(|at| u8::try_from(at % 251).unwrap()).collect();
        file.write_all(&content).unwrap();
        let length = content.len() as u64;
        for (start, end) in [
            (0, length),
            (0, 0),
            (5, 6),
            (CHUNK, 2 * CHUNK),
            (CHUNK - 1, 3 * CHUNK + 1),
            (length - 1, length),
        ] {
            let read =
                body(file.try_clone().unwrap(), Span { start, end }).collect().await.unwrap().to_bytes();
            let wanted = &content[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
            assert!(read == wanted, "{start}-{end}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error_and_not_a_short_answer() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        body(file, Span { start: 0, end: 101 }).collect().await.unwrap_err();
    }
}
