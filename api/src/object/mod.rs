//! The object service: accounts, containers and objects (Swift v1). Bytes are blobs of the storage daemon, everything else
//! is rows; an object is there when its row is, and a blob that no row names is collected ([`garbage`]).
//!
//! The image service keeps its data here too, in an account of its own that no request can reach ([`inner`]).

mod access;
mod account;
mod bytes;
mod container;
#[cfg(test)]
pub(crate) mod fake;
pub mod garbage;
mod headers;
pub mod inner;
mod objects;
pub(crate) mod quota;
mod records;
mod routes;
#[cfg(test)]
mod tests;

use crate::app::{App, Reconciler};
use api_kit::{FaultStyle, Service};
use base::store::Migration;
use base::task::Workers;
use std::time::Duration;

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("object", "object-store", "/object-store", FaultStyle::Swift)
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
    vec![
        Reconciler {
            name: "object-garbage",
            every: Duration::from_secs(60),
            nudge: |wake| &wake.blobs,
            settle: |app| Box::pin(async move { garbage::collect(&app).await }),
        },
        Reconciler {
            name: "object-scan",
            every: Duration::from_secs(600),
            // By its timer: it looks at the whole pool.
            nudge: |wake| &wake.volume,
            settle: |app| Box::pin(async move { garbage::scan(&app).await }),
        },
    ]
}
