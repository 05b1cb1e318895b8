use super::*;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Runs `act` in a child under a filter and tells how it ended.
fn under(kind: ThreadKind, act: fn()) -> WaitStatus {
    arm().unwrap();
    // SAFETY: the child only locks itself in, makes a few system calls and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = if confine(kind).is_ok() {
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

const KINDS: [ThreadKind; 3] = [ThreadKind::Driver, ThreadKind::Vcpu, ThreadKind::Worker];

#[test]
fn forbidden_calls_kill() {
    let open = || drop(std::fs::File::open("/etc/passwd"));
    let socket = || drop(std::net::UdpSocket::bind("127.0.0.1:0"));
    let execute = || {
        // SAFETY: both pointers are to NUL-terminated strings or null.
        unsafe { libc::execve(c"/bin/true".as_ptr(), std::ptr::null(), std::ptr::null()) };
    };
    let code = || {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for new memory anywhere and uses none of it.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    };
    let process = || {
        // SAFETY: the child, if there were one, would end at once.
        unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    };
    let device = || {
        // SAFETY: an ioctl on standard input that reads nothing from memory.
        unsafe { libc::ioctl(0, libc::TIOCSTI as _, c"x".as_ptr()) };
    };
    for kind in KINDS {
        for act in [open as fn(), socket, execute, code, process, device] {
            let status = under(kind, act);
            assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{kind:?}: {status:?}");
        }
    }
}

#[test]
fn allowed_calls_pass() {
    for kind in KINDS {
        let status = under(kind, || drop(std::hint::black_box(vec![1u8; 8 << 20])));
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{kind:?}: {status:?}");
    }
    let threads = under(ThreadKind::Driver, || {
        let worker =
            std::thread::Builder::new().name("w".into()).spawn(|| confine(ThreadKind::Worker).is_ok());
        assert!(worker.unwrap().join().unwrap());
    });
    assert!(matches!(threads, WaitStatus::Exited(_, 0)), "{threads:?}");
}

#[test]
fn the_jail_is_empty_and_unprivileged() {
    // SAFETY: the child only enters the jail, looks around and ends; the allocator is safe after a fork with glibc.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let namespaces = leave_namespaces();
            let config = JailConfig { uid: 64_001, gid: 64_001 };
            let lines = enter(&config, &namespaces);
            let empty = std::fs::read_dir("/").map(|entries| entries.count());
            let code = match (lines, namespaces.mount, empty) {
                (Ok(_), false, _) => 0,
                (Ok(_), true, Ok(0)) if !Uid::effective().is_root() => {
                    let back = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
                    i32::from(back.is_ok()) * 3
                }
                (Ok(_), true, _) => 2,
                (Err(_), _, _) => 1,
            };
            // SAFETY: as above.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
        }
    }
}

#[test]
fn root_is_no_jail() {
    let error = enter(&JailConfig { uid: 0, gid: 5 }, &Namespaces::default()).unwrap_err();
    assert!(error.to_string().contains("must not be root"));
}

#[test]
fn a_worker_needs_nothing_that_the_driver_may_not() {
    let calls = |lists: &[&[Allow]]| -> std::collections::BTreeSet<i64> {
        let call = |allow: &Allow| match *allow {
            Allow::Any(call) | Allow::OneOf(call, ..) | Allow::NoExec(call, _) => call,
        };
        lists.iter().copied().flatten().map(call).collect()
    };
    assert!(calls(filters::WORKER).is_subset(&calls(filters::DRIVER)));
    for list in [filters::DRIVER, filters::VCPU, filters::WORKER] {
        let all: usize = list.iter().map(|part| part.len()).sum();
        assert_eq!(all, calls(list).len(), "a call is named twice");
    }
}

#[test]
fn a_panic_in_a_confined_thread_ends_the_process() {
    for kind in KINDS {
        let status = under(kind, || {
            panics_end_it();
            let nothing: Option<u8> = std::hint::black_box(None);
            nothing.expect("a test of the panic hook");
        });
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGABRT, _)), "{kind:?}: {status:?}");
    }
}
