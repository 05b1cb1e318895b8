//! The small guest image: a whole disk (MBR, one ext4 partition) that looks like any cloud image, with the kernel on it.
//!
//! Debian's cloud kernel, busybox, dropbear, and shell scripts of our own: init, DHCP, metadata. A few MiB instead of a
//! distribution, because it starts in seconds where there is no hardware virtualisation. The kernel and the initrd lie on the
//! disk with a boot entry, and beside the image for servers that name them apart.

pub mod modules;
pub mod recipe;

use crate::cpio::Archive;
use crate::fault::{Fault, Tool};
use crate::mbr;
use crate::outdir::OutDir;
use crate::packages::{Cache, Package};
use crate::tree::Tree;
use modules::Modules;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;
use std::process::Command;

const MKFS: Tool = Tool { name: "mkfs.ext4", package: "e2fsprogs" };
const QEMU_IMG: Tool = Tool { name: "qemu-img", package: "qemu-utils" };
/// The program's own text is part of the recipe, so no changed option is forgotten in the comparison.
const SOURCES: &[&str] = &[
    include_str!("mod.rs"),
    include_str!("recipe.rs"),
    include_str!("modules.rs"),
    include_str!("../cpio.rs"),
    include_str!("../mbr.rs"),
    include_str!("../tree.rs"),
];
const INITRD_INIT: &str = include_str!("../../data/guest/initrd-init");
/// Fixed, so that the same packages give the same image. It identifies nothing: servers find their root by label.
const FILE_SYSTEM_ID: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
const DISK_SIGNATURE: u32 = 0xfe77_057a;
/// File system block, bytes.
const BLOCK: u64 = 4096;
/// Reserve descriptors so that the root can grow this far while mounted; more needs a file system check.
const GROW_LIMIT: u64 = 2 << 40;

/// What `guest.json` says about a built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Identifies packages, scripts and sizes: equal recipe, equal image.
    pub recipe: String,
    /// Package files that went in.
    pub packages: Vec<String>,
    /// Kernel release.
    pub kernel: String,
    /// Kernel command line of the boot entry.
    pub command_line: String,
    /// Who logs in, with an SSH key.
    pub user: String,
    /// Size of the disk as the guest sees it before growing, bytes.
    pub disk_bytes: u64,
    /// Size of the file to upload, bytes.
    pub qcow2_bytes: u64,
}

/// Builds the image into `out` unless it is there already.
///
/// # Errors
/// When packages or tools are missing or the disk is full; `out` then holds what it held before.
pub fn build(out: &Path, cache: &Path) -> Result<Facts, Fault> {
    let out = OutDir::open(out)?;
    let cache = Cache::open(cache)?;
    let packages = fetch(&cache)?;
    let recipe = recipe_id(&packages);
    if let Some(facts) = present(&out, &recipe) {
        println!("guest image is up to date");
        return Ok(facts);
    }

    println!("unpacking {} packages", packages.len());
    let unpacked = out.scratch().join("packages");
    for package in &packages {
        package.unpack(&unpacked.join(&package.name))?;
    }
    let kernel_dir = unpacked.join(&packages[packages.len() - 1].name);
    let release = kernel_release(&kernel_dir)?;
    let modules = Modules::open(&kernel_dir.join("lib/modules").join(&release))?;
    let vmlinuz = kernel_dir.join(format!("boot/vmlinuz-{release}"));

    println!("making initrd and root file system for Linux {release}");
    let initrd = out.scratch().join("guest.initrd");
    write_initrd(&initrd, &unpacked.join(recipe::BUSYBOX).join("bin/busybox"), &modules)?;
    let tree = Tree::new(&out.scratch().join("root"))?;
    fill(&tree, &unpacked, &packages)?;
    install_kernel(&tree, &release, &vmlinuz, &initrd, &modules)?;

    println!("writing the disk");
    let raw = out.scratch().join("guest.raw");
    write_disk(&raw, tree.root())?;
    let qcow2 = out.scratch().join("guest.qcow2");
    QEMU_IMG.run([
        "convert".as_ref(),
        "-c".as_ref(),
        "-f".as_ref(),
        "raw".as_ref(),
        "-O".as_ref(),
        "qcow2".as_ref(),
        raw.as_os_str(),
        qcow2.as_os_str(),
    ])?;
    let qcow2_bytes = qcow2.metadata().map_err(Fault::file("read", &qcow2))?.len();
    if qcow2_bytes > recipe::UPLOAD_LIMIT {
        return Err(Fault::TooLarge {
            what: "the guest image".into(),
            bytes: qcow2_bytes,
            limit: recipe::UPLOAD_LIMIT,
        });
    }

    let facts = Facts {
        recipe,
        packages: packages.iter().map(Package::file_name).collect(),
        kernel: release,
        command_line: command_line(),
        user: recipe::USER.into(),
        disk_bytes: recipe::DISK_BYTES,
        qcow2_bytes,
    };
    let kernel_copy = out.scratch().join("guest.vmlinuz");
    std::fs::copy(&vmlinuz, &kernel_copy).map_err(Fault::file("copy", &vmlinuz))?;
    let note = out.scratch().join("guest.json");
    let text = serde_json::to_vec_pretty(&facts).map_err(|fault| Fault::Input(fault.to_string()))?;
    std::fs::write(&note, text).map_err(Fault::file("write", &note))?;
    // The note goes last: it vouches for the others.
    for (file, name) in [
        (&raw, "guest.raw"),
        (&qcow2, "guest.qcow2"),
        (&kernel_copy, "guest.vmlinuz"),
        (&initrd, "guest.initrd"),
        (&note, "guest.json"),
    ] {
        out.publish(file, name)?;
    }
    Ok(facts)
}

/// Kernel arguments of the boot entry.
#[must_use]
pub fn command_line() -> String {
    format!("root=LABEL={} {}", recipe::LABEL, recipe::ARGUMENTS)
}

/// All packages, the kernel last.
fn fetch(cache: &Cache) -> Result<Vec<Package>, Fault> {
    let mut names: Vec<&str> = vec![recipe::KERNEL, recipe::BUSYBOX, recipe::SHELL];
    names.extend(recipe::TAKES.iter().map(|take| take.package));
    let mut packages = cache.get(&names)?;
    let meta = packages.remove(0);
    packages.push(cache.dependency(&meta, "linux-image-")?);
    Ok(packages)
}

/// Hash over everything that shapes the image. Only compared with itself on one machine, so the hash needs to be stable
/// between runs of one build of this program, no more.
fn recipe_id(packages: &[Package]) -> String {
    let mut hasher = DefaultHasher::new();
    for package in packages {
        package.file_name().hash(&mut hasher);
    }
    SOURCES.hash(&mut hasher);
    for (path, _, content) in recipe::FILES {
        (path, content).hash(&mut hasher);
    }
    INITRD_INIT.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The facts of the image in `out` when it is whole and made by `recipe`.
fn present(out: &OutDir, recipe: &str) -> Option<Facts> {
    let facts: Facts = serde_json::from_slice(&std::fs::read(out.path().join("guest.json")).ok()?).ok()?;
    let size = |name: &str| out.path().join(name).metadata().ok().map(|data| data.len());
    let whole = size("guest.raw") == Some(facts.disk_bytes)
        && size("guest.qcow2") == Some(facts.qcow2_bytes)
        && size("guest.vmlinuz").is_some()
        && size("guest.initrd").is_some();
    (whole && facts.recipe == recipe).then_some(facts)
}

/// The release that a kernel package holds.
pub(crate) fn kernel_release(kernel_dir: &Path) -> Result<String, Fault> {
    let boot = kernel_dir.join("boot");
    std::fs::read_dir(&boot)
        .map_err(Fault::file("read folder", &boot))?
        .filter_map(Result::ok)
        .find_map(|entry| entry.file_name().to_string_lossy().strip_prefix("vmlinuz-").map(str::to_owned))
        .ok_or_else(|| Fault::PackageLayout { package: "linux-image".into(), path: "boot/vmlinuz-*".into() })
}

fn write_initrd(path: &Path, busybox: &Path, modules: &Modules) -> Result<(), Fault> {
    let program = std::fs::read(busybox).map_err(Fault::file("read", busybox))?;
    let drivers = modules.closure(recipe::EARLY_DRIVERS)?;
    let order: String = drivers.iter().map(|module| format!("{}\n", module.name)).collect();
    let write = || -> std::io::Result<()> {
        let mut archive = Archive::new(std::io::BufWriter::new(std::fs::File::create(path)?));
        for dir in ["bin", "dev", "proc", "sys", "root", "modules"] {
            archive.directory(dir)?;
        }
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.file("bin/busybox", 0o755, &program)?;
        for applet in [
            "basename",
            "blockdev",
            "cat",
            "dd",
            "findfs",
            "insmod",
            "mount",
            "od",
            "poweroff",
            "readlink",
            "sh",
            "sleep",
            "switch_root",
            "sync",
            "tr",
            "usleep",
        ] {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        archive.file("init", 0o755, INITRD_INIT.as_bytes())?;
        archive.file("modules/order", 0o644, order.as_bytes())?;
        for module in &drivers {
            archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.content)?;
        }
        archive.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.flush()
    };
    write().map_err(Fault::file("write", path))
}

/// Everything of the root file system but the kernel.
fn fill(tree: &Tree, unpacked: &Path, packages: &[Package]) -> Result<(), Fault> {
    for (path, mode) in recipe::DIRECTORIES {
        tree.directory(path, *mode)?;
    }
    let busybox = unpacked.join(recipe::BUSYBOX).join("bin/busybox");
    tree.copy(&busybox, "usr/bin/busybox")?;
    let list = Command::new(&busybox).arg("--list").output().map_err(Fault::file("run", &busybox))?;
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        tree.symlink(&format!("usr/bin/{applet}"), "busybox")?;
    }
    tree.copy(&unpacked.join(recipe::SHELL).join("bin/busybox"), "usr/bin/busybox-shell")?;
    for name in ["sh", "ash"] {
        tree.symlink(&format!("usr/bin/{name}"), "busybox-shell")?;
    }
    // Real programs come after the applets and replace those of the same name.
    for take in recipe::TAKES {
        for file in take.files {
            tree.pick(take.package, &unpacked.join(take.package), file)?;
        }
    }
    for (path, target) in recipe::LINKS {
        tree.symlink(path, target)?;
    }
    for (path, mode, content) in recipe::FILES {
        tree.file(path, *mode, content.as_bytes())?;
    }
    // The licences that these packages ask to be passed on.
    for package in packages {
        let copyright = format!("usr/share/doc/{}/copyright", package.name);
        let source = unpacked.join(&package.name).join(&copyright);
        if source.is_file() {
            tree.copy(&source, &copyright)?;
        }
    }
    Ok(())
}

fn install_kernel(
    tree: &Tree,
    release: &str,
    vmlinuz: &Path,
    initrd: &Path,
    modules: &Modules,
) -> Result<(), Fault> {
    let base = format!("usr/lib/modules/{release}");
    for module in modules.closure(&[recipe::EARLY_DRIVERS, recipe::DRIVERS].concat())? {
        tree.file(&format!("{base}/{}", module.path), 0o644, &module.content)?;
    }
    let mut depmod = Command::new(tree.root().join("usr/bin/busybox"));
    depmod.args(["depmod", "-b"]).arg(tree.root()).arg(release);
    Tool { name: "depmod", package: recipe::BUSYBOX }.run_command(depmod)?;

    tree.copy(vmlinuz, &format!("boot/vmlinuz-{release}"))?;
    tree.copy(initrd, &format!("boot/initrd.img-{release}"))?;
    tree.symlink("boot/vmlinuz", &format!("vmlinuz-{release}"))?;
    tree.symlink("boot/initrd.img", &format!("initrd.img-{release}"))?;
    let command_line = command_line();
    tree.file(
        "boot/loader/entries/ferro.conf",
        0o644,
        format!(
            "title Ferrostack guest\nversion {release}\nlinux /boot/vmlinuz-{release}\ninitrd /boot/initrd.img-{release}\noptions {command_line}\n"
        )
        .as_bytes(),
    )?;
    tree.file(
        "boot/extlinux/extlinux.conf",
        0o644,
        format!(
            "DEFAULT ferro\nLABEL ferro\n  LINUX /boot/vmlinuz-{release}\n  INITRD /boot/initrd.img-{release}\n  APPEND {command_line}\n"
        )
        .as_bytes(),
    )
}

/// A disk of [`recipe::DISK_BYTES`] whose partition holds `root`. Holes stay holes.
fn write_disk(raw: &Path, root: &Path) -> Result<(), Fault> {
    let start = u64::from(mbr::FIRST_SECTOR) * mbr::SECTOR;
    let sector = mbr::one_partition(recipe::DISK_BYTES, DISK_SIGNATURE)
        .ok_or_else(|| Fault::Input(format!("a disk of {} bytes is too small", recipe::DISK_BYTES)))?;
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(raw)?;
        file.set_len(recipe::DISK_BYTES)?;
        file.write_all(&sector)
    };
    write().map_err(Fault::file("write", raw))?;

    let options = format!(
        "offset={start},hash_seed={FILE_SYSTEM_ID},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,resize={}",
        GROW_LIMIT / BLOCK
    );
    // A journal of 16 MiB: growing the mounted file system needs transactions larger than a smaller journal allows.
    let mut arguments: Vec<OsString> =
        ["-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-J", "size=16", "-m", "1"]
            .into_iter()
            .chain(["-L", recipe::LABEL, "-U", FILE_SYSTEM_ID])
            // Features younger than common readers of foreign disks.
            .chain(["-O", "^orphan_file,^metadata_csum_seed", "-E", &options, "-d"])
            .map(OsString::from)
            .collect();
    arguments.push(root.into());
    arguments.push(raw.into());
    arguments.push(((recipe::DISK_BYTES - start) / BLOCK).to_string().into());
    make_file_system(arguments)
}

/// Runs mkfs; as root of a user namespace when not root, because file owners are taken from the tree as they are.
fn make_file_system(arguments: Vec<OsString>) -> Result<(), Fault> {
    let whoever = Path::new("/proc/self");
    let uid = std::os::unix::fs::MetadataExt::uid(&whoever.metadata().map_err(Fault::file("read", whoever))?);
    let (tool, mut command) = if uid == 0 {
        (MKFS, Command::new(MKFS.name))
    } else {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", MKFS.name]);
        (Tool { name: "unshare", package: "util-linux" }, command)
    };
    // Time stamps of the file system itself, for equal bytes from equal packages.
    command.args(arguments).env("E2FSPROGS_FAKE_TIME", "1700000000");
    tool.run_command(command).map(drop)
}
