//! Compute against fake daemons that remember what they were asked.

mod crash;
mod flow;
mod machine;
mod remake;
mod safety;
mod truth;
pub(crate) mod world;
