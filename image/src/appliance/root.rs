//! The appliance's root file system: Debian's base system, trimmed, with the product in it.

use super::{Source, recipe};
use crate::fault::{Fault, Tool};
use crate::outdir::publish;
use crate::packages::Cache;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const MMDEBSTRAP: Tool = Tool { name: "mmdebstrap", package: "mmdebstrap" };
const TAR: Tool = Tool { name: "tar", package: "tar" };
const CHROOT: Tool = Tool { name: "chroot", package: "coreutils" };

/// Refuses early what would fail late.
pub(super) fn check(source: &Source<'_>) -> Result<(), Fault> {
    let whoever = Path::new("/proc/self");
    if whoever.metadata().map_err(Fault::file("read", whoever))?.uid() != 0 {
        return Err(Fault::Input(
            "the appliance is built as root, because its files belong to several users: use sudo".into(),
        ));
    }
    let missing: Vec<&str> =
        recipe::BINARIES.iter().copied().filter(|name| !source.binaries.join(name).is_file()).collect();
    if !missing.is_empty() {
        return Err(Fault::Input(format!(
            "{} lacks {}: build them first (cargo build --release)",
            source.binaries.display(),
            missing.join(", ")
        )));
    }
    Ok(())
}

/// Makes the tree.
pub(super) fn make(
    tree: &Path,
    source: &Source<'_>,
    cache: &Cache,
    kernel: &Path,
    release: &str,
) -> Result<(), Fault> {
    let base = base_system(cache)?;
    std::fs::create_dir(tree).map_err(Fault::file("make folder", tree))?;
    TAR.run(["-xf".as_ref(), base.as_os_str(), "--numeric-owner".as_ref(), "-C".as_ref(), tree.as_os_str()])?;
    for path in recipe::DROPPED_FILES {
        remove(&tree.join(path))?;
    }
    install_modules(tree, kernel, release)?;
    install_product(tree, source)?;
    check_programs(tree)
}

/// Debian's base system as an archive, made once per list of packages and kept in the cache.
fn base_system(cache: &Cache) -> Result<PathBuf, Fault> {
    let mut hasher = DefaultHasher::new();
    (recipe::SUITE, recipe::PACKAGES).hash(&mut hasher);
    let archive = cache.path().join(format!("base-{:016x}.tar", hasher.finish()));
    if archive.is_file() {
        return Ok(archive);
    }
    println!("fetching the base system");
    let partial = cache.path().join(format!(".base-{}.tar", std::process::id()));
    let mut command = Command::new(MMDEBSTRAP.name);
    command.args(["--quiet", "--variant=essential", "--format=tar", "--mode=root"]);
    command.arg(format!("--include={}", recipe::PACKAGES.join(",")));
    command.args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"2\""]);
    command.args([
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    ]);
    command.args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]);
    command.arg(recipe::SUITE).arg(&partial);
    let made = MMDEBSTRAP.run_command(command);
    if let Err(fault) = made {
        let _ = std::fs::remove_file(&partial);
        return Err(match fault {
            Fault::ToolFailed { message, .. } => cache.mirror(&[recipe::SUITE], &message),
            Fault::File { .. }
            | Fault::ToolMissing { .. }
            | Fault::Mirror { .. }
            | Fault::PackageLayout { .. }
            | Fault::TooLarge { .. }
            | Fault::Input(_) => fault,
        });
    }
    publish(&partial, &archive)?;
    Ok(archive)
}

fn install_modules(tree: &Path, kernel: &Path, release: &str) -> Result<(), Fault> {
    let from = kernel.join("lib/modules").join(release);
    let to = tree.join("lib/modules");
    std::fs::create_dir_all(&to).map_err(Fault::file("make folder", &to))?;
    Tool { name: "cp", package: "coreutils" }.run(["-a".as_ref(), from.as_os_str(), to.as_os_str()])?;
    for path in recipe::DROPPED_MODULES {
        remove(&to.join(release).join(path))?;
    }
    // The root's own depmod, since udev reads the binary index that only it writes.
    CHROOT.run([tree.as_os_str(), "depmod".as_ref(), "-a".as_ref(), release.as_ref()]).map(drop)
}

fn install_product(tree: &Path, source: &Source<'_>) -> Result<(), Fault> {
    for name in recipe::BINARIES {
        install(tree, &format!("usr/lib/ferrostack/{name}"), 0o755, &read(&source.binaries.join(name))?)?;
    }
    if let Some(guest) = source.guest {
        install(tree, "usr/share/ferrostack/guest.qcow2", 0o644, &read(guest)?)?;
    }
    for (path, mode, content) in recipe::FILES {
        install(tree, path, *mode, content.as_bytes())?;
    }
    for (path, target) in recipe::LINKS {
        let full = tree.join(path);
        make_parent(&full)?;
        remove(&full)?;
        std::os::unix::fs::symlink(target, &full).map_err(Fault::file("link", &full))?;
    }
    for dir in ["etc/ferrostack", "var/lib/ferrostack"] {
        let full = tree.join(dir);
        std::fs::create_dir_all(&full).map_err(Fault::file("make folder", &full))?;
    }
    for (name, number) in recipe::USERS {
        append(
            tree,
            "etc/passwd",
            &format!("{name}:x:{number}:{}::/nonexistent:/usr/sbin/nologin\n", recipe::GROUP.1),
        )?;
        append(tree, "etc/shadow", &format!("{name}:!*:20000::::::\n"))?;
    }
    append(tree, "etc/group", &format!("{}:x:{}:\n", recipe::GROUP.0, recipe::GROUP.1))?;
    append(tree, "etc/gshadow", &format!("{}:!*::\n", recipe::GROUP.0))?;
    let version = env!("CARGO_PKG_VERSION");
    install(
        tree,
        "usr/lib/os-release",
        0o644,
        format!("ID=ferrostack\nID_LIKE=debian\nNAME=Ferrostack\nVERSION_ID={version}\nPRETTY_NAME=\"Ferrostack {version}\"\n")
            .as_bytes(),
    )
}

/// Starts each program once, so that an image with programs built against newer libraries never leaves this machine.
fn check_programs(tree: &Path) -> Result<(), Fault> {
    for name in recipe::BINARIES {
        let program = format!("/usr/lib/ferrostack/{name}");
        CHROOT.run([tree.as_os_str(), program.as_ref(), "--version".as_ref()]).map_err(|fault| {
            Fault::Input(format!(
                "{name} does not run on Debian {}: {fault}. Build it on that release",
                recipe::SUITE
            ))
        })?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    std::fs::read(path).map_err(Fault::file("read", path))
}

fn make_parent(path: &Path) -> Result<(), Fault> {
    match path.parent() {
        Some(parent) => std::fs::create_dir_all(parent).map_err(Fault::file("make folder", parent)),
        None => Ok(()),
    }
}

fn install(tree: &Path, path: &str, mode: u32, content: &[u8]) -> Result<(), Fault> {
    let full = tree.join(path);
    make_parent(&full)?;
    // Never through a link of the base system, which could lead out of the tree.
    remove(&full)?;
    std::fs::write(&full, content).map_err(Fault::file("write", &full))?;
    std::fs::set_permissions(&full, std::fs::Permissions::from_mode(mode))
        .map_err(Fault::file("set permissions of", &full))
}

fn append(tree: &Path, path: &str, line: &str) -> Result<(), Fault> {
    let full = tree.join(path);
    std::fs::OpenOptions::new()
        .append(true)
        .open(&full)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(Fault::file("write", &full))
}

/// Removes a file, link or folder; nothing there is fine.
fn remove(path: &Path) -> Result<(), Fault> {
    let removed = match path.symlink_metadata() {
        Ok(data) if data.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(fault) => Err(fault),
    };
    removed.map_err(Fault::file("remove", path))
}
