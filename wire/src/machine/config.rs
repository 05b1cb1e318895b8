//! A machine as it is asked for.

use super::{
    BackendConfig, CpuModel, Fd, IncomingConfig, Limits, MemoryBacking, NicLimits, NumaNode, RestoreConfig,
    Topology, WatchdogAction,
};
use crate::MiB;
use crate::ids::{Mac, PortId, ServerId};
use serde::{Deserialize, Serialize};

/// A whole machine at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The server: SMBIOS system UUID and serial number, log lines.
    pub id: ServerId,
    /// Name for people, in log lines only.
    pub name: String,
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u32,
    /// How many it can have while it runs, by [`MachineCall::PlugVcpus`](super::MachineCall::PlugVcpus), 64 at most. `None` for no
    /// more than at its start.
    #[serde(default)]
    pub max_vcpus: Option<u32>,
    /// What the guest finds of the host's processor.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// How the vCPUs are arranged, all that there can be; one socket with a core for each when `None`.
    #[serde(default)]
    pub topology: Option<Topology>,
    /// Guest memory.
    pub memory: MiB,
    /// How it is had from the host.
    #[serde(default)]
    pub memory_backing: MemoryBacking,
    /// NUMA nodes; the guest finds none when empty.
    #[serde(default)]
    pub numa: Vec<NumaNode>,
    /// How much memory it can have while it runs, by [`MachineCall::ResizeMemory`](super::MachineCall::ResizeMemory): more than
    /// `memory` by a multiple of 128 MiB. `None` for no more than that.
    #[serde(default)]
    pub max_memory: Option<MiB>,
    /// `/dev/kvm`, opened read-write.
    pub kvm_fd: Fd,
    /// The listening control socket.
    pub control_fd: Fd,
    /// Files of the bounded serial console log, opened for reading and writing, as `vmm::console` describes them: current and previous.
    pub console_fds: Vec<Fd>,
    /// Limit of the console log in bytes, all files together.
    pub console_limit: u64,
    /// Where the [`MachineEnd`](super::MachineEnd) is written: an empty file opened for writing.
    pub end_fd: Option<Fd>,
    /// Kernel: bzImage, ELF with a PVH note, or ELF64 with a 64-bit Linux entry. Needed unless the machine is restored.
    pub kernel_fd: Option<Fd>,
    /// Initial RAM disk.
    pub initrd_fd: Option<Fd>,
    /// Kernel command line.
    pub command_line: String,
    /// Disks in the order of their PCI slots, at most [`MAX_DISKS`](super::MAX_DISKS).
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in the order of their PCI slots, at most [`MAX_NICS`](super::MAX_NICS).
    pub nics: Vec<NicConfig>,
    /// What the guest finds in its SMBIOS tables.
    pub identity: Identity,
    /// A socket device; `None` for a machine without.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// A virtio console beside the serial port; `None` for a machine without.
    #[serde(default)]
    pub virtio_console: Option<ConsoleConfig>,
    /// A watchdog that the guest may start (by ACPI's WDAT table).
    #[serde(default)]
    pub watchdog: bool,
    /// What happens when the guest stops calling it.
    #[serde(default)]
    pub watchdog_action: WatchdogAction,
    /// Goes on from a snapshot instead of booting; vCPUs, memory, disks and interfaces are those that the snapshot has.
    #[serde(default)]
    pub restore: Option<RestoreConfig>,
    /// Goes on with a machine that another monitor sends, instead of booting. The process ends with
    /// [`EndReason::NotStarted`](super::EndReason::NotStarted) when it does not come or does not fit.
    #[serde(default)]
    pub incoming: Option<IncomingConfig>,
    /// A balloon; `None` for a machine without.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// Devices whose queues other processes work; the machine's memory must be shared then. Disks come behind [`MachineConfig::disks`],
    /// interfaces behind [`MachineConfig::nics`].
    #[serde(default)]
    pub backends: Vec<BackendConfig>,
    /// Who the process becomes. `None` is refused unless the monitor is started with `--no-jail`, which leaves out every wall.
    pub jail: Option<JailConfig>,
}

/// What the guest reads about its machine: cloud-init finds its data source by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// SMBIOS system manufacturer.
    pub manufacturer: String,
    /// SMBIOS system product name: `OpenStack Nova` tells cloud-init where to look.
    pub product: String,
    /// SMBIOS system version.
    pub version: String,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            manufacturer: "OpenStack Foundation".into(),
            product: "OpenStack Nova".into(),
            version: "1".into(),
        }
    }
}

/// Who a jailed process becomes. Namespaces, an empty root directory and resource limits come along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailConfig {
    /// User id of its own, never 0.
    pub uid: u32,
    /// Group id of its own, never 0.
    pub gid: u32,
}

/// A balloon: how memory comes back from the guest. Its guest also reports pages that it does not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// What it is to hold from the start.
    pub target: MiB,
    /// The guest may take memory out of it before it runs out of memory.
    pub deflate_on_oom: bool,
}

/// A socket device (virtio-vsock): streams between programs on the host and in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// The guest's address (CID), at least 3; nobody else's on this host.
    pub cid: u32,
    /// A listening unix `SOCK_STREAM` socket. Who connects writes `CONNECT PORT` and a line feed, and reads `OK LOCAL_PORT` and a line
    /// feed before the stream.
    pub listener_fd: Fd,
}

/// A virtio console (`hvc0`), with a log of its own like that of the serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Files of its bounded log, as [`MachineConfig::console_fds`].
    pub log_fds: Vec<Fd>,
    /// Limit of the log in bytes, all files together.
    pub limit: u64,
    /// Where the guest reads from: a pipe or socket.
    pub input_fd: Option<Fd>,
}

/// The unit in which a guest reads and writes a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockSize {
    /// 512 bytes.
    #[default]
    #[serde(rename = "512")]
    B512,
    /// 4096 bytes: for file systems and devices that can do no less directly. Not every image boots from such a disk.
    #[serde(rename = "4096")]
    B4096,
}

impl BlockSize {
    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// A disk, with its raw file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Name for hot-unplug.
    pub key: String,
    /// The raw file; opened read-only or read-write to match, with or without `O_DIRECT`.
    pub fd: Fd,
    /// Guest may not write.
    pub read_only: bool,
    /// virtio-blk serial: printable ASCII; the guest sees the first 20 bytes.
    pub serial: String,
    /// Unit of all requests.
    #[serde(default)]
    pub block_size: BlockSize,
    /// Limits from the start; [`MachineCall::LimitDisk`](super::MachineCall::LimitDisk) changes them.
    #[serde(default)]
    pub limits: Limits,
}

/// A network interface, with its tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// Which port: name for hot-unplug.
    pub port: PortId,
    /// The tap: `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, 12-byte header.
    pub fd: Fd,
    /// Further queues of the same tap, all opened with `IFF_MULTI_QUEUE` too: the guest gets a pair of queues for each, 16 at most.
    #[serde(default)]
    pub more_fds: Vec<Fd>,
    /// Guest-visible address.
    pub mac: Mac,
    /// Advertised MTU in bytes.
    pub mtu: u16,
    /// Limits from the start; [`MachineCall::LimitNic`](super::MachineCall::LimitNic) changes them.
    #[serde(default)]
    pub limits: NicLimits,
}
