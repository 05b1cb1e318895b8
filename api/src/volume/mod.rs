//! The volume service.

use crate::app::{App, Reconciler};
use api_kit::{FaultStyle, Service};
use base::store::Migration;
use base::task::Workers;

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("volume", "volumev3", "/volume", FaultStyle::Cinder)
}

/// The service's tables.
pub const MIGRATIONS: &[Migration] = &[];

/// Registers the service's kinds of tasks.
#[must_use]
pub fn tasks(workers: Workers<App>) -> Workers<App> {
    workers
}

/// The service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    Vec::new()
}
