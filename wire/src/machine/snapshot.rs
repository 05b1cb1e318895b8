//! Snapshots of a machine, and machines that go on from one.

use super::Fd;
use serde::{Deserialize, Serialize};

/// The files of a snapshot, opened for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// State.
    pub state_fd: Fd,
    /// Memory: mapped privately for as long as the machine lives, so nobody may change it meanwhile.
    pub memory_fd: Fd,
    /// Track what the guest writes from the start: see [`MachineCall::Snapshot`](super::MachineCall::Snapshot).
    #[serde(default)]
    pub track: bool,
    /// Stand still, and run nothing of the guest until [`MachineCall::Resume`](super::MachineCall::Resume): so that whoever starts it
    /// can give the snapshot up for good first.
    #[serde(default)]
    pub paused: bool,
}

/// What a snapshot cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// Bytes of memory that were written; the rest of the memory file is holes.
    pub memory_bytes: u64,
    /// For how long the machine stood still, in microseconds.
    pub stood_us: u64,
}
