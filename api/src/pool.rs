//! Collecting disks and snapshots that nobody names: what a crash, or a call that arrived after its opposite, left in the pool.
//!
//! A disk's id is in a row (a volume's, a snapshot's, a server's) or in the step of a live task before the disk is made, and
//! stays there until it is gone. So what the pool had before the rows were read, and no row names, nobody will ask for.
//! Blobs have a collector of their own ([`crate::object::garbage`]).

use crate::app::{App, Reconciler};
use crate::{compute, volume};
use api_kit::Fault;
use base::task::Tasks;
use std::collections::HashSet;
use std::time::Duration;
use wire::block::{ForgetDisk, ForgetSnapshot, ListPool};
use wire::ids::{DiskId, SnapshotId};

/// The reconciler.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![Reconciler {
        name: "pool-scan",
        every: Duration::from_secs(600),
        // By its timer: it looks at the whole pool.
        nudge: |wake| &wake.volume,
        settle: |app| Box::pin(async move { scan(&app).await }),
    }]
}

/// Removes disks and snapshots that nobody names.
///
/// # Errors
/// When the database or the storage daemon does not answer, or that one belongs to another cloud; the next run goes on.
pub async fn scan(app: &App) -> Result<(), Fault> {
    let by = app.cloud.unknown(&app.store).await?;
    let pool = app.block.call(&ListPool {}).await?;
    // Before and after the rows: an id may move from a step to a row meanwhile, or back.
    let mut steps = Tasks::live_steps(&app.store).await?;
    let mut named: HashSet<String> = volume::inner::named(&app.store).await?.into_iter().collect();
    named.extend(compute::inner::disks(&app.store).await?.iter().map(DiskId::to_string));
    let disks: Vec<DiskId> = pool.disks.into_iter().filter(|id| !named.contains(&id.to_string())).collect();
    let snapshots = pool.snapshots.into_iter().filter(|id| !named.contains(&id.to_string()));
    let snapshots: Vec<SnapshotId> = snapshots.collect();
    if disks.is_empty() && snapshots.is_empty() {
        return Ok(());
    }
    steps.extend(Tasks::live_steps(&app.store).await?);
    let free = |id: String| !steps.iter().any(|step| step.contains(&id));
    for id in disks.into_iter().filter(|id| free(id.to_string())) {
        tracing::warn!(disk = %id, "the pool has a disk that nobody names; it is to be removed");
        app.block.call(&ForgetDisk { id, by }).await?;
    }
    for id in snapshots.into_iter().filter(|id| free(id.to_string())) {
        tracing::warn!(snapshot = %id, "the pool has a snapshot that nobody names; it is to be removed");
        app.block.call(&ForgetSnapshot { id, by }).await?;
    }
    Ok(())
}
