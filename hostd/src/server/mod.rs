//! One driver task per server; a pure queue in front of it, a pure plan inside it, and two files behind it.
//!
//! `wanted.json` says what should be and is written before anything is done about it; `record.json` says how far that
//! got. A `hostd` that is killed anywhere reads both, looks which processes are there, and goes on.

pub mod driver;
pub mod plan;
pub mod record;
pub mod registry;
pub mod wanted;

#[cfg(test)]
mod plan_tests;

pub use registry::Registry;
