//! Placement: who has how much of what, and who holds it.

pub mod inner;
pub mod records;
mod routes;
pub mod rules;
mod schema;

use crate::app::{App, Reconciler};
use api_kit::Service;
use base::store::Migration;
use base::task::Workers;

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    routes::service()
}

/// The service's tables.
pub const MIGRATIONS: &[Migration] = records::MIGRATIONS;

/// Registers the service's kinds of tasks: it has none, since nothing here takes long.
#[must_use]
pub fn tasks(workers: Workers<App>) -> Workers<App> {
    workers
}

/// The service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![Reconciler {
        name: "placement-host",
        every: std::time::Duration::from_secs(60),
        nudge: |wake| &wake.placement,
        settle: |app| Box::pin(async move { inner::report_host(&app).await }),
    }]
}
