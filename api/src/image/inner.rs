//! What other services ask of images, in process. Everything may be repeated.

use super::records::{self, Image};
use super::{access, data, rules};
use crate::app::{App, Shared};
use crate::bootstrap::Params;
use crate::object::inner as objects;
use api_kit::{Caller, Fault};
use axum::body::Body;
use serde_json::{Map, Value};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;
use wire::block::{DiskSource, EnsureBlobFromDisk};
use wire::ids::BlobId;

/// Longest time that turning a disk into an image takes.
const EXPORT: Duration = Duration::from_secs(6 * 3600);
/// Name of the image that `bootstrap` makes.
pub const GUEST_IMAGE: &str = "ferro";

/// An image that a disk can be made of.
#[derive(Debug, Clone)]
pub struct BootImage {
    /// Its id.
    pub id: String,
    /// Its name; empty when it has none.
    pub name: String,
    /// `queued`, `saving`, `active`, `deactivated`. Only an active one has usable data.
    pub status: String,
    /// What the data is: `raw`, `qcow2`.
    pub disk_format: String,
    /// The data; meaningless unless the image is active.
    pub blob: BlobId,
    /// Length of the data in bytes.
    pub bytes: u64,
    /// Size of the disk that the data describes, in bytes.
    pub virtual_bytes: u64,
    /// Smallest disk that it asks for.
    pub min_disk_gib: u64,
    /// Smallest memory that it asks for.
    pub min_ram_mib: u64,
    /// Free properties (`kernel_id`, `os_distro`).
    pub properties: Map<String, Value>,
    /// The project that owns it.
    pub owner: String,
    /// `public`, `private`, `shared`, `community`.
    pub visibility: String,
}

fn boot(image: Image) -> BootImage {
    let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    BootImage {
        blob: image.blob.as_deref().and_then(|blob| blob.parse().ok()).unwrap_or(BlobId(Uuid::nil())),
        bytes: number(image.size),
        virtual_bytes: number(image.virtual_size),
        min_disk_gib: number(Some(image.min_disk)),
        min_ram_mib: number(Some(image.min_ram)),
        properties: image.properties.into_iter().map(|(name, value)| (name, Value::String(value))).collect(),
        name: image.name.unwrap_or_default(),
        disk_format: image.disk_format.unwrap_or_default(),
        id: image.id,
        status: image.status,
        owner: image.owner,
        visibility: image.visibility,
    }
}

/// The image, if the caller may see it.
///
/// # Errors
/// 404 when there is none that the caller may see.
pub async fn visible(app: &App, caller: &Caller, image_id: &str) -> Result<BootImage, Fault> {
    access::visible(app, caller, image_id).await.map(boot)
}

/// The image, whoever owns it: for tasks, whose request was checked.
///
/// # Errors
/// 404 when there is none.
pub async fn by_id(app: &App, image_id: &str) -> Result<BootImage, Fault> {
    let found = records::find(&app.store, image_id).await?;
    found.map(boot).ok_or_else(|| Fault::not_found(format!("Image {image_id} could not be found.")))
}

/// Removes an image, whoever owns it: for tasks, whose request was checked. Harmless when it is gone.
///
/// # Errors
/// When the database or the store does not answer.
pub async fn remove(app: &App, image_id: &str) -> Result<(), Fault> {
    let Some(image) = records::find(&app.store, image_id).await? else { return Ok(()) };
    if image.status == "active" || image.status == "deactivated" {
        return Ok(rules::remove(app, &image).await?);
    }
    fail(app, image_id).await
}

/// Makes a queued, private image that will hold a disk's content. `properties` may name `disk_format` (default `qcow2`),
/// `min_disk`, `min_ram` and `visibility` besides free properties; values that are no strings are written as JSON.
///
/// # Errors
/// 400 for properties that an image cannot have, 403 without a project.
pub async fn create_snapshot(
    app: &App,
    caller: &Caller,
    name: &str,
    properties: Map<String, Value>,
) -> Result<String, Fault> {
    let project = caller.project_id.clone();
    let project =
        project.ok_or_else(|| Fault::forbidden("This needs a token that is scoped to a project."))?;
    let mut image = rules::blank(Uuid::new_v4().hyphenated().to_string(), project);
    image.visibility = "private".to_owned();
    image.name = Some(name.chars().take(255).collect());
    image.disk_format = Some("qcow2".to_owned());
    image.container_format = Some("bare".to_owned());
    for (key, value) in properties {
        let typed = matches!(key.as_str(), "min_disk" | "min_ram" | "protected" | "os_hidden" | "tags");
        let value = match value {
            Value::Null => continue,
            Value::String(_) => value,
            other if typed => other,
            other => Value::String(other.to_string()),
        };
        super::patch::set(&mut image, &key, Some(&value))?;
    }
    let new = &image;
    app.store
        .tx(|tx| async move {
            super::limits::one_more(&tx, &app.config.images, &new.owner).await?;
            Ok::<_, Fault>(records::insert(&tx, new).await?)
        })
        .await?;
    Ok(image.id)
}

/// Fills a queued image with a disk's or snapshot's content and makes it active. Repeated after a crash it goes on; an
/// active image stays as it is.
///
/// # Errors
/// 404 when the image is gone, else what the storage daemon refused; the image is queued again then.
pub async fn fill_from_disk(app: &App, image_id: &str, source: DiskSource) -> Result<(), Fault> {
    let missing = || Fault::not_found(format!("Image {image_id} could not be found."));
    let image = records::find(&app.store, image_id).await?.ok_or_else(missing)?;
    let format = image.disk_format.clone().unwrap_or_else(|| "qcow2".to_owned());
    let blob = match (image.status.as_str(), image.blob.as_deref()) {
        ("active", _) => return Ok(()),
        ("saving", Some(blob)) => {
            blob.parse::<BlobId>().map_err(|_| Fault::internal("the image's blob id is damaged"))?
        }
        _ => data::begin(app, &image, None).await?.blob,
    };
    // The blob's name is safe from the collector for as long as the export may take.
    let seconds = i64::try_from(EXPORT.as_secs()).unwrap_or(i64::MAX);
    objects::reserve(app, blob, seconds).await?;
    let call = EnsureBlobFromDisk { blob, source, format: format.clone() };
    let stored = app.block.call_within(&call, EXPORT).await;
    match stored {
        // The same blob again at the next try.
        Err(refused) if refused.kind.transient() => Err(refused.into()),
        stored => data::finish(app, image_id, blob, &format, stored.map_err(Fault::from)).await,
    }
}

/// Removes an image that could not be filled; harmless when it is gone or active.
///
/// # Errors
/// When the database does not answer.
pub async fn fail(app: &App, image_id: &str) -> Result<(), Fault> {
    let Some(image) = records::find(&app.store, image_id).await? else { return Ok(()) };
    if image.status == "active" || image.status == "deactivated" {
        return Ok(());
    }
    if let Some(blob) = image.blob.as_deref().and_then(|blob| blob.parse::<BlobId>().ok()) {
        objects::abandon(app, blob).await?;
    }
    rules::remove(app, &image).await?;
    Ok(())
}

/// Makes the guest image a public image of the cloud, unless one of its name and checksum is there.
///
/// # Errors
/// When the file cannot be read or the image is refused.
pub async fn bootstrap(app: &Shared, params: &Params) -> Result<(), Fault> {
    let Some(path) = &params.guest_image else { return Ok(()) };
    let format = if path.extension().is_some_and(|extension| extension == "qcow2") { "qcow2" } else { "raw" };
    let mut mine = base::store::Where::new("SELECT * FROM image_images");
    mine.and("name = ?", [GUEST_IMAGE.into()]).and("owner = ?", [params.admin_project.as_str().into()]);
    let known = records::select(&app.store, mine).await?;
    let length = length(path)?;
    let is_same = |image: &&Image| image.status == "active" && image.size == i64::try_from(length).ok();
    if known.iter().any(|image| is_same(&image)) {
        return Ok(());
    }
    // What a former run did not finish.
    for image in known.iter().filter(|image| image.status == "queued" || image.status == "saving") {
        fail(app, &image.id).await?;
    }
    let mut image = rules::blank(Uuid::new_v4().hyphenated().to_string(), params.admin_project.clone());
    image.name = Some(GUEST_IMAGE.to_owned());
    image.visibility = "public".to_owned();
    image.disk_format = Some(format.to_owned());
    image.container_format = Some("bare".to_owned());
    let new = &image;
    app.store.tx(|tx| async move { records::insert(&tx, new).await }).await?;
    let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(path, &error))?;
    let body = Body::from_stream(tokio_util::io::ReaderStream::with_capacity(file, 256 << 10));
    let data::Begun { blob, format, .. } = data::begin(app, &image, Some(length)).await?;
    let stored = objects::upload(app, blob, Some(length), true, body).await;
    data::finish(app, &image.id, blob, &format, stored.map_err(objects::upload_fault)).await
}

fn length(path: &Path) -> Result<u64, Fault> {
    std::fs::metadata(path).map(|facts| facts.len()).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Fault {
    Fault::bad_request(format!("cannot read the guest image {}: {error}; check the path", path.display()))
}
