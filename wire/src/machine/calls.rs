//! Requests and answers on the control socket.

use super::{
    BackendDevice, BackendName, BalloonStatus, BlockSize, Limits, MachineCounts, MachineStatus, MemoryStatus,
    MigrationPlan, NicLimits, SnapshotTaken,
};
use crate::ids::{Mac, PortId};
use crate::{MiB, Refused};
use serde::{Deserialize, Serialize};

/// A request on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum MachineCall {
    /// Answers [`MachineReply::Status`] as soon as the machine's sequence number is above `after`, or after `wait_ms`.
    /// `after: None` answers at once.
    Status {
        /// Sequence number that the caller knows.
        after: Option<u64>,
        /// At most this many milliseconds, capped at 60,000.
        wait_ms: u64,
    },
    /// Stops vCPUs and devices in place; answers once nothing runs. Harmless when paused.
    Pause,
    /// Goes on. Harmless when running.
    Resume,
    /// Presses the ACPI power button; what the guest does with it shows when it powers off. A guest that has not loaded its button
    /// driver yet loses it, so press again while waiting.
    PowerButton,
    /// Ends the machine at once: pulls the plug. Answers before it ends.
    Stop,
    /// Plugs a disk in; its raw file comes along as `SCM_RIGHTS`. Repeating it with the same key is harmless.
    PlugDisk {
        /// Name for hot-unplug.
        key: String,
        /// Guest may not write.
        read_only: bool,
        /// virtio-blk serial: printable ASCII; the guest sees the first 20 bytes.
        serial: String,
        /// Unit of all requests.
        #[serde(default)]
        block_size: BlockSize,
        /// Limits from the start.
        #[serde(default)]
        limits: Limits,
    },
    /// Changes what a disk may move, at once.
    LimitDisk {
        /// Which disk.
        key: String,
        /// Its limits from now on.
        limits: Limits,
    },
    /// Asks the guest to give a disk back. It is gone once [`MachineStatus::disks`] does not list it any more: the
    /// guest must agree. Harmless when there is no such disk, and asks again when repeated.
    UnplugDisk {
        /// Which disk.
        key: String,
    },
    /// Plugs a network interface in; its tap comes along as `SCM_RIGHTS`. Repeating it with the same port is harmless.
    PlugNic {
        /// Name for hot-unplug.
        port: PortId,
        /// Guest-visible address.
        mac: Mac,
        /// Advertised MTU in bytes.
        mtu: u16,
        /// Limits from the start.
        #[serde(default)]
        limits: NicLimits,
    },
    /// Changes what a network interface may carry, at once.
    LimitNic {
        /// Which port.
        port: PortId,
        /// Its limits from now on.
        limits: NicLimits,
    },
    /// As [`MachineCall::UnplugDisk`].
    UnplugNic {
        /// Which port.
        port: PortId,
    },
    /// Writes the machine's state and memory into two empty files, which come along as `SCM_RIGHTS` in this order, opened for
    /// writing. A running machine runs on while most of its memory is written, and stands still for the rest; other calls are answered
    /// meanwhile ([`MachineStatus::transfer`] tells how far it is). The files are not synced. Answers [`MachineReply::Snapshot`].
    Snapshot {
        /// From now on track what the guest writes, so that the next snapshot can be of the changes alone. Costs the guest an exit
        /// for each page that it writes first.
        #[serde(default)]
        track: bool,
        /// The memory file is a copy of the one of the machine's snapshot before (or of the one that it was restored from), and only
        /// what changed since is written over it. Refused unless that was tracked. A file of another time makes a useless snapshot.
        #[serde(default)]
        changes: bool,
    },
    /// Sends the machine to another monitor, which was started with [`MachineConfig::incoming`](super::MachineConfig::incoming), over the
    /// stream socket that comes along as `SCM_RIGHTS`. Answers as soon as that has begun; [`MachineStatus::transfer`] tells how it goes
    /// on. The process ends with [`EndReason::Migrated`](super::EndReason::Migrated) once the machine runs over there; whatever fails
    /// before the machine is handed over leaves it running here. Devices cannot be plugged in or out meanwhile. The stream is neither
    /// encrypted nor authenticated: that is the caller's, who is at both of its ends.
    Migrate {
        /// How.
        #[serde(default)]
        plan: MigrationPlan,
    },
    /// Ends a migration that has not handed the machine over yet, which goes on here; or a snapshot. Answers at once. Harmless when
    /// there is none.
    CancelTransfer,
    /// The machine of a migration that is in doubt goes on here. **Only for callers who know that it never ran over there**: that
    /// monitor ended with [`EndReason::NotStarted`](super::EndReason::NotStarted), or was never started.
    TakeBack,
    /// Asks the guest to give up so much memory (0 for none). It goes there in its own time: see [`MachineCall::BalloonStatus`].
    Balloon {
        /// What the balloon is to hold.
        target: MiB,
    },
    /// Answers [`MachineReply::Balloon`].
    BalloonStatus,
    /// Gives the guest so many vCPUs in all, or asks it to give back those above that: between 1 and
    /// [`MachineConfig::max_vcpus`](super::MachineConfig::max_vcpus). It starts and gives them back in its own time:
    /// [`MachineStatus::vcpus`] counts those that it has not given back.
    PlugVcpus {
        /// How many.
        count: u32,
    },
    /// Asks the guest to have so much memory in all, by plugging memory in or out: between
    /// [`MachineConfig::memory`](super::MachineConfig::memory) and [`MachineConfig::max_memory`](super::MachineConfig::max_memory), and
    /// more than the former by a multiple of 2 MiB. It goes there in its own time: see [`MachineCall::MemoryStatus`].
    ResizeMemory {
        /// What it is to have.
        target: MiB,
    },
    /// Answers [`MachineReply::Memory`].
    MemoryStatus,
    /// Plugs in a device that another process works; a socket that is connected to it comes along as `SCM_RIGHTS`. Repeating it with the
    /// same name is harmless. Disks and interfaces are given back by [`MachineCall::UnplugDisk`] and [`MachineCall::UnplugNic`].
    PlugBackend {
        /// Which device.
        device: BackendDevice,
    },
    /// Gives a device another back end: a socket that is connected to it comes along as `SCM_RIGHTS`. What comes of it shows in
    /// [`MachineStatus::backends`]. The back end must be at least what the first one was. Refused while the one before is still there.
    ConnectBackend {
        /// Which device.
        device: BackendName,
    },
    /// As [`MachineCall::UnplugDisk`].
    UnplugFiles {
        /// What the guest mounts it by.
        tag: String,
    },
    /// Answers [`MachineReply::Counts`].
    Counts,
    /// Tells the guest that a disk's raw file has grown.
    ResizeDisk {
        /// Which disk.
        key: String,
    },
}

/// An answer on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum MachineReply {
    /// Done (or, for `PowerButton` and unplugging, passed on to the guest).
    Done,
    /// The machine as it is.
    Status(MachineStatus),
    /// A snapshot was taken.
    Snapshot(SnapshotTaken),
    /// The balloon as it is.
    Balloon(BalloonStatus),
    /// The memory as it is.
    Memory(MemoryStatus),
    /// What devices moved and carried.
    Counts(MachineCounts),
    /// Not done, and why.
    Refused(Refused),
}
