//! Housekeeping of rows. Above all it gives back what servers left in the database: ports and claims whose server does not exist any more.
//!
//! A server's row is written before anything is made for it and removed after everything was given back, so that what
//! names a server without a row belongs to nobody. Nothing should; a bug, or a database put back from a backup, may.

use super::neighbours::network;
use super::records::{servers, usage};
use crate::app::App;
use crate::placement;
use api_kit::Fault;
use base::store::{Query, StoreError};
use std::collections::BTreeSet;
use wire::ids::ServerId;

/// Most servers whose remains one run takes away; the next run goes on.
const AT_ONCE: usize = 100;

/// How long it is known what a server used that is gone: a year and a month of grace, in hours.
const USAGE_HOURS: i64 = 400 * 24;

/// One run.
///
/// # Errors
/// When the database fails.
pub async fn settle(app: &App) -> Result<(), Fault> {
    let store = &app.store;
    while store.tx(|tx| async move { servers::index(&tx).await }).await? > 0 {}
    let before = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_hours(USAGE_HOURS));
    let before = &before.map(api_kit::time::stored).unwrap_or_default();
    store.tx(|tx| async move { usage::forget(&tx, before).await }).await?;
    // What is held first, rows after: a server that is made in between holds nothing in the first list.
    let with_ports = network::servers_with_ports(store).await?;
    let with_claims: Vec<ServerId> = placement::inner::instances(store)
        .await?
        .iter()
        // A consumer of this kind that is no server's id is somebody's by hand.
        .filter_map(|id| id.parse().ok())
        .collect();
    let (mut given_back, mut left) = (false, AT_ONCE);
    for id in without_row(store, &with_ports).await?.into_iter().take(left) {
        let released = store
            .tx(|tx| async move {
                // Read again: this transaction, not the list, is what must be right.
                if servers::get(&tx, id).await?.is_some() {
                    return Ok(0);
                }
                network::release_in(&tx, id).await
            })
            .await?;
        tracing::warn!(server = %id, ports = released, "ports of a server that is gone were given back");
        given_back |= released > 0;
        left -= 1;
    }
    for id in without_row(store, &with_claims).await?.into_iter().take(left) {
        store
            .tx(|tx| async move {
                if servers::get(&tx, id).await?.is_some() {
                    return Ok(());
                }
                placement::inner::release_in(&tx, &id.to_string()).await.map_err(Fault::from)
            })
            .await?;
        tracing::warn!(server = %id, "the claim of a server that is gone was given back");
    }
    if given_back {
        app.wake.network.nudge();
    }
    Ok(())
}

async fn without_row(query: &impl Query, ids: &[ServerId]) -> Result<Vec<ServerId>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let known: BTreeSet<ServerId> = servers::ids(query).await?.into_iter().collect();
    Ok(ids.iter().copied().filter(|id| !known.contains(id)).collect())
}
