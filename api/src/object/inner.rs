//! What other services keep here, and the ways of bytes in and out that the routes use too.

use super::records::{self, Meta, Object, now_us};
use crate::app::App;
use api_kit::Fault;
use axum::body::Body;
use axum::http::Request;
use base::store::{StoreError, Tx};
use http_body_util::{BodyExt, Limited};
use std::time::Duration;
use wire::block::BlobInfo;
use wire::ids::BlobId;
use wire::range::Span;
use wire::{Refused, RefusedKind};

/// The image service's account. Accounts of projects begin with `AUTH_`, so no request reaches it.
pub const IMAGE_ACCOUNT: &str = ".image";
/// The one container in it.
const DATA: &str = "data";
/// How often a running upload says that it is alive.
const TOUCH: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 60_000 });

/// Names a new blob that is about to be written. `seconds`: how long at least it is left alone without being touched.
///
/// # Errors
/// When the database does not answer.
pub async fn reserve(app: &App, blob: BlobId, seconds: i64) -> Result<(), StoreError> {
    app.store
        .tx(|tx| async move { records::touch_upload(&tx, blob, now_us() + seconds * 1_000_000).await })
        .await
}

/// Does `work` on a blob that was reserved, telling the collector all the while that it goes on.
pub async fn alive<T>(app: &App, blob: BlobId, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            () = tokio::time::sleep(TOUCH) => {
                // One that was collected meanwhile is not reserved again: the end of the work finds that out.
                let touched = app.store.tx(|tx| async move { records::keep_upload(&tx, blob, now_us()).await }).await;
                if let Err(error) = touched {
                    tracing::warn!(%blob, %error, "cannot say that a blob is worked on; trying again");
                }
            }
        }
    }
}

/// Streams a body into a new blob that was reserved. Nothing is left of it when this fails.
///
/// # Errors
/// What the storage daemon refused: no space, too large, cut short.
pub async fn upload(
    app: &App,
    blob: BlobId,
    length: Option<u64>,
    sha512: bool,
    body: Body,
) -> Result<BlobInfo, Refused> {
    let query = if sha512 { "?sha512=1" } else { "" };
    let mut request = Request::put(format!("/v1/blob/{blob}{query}"));
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    let response = alive(app, blob, app.block.send(request, body)).await?;
    let bytes = Limited::new(response.into_body(), 64 << 10)
        .collect()
        .await
        .map_err(|error| Refused::unavailable(format!("the storage daemon's answer broke off: {error}")))?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|error| Refused::internal(format!("the storage daemon answered something else: {error}")))
}

/// The bytes of a blob, or a span of them.
///
/// # Errors
/// When the storage daemon does not have it or does not answer.
pub async fn read(app: &App, blob: BlobId, bytes: u64, span: Option<Span>) -> Result<Body, Refused> {
    let file = super::bytes::open(&app.config.sockets, blob).await?;
    Ok(super::bytes::body(file, span.unwrap_or(Span { start: 0, end: bytes })))
}

/// Gives a written blob its place in the account of another service, in that service's transaction. `false`, and nothing is
/// done, when its reservation ran out: the collector has removed it, or will.
///
/// # Errors
/// When the database does not answer.
pub async fn keep(tx: &Tx, account: &'static str, name: &str, info: &BlobInfo) -> Result<bool, StoreError> {
    if !records::end_upload(tx, info.id).await? {
        return Ok(false);
    }
    if records::container(tx, account, DATA).await?.is_none() {
        records::put_container(tx, account, DATA, &Meta::new()).await?;
    }
    let object = Object {
        name: name.to_owned(),
        blob: info.id,
        bytes: info.bytes,
        etag: info.md5.clone(),
        content_type: "application/octet-stream".to_owned(),
        updated_us: now_us(),
        meta: Meta::new(),
    };
    records::put(tx, account, DATA, &object).await?;
    Ok(true)
}

/// Removes what [`keep`] kept, in the caller's transaction; harmless when it is not there. Nudge `wake.blobs` afterwards.
///
/// # Errors
/// When the database does not answer.
pub async fn drop_kept(tx: &Tx, account: &'static str, name: &str) -> Result<(), StoreError> {
    records::remove(tx, account, DATA, name).await.map(drop)
}

/// Gives a reserved blob up: the collector removes what was written of it.
///
/// # Errors
/// When the database does not answer.
pub async fn abandon(app: &App, blob: BlobId) -> Result<(), StoreError> {
    app.store.tx(|tx| async move { records::mark_dead(&tx, blob).await }).await?;
    app.wake.blobs.nudge();
    Ok(())
}

/// Whether a blob is still being written by somebody.
///
/// # Errors
/// When the database does not answer.
pub async fn is_uploading(app: &App, blob: BlobId) -> Result<bool, StoreError> {
    use base::store::Query;
    let stale = now_us() - super::garbage::STALE_US;
    let sql = "SELECT blob FROM object_uploads WHERE blob = $1 AND touched_us >= $2";
    Ok(app.store.row(sql, base::args![blob, stale]).await?.is_some())
}

/// A refusal of the storage daemon about an upload, as the one who uploads sees it.
#[must_use]
pub fn upload_fault(refused: Refused) -> Fault {
    match refused.kind {
        RefusedKind::NoSpace => Fault::new(axum::http::StatusCode::INSUFFICIENT_STORAGE, refused.to_string()),
        RefusedKind::Invalid if refused.message.contains("at most") => Fault::too_large(refused.to_string()),
        RefusedKind::Missing
        | RefusedKind::Conflict
        | RefusedKind::Stale
        | RefusedKind::Invalid
        | RefusedKind::Unavailable
        | RefusedKind::Forbidden
        | RefusedKind::Internal => refused.into(),
    }
}
