//! How a Ferrostack daemon lives: configuration, logs, calls over unix sockets, the store, durable tasks,
//! reconcilers, metrics and an orderly end.

pub mod config;
pub mod daemon;
pub mod fdpass;
pub mod gate;
pub mod log;
pub mod metrics;
pub mod owner;
pub mod reconcile;
pub mod rpc;
pub mod store;
pub mod task;
#[cfg(test)]
mod testing;

pub use tokio_util::sync::CancellationToken;
