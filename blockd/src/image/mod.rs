//! Images: what they are, by their content, and turning them into raw disks and back.
//!
//! The daemon itself never parses an image. [`convert`] starts a child of the same program with two descriptors and
//! bounds on time and memory; [`sandbox`] is that child's life.

pub mod convert;
pub mod detect;
pub mod iso;
pub mod qcow2;
pub mod sandbox;
