//! Configuration of the daemon.

use serde::Deserialize;
use std::path::PathBuf;

/// What `blockd --config FILE` reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the pool's file system is mounted.
    pub pool_dir: PathBuf,
    /// Where `blockd.sock` is made.
    pub run_dir: PathBuf,
    /// Uids that may call, besides root and the daemon's own.
    #[serde(default)]
    pub allow_uids: Vec<u32>,
    /// Accept a file system without reflinks: every clone becomes a full copy.
    #[serde(default)]
    pub allow_copies: bool,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Bounds on what callers and images can make the daemon do.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest virtual size of an image, in bytes.
    pub image_bytes: u64,
    /// Largest blob, in bytes.
    pub blob_bytes: u64,
    /// Largest disk, in bytes.
    pub disk_bytes: u64,
    /// Free space that uploads and conversions leave alone, in bytes, so that running guests can still write.
    pub reserve_bytes: u64,
    /// Conversions and digest runs at the same time.
    pub conversions: usize,
    /// Longest time of one conversion, in seconds.
    pub conversion_secs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_bytes: 2 << 40,
            blob_bytes: 1 << 40,
            disk_bytes: 16 << 40,
            reserve_bytes: 64 << 20,
            conversions: 2,
            conversion_secs: 3600,
        }
    }
}
