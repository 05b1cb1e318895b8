//! Network namespaces as `ip netns` keeps them, and work inside them.
//!
//! A thread that enters a namespace is used for one piece of work and ends with it: no thread of the pool ever stands
//! in another namespace than its neighbours.

use crate::fault::{Fault, Steps};
use nix::sched::{CloneFlags, setns};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

/// Where a device is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// The machine's own namespace.
    Root,
    /// A named one.
    Namespace(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root namespace"),
            Self::Namespace(name) => f.write_str(name),
        }
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// What tells a namespace from one made later under the same name; `None` when there is none.
#[must_use]
pub fn identity(name: &str) -> Option<u64> {
    let meta = std::fs::metadata(path(name)).ok()?;
    // Without the mount, the file is on the file system of /run/netns itself: the trace of a crash.
    let parent = std::fs::metadata("/run/netns").ok()?;
    (meta.dev() != parent.dev()).then(|| meta.ino())
}

/// Names of all namespaces.
///
/// # Errors
/// When the folder cannot be read.
pub fn list() -> Result<Vec<String>, Fault> {
    match std::fs::read_dir("/run/netns") {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Fault::io("list network namespaces")(error)),
    }
}

/// Makes a namespace unless it is there; repairs what a crash left half made.
///
/// # Errors
/// What `ip netns` says.
pub fn ensure(name: &str, steps: &Steps) -> Result<(), Fault> {
    if identity(name).is_some() {
        return Ok(());
    }
    if path(name).exists() {
        remove(name, steps)?;
    }
    steps.step()?;
    netns("add", name)?;
    steps.step()?;
    // Nothing but what we put there speaks in it: no router solicitations from bridges, no redirects.
    within(&Place::Namespace(name.to_owned()), || {
        for (key, value) in [
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ] {
            match std::fs::write(PathBuf::from("/proc/sys").join(key), value) {
                // A kernel without IPv6 has nothing to switch off.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
        }
        Ok(())
    })
    .map_err(Fault::io(format!("set up namespace {name}")))
}

/// Removes a namespace; harmless when there is none.
///
/// # Errors
/// What `ip netns` says.
pub fn remove(name: &str, steps: &Steps) -> Result<(), Fault> {
    if !path(name).exists() {
        return Ok(());
    }
    steps.step()?;
    if identity(name).is_none() {
        return std::fs::remove_file(path(name))
            .map_err(Fault::io(format!("remove the trace of namespace {name}")));
    }
    netns("del", name)
}

fn netns(verb: &str, name: &str) -> Result<(), Fault> {
    let command = format!("ip netns {verb} {name}");
    let output = Command::new("ip")
        .args(["netns", verb, name])
        .output()
        .map_err(Fault::io(format!("run '{command}'; install the package iproute2")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Fault::Command { command, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// Does a piece of blocking work inside a place.
///
/// # Errors
/// What entering or the work says.
pub fn within<T: Send>(
    place: &Place,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    let name = match place {
        Place::Root => return work(),
        Place::Namespace(name) => name,
    };
    let namespace = File::open(path(name))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the work in the namespace panicked")))
    })
}
