//! The volume service (Cinder v3): disks of the storage pool with names, owners and snapshots.
//!
//! ```text
//!   creating --> available <--> reserved --> in-use --> detaching --> available
//!      |            |  ^  extending, uploading
//!      v            v
//!    error       deleting --> (gone) | error_deleting
//! ```
//!
//! A volume's disk has the volume's id. What takes longer than a transaction is a task ([`tasks`]); one task of a volume
//! at a time. Attaching is done by the compute service, through [`inner`].

mod actions;
mod attachments;
pub mod inner;
mod limits;
mod listing;
mod metadata;
mod misc;
mod qos;
mod records;
mod routes;
mod rules;
mod schema;
mod snapshots;
mod tasks;
#[cfg(test)]
mod tests;
mod type_routes;
mod type_rows;
mod types;
mod view;

use crate::app::{App, Reconciler};
use api_kit::{FaultStyle, Micro, MicroRange, Service};
use base::store::Migration;
use base::task::Workers;

/// The oldest and the newest microversion.
const MICRO: MicroRange = MicroRange { word: "volume", legacy: None, min: Micro(3, 0), max: Micro(3, 27) };

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("volume", "block-storage", "/volume", FaultStyle::Cinder)
        .micro(MICRO)
        .operations(routes::operations())
}

/// The service's tables.
pub const MIGRATIONS: &[Migration] = records::MIGRATIONS;

/// Registers the service's kinds of tasks.
#[must_use]
pub fn tasks(workers: Workers<App>) -> Workers<App> {
    workers
        .register::<tasks::CreateVolume>()
        .register::<tasks::DeleteVolume>()
        .register::<tasks::ExtendVolume>()
        .register::<tasks::UploadVolume>()
        .register::<tasks::CreateSnapshot>()
        .register::<tasks::DeleteSnapshot>()
}

/// The service's reconcilers: none, its tasks settle everything.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    Vec::new()
}
