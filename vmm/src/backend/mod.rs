//! What is behind the devices: raw files and taps. Every descriptor was opened by somebody else and handed
//! in.

pub mod aligned;
pub mod file;
pub mod tap;
