//! What may be done with volumes.

use super::records::{self, Pairs, Volume};
use super::tasks::{CreateVolume, DeleteVolume, ExtendVolume};
use super::{limits, type_rows, types, view};
use crate::app::App;
use api_kit::time::now;
use api_kit::{Call, Caller, Fault, Outcome, Reply, Target};
use base::store::Tx;
use serde_json::{Value, json};
use uuid::Uuid;
use wire::block::DiskSource;

/// The one availability zone.
pub(super) const ZONE: &str = "nova";

pub(super) fn missing(id: &str) -> Fault {
    let id: String = id.chars().take(64).collect();
    Fault::not_found(format!("Volume {id} could not be found."))
}

/// The volume, if it is the caller's (or the caller an administrator).
pub(super) fn own(caller: &Caller, found: Option<Volume>, id: &str) -> Result<Volume, Fault> {
    found
        .filter(|volume| caller.is_admin || caller.project_id.as_deref() == Some(&volume.project_id))
        .ok_or_else(|| missing(id))
}

pub(super) async fn find(call: &Call<App>) -> Result<Volume, Fault> {
    let id = call.path("volume_id");
    let volume = own(&call.caller, records::find(&call.app.store, id).await?, id)?;
    call.enforce(&Target::project(&volume.project_id))?;
    Ok(volume)
}

/// What a new volume holds.
#[derive(Debug, Clone)]
pub enum VolumeSource {
    /// Zeros.
    Blank,
    /// An image.
    Image(String),
    /// A snapshot of a volume.
    Snapshot(String),
    /// Another volume.
    Volume(String),
}

/// A volume that is asked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub id: Uuid,
    pub gib: Option<i64>,
    pub source: VolumeSource,
    pub name: Option<String>,
    pub description: Option<String>,
    pub metadata: Pairs,
    /// Id or name of a type; the source's, or the default, when `None`.
    pub kind: Option<String>,
}

/// The disk's source, the least size, and what the volume takes over from its source.
struct Ground {
    source: DiskSource,
    least: i64,
    bootable: bool,
    image_metadata: Pairs,
    snapshot_id: Option<String>,
    source_volid: Option<String>,
    kind: Option<String>,
}

async fn ground(app: &App, caller: &Caller, wanted: &Wanted) -> Result<Ground, Fault> {
    let mut ground = Ground {
        source: DiskSource::Blank,
        least: 1,
        bootable: false,
        image_metadata: Pairs::new(),
        snapshot_id: None,
        source_volid: None,
        kind: None,
    };
    match &wanted.source {
        VolumeSource::Blank => (),
        VolumeSource::Image(id) => {
            let image = crate::image::inner::visible(app, caller, id).await.map_err(|fault| {
                if fault.status == 404 {
                    Fault::bad_request(format!(
                        "Invalid image identifier or unable to access requested image {}.",
                        cut(id)
                    ))
                } else {
                    fault
                }
            })?;
            if image.status != "active" {
                return Err(Fault::bad_request(format!(
                    "Invalid input received: Image {} is not active (its status is {}).",
                    image.id, image.status
                )));
            }
            let need = i64::try_from(image.virtual_bytes.div_ceil(1 << 30)).unwrap_or(i64::MAX).max(1);
            let min_disk = i64::try_from(image.min_disk_gib).unwrap_or(i64::MAX);
            if let Some(gib) = wanted.gib {
                if gib < need {
                    return Err(Fault::bad_request(format!(
                        "Invalid input received: Size of specified image {need}GB is larger than volume size {gib}GB."
                    )));
                }
                if gib < min_disk {
                    return Err(Fault::bad_request(format!(
                        "Invalid input received: Volume size {gib}GB cannot be smaller than the image minDisk size {min_disk}GB."
                    )));
                }
            }
            ground.least = need.max(min_disk);
            ground.bootable = true;
            let facts = [
                ("image_id", image.id.clone()),
                ("image_name", image.name.clone()),
                ("disk_format", image.disk_format.clone()),
                ("container_format", "bare".to_owned()),
                ("min_disk", image.min_disk_gib.to_string()),
                ("min_ram", image.min_ram_mib.to_string()),
                ("size", image.bytes.to_string()),
            ];
            let free = image
                .properties
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
            ground.image_metadata.extend(free);
            ground.image_metadata.extend(facts.map(|(name, value)| (name.to_owned(), value)));
            ground.source = DiskSource::Image { blob: image.blob, format: image.disk_format };
        }
        VolumeSource::Snapshot(id) => {
            let gone = || Fault::not_found(format!("Snapshot {} could not be found.", cut(id)));
            let snapshot = records::find_snapshot(&app.store, id).await?.ok_or_else(gone)?;
            if !caller.is_admin && caller.project_id.as_deref() != Some(&snapshot.project_id) {
                return Err(gone());
            }
            if snapshot.status != "available" {
                return Err(Fault::bad_request(format!(
                    "Invalid snapshot: Originating snapshot status must be one of 'available' values (it is {}).",
                    snapshot.status
                )));
            }
            if let Some(origin) = records::find(&app.store, &snapshot.volume_id).await? {
                ground.bootable = origin.bootable;
                ground.image_metadata = origin.image_metadata;
                ground.kind = Some(origin.type_id);
            }
            ground.least = snapshot.size;
            let parsed = snapshot.id.parse().map_err(Fault::internal)?;
            ground.source = DiskSource::Snapshot { snapshot: parsed };
            ground.snapshot_id = Some(snapshot.id);
        }
        VolumeSource::Volume(id) => {
            let origin = own(caller, records::find(&app.store, id).await?, id)?;
            if origin.status != "available" && origin.status != "in-use" {
                return Err(Fault::bad_request(format!(
                    "Invalid volume: Originating volume status must be available or in-use (it is {}).",
                    origin.status
                )));
            }
            ground.least = origin.size;
            ground.bootable = origin.bootable;
            ground.image_metadata = origin.image_metadata;
            ground.kind = Some(origin.type_id);
            let parsed = origin.id.parse().map_err(Fault::internal)?;
            ground.source = DiskSource::Disk { disk: parsed };
            ground.source_volid = Some(origin.id);
        }
    }
    if wanted.gib.is_some_and(|gib| gib < ground.least) {
        return Err(Fault::bad_request(format!(
            "Invalid input received: Volume size {}GB cannot be smaller than its source, {}GB.",
            wanted.gib.unwrap_or(0),
            ground.least
        )));
    }
    Ok(ground)
}

pub(super) fn cut_text(text: &str) -> String {
    cut(text)
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Makes a volume for the caller's project. Asked again with the same id, it is harmless.
pub(super) async fn make(app: &App, caller: &Caller, wanted: Wanted) -> Result<Volume, Fault> {
    let id = wanted.id.hyphenated().to_string();
    if let Some(known) = records::find(&app.store, &id).await? {
        return own(caller, Some(known), &id);
    }
    let project = caller.project_id.clone();
    let project =
        project.ok_or_else(|| Fault::forbidden("This needs a token that is scoped to a project."))?;
    let ground = ground(app, caller, &wanted).await?;
    let name = wanted.kind.as_deref().or(ground.kind.as_deref()).unwrap_or(view::TYPE_ID);
    // A source's type is taken over also where the caller could not ask for it.
    let kind = match &wanted.kind {
        Some(name) => types::named(&app.store, caller, name).await?,
        None => type_rows::get(&app.store, name).await?,
    };
    let kind = kind.ok_or_else(|| {
        Fault::not_found(format!("Volume type with name {} could not be found.", cut(name)))
    })?;
    let gib = match (wanted.gib, &wanted.source) {
        (Some(gib), _) => gib,
        (None, VolumeSource::Snapshot(_) | VolumeSource::Volume(_)) => ground.least,
        (None, VolumeSource::Blank | VolumeSource::Image(_)) => {
            return Err(Fault::bad_request("Invalid input received: 'size' is required."));
        }
    };
    let volume = Volume {
        id,
        project_id: project,
        user_id: caller.user_id.clone(),
        name: wanted.name,
        description: wanted.description,
        size: gib,
        status: "creating".to_owned(),
        bootable: ground.bootable,
        snapshot_id: ground.snapshot_id,
        source_volid: ground.source_volid,
        metadata: wanted.metadata,
        image_metadata: ground.image_metadata,
        type_id: kind.id,
        type_name: Some(kind.name),
        created_at: now(),
        updated_at: now(),
    };
    let (new, source) = (&volume, &ground.source);
    app.store
        .tx(|tx| async move {
            limits::take(&tx, &new.project_id, limits::Kind::Volume, new.size).await?;
            records::insert(&tx, new).await?;
            let first = CreateVolume::Make { volume: new.id.clone(), gib: new.size, source: source.clone() };
            app.tasks.enqueue(&tx, &subject(&new.id), &first).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    app.tasks.wake();
    Ok(volume)
}

pub(super) fn subject(id: &str) -> String {
    format!("volume:{id}")
}

/// Text of an optional field that may be null.
pub(super) fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

pub(super) fn pairs(value: &Value) -> Pairs {
    let map = value.as_object();
    map.into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// A whole number that may come as a string.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("volume");
    let gib = match body.get("size") {
        None | Some(Value::Null) => None,
        Some(size) => Some(whole(size).filter(|gib| *gib > 0 && *gib < 1 << 20).ok_or_else(|| {
            Fault::bad_request(format!(
                "Invalid input received: Volume size '{}' must be an integer and greater than 0 and below 1048576",
                cut(&size.to_string())
            ))
        })?),
    };
    if let Some(zone) = text(body, "availability_zone").filter(|zone| zone != ZONE) {
        return Err(Fault::bad_request(format!("Availability zone '{}' is invalid.", cut(&zone))));
    }
    if body.get("multiattach").is_some_and(|multi| multi == &json!(true)) {
        return Err(Fault::bad_request("Volumes that several servers use at once are not supported."));
    }
    let sources: Vec<VolumeSource> = [
        text(body, "imageRef").or_else(|| text(body, "image_id")).map(VolumeSource::Image),
        text(body, "snapshot_id").map(VolumeSource::Snapshot),
        text(body, "source_volid").map(VolumeSource::Volume),
    ]
    .into_iter()
    .flatten()
    .collect();
    if sources.len() > 1 {
        return Err(Fault::bad_request(
            "Invalid input received: May specify only one of snapshot_id, imageRef or source volume",
        ));
    }
    let wanted = Wanted {
        id: Uuid::new_v4(),
        gib,
        source: sources.into_iter().next().unwrap_or(VolumeSource::Blank),
        name: text(body, "name").or_else(|| text(body, "display_name")),
        description: text(body, "description").or_else(|| text(body, "display_description")),
        metadata: pairs(body.get("metadata").unwrap_or(&Value::Null)),
        kind: text(body, "volume_type"),
    };
    let volume = make(&call.app, &call.caller, wanted).await?;
    Ok(Reply::json(202, json!({"volume": view::volume(&call, &volume, &[])})))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let volume = find(&call).await?;
    let attached = records::attachments_of(&call.app.store, [volume.id.clone()]).await?;
    Ok(Reply::json(200, json!({"volume": view::volume(&call, &volume, &attached)})))
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let mut volume = find(&call).await?;
    let body = call.inner("volume");
    change(body, &mut volume.name, &mut volume.description, &mut volume.metadata);
    let new = &volume;
    call.app.store.tx(|tx| async move { records::update(&tx, new).await }).await?;
    show(call).await
}

/// Takes over name, description and metadata of an update.
pub(super) fn change(
    body: &Value,
    name: &mut Option<String>,
    description: &mut Option<String>,
    metadata: &mut Pairs,
) {
    for key in ["name", "display_name"] {
        if body.get(key).is_some() {
            *name = text(body, key);
        }
    }
    for key in ["description", "display_description"] {
        if body.get(key).is_some() {
            *description = text(body, key);
        }
    }
    if let Some(new) = body.get("metadata").filter(|new| new.is_object()) {
        *metadata = pairs(new);
    }
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let volume = find(&call).await?;
    remove(&call.app, &volume.id, false).await?;
    Ok(Reply::empty(202))
}

/// Asks for a volume's deletion. With `force` its status does not matter.
pub(super) async fn remove(app: &App, id: &str, force: bool) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            let volume = records::find(&tx, id).await?.ok_or_else(|| missing(id))?;
            if volume.status == "deleting" {
                return Ok(());
            }
            let free = ["available", "error", "error_deleting", "error_extending"].contains(&volume.status.as_str());
            let attached = !records::attachments_of(&tx, [volume.id.clone()]).await?.is_empty();
            if attached || (!free && !force) {
                return Err(Fault::bad_request(format!(
                    "Invalid volume: Volume status must be available or error or error_deleting or error_extending and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer. (It is {}.)",
                    volume.status
                )));
            }
            if records::has_snapshots(&tx, id).await? {
                return Err(Fault::bad_request("Invalid volume: Volume still has dependent snapshots. Delete them first."));
            }
            if records::feeds_a_volume(&tx, id).await? {
                return Err(Fault::bad_request("Invalid volume: Another volume is being made from it. Try again when that is done."));
            }
            records::set_status(&tx, id, "deleting").await?;
            let first = DeleteVolume::Forget { volume: id.to_owned() };
            app.tasks.supersede(&tx, &subject(id), &first).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

pub(super) async fn extend(call: &Call<App>, volume: &Volume, new: i64) -> Result<(), Fault> {
    let (app, id) = (&call.app, &volume.id);
    app.store
        .tx(|tx| async move {
            let volume = records::find(&tx, id).await?.ok_or_else(|| missing(id))?;
            if volume.status != "available" {
                return Err(Fault::bad_request(format!(
                    "Invalid volume: Volume {id} status must be 'available' to extend, currently {}.",
                    volume.status
                )));
            }
            if new <= volume.size {
                return Err(Fault::bad_request(format!(
                    "Invalid input received: New size for extend must be greater than current size. (current: {}, extended: {new}).",
                    volume.size
                )));
            }
            limits::take(&tx, &volume.project_id, limits::Kind::Growth, new - volume.size).await?;
            records::set_size(&tx, id, new).await?;
            records::set_status(&tx, id, "extending").await?;
            let first = ExtendVolume::Grow { volume: id.clone(), old: volume.size, new };
            app.tasks.enqueue(&tx, &subject(id), &first).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

/// Changes a volume in one transaction, when it is in one of these statuses.
pub(super) async fn step(tx: &Tx, id: &str, from: &[&str], to: &str) -> Result<(), Fault> {
    let volume = records::find(tx, id).await?.ok_or_else(|| missing(id))?;
    if volume.status == to {
        return Ok(());
    }
    if !from.contains(&volume.status.as_str()) {
        return Err(Fault::bad_request(format!(
            "Invalid volume: Volume status must be {} (it is {}).",
            from.join(" or "),
            volume.status
        )));
    }
    Ok(records::set_status(tx, id, to).await?)
}
