//! What keeps a broken-into monitor harmless.
//!
//! [`enter`] makes the process somebody who owns nothing and sees nothing: own user, empty root directory, own namespaces, no way to
//! name a file (Landlock). [`arm`] prepares seccomp filters, and [`confine`] applies one to the calling thread. All of it happens before
//! the first guest instruction, and a machine whose jail misses a wall does not start: [`JailError`] names the wall and the remedy.
//! Landlock alone is left out on kernels that do not have it.

#![allow(unsafe_code)]

pub mod filters;
mod keeper;
pub mod landlock;
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
    /// The worker of a device that talks to sockets.
    Sockets,
    /// The thread that copies memory for a snapshot or a migration.
    Mover,
    /// Who speaks to another process that works a device.
    Backend,
    /// Who takes in what another monitor sends.
    Receiver,
}

/// Why the jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A wrong configuration.
    #[error("the jail's user and group must not be root (uid {0}, gid {1})")]
    Root(u32, u32),
    /// No jail was configured.
    #[error(
        "the configuration names no jail; name a user and group of the machine's own, or, on a developer's machine only, start with --no-jail"
    )]
    Missing,
    /// The system refused a wall of the jail.
    #[error(
        "the jail's {wall} cannot be set up: {source}; {remedy}, or, on a developer's machine only, start with --no-jail"
    )]
    Wall {
        /// Which.
        wall: &'static str,
        /// What the system said.
        source: nix::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A filter is wrong.
    #[error("cannot build the system call filter: {0}")]
    Filter(String),
}

const AS_ROOT: &str = "start the monitor as root with all capabilities";
const NAMESPACES: &str =
    "start the monitor as root where new namespaces are allowed (not in a container that forbids `unshare`)";

fn wall(wall: &'static str, remedy: &'static str) -> impl Fn(nix::Error) -> JailError {
    move |source| JailError::Wall { wall, source, remedy }
}

/// Leaves the namespaces of the host. The PID namespace only holds for children: see [`fork_keeper`].
///
/// # Errors
/// When there is one that cannot be left.
pub fn leave_namespaces() -> Result<(), JailError> {
    for (flag, name) in [
        (CloneFlags::CLONE_NEWNS, "mount namespace"),
        (CloneFlags::CLONE_NEWNET, "network namespace"),
        (CloneFlags::CLONE_NEWIPC, "IPC namespace"),
        (CloneFlags::CLONE_NEWUTS, "UTS namespace"),
        (CloneFlags::CLONE_NEWPID, "PID namespace"),
    ] {
        unshare(flag).map_err(wall(name, NAMESPACES))?;
    }
    Ok(())
}

/// Empties the root directory, sets limits, becomes the jail's user, and gives up the use of names. The namespaces have been left.
///
/// # Errors
/// When one of the walls cannot be set up.
pub fn enter(config: &JailConfig) -> Result<(), JailError> {
    if config.uid == 0 || config.gid == 0 {
        return Err(JailError::Root(config.uid, config.gid));
    }
    root::empty().map_err(wall("empty root directory", AS_ROOT))?;
    for (resource, limit) in [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, MAX_FDS)] {
        setrlimit(resource, limit, limit).map_err(wall("resource limits", AS_ROOT))?;
    }
    become_user(config)?;
    give_up_names()
}

/// Gives up new privileges and, where the kernel can, every access by a name and signals to others. Needs no privilege itself.
///
/// # Errors
/// When the kernel can and does not.
pub fn give_up_names() -> Result<(), JailError> {
    give_up(true)
}

fn give_up(signals: bool) -> Result<(), JailError> {
    nix::sys::prctl::set_no_new_privs().map_err(wall("vow of no new privileges", AS_ROOT))?;
    let remedy = "look for another program's sandbox around this one (16 Landlock layers are the limit)";
    landlock::deny_all(signals).map(drop).map_err(wall("Landlock domain", remedy))
}

/// Becomes the jail's user for good.
///
/// # Errors
/// When the process is not root.
pub fn become_user(config: &JailConfig) -> Result<(), JailError> {
    let (uid, gid) = (Uid::from_raw(config.uid), Gid::from_raw(config.gid));
    setgroups(&[]).map_err(wall("drop of supplementary groups", AS_ROOT))?;
    setresgid(gid, gid, gid).map_err(wall("own group", AS_ROOT))?;
    setresuid(uid, uid, uid).map_err(wall("own user", AS_ROOT))?;
    nix::sys::prctl::set_no_new_privs().map_err(wall("vow of no new privileges", AS_ROOT))
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
    sockets: BpfProgram,
    mover: BpfProgram,
    backend: BpfProgram,
    receiver: BpfProgram,
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
        sockets: compile(filters::SOCKETS).map_err(bad)?,
        mover: compile(filters::MOVER).map_err(bad)?,
        backend: compile(filters::BACKEND).map_err(bad)?,
        receiver: compile(filters::RECEIVER).map_err(bad)?,
    };
    bound_arenas();
    let _ = PROGRAMS.set(programs);
    Ok(())
}

/// Heaps that threads of this process share.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 8;

/// Tells the C library how many heaps to have. Left alone, glibc counts the host's processors when a thread is the first to want the
/// ninth, by a file below `/sys`: under the filters that ends the machine.
#[cfg(target_env = "gnu")]
fn bound_arenas() {
    // SAFETY: sets a number of the allocator's, whatever other threads do; it can refuse nothing but an unknown parameter.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Other C libraries have one heap.
#[cfg(not(target_env = "gnu"))]
fn bound_arenas() {}

/// Locks the calling thread in for good. Does nothing in a process that was not armed (tests, tools, `--no-jail`).
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
        ThreadKind::Sockets => apply(&programs.sockets),
        ThreadKind::Mover => apply(&programs.mover),
        ThreadKind::Backend => apply(&programs.backend),
        ThreadKind::Receiver => apply(&programs.receiver),
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
