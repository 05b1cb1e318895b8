//! What devices moved and carried.

use crate::ids::PortId;
use serde::{Deserialize, Serialize};

/// Counts of a machine's devices since its process started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCounts {
    /// Disks in the order of their PCI slots, by key.
    pub disks: Vec<(String, DeviceCounts)>,
    /// Network interfaces in the order of their PCI slots, by port.
    pub nics: Vec<(PortId, DeviceCounts)>,
}

/// Counts of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounts {
    /// Towards the guest: reads of a disk, packets from the network.
    pub to_guest: Counts,
    /// From the guest: writes to a disk, packets to the network.
    pub from_guest: Counts,
}

/// Counts of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests or packets.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests that failed, or packets that were dropped.
    pub failed: u64,
}

/// What happens when a guest that started its watchdog stops calling it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// The machine ends with [`EndReason::Watchdog`](super::EndReason::Watchdog).
    #[default]
    End,
    /// The machine stands still; [`MachineStatus::bites`](super::MachineStatus::bites) tells why.
    Pause,
    /// It is counted in [`MachineStatus::bites`](super::MachineStatus::bites).
    Count,
}
