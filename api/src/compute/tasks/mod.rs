//! Long work on servers. Every step may run twice, and every step's undo may find that it never ran.

mod create;
mod delete;
mod image;
mod interface;
mod power;
mod remake;
mod shelve;
mod volume;

pub use create::{CreateServer, net_request};
pub use delete::DeleteServer;
pub use image::SnapshotServer;
pub use interface::{AttachInterface, DetachInterface};
pub use power::{Act, PowerServer};
pub use remake::{ConfirmResize, Plan, Remake, What};
pub use shelve::{Shelf, ShelveServer, UnshelveServer};
pub use volume::{AttachVolume, DetachVolume};

use super::records::attachments;
use super::records::servers::{self, Lifecycle, Server};
use super::spec;
use crate::app::App;
use api_kit::Fault;
use base::store::StoreError;
use base::task::{Stop, Workers};
use std::time::Duration;
use wire::host::Observed;
use wire::ids::ServerId;
use wire::{Generation, RefusedKind};

/// How long one step waits for the host before it lets others look at the task again.
const HOST_WAIT_MS: u64 = 5_000;
/// Limit of a call that may convert a whole image.
pub(super) const DISK_LIMIT: Duration = Duration::from_secs(1_800);

/// Registers every kind of task of this service.
#[must_use]
pub fn register(workers: Workers<App>) -> Workers<App> {
    workers
        .register::<CreateServer>()
        .register::<DeleteServer>()
        .register::<PowerServer>()
        .register::<SnapshotServer>()
        .register::<Remake>()
        .register::<ConfirmResize>()
        .register::<ShelveServer>()
        .register::<UnshelveServer>()
        .register::<AttachVolume>()
        .register::<DetachVolume>()
        .register::<AttachInterface>()
        .register::<DetachInterface>()
}

/// How subjects of tasks that change a server as a whole begin.
pub const SUBJECT: &str = "server:";

/// Subject of tasks that change a server as a whole.
#[must_use]
pub fn subject(server: ServerId) -> String {
    format!("{SUBJECT}{server}")
}

/// Subject of tasks on one attachment; several of a server may go on at once.
#[must_use]
pub fn attachment_subject(attachment: &str) -> String {
    format!("attachment:{attachment}")
}

/// Subject of tasks on one interface.
#[must_use]
pub fn interface_subject(port: wire::ids::PortId) -> String {
    format!("interface:{port}")
}

/// A neighbour's refusal as a step sees it: what may pass is repeated.
pub(super) fn stop(fault: Fault) -> Stop {
    if fault.status.is_server_error() { Stop::Retry(fault.to_string()) } else { Stop::Fail(fault.message) }
}

/// The server of a step.
pub(super) async fn load(app: &App, id: ServerId) -> Result<Server, Stop> {
    let server = servers::get(&app.store, id).await?;
    server.ok_or_else(|| Stop::Fail("the server is gone".to_owned()))
}

/// The server of a step that makes no sense any more once it is being deleted.
pub(super) async fn load_living(app: &App, id: ServerId) -> Result<Server, Stop> {
    let server = load(app, id).await?;
    match server.lifecycle {
        Lifecycle::Deleting => Err(Stop::Fail("the server is being deleted".to_owned())),
        Lifecycle::Building | Lifecycle::Ready | Lifecycle::Failed => Ok(server),
    }
}

/// Changes the server's row in a transaction of its own.
pub(super) async fn change<F>(app: &App, id: ServerId, how: F) -> Result<(), StoreError>
where
    F: Fn(&mut Server) + Send + Sync,
{
    let how = &how;
    app.store.tx(|tx| async move { servers::change(&tx, id, how).await }).await?;
    Ok(())
}

/// What became of a wanted state.
pub(super) enum Applied {
    /// Not settled yet, or overtaken: look again.
    Waiting,
    /// The host has it.
    Reached(Observed),
    /// The host could not.
    Failed(String),
}

/// Asks the host for what the rows say, and waits a little for it.
pub(super) async fn apply(app: &App, id: ServerId) -> Result<Applied, Stop> {
    // One transaction, so that the generation belongs to just these disks.
    let (server, attached) = app
        .store
        .tx(|tx| async move {
            let server = servers::get(&tx, id).await?;
            Ok::<_, StoreError>((server, attachments::of_server(&tx, id).await?))
        })
        .await?;
    let server = server.ok_or_else(|| Stop::Fail("the server is gone".to_owned()))?;
    let mut call = spec::ensure(&server, &attached);
    call.wait_ms = HOST_WAIT_MS;
    match app.host.call_within(&call, Duration::from_millis(HOST_WAIT_MS + 30_000)).await {
        Ok(observed) if observed.settled < call.generation => Ok(Applied::Waiting),
        Ok(observed) => {
            record(app, &observed).await?;
            match &observed.fault {
                Some(fault) => Ok(Applied::Failed(fault.clone())),
                None => Ok(Applied::Reached(observed)),
            }
        }
        // Somebody asked for something newer; with the next look this is part of it.
        Err(refused) if refused.kind == RefusedKind::Stale => Ok(Applied::Waiting),
        Err(refused) => Err(refused.into()),
    }
}

/// Stores what the host says, unless the row has moved on.
pub(super) async fn record(app: &App, observed: &Observed) -> Result<(), StoreError> {
    change(app, observed.id, |server| {
        if observed.settled >= Generation(u64::try_from(server.generation).unwrap_or_default()) {
            server.observed = observed.power.into();
            server.body.hypervisor.clone_from(&observed.hypervisor);
        }
    })
    .await
}
