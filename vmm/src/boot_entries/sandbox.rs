//! What the reader may do: read, write and seek the descriptors it has, and compute for a while.

use std::collections::BTreeMap;

use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::Trouble;
use super::find::MAX_INITRD;

/// Seconds of CPU time.
const CPU_SECONDS: u64 = 10;
/// Bytes of address space.
const MEMORY: u64 = 512 << 20;

/// System calls allowed with any arguments.
const ALLOWED: [libc::c_long; 27] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // What abort() needs, so that running out of memory is told from a forbidden call.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_poll,
];

/// Locks this process in for good.
///
/// # Errors
/// When the kernel refuses; the reader must not go on then.
pub fn enter() -> Result<(), Trouble> {
    for (resource, limit) in [
        (Resource::RLIMIT_CPU, CPU_SECONDS),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_FSIZE, MAX_INITRD),
        (Resource::RLIMIT_NOFILE, 0),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, limit, limit)
            .map_err(|error| Trouble::Sandbox { why: format!("cannot set {resource:?}: {error}") })?;
    }
    let filter = filter().map_err(|error| Trouble::Sandbox { why: error.to_string() })?;
    seccompiler::apply_filter(&filter).map_err(|error| Trouble::Sandbox { why: error.to_string() })
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Memory, but never executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let execute = u64::from(libc::PROT_EXEC.unsigned_abs());
        let no_code = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(execute), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![no_code])?]);
    }
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into()
}
