//! Bytes of images, in and out.

use super::access::find;
use super::limits;
use super::records::{self, Filled, Image};
use crate::app::App;
use crate::object::inner::{self as objects, IMAGE_ACCOUNT};
use crate::object::quota::bounded;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use axum::http::StatusCode;
use base::store::Query;
use std::sync::atomic::Ordering;
use std::time::Duration;
use wire::block::{BlobInfo, InspectImage};
use wire::ids::BlobId;
use wire::range::Span;
use wire::{Refused, RefusedKind};

/// Longest time that looking at an image takes.
const INSPECTION: Duration = Duration::from_secs(600);

pub(super) async fn upload(call: Call<App>) -> Outcome {
    let image = find(&call, call.path("image_id")).await?;
    call.enforce(&Target::project(&image.owner))?;
    let kind = call.header("content-type").unwrap_or_default();
    if !kind.starts_with("application/octet-stream") {
        return Err(Fault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The request's content type must be application/octet-stream.",
        ));
    }
    let length = call.header("content-length").and_then(|text| text.parse().ok());
    let body = call.take_stream();
    let (app, id) = (call.app.clone(), image.id.clone());
    // In a task of its own, so that a client that hangs up leaves the image settled, not half way.
    let work = async move {
        let Begun { blob, format, room } = begin(&app, &image, length).await?;
        let (body, passed) = match length {
            // Announced and fitting; more than was announced does not come.
            Some(_) => (body, None),
            None => {
                let (body, passed) = bounded(body, room);
                (body, Some(passed))
            }
        };
        let stored = objects::upload(&app, blob, length, true, body).await;
        let stored = stored.map_err(|refused| {
            if passed.is_some_and(|passed| passed.load(Ordering::Relaxed)) {
                Fault::too_large(format!(
                    "The project's images may have {room} bytes more (image_size_total), and this one has more than that."
                ))
            } else {
                objects::upload_fault(refused)
            }
        });
        finish(&app, &image.id, blob, &format, stored).await
    };
    settled(work).await?;
    tracing::info!(image = id, "image data stored");
    Ok(Reply::empty(204))
}

/// Runs work to its end even when the one who asked for it goes away.
async fn settled<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    #[allow(clippy::disallowed_methods)]
    let task = tokio::spawn(work);
    task.await.map_err(|error| Fault::internal(format!("the work died: {error}")))?
}

/// An upload that may go on.
pub(super) struct Begun {
    pub blob: BlobId,
    pub format: String,
    /// Bytes that the project may still store.
    pub room: u64,
}

/// Takes a queued image to saving and names its blob.
pub(super) async fn begin(app: &App, image: &Image, announced: Option<u64>) -> Result<Begun, Fault> {
    let (Some(format), Some(_)) = (&image.disk_format, &image.container_format) else {
        return Err(Fault::bad_request(
            "Properties disk_format, container_format must be set prior to saving data.",
        ));
    };
    let blob = BlobId::new();
    objects::reserve(app, blob, 0).await?;
    let id = &image.id;
    let begun = app
        .store
        .tx(|tx| async move {
            let room = limits::upload(&tx, &app.config.images, &image.owner, announced).await?;
            let advanced = records::advance(&tx, id, ("queued", "saving"), Some(blob.to_string())).await?;
            Ok::<_, Fault>(advanced.then_some(room))
        })
        .await;
    if !matches!(begun, Ok(Some(_))) {
        objects::abandon(app, blob).await?;
    }
    let Some(room) = begun? else {
        return Err(Fault::conflict(format!(
            "Image status transition from {} to saving is not allowed",
            image.status
        )));
    };
    Ok(Begun { blob, format: format.clone(), room })
}

/// Looks at what was stored and makes the image active, or queued again with nothing kept.
pub(super) async fn finish(
    app: &App,
    id: &str,
    blob: BlobId,
    format: &str,
    stored: Result<BlobInfo, Fault>,
) -> Result<(), Fault> {
    let inspected = match stored {
        Err(fault) => Err(fault),
        Ok(info) => {
            let call = InspectImage { blob, format: format.to_owned() };
            // The collector must see that somebody still works on it.
            match objects::alive(app, blob, app.block.call_within(&call, INSPECTION)).await {
                Ok(facts) => Ok((info, facts)),
                Err(refused) => Err(refusal(refused)),
            }
        }
    };
    let (info, facts) = match inspected {
        Ok(good) => good,
        Err(fault) => {
            give_up(app, id, blob).await?;
            return Err(fault);
        }
    };
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let info = &info;
    let filled = app
        .store
        .tx(|tx| async move {
            let filled = Filled {
                size: number(info.bytes),
                virtual_size: number(facts.virtual_bytes),
                checksum: &info.md5,
                hash_value: &info.sha512,
            };
            let owner = records::find(&tx, id).await?.map(|image| image.owner);
            let done = records::fill(&tx, id, &blob.to_string(), &filled).await?;
            if done {
                let owner = owner.unwrap_or_default();
                limits::stored(&tx, &app.config.images, &owner, 0).await?;
                if !objects::keep(&tx, IMAGE_ACCOUNT, id, info).await? {
                    return Err(Fault::unavailable(
                        "The upload was not heard of for too long and its data was removed; upload it again.",
                    ));
                }
            }
            Ok::<_, Fault>(done)
        })
        .await;
    let filled = match filled {
        Ok(filled) => filled,
        Err(fault) => {
            give_up(app, id, blob).await?;
            return Err(fault);
        }
    };
    if !filled {
        objects::abandon(app, blob).await?;
        return Err(Fault::gone(format!("Image {id} was deleted while its data was uploaded.")));
    }
    Ok(())
}

fn refusal(refused: Refused) -> Fault {
    match refused.kind {
        RefusedKind::Invalid => Fault::bad_request(format!("The image is not usable: {refused}")),
        RefusedKind::Missing
        | RefusedKind::Conflict
        | RefusedKind::Stale
        | RefusedKind::NoSpace
        | RefusedKind::Unavailable
        | RefusedKind::Forbidden
        | RefusedKind::Internal => refused.into(),
    }
}

/// Back to queued; the blob is collected.
pub(super) async fn give_up(app: &App, id: &str, blob: BlobId) -> Result<(), Fault> {
    app.store.tx(|tx| async move { records::advance(&tx, id, ("saving", "queued"), None).await }).await?;
    objects::abandon(app, blob).await?;
    Ok(())
}

/// Images whose upload died with its process go back to queued.
pub(super) async fn settle(app: &App) -> Result<(), Fault> {
    let rows =
        app.store.rows("SELECT id, blob FROM image_images WHERE status = 'saving'", base::args![]).await?;
    for row in rows {
        let id = row.text("id")?;
        let Some(blob) = row.opt_text("blob")?.and_then(|blob| blob.parse::<BlobId>().ok()) else { continue };
        if !objects::is_uploading(app, blob).await? {
            tracing::warn!(image = id, "an upload died; the image waits for its data again");
            give_up(app, &id, blob).await?;
        }
    }
    Ok(())
}

pub(super) async fn download(call: Call<App>) -> Outcome {
    let image = find(&call, call.path("image_id")).await?;
    if image.status == "deactivated" && !call.caller.is_admin {
        return Err(Fault::forbidden(
            "The requested image has been deactivated. Image data download is forbidden.",
        ));
    }
    let blob = image.blob.as_deref().and_then(|blob| blob.parse::<BlobId>().ok());
    let (Some(blob), Some(size)) = (blob, image.size) else {
        return Ok(Reply::empty(204));
    };
    let size = u64::try_from(size).unwrap_or(0);
    let checksum = image.checksum.clone().unwrap_or_default();
    match call.header("range").and_then(|text| Span::parse(text, size)) {
        None => {
            let body = objects::read(&call.app, blob, size, None).await?;
            Ok(Reply::stream(200, body)
                .header("content-md5", checksum)
                .header("content-length", size.to_string()))
        }
        Some(Err(())) => Err(Fault::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "The byte range passed in the 'Range' header did not match any available byte range.",
        )),
        Some(Ok(span)) => {
            let body = objects::read(&call.app, blob, size, Some(span)).await?;
            Ok(Reply::stream(206, body)
                .header("content-range", format!("bytes {}-{}/{size}", span.start, span.end - 1))
                .header("content-length", span.bytes().to_string()))
        }
    }
}
