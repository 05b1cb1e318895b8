//! Machines on their way: to files, to another monitor, from another monitor.

use super::Fd;
use serde::{Deserialize, Serialize};

/// How a machine goes to another monitor: see [`MachineCall::Migrate`](super::MachineCall::Migrate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationPlan {
    /// For how long the guest may stand still, in milliseconds: it is stopped once what is left would take no longer.
    pub downtime_ms: u64,
    /// Most bytes each second while the guest runs; `None` is as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// Times that changed memory is sent again before [`MigrationPlan::otherwise`] counts.
    pub rounds: u32,
    /// A guest that writes faster than the stream takes it gets less and less time to run.
    pub throttle: bool,
    /// What happens when the guest still writes too fast after all rounds.
    pub otherwise: Unconverged,
}

impl Default for MigrationPlan {
    fn default() -> Self {
        Self {
            downtime_ms: 300,
            bytes_per_second: None,
            rounds: 30,
            throttle: true,
            otherwise: Unconverged::GiveUp,
        }
    }
}

/// What happens to a migration whose guest writes faster than its memory can be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unconverged {
    /// It fails, and the guest goes on where it is.
    #[default]
    GiveUp,
    /// The guest stands still for as long as it takes.
    Finish,
}

/// Where a machine comes from that another monitor sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncomingConfig {
    /// A connected stream socket, at whose other end is the stream of a [`MachineCall::Migrate`](super::MachineCall::Migrate).
    pub stream_fd: Fd,
}

/// How a transfer is, or how the last one went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// What is transferred.
    pub kind: TransferKind,
    /// How far it is.
    pub phase: TransferPhase,
    /// Why it failed or is in doubt; empty otherwise.
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
    /// The machine, to another monitor.
    Outgoing,
    /// The machine, from another monitor.
    Incoming,
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
    /// The guest was handed over, and the answer did not come: it stands still here until somebody who knows whether it ran there says
    /// [`MachineCall::TakeBack`](super::MachineCall::TakeBack) or [`MachineCall::Stop`](super::MachineCall::Stop).
    InDoubt,
}
