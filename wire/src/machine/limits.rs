//! What a device may move.

use serde::{Deserialize, Serialize};

/// A rate: a bucket of `burst` tokens that fills with `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// Tokens that come each second, not 0.
    pub per_second: u64,
    /// Tokens that can be saved up, not 0.
    pub burst: u64,
}

/// Limits of a device; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes moved.
    #[serde(default)]
    pub bytes: Option<Limit>,
    /// Requests or packets.
    #[serde(default)]
    pub operations: Option<Limit>,
}

/// Limits of a network interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NicLimits {
    /// What comes to the guest.
    #[serde(default)]
    pub to_guest: Limits,
    /// What comes from it.
    #[serde(default)]
    pub from_guest: Limits,
}
