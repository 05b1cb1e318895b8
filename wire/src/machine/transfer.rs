//! Machines on their way to files.

use serde::{Deserialize, Serialize};

/// How a transfer is, or how the last one went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// What is transferred.
    pub kind: TransferKind,
    /// How far it is.
    pub phase: TransferPhase,
    /// Why it failed; empty otherwise.
    #[serde(default)]
    pub detail: String,
    /// Times that memory was gone through.
    pub rounds: u32,
    /// Bytes of memory that were written, sent or received.
    pub bytes: u64,
    /// Bytes of memory that are still to come, as far as is known.
    pub remaining: u64,
    /// For how long the guest would stand still if it were stopped now, in milliseconds.
    #[serde(default)]
    pub expected_downtime_ms: Option<u64>,
    /// For how long it stood still, in microseconds; 0 as long as it did not.
    #[serde(default)]
    pub stood_us: u64,
    /// Share of time that is taken from the guest, in percent.
    #[serde(default)]
    pub throttle: u8,
}

/// What is transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferKind {
    /// The machine, to files.
    Snapshot,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferPhase {
    /// Both sides look whether they fit.
    Preparing,
    /// Memory is on its way; the guest runs.
    Copying,
    /// The guest stands still.
    Stopped,
    /// It is done.
    Done,
    /// It failed: see [`TransferStatus::detail`].
    Failed,
    /// It was cancelled.
    Cancelled,
}
