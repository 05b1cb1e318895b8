//! `api` to `hostd`: the guests of one host.

mod figures;

pub use figures::{DiskCounts, DiskFigures, Figures, MemoryFigures, NicCounts, NicFigures, ReadFigures};

use crate::cloud::Warrant;
use crate::ids::{Mac, PortId, ServerId};
use crate::machine::{Limits, MachineEnd, NicLimits, Topology};
use crate::{Call, Generation, GiB, MiB};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a server's machine is made of. Disks and NICs may change while it runs; the rest takes effect at the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Name for people: log lines, SMBIOS. Not trusted, not unique.
    pub name: String,
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: MiB,
    /// Where the machine starts from.
    pub boot: Boot,
    /// Disks in the order of their PCI slots; the first is the boot disk.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces in the order of their PCI slots.
    pub nics: Vec<NicSpec>,
    /// What else it has; takes effect at the next start.
    #[serde(default)]
    pub hardware: Hardware,
}

/// What a machine has beside processors, memory, disks and interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// How the vCPUs are arranged; one socket with a core for each when `None`.
    #[serde(default)]
    pub topology: Option<Topology>,
    /// A watchdog, and what happens when the guest stops calling it; `None` for a machine without.
    #[serde(default)]
    pub watchdog: Option<Bite>,
    /// What starts the machine.
    #[serde(default)]
    pub firmware: Firmware,
}

/// What happens to a guest that started its watchdog and then stopped calling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bite {
    /// It is started again.
    Reset,
    /// It is switched off, and stays off.
    PowerOff,
    /// It is stopped in place until its owner lets it go on.
    Pause,
    /// Nothing.
    Nothing,
}

/// What starts a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// The host starts the kernel that [`Boot`] says.
    #[default]
    Direct,
    /// UEFI firmware, which starts what it finds on the disks. Its variables are kept with the server.
    Uefi,
}

/// Where a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Boot {
    /// The guest's own kernel and initrd, found on its first disk by its boot entries at every start.
    Disk,
    /// A kernel (bzImage or PVH ELF) and initrd named by the image.
    Kernel {
        /// Raw kernel file in the pool.
        kernel: PathBuf,
        /// Raw initrd file in the pool.
        initrd: Option<PathBuf>,
        /// Kernel command line.
        command_line: String,
    },
}

/// One disk: a raw file in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Stable name of the disk in this server (volume id, or `root`, `ephemeral0`, `config`): what hot-unplug refers to.
    pub key: String,
    /// The raw file, as `blockd` named it.
    pub path: PathBuf,
    /// Guest may not write.
    pub read_only: bool,
    /// virtio-blk serial, at most 20 bytes.
    pub serial: String,
    /// What it may move; may change while it is plugged in.
    #[serde(default)]
    pub limits: Limits,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NicSpec {
    /// The port whose tap this is; `hostd` gets the tap's fd from `netd`.
    pub port: PortId,
    /// Guest-visible address.
    pub mac: Mac,
    /// Advertised MTU in bytes.
    pub mtu: u16,
    /// What it may carry; may change while it is plugged in.
    #[serde(default)]
    pub limits: NicLimits,
}

/// The power state that should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "power", rename_all = "snake_case")]
pub enum Power {
    /// Running.
    On,
    /// Off. The ACPI power button first, the plug after `grace_secs` (0: the plug at once).
    Off {
        /// How long the guest may take to shut itself down, in seconds.
        grace_secs: u32,
    },
    /// Stopped in place, memory kept.
    Paused,
    /// Not running, its memory in a file of the host; a machine that is off stays off.
    Suspended,
}

/// How often the machine should have been restarted by request. A higher `count` than the last applied restarts it once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reboots {
    /// Number of reboots asked for since the server was created.
    pub count: u64,
    /// Seconds the guest may take to shut down by itself for the latest one; 0 is a hard reboot.
    pub grace_secs: u32,
}

/// A server as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureServer {
    /// Which server.
    pub id: ServerId,
    /// Number of this wanted state.
    pub generation: Generation,
    /// What it is made of.
    pub spec: ServerSpec,
    /// Wanted power state.
    pub power: Power,
    /// Wanted count of reboots.
    #[serde(default)]
    pub reboots: Reboots,
    /// Answer once this generation is settled (reached or failed), or after this many milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}

impl Call for EnsureServer {
    const PATH: &'static str = "/v1/ensure-server";
    type Reply = Observed;
}

/// A server as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Which server.
    pub id: ServerId,
    /// Latest generation accepted.
    pub wanted: Generation,
    /// Latest generation that was reached or failed.
    pub settled: Generation,
    /// What the machine does now.
    pub power: PowerNow,
    /// Reboots done of those asked for.
    pub reboots: u64,
    /// Keys of the disks plugged in now.
    pub disks: Vec<String>,
    /// Ports plugged in now.
    pub nics: Vec<PortId>,
    /// Why `settled` was not reached, with remedy; `None` when it was.
    pub fault: Option<String>,
    /// `vmm` or `qemu`.
    pub hypervisor: String,
    /// The guest's kernel reported that it panicked, and the machine still stands.
    #[serde(default)]
    pub panicked: bool,
    /// How the latest machine that has ended did so.
    #[serde(default)]
    pub last_end: Option<MachineEnd>,
}

/// What a machine does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerNow {
    /// Executing.
    Running,
    /// Stopped in place.
    Paused,
    /// Not running, its memory in a file of the host.
    Suspended,
    /// Not running because it was asked to be off, or shut itself down.
    Off,
    /// Not running because it crashed; `fault` says how.
    Crashed,
}

/// Ends a server: kills its machine and forgets all about it. Harmless when it is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgetServer {
    /// Which server.
    pub id: ServerId,
    /// By whose word.
    pub by: Warrant,
}

impl Call for ForgetServer {
    const PATH: &'static str = "/v1/forget-server";
    type Reply = ();
}

/// Reads one server, answering as soon as its state differs from what the caller knows, or after `wait_ms`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WatchServer {
    /// Which server.
    pub id: ServerId,
    /// Answer once `settled` is at least this generation.
    pub settled: Generation,
    /// At most this many milliseconds.
    pub wait_ms: u64,
}

impl Call for WatchServer {
    const PATH: &'static str = "/v1/watch-server";
    type Reply = Observed;
}

/// Reads every server known to the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListServers {}

impl Call for ListServers {
    const PATH: &'static str = "/v1/list-servers";
    type Reply = Vec<Observed>;
}

/// Reads the end of a server's serial console log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadConsole {
    /// Which server.
    pub id: ServerId,
    /// Number of lines from the end; `None` is all that is kept.
    pub lines: Option<u32>,
}

impl Call for ReadConsole {
    const PATH: &'static str = "/v1/read-console";
    /// Invalid UTF-8 is replaced.
    type Reply = String;
}

/// Asks what the host has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DescribeHost {}

impl Call for DescribeHost {
    const PATH: &'static str = "/v1/describe-host";
    type Reply = HostFacts;
}

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Host name: compute host, availability-zone member, provider name.
    pub name: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory of the machine.
    pub memory: MiB,
    /// `vmm`, `qemu` or `simulated`.
    pub hypervisor: String,
    /// Why that hypervisor was chosen, for people.
    pub reason: String,
    /// CPU model name; `simulated` when there is no CPU behind the figures.
    pub cpu_model: String,
    /// Disk room that a simulated host claims to have; `None` on a real host, whose room is that of its pool.
    #[serde(default)]
    pub disk: Option<GiB>,
}
