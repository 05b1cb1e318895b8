//! A machine as it is.

use super::{BackendStatus, TransferStatus};
use crate::ids::PortId;
use serde::{Deserialize, Serialize};

/// A machine as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// [`PROTOCOL`](super::PROTOCOL) of the monitor.
    pub protocol: u32,
    /// Grows with every change of anything below.
    pub sequence: u64,
    /// What the machine does.
    pub state: MachineState,
    /// Disks in the order of their PCI slots.
    pub disks: Vec<DiskStatus>,
    /// Network interfaces in the order of their PCI slots.
    pub nics: Vec<NicStatus>,
    /// Times that the power button was pressed.
    pub power_button_presses: u64,
    /// vCPUs that are plugged in; 0 from a monitor that does not tell.
    #[serde(default)]
    pub vcpus: u32,
    /// The guest's kernel reported (by pvpanic) that it panicked. What it does then is its own: stand still, write a crash dump, or
    /// reset, which ends the machine with [`EndReason::Panicked`](super::EndReason::Panicked).
    #[serde(default)]
    pub panicked: bool,
    /// A snapshot or migration under way, or the last one.
    #[serde(default)]
    pub transfer: Option<TransferStatus>,
    /// Devices whose queues other processes work.
    #[serde(default)]
    pub backends: Vec<BackendStatus>,
    /// Times that the guest stopped calling its watchdog without being ended for it:
    /// [`WatchdogAction`](super::WatchdogAction).
    #[serde(default)]
    pub bites: u64,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// vCPUs run.
    Running,
    /// Stopped in place.
    Paused,
}

/// A disk in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub key: String,
    /// Size in bytes that the guest sees.
    pub bytes: u64,
    /// The guest was asked to give it back and has not yet.
    pub unplugging: bool,
    /// The guest's driver uses it.
    pub driver_ok: bool,
}

/// A network interface in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStatus {
    /// Its port.
    pub port: PortId,
    /// The guest was asked to give it back and has not yet.
    pub unplugging: bool,
    /// The guest's driver uses it.
    pub driver_ok: bool,
}

/// How a balloon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatus {
    /// Bytes that it is to hold.
    pub target: u64,
    /// Bytes that the guest says it holds: less than the target when the guest needs its memory, or has not got there yet.
    pub actual: u64,
    /// Bytes that went back to the host since the start, by the balloon and by reports of free pages; a page counts as often as it goes.
    pub given_back: u64,
    /// What the guest said last.
    pub statistics: BalloonStatistics,
}

/// What a guest says of its memory. Values are the guest's words, in bytes or events; `None` is not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatistics {
    /// How often statistics came. Asking for [`MachineCall::BalloonStatus`](super::MachineCall::BalloonStatus) makes the guest tell newer ones, to be seen by the next.
    pub updates: u64,
    /// Swapped in.
    pub swap_in: Option<u64>,
    /// Swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed a device.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
    /// Memory used for nothing.
    pub free: Option<u64>,
    /// All memory.
    pub total: Option<u64>,
    /// Memory that new programs could have.
    pub available: Option<u64>,
    /// Memory that caches files.
    pub caches: Option<u64>,
}
