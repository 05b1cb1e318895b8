//! The virtual machine monitor: one KVM machine per process.
//!
//! `machine` builds and drives the machine, `bus` connects what is in it, `virtio` holds the devices, `backend` what
//! is behind them, `control` the words with `hostd`, `jail` what keeps a broken-into monitor
//! harmless, and `snapshot` what a machine is while it is none.

pub mod backend;
pub mod boot_entries;
pub mod bus;
pub mod console;
pub mod control;
pub mod jail;
pub mod machine;
pub mod migration;
pub mod snapshot;
pub mod virtio;
