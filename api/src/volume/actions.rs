//! Actions on volumes.

use super::records;
use super::rules::{self, cut_text, find, missing, remove};
use super::tasks::UploadVolume;
use super::{type_rows, view};
use crate::app::App;
use api_kit::time::naive;
use api_kit::{Call, Fault, Outcome, Reply};
use serde_json::{Map, Value, json};

fn truth(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(truth) => Some(*truth),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
            "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
            _ => None,
        },
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

pub(super) async fn extend(call: Call<App>) -> Outcome {
    let volume = find(&call).await?;
    let size = &call.inner("os-extend")["new_size"];
    let size = size.as_i64().or_else(|| size.as_str().and_then(|text| text.parse().ok()));
    let size = size.filter(|gib| *gib > 0 && *gib < 1 << 20).ok_or_else(|| {
        Fault::bad_request("Invalid input received: New volume size must be specified as an integer.")
    })?;
    rules::extend(&call, &volume, size).await?;
    Ok(Reply::empty(202))
}

pub(super) async fn set_bootable(call: Call<App>) -> Outcome {
    let mut volume = find(&call).await?;
    let bootable = truth(call.inner("os-set_bootable").get("bootable"));
    volume.bootable = bootable
        .ok_or_else(|| Fault::bad_request("Invalid input received: bootable must be true or false."))?;
    let new = &volume;
    call.app.store.tx(|tx| async move { records::update(&tx, new).await }).await?;
    Ok(Reply::empty(200))
}

pub(super) async fn reset_status(call: Call<App>) -> Outcome {
    let volume = find(&call).await?;
    let status = call.inner("os-reset_status")["status"].as_str().unwrap_or_default().to_owned();
    let (id, status) = (&volume.id, &status);
    call.app.store.tx(|tx| async move { records::set_status(&tx, id, status).await }).await?;
    Ok(Reply::empty(202))
}

pub(super) async fn force_delete(call: Call<App>) -> Outcome {
    let volume = find(&call).await?;
    remove(&call.app, &volume.id, true).await?;
    Ok(Reply::empty(202))
}

/// Volumes are reserved and freed by the compute service in process; the plain status changes are here for clients that
/// hold a volume for a while.
pub(super) async fn reserve(call: Call<App>) -> Outcome {
    turn(call, &["available"], "attaching").await
}

pub(super) async fn unreserve(call: Call<App>) -> Outcome {
    turn(call, &["attaching"], "available").await
}

async fn turn(call: Call<App>, from: &'static [&'static str], to: &'static str) -> Outcome {
    let volume = find(&call).await?;
    let id = &volume.id;
    call.app.store.tx(|tx| async move { rules::step(&tx, id, from, to).await }).await?;
    Ok(Reply::empty(202))
}

pub(super) async fn upload_image(call: Call<App>) -> Outcome {
    let volume = find(&call).await?;
    let body = call.inner("os-volume_upload_image");
    let forced = truth(body.get("force")).unwrap_or(false);
    let before = volume.status.clone();
    if before != "available" && !(forced && before == "in-use") {
        return Err(Fault::bad_request(format!(
            "Invalid volume: Volume {} status must be available or in-use (with force), but current status is: {before}.",
            volume.id
        )));
    }
    let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let format = text("disk_format").unwrap_or("raw");
    if format != "raw" && format != "qcow2" {
        return Err(Fault::bad_request(format!(
            "Invalid input received: a volume cannot be uploaded as '{}'; ask for raw or qcow2.",
            cut_text(format)
        )));
    }
    let container = text("container_format").unwrap_or("bare");
    if container != "bare" {
        return Err(Fault::bad_request("Invalid input received: the container format must be bare."));
    }
    let visibility = text("visibility").unwrap_or("private");
    if visibility == "public" && !call.caller.is_admin {
        return Err(Fault::not_allowed("volume_extension:volume_actions:upload_public"));
    }
    let name = text("image_name").unwrap_or_default();
    let mut properties: Map<String, Value> = Map::new();
    let inherited = [
        "image_id",
        "image_name",
        "disk_format",
        "container_format",
        "min_disk",
        "min_ram",
        "size",
        "checksum",
    ];
    for (key, value) in &volume.image_metadata {
        if !inherited.contains(&key.as_str()) {
            properties.insert(key.clone(), json!(value));
        }
    }
    properties.insert("disk_format".to_owned(), json!(format));
    properties.insert("min_disk".to_owned(), json!(volume.size));
    properties.insert("visibility".to_owned(), json!(visibility));
    if truth(body.get("protected")) == Some(true) {
        properties.insert("protected".to_owned(), json!(true));
    }
    let image = crate::image::inner::create_snapshot(&call.app, &call.caller, name, properties).await?;
    let (app, id, from, new) = (&call.app, &volume.id, &before, &image);
    let started = app
        .store
        .tx(|tx| async move {
            if !records::advance(&tx, id, from, "uploading").await? {
                let now = records::find(&tx, id).await?.ok_or_else(|| missing(id))?;
                return Err(Fault::conflict(format!("Volume {id} is {} meanwhile. Try again.", now.status)));
            }
            let first = UploadVolume::Fill { volume: id.clone(), image: new.clone(), before: from.clone() };
            app.tasks.enqueue(&tx, &rules::subject(id), &first).await?;
            Ok(())
        })
        .await;
    if let Err(fault) = started {
        crate::image::inner::fail(app, &image).await?;
        return Err(fault);
    }
    app.tasks.wake();
    let kind = type_rows::get(&app.store, &volume.type_id).await?;
    let kind = kind.map(|kind| view::volume_type(&call, &kind));
    Ok(Reply::json(
        202,
        json!({"os-volume_upload_image": {"id": volume.id, "image_id": image, "image_name": name,
            "disk_format": format, "container_format": container, "size": volume.size, "status": "uploading",
            "display_description": volume.description, "volume_type": kind,
            "visibility": visibility, "protected": truth(body.get("protected")).unwrap_or(false),
            "updated_at": naive(&volume.updated_at)}}),
    ))
}
