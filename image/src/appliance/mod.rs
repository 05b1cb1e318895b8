//! The appliance: one raw UEFI disk image that a machine boots as it is. Debian's kernel and base system as a read-only
//! squashfs, the product's daemons as systemd units, a data partition that the machine makes at first start.
//!
//! Built as root, because file owners inside matter and packages run their install scripts in a chroot; without loop devices,
//! because build machines and containers often have none.

pub mod disk;
pub mod recipe;
pub mod root;
pub mod run;

use crate::cpio::Archive;
use crate::fault::{Fault, Tool};
use crate::guest::modules::Modules;
use crate::outdir::OutDir;
use crate::packages::{Cache, Package};
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

const MKSQUASHFS: Tool = Tool { name: "mksquashfs", package: "squashfs-tools" };
/// The program's own text is part of the recipe.
const SOURCES: &[&str] = &[
    include_str!("mod.rs"),
    include_str!("recipe.rs"),
    include_str!("root.rs"),
    include_str!("disk.rs"),
    include_str!("../cpio.rs"),
];
const INITRD_INIT: &str = include_str!("../../data/appliance/initrd-init");

/// What to build from.
#[derive(Debug)]
pub struct Source<'a> {
    /// Folder with the product's programs ([`recipe::BINARIES`]).
    pub binaries: &'a Path,
    /// Guest image to carry along, so that the first server needs no network.
    pub guest: Option<&'a Path>,
    /// Folder for fetched packages.
    pub cache: &'a Path,
}

/// What `FILE.json` says about a built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Identifies packages, programs and files: equal recipe, equal image.
    pub recipe: String,
    /// Kernel release.
    pub kernel: String,
    /// Command line inside the boot image.
    pub command_line: String,
    /// Size of the image, bytes.
    pub bytes: u64,
    /// Size of the root file system, bytes.
    pub root_bytes: u64,
}

/// The kernel beside an image, for starting it without firmware.
#[must_use]
pub fn kernel_of(image: &Path) -> PathBuf {
    beside(image, "vmlinuz")
}

/// The initrd beside an image.
#[must_use]
pub fn initrd_of(image: &Path) -> PathBuf {
    beside(image, "initrd")
}

fn beside(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    image.with_file_name(name)
}

/// Builds the image `file`, with kernel, initrd and facts beside it.
///
/// # Errors
/// When not root, when binaries, tools or packages are missing, when the result would be too large. An earlier image stays.
pub fn build(file: &Path, source: &Source<'_>) -> Result<Facts, Fault> {
    root::check(source)?;
    let name = file
        .file_name()
        .ok_or_else(|| Fault::Input(format!("--out {} names no file", file.display())))?
        .to_string_lossy()
        .into_owned();
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let out = OutDir::open(dir)?;
    let cache = Cache::open(source.cache)?;

    let mut packages = cache.get(&[recipe::KERNEL, recipe::BOOT, recipe::BUSYBOX])?;
    packages.push(cache.dependency(&packages[0], "linux-image-")?);
    let recipe = recipe_id(&packages, source)?;
    if let Some(facts) = present(&out, &name, &recipe) {
        println!("appliance is up to date");
        return Ok(facts);
    }
    let unpacked = out.scratch().join("packages");
    for package in &packages[1..] {
        package.unpack(&unpacked.join(&package.name))?;
    }
    let kernel_dir = unpacked.join(&packages[3].name);
    let release = crate::guest::kernel_release(&kernel_dir)?;
    println!("root file system with Linux {release}");
    let tree = out.scratch().join("root");
    root::make(&tree, source, &cache, &kernel_dir, &release)?;
    let modules = Modules::open(&kernel_dir.join("lib/modules").join(&release))?;
    let initrd = out.scratch().join("initrd");
    write_initrd(
        &initrd,
        &unpacked.join(recipe::BUSYBOX).join("bin/busybox"),
        &modules,
        &release,
        out.scratch(),
    )?;

    println!("compressing it");
    let squashfs = out.scratch().join("root.squashfs");
    let options =
        ["-comp", "zstd", "-Xcompression-level", "6", "-b", "256K", "-noappend", "-no-progress", "-quiet"];
    // Time stamps inside and of the file system itself: equal input, equal bytes.
    let stamps = ["-mkfs-time", "1700000000", "-all-time", "1700000000"];
    MKSQUASHFS.run(
        [tree.as_os_str(), squashfs.as_os_str()]
            .into_iter()
            .chain(options.iter().chain(&stamps).map(AsRef::as_ref)),
    )?;

    println!("writing the disk");
    let vmlinuz = kernel_dir.join(format!("boot/vmlinuz-{release}"));
    let boot = unpacked.join(recipe::BOOT).join("usr/lib/systemd/boot/efi");
    let command_line = format!("ferro.root={} {}", recipe::ROOT_SLOT, recipe::ARGUMENTS);
    let unified = out.scratch().join("unified.efi");
    disk::unified_kernel(
        &disk::Kernel {
            stub: &boot.join("linuxx64.efi.stub"),
            vmlinuz: &vmlinuz,
            initrd: &initrd,
            command_line: &command_line,
            os_release: &tree.join("usr/lib/os-release"),
        },
        out.scratch(),
        &unified,
    )?;
    let esp = disk::firmware_partition(
        &boot.join("systemd-bootx64.efi"),
        &unified,
        env!("CARGO_PKG_VERSION"),
        out.scratch(),
    )?;
    let image = out.scratch().join("image");
    let bytes = disk::assemble(&esp, &squashfs, &image)?;

    let facts = Facts {
        recipe,
        kernel: release,
        command_line,
        bytes,
        root_bytes: squashfs.metadata().map_err(Fault::file("read", &squashfs))?.len(),
    };
    let note = out.scratch().join("note");
    let text = serde_json::to_vec_pretty(&facts).map_err(|fault| Fault::Input(fault.to_string()))?;
    std::fs::write(&note, text).map_err(Fault::file("write", &note))?;
    let kernel_copy = out.scratch().join("vmlinuz");
    std::fs::copy(&vmlinuz, &kernel_copy).map_err(Fault::file("copy", &vmlinuz))?;
    for (from, to) in [
        (&kernel_copy, format!("{name}.vmlinuz")),
        (&initrd, format!("{name}.initrd")),
        (&image, name.clone()),
        (&note, format!("{name}.json")),
    ] {
        out.publish(from, &to)?;
    }
    Ok(facts)
}

/// Hash over everything that shapes the image; compared only with itself on one machine.
fn recipe_id(packages: &[Package], source: &Source<'_>) -> Result<String, Fault> {
    let mut hasher = DefaultHasher::new();
    SOURCES.hash(&mut hasher);
    INITRD_INIT.hash(&mut hasher);
    for package in packages {
        package.file_name().hash(&mut hasher);
    }
    for (path, mode, content) in recipe::FILES {
        (path, mode, content).hash(&mut hasher);
    }
    let programs = recipe::BINARIES.iter().map(|name| source.binaries.join(name));
    for file in programs.chain(source.guest.map(Path::to_path_buf)) {
        std::fs::read(&file).map_err(Fault::file("read", &file))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// The facts of the image `name` when it is whole and made by `recipe`.
fn present(out: &OutDir, name: &str, recipe: &str) -> Option<Facts> {
    let image = out.path().join(name);
    let facts: Facts = serde_json::from_slice(&std::fs::read(beside(&image, "json")).ok()?).ok()?;
    let whole = image.metadata().is_ok_and(|data| data.len() == facts.bytes)
        && kernel_of(&image).is_file()
        && initrd_of(&image).is_file();
    (whole && facts.recipe == recipe).then_some(facts)
}

fn write_initrd(
    path: &Path,
    busybox: &Path,
    modules: &Modules,
    release: &str,
    scratch: &Path,
) -> Result<(), Fault> {
    let program = std::fs::read(busybox).map_err(Fault::file("read", busybox))?;
    let drivers = modules.closure(recipe::EARLY_DRIVERS)?;
    // `depmod` wants the folder as it will be.
    let staging = scratch.join("initrd-modules");
    let base = format!("lib/modules/{release}");
    for driver in &drivers {
        let file = staging.join(&base).join(&driver.path);
        let parent = file.parent().unwrap_or(&staging);
        std::fs::create_dir_all(parent).map_err(Fault::file("make folder", parent))?;
        std::fs::write(&file, &driver.content).map_err(Fault::file("write", &file))?;
    }
    let mut depmod = std::process::Command::new(busybox);
    depmod.args(["depmod", "-b"]).arg(&staging).arg(release);
    Tool { name: "depmod", package: recipe::BUSYBOX }.run_command(depmod)?;

    let write = || -> std::io::Result<()> {
        let mut archive = Archive::new(std::io::BufWriter::new(std::fs::File::create(path)?));
        for dir in ["bin", "dev", "proc", "sys", "root", "lower", "layer", "lib", "lib/modules"] {
            archive.directory(dir)?;
        }
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.file("bin/busybox", 0o755, &program)?;
        for applet in [
            "cat",
            "cp",
            "echo",
            "find",
            "grep",
            "mkdir",
            "modprobe",
            "mount",
            "poweroff",
            "readlink",
            "reboot",
            "sh",
            "sleep",
            "sort",
            "switch_root",
            "usleep",
            "xargs",
        ] {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        archive.file("init", 0o755, INITRD_INIT.as_bytes())?;
        archive.tree(&staging.join("lib/modules"), "lib/modules")?;
        archive.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.flush()
    };
    write().map_err(Fault::file("write", path))
}
