//! The network service: Neutron's contract over the tables of [`tables`], pushed to `netd` by [`push`].

pub mod allocate;
pub mod first_steps;
pub mod floatings;
pub mod groups;
pub mod inner;
pub mod input;
pub mod interfaces;
pub mod networks;
pub mod ports;
pub mod push;
pub mod quotas;
pub mod records;
pub mod resource;
pub mod routers;
pub mod routes;
pub mod schema;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod turns;

pub use tables::MIGRATIONS;

use crate::app::{App, Reconciler};
use api_kit::{FaultStyle, Service};
use base::task::Workers;
use std::time::Duration;

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("network", "network", "/network", FaultStyle::Neutron).operations(routes::operations())
}

/// Registers the service's kinds of tasks: none, its work is reconciled.
#[must_use]
pub fn tasks(workers: Workers<App>) -> Workers<App> {
    workers
}

/// The service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![Reconciler {
        name: "network",
        every: Duration::from_secs(30),
        nudge: |wake| &wake.network,
        settle: |app| Box::pin(push::settle(app)),
    }]
}
