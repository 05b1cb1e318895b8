//! The machine around the guests: QEMU emulates a processor with virtualisation, Debian's kernel runs on it from memory, and this test
//! program runs there again, with the monitor, a guest kernel and a guest's files. Its serial console says how each test ended.

use image::cpio::Archive;
use image::guest::modules::{Module, Modules};
use image::packages::{Cache, Package};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Drivers of the machine around.
const OUTER: &[&str] = &["virtio_pci", "virtio_blk", "kvm_amd", "tun"];
/// Drivers of every guest, and those that few need. The last of the first is for other monitors.
const GUEST: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "button", "evdev", "virtio_mmio"];
const GUEST_MORE: &[&str] =
    &["virtio_console", "virtio_balloon", "virtio_rng", "vmw_vsock_virtio_transport", "wdat_wdt"];
/// Drivers of guests that grow.
const GUEST_GROW: &[&str] = &["virtio_mem"];
/// Where the inner side finds its guests' kernel and initramfs.
pub const KERNEL: &str = "/guest/vmlinuz";
pub const INITRD: &str = "/guest/initrd";

fn cache() -> PathBuf {
    std::env::var_os("FERRO_CACHE").map_or_else(|| PathBuf::from("/var/cache/ferrostack"), PathBuf::from)
}

/// A kernel package's kernel and modules, unpacked once.
struct Kernel {
    file: PathBuf,
    modules: Modules,
}

/// `VMM_LINUX_PACKAGE` names another kernel package, for the guests and the machine around them.
fn kernel(packages: &Cache) -> Kernel {
    let package = std::env::var_os("VMM_LINUX_PACKAGE").map_or_else(
        || {
            let meta = packages.get(&["linux-image-cloud-amd64"]).unwrap().remove(0);
            packages.dependency(&meta, "linux-image-").unwrap()
        },
        |file| Package { name: "given".into(), file: file.into() },
    );
    let place = cache().join("nested").join(package.file_name());
    if !place.exists() {
        let partial = tempfile::Builder::new().prefix(".partial").tempdir_in(packages.path()).unwrap();
        let whole = partial.path().join("kernel");
        package.unpack(&whole).unwrap();
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        // Another run may have been faster.
        if let Err(error) = std::fs::rename(&whole, &place) {
            assert!(place.exists(), "{error}");
        }
    }
    let only = |folder: &str, prefix: &str| {
        let entries = std::fs::read_dir(place.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut found =
            entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix));
        found.next().unwrap_or_else(|| panic!("no {prefix}* in {folder} of {}", package.file_name()))
    };
    Kernel {
        file: only("boot", "vmlinuz-"),
        modules: Modules::open(&only("lib/modules", "").canonicalize().unwrap()).unwrap(),
    }
}

/// The guests' kernel as an ELF file, for monitors that read nothing else: Debian packs its cloud kernel by LZ4, in the "legacy" frame of
/// blocks of 8 MiB, each behind its packed size.
pub fn vmlinux() -> Vec<u8> {
    const MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
    let packages = Cache::open(&cache().join("packages")).unwrap();
    let image = std::fs::read(kernel(&packages).file).unwrap();
    let at = image.windows(4).position(|bytes| bytes == MAGIC).expect("a kernel packed by LZ4");
    let mut rest = &image[at + 4..];
    let mut kernel = Vec::new();
    while let Some((size, more)) = rest.split_first_chunk() {
        let size = usize::try_from(u32::from_le_bytes(*size)).unwrap();
        // What follows the last block is the unpacked size, which is no size of a block that fits.
        if size > more.len() {
            break;
        }
        let before = kernel.len();
        unpack(&more[..size], &mut kernel);
        rest = &more[size..];
        if kernel.len() - before < 8 << 20 {
            break;
        }
    }
    assert!(kernel.starts_with(b"\x7fELF"), "the kernel unpacks to something else");
    kernel
}

/// Unpacks one LZ4 block: literals and then a match, again and again, with lengths that go on in further bytes.
fn unpack(packed: &[u8], into: &mut Vec<u8>) {
    /// A length that begins with four bits.
    fn length(first: u8, bytes: &mut impl Iterator<Item = u8>) -> usize {
        let mut length = usize::from(first);
        let mut more = first == 15;
        while more {
            let byte = bytes.next().unwrap();
            length += usize::from(byte);
            more = byte == 255;
        }
        length
    }
    let mut bytes = packed.iter().copied();
    while let Some(token) = bytes.next() {
        let literals = length(token >> 4, &mut bytes);
        into.extend(bytes.by_ref().take(literals));
        let (Some(low), Some(high)) = (bytes.next(), bytes.next()) else { return };
        let from = into.len() - usize::from(u16::from_le_bytes([low, high]));
        for at in from..from + 4 + length(token & 15, &mut bytes) {
            into.push(into[at]);
        }
    }
}

/// An archive being filled, that adds folders as they are needed.
struct Tree {
    archive: Archive<Vec<u8>>,
    folders: BTreeSet<String>,
}

impl Tree {
    fn new() -> Self {
        let mut tree = Self { archive: Archive::new(Vec::new()), folders: BTreeSet::new() };
        for folder in ["dev/x", "proc/x", "sys/x", "tmp/x", "modules/x", "etc/x"] {
            tree.parents(folder);
        }
        tree.archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        tree
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            if self.folders.insert(path[..at].to_owned()) {
                self.archive.directory(&path[..at]).unwrap();
            }
        }
    }

    fn bytes(&mut self, path: &str, content: &[u8]) {
        let path = path.trim_start_matches('/');
        self.parents(path);
        self.archive.file(path, 0o755, content).unwrap();
    }

    fn file(&mut self, path: &str, from: &Path) {
        let content = std::fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self.bytes(path, &content);
    }

    /// A program of this host's, with the libraries that it needs.
    fn program(&mut self, path: &str, from: &Path) {
        self.file(path, from);
        let output = Command::new("ldd").arg(from).output().unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let word = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(library) = word.filter(|library| self.folders.insert((*library).to_owned())) {
                self.file(library, Path::new(library));
            }
        }
    }

    fn modules(&mut self, list: &str, modules: &[Module]) {
        let names: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
        self.bytes(&format!("modules/{list}"), names.as_bytes());
        for module in modules {
            self.bytes(&format!("modules/{}.ko", module.name), &module.content);
        }
    }

    fn finish(self) -> Vec<u8> {
        self.archive.finish().unwrap()
    }
}

/// A program out of a package.
fn pick(packages: &Cache, package: &str, file: &str) -> (tempfile::TempDir, PathBuf) {
    let unpacked = tempfile::tempdir().unwrap();
    packages.get(&[package]).unwrap().remove(0).unpack(unpacked.path()).unwrap();
    let found = unpacked.path().join(file);
    (unpacked, found)
}

/// What a machine around is started with.
#[derive(Default)]
pub struct Plan<'a> {
    /// Tests to run there, one after another.
    pub tests: &'a [&'a str],
    /// A raw disk with an ext4 file system, seen there as `/disk`.
    pub disk: Option<&'a Path>,
    /// Variables of the environment.
    pub env: &'a [(&'a str, String)],
    /// Further programs of this host's, by the name that they have there.
    pub programs: &'a [(&'a str, &'a Path)],
    /// Further files, by the name that they have there.
    pub files: &'a [(&'a str, Vec<u8>)],
}

/// The machine around; dropping it is a power cut.
pub struct Outer {
    child: Child,
    console: PathBuf,
    _folder: tempfile::TempDir,
}

impl Outer {
    pub fn start(plan: &Plan<'_>) -> Self {
        let packages = Cache::open(&cache().join("packages")).unwrap();
        let kernel = kernel(&packages);
        let (_busybox, busybox) = pick(&packages, "busybox-static", "bin/busybox");
        let me = std::env::current_exe().unwrap();

        let mut guest = Tree::new();
        guest.file("bin/busybox", &busybox);
        guest.program("bin/test-linux", &me);
        guest.bytes("init", include_bytes!("guest-init"));
        guest.bytes("etc/acpi/PWRF/00000080", include_bytes!("power-button"));
        let basic = kernel.modules.closure(GUEST).unwrap();
        guest.modules("order", &basic);
        let mut more = kernel.modules.closure(GUEST_MORE).unwrap();
        more.retain(|module| !basic.contains(module));
        guest.modules("more", &more);
        let mut grow = kernel.modules.closure(GUEST_GROW).unwrap();
        grow.retain(|module| !basic.contains(module));
        guest.modules("grow", &grow);
        let (_ethtool, ethtool) = pick(&packages, "ethtool", "sbin/ethtool");
        let (_libmnl, libmnl) = pick(&packages, "libmnl0", "usr/lib/x86_64-linux-gnu/libmnl.so.0");
        guest.program("bin/ethtool", &ethtool);
        guest.file("lib/x86_64-linux-gnu/libmnl.so.0", &libmnl.canonicalize().unwrap());

        let mut outer = Tree::new();
        outer.file("bin/busybox", &busybox);
        outer.program("bin/test-linux", &me);
        // Where this program looks for it.
        outer.program(env!("CARGO_BIN_EXE_vmm"), Path::new(env!("CARGO_BIN_EXE_vmm")));
        outer.bytes("init", include_bytes!("outer-init"));
        outer.modules("order", &kernel.modules.closure(OUTER).unwrap());
        outer.file(KERNEL, &kernel.file);
        outer.bytes(INITRD, &guest.finish());
        for (name, program) in plan.programs {
            outer.program(name, program);
        }
        for (name, content) in plan.files {
            outer.bytes(name, content);
        }

        let folder = tempfile::tempdir().unwrap();
        let initrd = folder.path().join("initrd");
        std::fs::write(&initrd, outer.finish()).unwrap();
        let console = folder.path().join("console");
        let mut line = format!(
            "console=ttyS0 quiet no_timer_check panic=-1 tests={} env.VMM_TEST_SECONDS=240",
            plan.tests.join(",")
        );
        for (name, value) in plan.env {
            line.push_str(&format!(" env.{name}={value}"));
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max,+svm", "-smp", "2", "-m", "2560"]);
        qemu.args(["-display", "none", "-nodefaults", "-no-reboot", "-append", &line]);
        qemu.arg("-kernel").arg(&kernel.file).arg("-initrd").arg(&initrd);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        if let Some(disk) = plan.disk {
            let drive = format!("file={},format=raw,if=none,id=disk,cache=none", disk.display());
            qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        }
        let child = qemu.stdin(Stdio::null()).spawn().unwrap();
        Self { child, console, _folder: folder }
    }

    /// All that its console said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).replace('\r', "")
    }

    /// Waits until its console has said something, or has been silent for too long, which is the error.
    fn hear(&mut self, text: &str, silence: Duration) -> Result<String, String> {
        let (mut length, mut since) = (0, Instant::now());
        loop {
            let said = self.said();
            if said.contains(text) {
                return Ok(said);
            }
            if said.len() > length {
                (length, since) = (said.len(), Instant::now());
            }
            let ended = self.child.try_wait().unwrap().is_some();
            if (ended && !self.said().contains(text)) || since.elapsed() > silence {
                return Err(said);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its console says something. What it said until then.
    pub fn wait(&mut self, text: &str) -> String {
        self.hear(text, SILENCE).unwrap_or_else(|said| panic!("no '{text}' in:\n{said}"))
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Longest that the machine around says nothing: the slowest of its tests, on a busy host.
const SILENCE: Duration = Duration::from_secs(400);
/// Longest that it takes to start.
const START: Duration = Duration::from_secs(180);

/// Runs tests in a machine around, and wants all of them to pass. What its console said. Those that did not pass get one more try, in
/// another machine: emulation of nested virtualisation, rarely and on a busy host, crashes the kernel there, or resets a guest before it
/// has said a word.
pub fn run(plan: &Plan<'_>) -> String {
    let mut left = plan.tests.to_vec();
    let since = Instant::now();
    attempt(plan, &mut left, since).unwrap_or_else(|said| {
        println!("once more for {left:?}:\n{said}");
        let again = left.clone();
        let plan = Plan { tests: &again, ..*plan };
        attempt(&plan, &mut left, since).unwrap_or_else(|said| panic!("{left:?} failed again:\n{said}"))
    })
}

/// One machine. Takes each test off `left` that passed. The error is what it said, when some did not or the machine is gone.
fn attempt(plan: &Plan<'_>, left: &mut Vec<&str>, since: Instant) -> Result<String, String> {
    let mut outer = Outer::start(plan);
    outer.hear("== up", START)?;
    println!("{:>4} s: the machine around is up", since.elapsed().as_secs());
    for test in plan.tests {
        let (good, bad) = (format!("== {test} ok"), format!("== {test} failed"));
        let mut said = outer.said();
        while !said.contains(&good) && !said.contains(&bad) {
            said = outer.wait_more(said.len())?;
        }
        let passed = said.contains(&good);
        println!("{:>4} s: {test} {}", since.elapsed().as_secs(), if passed { "ok" } else { "FAILED" });
        if passed {
            left.retain(|other| other != test);
        }
    }
    let said = outer.said();
    if left.is_empty() { Ok(said) } else { Err(said) }
}

impl Outer {
    /// Waits until its console has said more than so many bytes.
    fn wait_more(&mut self, than: usize) -> Result<String, String> {
        let since = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap().is_some();
            let said = self.said();
            if said.len() > than {
                return Ok(said);
            }
            if ended || since.elapsed() > SILENCE {
                return Err(said);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
