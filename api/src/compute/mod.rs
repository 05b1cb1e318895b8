//! Compute: servers, and what they are made of.
//!
//! ```text
//!  routes -> rules (one transaction: row + task) -> 202
//!                              |
//!            tasks: place -> network -> disks -> volumes -> wire -> start -> finish
//!                              |                                      |
//!  reconcile <- ListServers <- hostd <- spec::ensure(rows) <----------'
//!      '-> observed power -> state (computed) -> view
//! ```

mod hardware;
pub mod inner;
mod keys;
mod metadata;
mod micro;
mod neighbours;
mod orphans;
mod policy;
mod reconcile;
mod records;
mod routes;
mod rules;
mod scheduler;
mod schema;
mod spec;
mod state;
mod tasks;
mod view;

#[cfg(test)]
pub(crate) mod tests;

use crate::app::{App, Reconciler};
use api_kit::Service;
use base::store::Migration;
use base::task::Workers;
use std::time::Duration;

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    routes::service()
}

/// The service's tables.
pub const MIGRATIONS: &[Migration] = records::MIGRATIONS;

/// Registers the service's kinds of tasks.
#[must_use]
pub fn tasks(workers: Workers<App>) -> Workers<App> {
    tasks::register(workers)
}

/// The service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![
        Reconciler {
            name: "compute-power",
            every: Duration::from_secs(3),
            nudge: |wake| &wake.power,
            settle: |app| Box::pin(async move { reconcile::settle(&app).await }),
        },
        Reconciler {
            name: "compute-orphans",
            every: Duration::from_secs(60),
            nudge: |wake| &wake.orphans,
            settle: |app| Box::pin(async move { orphans::settle(&app).await }),
        },
    ]
}
