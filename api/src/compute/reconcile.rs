//! Closes the gap between what hosts do and what the rows say. Takes no input: it reads both and acts.

use super::records::servers::{self, Lifecycle, Seen, Server, Wanted};
use super::records::shape::Mode;
use super::rules::attach;
use super::tasks::{self, DeleteServer};
use super::{records, spec};
use crate::app::App;
use api_kit::Fault;
use base::store::StoreError;
use base::task::Tasks;
use std::collections::{BTreeMap, BTreeSet};
use wire::Generation;
use wire::host::{ForgetServer, ListServers, Observed};
use wire::ids::ServerId;

/// Age at which a reservation without a task is taken for forgotten, in seconds.
const FORGOTTEN_SECS: i64 = 120;
/// Pause between tries to delete a server that could not be deleted, in seconds.
const DELETE_AGAIN_SECS: i64 = 60;

fn ago(secs: i64) -> String {
    let now = jiff::Timestamp::now();
    now.checked_sub(jiff::SignedDuration::from_secs(secs)).map(api_kit::time::stored).unwrap_or_default()
}

/// One run.
///
/// # Errors
/// When the host or the database does not answer.
pub async fn settle(app: &App) -> Result<(), Fault> {
    let listed = app.host.call(&ListServers {}).await?;
    // Rows after the host: a server that is made in between is in both or in neither.
    let rows = servers::all(&app.store).await?;
    let subjects: Vec<String> = rows.iter().map(|row| tasks::subject(row.id)).collect();
    let busy: BTreeSet<String> =
        Tasks::live_of(&app.store, &subjects).await?.into_iter().map(|task| task.subject).collect();
    let known: BTreeMap<ServerId, &Observed> = listed.iter().map(|it| (it.id, it)).collect();
    // One server's trouble is not the others': the round goes on and reports the first one at its end.
    let mut trouble = Ok(());
    for row in rows.iter().filter(|row| !busy.contains(&tasks::subject(row.id))) {
        let done = match row.lifecycle {
            // Nothing of it is on a host, and nothing is to be.
            Lifecycle::Ready if row.mode == Mode::Offloaded => Ok(()),
            Lifecycle::Ready => ready(app, row, known.get(&row.id).copied()).await,
            Lifecycle::Deleting if row.updated_at < ago(DELETE_AGAIN_SECS) => delete_again(app, row).await,
            Lifecycle::Deleting | Lifecycle::Building | Lifecycle::Failed => Ok(()),
        };
        trouble = trouble.and(done);
    }
    let ours: BTreeSet<ServerId> = rows.iter().map(|row| row.id).collect();
    for id in known.keys().filter(|id| !ours.contains(id)) {
        // Read again: it may have been made since.
        if servers::get(&app.store, *id).await?.is_none() {
            tracing::warn!(server = %id, "the host runs a server that nobody knows; it is to be ended");
            let by = app.cloud.unknown(&app.store).await?;
            trouble = trouble.and(app.host.call(&ForgetServer { id: *id, by }).await.map_err(Fault::from));
        }
    }
    attach::forget_reservations(app, &ago(FORGOTTEN_SECS)).await?;
    trouble
}

async fn delete_again(app: &App, row: &Server) -> Result<(), Fault> {
    let id = row.id;
    app.store
        .tx(|tx| async move {
            servers::put(&tx, row).await?;
            app.tasks.supersede(&tx, &tasks::subject(id), &DeleteServer::Halt { server: id }).await
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

/// A server that nothing works on: what the host sees becomes what users see, and what the host does not know it is told.
async fn ready(app: &App, row: &Server, seen: Option<&Observed>) -> Result<(), Fault> {
    let wanted = Generation(u64::try_from(row.generation).unwrap_or_default());
    let Some(seen) = seen.filter(|seen| seen.wanted >= wanted) else {
        // The host lost its memory, or never heard of the latest change.
        return ensure(app, row.id).await;
    };
    if seen.settled < wanted {
        return Ok(());
    }
    let now = Seen::from(seen.power);
    // A guest that shut itself down is meant to be off from now on: the host must not start it by itself again.
    let off = now == Seen::Off && row.power != Wanted::Off;
    if now == row.observed && !off {
        return Ok(());
    }
    let (id, generation) = (row.id, row.generation);
    let changed = app
        .store
        .tx(|tx| async move {
            // Not when somebody began to work on it meanwhile.
            if Tasks::live(&tx, &tasks::subject(id)).await?.is_some() {
                return Ok(false);
            }
            let mut changed = false;
            servers::change(&tx, id, |server| {
                if server.generation == generation {
                    server.observed = now;
                    if off {
                        server.power = Wanted::Off;
                        server.generation += 1;
                    }
                    changed = true;
                }
            })
            .await?;
            Ok::<_, StoreError>(changed)
        })
        .await?;
    if changed && off { ensure(app, id).await } else { Ok(()) }
}

async fn ensure(app: &App, id: ServerId) -> Result<(), Fault> {
    let read = app
        .store
        .tx(|tx| async move {
            let server = servers::get(&tx, id).await?;
            Ok::<_, StoreError>((server, records::attachments::of_server(&tx, id).await?))
        })
        .await?;
    if let (Some(server), attached) = read {
        app.host.call(&spec::ensure(&server, &attached)).await?;
    }
    Ok(())
}
