//! A host in small: what `hostd` does to start and talk to a machine.

#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_docs)]

pub mod asm;
pub mod backend;
pub mod driver;
pub mod link;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use wire::MiB;
use wire::ids::{Mac, PortId, ServerId};
use wire::machine::{
    BackendConfig, BackendDevice, BalloonConfig, BlockSize, ConsoleConfig, CpuModel, DiskConfig, Identity,
    IncomingConfig, JailConfig, Limits, MachineCall, MachineConfig, MachineEnd, MachineReply, MachineStatus,
    MemoryBacking, MigrationPlan, NicConfig, NicLimits, NumaNode, RestoreConfig, SnapshotTaken, Topology,
    TransferPhase, TransferStatus, VsockConfig, WatchdogAction,
};

/// Longest that anything here may take: a minute, or `VMM_TEST_SECONDS` where the machine is slow.
pub fn longest() -> Duration {
    let seconds = std::env::var("VMM_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// Whether machines can run here; says so when not.
pub fn kvm() -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        println!("skipped: there is no /dev/kvm on this machine");
    }
    there
}

/// What a machine is started with.
pub struct Plan {
    pub kernel: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
    pub command_line: String,
    pub memory: MiB,
    pub memory_backing: MemoryBacking,
    pub max_memory: Option<MiB>,
    pub numa: Vec<NumaNode>,
    pub vcpus: u32,
    pub max_vcpus: Option<u32>,
    pub cpu_model: CpuModel,
    pub topology: Option<Topology>,
    pub disks: Vec<(String, File, bool)>,
    pub nics: Vec<(PortId, OwnedFd, Mac)>,
    /// State and memory of a snapshot to go on from, instead of the kernel.
    pub restore: Option<[File; 2]>,
    /// The stream that the machine comes over, instead of booting.
    pub incoming: Option<OwnedFd>,
    /// Whether a restored machine tracks what its guest writes.
    pub track: bool,
    /// Whether a restored machine begins standing still.
    pub paused: bool,
    /// Whether the configuration names a jail.
    pub jailed: bool,
    /// Whether the monitor is told to do without one.
    pub no_jail: bool,
    pub balloon: Option<BalloonConfig>,
    /// What happens when the guest stops calling its watchdog.
    pub watchdog_action: WatchdogAction,
    pub vsock: Option<(u32, OwnedFd)>,
    /// Devices that other processes work, with connections to those.
    pub backends: Vec<(BackendDevice, OwnedFd)>,
    /// Log of a virtio console: current and previous.
    pub virtio_console: Option<[File; 2]>,
    /// Whether the host allows new namespaces.
    pub namespaces: bool,
}

impl Plan {
    pub fn new(kernel: Vec<u8>) -> Self {
        Self {
            kernel,
            initrd: None,
            command_line: "console=ttyS0".into(),
            memory: MiB(64),
            memory_backing: MemoryBacking::default(),
            max_memory: None,
            numa: Vec::new(),
            vcpus: 1,
            max_vcpus: None,
            cpu_model: CpuModel::Host,
            topology: None,
            disks: Vec::new(),
            nics: Vec::new(),
            restore: None,
            incoming: None,
            track: false,
            paused: false,
            jailed: true,
            no_jail: false,
            balloon: None,
            watchdog_action: WatchdogAction::End,
            vsock: None,
            backends: Vec::new(),
            virtio_console: None,
            namespaces: true,
        }
    }
}

/// A machine that was started.
pub struct Guest {
    pub child: Child,
    pub uid: u32,
    address: UnixAddr,
    control: OwnedFd,
    console: [File; 2],
    end: File,
    log: PathBuf,
    directory: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- console\n{}\n--- log\n{}", self.console(), self.log());
        }
    }
}

/// A file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// A filter under which `unshare` is refused, as on hosts without namespaces.
fn no_unshare() -> seccompiler::BpfProgram {
    let rules = [(libc::SYS_unshare, Vec::new())].into_iter().collect();
    let (allow, refuse) = (seccompiler::SeccompAction::Allow, seccompiler::SeccompAction::Errno(1));
    let target = seccompiler::TargetArch::x86_64;
    seccompiler::SeccompFilter::new(rules, allow, refuse, target).unwrap().try_into().unwrap()
}

/// A tap in a network namespace of its own, or the one with this name here.
pub fn tap(name: Option<String>) -> OwnedFd {
    nix::ioctl_write_ptr_bad!(set_interface, 0x4004_54ca, libc::ifreq);
    let make = move || {
        if name.is_none() {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        }
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: `ifreq` is plain bytes; zero is a value of each.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_deref().unwrap_or("tap0").bytes()) {
            *to = i8::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags =
            i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
        // SAFETY: the kernel reads and writes one `ifreq`.
        unsafe { set_interface(file.as_raw_fd(), &raw const request) }.unwrap();
        OwnedFd::from(file)
    };
    // A thread of its own, whose namespace ends with it and the tap.
    std::thread::spawn(make).join().unwrap()
}

impl Guest {
    pub fn start(plan: Plan) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = directory.path().join(name);
            File::options().create(true).read(true).append(true).open(path).unwrap()
        };
        let console = [open("console.log"), open("console.log.1")];
        let end = open("end");
        let address =
            UnixAddr::new_abstract(format!("vmm-test-{}", uuid::Uuid::new_v4()).as_bytes()).unwrap();
        let make = || socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let listener = make();
        bind(listener.as_raw_fd(), &address).unwrap();
        listen(&listener, Backlog::new(8).unwrap()).unwrap();

        // Descriptors keep their place in this list as their number in the child, from 10 on.
        let mut given: Vec<OwnedFd> = Vec::new();
        let mut give = |fd: OwnedFd| {
            given.push(fd);
            9 + i32::try_from(given.len()).unwrap()
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        // Ids of their own, so that tests side by side do not share limits.
        let uid = 70_000 + std::process::id() % 50_000;
        let config = MachineConfig {
            id: ServerId::new(),
            name: "test".into(),
            vcpus: plan.vcpus,
            max_vcpus: plan.max_vcpus,
            cpu_model: plan.cpu_model,
            topology: plan.topology,
            memory: plan.memory,
            memory_backing: plan.memory_backing,
            max_memory: plan.max_memory,
            numa: plan.numa,
            kvm_fd: give(kvm.into()),
            control_fd: give(listener),
            console_fds: console.iter().map(|file| give(file.try_clone().unwrap().into())).collect(),
            console_limit: 1 << 20,
            end_fd: Some(give(end.try_clone().unwrap().into())),
            kernel_fd: (plan.restore.is_none() && plan.incoming.is_none())
                .then(|| give(file(&plan.kernel).into())),
            initrd_fd: plan.initrd.map(|bytes| give(file(&bytes).into())),
            command_line: plan.command_line,
            disks: plan
                .disks
                .into_iter()
                .map(|(key, file, read_only)| DiskConfig {
                    serial: format!("serial-{key}"),
                    key,
                    fd: give(file.into()),
                    read_only,
                    block_size: BlockSize::default(),
                    limits: Limits::default(),
                })
                .collect(),
            nics: plan
                .nics
                .into_iter()
                .map(|(port, tap, mac)| NicConfig {
                    port,
                    fd: give(tap),
                    more_fds: Vec::new(),
                    mac,
                    mtu: 1450,
                    limits: NicLimits::default(),
                })
                .collect(),
            identity: Identity::default(),
            incoming: plan.incoming.map(|stream| IncomingConfig { stream_fd: give(stream) }),
            restore: plan.restore.map(|[state, memory]| RestoreConfig {
                state_fd: give(state.into()),
                memory_fd: give(memory.into()),
                track: plan.track,
                paused: plan.paused,
            }),
            balloon: plan.balloon,
            vsock: plan.vsock.map(|(cid, listener)| VsockConfig { cid, listener_fd: give(listener) }),
            backends: plan
                .backends
                .into_iter()
                .map(|(device, socket)| BackendConfig { device, socket_fd: give(socket) })
                .collect(),
            virtio_console: plan.virtio_console.map(|log| ConsoleConfig {
                log_fds: log.into_iter().map(|file| give(file.into())).collect(),
                limit: 1 << 20,
                input_fd: None,
            }),
            watchdog: true,
            watchdog_action: plan.watchdog_action,
            jail: plan.jailed.then_some(JailConfig { uid, gid: uid }),
        };
        let config = file(&serde_json::to_vec(&config).unwrap());
        let config_fd = give(config.into());
        let log = directory.path().join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["serve", "--config-fd", &config_fd.to_string()]);
        if plan.no_jail {
            command.arg("--no-jail");
        }
        command.stderr(File::create(&log).unwrap()).stdout(std::process::Stdio::null());
        let sources: Vec<i32> = given.iter().map(AsRawFd::as_raw_fd).collect();
        let deny = (!plan.namespaces).then(no_unshare);
        // SAFETY: between fork and exec only `fcntl`, `dup2`, `prctl` and `seccomp` are called.
        unsafe {
            command.pre_exec(move || {
                // Out of the way first, so that no source is overwritten before its turn.
                let mut high = [0i32; 64];
                for (place, source) in high.iter_mut().zip(&sources) {
                    *place = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, 200);
                    if *place < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for (target, source) in (10..).zip(high.iter().take(sources.len())) {
                    if libc::dup2(*source, target) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                if let Some(filter) = &deny {
                    seccompiler::apply_filter(filter).map_err(|_| std::io::Error::last_os_error())?;
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        // While the listener is still open here too: the machine may have ended already.
        let control = make();
        connect(control.as_raw_fd(), &address).unwrap();
        drop(given);
        Self { child, uid, address, control, console, end, log, directory }
    }

    /// Another client.
    pub fn connect(&self) -> OwnedFd {
        let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(client.as_raw_fd(), &self.address).unwrap();
        client
    }

    pub fn call(&self, call: &MachineCall) -> MachineReply {
        self.call_with(call, None)
    }

    pub fn call_with(&self, call: &MachineCall, fd: Option<BorrowedFd<'_>>) -> MachineReply {
        vmm::control::send(self.control.as_fd(), &serde_json::to_vec(call).unwrap(), fd).unwrap();
        vmm::control::receive_reply(&self.control).unwrap()
    }

    /// Takes a snapshot into two new files, state and memory.
    pub fn snapshot(&self) -> ([File; 2], SnapshotTaken) {
        self.snapshot_into(tempfile::tempfile().unwrap(), false, false)
    }

    /// Takes a snapshot with this memory file.
    pub fn snapshot_into(&self, memory: File, track: bool, changes: bool) -> ([File; 2], SnapshotTaken) {
        let files = [tempfile::tempfile().unwrap(), memory];
        match self.call_with_all(&MachineCall::Snapshot { track, changes }, &files) {
            MachineReply::Snapshot(taken) => (files, taken),
            other => panic!("no snapshot: {other:?}; {}", self.log()),
        }
    }

    /// Starts to migrate over a stream.
    pub fn migrate(&self, stream: OwnedFd, plan: MigrationPlan) {
        let reply = self.call_with(&MachineCall::Migrate { plan }, Some(stream.as_fd()));
        assert_eq!(reply, MachineReply::Done, "{}", self.log());
    }

    /// Waits until a transfer is in one of these phases, and answers how it is.
    pub fn wait_transfer(&self, phases: &[TransferPhase]) -> TransferStatus {
        let there = |status: &MachineStatus| {
            status.transfer.as_ref().is_some_and(|transfer| phases.contains(&transfer.phase))
        };
        self.wait_status(there).transfer.unwrap()
    }

    /// A call with two files.
    pub fn call_with_all(&self, call: &MachineCall, files: &[File; 2]) -> MachineReply {
        let fds = [files[0].as_fd(), files[1].as_fd()];
        vmm::control::send_with(self.control.as_fd(), &serde_json::to_vec(call).unwrap(), &fds).unwrap();
        vmm::control::receive_reply(&self.control).unwrap()
    }

    pub fn done(&self, call: &MachineCall) {
        assert_eq!(self.call(call), MachineReply::Done, "{call:?}");
    }

    pub fn status(&self) -> MachineStatus {
        self.status_after(None)
    }

    pub fn status_after(&self, after: Option<u64>) -> MachineStatus {
        match self.call(&MachineCall::Status { after, wait_ms: 1000 }) {
            MachineReply::Status(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Waits until the status is as wanted.
    pub fn wait_status(&self, wanted: impl Fn(&MachineStatus) -> bool) -> MachineStatus {
        let until = Instant::now() + longest();
        let mut status = self.status();
        while !wanted(&status) {
            assert!(Instant::now() < until, "still {status:?}");
            status = self.status_after(Some(status.sequence));
        }
        status
    }

    pub fn console(&self) -> String {
        let mut bytes = Vec::new();
        for file in [&self.console[1], &self.console[0]] {
            let mut chunk = vec![0u8; 1 << 21];
            let length = file.read_at(&mut chunk, 0).unwrap();
            bytes.extend_from_slice(&chunk[..length]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until the console says something.
    pub fn wait_console(&mut self, text: &str) {
        self.wait_console_times(text, 1);
    }

    /// Waits until the console has said something a number of times.
    pub fn wait_console_times(&mut self, text: &str, times: usize) {
        let until = Instant::now() + longest();
        let said = |guest: &Self| guest.console().matches(text).count() >= times;
        while !said(self) {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(said(self), "ended with {status} without '{text}'");
            }
            assert!(Instant::now() < until, "no '{text}' in:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the process ends.
    pub fn wait_end(&mut self) -> (ExitStatus, Option<MachineEnd>) {
        let until = Instant::now() + longest();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut text = [0u8; 4096];
                let length = self.end.read_at(&mut text, 0).unwrap();
                return (status, serde_json::from_slice(&text[..length]).ok());
            }
            assert!(Instant::now() < until, "still running");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The machine's own process: the child of the one that was started.
    pub fn machine_pid(&self) -> i32 {
        let keeper = self.child.id();
        let path = format!("/proc/{keeper}/task/{keeper}/children");
        let until = Instant::now() + longest();
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = text.split_whitespace().next() {
                return pid.parse().unwrap();
            }
            assert!(Instant::now() < until, "no machine process");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
