//! Figures of a running machine: what it used, moved and carried.

use crate::ids::{Mac, PortId, ServerId};
use crate::{Call, MiB};
use serde::{Deserialize, Serialize};

/// Reads the figures of a server's machine. `Conflict` when it has none, `Missing` when the server is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadFigures {
    /// Which server.
    pub id: ServerId,
}

impl Call for ReadFigures {
    const PATH: &'static str = "/v1/read-figures";
    type Reply = Figures;
}

/// Figures of a machine since its start. A start after a stop or a reset begins anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// `vmm`, `qemu` or `simulated`.
    pub hypervisor: String,
    /// Seconds since the machine's process started; `None` when it has none.
    pub uptime_secs: Option<u64>,
    /// CPU time of each vCPU in nanoseconds.
    pub cpus_ns: Vec<u64>,
    /// Memory.
    pub memory: MemoryFigures,
    /// Disks in the order of their PCI slots.
    pub disks: Vec<DiskFigures>,
    /// Network interfaces in the order of their PCI slots.
    pub nics: Vec<NicFigures>,
}

/// Memory of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFigures {
    /// What the guest was given.
    pub given: MiB,
    /// What the guest says that it has to manage; `None` when its driver does not tell.
    pub total: Option<MiB>,
    /// What of that new programs could have, by its own word.
    pub available: Option<MiB>,
    /// What the host has of it in memory now.
    pub resident: Option<MiB>,
}

/// What a disk moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFigures {
    /// Its key.
    pub key: String,
    /// Counts; `None` when the hypervisor does not count.
    pub counts: Option<DiskCounts>,
}

/// Counts of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounts {
    /// Bytes read.
    pub read_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What an interface carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicFigures {
    /// Its port.
    pub port: PortId,
    /// Its address.
    pub mac: Option<Mac>,
    /// Counts; `None` when the hypervisor does not count.
    pub counts: Option<NicCounts>,
}

/// Counts of an interface, as its guest sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicCounts {
    /// Bytes that came to the guest.
    pub received_bytes: u64,
    /// Packets that came to the guest.
    pub received: u64,
    /// Packets for the guest that were dropped.
    pub receive_drops: u64,
    /// Bytes that came from the guest.
    pub sent_bytes: u64,
    /// Packets that came from the guest.
    pub sent: u64,
    /// Packets from the guest that were dropped.
    pub send_drops: u64,
}
