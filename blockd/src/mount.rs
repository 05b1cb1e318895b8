//! The pool on a development machine: an XFS file system in a sparse file, mounted by a loop device. Needs root; the
//! daemon itself does not.
//!
//! The loop device is set up by `mount -o loop`, which marks it to vanish with the mount, so none outlives it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::chown;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use wire::Refused;

/// XFS refuses smaller ones.
const SMALLEST: u64 = 300 << 20;

/// Arguments of `pool-mount`.
#[derive(Debug, Clone, clap::Args)]
pub struct MountArguments {
    /// The sparse file that holds the pool.
    #[arg(long)]
    pub file: PathBuf,
    /// Its size: a number with K, M, G or T. A larger one than before grows the pool, a smaller one changes nothing.
    #[arg(long)]
    pub size: String,
    /// Where to mount it.
    #[arg(long)]
    pub dir: PathBuf,
    /// Uid that owns the mounted directory.
    #[arg(long)]
    pub owner: Option<u32>,
}

/// Arguments of `pool-unmount`.
#[derive(Debug, Clone, clap::Args)]
pub struct UnmountArguments {
    /// Where it is mounted.
    #[arg(long)]
    pub dir: PathBuf,
}

/// Mounts the pool; harmless when it is mounted.
///
/// # Errors
/// When a step fails, with what to do.
pub fn mount(arguments: &MountArguments) -> Result<(), Refused> {
    let size = parse_size(&arguments.size)?;
    if size < SMALLEST {
        return Err(Refused::invalid(format!("a pool of {} is too small for XFS", arguments.size))
            .remedy("give at least --size 300M"));
    }
    let failed = |what: &str, error: &std::io::Error| {
        Refused::unavailable(format!("cannot {what}: {error}")).remedy("run as root and check the path")
    };
    if !arguments.file.exists() {
        format_new(&arguments.file, size)?;
    }
    // Every tenant's bytes are in it.
    fs::set_permissions(&arguments.file, fs::Permissions::from_mode(0o600))
        .map_err(|error| failed("close the pool's file to others", &error))?;
    let have = fs::metadata(&arguments.file).map_err(|error| failed("read the pool's file", &error))?.len();
    if have < size {
        let grown = OpenOptions::new().write(true).open(&arguments.file).and_then(|file| file.set_len(size));
        grown.map_err(|error| failed("grow the pool's file", &error))?;
    }
    fs::create_dir_all(&arguments.dir)
        .map_err(|error| failed(&format!("make {}", arguments.dir.display()), &error))?;
    let dir = canonical(&arguments.dir)?;
    let device = match mounted_at(&dir)? {
        Some(device) => device,
        None => {
            run(
                "mount",
                &[
                    "-t".as_ref(),
                    "xfs".as_ref(),
                    "-o".as_ref(),
                    "loop,noatime".as_ref(),
                    arguments.file.as_os_str(),
                    dir.as_os_str(),
                ],
            )?;
            mounted_at(&dir)?.ok_or_else(|| Refused::internal("mount succeeded but nothing is mounted"))?
        }
    };
    if have < size {
        run("losetup", &["--set-capacity".as_ref(), device.as_ref()])?;
        run("xfs_growfs", &[dir.as_os_str()])?;
    }
    // Without this each block is cached twice; a file system that cannot do it is no reason to fail.
    if let Err(refused) = run("losetup", &["--direct-io=on".as_ref(), device.as_ref()]) {
        eprintln!("blockd: note: {}", refused.message);
    }
    if let Some(owner) = arguments.owner {
        chown(&dir, Some(owner), None).map_err(|error| failed("hand the pool to its owner", &error))?;
    }
    Ok(())
}

/// Unmounts the pool; harmless when it is not mounted.
///
/// # Errors
/// When it is in use, or root is missing.
pub fn unmount(arguments: &UnmountArguments) -> Result<(), Refused> {
    if !arguments.dir.exists() {
        return Ok(());
    }
    let dir = canonical(&arguments.dir)?;
    while let Some(device) = mounted_at(&dir)? {
        run("umount", &[dir.as_os_str()]).map_err(|refused| {
            refused.remedy("stop the daemon and the guests that use the pool, then try again")
        })?;
        // The device frees itself with its last user; one that something else had set up is freed here.
        let name = device.trim_start_matches("/dev/");
        if Path::new("/sys/block").join(name).join("loop/backing_file").exists() {
            let _ = run("losetup", &["--detach".as_ref(), device.as_ref()]);
        }
    }
    Ok(())
}

/// Makes the file system beside its place and renames it, so that a file under this name is always a whole one.
fn format_new(file: &Path, size: u64) -> Result<(), Refused> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let make = || -> std::io::Result<()> {
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        made.set_len(size)
    };
    make().map_err(|error| {
        Refused::unavailable(format!("cannot make the pool's file {}: {error}", file.display()))
            .remedy("run as root and choose a directory that exists")
    })?;
    run("mkfs.xfs", &["-q".as_ref(), "-f".as_ref(), "-m".as_ref(), "reflink=1".as_ref(), new.as_os_str()])?;
    let keep = || -> std::io::Result<()> {
        OpenOptions::new().write(true).open(&new)?.sync_all()?;
        fs::rename(&new, file)?;
        crate::sys::sync_dir(file.parent().unwrap_or(Path::new("/")))
    };
    keep().map_err(|error| Refused::unavailable(format!("cannot keep the pool's file: {error}")))
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), Refused> {
    let output = Command::new(program).args(arguments).output().map_err(|error| {
        Refused::unavailable(format!("cannot run {program}: {error}"))
            .remedy("install the packages xfsprogs and mount")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Refused::unavailable(format!("{program} failed: {}", text.trim())).remedy("run as root"))
}

fn canonical(dir: &Path) -> Result<PathBuf, Refused> {
    fs::canonicalize(dir)
        .map_err(|error| Refused::unavailable(format!("cannot find {}: {error}", dir.display())))
}

/// The device that is mounted on top at `dir`, if any.
fn mounted_at(dir: &Path) -> Result<Option<String>, Refused> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Refused::unavailable(format!("cannot read the mount table: {error}")))?;
    let mut found = None;
    for line in table.lines() {
        let mut fields = line.split(' ');
        let place = fields.nth(4).unwrap_or_default();
        if Path::new(&unescape(place)) == dir {
            found = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1)).map(str::to_owned);
        }
    }
    Ok(found)
}

/// Undoes the octal escapes of the mount table.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn parse_size(text: &str) -> Result<u64, Refused> {
    let bad = || {
        Refused::invalid(format!("'{text}' is not a size"))
            .remedy("give a number with K, M, G or T, such as 20G")
    };
    let (digits, shift) = match text.trim_end_matches("iB").char_indices().last().ok_or_else(bad)? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("20G").unwrap(), 20 << 30);
        assert_eq!(parse_size("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for bad in ["", "G", "-1G", "1.5G", "99999999999T", "1Q"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
