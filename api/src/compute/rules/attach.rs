//! Volumes of servers.
//!
//! The volume service is asked before the answer, so that the user hears its refusal. The row in `reserving` is written
//! first: when the request dies in between, the reconciler finds it and gives the volume back.

use super::create::free_device;
use super::{busy, caller_of, check, reread};
use crate::app::App;
use crate::compute::neighbours::volume;
use crate::compute::records::attachments::{self, Attachment, State};
use crate::compute::records::servers;
use crate::compute::state::Vm;
use crate::compute::tasks::{self, AttachVolume, DetachVolume};
use api_kit::{Caller, Fault};
use wire::ids::ServerId;

/// Most volumes of one server: what the machine has slots for beside its other devices.
const MOST: usize = 20;

/// What a user asked to attach.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Which volume.
    pub volume_id: String,
    /// Device name that the user would like to see.
    pub device: Option<String>,
    /// Device tag.
    pub tag: Option<String>,
    /// Whether it goes with the server.
    pub delete_on_termination: bool,
}

/// Attaches a volume.
///
/// # Errors
/// 404, 409 by state, and what the volume service refuses.
pub async fn attach(app: &App, caller: &Caller, id: ServerId, wanted: &Wanted) -> Result<Attachment, Fault> {
    let mut row = app
        .store
        .tx(|tx| async move {
            let (server, state) = reread(&tx, id).await?;
            check(&server, state, "attach_volume", &[Vm::Active, Vm::Paused, Vm::Stopped, Vm::Resized], caller)?;
            let others = attachments::of_server(&tx, id).await?;
            if others.iter().any(|it| it.volume_id == wanted.volume_id) {
                return Err(Fault::bad_request(format!(
                    "Invalid volume: volume {} already attached",
                    wanted.volume_id
                )));
            }
            if others.len() >= MOST {
                return Err(Fault::forbidden(format!(
                    "The maximum allowed number of disk devices ({MOST}) to attach to a single instance has been exceeded."
                )));
            }
            let taken: Vec<String> = others.iter().map(|it| it.body.device.clone()).collect();
            let device = match &wanted.device {
                Some(device) if !taken.contains(device) => device.clone(),
                _ => free_device(&server, &taken),
            };
            let it = Attachment {
                id: uuid::Uuid::new_v4().to_string(),
                server: id,
                volume_id: wanted.volume_id.clone(),
                state: State::Reserving,
                position: others.last().map_or(100, |last| last.position.max(99) + 1),
                created_at: api_kit::time::now(),
                body: attachments::Body {
                    device,
                    tag: wanted.tag.clone(),
                    delete_on_termination: wanted.delete_on_termination,
                    ..attachments::Body::default()
                },
            };
            attachments::put(&tx, &it).await?;
            Ok(it)
        })
        .await?;
    let reserved = volume::reserve(app, caller, &wanted.volume_id, id).await;
    let row_id = row.id.clone();
    let attachment_id = match reserved {
        Ok(attachment_id) => attachment_id,
        Err(fault) => {
            let id = row_id.as_str();
            app.store.tx(|tx| async move { attachments::delete(&tx, id).await }).await?;
            return Err(match fault.status.as_u16() {
                409 => Fault::bad_request(format!("Invalid volume: {}", fault.message)),
                _ => fault,
            });
        }
    };
    row.body.attachment_id = Some(attachment_id);
    row.state = State::Attaching;
    let (subject, first) =
        (tasks::attachment_subject(&row.id), AttachVolume::Export { attachment: row.id.clone() });
    let (row_now, subject, first) = (&row, &subject, &first);
    let written = app
        .store
        .tx(|tx| async move {
            // A server deleted meanwhile took the row along.
            reread(&tx, id).await?;
            attachments::put(&tx, row_now).await?;
            app.tasks.enqueue(&tx, subject, first).await.map_err(|error| busy(error, "attach_volume", id))?;
            Ok::<_, Fault>(())
        })
        .await;
    if let Err(fault) = written {
        // The server went meanwhile, and its row with it: nobody else knows of the reservation.
        volume::release(app, row.body.attachment_id.as_deref().unwrap_or_default()).await?;
        return Err(fault);
    }
    app.tasks.wake();
    Ok(row)
}

/// Detaches a volume.
///
/// # Errors
/// 404 when the server does not have it, 400 for the boot volume, 409 by state.
pub async fn detach(app: &App, caller: &Caller, id: ServerId, volume_id: &str) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            let (server, state) = reread(&tx, id).await?;
            let found = attachments::of_volume(&tx, id, volume_id).await?;
            let mut it =
                found.filter(|it| it.state != State::Reserving).ok_or_else(|| no_attachment(volume_id))?;
            check(
                &server,
                state,
                "detach_volume",
                &[Vm::Active, Vm::Paused, Vm::Stopped, Vm::Resized],
                caller,
            )?;
            if it.body.boot {
                return Err(Fault::forbidden("Cannot detach a root device volume"));
            }
            if it.state != State::Attached {
                return Err(Fault::conflict(format!(
                    "Invalid volume: volume {volume_id} is still {}; try again when that is done",
                    it.state.as_str()
                )));
            }
            it.state = State::Detaching;
            attachments::put(&tx, &it).await?;
            let first = DetachVolume::Begin { attachment: it.id.clone() };
            let subject = tasks::attachment_subject(&it.id);
            app.tasks
                .enqueue(&tx, &subject, &first)
                .await
                .map_err(|error| busy(error, "detach_volume", id))?;
            Ok(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

/// 404 in nova's words.
#[must_use]
pub fn no_attachment(volume_id: &str) -> Fault {
    let id: String = volume_id.chars().take(64).collect();
    Fault::not_found(format!("volume_id not found: {id}"))
}

/// Gives back a volume that may or may not be reserved for a server. Reserving is repeatable, so that asking again tells.
///
/// # Errors
/// When a database or the volume service does not answer.
pub async fn unreserve(app: &App, it: &Attachment) -> Result<(), Fault> {
    if let Some(id) = &it.body.attachment_id {
        return volume::release(app, id).await;
    }
    let Some(server) = servers::get(&app.store, it.server).await? else { return Ok(()) };
    match volume::reserve(app, &caller_of(&server), &it.volume_id, it.server).await {
        Ok(id) => volume::release(app, &id).await,
        // Somebody else's, or gone: it is not reserved for this server.
        Err(fault) if fault.status.is_client_error() => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Takes a volume from a server whose machine is gone: gives it back, deletes it when it goes with the server, and forgets
/// that the server had it. Harmless to repeat.
///
/// # Errors
/// When a database or the volume service does not answer.
pub async fn let_go(app: &App, it: &Attachment) -> Result<(), Fault> {
    unreserve(app, it).await?;
    if it.body.delete_on_termination {
        match volume::delete(app, &it.volume_id).await {
            // It has snapshots, or feeds another volume: it stays its project's, as upstream leaves it.
            Err(fault) if fault.status.is_client_error() => {
                tracing::warn!(volume = it.volume_id, server = %it.server, %fault, "a volume outlives its server");
            }
            done => done?,
        }
    }
    let id = it.id.as_str();
    app.store.tx(|tx| async move { attachments::delete(&tx, id).await }).await?;
    Ok(())
}

/// Gives back volumes whose request died between the reservation and the task.
///
/// # Errors
/// When a database or the volume service does not answer.
pub async fn forget_reservations(app: &App, before: &str) -> Result<(), Fault> {
    for it in attachments::forgotten(&app.store, before).await? {
        unreserve(app, &it).await?;
        let id = it.id.as_str();
        app.store.tx(|tx| async move { attachments::delete(&tx, id).await }).await?;
    }
    Ok(())
}
