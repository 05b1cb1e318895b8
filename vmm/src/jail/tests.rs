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

const KINDS: [ThreadKind; 7] = [
    ThreadKind::Driver,
    ThreadKind::Vcpu,
    ThreadKind::Worker,
    ThreadKind::Sockets,
    ThreadKind::Mover,
    ThreadKind::Backend,
    ThreadKind::Receiver,
];

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
    let trace = || {
        // SAFETY: asks to be traced; takes no memory.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    };
    let remove = || drop(std::fs::remove_file("/tmp/there-is-no-such-file"));
    let escape = || {
        let _ = unshare(CloneFlags::CLONE_NEWUSER);
    };
    for kind in KINDS {
        for act in [open as fn(), socket, execute, code, process, device, trace, remove, escape] {
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
fn any_number_of_threads_may_take_memory() {
    // A heap for each, which they have until they end: more than the C library makes without looking at the host.
    let status = under(ThreadKind::Driver, || {
        let all_there = std::sync::Barrier::new(24);
        std::thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(|| {
                    let confined = confine(ThreadKind::Worker).is_ok();
                    let memory = std::hint::black_box(vec![1u8; 4096]);
                    all_there.wait();
                    assert!(confined && memory.len() == 4096);
                });
            }
        });
    });
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
}

/// Runs `act` in a child, which answers with an exit code.
fn child(act: impl FnOnce() -> i32) -> WaitStatus {
    // SAFETY: the child does a few things alone and ends; the allocator is safe after a fork with glibc.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = act();
            // SAFETY: ends the child without running the test harness's exit handlers.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
    }
}

/// Checks that all of these are true in a child; the first that is not is the child's exit code, from 100 on.
fn all_hold(checks: impl FnOnce() -> Vec<bool>) {
    let status = child(|| {
        let wrong = checks().iter().position(|holds| !holds);
        wrong.map_or(0, |index| 100 + i32::try_from(index).unwrap_or(0))
    });
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn the_jail_is_empty_and_unprivileged() {
    all_hold(|| {
        if leave_namespaces().and_then(|()| enter(&JailConfig { uid: 64_001, gid: 64_001 })).is_err() {
            return vec![false];
        }
        let back = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
        vec![
            true,
            !Uid::effective().is_root() && back.is_err(),
            // The wall of names stands before that of the empty root: nothing can even be listed.
            errno(std::fs::read_dir("/")).is_some(),
            errno(std::fs::File::open("/etc/passwd")).is_some(),
            errno(std::fs::File::create("/file")).is_some(),
            std::process::Command::new("/bin/true").spawn().is_err(),
            // The network namespace has a loopback that is down, and no other interface.
            errno(std::net::TcpStream::connect("127.0.0.1:22")).is_some(),
            // SAFETY: takes no memory; the parent is not ours to trace.
            unsafe { libc::ptrace(libc::PTRACE_ATTACH, libc::getppid(), 0, 0) } == -1,
        ]
    });
}

#[test]
fn nothing_has_a_name_behind_landlock() {
    if landlock::version().unwrap().is_none() {
        println!("skipped: this kernel has no Landlock");
        return;
    }
    // As root, and without the filters: Landlock alone.
    let file = tempfile::NamedTempFile::new().unwrap();
    all_hold(|| {
        let kept = file.reopen();
        if give_up_names().is_err() {
            return vec![false];
        }
        let denied = Some(libc::EACCES);
        vec![
            true,
            errno(std::fs::File::open(file.path())) == denied,
            errno(std::fs::read_dir("/")) == denied,
            errno(std::fs::remove_file(file.path())) == denied,
            errno(std::fs::rename(file.path(), "/tmp/other")) == denied,
            errno(std::process::Command::new("/bin/true").status()) == denied,
            opened_by_a_ring() == Some(-libc::EACCES),
            // What is open stays usable.
            kept.is_ok_and(|kept| kept.set_len(4096).is_ok()),
        ]
    });
}

/// What opening `/etc/passwd` through a ring answers: the way around system call filters.
fn opened_by_a_ring() -> Option<i32> {
    let mut ring = match io_uring::IoUring::new(2) {
        Ok(ring) => ring,
        // Switched off on this host: nothing opens that way either.
        Err(_) => return Some(-libc::EACCES),
    };
    let at = io_uring::types::Fd(libc::AT_FDCWD);
    let open = io_uring::opcode::OpenAt::new(at, c"/etc/passwd".as_ptr()).build();
    // SAFETY: the path is static.
    unsafe { ring.submission().push(&open) }.ok()?;
    ring.submit_and_wait(1).ok()?;
    ring.completion().next().map(|entry| entry.result())
}

#[test]
fn a_wall_that_cannot_be_set_up_is_named_with_its_remedy() {
    // An unprivileged process, on whatever host.
    let status = child(|| {
        let _ = setgroups(&[]);
        let user = Uid::from_raw(64_002);
        if setresuid(user, user, user).is_err() {
            return 1;
        }
        let text = leave_namespaces().map_err(|error| error.to_string()).unwrap_err();
        let named = text.starts_with("the jail's mount namespace cannot be set up: EPERM");
        i32::from(!named || !text.contains("as root") || !text.contains("--no-jail")) * 2
    });
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
}

#[test]
fn root_is_no_jail() {
    let error = enter(&JailConfig { uid: 0, gid: 5 }).unwrap_err();
    assert!(error.to_string().contains("must not be root"));
}

/// One call with one value that it may have, or with whatever it likes.
type Rule = (i64, Option<(u8, u64)>);

/// All rules of a filter one by one.
fn rules(lists: &[&[Allow]]) -> Vec<Rule> {
    let rules = |allow: &Allow| -> Vec<Rule> {
        match *allow {
            Allow::Any(call) => vec![(call, None)],
            // No value may be added to it by another rule.
            Allow::NoExec(call, _) => vec![(call, None)],
            Allow::OneOf(call, argument, values) => {
                values.iter().map(|value| (call, Some((argument, *value)))).collect()
            }
        }
    };
    lists.iter().copied().flatten().flat_map(rules).collect()
}

const FILTERS: [(ThreadKind, &[&[Allow]]); 7] = [
    (ThreadKind::Driver, filters::DRIVER),
    (ThreadKind::Vcpu, filters::VCPU),
    (ThreadKind::Worker, filters::WORKER),
    (ThreadKind::Sockets, filters::SOCKETS),
    (ThreadKind::Mover, filters::MOVER),
    (ThreadKind::Backend, filters::BACKEND),
    (ThreadKind::Receiver, filters::RECEIVER),
];

#[test]
fn no_rule_is_redundant() {
    use std::collections::BTreeSet;
    for ((kind, lists), known) in FILTERS.into_iter().zip(KINDS) {
        assert_eq!(kind, known, "a kind of thread is missing here");
        let all = rules(lists);
        let distinct: BTreeSet<Rule> = all.iter().copied().collect();
        for rule in &distinct {
            assert_eq!(
                all.iter().filter(|other| *other == rule).count(),
                1,
                "{kind:?}: {rule:?} stands twice"
            );
        }
        // A call that is allowed anyhow needs no values, and one argument of a call is enough to look at.
        for (call, value) in &all {
            let others = all.iter().filter(|(other, _)| other == call);
            let alike = others.clone().all(|(_, other)| other.map(|(at, _)| at) == value.map(|(at, _)| at));
            assert!(alike, "{kind:?}: call {call} has rules that make others useless");
        }
        // What the compiler made of it is as long as what is written down asks for: no rule got lost.
        assert!(compile(lists).unwrap().len() > all.len(), "{kind:?}");
    }
}

#[test]
fn a_worker_needs_nothing_that_the_driver_may_not() {
    let driver: std::collections::BTreeSet<Rule> = rules(filters::DRIVER).into_iter().collect();
    for lists in [filters::WORKER, filters::SOCKETS, filters::MOVER, filters::BACKEND] {
        for rule in rules(lists) {
            assert!(driver.contains(&rule), "a worker inherits the driver's filter, which forbids {rule:?}");
        }
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
