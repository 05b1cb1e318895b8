//! What the compute service asks of volumes, in process. Everything may be repeated.

pub use super::qos::limits;
use super::records::{self, Attached};
pub use super::rules::VolumeSource;
use super::rules::{self, Wanted, missing};
use super::tasks::{bytes, disk};
use super::{qos, type_rows};
use crate::app::App;
use api_kit::{Caller, Fault};
use base::store::{Query, StoreError, Tx};
use base::task::Stop;
use uuid::Uuid;
use wire::block::{DiskSource, EnsureDisk};
use wire::host::DiskSpec;
use wire::ids::ServerId;
use wire::machine::Limits;

/// A volume as a server gets it.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Id of the attachment.
    pub id: String,
    /// The volume.
    pub volume_id: String,
    /// The disk for the machine; its key is the volume's id and its serial the beginning of it.
    pub disk: DiskSpec,
    /// Whether it holds a system.
    pub bootable: bool,
    /// Its size.
    pub size_gib: u64,
}

/// A volume as its status goes.
#[derive(Debug, Clone)]
pub struct VolumeFacts {
    /// `available`, `in-use`, ...
    pub status: String,
    /// Its size.
    pub size_gib: u64,
    /// Whether it holds a system.
    pub bootable: bool,
    /// Properties of the image that it was made of, `image_id` among them.
    pub image_metadata: std::collections::BTreeMap<String, String>,
}

/// Reserves a volume of the caller's for a server. Asked again for the same server, it answers the same attachment.
///
/// # Errors
/// 404 when the caller has no such volume, 400 when it is not available.
pub async fn reserve(app: &App, caller: &Caller, volume_id: &str, server: ServerId) -> Result<String, Fault> {
    let server = server.to_string();
    let server = &server;
    app.store
        .tx(|tx| async move {
            let volume = rules::own(caller, records::find(&tx, volume_id).await?, volume_id)?;
            let known = records::attachments_of(&tx, [volume.id.clone()]).await?;
            // Whatever the status says (an administrator may have set it): a volume that somebody holds is not free.
            if let Some(known) = known.into_iter().next() {
                if known.server_id == *server {
                    return Ok(known.id);
                }
                return Err(Fault::bad_request(format!(
                    "Invalid volume: volume {volume_id} is held by server {}. Detach it there first.",
                    known.server_id
                )));
            }
            if volume.status != "available" {
                return Err(Fault::bad_request(format!(
                    "Invalid volume: volume {volume_id} status must be available or downloading to reserve, but the current status is {}.",
                    volume.status
                )));
            }
            let new = Attached {
                id: Uuid::new_v4().hyphenated().to_string(),
                project_id: volume.project_id.clone(),
                volume_id: volume.id.clone(),
                server_id: server.clone(),
                status: "reserved".to_owned(),
                mountpoint: None,
                host: None,
                attached_at: None,
            };
            records::insert_attachment(&tx, &new).await?;
            records::set_status(&tx, &volume.id, "reserved").await?;
            Ok(new.id)
        })
        .await
}

async fn attachment(app: &App, id: &str) -> Result<Attached, Fault> {
    let found = records::find_attachment(&app.store, id).await?;
    found.ok_or_else(|| Fault::not_found(format!("Volume attachment {id} could not be found.")))
}

/// The volume's file for the machine.
///
/// # Errors
/// 404 when the attachment is gone; 503 when the storage daemon does not answer.
pub async fn export(app: &App, attachment_id: &str) -> Result<Attachment, Fault> {
    let found = attachment(app, attachment_id).await?;
    let volume = records::find(&app.store, &found.volume_id).await?;
    let volume = volume.ok_or_else(|| missing(&found.volume_id))?;
    let id = disk(&volume.id).map_err(|stop: Stop| Fault::internal(stop))?;
    let call = EnsureDisk { id, bytes: bytes(volume.size), source: DiskSource::Blank };
    let file = app.block.call(&call).await?;
    let specs = type_rows::qos_of(&app.store, &volume.type_id).await?;
    let specs = specs.and_then(|specs| qos::front_end(&specs, volume.size));
    Ok(Attachment {
        id: found.id,
        disk: DiskSpec {
            key: volume.id.clone(),
            path: file.path,
            read_only: false,
            // A virtio serial has 20 bytes; upstream's is the id cut to that.
            serial: volume.id.chars().take(20).collect(),
            limits: specs.as_ref().map_or_else(Limits::default, qos::of_specs),
        },
        bootable: volume.bootable,
        size_gib: u64::try_from(volume.size).unwrap_or(0),
        volume_id: volume.id,
    })
}

/// The machine has it: the volume is in use.
///
/// # Errors
/// 404 when the attachment is gone.
pub async fn complete(app: &App, attachment_id: &str, device: &str, host: &str) -> Result<(), Fault> {
    let found = attachment(app, attachment_id).await?;
    let volume = &found.volume_id;
    app.store
        .tx(|tx| async move {
            records::complete_attachment(&tx, attachment_id, device, host).await?;
            records::set_status(&tx, volume, "in-use").await
        })
        .await?;
    Ok(())
}

/// The machine is about to let go of it.
///
/// # Errors
/// 404 when the attachment is gone.
pub async fn begin_detach(app: &App, attachment_id: &str) -> Result<(), Fault> {
    let found = attachment(app, attachment_id).await?;
    let volume = &found.volume_id;
    app.store
        .tx(|tx| async move {
            records::set_attachment_status(&tx, attachment_id, "detaching").await?;
            records::set_status(&tx, volume, "detaching").await
        })
        .await?;
    Ok(())
}

/// The volume is free again; harmless when the attachment is gone.
///
/// # Errors
/// When the database does not answer.
pub async fn release(app: &App, attachment_id: &str) -> Result<(), Fault> {
    app.store.tx(|tx| async move { release_in(&tx, attachment_id).await }).await
}

/// [`release`] in the caller's transaction.
pub(super) async fn release_in(tx: &Tx, attachment_id: &str) -> Result<(), Fault> {
    let Some(found) = records::find_attachment(tx, attachment_id).await? else { return Ok(()) };
    records::delete_attachment(tx, attachment_id).await?;
    for from in ["reserved", "attaching", "in-use", "detaching"] {
        if records::advance(tx, &found.volume_id, from, "available").await? {
            break;
        }
    }
    Ok(())
}

/// Makes a volume for a server (boot from volume). `id` is the caller's choice, so that a repeated step finds the first.
///
/// # Errors
/// 400 when the source does not fit, 413 over quota.
pub async fn create_for_server(
    app: &App,
    caller: &Caller,
    id: Uuid,
    size_gib: Option<u64>,
    source: VolumeSource,
    name: &str,
) -> Result<String, Fault> {
    let gib = size_gib.map(|gib| i64::try_from(gib).unwrap_or(i64::MAX));
    let wanted = Wanted {
        id,
        gib,
        source,
        name: Some(name.to_owned()).filter(|name| !name.is_empty()),
        description: None,
        metadata: records::Pairs::new(),
        kind: None,
    };
    Ok(rules::make(app, caller, wanted).await?.id)
}

/// The volume's status.
///
/// # Errors
/// 404 when it is gone.
pub async fn status(app: &App, volume_id: &str) -> Result<String, Fault> {
    let found = records::find(&app.store, volume_id).await?;
    Ok(found.ok_or_else(|| missing(volume_id))?.status)
}

/// A volume of the caller's.
///
/// # Errors
/// 404 when the caller has no such volume.
pub async fn facts(app: &App, caller: &Caller, volume_id: &str) -> Result<VolumeFacts, Fault> {
    let volume = rules::own(caller, records::find(&app.store, volume_id).await?, volume_id)?;
    Ok(VolumeFacts {
        status: volume.status,
        size_gib: u64::try_from(volume.size).unwrap_or(0),
        bootable: volume.bootable,
        image_metadata: volume.image_metadata,
    })
}

/// Asks for a volume's deletion; harmless when it is gone.
///
/// # Errors
/// 400 when it is attached or has snapshots.
pub async fn delete(app: &App, volume_id: &str) -> Result<(), Fault> {
    match rules::remove(app, volume_id, true).await {
        Err(fault) if fault.status == 404 => Ok(()),
        done => done,
    }
}

/// Ids of all volumes and snapshots, which are also those of their disks and reflinks, made or yet to be made.
///
/// # Errors
/// When the database does not answer.
pub async fn named(query: &impl Query) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT id FROM volume_volumes UNION ALL SELECT id FROM volume_snapshots";
    query.rows(sql, base::args![]).await?.iter().map(|row| row.text("id")).collect()
}
