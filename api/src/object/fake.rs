//! A storage daemon in memory, for tests of the services above it.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::owner::Mark;
use base::rpc::{Router, refuse};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use wire::Refused;
use wire::block::{
    BlobInfo, DiskInfo, DiskSource, EnsureBlobFromDisk, EnsureDisk, EnsureSnapshot, ForgetBlob, ForgetDisk,
    ForgetSnapshot, ImageFacts, InspectImage, ListPool, Pool,
};
use wire::cloud::{Attest, Warrant};
use wire::ids::{BlobId, DiskId, SnapshotId};

/// What the daemon holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub blobs: BTreeMap<BlobId, Bytes>,
    pub disks: BTreeMap<DiskId, u64>,
    pub snapshots: BTreeMap<SnapshotId, DiskId>,
    pub mark: Option<Mark>,
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

    /// Its socket's routes.
    pub fn router(&self) -> Router {
        let plain = axum::Router::new()
            .route("/v1/blob/{id}", axum::routing::put(put).get(get))
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
                let outcome =
                    b.with(|held| held.permits(&call.by).map(|()| { held.disks.remove(&call.id); }));
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
                let outcome =
                    d.with(|held| held.permits(&call.by).map(|()| { held.snapshots.remove(&call.id); }));
                async move { outcome }
            })
            .serve(move |call: ForgetBlob| {
                let outcome =
                    e.with(|held| held.permits(&call.by).map(|()| drop(held.blobs.remove(&call.id))));
                async move { outcome }
            })
            .serve(move |call: InspectImage| {
                let outcome = f.with(|held| inspect(held, &call));
                async move { outcome }
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

async fn get(State(fake): State<Fake>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let id: BlobId = id.parse().expect("a blob id");
    let Some(bytes) = fake.with(|held| held.blobs.get(&id).cloned()) else {
        return refuse(&Refused::missing("no such blob"));
    };
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    match range.and_then(|text| super::range::parse(text, bytes.len() as u64)) {
        Some(Ok(span)) => {
            let at = |number: u64| usize::try_from(number).expect("a small number");
            (StatusCode::PARTIAL_CONTENT, bytes.slice(at(span.start)..at(span.end))).into_response()
        }
        Some(Err(())) | None => bytes.into_response(),
    }
}
