//! The appliance in QEMU, with a way to run scripts inside as root.
//!
//! That way is not part of the image: the test starts kernel and initrd directly and appends a second archive to the initrd,
//! which adds a service that reads scripts from a virtio-serial port. A boot image on a disk is sealed and has no such archive.

use image::appliance::run::{Direct, Machine, command};
use image::cpio::Archive;
use image::packages::Cache;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const AGENT: &str = include_str!("agent");
const AGENT_UNIT: &str = "[Unit]\nDescription=Test agent\nDefaultDependencies=no\nAfter=systemd-udevd.service\n\
    [Service]\nExecStartPre=/usr/bin/udevadm wait --timeout=60 /dev/virtio-ports/ferro.test\nExecStart=/usr/lib/test/agent\nRestart=always\n\
    StandardOutput=null\n";
/// Programs that scripts need and the appliance lacks: package, files.
const TOOLS: &[(&str, &[&str])] = &[
    ("dropbear-bin", &["usr/bin/dbclient", "usr/bin/dropbearkey"]),
    ("libtomcrypt1", &["usr/lib/x86_64-linux-gnu/libtomcrypt.so.1*"]),
    ("libtommath1", &["usr/lib/x86_64-linux-gnu/libtommath.so.1*"]),
    ("libgmp10", &["usr/lib/x86_64-linux-gnu/libgmp.so.10*"]),
    ("zlib1g", &["lib/x86_64-linux-gnu/libz.so.1*"]),
    ("libcrypt1", &["lib/x86_64-linux-gnu/libcrypt.so.1*"]),
    ("busybox-static", &["bin/busybox"]),
];
/// Nested starts may hang on a busy machine; one more try is allowed, and said.
const START: Duration = Duration::from_secs(240);

/// A running appliance; dropping it ends QEMU.
pub struct Lab {
    child: Child,
    stream: BufReader<UnixStream>,
    console: PathBuf,
    /// Loopback port that leads to the appliance's port 443.
    pub https: u16,
    _dir: tempfile::TempDir,
}

/// What a script did.
#[derive(Debug)]
pub struct Ran {
    /// Exit status; 124 when it was ended at its deadline.
    pub status: i32,
    /// Everything it printed.
    pub output: String,
}

impl Lab {
    /// Builds the image when needed and starts it; `seen` files are put below `/usr/lib/test`; `drive` is a
    /// second disk (changes to it are lost).
    pub fn start(seen: &[(&str, &Path)], drive: &Path) -> Self {
        let image = image();
        Self::try_start(&image, seen, drive).unwrap_or_else(|trouble| {
            println!("the appliance did not start, once more: {trouble}");
            Self::try_start(&image, seen, drive).expect("the appliance starts")
        })
    }

    fn try_start(image: &Path, seen: &[(&str, &Path)], drive: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|fault| fault.to_string())?;
        let disk = dir.path().join("disk.raw");
        std::fs::copy(image, &disk).map_err(|fault| fault.to_string())?;
        let file = std::fs::OpenOptions::new().write(true).open(&disk).map_err(|fault| fault.to_string())?;
        file.set_len(8 << 30).map_err(|fault| fault.to_string())?;
        let mut direct = Direct::of(image).map_err(|fault| fault.to_string())?;
        let initrd = dir.path().join("initrd");
        let mut bytes = std::fs::read(&direct.initrd).map_err(|fault| fault.to_string())?;
        bytes.extend(extra(image, seen));
        std::fs::write(&initrd, bytes).map_err(|fault| fault.to_string())?;
        direct.initrd = initrd;
        direct.command_line.push_str(" systemd.wants=test-agent.service");

        let https = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|fault| fault.to_string())?
            .port();
        let (port, console) = (dir.path().join("port"), dir.path().join("console"));
        let mut qemu = command(&Machine {
            disk,
            direct: Some(direct),
            variables: None,
            memory: 2048,
            network: format!(",restrict=on,hostfwd=tcp:127.0.0.1:{https}-:443"),
        });
        qemu.args(["-serial", &format!("file:{}", console.display())]);
        qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=test,name=ferro.test"]);
        qemu.args(["-chardev", &format!("socket,id=test,server=on,wait=off,path={}", port.display())]);
        qemu.args(["-drive", &format!("file={},format=raw,if=none,id=second,snapshot=on", drive.display())]);
        qemu.args(["-device", "virtio-blk-pci,drive=second,serial=second"]);
        let child =
            qemu.stdin(Stdio::null()).spawn().map_err(|fault| format!("qemu-system-x86_64: {fault}"))?;
        let deadline = Instant::now() + START;
        let mut lab = Self { stream: connect(&port, deadline)?, child, console, https, _dir: dir };
        let hello = lab.read_line(deadline)?;
        if hello.trim() == "ready" { Ok(lab) } else { Err(format!("the agent said {hello:?}")) }
    }

    /// Runs `script` with bash inside, for at most `limit`.
    pub fn run(&mut self, script: &str, limit: Duration) -> Ran {
        let line = format!("{} {}\n", limit.as_secs(), hex(script.as_bytes()));
        self.stream.get_mut().write_all(line.as_bytes()).expect("the port takes the script");
        let answer = self
            .read_line(Instant::now() + limit + Duration::from_secs(30))
            .unwrap_or_else(|trouble| panic!("{trouble}\n{script}\nconsole:\n{}", self.console()));
        let (status, output) = answer.trim().split_once(' ').unwrap_or((answer.trim(), ""));
        Ran {
            status: status.parse().expect("a number"),
            output: String::from_utf8_lossy(&unhex(output)).into_owned(),
        }
    }

    /// As [`Lab::run`], and wants success.
    pub fn ok(&mut self, script: &str, limit: Duration) -> String {
        let ran = self.run(script, limit);
        assert!(
            ran.status == 0,
            "status {}:\n{}\n{script}\nconsole:\n{}",
            ran.status,
            ran.output,
            self.console()
        );
        ran.output
    }

    /// Whether the machine still reacts: an answer to this or to an earlier script.
    fn answers(&mut self) -> bool {
        let line = format!("10 {}\n", hex(b"true"));
        self.stream.get_mut().write_all(line.as_bytes()).is_ok()
            && self.read_line(Instant::now() + Duration::from_secs(45)).is_ok()
    }

    /// The last part of what the serial console printed.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(8000)..]).into_owned()
    }

    fn read_line(&mut self, deadline: Instant) -> Result<String, String> {
        let mut line = Vec::new();
        loop {
            match self.stream.read_until(b'\n', &mut line) {
                Ok(0) => return Err(format!("QEMU ended:\n{}", self.console())),
                Ok(_) if line.ends_with(b"\n") => return Ok(String::from_utf8_lossy(&line).into_owned()),
                Ok(_) => {}
                Err(fault) if matches!(fault.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(fault) => return Err(fault.to_string()),
            }
            if Instant::now() >= deadline {
                return Err(format!("no answer in time:\n{}", self.console()));
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(port: &Path, deadline: Instant) -> Result<BufReader<UnixStream>, String> {
    loop {
        match UnixStream::connect(port) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(1))).map_err(|fault| fault.to_string())?;
                return Ok(BufReader::new(stream));
            }
            Err(fault) if Instant::now() >= deadline => return Err(format!("QEMU's socket: {fault}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Folder of the product's programs: FERRO_BINARIES, or where this test's own programs are.
fn binaries() -> PathBuf {
    std::env::var_os("FERRO_BINARIES").map_or_else(
        || Path::new(env!("CARGO_BIN_EXE_image")).parent().expect("a folder").to_path_buf(),
        PathBuf::from,
    )
}

/// Folder for what is fetched or built once: FERRO_CACHE, as the `ferro` script has it.
pub fn cache() -> PathBuf {
    std::env::var_os("FERRO_CACHE").map_or_else(|| PathBuf::from("/var/cache/ferrostack"), PathBuf::from)
}

fn packages() -> PathBuf {
    cache().join("packages")
}

/// The folder of the guest image, built when needed.
pub fn guest() -> PathBuf {
    let dir = cache().join("guest");
    image::guest::build(&dir, &dir.join("packages")).expect("the guest image builds");
    dir
}

/// Runs `flow` in a fresh appliance. When it fails because the emulated machine as a whole hangs (emulation of nested
/// virtualisation does, rarely, on a busy machine), it gets one more machine; any other failure is the test's.
pub fn with_lab(seen: &[(&str, &Path)], drive: &Path, flow: impl Fn(&mut Lab)) {
    let mut lab = Lab::start(seen, drive);
    let Err(failure) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| flow(&mut lab))) else {
        return;
    };
    if lab.answers() {
        std::panic::resume_unwind(failure);
    }
    println!("the emulated machine hangs; once more. Its console:\n{}", lab.console());
    drop(lab);
    flow(&mut Lab::start(seen, drive));
}

/// The appliance, built from today's programs.
fn image() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("appliance");
    let (file, cache) = (dir.join("ferrostack.img"), packages());
    let guest = guest().join("guest.qcow2");
    let source = image::appliance::Source { binaries: &binaries(), guest: Some(&guest), cache: &cache };
    image::appliance::build(&file, &source).expect("the appliance builds");
    file
}

/// The second archive: agent, tools, and what the test wants inside.
fn extra(image: &Path, seen: &[(&str, &Path)]) -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    let mut add = || -> Result<(), Box<dyn std::error::Error>> {
        for dir in [
            "extra",
            "extra/usr",
            "extra/usr/lib",
            "extra/usr/lib/test",
            "extra/etc",
            "extra/etc/systemd",
            "extra/etc/systemd/system",
        ] {
            archive.directory(dir)?;
        }
        archive.file("extra/usr/lib/test/agent", 0o755, AGENT.as_bytes())?;
        archive.file("extra/etc/systemd/system/test-agent.service", 0o644, AGENT_UNIT.as_bytes())?;
        let staging = tempfile::tempdir()?;
        let tree = image::tree::Tree::new(&staging.path().join("tree"))?;
        let cache = Cache::open(&packages())?;
        for (package, files) in TOOLS {
            let unpacked = staging.path().join(package);
            cache.get(&[package])?.remove(0).unpack(&unpacked)?;
            for file in *files {
                tree.pick(package, &unpacked, file)?;
            }
        }
        for part in ["bin", "lib/x86_64-linux-gnu"] {
            for entry in std::fs::read_dir(tree.root().join("usr").join(part))? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                // Through links: one folder holds everything, under the names that programs ask for.
                archive.file(&format!("extra/usr/lib/test/{name}"), 0o755, &std::fs::read(&path)?)?;
            }
        }
        for (name, path) in seen {
            archive.file(&format!("extra/usr/lib/test/{name}"), 0o755, &std::fs::read(path)?)?;
        }
        Ok(())
    };
    add().unwrap_or_else(|fault| panic!("test files for {}: {fault}", image.display()));
    archive.finish().expect("memory")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks_exact(2)
        .filter_map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect()
}
