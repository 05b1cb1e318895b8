//! A guest under QEMU's software emulation: console in a file, SSH through a forwarded loopback port, QMP for the power button.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The built guest image, made once per target folder.
pub fn built() -> &'static (PathBuf, image::guest::Facts) {
    static BUILT: OnceLock<(PathBuf, image::guest::Facts)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        let facts = image::guest::build(&out, &out.join("packages")).expect("the guest image builds");
        (out, facts)
    })
}

/// A running guest with a folder of its own; dropping it ends the process.
pub struct Machine {
    /// Scratch folder of this machine.
    pub dir: tempfile::TempDir,
    child: Child,
    started: Instant,
    ssh_port: u16,
}

/// How to start one.
pub struct Options<'a> {
    /// Size that the disk is grown to before the start, bytes.
    pub disk_bytes: u64,
    /// A disk labelled config-2.
    pub config_drive: Option<&'a Path>,
    /// A program answering requests to 169.254.169.254:80, one run per connection, in inetd's manner.
    pub metadata: Option<&'a Path>,
    /// Memory, MiB.
    pub memory: u32,
}

impl Machine {
    /// Starts a guest on a fresh copy of the image.
    pub fn start(options: &Options<'_>) -> Self {
        let (out, facts) = built();
        let dir = tempfile::tempdir().expect("temporary folder");
        let disk = dir.path().join("disk.raw");
        let copied = Command::new("cp").arg("--sparse=always").arg(out.join("guest.raw")).arg(&disk).status();
        assert!(copied.expect("cp runs").success());
        let file = std::fs::OpenOptions::new().write(true).open(&disk).expect("open disk");
        file.set_len(options.disk_bytes.max(facts.disk_bytes)).expect("grow disk");
        let ssh_port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();

        let mut network =
            "user,id=n,restrict=on,net=169.254.0.0/16,host=169.254.0.2,dhcpstart=169.254.0.15".to_owned();
        network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{ssh_port}-:22"));
        if let Some(program) = options.metadata {
            network.push_str(&format!(",guestfwd=tcp:169.254.169.254:80-cmd:{}", program.display()));
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-M",
            "q35",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-display",
            "none",
            "-nodefaults",
        ]);
        qemu.args(["-m", &options.memory.to_string(), "-no-reboot"]);
        qemu.args(["-serial", &format!("file:{}", dir.path().join("console").display())]);
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", dir.path().join("qmp").display())]);
        qemu.arg("-kernel").arg(out.join("guest.vmlinuz")).arg("-initrd").arg(out.join("guest.initrd"));
        qemu.args(["-append", &facts.command_line]);
        qemu.args(["-drive", &format!("file={},format=raw,if=none,id=d", disk.display())]);
        qemu.args(["-device", "virtio-blk-pci,drive=d", "-device", "virtio-rng-pci"]);
        qemu.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n"]);
        if let Some(drive) = options.config_drive {
            qemu.args(["-drive", &format!("file={},format=raw,if=none,id=c,readonly=on", drive.display())]);
            qemu.args(["-device", "virtio-blk-pci,drive=c"]);
        }
        let child = qemu.stdin(Stdio::null()).spawn().expect("qemu-system-x86_64 is installed");
        Self { dir, child, started: Instant::now(), ssh_port }
    }

    /// What the console printed so far.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the console holds `text`; gives the time since the start.
    pub fn wait_console(&mut self, text: &str, deadline: Duration) -> Duration {
        loop {
            if self.console().contains(text) {
                return self.started.elapsed();
            }
            let ended = self.child.try_wait().expect("child");
            assert!(
                ended.is_none() && self.started.elapsed() < deadline,
                "no {text:?} on the console within {deadline:?} (QEMU ended: {ended:?}):\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `script` over SSH.
    pub fn ssh(&self, key: &Path, script: &str) -> Output {
        Command::new("ssh")
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "LogLevel=ERROR",
            ])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-F", "/dev/null", "-i"])
            .arg(key)
            .args(["-p", &self.ssh_port.to_string(), "ferro@127.0.0.1", script])
            .stdin(Stdio::null())
            .output()
            .expect("ssh is installed")
    }

    /// Runs `script` over SSH once the server answers, and wants success.
    pub fn ssh_ok(&self, key: &Path, script: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.ssh(key, script);
            let (text, trouble) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            // 255 is ssh's own: the server is not up yet.
            if output.status.code() == Some(255) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
            assert!(output.status.success(), "{script}\n{text}\n{trouble}\n{}", self.console());
            return text.into_owned();
        }
    }

    /// Presses the power button and waits for the machine to go off.
    pub fn power_button(&mut self, deadline: Duration) {
        let mut stream = UnixStream::connect(self.dir.path().join("qmp")).expect("QMP socket");
        let mut lines = BufReader::new(stream.try_clone().expect("clone")).lines();
        for command in ["qmp_capabilities", "system_powerdown"] {
            writeln!(stream, "{{\"execute\":\"{command}\"}}").expect("write");
            while !lines.next().expect("an answer").expect("read").contains("\"return\"") {}
        }
        let pressed = Instant::now();
        while self.child.try_wait().expect("child").is_none() {
            assert!(pressed.elapsed() < deadline, "still on after {deadline:?}:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
