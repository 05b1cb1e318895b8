//! A control group for each guest: its share of the CPUs, a bound on its processes, and on its memory.
//!
//! Works with the unified hierarchy (version 2) and with the older separate ones. Limits are best effort: a host
//! without usable control groups still runs guests, and says so once.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use wire::ids::ServerId;

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that are used of the separate hierarchies.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// What a guest's processes may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Virtual CPUs: the share of CPU time follows it.
    pub vcpus: u32,
    /// Bytes of memory including the monitor's own; `None` sets no bound.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: u32,
}

/// A guest's control group: one directory, or one for each separate hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    dirs: Vec<PathBuf>,
}

fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn parents(parent: &str) -> Vec<PathBuf> {
    if unified() {
        return vec![Path::new(ROOT).join(parent)];
    }
    CONTROLLERS
        .iter()
        .map(|name| Path::new(ROOT).join(name))
        .filter(|dir| dir.join("cgroup.procs").exists())
        .map(|dir| dir.join(parent))
        .collect()
}

impl Cgroup {
    /// Makes the group of `server` with its limits, or takes the one that is there.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn make(parent: &str, server: ServerId, limits: Limits) -> io::Result<Self> {
        let mut dirs = Vec::new();
        for above in parents(parent) {
            let dir = above.join(server.to_string());
            std::fs::create_dir_all(&dir)?;
            if unified() {
                // Each level must pass the controllers on; those that are missing leave their limit out.
                let levels: Vec<&Path> =
                    above.ancestors().take_while(|level| level.starts_with(ROOT)).collect();
                for level in levels.into_iter().rev() {
                    let _ = std::fs::write(level.join("cgroup.subtree_control"), "+cpu +memory +pids");
                }
            }
            apply(&dir, limits);
            dirs.push(dir);
        }
        if dirs.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no control groups below {ROOT}")));
        }
        Ok(Self { dirs })
    }

    /// Files to which a process writes `0` to enter.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn entrances(&self) -> io::Result<Vec<File>> {
        let open = |dir: &PathBuf| OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
        self.dirs.iter().map(open).collect()
    }
}

fn apply(dir: &Path, limits: Limits) {
    let set = |name: &str, value: String| {
        let file = dir.join(name);
        if file.exists()
            && let Err(error) = std::fs::write(&file, value)
        {
            tracing::debug!(file = %file.display(), %error, "a limit was not taken");
        }
    };
    let vcpus = u64::from(limits.vcpus);
    set("cpu.weight", (100 * vcpus).min(10_000).to_string());
    set("cpu.shares", (1024 * vcpus).to_string());
    set("pids.max", limits.tasks.to_string());
    if let Some(memory) = limits.memory {
        set("memory.max", memory.to_string());
        set("memory.limit_in_bytes", memory.to_string());
    }
}

/// Removes the group of `server`, whose processes have ended. Harmless when there is none.
///
/// # Errors
/// When a process is still in it.
pub fn remove(parent: &str, server: ServerId) -> io::Result<()> {
    for above in parents(parent) {
        remove_one(&above.join(server.to_string()))?;
    }
    Ok(())
}

/// Removes the parent group itself, once no guest is left.
pub fn remove_parent(parent: &str) {
    for dir in parents(parent) {
        let _ = std::fs::remove_dir(dir);
    }
}

fn remove_one(dir: &Path) -> io::Result<()> {
    // A process that just ended may keep the group busy for a moment.
    for _ in 0..200 {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{} stays busy", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_made_entered_and_removed() {
        if parents("x").is_empty() {
            println!("skipped: this machine has no control groups");
            return;
        }
        let parent = format!("ferrostack-test-{}", ServerId::new().short());
        let server = ServerId::new();
        let limits = Limits { vcpus: 2, memory: Some(64 << 20), tasks: 50 };
        let group = Cgroup::make(&parent, server, limits).unwrap();
        for dir in &group.dirs {
            assert!(dir.join("cgroup.procs").exists());
            if dir.join("pids.max").exists() {
                assert_eq!(std::fs::read_to_string(dir.join("pids.max")).unwrap().trim(), "50");
            }
        }
        remove(&parent, server).unwrap();
        remove(&parent, server).unwrap();
        remove_parent(&parent);
        assert!(group.dirs.iter().all(|dir| !dir.exists()));
    }
}
