//! The image service (Glance v2): a catalogue over objects.
//!
//! ```text
//!            PUT file            inspected
//!   queued ----------> saving -------------> active <--> deactivated
//!     ^                  | refused, cut short, process died
//!     +------------------+
//! ```
//!
//! An image's bytes are an object of this service's own account; its row, that object and the state change in one
//! transaction. Content that is truncated, mislabelled or names other files is refused and nothing of it is kept.

mod access;
mod data;
pub mod inner;
mod limits;
mod members;
mod patch;
mod records;
mod routes;
mod rules;
mod schema;
#[cfg(test)]
mod tests;
mod view;

use crate::app::{App, Reconciler};
use api_kit::{FaultStyle, Service};
use base::store::Migration;
use base::task::Workers;
use std::time::Duration;

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("image", "image", "/image", FaultStyle::Glance)
        .rules(access::RULES)
        .operations(routes::operations())
}

/// The service's tables.
pub const MIGRATIONS: &[Migration] = records::MIGRATIONS;

/// Registers the service's kinds of tasks.
#[must_use]
pub fn tasks(workers: Workers<App>) -> Workers<App> {
    workers
}

/// The service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![Reconciler {
        name: "image-uploads",
        every: Duration::from_secs(120),
        // By its timer: a nudge wakes one reconciler only, and that of `blobs` is the collector's.
        nudge: |wake| &wake.volume,
        settle: |app| Box::pin(async move { data::settle(&app).await }),
    }]
}
