//! `api` to `blockd`: raw disks, snapshots and immutable blobs in one pool.
//!
//! Blob bytes do not travel in calls: `PUT /v1/blob/{id}` on the same socket takes them and answers with a [`BlobInfo`]; to be
//! read, a blob's file is handed over ([`crate::fd`]).

use crate::Call;
use crate::cloud::Warrant;
use crate::ids::{BlobId, DiskId, SnapshotId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A disk as it should be. Repeating the call is harmless; a larger `bytes` grows the disk, a smaller one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureDisk {
    /// Which disk.
    pub id: DiskId,
    /// Size in bytes, a multiple of 512. For [`DiskSource::Files`] a minimum, 0 for what the files need.
    pub bytes: u64,
    /// What it holds when it is first made.
    pub source: DiskSource,
}

impl Call for EnsureDisk {
    const PATH: &'static str = "/v1/ensure-disk";
    type Reply = DiskInfo;
}

/// What a new disk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum DiskSource {
    /// Zeros.
    Blank,
    /// An image's bytes, converted to raw when they are not; the rest is zeros.
    Image {
        /// Where the bytes are.
        blob: BlobId,
        /// What the image claims to be: `raw` or `qcow2`. Content that contradicts it is refused.
        format: String,
    },
    /// A snapshot.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Another disk, as it is now.
    Disk {
        /// Which.
        disk: DiskId,
    },
    /// A small ISO 9660 file system (Joliet and Rock Ridge) with these files: a config drive.
    Files {
        /// Volume label, `config-2`.
        label: String,
        /// (path, content) pairs.
        files: Vec<(String, Vec<u8>)>,
    },
}

/// A disk as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// The raw file on this host.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Makes sure that the raw form of an image exists (kernel and initrd images, or to warm the cache) and names its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureRaw {
    /// Where the bytes are.
    pub blob: BlobId,
    /// What the image claims to be.
    pub format: String,
}

impl Call for EnsureRaw {
    const PATH: &'static str = "/v1/ensure-raw";
    type Reply = DiskInfo;
}

/// Removes a disk. Harmless when it is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgetDisk {
    /// Which disk.
    pub id: DiskId,
    /// By whose word.
    pub by: Warrant,
}

impl Call for ForgetDisk {
    const PATH: &'static str = "/v1/forget-disk";
    type Reply = ();
}

/// Makes a snapshot of a disk unless it exists: a reflink, taken at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureSnapshot {
    /// The snapshot to be.
    pub id: SnapshotId,
    /// Of which disk.
    pub disk: DiskId,
}

impl Call for EnsureSnapshot {
    const PATH: &'static str = "/v1/ensure-snapshot";
    type Reply = DiskInfo;
}

/// Removes a snapshot. Harmless when it is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgetSnapshot {
    /// Which snapshot.
    pub id: SnapshotId,
    /// By whose word.
    pub by: Warrant,
}

impl Call for ForgetSnapshot {
    const PATH: &'static str = "/v1/forget-snapshot";
    type Reply = ();
}

/// Turns a disk or snapshot into a blob (image upload), unless the blob exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureBlobFromDisk {
    /// The blob to be.
    pub blob: BlobId,
    /// From where: [`DiskSource::Disk`] or [`DiskSource::Snapshot`]; others are refused.
    pub source: DiskSource,
    /// Wanted format: `raw` or `qcow2`.
    pub format: String,
}

impl Call for EnsureBlobFromDisk {
    const PATH: &'static str = "/v1/ensure-blob-from-disk";
    type Reply = BlobInfo;
}

/// A blob: immutable bytes with their digests in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Which blob.
    pub id: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// MD5 (Swift's ETag, Glance's `checksum`).
    pub md5: String,
    /// SHA-512 (Glance's `os_hash_value`); empty for blobs that were stored without `?sha512=1`.
    pub sha512: String,
}

/// Reads what is known of a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DescribeBlob {
    /// Which blob.
    pub id: BlobId,
}

impl Call for DescribeBlob {
    const PATH: &'static str = "/v1/describe-blob";
    type Reply = BlobInfo;
}

/// Removes a blob and what was derived from it. Harmless when it is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgetBlob {
    /// Which blob.
    pub id: BlobId,
    /// By whose word.
    pub by: Warrant,
}

impl Call for ForgetBlob {
    const PATH: &'static str = "/v1/forget-blob";
    type Reply = ();
}

/// Looks at an image's content in a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InspectImage {
    /// Where the bytes are.
    pub blob: BlobId,
    /// What the image claims to be; a contradiction, a backing file or a truncated image is refused with the reason.
    pub format: String,
}

impl Call for InspectImage {
    const PATH: &'static str = "/v1/inspect-image";
    type Reply = ImageFacts;
}

/// What an image's content says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Size of the disk it describes, in bytes.
    pub virtual_bytes: u64,
}

/// Lists everything in the pool, so that the control plane can find what it forgot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListPool {}

impl Call for ListPool {
    const PATH: &'static str = "/v1/list-pool";
    type Reply = Pool;
}

/// The pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Disks.
    pub disks: Vec<DiskId>,
    /// Snapshots.
    pub snapshots: Vec<SnapshotId>,
    /// Blobs.
    pub blobs: Vec<BlobId>,
}
