//! A storage daemon in memory, for tests of the services above it.

use crate::testing::Cloud;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base::owner::Mark;
use base::rpc::Router;
use base::{CancellationToken, fdpass};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use wire::Refused;
use wire::block::{
    BlobInfo, DiskInfo, DiskSource, EnsureBlobFromDisk, EnsureDisk, EnsureSnapshot, ForgetBlob, ForgetDisk,
    ForgetSnapshot, ImageFacts, InspectImage, ListPool, Pool,
};
use wire::cloud::{Attest, Warrant};
use wire::fd::{FdReply, FdRequest};
use wire::ids::{BlobId, DiskId, SnapshotId};

/// What the daemon holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub blobs: BTreeMap<BlobId, Bytes>,
    pub disks: BTreeMap<DiskId, u64>,
    pub snapshots: BTreeMap<SnapshotId, DiskId>,
    pub mark: Option<Mark>,
    /// An inspection needs a permit of it, when there is one.
    pub gate: Option<Arc<tokio::sync::Semaphore>>,
}

/// The daemon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Held>>);

impl Held {
    fn permits(&mut self, by: &Warrant) -> Result<(), Refused> {
        Mark::permits(self.mark, by).map(|mark| self.mark = Some(mark))
    }
}

/// A digest that is good enough to tell contents apart.
fn digest(bytes: &[u8]) -> String {
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{sum:032x}")
}

fn info(id: BlobId, bytes: &[u8]) -> BlobInfo {
    BlobInfo { id, bytes: bytes.len() as u64, md5: digest(bytes), sha512: digest(bytes).repeat(4) }
}

impl Fake {
    /// Looks into it.
    pub fn with<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves both of its sockets until the cloud goes.
    pub fn serve(&self, cloud: &Cloud) {
        cloud.daemon("block", self.router());
        let path = cloud.socket("block").with_extension("fd.sock");
        let listener =
            std::os::unix::net::UnixListener::from(fdpass::listen(&path).expect("the socket is free"));
        let (fake, end) = (self.clone(), cloud.shutdown.clone());
        std::thread::spawn(move || hand_out(&listener, &fake, &end));
    }

    /// The routes of the socket for calls.
    pub fn router(&self) -> Router {
        let plain = axum::Router::new()
            .route("/v1/blob/{id}", axum::routing::put(put))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(self.clone());
        let on = || self.clone();
        let (a, b, c, d) = (on(), on(), on(), on());
        let (e, f, g, h, i) = (on(), on(), on(), on(), on());
        Router::new()
            .plain(plain)
            .serve(move |call: EnsureDisk| {
                let outcome = a.with(|held| ensure_disk(held, &call));
                async move { outcome }
            })
            .serve(move |call: ForgetDisk| {
                let outcome = b.with(|held| {
                    held.permits(&call.by).map(|()| {
                        held.disks.remove(&call.id);
                    })
                });
                async move { outcome }
            })
            .serve(move |call: EnsureSnapshot| {
                let outcome = c.with(|held| {
                    let bytes =
                        *held.disks.get(&call.disk).ok_or_else(|| Refused::missing("no such disk"))?;
                    held.snapshots.insert(call.id, call.disk);
                    Ok(DiskInfo { path: PathBuf::from(format!("/pool/snapshots/{}", call.id)), bytes })
                });
                async move { outcome }
            })
            .serve(move |call: ForgetSnapshot| {
                let outcome = d.with(|held| {
                    held.permits(&call.by).map(|()| {
                        held.snapshots.remove(&call.id);
                    })
                });
                async move { outcome }
            })
            .serve(move |call: ForgetBlob| {
                let outcome =
                    e.with(|held| held.permits(&call.by).map(|()| drop(held.blobs.remove(&call.id))));
                async move { outcome }
            })
            .serve(move |call: InspectImage| {
                let fake = f.clone();
                async move {
                    if let Some(gate) = fake.with(|held| held.gate.clone()) {
                        gate.acquire().await.expect("the gate stays").forget();
                    }
                    fake.with(|held| inspect(held, &call))
                }
            })
            .serve(move |_: ListPool| {
                let pool = g.with(|held| Pool {
                    blobs: held.blobs.keys().copied().collect(),
                    disks: held.disks.keys().copied().collect(),
                    snapshots: held.snapshots.keys().copied().collect(),
                    ..Pool::default()
                });
                async move { Ok(pool) }
            })
            .serve(move |call: Attest| {
                let outcome = i.with(|held| Mark::heard(held.mark, call).map(|mark| held.mark = Some(mark)));
                async move { outcome }
            })
            .serve(move |call: EnsureBlobFromDisk| {
                let outcome = h.with(|held| {
                    let bytes = Bytes::from_static(b"QFI from a disk");
                    held.blobs.insert(call.blob, bytes.clone());
                    Ok(info(call.blob, &bytes))
                });
                async move { outcome }
            })
    }
}

fn ensure_disk(held: &mut Held, call: &EnsureDisk) -> Result<DiskInfo, Refused> {
    let there = match &call.source {
        DiskSource::Blank | DiskSource::Files { .. } => true,
        DiskSource::Image { blob, .. } => held.blobs.contains_key(blob),
        DiskSource::Snapshot { snapshot } => held.snapshots.contains_key(snapshot),
        DiskSource::Disk { disk } => held.disks.contains_key(disk),
    };
    if !there {
        return Err(Refused::missing("the source is not in the pool"));
    }
    held.disks.insert(call.id, call.bytes);
    Ok(DiskInfo { path: PathBuf::from(format!("/pool/disks/{}", call.id)), bytes: call.bytes })
}

/// Takes contents that begin with `QFI` for good qcow2 of 2 GiB.
fn inspect(held: &Held, call: &InspectImage) -> Result<ImageFacts, Refused> {
    let bytes = held.blobs.get(&call.blob).ok_or_else(|| Refused::missing("no such blob"))?;
    match (call.format.as_str(), bytes.starts_with(b"QFI")) {
        ("qcow2", true) => Ok(ImageFacts { virtual_bytes: 2 << 30 }),
        ("raw", false) => Ok(ImageFacts { virtual_bytes: bytes.len() as u64 }),
        _ => Err(Refused::invalid("the image is mislabelled").remedy("give its real format")),
    }
}

async fn put(State(fake): State<Fake>, Path(id): Path<String>, body: Bytes) -> Response {
    let id: BlobId = id.parse().expect("a blob id");
    let answer = info(id, &body);
    fake.with(|held| held.blobs.insert(id, body));
    axum::Json(answer).into_response()
}

/// Hands out blobs as files until the cloud goes.
fn hand_out(listener: &std::os::unix::net::UnixListener, fake: &Fake, end: &CancellationToken) {
    while let Ok((stream, _)) = listener.accept() {
        if end.is_cancelled() {
            return;
        }
        let (bytes, _) = fdpass::receive(stream.as_fd()).expect("a request");
        let Ok(FdRequest::Blob { blob }) = serde_json::from_slice(&bytes) else { panic!("not about a blob") };
        let (reply, file) = match fake.with(|held| held.blobs.get(&blob).cloned()) {
            Some(bytes) => {
                let mut file = tempfile::tempfile().expect("a file");
                file.write_all(&bytes).expect("room");
                (FdReply::Here, Some(file))
            }
            None => (FdReply::Refused(Refused::missing("no such blob")), None),
        };
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        fdpass::send(stream.as_fd(), &serde_json::to_vec(&reply).expect("JSON"), &fds).expect("sent");
    }
}
