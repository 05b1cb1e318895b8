//! The attachments API. Attaching itself goes through the compute service, which shares the storage pool.

use super::records;
use super::rules::cut_text;
use super::{inner, listing, qos, type_rows, view};
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::store::Where;
use serde_json::json;
use wire::ids::ServerId;

async fn find(call: &Call<App>) -> Result<records::Attached, Fault> {
    let id = call.path("attachment_id");
    let gone = || {
        Fault::not_found(format!(
            "Volume attachment could not be found with filter: attachment_id = {}.",
            cut_text(id)
        ))
    };
    let found = records::find_attachment(&call.app.store, id).await?.ok_or_else(gone)?;
    if !call.caller.is_admin && call.caller.project_id.as_deref() != Some(&found.project_id) {
        return Err(gone());
    }
    call.enforce(&Target::project(&found.project_id))?;
    Ok(found)
}

pub(super) async fn list(call: Call<App>) -> Outcome {
    all(&call, false).await
}

pub(super) async fn detail(call: Call<App>) -> Outcome {
    all(&call, true).await
}

async fn all(call: &Call<App>, full: bool) -> Outcome {
    let mut select = Where::new("SELECT * FROM volume_attachments");
    listing::scope(call, &mut select)?;
    for (name, column) in
        [("volume_id", "volume_id = ?"), ("instance_id", "server_id = ?"), ("status", "status = ?")]
    {
        if let Some(value) = call.query.get(name) {
            select.and(column, [value.into()]);
        }
    }
    select.end("ORDER BY created_at, id LIMIT ?", [1000.into()]);
    let rows = records::attachments(&call.app.store, select).await?;
    let items: Vec<_> = rows.iter().map(|one| view::attachment(one, None, full)).collect();
    Ok(Reply::json(200, json!({"attachments": items})))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let found = find(&call).await?;
    let specs = specs(&call, &found).await?;
    Ok(Reply::json(200, json!({"attachment": view::attachment(&found, specs.as_ref(), true)})))
}

/// What the machine enforces of the QoS specs of an attached volume.
async fn specs(call: &Call<App>, of: &records::Attached) -> Result<Option<records::Pairs>, Fault> {
    let Some(volume) = records::find(&call.app.store, &of.volume_id).await? else { return Ok(None) };
    let specs = type_rows::qos_of(&call.app.store, &volume.type_id).await?;
    Ok(specs.and_then(|specs| qos::front_end(&specs, volume.size)))
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    let body = call.inner("attachment");
    if body.get("connector").is_some_and(|connector| connector.as_object().is_some_and(|map| !map.is_empty()))
    {
        return Err(Fault::bad_request(
            "Volumes of this cloud cannot be connected to from outside; attach them to a server with the compute service.",
        ));
    }
    let text = |name: &str| body.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    let server: ServerId = text("instance_uuid")
        .parse()
        .map_err(|_| Fault::bad_request("Invalid input received: instance_uuid must be a UUID."))?;
    let id = inner::reserve(&call.app, &call.caller, text("volume_uuid"), server).await?;
    let found = records::find_attachment(&call.app.store, &id).await?;
    let found = found.ok_or_else(|| Fault::conflict("The attachment went away at once."))?;
    Ok(Reply::json(200, json!({"attachment": view::attachment(&found, None, true)})))
}

/// Gives a reservation up, unless a server has the volume or is getting it: its guest would keep a disk that is free for
/// others (CVE-2023-2088). Upstream lets the compute service's own token pass; here compute asks in process, so that
/// nobody who comes through this door acts for it. In one transaction with compute's own rows, since it writes them
/// before it reserves.
pub(super) async fn delete(call: Call<App>) -> Outcome {
    let found = &find(&call).await?;
    call.app
        .store
        .tx(|tx| async move {
            // A server that cannot exist uses nothing.
            if let Ok(server) = found.server_id.parse::<ServerId>()
                && crate::compute::inner::uses_volume(&tx, server, &found.volume_id).await?
            {
                return Err(Fault::conflict(format!(
                    "Detach volume from instance {server} using the Compute API"
                )));
            }
            inner::release_in(&tx, &found.id).await
        })
        .await?;
    Ok(Reply::json(200, json!({"attachments": []})))
}
