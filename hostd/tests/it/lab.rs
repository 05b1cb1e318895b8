//! A `hostd` program with directories of its own, a stand-in for `netd`'s descriptor socket, and clean-up.

use base::rpc::Client;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wire::cloud::{Ground, Warrant};
use wire::fd::{FdReply, FdRequest};
use wire::host::{
    Boot, DiskSpec, EnsureServer, ForgetServer, Hardware, NicSpec, Observed, Power, Reboots, ServerSpec,
    WatchServer,
};
use wire::ids::{PortId, ServerId};
use wire::machine::{Limits, NicLimits};
use wire::{Generation, MiB, Refused};

/// The word of the cloud that the tests play.
pub fn ours() -> Warrant {
    Warrant { cloud: "11111111-2222-4333-8444-555555555555".parse().unwrap(), ground: Ground::Asked }
}

/// What `hostd` may do in an installation.
const CAPABILITIES: &str = "+sys_admin,+setuid,+setgid,+kill,+chown,+fowner,+dac_override,+sys_chroot,+net_admin,+sys_resource,+mknod,+setpcap";

/// One instance of `hostd`.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub cgroup: String,
    child: Option<Child>,
    netd_ends: Arc<AtomicBool>,
    taps: Arc<Mutex<Vec<PortId>>>,
}

impl Lab {
    /// Directories and the stand-in for `netd`; `hostd` is not started yet.
    pub fn new(hypervisor: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Guests' users must reach what they are given by path: nothing, so the default mode stays.
        let cgroup = format!("ferrostack-test-{}", ServerId::new().short());
        let path = |name: &str| dir.path().join(name);
        let text = format!(
            "name = 'lab'\nrun_dir = {:?}\nstate_dir = {:?}\nnetd_fd_socket = {:?}\ndisks_dir = {:?}\nkernels_dir = {:?}\nvmm = {:?}\nhypervisor = '{hypervisor}'\ncgroup_parent = '{cgroup}'\n{more}\n",
            path("run"),
            path("state"),
            path("netd.fd.sock"),
            dir.path(),
            dir.path(),
            vmm_program(),
        );
        std::fs::write(path("hostd.toml"), text).unwrap();
        let client = Client::new(path("run/hostd.sock"));
        let (netd_ends, taps) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        pretend_netd(&path("netd.fd.sock"), netd_ends.clone(), taps.clone());
        Self { dir, client, cgroup, child: None, netd_ends, taps }
    }

    /// Starts `hostd`, to be killed at the given fault point.
    pub fn spawn(&mut self, crash_at: Option<u64>) {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.path().join("hostd.log"))
            .unwrap();
        // With the capabilities that it has in an installation, and no other.
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--bounding-set=-all,{CAPABILITIES}"))
            .args(["--inh-caps=-all", env!("CARGO_BIN_EXE_hostd"), "--config"])
            .arg(self.dir.path().join("hostd.toml"))
            .stdin(Stdio::null())
            .stderr(log);
        if let Some(at) = crash_at {
            command.env("HOSTD_CRASH_AT", at.to_string());
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts `hostd` and waits until it answers.
    pub async fn up(&mut self) {
        self.spawn(None);
        self.answers().await;
    }

    /// Waits until `hostd` answers.
    pub async fn answers(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(refused) = self.client.call(&wire::Health {}).await {
            assert!(Instant::now() < deadline, "hostd does not answer: {refused}\n{}", self.log());
            assert!(!self.has_ended(), "hostd ended\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => child.try_wait().unwrap().is_some(),
            None => true,
        }
    }

    /// Kills `hostd` as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn log(&self) -> String {
        let hostd = std::fs::read_to_string(self.dir.path().join("hostd.log")).unwrap_or_default();
        let mut all = hostd;
        if let Ok(servers) = std::fs::read_dir(self.dir.path().join("state/servers")) {
            for server in servers.flatten() {
                for name in ["machine.log", "console.log"] {
                    let text = std::fs::read(server.path().join(name)).unwrap_or_default();
                    all.push_str(&format!("--- {name}\n{}\n", String::from_utf8_lossy(&text)));
                }
            }
        }
        all
    }

    pub async fn ensure(&self, call: &EnsureServer) -> Result<Observed, Refused> {
        self.client.call(call).await
    }

    /// Waits until what is observed satisfies the test.
    pub async fn until(&self, id: ServerId, what: &str, test: impl Fn(&Observed) -> bool) -> Observed {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.client.call(&WatchServer { id, settled: Generation(0), wait_ms: 0 }).await;
            match now {
                Ok(now) if test(&now) => return now,
                other => assert!(Instant::now() < deadline, "not {what}: {other:?}\n{}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the console log has this.
    pub async fn console_has(&self, id: ServerId, text: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.client.call(&wire::host::ReadConsole { id, lines: None }).await.unwrap();
            if said.matches(text).count() >= times {
                return;
            }
            assert!(Instant::now() < deadline, "the console never said {text:?}: {said:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn forget(&self, id: ServerId) {
        self.client
            .call(&ForgetServer { id, by: ours() })
            .await
            .unwrap_or_else(|refused| panic!("{refused}\n{}", self.log()));
    }

    /// Processes that carry this instance's mark.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(owner) = self.dir.path().join("state").canonicalize() else { return Vec::new() };
        hostd::process::find(&owner).into_values().flatten().collect()
    }

    /// Everything that a server left behind.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.processes().iter().map(|pid| format!("process {pid}")).collect();
        for dir in ["state/servers", "run/servers"] {
            let entries = std::fs::read_dir(self.dir.path().join(dir)).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        found.extend(self.cgroups().into_iter().flat_map(|dir| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path().display().to_string())
        }));
        found
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        ["", "cpu", "memory", "pids"]
            .iter()
            .map(|controller| Path::new("/sys/fs/cgroup").join(controller).join(&self.cgroup))
            .collect()
    }

    /// A disk file of one MiB.
    pub fn disk(&self, key: &str) -> DiskSpec {
        let path = self.dir.path().join(format!("{key}.raw"));
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        DiskSpec { key: key.into(), path, read_only: false, serial: key.into(), limits: Limits::default() }
    }

    pub fn nic(&self) -> NicSpec {
        let mac = "fa:16:3e:00:00:01".parse().unwrap();
        NicSpec { port: PortId::new(), mac, mtu: 1450, limits: NicLimits::default() }
    }

    /// Ports whose tap was asked for.
    pub fn asked_taps(&self) -> Vec<PortId> {
        self.taps.lock().unwrap().clone()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.netd_ends.store(true, Ordering::SeqCst);
        self.kill();
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for dir in self.cgroups() {
            let deadline = Instant::now() + Duration::from_secs(2);
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir())
            {
                while std::fs::remove_dir(entry.path()).is_err() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let _ = std::fs::remove_dir(&dir);
        }
    }
}

/// The `vmm` program of this build: see `vmm::build_vmm`.
pub fn vmm_program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_hostd")).with_file_name("vmm")
}

/// A server that starts from a kernel file.
pub fn server(kernel: &Path, disks: Vec<DiskSpec>, nics: Vec<NicSpec>) -> EnsureServer {
    EnsureServer {
        id: ServerId::new(),
        generation: Generation(1),
        spec: ServerSpec {
            name: "tiny".into(),
            vcpus: 1,
            memory: MiB(32),
            boot: Boot::Kernel { kernel: kernel.to_owned(), initrd: None, command_line: String::new() },
            disks,
            nics,
            hardware: Hardware::default(),
        },
        power: Power::On,
        reboots: Reboots::default(),
        wait_ms: 30_000,
    }
}

/// The next generation of a wish.
pub fn next(call: &EnsureServer, change: impl FnOnce(&mut EnsureServer)) -> EnsureServer {
    let mut call = call.clone();
    call.generation.0 += 1;
    change(&mut call);
    call
}

/// Answers each request for a tap with a new one, in a network namespace that only its descriptor keeps.
fn pretend_netd(path: &Path, ends: Arc<AtomicBool>, taps: Arc<Mutex<Vec<PortId>>>) {
    let listener = base::fdpass::listen(path).unwrap();
    std::thread::spawn(move || {
        // The taps belong to a namespace of this thread and vanish with their last descriptor.
        let alone = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
        nix::sys::socket::setsockopt(
            &listener,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(0, 100_000),
        )
        .unwrap();
        while !ends.load(Ordering::SeqCst) {
            let Ok(accepted) = nix::sys::socket::accept(listener.as_raw_fd()) else { continue };
            #[allow(unsafe_code)]
            // SAFETY: accept just returned it.
            let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
            let Ok((bytes, _)) = base::fdpass::receive(socket.as_fd()) else { continue };
            let Ok(FdRequest::Tap { port }) = serde_json::from_slice(&bytes) else { continue };
            taps.lock().unwrap().push(port);
            let tap = alone.map_err(std::io::Error::from).and_then(|()| tap());
            let (reply, fd) = match tap {
                Ok(tap) => (FdReply::Here, Some(tap)),
                Err(error) => (FdReply::Refused(Refused::internal(error.to_string())), None),
            };
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            base::fdpass::send(socket.as_fd(), &serde_json::to_vec(&reply).unwrap(), &fds).unwrap();
        }
    });
}

#[allow(unsafe_code)]
fn tap() -> std::io::Result<OwnedFd> {
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: a zeroed ifreq is a valid one: an empty name lets the kernel choose.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(std::io::Error::other)?;
    // SAFETY: the request outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let size: libc::c_int = 12;
    // SAFETY: the integer outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(file.into())
}
