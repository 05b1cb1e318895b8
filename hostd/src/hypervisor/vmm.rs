//! Our own monitor on KVM: `vmm serve`, one process (and its keeper) per guest.
//!
//! The monitor gets every descriptor at its start and jails itself. Its control socket, end file and console files are
//! in the server's directories, so a later `hostd` finds all of it by the server's id.

use super::{
    Adopted, Control, DiskNow, End, How, Hypervisor, Kind, Life, Machine, Plan, Seat, Status, figures, place,
};
use crate::cgroup;
use crate::process::{self, Launch, Process};
use crate::resources::Resources;
use crate::{console, durable, fault};
use base::fdpass;
use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wire::host::{
    Bite, DiskCounts, DiskFigures, DiskSpec, Figures, Firmware, MemoryFigures, NicCounts, NicFigures, NicSpec,
};
use wire::ids::PortId;
use wire::machine::{
    BalloonConfig, BlockSize, CpuModel, DeviceCounts, DiskConfig, EndReason, Identity, JailConfig,
    MachineCall, MachineConfig, MachineEnd, MachineReply, MachineState, MachineStatus, MemoryBacking,
    NicConfig, RestoreConfig, WatchdogAction,
};
use wire::{MiB, Refused, RefusedKind};

mod channel;

use channel::Channel;

/// The control socket in the run directory.
const CONTROL: &str = "control.sock";
/// The end file in the run directory.
const END: &str = "end.json";
/// The state of a suspended machine.
const STATE: &str = "state";
/// Its memory.
const MEMORY: &str = "memory";
/// Room that a suspended machine's state and the file system may need beside the guest's memory, in bytes.
const BESIDE: u64 = 64 << 20;
/// How long it may take to write a guest's memory, in seconds for each GiB, and for the least.
const WRITE_SECS_PER_GIB: u64 = 60;
/// Version of the calls since which every monitor counts what its devices move.
const COUNTS_SINCE: u32 = 3;
/// How long a monitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the watcher lets the monitor wait for news.
const NEWS_MS: u64 = 50_000;
/// What a monitor may use beside its guest's memory, in bytes: its own heap, and page cache of its disks.
const OVERHEAD: u64 = 256 << 20;

/// The hypervisor.
#[derive(Debug)]
pub struct Vmm {
    program: PathBuf,
    resources: Resources,
    cpu_model: CpuModel,
}

impl Vmm {
    /// One that runs this program, for guests that find this of the host's processor.
    #[must_use]
    pub fn new(program: PathBuf, resources: Resources, cpu_model: CpuModel) -> Self {
        Self { program, resources, cpu_model }
    }
}

impl Hypervisor for Vmm {
    fn kind(&self) -> Kind {
        Kind::Vmm
    }

    fn start(&self, plan: Plan) -> BoxFuture<'_, Result<Box<dyn Machine>, Refused>> {
        async move {
            let (program, resources) = (self.program.clone(), self.resources.clone());
            let (seat, paused, cpu_model) = (plan.seat.clone(), plan.paused, self.cpu_model);
            let handle = tokio::runtime::Handle::current();
            let process = tokio::task::spawn_blocking(move || {
                // The process handle registers with the runtime.
                let _inside = handle.enter();
                spawn(&program, &resources, &plan, cpu_model)
            })
            .await
            .map_err(|error| Refused::internal(error.to_string()))??;
            fault::point("spawned");
            let machine = VmmMachine::new(seat, process, self.resources.clone());
            let ready = async {
                match machine.status().await?.life {
                    Life::Ended(end) => match end.how {
                        How::NotStarted | How::Failed => Err(Refused::internal(end.detail)),
                        // It did start; its guest was quicker than the question. The driver learns of it as of any end.
                        How::PowerOff
                        | How::PowerButton
                        | How::Reset
                        | How::TripleFault
                        | How::Panicked
                        | How::Watchdog
                        | How::Stopped => Ok(()),
                    },
                    Life::Running if paused => machine.control(Control::Pause).await,
                    Life::Running | Life::Paused => Ok(()),
                }
            };
            match ready.await {
                Ok(()) => Ok(Box::new(machine) as Box<dyn Machine>),
                Err(refused) => {
                    machine.kill().await;
                    Err(Refused::internal(format!("the machine monitor did not start: {refused}")))
                }
            }
        }
        .boxed()
    }

    fn adopt(&self, seat: Seat, pid: Option<i32>) -> BoxFuture<'_, Result<Adopted, Refused>> {
        async move {
            let process = match pid {
                Some(pid) => Process::adopt(pid, &seat.owner, seat.id)
                    .map_err(place::trouble("take over the monitor"))?,
                None => None,
            };
            Ok(match (process, read_end(&seat)) {
                (Some(process), _) => {
                    Adopted::Machine(Box::new(VmmMachine::new(seat, process, self.resources.clone())))
                }
                (None, Some(end)) => Adopted::Ended(end),
                (None, None) => Adopted::Gone,
            })
        }
        .boxed()
    }
}

/// Opens everything and starts the process. All that was opened here is closed on return; the monitor keeps its own.
fn spawn(
    program: &Path,
    resources: &Resources,
    plan: &Plan,
    cpu_model: CpuModel,
) -> Result<Process, Refused> {
    let (seat, hardware) = (&plan.seat, plan.spec.hardware);
    if hardware.firmware == Firmware::Uefi {
        return Err(Refused::invalid("this monitor has no UEFI firmware: it starts a guest's kernel itself")
            .remedy(
                "give an image without hw_firmware_type=uefi, or run the host with hypervisor = \"qemu\"",
            ));
    }
    let log = place::prepare(seat).map_err(place::trouble("prepare the server's directories"))?;
    let consoles = [console::current(&seat.state), console::previous(&seat.state)]
        .iter()
        .map(|path| place::open_console(path, OpenOptions::new().read(true).write(true)))
        .collect::<io::Result<Vec<File>>>()
        .map_err(place::trouble("open the console log"))?;
    let end = File::create(seat.run.join(END)).map_err(place::trouble("make the end file"))?;
    let control = place::with_short_path(seat, CONTROL, fdpass::listen)
        .map_err(place::trouble("make the control socket"))?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|error| {
        Refused::unavailable(format!("cannot open /dev/kvm: {error}"))
            .remedy("load the kvm module, or choose hypervisor = \"auto\"")
    })?;
    let disks = plan.spec.disks.iter().map(|disk| resources.disk(disk)).collect::<Result<Vec<File>, _>>()?;
    let (boot, restore) = match &plan.restore {
        None => (Some(resources.boot(&plan.spec, &disks, seat.uid)?), None),
        Some(from) => {
            let open = |name: &str| {
                File::open(from.join(name)).map_err(place::trouble("open the suspended server's files"))
            };
            (None, Some([open(STATE)?, open(MEMORY)?]))
        }
    };
    let taps =
        plan.spec.nics.iter().map(|nic| resources.tap(nic.port)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let config = MachineConfig {
        id: seat.id,
        name: plan.spec.name.clone(),
        max_vcpus: None,
        vcpus: plan.spec.vcpus,
        cpu_model,
        topology: hardware.topology,
        memory: plan.spec.memory,
        memory_backing: MemoryBacking::default(),
        numa: Vec::new(),
        max_memory: None,
        kvm_fd: kvm.as_raw_fd(),
        control_fd: control.as_raw_fd(),
        console_fds: consoles.iter().map(AsRawFd::as_raw_fd).collect(),
        console_limit: seat.console_limit,
        end_fd: Some(end.as_raw_fd()),
        kernel_fd: boot.as_ref().map(|boot| boot.kernel.as_raw_fd()),
        initrd_fd: boot.as_ref().and_then(|boot| Some(boot.initrd.as_ref()?.as_raw_fd())),
        command_line: boot.as_ref().map(|boot| boot.command_line.clone()).unwrap_or_default(),
        disks: plan.spec.disks.iter().zip(&disks).map(|(disk, file)| disk_config(disk, file)).collect(),
        nics: plan.spec.nics.iter().zip(&taps).map(|(nic, tap)| nic_config(nic, tap)).collect(),
        identity: Identity::default(),
        restore: restore.as_ref().map(|[state, memory]| RestoreConfig {
            state_fd: state.as_raw_fd(),
            memory_fd: memory.as_raw_fd(),
            track: false,
            // What it goes on from is given up before its guest may touch a disk.
            paused: plan.paused,
        }),
        incoming: None,
        // Empty: it is there for its reports of free pages, which go back to the host, and its statistics.
        balloon: Some(BalloonConfig { target: MiB(0), deflate_on_oom: true }),
        backends: Vec::new(),
        vsock: None,
        virtio_console: None,
        watchdog: hardware.watchdog.is_some(),
        watchdog_action: match hardware.watchdog {
            None | Some(Bite::Reset | Bite::PowerOff) => WatchdogAction::End,
            Some(Bite::Pause) => WatchdogAction::Pause,
            Some(Bite::Nothing) => WatchdogAction::Count,
        },
        jail: Some(JailConfig { uid: seat.uid, gid: seat.uid }),
    };
    let config_file = in_memory(&config).map_err(place::trouble("write the machine's configuration"))?;
    let mut inherit: Vec<RawFd> =
        vec![config_file.as_raw_fd(), config.kvm_fd, config.control_fd, end.as_raw_fd()];
    inherit.extend(config.kernel_fd);
    inherit.extend(restore.iter().flatten().map(AsRawFd::as_raw_fd));
    inherit.extend(&config.console_fds);
    inherit.extend(config.initrd_fd);
    inherit.extend(config.disks.iter().map(|disk| disk.fd));
    inherit.extend(config.nics.iter().map(|nic| nic.fd));
    let memory = plan.spec.memory.bytes().map(|bytes| bytes.saturating_add(OVERHEAD));
    let cgroup =
        place::cgroup(seat, cgroup::Limits { vcpus: plan.spec.vcpus, memory, tasks: 128 + plan.spec.vcpus });
    process::launch(Launch {
        program,
        arguments: vec!["serve".into(), "--config-fd".into(), config_file.as_raw_fd().to_string().into()],
        owner: &seat.owner,
        server: seat.id,
        inherit,
        user: None,
        unconfined: false,
        log,
        cgroup: cgroup.as_ref(),
    })
    .map_err(|error| {
        Refused::internal(format!("cannot run {}: {error}", program.display()))
            .remedy("check the vmm path in hostd's configuration")
    })
}

fn disk_config(disk: &DiskSpec, file: &File) -> DiskConfig {
    DiskConfig {
        key: disk.key.clone(),
        fd: file.as_raw_fd(),
        read_only: disk.read_only,
        serial: disk.serial.clone(),
        block_size: BlockSize::default(),
        limits: disk.limits,
    }
}

fn nic_config(nic: &NicSpec, tap: &OwnedFd) -> NicConfig {
    NicConfig {
        port: nic.port,
        fd: tap.as_raw_fd(),
        more_fds: Vec::new(),
        mac: nic.mac,
        mtu: nic.mtu,
        limits: nic.limits,
    }
}

fn in_memory(config: &MachineConfig) -> io::Result<File> {
    let mut file = File::from(memfd_create("machine", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file)
}

/// How a monitor said that it ended; `None` when it had no time to say it.
fn read_end(seat: &Seat) -> Option<End> {
    let end: MachineEnd = match durable::read(&seat.run.join(END)) {
        Ok(end) => end?,
        // Empty while it runs, and for ever when it was killed.
        Err(_) => return None,
    };
    let how = match end.reason {
        EndReason::PowerOff => How::PowerOff,
        EndReason::PowerButton => How::PowerButton,
        EndReason::Panicked => How::Panicked,
        EndReason::Watchdog => How::Watchdog,
        EndReason::Reset => How::Reset,
        EndReason::TripleFault => How::TripleFault,
        // It runs elsewhere; here it is as if somebody had stopped it.
        EndReason::Stopped | EndReason::Migrated => How::Stopped,
        EndReason::NotStarted => How::NotStarted,
        EndReason::Failed => How::Failed,
    };
    Some(End { how, detail: end.detail })
}

/// A monitor that runs or has run.
struct VmmMachine {
    seat: Seat,
    process: Process,
    resources: Resources,
    calls: tokio::sync::Mutex<Option<Channel>>,
    news: Mutex<watch::Receiver<u64>>,
    watcher: JoinHandle<()>,
}

impl Drop for VmmMachine {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl VmmMachine {
    fn new(seat: Seat, process: Process, resources: Resources) -> Self {
        let (tell, news) = watch::channel(0);
        let watcher = tokio::spawn(follow(seat.clone(), tell));
        Self {
            seat,
            process,
            resources,
            calls: tokio::sync::Mutex::new(None),
            news: Mutex::new(news),
            watcher,
        }
    }

    async fn call(&self, call: &MachineCall, fd: Option<&OwnedFd>) -> Result<MachineReply, Refused> {
        let silent = |error: io::Error| {
            Refused::unavailable(format!(
                "the machine monitor of server {} does not answer: {error}",
                self.seat.id
            ))
        };
        let exchange = async |channel: &Channel| {
            tokio::time::timeout(PATIENCE, channel.exchange(call, fd.map(AsFd::as_fd).as_slice()))
                .await
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
        };
        let mut place = self.calls.lock().await;
        // Taken out while in use: a channel whose exchange was cut short is not used again.
        let used = match place.take() {
            Some(channel) => match exchange(&channel).await {
                Ok(reply) => Some((channel, reply)),
                // The monitor closed it since the last call, which says nothing about the monitor: calls may be repeated.
                Err(error) if is_closed(&error) => None,
                Err(error) => return Err(silent(error)),
            },
            None => None,
        };
        let (channel, reply) = match used {
            Some(used) => used,
            None => {
                let channel = connect(&self.seat).map_err(silent)?;
                let reply = exchange(&channel).await.map_err(silent)?;
                (channel, reply)
            }
        };
        // After a call that it does not know, a monitor closes the connection.
        if !matches!(&reply, MachineReply::Refused(refused) if refused.kind == RefusedKind::Invalid) {
            *place = Some(channel);
        }
        match reply {
            MachineReply::Refused(refused) => Err(refused),
            MachineReply::Done
            | MachineReply::Status(_)
            | MachineReply::Balloon(_)
            | MachineReply::Memory(_)
            | MachineReply::Counts(_)
            | MachineReply::Snapshot(_) => Ok(reply),
        }
    }

    /// What the monitor says of itself and its machine.
    async fn own_status(&self) -> Result<MachineStatus, Refused> {
        match self.call(&MachineCall::Status { after: None, wait_ms: 0 }, None).await? {
            MachineReply::Status(status) => Ok(status),
            MachineReply::Done
            | MachineReply::Balloon(_)
            | MachineReply::Memory(_)
            | MachineReply::Counts(_)
            | MachineReply::Snapshot(_)
            | MachineReply::Refused(_) => Err(Refused::internal(
                "the machine monitor answered a question for its status with something else",
            )),
        }
    }

    async fn read(&self) -> Result<Status, Refused> {
        if self.process.has_ended() {
            return Ok(self.ended());
        }
        self.news.lock().unwrap_or_else(PoisonError::into_inner).borrow_and_update();
        match self.own_status().await {
            Ok(status) => Ok(translate(&status)),
            // Its socket closes a moment before its process is gone.
            Err(refused) if refused.kind == RefusedKind::Unavailable => {
                let gone = tokio::time::timeout(Duration::from_millis(500), self.process.ended()).await;
                if gone.is_ok() { Ok(self.ended()) } else { Err(refused) }
            }
            Err(refused) => Err(refused),
        }
    }

    fn ended(&self) -> Status {
        let end = read_end(&self.seat).unwrap_or_else(|| {
            let status = self.process.status().unwrap_or_else(|| "an unknown status".into());
            let words = place::last_words(&self.seat);
            let colon = if words.is_empty() { "" } else { ": " };
            End { how: How::Failed, detail: format!("vmm ended with {status}{colon}{words}") }
        });
        Status { life: Life::Ended(end), disks: Vec::new(), nics: Vec::new(), panicked: false, bitten: false }
    }

    async fn act(&self, control: Control) -> Result<(), Refused> {
        let resources = self.resources.clone();
        let (call, fd) = match control {
            Control::Pause => (MachineCall::Pause, None),
            Control::Resume => (MachineCall::Resume, None),
            Control::PowerButton => (MachineCall::PowerButton, None),
            Control::UnplugDisk(key) => (MachineCall::UnplugDisk { key }, None),
            Control::UnplugNic(port) => (MachineCall::UnplugNic { port }, None),
            Control::ResizeDisk(key, _) => (MachineCall::ResizeDisk { key }, None),
            Control::PlugDisk(disk) => {
                let spec = disk.clone();
                let file = blocking(move || resources.disk(&spec)).await?;
                let DiskSpec { key, path: _, read_only, serial, limits } = disk;
                let block_size = BlockSize::default();
                (
                    MachineCall::PlugDisk { key, read_only, serial, block_size, limits },
                    Some(OwnedFd::from(file)),
                )
            }
            Control::LimitDisk(key, limits) => (MachineCall::LimitDisk { key, limits }, None),
            Control::LimitNic(port, limits) => (MachineCall::LimitNic { port, limits }, None),
            Control::PlugNic(NicSpec { port, mac, mtu, limits }) => {
                let tap = blocking(move || resources.tap(port)).await?;
                (MachineCall::PlugNic { port, mac, mtu, limits }, Some(tap))
            }
        };
        self.call(&call, fd.as_ref()).await.map(drop)
    }
}

/// Refuses to write so much where it has no room.
fn room(dir: &Path, bytes: u64) -> Result<(), Refused> {
    let facts = nix::sys::statvfs::statvfs(dir)
        .map_err(io::Error::from)
        .map_err(place::trouble("look at the file system of hostd's state directory"))?;
    let free = facts.blocks_available().saturating_mul(facts.fragment_size());
    let need = bytes.saturating_add(BESIDE);
    if free >= need {
        return Ok(());
    }
    Err(Refused::no_space(format!(
        "suspending the server needs {} MiB for its memory, and {} MiB are free",
        need >> 20,
        free >> 20
    ))
    .remedy("free some space on the file system of hostd's state directory"))
}

impl VmmMachine {
    /// The machine is stopped first, so that its disks stay as its memory knows them.
    async fn write_out(&self, into: &Path, memory: MiB) -> Result<(), Refused> {
        let most = memory.bytes().unwrap_or(u64::MAX);
        room(into, most)?;
        self.call(&MachineCall::Pause, None).await?;
        let make =
            |name: &str| OpenOptions::new().write(true).create_new(true).mode(0o600).open(into.join(name));
        let files = [make(STATE), make(MEMORY)].into_iter().collect::<io::Result<Vec<File>>>();
        let files = files.map_err(place::trouble("make the suspended server's files"))?;
        let silent = |error: io::Error| {
            Refused::unavailable(format!(
                "the machine monitor of server {} does not answer: {error}",
                self.seat.id
            ))
        };
        // A connection of its own: others are answered meanwhile.
        let channel = connect(&self.seat).map_err(silent)?;
        let patience = Duration::from_secs((most >> 30).saturating_add(1).saturating_mul(WRITE_SECS_PER_GIB));
        let call = MachineCall::Snapshot { track: false, changes: false };
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let reply = tokio::time::timeout(patience, channel.exchange(&call, &fds)).await;
        match reply.map_err(|_| silent(io::Error::from(io::ErrorKind::TimedOut)))?.map_err(silent)? {
            MachineReply::Snapshot(_) => {}
            MachineReply::Refused(refused) => return Err(refused),
            MachineReply::Done
            | MachineReply::Status(_)
            | MachineReply::Balloon(_)
            | MachineReply::Memory(_)
            | MachineReply::Counts(_) => {
                return Err(Refused::internal("the machine monitor answered a snapshot with something else"));
            }
        }
        let synced = blocking(move || {
            files
                .iter()
                .try_for_each(File::sync_all)
                .map_err(place::trouble("keep the suspended server's files"))
        });
        synced.await
    }

    async fn count(&self) -> Result<Figures, Refused> {
        let status = self.own_status().await?;
        let (disks, nics) = if status.protocol >= COUNTS_SINCE {
            let MachineReply::Counts(counts) = self.call(&MachineCall::Counts, None).await? else {
                return Err(Refused::internal(
                    "the machine monitor answered a question for counts with something else",
                ));
            };
            (
                counts.disks.into_iter().map(|(key, own)| (key, Some(own))).collect::<Vec<_>>(),
                counts.nics.into_iter().map(|(port, own)| (port, Some(own))).collect::<Vec<_>>(),
            )
        } else {
            // Its devices are known, not what they moved.
            (
                status.disks.into_iter().map(|disk| (disk.key, None)).collect(),
                status.nics.into_iter().map(|nic| (nic.port, None)).collect(),
            )
        };
        // A machine that an earlier hostd started has no balloon.
        let balloon = match self.call(&MachineCall::BalloonStatus, None).await {
            Ok(MachineReply::Balloon(balloon)) => Some(balloon.statistics),
            Ok(_) | Err(_) => None,
        };
        let mib = |bytes: Option<u64>| bytes.map(|bytes| MiB(bytes >> 20));
        let usage = figures::usage(self.process.pid(), "vcpu").await?;
        let disk =
            |(key, own): (String, Option<DeviceCounts>)| DiskFigures { key, counts: own.map(disk_counts) };
        let nic = |(port, own): (PortId, Option<DeviceCounts>)| NicFigures {
            port,
            mac: None,
            counts: own.map(nic_counts),
        };
        Ok(Figures {
            hypervisor: Kind::Vmm.to_string(),
            uptime_secs: usage.uptime_secs,
            cpus_ns: usage.cpus_ns,
            memory: MemoryFigures {
                total: mib(balloon.and_then(|own| own.total)),
                available: mib(balloon.and_then(|own| own.available)),
                resident: usage.resident,
                ..MemoryFigures::default()
            },
            disks: disks.into_iter().map(disk).collect(),
            nics: nics.into_iter().map(nic).collect(),
        })
    }
}

fn nic_counts(own: DeviceCounts) -> NicCounts {
    NicCounts {
        received_bytes: own.to_guest.bytes,
        received: own.to_guest.operations,
        receive_drops: own.to_guest.failed,
        sent_bytes: own.from_guest.bytes,
        sent: own.from_guest.operations,
        send_drops: own.from_guest.failed,
    }
}

/// Whether the other side closed the connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | BrokenPipe | ConnectionReset | NotConnected)
}

fn disk_counts(own: DeviceCounts) -> DiskCounts {
    DiskCounts {
        read_bytes: own.to_guest.bytes,
        reads: own.to_guest.operations,
        written_bytes: own.from_guest.bytes,
        writes: own.from_guest.operations,
        errors: own.to_guest.failed.saturating_add(own.from_guest.failed),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Refused::internal(error.to_string()))?
}

fn connect(seat: &Seat) -> io::Result<Channel> {
    Channel::new(place::with_short_path(seat, CONTROL, fdpass::connect)?)
}

fn translate(status: &MachineStatus) -> Status {
    Status {
        life: match status.state {
            MachineState::Running => Life::Running,
            MachineState::Paused => Life::Paused,
        },
        disks: status
            .disks
            .iter()
            .map(|disk| DiskNow { key: disk.key.clone(), bytes: Some(disk.bytes) })
            .collect(),
        nics: status.nics.iter().map(|nic| nic.port).collect(),
        panicked: status.panicked,
        bitten: status.state == MachineState::Paused && status.bites > 0,
    }
}

/// Follows the machine's sequence number on a connection of its own and passes it on.
async fn follow(seat: Seat, tell: watch::Sender<u64>) {
    let mut after = None;
    loop {
        let Ok(channel) = connect(&seat) else {
            // Ended, which the process handle tells, or not listening yet.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let call = |after| MachineCall::Status { after, wait_ms: NEWS_MS };
        while let Ok(MachineReply::Status(status)) = channel.exchange(&call(after), &[]).await {
            if after.replace(status.sequence) != Some(status.sequence) {
                tell.send_replace(status.sequence);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl Machine for VmmMachine {
    fn status(&self) -> BoxFuture<'_, Result<Status, Refused>> {
        self.read().boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            let told = async {
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = self.process.ended() => (),
                () = told => (),
            }
        }
        .boxed()
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), Refused>> {
        self.act(control).boxed()
    }

    fn suspend<'a>(&'a self, into: &'a Path, memory: MiB) -> BoxFuture<'a, Result<(), Refused>> {
        self.write_out(into, memory).boxed()
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, Refused>> {
        self.count().boxed()
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        async move {
            self.process.kill().await;
            // The kernel ends the machine with its keeper, but not in the same moment: nothing may write to the disks
            // once this returns.
            process::sweep(&self.seat.owner, self.seat.id).await;
        }
        .boxed()
    }

    fn tend(&self) {
        if let Err(error) = console::trim(&place::log_path(&self.seat), place::LOG_LIMIT) {
            tracing::warn!(server = %self.seat.id, %error, "cannot trim the monitor's log");
        }
    }
}
