//! What keeps a broken-into monitor harmless.
//!
//! [`enter`] makes the process somebody who owns nothing and sees nothing: own user, empty root directory, own namespaces.
//! [`arm`] prepares seccomp filters, and [`confine`] applies one to the calling thread. Both happen before the first guest instruction.

#![allow(unsafe_code)]

pub mod filters;
mod keeper;
mod root;

pub use keeper::{Fork, fork_keeper};

use filters::Allow;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use wire::machine::JailConfig;

/// Most descriptors of the process: two for each queue and vector of every device, and some.
const MAX_FDS: u64 = 4096;

/// Kinds of threads, each with a filter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// The driver thread.
    Driver,
    /// A vCPU.
    Vcpu,
    /// A device's worker.
    Worker,
}

/// Why the jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A wrong configuration.
    #[error("the jail's user and group must not be root (uid {0}, gid {1})")]
    Root(u32, u32),
    /// The system refused something that the jail cannot do without.
    #[error("cannot {what}: {source}; is the monitor started as root?")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: nix::Error,
    },
    /// A filter is wrong.
    #[error("cannot build the system call filter: {0}")]
    Filter(String),
}

/// Which namespaces of our own there are.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Mounts: the root directory may be emptied.
    pub mount: bool,
    /// PIDs, for children: see [`fork_keeper`].
    pub pid: bool,
    /// What is missing, as lines for the log.
    pub missing: Vec<String>,
}

/// Leaves the namespaces of the host. What is not available is only said: the other walls stand without it.
#[must_use]
pub fn leave_namespaces() -> Namespaces {
    let mut namespaces = Namespaces::default();
    let mut leave = |flag, name| match unshare(flag) {
        Ok(()) => true,
        Err(error) => {
            let line = format!("no {name} namespace of its own: {error}; the jail goes on without it");
            namespaces.missing.push(line);
            false
        }
    };
    let mount = leave(CloneFlags::CLONE_NEWNS, "mount");
    leave(CloneFlags::CLONE_NEWNET, "network");
    leave(CloneFlags::CLONE_NEWIPC, "IPC");
    leave(CloneFlags::CLONE_NEWUTS, "UTS");
    let pid = leave(CloneFlags::CLONE_NEWPID, "PID");
    Namespaces { mount, pid, ..namespaces }
}

/// Empties the root directory, sets limits, and becomes the jail's user. Returns lines for the log.
///
/// # Errors
/// When the process would go on as root: everything else is best effort.
pub fn enter(config: &JailConfig, namespaces: &Namespaces) -> Result<Vec<String>, JailError> {
    if config.uid == 0 || config.gid == 0 {
        return Err(JailError::Root(config.uid, config.gid));
    }
    let mut lines = Vec::new();
    if namespaces.mount
        && let Err(error) = root::empty()
    {
        lines.push(format!("no empty root directory: {error}; the jail goes on without it"));
    }
    for (resource, limit) in [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, MAX_FDS)] {
        if let Err(error) = setrlimit(resource, limit, limit) {
            lines.push(format!("cannot limit {resource:?}: {error}"));
        }
    }
    become_user(config)?;
    Ok(lines)
}

/// Becomes the jail's user for good.
///
/// # Errors
/// When the process is not root.
pub fn become_user(config: &JailConfig) -> Result<(), JailError> {
    let refused = |what| move |source| JailError::Refused { what, source };
    let (uid, gid) = (Uid::from_raw(config.uid), Gid::from_raw(config.gid));
    setgroups(&[]).map_err(refused("drop supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(refused("become the jail's group"))?;
    setresuid(uid, uid, uid).map_err(refused("become the jail's user"))?;
    nix::sys::prctl::set_no_new_privs().map_err(refused("give up new privileges"))
}

/// Makes a panic in any thread end the process at once, with one line: a machine without one of its threads must not go on, and the
/// usual report would open files, which the filters forbid.
pub fn panics_end_it() {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("vmm: bug in the monitor: {info}");
        std::process::abort();
    }));
}

struct Programs {
    no_clone3: BpfProgram,
    driver: BpfProgram,
    vcpu: BpfProgram,
    worker: BpfProgram,
}

static PROGRAMS: OnceLock<Programs> = OnceLock::new();

/// Prepares the filters: from now on [`confine`] applies them.
///
/// # Errors
/// When a filter cannot be built, which is a bug.
pub fn arm() -> Result<(), JailError> {
    let bad = |error: BackendError| JailError::Filter(error.to_string());
    let programs = Programs {
        no_clone3: no_clone3().map_err(bad)?,
        driver: compile(filters::DRIVER).map_err(bad)?,
        vcpu: compile(filters::VCPU).map_err(bad)?,
        worker: compile(filters::WORKER).map_err(bad)?,
    };
    let _ = PROGRAMS.set(programs);
    Ok(())
}

/// Locks the calling thread in for good. Does nothing in a process that was not armed (tests, tools).
///
/// # Errors
/// When the kernel refuses; the thread must not go on then.
pub fn confine(kind: ThreadKind) -> std::io::Result<()> {
    let Some(programs) = PROGRAMS.get() else { return Ok(()) };
    let apply = |program| seccompiler::apply_filter(program).map_err(std::io::Error::other);
    match kind {
        ThreadKind::Driver => {
            apply(&programs.no_clone3)?;
            apply(&programs.driver)
        }
        ThreadKind::Vcpu => apply(&programs.vcpu),
        ThreadKind::Worker => apply(&programs.worker),
    }
}

/// [`confine`] for a vCPU thread.
///
/// # Errors
/// As [`confine`].
pub fn confine_vcpu() -> std::io::Result<()> {
    confine(ThreadKind::Vcpu)
}

fn no_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let errno = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?.try_into()
}

fn compile(lists: &[&[Allow]]) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allow in lists.iter().copied().flatten() {
        match *allow {
            Allow::Any(call) => {
                rules.insert(call, Vec::new());
            }
            Allow::NoExec(call, argument) => {
                let execute = u64::from(libc::PROT_EXEC.unsigned_abs());
                let operation = SeccompCmpOp::MaskedEq(execute);
                let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, 0)?;
                rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
            }
            Allow::OneOf(call, argument, values) => {
                let alternatives = rules.entry(call).or_default();
                for value in values {
                    let condition =
                        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)?;
                    alternatives.push(SeccompRule::new(vec![condition])?);
                }
            }
        }
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
}

#[cfg(test)]
mod tests;
