//! The identity service.

use crate::app::{App, Reconciler};
use crate::config::Config;
use api_kit::{Fault, FaultStyle, Service};
use base::store::Migration;

/// Token keys and the cache of revocations.
#[derive(Debug)]
pub struct State {}

impl State {
    /// Reads the token keys.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn open(_config: &Config) -> Result<Self, Fault> {
        Ok(Self {})
    }
}

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("identity", "identity", "/identity", FaultStyle::Keystone)
}

/// The service's tables.
pub const MIGRATIONS: &[Migration] = &[];

/// The service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    Vec::new()
}
