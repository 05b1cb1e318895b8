//! Shelve and unshelve.

use super::{busy, check, reread};
use crate::app::App;
use crate::compute::neighbours::image;
use crate::compute::records::servers::{self, Server};
use crate::compute::state::Vm;
use crate::compute::tasks::{self, Shelf, ShelveServer, UnshelveServer};
use api_kit::{Call, Caller, Fault};
use serde_json::{Map, Value, json};
use wire::ids::{ServerId, SnapshotId};

/// States that a server may be shelved in.
const SHELVED_FROM: &[Vm] = &[Vm::Active, Vm::Stopped, Vm::Paused, Vm::Suspended];

/// Makes an image of a server's disk and frees its place on the host.
///
/// # Errors
/// 404, 409 by state.
pub async fn shelve(call: &Call<App>, server: &Server) -> Result<(), Fault> {
    let (app, id) = (&call.app, server.id);
    let state = super::state_of(&app.store, server).await?;
    check(server, state, "shelve", SHELVED_FROM, &call.caller)?;
    let image = match &server.body.disks.root {
        None => None,
        Some(_) => {
            let mut properties: Map<String, Value> = Map::new();
            properties.extend(server.body.image.iter().flat_map(|image| image.properties.clone()));
            properties.insert("instance_uuid".to_owned(), json!(id));
            properties.insert("image_type".to_owned(), json!("snapshot"));
            let name = format!("{}-shelved", server.name);
            Some(image::create_snapshot(app, &super::caller_of(server), &name, properties).await?)
        }
    };
    let made = &image;
    let caller = &*call.caller;
    let written = app
        .store
        .tx(|tx| async move {
            let (mut server, state) = reread(&tx, id).await?;
            check(&server, state, "shelve", SHELVED_FROM, caller)?;
            if server.launched_at.is_none() {
                return Err(Fault::conflict(format!("Cannot 'shelve' instance {id} before it has started")));
            }
            server.body.fault = None;
            servers::put(&tx, &server).await?;
            let ran = state.vm == Vm::Active;
            let shelf = Shelf { server: id, ran, image: made.clone(), snapshot: SnapshotId::new() };
            let first = ShelveServer::Halt { shelf };
            app.tasks
                .enqueue(&tx, &tasks::subject(id), &first)
                .await
                .map_err(|error| busy(error, "shelve", id))?;
            Ok(())
        })
        .await;
    if let Err(fault) = written {
        if let Some(image) = &image {
            image::fail(app, image).await?;
        }
        return Err(fault);
    }
    app.tasks.wake();
    Ok(())
}

/// Brings a shelved server back.
///
/// # Errors
/// 404, 409 by state.
pub async fn unshelve(app: &App, caller: &Caller, id: ServerId) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            let (server, state) = reread(&tx, id).await?;
            check(&server, state, "unshelve", &[Vm::Offloaded], caller)?;
            let first = UnshelveServer::Place { server: id };
            app.tasks
                .enqueue(&tx, &tasks::subject(id), &first)
                .await
                .map_err(|error| busy(error, "unshelve", id))
        })
        .await?;
    app.tasks.wake();
    Ok(())
}
