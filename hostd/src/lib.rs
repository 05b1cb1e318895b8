//! `hostd`: the guests of one host.
//!
//! `api` says what should be ([`wire::host`]); one driver task per server makes it so through a [`hypervisor`]. Guests
//! are processes of their own that outlive `hostd`; whatever it must know after a restart is in its state directory
//! before it acts, so it may be killed anywhere.

pub mod cgroup;
pub mod config;
pub mod confine;
pub mod console;
pub mod durable;
pub mod fault;
pub mod host;
pub mod hypervisor;
pub mod process;
pub mod purge;
pub mod resources;
pub mod serve;
pub mod server;
