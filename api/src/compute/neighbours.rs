//! What this service asks of its neighbours, in process: their own rules apply, and nothing here reads their tables.

pub use crate::image::inner as image;
pub use crate::network::inner as network;
pub use crate::volume::inner as volume;
