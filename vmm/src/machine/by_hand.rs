//! `vmm run`: one guest by hand, with its serial console on the terminal.

#![allow(unsafe_code)]

use super::connector::{self, Connector};
use super::driver::{Driver, Typed};
use super::incoming::{self, Reception};
use super::memory::Ram;
use super::slots::Role;
use super::{BuildError, Life, Origin, Setup, Source, build, devices};
use crate::jail::{self, JailError, ThreadKind};
use crate::migration::frame::Stream;
use crate::migration::receive::ReceiveError;
use crate::snapshot::{self, SnapshotError};
use crate::virtio::blk::BlkConfig;
use crate::virtio::vhost_user::kind::TAG_MAX;
use clap::Args;
use kvm_ioctls::Kvm;
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wire::MiB;
use wire::ids::{Mac, PortId, ServerId};
use wire::machine::{
    BackendDevice, CpuModel, EndReason, Identity, MemoryBacking, NicLimits, Pages, Topology, WatchdogAction,
};

/// MTU of a tap that is used by hand.
const MTU: u16 = 1500;

/// Arguments of `vmm run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kernel: bzImage, or ELF with a PVH note or a 64-bit Linux entry
    #[arg(long, required_unless_present_any = ["restore", "incoming"], conflicts_with_all = ["restore", "incoming"])]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, conflicts_with = "restore")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "console=ttyS0", conflicts_with = "restore")]
    pub append: String,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 128, conflicts_with = "restore")]
    pub mem: u64,
    /// Pages of guest memory: host, transparent (huge where possible), or huge ones that the host has set aside: 2M, 1G
    #[arg(long, default_value_t)]
    pub pages: Pages,
    /// Guest memory that other processes can map
    #[arg(long)]
    pub shared: bool,
    /// Take all guest memory from the host before the start
    #[arg(long)]
    pub prefault: bool,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, conflicts_with = "restore")]
    pub cpus: u32,
    /// CPU model: host, or what every machine of a generation has: x86-64-v2, x86-64-v3, x86-64-v4
    #[arg(long, default_value_t, conflicts_with = "restore")]
    pub cpu: CpuModel,
    /// Sockets, cores and threads, which multiply to the number of vCPUs, as in 2,4,1
    #[arg(long, conflicts_with = "restore")]
    pub topology: Option<Topology>,
    /// Raw disk image; may be repeated
    #[arg(long = "disk")]
    pub disks: Vec<PathBuf>,
    /// Name of an existing tap device; may be repeated
    #[arg(long = "tap")]
    pub taps: Vec<String>,
    /// Socket where a vhost-user-blk back end listens; may be repeated
    #[arg(long = "vhost-user-blk", value_name = "SOCKET")]
    pub vhost_user_blk: Vec<PathBuf>,
    /// Socket where a vhost-user-net back end listens; may be repeated
    #[arg(long = "vhost-user-net", value_name = "SOCKET")]
    pub vhost_user_net: Vec<PathBuf>,
    /// Shared directory: the tag that the guest mounts it by, and the socket where virtiofsd listens; may be repeated
    #[arg(long = "fs", value_name = "TAG=SOCKET", value_parser = tag_and_socket)]
    pub fs: Vec<(String, PathBuf)>,
    /// Directory for one snapshot, which Ctrl-A s takes: the files `state` and `memory`, which must not be there yet
    #[arg(long)]
    pub snapshot: Option<PathBuf>,
    /// Directory of a snapshot to go on from, with the disks and taps that the guest had, in the same order
    #[arg(long)]
    pub restore: Option<PathBuf>,
    /// Socket where this guest waits for another monitor (`vmm run --incoming`), to which Ctrl-A m then moves it
    #[arg(long, value_name = "SOCKET")]
    pub migrate: Option<PathBuf>,
    /// Socket of the monitor whose guest is to go on here, with the same --mem, --cpus, --disk and --tap, in the same order
    #[arg(long, value_name = "SOCKET", conflicts_with = "restore")]
    pub incoming: Option<PathBuf>,
    /// Do without system call filters and Landlock: on a developer's machine only
    #[arg(long)]
    pub no_jail: bool,
    /// Give the guest a watchdog (driver wdat_wdt)
    #[arg(long)]
    pub watchdog: bool,
    /// KVM device
    #[arg(long, default_value = "/dev/kvm", hide = true)]
    pub kvm: PathBuf,
}

fn tag_and_socket(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((tag, socket)) if (1..=TAG_MAX).contains(&tag.len()) && !socket.is_empty() => {
            Ok((tag.to_owned(), socket.into()))
        }
        _ => Err(format!(
            "'{text}' is no shared directory: give a tag of 1 to {TAG_MAX} bytes and virtiofsd's socket, as in data=/run/data.sock"
        )),
    }
}

/// Why a guest did not start.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot connect to a back end at {path}: {source}; start it first, listening there", path = path.display())]
    Backend { path: PathBuf, source: std::io::Error },
    #[error("cannot start the process that connects to back ends: {0}")]
    Connector(std::io::Error),
    #[error("cannot open the {what} {path}: {source}{remedy}", path = path.display())]
    Open { what: &'static str, path: PathBuf, source: std::io::Error, remedy: &'static str },
    #[error(
        "cannot open tap {0}: {1}; make it with: ip tuntap add dev {0} mode tap vnet_hdr && ip link set {0} up"
    )]
    Tap(String, std::io::Error),
    #[error("'{0}' is no name of a network device: it has 1 to 15 bytes and no slash")]
    TapName(String),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error("cannot make {path} for a snapshot: {source}", path = path.display())]
    Snapshot { path: PathBuf, source: std::io::Error },
    #[error("cannot go on from the snapshot in {path}: {source}", path = path.display())]
    Restore { path: PathBuf, source: SnapshotError },
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Stream { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error("cannot confine the driver thread: {0}")]
    Confine(std::io::Error),
    #[error("cannot use the terminal: {0}")]
    Terminal(#[from] std::io::Error),
}

/// Runs a guest until it ends. Returns the process's exit status.
#[must_use]
pub fn main_run(args: &RunArgs) -> ExitCode {
    jail::panics_end_it();
    match run(args) {
        Ok(end) => {
            match end.reason {
                EndReason::PowerOff
                | EndReason::PowerButton
                | EndReason::Reset
                | EndReason::TripleFault
                | EndReason::Migrated
                | EndReason::Stopped => {}
                EndReason::Panicked | EndReason::Watchdog | EndReason::NotStarted | EndReason::Failed => {
                    eprintln!("vmm: {}", end.detail)
                }
            }
            ExitCode::from(end.reason.exit_code())
        }
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::from(EndReason::NotStarted.exit_code())
        }
    }
}

fn run(args: &RunArgs) -> Result<wire::machine::MachineEnd, RunError> {
    let backends = backends(args);
    let sockets: Vec<PathBuf> = backends.iter().map(|(_, socket)| socket.clone()).collect();
    // Before anything is open that it would have too.
    let mut connector =
        (!sockets.is_empty()).then(|| Connector::start(&sockets).map_err(RunError::Connector)).transpose()?;
    let backends = backends.into_iter().map(connected).collect::<Result<Vec<_>, _>>()?;
    let kvm_hint =
        "; is virtualisation switched on, the kvm module loaded, and may you use it? `vmm probe` tells more";
    let kvm = open("KVM device", &args.kvm, true, kvm_hint)?.into_raw_fd();
    // SAFETY: the descriptor is open and ours alone.
    let kvm = unsafe { Kvm::from_raw_fd(kvm) };
    let stream = args.incoming.as_deref().map(connect).transpose()?;
    let begin = if stream.is_none() { Some(origin(args)?) } else { None };
    let listener = args.migrate.as_deref().map(listen).transpose()?;
    let memory = begin.as_ref().map_or(MiB(args.mem), |(_, _, memory)| *memory);
    let backing = MemoryBacking {
        shared: args.shared || connector.is_some(),
        pages: args.pages,
        prefault: args.prefault,
    };
    let memory = Ram::new(memory, backing);
    let console = Box::new(std::io::stdout().as_fd().try_clone_to_owned().map(Terminal::new)?);
    let snapshot_to = args.snapshot.as_deref().map(snapshot_files).transpose()?;
    let taps = args.taps.iter().map(|name| open_tap(name)).collect::<Result<Vec<_>, _>>()?;
    let mut disks = Vec::with_capacity(args.disks.len());
    for path in &args.disks {
        let read_only = std::fs::metadata(path).is_ok_and(|meta| meta.permissions().readonly());
        disks.push((path, open("disk", path, !read_only, "")?, read_only));
    }
    // Before the first thread is started: what a thread inherits is what it was started with.
    if !args.no_jail {
        jail::give_up_names()?;
        jail::arm()?;
    }
    let mut reception = Reception::new(None);
    let (origin, vcpus, mut arrival) = match (begin, stream) {
        (Some((origin, vcpus, _)), _) => (origin, vcpus, None),
        (None, stream) => {
            let stream = stream.ok_or_else(|| RunError::Terminal(std::io::ErrorKind::NotFound.into()))?;
            let host = incoming::host(&kvm, args.cpus, args.topology, &memory, roles(args))?;
            let taps = (1u8..).zip(&taps);
            let interfaces = taps
                .map(|(index, tap)| Ok((File::from(tap.try_clone()?), mac(index))))
                .collect::<std::io::Result<Vec<_>>>()?;
            let (origin, arrival) = incoming::take_in(stream, &host, &memory, interfaces, &mut reception)?;
            (origin, args.cpus, Some(arrival))
        }
    };
    // What the devices were called, in the order of their slots, when the machine goes on.
    let roles = origin.slots();
    let mut built = build(Setup {
        kvm,
        vcpus,
        max_vcpus: None,
        cpu_model: args.cpu,
        topology: args.topology,
        memory,
        origin,
        console,
        id: ServerId::new(),
        identity: Identity::default(),
        watchdog: args.watchdog,
        watchdog_action: WatchdogAction::End,
    })?;
    let plugged = |error| RunError::Build(BuildError::Device(error));
    let mut made = vec![devices::entropy().map_err(plugged)?];
    let mut ports = roles.iter().flatten().filter_map(|slot| match &slot.role {
        Role::Nic { port } => Some(*port),
        Role::Rng
        | Role::Balloon
        | Role::Vsock
        | Role::Console
        | Role::Memory
        | Role::Disk { .. }
        | Role::Files { .. } => None,
    });
    for (index, tap) in (1u8..).zip(taps) {
        let port = ports.next().unwrap_or_else(|| port(index));
        made.push(devices::nic(port, vec![tap], mac(index), MTU, &NicLimits::default()).map_err(plugged)?);
    }
    let mut keys = roles.iter().flatten().filter_map(|slot| match &slot.role {
        Role::Disk { key } => Some(key.clone()),
        Role::Rng
        | Role::Balloon
        | Role::Vsock
        | Role::Console
        | Role::Memory
        | Role::Nic { .. }
        | Role::Files { .. } => None,
    });
    for (path, file, read_only) in disks {
        let config = BlkConfig { read_only, queues: devices::disk_queues(vcpus), ..BlkConfig::default() };
        let key = keys.next().unwrap_or_else(|| path.display().to_string());
        made.push(devices::disk(key, file.into(), &config).map_err(plugged)?);
    }
    for (mut device, socket) in backends {
        match &mut device {
            BackendDevice::Disk { key } => *key = keys.next().unwrap_or_else(|| key.clone()),
            BackendDevice::Nic { port, .. } => *port = ports.next().unwrap_or(*port),
            BackendDevice::Files { .. } => {}
        }
        let (signals, memory) = (built.slots().signals(), built.slots().guest_memory());
        let notify = std::sync::Arc::new(move || signals.wake());
        made.push(devices::backend(&device, socket, &memory, vcpus, notify).map_err(plugged)?);
        if let Some(connector) = &mut connector {
            connector.add(devices::role_of(&device.name()));
        }
    }
    match &roles {
        None => {
            for (role, device) in made {
                built.slots().plug(role, device, false).map_err(plugged)?;
            }
        }
        Some(slots) => built.slots().restore(made, slots).map_err(BuildError::from)?,
    }
    let terminal = RawTerminal::enter();
    let typed = Typed::new(std::io::stdin().as_fd().try_clone_to_owned()?, snapshot_to, listener);
    let machine = built.start(jail::confine_vcpu)?;
    jail::confine(ThreadKind::Driver).map_err(RunError::Confine)?;
    if let Some(arrival) = &mut arrival {
        arrival.await_commit(&mut reception)?;
    }
    let mut driver = Driver::new(machine, None, Some(typed));
    if let Some(arrival) = arrival {
        driver = driver.arriving(arrival, &reception.close().1);
    }
    driver.connector = connector;
    let end = driver.run();
    // The process ends: taking the machine apart first would only cost time.
    std::mem::forget(driver);
    drop(terminal);
    Ok(end)
}

/// The devices of a guest that comes from another monitor by hand.
fn roles(args: &RunArgs) -> Vec<Role> {
    let nics = (1u8..).zip(&args.taps).map(|(index, _)| Role::Nic { port: port(index) });
    let disks = args.disks.iter().map(|path| Role::Disk { key: path.display().to_string() });
    std::iter::once(Role::Rng).chain(nics).chain(disks).collect()
}

/// The address of a tap by its number.
fn mac(index: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, index])
}

/// What a tap is called: the same in every monitor, so that a guest finds it again in another one.
fn port(index: u8) -> PortId {
    format!("00000000-0000-4000-8000-{index:012}").parse().unwrap_or_else(|_| PortId::new())
}

/// Connects to the monitor that a guest is to come from.
fn connect(path: &Path) -> Result<Stream, RunError> {
    let failed =
        |source| RunError::Stream { what: "connect to the other monitor at", path: path.to_owned(), source };
    let socket = UnixStream::connect(path).map_err(failed)?;
    Stream::new(socket.into()).map_err(|error| failed(error.into()))
}

/// Waits for the monitor that a guest is to go to.
fn listen(path: &Path) -> Result<UnixListener, RunError> {
    let failed =
        |source| RunError::Stream { what: "wait for another monitor at", path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The devices that back ends work, and where those listen.
fn backends(args: &RunArgs) -> Vec<(BackendDevice, PathBuf)> {
    let disks = args.vhost_user_blk.iter().map(|socket| {
        let key = socket.display().to_string();
        (BackendDevice::Disk { key }, socket.clone())
    });
    // After the taps.
    let first = u8::try_from(args.taps.len()).unwrap_or(u8::MAX).saturating_add(1);
    let nics = (first..).zip(&args.vhost_user_net).map(|(index, socket)| {
        let mac = Mac([2, 0, 0, 0, 0, index]);
        (BackendDevice::Nic { port: PortId::new(), mac, mtu: MTU }, socket.clone())
    });
    let files =
        args.fs.iter().map(|(tag, socket)| (BackendDevice::Files { tag: tag.clone() }, socket.clone()));
    disks.chain(nics).chain(files).collect()
}

fn connected((device, path): (BackendDevice, PathBuf)) -> Result<(BackendDevice, OwnedFd), RunError> {
    match connector::connect(&path) {
        Ok(socket) => Ok((device, socket)),
        Err(source) => Err(RunError::Backend { path, source }),
    }
}

/// Where the guest begins, and its vCPUs and memory.
fn origin(args: &RunArgs) -> Result<(Origin, u32, MiB), RunError> {
    if let Some(directory) = &args.restore {
        let mut state = open("snapshot's state", &directory.join("state"), false, "")?;
        let memory = open("snapshot's memory", &directory.join("memory"), false, "")?;
        let state = snapshot::file::load(&mut state)
            .map_err(|error| RunError::Restore { path: directory.clone(), source: error.into() })?;
        let vcpus = u32::try_from(state.cpus.vcpus.len()).unwrap_or(u32::MAX);
        let size = state.memory;
        let (state, memory, life) = (Box::new(state), Source::File(memory), Life::Another);
        return Ok((Origin::Snapshot { state, memory, track: false, life }, vcpus, size));
    }
    let initrd = args.initrd.as_deref().map(|path| open("initrd", path, false, "")).transpose()?;
    let kernel = open("kernel", args.kernel.as_deref().unwrap_or(Path::new("")), false, "")?;
    Ok((Origin::Boot { kernel, initrd, command_line: args.append.clone() }, args.cpus, MiB(args.mem)))
}

/// Makes the files of a snapshot: once the walls stand, nothing can be made any more.
fn snapshot_files(directory: &Path) -> Result<[File; 2], RunError> {
    let make = |path: PathBuf| {
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        made.map_err(|source| RunError::Snapshot { path, source })
    };
    std::fs::create_dir_all(directory)
        .map_err(|source| RunError::Snapshot { path: directory.to_owned(), source })?;
    Ok([make(directory.join("state"))?, make(directory.join("memory"))?])
}

fn open(what: &'static str, path: &Path, write: bool, remedy: &'static str) -> Result<File, RunError> {
    OpenOptions::new().read(true).write(write).open(path).map_err(|source| RunError::Open {
        what,
        path: path.to_owned(),
        source,
        remedy,
    })
}

/// Opens an existing tap the way that devices want it.
fn open_tap(name: &str) -> Result<OwnedFd, RunError> {
    if name.is_empty() || name.len() > 15 || name.contains('/') {
        return Err(RunError::TapName(name.into()));
    }
    let refused = |error| RunError::Tap(name.into(), error);
    if !Path::new("/sys/class/net").join(name).exists() {
        return Err(refused(std::io::ErrorKind::NotFound.into()));
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(refused)?;
    // SAFETY: `ifreq` is plain bytes; zero is a value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = std::ffi::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: the kernel reads and writes one `ifreq`.
    unsafe { tunsetiff(std::os::fd::AsRawFd::as_raw_fd(&file), &raw const request) }
        .map_err(|error| refused(error.into()))?;
    Ok(file.into())
}

/// `TUNSETIFF`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
nix::ioctl_write_ptr_bad!(
    /// Says which interface an open `/dev/net/tun` is.
    tunsetiff, TUNSETIFF, libc::ifreq
);

/// The terminal as the serial port's output: every byte goes out at once.
struct Terminal(File);

impl Terminal {
    fn new(to: OwnedFd) -> Self {
        Self(to.into())
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A terminal whose keys go to the guest one by one; as before when dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
        raw.input_flags &= !(InputFlags::ICRNL | InputFlags::IXON);
        if tcsetattr(&stdin, SetArg::TCSANOW, &raw).is_err() {
            return Self(None);
        }
        eprintln!("vmm: the terminal is the guest's serial port; Ctrl-A x ends the guest");
        Self(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
