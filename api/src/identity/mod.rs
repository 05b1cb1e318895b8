//! The identity service: Keystone v3.
//!
//! Tokens are sealed texts ([`token`], [`keys`]) that name user and scope. What else a request needs to know of its
//! caller (names, roles, whether all is still enabled) is looked up once per token and remembered until anything in
//! this service changes ([`State`]), so that checking a known token touches no database.

pub mod appcreds;
pub mod assignments;
pub mod auth;
pub mod bootstrap;
pub mod caller;
pub mod catalog;
pub mod crud;
pub mod entity;
pub mod inner;
pub mod keys;
pub mod lockout;
pub mod password;
pub mod policy;
pub mod projects;
pub mod routes;
pub mod schema;
pub mod state;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod throttle;
pub mod token;
pub mod users;

pub use caller::Tokens;
pub use routes::service;
pub use state::State;
pub use tables::MIGRATIONS;

use crate::app::Reconciler;
use std::time::Duration;

/// Notices other processes' changes, turns keys over and forgets revocations that no token can meet any more.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![
        Reconciler {
            name: "identity changes",
            every: Duration::from_secs(2),
            nudge: |wake| &wake.identity,
            settle: |app| Box::pin(async move { state::notice_changes(&app).await }),
        },
        Reconciler {
            name: "token keys",
            every: Duration::from_secs(600),
            nudge: |wake| &wake.token_keys,
            settle: |app| Box::pin(async move { state::turn_keys(&app).await }),
        },
    ]
}
