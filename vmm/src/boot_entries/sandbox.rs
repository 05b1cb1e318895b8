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
    // A backtrace opens files; being killed for that would hide what went wrong.
    // SAFETY: the process has a single thread, so nothing else reads the environment.
    unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
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

#[cfg(test)]
mod tests {
    use super::enter;
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    /// Runs `act` in a child inside the sandbox and tells how it ended.
    fn in_sandbox(act: fn()) -> WaitStatus {
        // SAFETY: the child only enters the sandbox, acts and ends; the allocator is safe after a fork with
        // glibc.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = if enter().is_ok() {
                    act();
                    0
                } else {
                    1
                };
                // SAFETY: ends the child without running the test harness's exit handlers.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        }
    }

    #[test]
    fn computing_and_allocating_is_allowed() {
        let status = in_sandbox(|| drop(std::hint::black_box(vec![1_u8; 64 << 20])));
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    }

    #[test]
    fn opening_a_file_or_making_code_kills() {
        let open = || drop(std::fs::File::open("/etc/passwd"));
        let socket = || drop(std::net::UdpSocket::bind("127.0.0.1:0"));
        let code = || {
            // SAFETY: asks for new memory anywhere and uses none of it.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
            }
        };
        for act in [open as fn(), socket, code] {
            let status = in_sandbox(act);
            assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{status:?}");
        }
    }

    #[test]
    fn too_much_memory_ends_it() {
        let status = in_sandbox(|| drop(std::hint::black_box(vec![1_u8; 600 << 20])));
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGABRT, _)), "{status:?}");
    }
}
