//! `vmm serve`: a machine for `hostd`, from a configuration that names descriptors.

#![allow(unsafe_code)]

use super::devices::{self, Made};
use super::driver::{Driver, check_balloon, check_disk, check_nic};
use super::incoming::{self, Reception};
use super::memory::Ram;
use super::{BuildError, Built, Life, Machine, Origin, Setup, Source, build};
use crate::console::{ConsoleError, ConsoleLog};
use crate::control::Server;
use crate::jail::{self, Fork, JailError, ThreadKind};
use crate::migration::frame::Stream;
use crate::migration::receive::ReceiveError;
use crate::snapshot::{self, SlotState, SnapshotError};
use crate::virtio::blk::BlkConfig;
use crate::virtio::net::MAX_PAIRS;
use crate::virtio::vsock::LEAST_GUEST;
use kvm_ioctls::Kvm;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use wire::ids::Mac;
use wire::machine::{
    BackendDevice, EndReason, Fd, Limits, MAX_DISKS, MAX_NICS, MachineConfig, MachineEnd, NicConfig,
};

/// Largest configuration in bytes.
const LARGEST_CONFIG: u64 = 1 << 20;

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be read.
    #[error("cannot read the configuration from descriptor {0}: {1}")]
    Read(Fd, std::io::Error),
    /// The configuration is wrong.
    #[error("the configuration is wrong: {0}")]
    Config(String),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The console log.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The control socket.
    #[error("cannot use the control socket: {0}")]
    Control(nix::Error),
    /// The machine.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A machine that was to come.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The filters.
    #[error("cannot confine the driver thread: {0}")]
    Confine(std::io::Error),
}

/// Serves the machine that the configuration on a descriptor describes, until it ends. Returns the process's exit status.
///
/// Unless `jailed`, every wall of the jail is left out: for developers without root, never for guests of others.
#[must_use]
pub fn main_serve(config_fd: Fd, jailed: bool) -> ExitCode {
    jail::panics_end_it();
    let config = match read_config(config_fd) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("vmm: {error}");
            return ExitCode::from(EndReason::NotStarted.exit_code());
        }
    };
    let mut descriptors = Descriptors::default();
    let end_file = match descriptors.take_optional(config.end_fd) {
        Ok(file) => file.map(File::from),
        Err(error) => {
            eprintln!("vmm: {error}");
            return ExitCode::from(EndReason::NotStarted.exit_code());
        }
    };
    let end = match serve(&config, &mut descriptors, end_file.as_ref(), jailed) {
        Ok(Served::Ended(end)) => end,
        Ok(Served::Kept(status)) => return status,
        Err(error) => {
            eprintln!("vmm: machine {} did not start: {error}", config.id);
            MachineEnd { reason: EndReason::NotStarted, detail: error.to_string() }
        }
    };
    if let Some(mut file) = end_file
        && let Err(error) = record(&mut file, &end)
    {
        eprintln!("vmm: cannot record how machine {} ended ({end:?}): {error}", config.id);
    }
    ExitCode::from(end.reason.exit_code())
}

fn record(file: &mut File, end: &MachineEnd) -> std::io::Result<()> {
    file.write_all(&serde_json::to_vec(end)?)?;
    // A pipe has nothing to sync.
    let _ = file.sync_data();
    Ok(())
}

enum Served {
    Ended(MachineEnd),
    Kept(ExitCode),
}

fn serve(
    config: &MachineConfig,
    descriptors: &mut Descriptors,
    end: Option<&File>,
    jailed: bool,
) -> Result<Served, ServeError> {
    check(config)?;
    // Before the jail: afterwards nothing can be looked at.
    let mut backing = config.memory_backing;
    // Back ends map it.
    backing.shared |= !config.backends.is_empty();
    let ram = Ram { most: config.max_memory, ..Ram::new(config.memory, backing) };
    let all = config.max_vcpus.unwrap_or(config.vcpus);
    let ram = ram.with_nodes(&config.numa, all).map_err(BuildError::from)?;
    if jailed {
        let to_be = config.jail.as_ref().ok_or(JailError::Missing)?;
        jail::leave_namespaces()?;
        let leash = match jail::fork_keeper(to_be, end)? {
            Fork::Ended(status) => return Ok(Served::Kept(status)),
            Fork::Machine(leash) => leash,
        };
        jail::enter(to_be)?;
        leash.fasten()?;
        jail::arm()?;
    } else {
        eprintln!(
            "vmm: machine {}: --no-jail: a guest that breaks into this process has its user's rights",
            config.id
        );
    }

    let console = console_log(descriptors, &config.console_fds, config.console_limit)?;
    let kvm = descriptors.take(config.kvm_fd)?.into_raw_fd();
    // SAFETY: the descriptor is open and ours alone, as `Descriptors` found.
    let kvm = unsafe { Kvm::from_raw_fd(kvm) };
    let listener = descriptors.take(config.control_fd)?;
    let server = Server::new(listener).map_err(ServeError::Control)?;
    let interfaces = interfaces(config)?;
    let made = make_devices(config, descriptors)?;
    let setup = |kvm, origin| Setup {
        kvm,
        vcpus: config.vcpus,
        max_vcpus: config.max_vcpus,
        cpu_model: config.cpu_model,
        topology: config.topology,
        memory: ram.clone(),
        origin,
        console: Box::new(console),
        id: config.id,
        identity: config.identity.clone(),
        watchdog: config.watchdog,
        watchdog_action: config.watchdog_action,
    };
    let mut driver = match config.incoming {
        None => {
            if config.restore.as_ref().is_some_and(|from| from.track) && !config.backends.is_empty() {
                let text = "what other processes write is not tracked: restore without `track`";
                return Err(ServeError::Config(text.into()));
            }
            let (origin, slots) = origin(config, descriptors)?;
            let mut built = build(setup(kvm, origin))?;
            let mut made = made;
            made.extend(memory_devices(config, descriptors, &mut built)?);
            let machine = start(with_devices(built, made, slots.as_deref())?)?;
            let stands = config.restore.is_some_and(|from| from.paused);
            Driver::new(machine, Some(server), None).standing(stands)
        }
        Some(from) => {
            if config.restore.is_some() || config.kernel_fd.is_some() {
                return Err(one_beginning());
            }
            if !config.backends.is_empty() || config.max_memory.is_some() {
                let text = "a machine that comes over a stream has no devices that another process works, and no memory that is plugged in";
                return Err(ServeError::Config(text.into()));
            }
            let stream = descriptors.take(from.stream_fd)?;
            let stream = Stream::new(stream).map_err(|error| {
                ServeError::Config(format!(
                    "the stream that a machine is to come over cannot be used: {error}"
                ))
            })?;
            let roles = made.iter().map(|(role, _)| role.clone()).collect();
            let host =
                incoming::host(&kvm, config.max_vcpus.unwrap_or(config.vcpus), config.topology, &ram, roles)?;
            let mut reception = Reception::new(Some(server));
            let (origin, mut arrival) = incoming::take_in(stream, &host, &ram, interfaces, &mut reception)?;
            let slots = origin.slots();
            let built = build(setup(kvm, origin)).map_err(ServeError::from);
            let built = built.and_then(|built| with_devices(built, made, slots.as_deref())).and_then(start);
            let machine = built.inspect_err(|error| arrival.refuse(&error.to_string()))?;
            arrival.await_commit(&mut reception)?;
            let (server, before) = reception.close();
            Driver::new(machine, server, None).arriving(arrival, &before)
        }
    };
    let end = driver.run();
    // The process ends: taking the machine apart first would only cost time.
    std::mem::forget(driver);
    Ok(Served::Ended(end))
}

/// Gives a machine its devices, where a snapshot had them or where there is room.
fn with_devices(mut built: Built, made: Vec<Made>, slots: Option<&[SlotState]>) -> Result<Built, ServeError> {
    match slots {
        None => {
            for (role, device) in made {
                built.slots().plug(role, device, false).map_err(BuildError::from)?;
            }
        }
        Some(slots) => built.slots().restore(made, slots).map_err(BuildError::from)?,
    }
    Ok(built)
}

/// Starts the machine's threads, and locks the driver in.
fn start(built: Built) -> Result<Machine, ServeError> {
    let machine = built.start(jail::confine_vcpu)?;
    jail::confine(ThreadKind::Driver).map_err(ServeError::Confine)?;
    Ok(machine)
}

/// Makes the devices of a configuration.
fn make_devices(config: &MachineConfig, descriptors: &mut Descriptors) -> Result<Vec<Made>, ServeError> {
    let plugged = |error| ServeError::Build(BuildError::Device(error));
    let (role, device) = devices::entropy().map_err(plugged)?;
    let mut made = vec![(role, device)];
    made.extend(config.balloon.map(devices::balloon));
    if let Some(vsock) = config.vsock {
        made.push(devices::vsock(vsock.cid, descriptors.take(vsock.listener_fd)?));
    }
    if let Some(console) = &config.virtio_console {
        let log = console_log(descriptors, &console.log_fds, console.limit)?;
        made.push(devices::console(Box::new(log), descriptors.take_optional(console.input_fd)?));
    }
    for nic in &config.nics {
        let taps = std::iter::once(&nic.fd).chain(&nic.more_fds).map(|fd| descriptors.take(*fd));
        let taps = taps.collect::<Result<Vec<_>, _>>()?;
        made.push(devices::nic(nic.port, taps, nic.mac, nic.mtu, &nic.limits).map_err(plugged)?);
    }
    for disk in &config.disks {
        let file = descriptors.take(disk.fd)?;
        let of = BlkConfig {
            read_only: disk.read_only,
            serial: disk.serial.clone(),
            queues: devices::disk_queues(config.max_vcpus.unwrap_or(config.vcpus)),
            block_size: disk.block_size,
            limits: disk.limits,
            ..BlkConfig::default()
        };
        let disk = devices::disk(disk.key.clone(), file, &of);
        made.push(disk.map_err(plugged)?);
    }
    Ok(made)
}

/// Makes the devices of a configuration that need guest memory.
fn memory_devices(
    config: &MachineConfig,
    descriptors: &mut Descriptors,
    built: &mut Built,
) -> Result<Vec<Made>, ServeError> {
    let mut made = Vec::new();
    if let Some(area) = built.pluggable() {
        made.push(devices::memory(area, config.memory, config.memory_backing.prefault));
    }
    for backend in &config.backends {
        let signals = built.slots().signals();
        let (socket, memory) = (descriptors.take(backend.socket_fd)?, built.slots().guest_memory());
        let notify = Arc::new(move || signals.wake());
        // As when it is plugged in later: a snapshot is restored to the same queues.
        let vcpus = config.max_vcpus.unwrap_or(config.vcpus);
        let device = devices::backend(&backend.device, socket, &memory, vcpus, notify);
        made.push(device.map_err(BuildError::from)?);
    }
    Ok(made)
}

/// The interfaces of a machine that comes from elsewhere, to say where it is now.
fn interfaces(config: &MachineConfig) -> Result<Vec<(File, Mac)>, ServeError> {
    if config.incoming.is_none() {
        return Ok(Vec::new());
    }
    let open = |nic: &NicConfig| {
        // SAFETY: F_DUPFD_CLOEXEC on any number is harmless.
        let fd = unsafe { libc::fcntl(nic.fd, libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 {
            return Err(ServeError::Config(format!("descriptor {} is not open", nic.fd)));
        }
        // SAFETY: the kernel just made this descriptor for us.
        Ok((File::from(unsafe { OwnedFd::from_raw_fd(fd) }), nic.mac))
    };
    config.nics.iter().map(open).collect()
}

fn one_beginning() -> ServeError {
    ServeError::Config(
        "a machine has a kernel, a snapshot to go on from, or a stream that it comes over: one of them"
            .into(),
    )
}

/// Where the machine begins, and the devices that a snapshot has.
fn origin(
    config: &MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<(Origin, Option<Vec<SlotState>>), ServeError> {
    match (&config.restore, config.kernel_fd) {
        (Some(from), None) => {
            let mut file = File::from(descriptors.take(from.state_fd)?);
            let state =
                snapshot::file::load(&mut file).map_err(SnapshotError::from).map_err(BuildError::from)?;
            let slots = state.slots.clone();
            let memory = descriptors.take(from.memory_fd)?.into();
            let (state, memory) = (Box::new(state), Source::File(memory));
            let life = Life::Another;
            Ok((Origin::Snapshot { state, memory, track: from.track, life }, Some(slots)))
        }
        (None, Some(kernel)) => {
            let kernel = descriptors.take(kernel)?.into();
            let initrd = descriptors.take_optional(config.initrd_fd)?.map(File::from);
            Ok((Origin::Boot { kernel, initrd, command_line: config.command_line.clone() }, None))
        }
        (Some(_), Some(_)) | (None, None) => Err(one_beginning()),
    }
}

fn console_log(descriptors: &mut Descriptors, fds: &[Fd], limit: u64) -> Result<ConsoleLog, ServeError> {
    let mut take = |index: usize| descriptors.take(*fds.get(index).unwrap_or(&-1)).map(File::from);
    Ok(ConsoleLog::new(take(0)?, take(1)?, limit)?)
}

fn read_config(fd: Fd) -> Result<MachineConfig, ServeError> {
    let file = Descriptors::default().take(fd)?;
    let mut text = Vec::new();
    let mut file = File::from(file).take(LARGEST_CONFIG);
    file.read_to_end(&mut text).map_err(|error| ServeError::Read(fd, error))?;
    serde_json::from_slice(&text).map_err(|error| ServeError::Config(error.to_string()))
}

fn check(config: &MachineConfig) -> Result<(), ServeError> {
    let wrong = |text: String| Err(ServeError::Config(text));
    let logs = [Some(&config.console_fds), config.virtio_console.as_ref().map(|console| &console.log_fds)];
    for fds in logs.into_iter().flatten() {
        if fds.len() != 2 {
            return wrong(format!(
                "{} console files are named; it takes two, current and previous",
                fds.len()
            ));
        }
    }
    if let Some(vsock) = config.vsock.filter(|vsock| vsock.cid < LEAST_GUEST) {
        return wrong(format!("the guest's socket address is {}; it is at least {LEAST_GUEST}", vsock.cid));
    }
    if config.disks.len() > MAX_DISKS || config.nics.len() > MAX_NICS {
        let (disks, nics) = (config.disks.len(), config.nics.len());
        return wrong(format!(
            "{disks} disks and {nics} network interfaces; at most {MAX_DISKS} and {MAX_NICS} fit"
        ));
    }
    if let Some(balloon) = &config.balloon {
        let checked = check_balloon(balloon.target, config.memory);
        checked.map_err(|refused| ServeError::Config(refused.to_string()))?;
    }
    for nic in &config.nics {
        check_nic(&nic.limits).map_err(|refused| ServeError::Config(refused.to_string()))?;
        let queues = nic.more_fds.len().saturating_add(1);
        if queues > MAX_PAIRS {
            return wrong(format!(
                "{queues} queues for network interface {}; at most {MAX_PAIRS} fit",
                nic.port
            ));
        }
    }
    for backend in &config.backends {
        if let BackendDevice::Disk { key } = &backend.device {
            check_disk(key, "", &Limits::default())
                .map_err(|refused| ServeError::Config(refused.to_string()))?;
        }
    }
    for disk in &config.disks {
        check_disk(&disk.key, &disk.serial, &disk.limits)
            .map_err(|refused| ServeError::Config(refused.to_string()))?;
    }
    Ok(())
}

/// Takes descriptors by number, each once.
#[derive(Default)]
struct Descriptors(BTreeSet<Fd>);

impl Descriptors {
    fn take(&mut self, fd: Fd) -> Result<OwnedFd, ServeError> {
        if fd <= 2 || !self.0.insert(fd) {
            return Err(ServeError::Config(format!(
                "descriptor {fd} is named twice or is a standard stream"
            )));
        }
        // SAFETY: F_GETFD and F_SETFD on any number are harmless.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(ServeError::Config(format!("descriptor {fd} is not open")));
        }
        // SAFETY: it is open, whoever started us gave it to us, and it is taken only once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn take_optional(&mut self, fd: Option<Fd>) -> Result<Option<OwnedFd>, ServeError> {
        fd.map(|fd| self.take(fd)).transpose()
    }
}
