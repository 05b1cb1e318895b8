//! Snapshots of volumes.

use super::records::{self, Snapshot};
use super::rules::{self, cut_text, missing, pairs, text};
use super::tasks::{CreateSnapshot, DeleteSnapshot};
use super::{limits, view};
use crate::app::App;
use api_kit::time::now;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use serde_json::{Value, json};
use uuid::Uuid;

fn gone(id: &str) -> Fault {
    Fault::not_found(format!("Snapshot {} could not be found.", cut_text(id)))
}

fn subject(id: &str) -> String {
    format!("snapshot:{id}")
}

pub(super) async fn find(call: &Call<App>) -> Result<Snapshot, Fault> {
    let id = call.path("snapshot_id");
    let found = records::find_snapshot(&call.app.store, id).await?.ok_or_else(|| gone(id))?;
    if !call.caller.is_admin && call.caller.project_id.as_deref() != Some(&found.project_id) {
        return Err(gone(id));
    }
    call.enforce(&Target::project(&found.project_id))?;
    Ok(found)
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("snapshot");
    let id = text(body, "volume_id").unwrap_or_default();
    let volume = rules::own(&call.caller, records::find(&call.app.store, &id).await?, &id)?;
    call.enforce(&Target::project(&volume.project_id))?;
    let forced = body.get("force").is_some_and(|force| {
        force == &json!(true) || force.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"))
    });
    let snapshot = Snapshot {
        id: Uuid::new_v4().hyphenated().to_string(),
        project_id: volume.project_id.clone(),
        user_id: call.caller.user_id.clone(),
        volume_id: volume.id.clone(),
        name: text(body, "name"),
        description: text(body, "description"),
        size: volume.size,
        status: "creating".to_owned(),
        metadata: pairs(body.get("metadata").unwrap_or(&Value::Null)),
        created_at: now(),
        updated_at: now(),
    };
    let (new, app) = (&snapshot, &call.app);
    app.store
        .tx(|tx| async move {
            // Read again: what counts is how it stands now.
            let volume = records::find(&tx, &new.volume_id).await?.ok_or_else(|| missing(&new.volume_id))?;
            let fits = volume.status == "available" || (forced && volume.status == "in-use");
            if !fits {
                return Err(Fault::bad_request(format!(
                    "Invalid volume: Volume {} status must be available{}, but current status is: {}.",
                    volume.id,
                    if forced { " or in-use" } else { " (or in-use with force)" },
                    volume.status
                )));
            }
            limits::take(&tx, &new.project_id, limits::Kind::Snapshot, new.size).await?;
            records::insert_snapshot(&tx, new).await?;
            let first = CreateSnapshot::Take { snapshot: new.id.clone(), volume: new.volume_id.clone() };
            app.tasks.enqueue(&tx, &subject(&new.id), &first).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    app.tasks.wake();
    Ok(Reply::json(202, json!({"snapshot": view::snapshot(&call, &snapshot, false)})))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let snapshot = find(&call).await?;
    Ok(Reply::json(200, json!({"snapshot": view::snapshot(&call, &snapshot, true)})))
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let mut snapshot = find(&call).await?;
    rules::change(
        call.inner("snapshot"),
        &mut snapshot.name,
        &mut snapshot.description,
        &mut snapshot.metadata,
    );
    let new = &snapshot;
    call.app.store.tx(|tx| async move { records::update_snapshot(&tx, new).await }).await?;
    Ok(Reply::json(200, json!({"snapshot": view::snapshot(&call, &snapshot, false)})))
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let snapshot = find(&call).await?;
    let (id, app) = (&snapshot.id, &call.app);
    app.store
        .tx(|tx| async move {
            let snapshot = records::find_snapshot(&tx, id).await?.ok_or_else(|| gone(id))?;
            if snapshot.status == "deleting" {
                return Ok(());
            }
            if !["available", "error", "error_deleting"].contains(&snapshot.status.as_str()) {
                return Err(Fault::bad_request(format!(
                    "Invalid snapshot: Snapshot status must be available or error (it is {}).",
                    snapshot.status
                )));
            }
            if records::feeds_a_volume(&tx, id).await? {
                return Err(Fault::bad_request(
                    "Invalid snapshot: A volume is being made from it. Try again when that is done.",
                ));
            }
            records::set_snapshot_status(&tx, id, "deleting").await?;
            let first = DeleteSnapshot::Forget { snapshot: id.clone() };
            app.tasks.supersede(&tx, &subject(id), &first).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    app.tasks.wake();
    Ok(Reply::empty(202))
}
