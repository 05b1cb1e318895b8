//! `hostd` to `vmm`: one machine and its control socket.
//!
//! `hostd` starts `vmm serve --config-fd N` as root. N is a readable descriptor (memfd, file or pipe, read to its end)
//! with one JSON [`MachineConfig`], which names every other descriptor by its number in the new process. The started
//! process stays the parent of the machine (it holds no privilege and only waits): killing it kills the machine, and
//! its exit status is the machine's. It says what goes wrong on stderr, in lines of text.
//!
//! The control socket is the listening unix `SOCK_SEQPACKET` socket [`MachineConfig::control_fd`], made (and bound to
//! a path) by `hostd`; whoever connects sends one JSON [`MachineCall`] per packet of at most [`MAX_PACKET`] bytes,
//! with a descriptor as `SCM_RIGHTS` where the call says so, and gets one JSON [`MachineReply`] packet for each, in
//! order. Several clients may be connected; a client that waits does not hold up the others or the machine.
//!
//! How a machine ends: the reason is written as one JSON [`MachineEnd`] to [`MachineConfig::end_fd`] (and synced)
//! before the process exits with [`EndReason::exit_code`]. A file that stays empty means that the process was killed.
//! **A guest's reset ends the process with [`EndReason::Reset`] and `hostd` starts the next one**, because a new start
//! also reads the guest's own boot entries again: the guest may have installed another kernel.

use crate::ids::{Mac, PortId, ServerId};
use crate::{MiB, Refused};
use serde::{Deserialize, Serialize};

/// Version of these types. A monitor outlives upgrades of `hostd`, so [`MachineStatus::protocol`] tells which it speaks.
pub const PROTOCOL: u32 = 2;

/// Largest packet on the control socket, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most disks that a machine can have.
pub const MAX_DISKS: usize = 18;

/// Most network interfaces that a machine can have.
pub const MAX_NICS: usize = 8;

/// Number of a descriptor in the monitor's process.
pub type Fd = i32;

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
    /// What the guest finds of the host's processor.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// How the vCPUs are arranged; one socket with a core for each when `None`.
    #[serde(default)]
    pub topology: Option<Topology>,
    /// Guest memory.
    pub memory: MiB,
    /// `/dev/kvm`, opened read-write.
    pub kvm_fd: Fd,
    /// The listening control socket.
    pub control_fd: Fd,
    /// Files of the bounded serial console log, opened for reading and writing, as `vmm::console` describes them: current and previous.
    pub console_fds: Vec<Fd>,
    /// Limit of the console log in bytes, all files together.
    pub console_limit: u64,
    /// Where the [`MachineEnd`] is written: an empty file opened for writing.
    pub end_fd: Option<Fd>,
    /// Kernel: bzImage, ELF with a PVH note, or ELF64 with a 64-bit Linux entry. Needed unless the machine is restored.
    pub kernel_fd: Option<Fd>,
    /// Initial RAM disk.
    pub initrd_fd: Option<Fd>,
    /// Kernel command line.
    pub command_line: String,
    /// Disks in the order of their PCI slots, at most [`MAX_DISKS`].
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in the order of their PCI slots, at most [`MAX_NICS`].
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
    /// Goes on from a snapshot instead of booting; vCPUs, memory, disks and interfaces are those that the snapshot has.
    #[serde(default)]
    pub restore: Option<RestoreConfig>,
    /// A balloon; `None` for a machine without.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// Who the process becomes. `None` is refused unless the monitor is started with `--no-jail`, which leaves out every wall.
    pub jail: Option<JailConfig>,
}

/// What a guest finds of the host's processor: all of it, or what every machine of a generation has, so that the guest may go on on
/// another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuModel {
    /// All that KVM passes on.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// SSE4.2 and what came before: servers from about 2009 on.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// AVX2, AES: from about 2015 (Intel) and 2017 (AMD) on.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// AVX-512: from about 2017 (Intel) and 2022 (AMD) on.
    #[serde(rename = "x86-64-v4")]
    V4,
}

impl CpuModel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Host, Self::V2, Self::V3, Self::V4];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|model| model.name() == text).ok_or_else(|| {
            format!("there is no CPU model '{text}'; the models are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// How vCPUs are arranged; the numbers multiply to the number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl std::str::FromStr for Topology {
    type Err = String;

    /// Sockets, cores and threads, as in `2,4,1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<u32> = text.split(',').filter_map(|number| number.parse().ok()).collect();
        match numbers.as_slice() {
            [sockets, cores, threads] if text.matches(',').count() == 2 => {
                Ok(Self { sockets: *sockets, cores: *cores, threads: *threads })
            }
            _ => Err(format!("'{text}' is no topology: give sockets, cores and threads, as in 2,4,1")),
        }
    }
}

/// The files of a snapshot, opened for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// State.
    pub state_fd: Fd,
    /// Memory: mapped privately for as long as the machine lives, so nobody may change it meanwhile.
    pub memory_fd: Fd,
    /// Track what the guest writes from the start: see [`MachineCall::Snapshot`].
    #[serde(default)]
    pub track: bool,
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

/// A rate: a bucket of `burst` tokens that fills with `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Tokens that come each second, not 0.
    pub per_second: u64,
    /// Tokens that can be saved up, not 0.
    pub burst: u64,
}

/// Limits of a device; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes moved.
    #[serde(default)]
    pub bytes: Option<Limit>,
    /// Requests or packets.
    #[serde(default)]
    pub operations: Option<Limit>,
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
    /// Limits from the start; [`MachineCall::LimitDisk`] changes them.
    #[serde(default)]
    pub limits: Limits,
}

/// Limits of a network interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicLimits {
    /// What comes to the guest.
    #[serde(default)]
    pub to_guest: Limits,
    /// What comes from it.
    #[serde(default)]
    pub from_guest: Limits,
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
    /// Limits from the start; [`MachineCall::LimitNic`] changes them.
    #[serde(default)]
    pub limits: NicLimits,
}

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
    /// writing. A running machine stands still meanwhile. The files are not synced. Answers [`MachineReply::Snapshot`].
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
    /// Asks the guest to give up so much memory (0 for none). It goes there in its own time: see [`MachineCall::BalloonStatus`].
    Balloon {
        /// What the balloon is to hold.
        target: MiB,
    },
    /// Answers [`MachineReply::Balloon`].
    BalloonStatus,
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
    /// Not done, and why.
    Refused(Refused),
}

/// What a snapshot cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// Bytes of memory that were written; the rest of the memory file is holes.
    pub memory_bytes: u64,
    /// For how long the machine stood still, in microseconds.
    pub stood_us: u64,
}

/// A machine as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// [`PROTOCOL`] of the monitor.
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
    /// The guest's kernel reported (by pvpanic) that it panicked. What it does then is its own: stand still, write a crash dump, or
    /// reset, which ends the machine with [`EndReason::Panicked`].
    #[serde(default)]
    pub panicked: bool,
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
    /// How often statistics came. Asking for [`MachineCall::BalloonStatus`] makes the guest tell newer ones, to be seen by the next.
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

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEnd {
    /// The kind.
    pub reason: EndReason,
    /// More, for people; empty when the kind says it all.
    #[serde(default)]
    pub detail: String,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The guest powered itself off (ACPI S5), unasked.
    PowerOff,
    /// The guest powered itself off after it took notice of the power button.
    PowerButton,
    /// The guest asked for a reset (i8042, ACPI reset register): start it again.
    Reset,
    /// The guest triple-faulted, which is also how some guests reset: start it again, with a limit on how often.
    TripleFault,
    /// The guest's kernel panicked and then reset: start it again, with a limit on how often.
    Panicked,
    /// The guest started its watchdog and then stopped calling it: it hangs. Start it again.
    Watchdog,
    /// [`MachineCall::Stop`].
    Stopped,
    /// It could not be built: bad configuration, or the host refused something.
    NotStarted,
    /// KVM gave up on a vCPU, or the monitor found a bug in itself.
    Failed,
}

impl EndReason {
    /// Exit status of the process.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::NotStarted => 1,
            Self::Reset => 3,
            Self::TripleFault => 4,
            Self::Stopped => 5,
            Self::Failed => 6,
            Self::PowerButton => 7,
            Self::Panicked => 8,
            Self::Watchdog => 9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_their_words_on_the_wire() {
        let limits = Limits { bytes: Some(Limit { per_second: 5, burst: 6 }), operations: None };
        let call = MachineCall::PlugDisk {
            key: "v1".into(),
            read_only: true,
            serial: "abc".into(),
            block_size: BlockSize::B4096,
            limits,
        };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"call":"plug_disk","key":"v1","read_only":true,"serial":"abc","block_size":"4096","#,
                r#""limits":{"bytes":{"per_second":5,"burst":6},"operations":null}}"#
            )
        );
        assert_eq!(serde_json::from_str::<MachineCall>(&text).unwrap(), call);
        // As a daemon of the previous version says it.
        let old = r#"{"call":"plug_disk","key":"v1","read_only":true,"serial":"abc"}"#;
        let (block_size, limits) = (BlockSize::B512, Limits::default());
        let as_now = MachineCall::PlugDisk {
            key: "v1".into(),
            read_only: true,
            serial: "abc".into(),
            block_size,
            limits,
        };
        assert_eq!(serde_json::from_str::<MachineCall>(old).unwrap(), as_now);
        assert_eq!(serde_json::from_str::<MachineCall>(r#"{"call":"pause"}"#).unwrap(), MachineCall::Pause);
        let end = MachineEnd { reason: EndReason::TripleFault, detail: String::new() };
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"reason":"triple_fault","detail":""}"#);
    }

    #[test]
    fn models_are_called_the_same_everywhere() {
        for model in CpuModel::ALL {
            assert_eq!(serde_json::to_string(&model).unwrap(), format!("\"{model}\""));
            assert_eq!(model.name().parse(), Ok(model));
        }
        assert!("v5".parse::<CpuModel>().unwrap_err().contains("x86-64-v2"));
        assert_eq!("2,4,1".parse(), Ok(Topology { sockets: 2, cores: 4, threads: 1 }));
        for wrong in ["", "2,4", "2,x,1,1", "1,2,3,4", "-1,1,1"] {
            assert!(wrong.parse::<Topology>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn exit_codes_differ() {
        let all = [
            EndReason::PowerOff,
            EndReason::Reset,
            EndReason::TripleFault,
            EndReason::Stopped,
            EndReason::NotStarted,
            EndReason::Failed,
            EndReason::PowerButton,
            EndReason::Panicked,
            EndReason::Watchdog,
        ];
        let codes: std::collections::BTreeSet<u8> = all.iter().map(|reason| reason.exit_code()).collect();
        assert_eq!(codes.len(), all.len());
    }
}
