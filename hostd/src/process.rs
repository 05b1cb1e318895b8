//! Guests' processes: started into a session of their own, so that they outlive `hostd`, and found again after it.
//!
//! Nothing is written down about a process, so nothing written down can be wrong. A process carries whose it is in the
//! name that it was started by ([`mark`]), which the kernel shows in `/proc/PID/cmdline` to anyone; after a restart,
//! `hostd` looks there. A descriptor of the process (pidfd) is taken first and the mark is read again, so a reused number
//! is never taken for the process. A process can change its mark, so it only counts with the server's own user.
#![allow(unsafe_code)]

use crate::cgroup::Cgroup;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use tokio::io::unix::AsyncFd;
use wire::ids::ServerId;

/// First word of [`mark`].
const MARK: &str = "ferrostack-guest";

/// The name that a guest's process is started by: for people who list processes, and to find it again.
#[must_use]
pub fn mark(owner: &Path, server: ServerId) -> String {
    format!("{MARK} {server} {}", owner.display())
}

/// A process to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// State directory of this `hostd`.
    pub owner: &'a Path,
    /// The server that it runs.
    pub server: ServerId,
    /// Descriptors that it inherits under the numbers that they have here.
    pub inherit: Vec<RawFd>,
    /// User and group id that it gets; `None` keeps root for a program that jails itself.
    pub user: Option<u32>,
    /// With a user: start it also where it cannot get namespaces of its own.
    pub unconfined: bool,
    /// Where its standard error goes.
    pub log: File,
    /// The control group that it is put in.
    pub cgroup: Option<&'a Cgroup>,
}

/// A process that runs or has run.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    status: Mutex<Option<String>>,
}

/// Starts a process. It has its own session, no terminal, no environment, and may gain no privilege.
///
/// # Errors
/// When the program cannot be run or the kernel refuses.
pub fn launch(launch: Launch<'_>) -> io::Result<Process> {
    let groups = launch.cgroup.map(Cgroup::entrances).transpose()?.unwrap_or_default();
    let mut command = Command::new(launch.program);
    command
        .arg0(mark(launch.owner, launch.server))
        .args(&launch.arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(launch.log);
    let (inherit, user, unconfined) = (launch.inherit, launch.user, launch.unconfined);
    // Says which step failed: a failure before the program runs comes back as a bare error number.
    let (mut step, step_end) = io::pipe()?;
    // SAFETY: only async-signal-safe system calls, no allocation: the vectors were made before the fork.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            for group in &groups {
                // Limits are an extra: a group that refuses must not keep the guest from running.
                let _ = libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            for fd in &inherit {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(user) = user {
                // A guest's process has its wires as descriptors and needs no other network.
                if libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) < 0 && !unconfined {
                    let error = io::Error::last_os_error();
                    let _ = libc::write(step_end.as_raw_fd(), c"n".as_ptr().cast(), 1);
                    return Err(error);
                }
                if libc::setgroups(0, std::ptr::null()) < 0
                    || libc::setresgid(user, user, user) < 0
                    || libc::setresuid(user, user, user) < 0
                {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let spawned = command.spawn();
    // With it goes the writing end of the pipe.
    drop(command);
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let mut failed = Vec::new();
            step.read_to_end(&mut failed)?;
            return Err(if failed == b"n" { unconfinable(&error) } else { error });
        }
    };
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // Dropping `child` neither waits nor kills; the pidfd does both from here on.
    Process::open(pid)
}

fn unconfinable(error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "it cannot have network and IPC namespaces of its own ({error}), and without them a guest that breaks out of it \
         would reach the host's network; give hostd CAP_SYS_ADMIN and the kernel namespaces, or accept that with \
         qemu_unconfined = true in hostd's configuration"
    ))
}

impl Process {
    fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked before it is owned.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped.
        let pidfd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(Self { pid, pidfd, status: Mutex::new(None) })
    }

    /// Takes over the process of `server` that [`find`] found; `None` when it has ended meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn adopt(pid: i32, owner: &Path, server: ServerId) -> io::Result<Option<Self>> {
        let process = match Self::open(pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        let same = whose(pid, owner) == Some(server) && !process.has_ended();
        Ok(same.then_some(process))
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        let ended = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if ended {
            self.reap();
        }
        ended
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        while !self.has_ended() {
            match self.pidfd.readable().await {
                Ok(mut guard) => {
                    if !self.has_ended() {
                        guard.clear_ready();
                    }
                }
                // The runtime is going down: nobody waits for this any more.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// How it ended, when it was our child: `exit status 1`, `signal 9`.
    #[must_use]
    pub fn status(&self) -> Option<String> {
        self.status.lock().ok().and_then(|status| status.clone())
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&self) {
        self.signal_kill();
        self.ended().await;
    }

    fn signal_kill(&self) {
        // SAFETY: plain system call on a descriptor that we own. That the process ended already is fine.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.get_ref().as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
    }

    /// Takes the exit status of a child, so that no zombie stays. Adopted processes are not our children.
    fn reap(&self) {
        let Ok(mut status) = self.status.lock() else { return };
        if status.is_some() {
            return;
        }
        let id = libc::id_t::try_from(self.pidfd.get_ref().as_raw_fd()).unwrap_or_default();
        // SAFETY: `info` is a plain C structure for the kernel to fill, zero is a valid value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pidfd is ours and `info` outlives the call.
        let outcome =
            unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
        // SAFETY: waitid filled the structure.
        let (pid, code) = unsafe { (info.si_pid(), info.si_status()) };
        if outcome == 0 && pid != 0 {
            let kind = if info.si_code == libc::CLD_EXITED { "exit status" } else { "signal" };
            *status = Some(format!("{kind} {code}"));
        }
    }
}

/// All processes of this `hostd`, by server; the first of each server's is the parent of the others.
#[must_use]
pub fn find(owner: &Path) -> BTreeMap<ServerId, Vec<i32>> {
    let mut found: BTreeMap<ServerId, Vec<i32>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some(server) = whose(pid, owner)
        {
            found.entry(server).or_default().push(pid);
        }
    }
    for pids in found.values_mut() {
        let ours = pids.clone();
        pids.sort_by_key(|pid| (parent(*pid).is_some_and(|parent| ours.contains(&parent)), *pid));
    }
    found
}

/// Kills every process that carries the mark of `server`, also those that a killed monitor left.
pub async fn sweep(owner: &Path, server: ServerId) {
    while let Some(pids) = find(owner).remove(&server) {
        for pid in pids {
            if let Ok(Some(process)) = Process::adopt(pid, owner, server) {
                process.kill().await;
            }
        }
        // One that cannot be taken over is just ending, or it was started by a vanished one: look again.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The server that a process runs for the `hostd` of `owner`. Zombies have no name any more.
fn whose(pid: i32, owner: &Path) -> Option<ServerId> {
    // A person's process can have any name: believe root and guests' users only.
    let uid = user(pid)?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let name = std::str::from_utf8(line.split(|byte| *byte == 0).next()?).ok()?;
    let (server, path) = name.strip_prefix(MARK)?.strip_prefix(' ')?.split_once(' ')?;
    let ours = Path::new(path) == owner && (uid == 0 || uid >= MIN_GUEST_UID);
    server.parse().ok().filter(|_| ours)
}

/// Whether a process has this user, or is still root because it has not given that up yet.
#[must_use]
pub fn runs_as(pid: i32, uid: u32) -> bool {
    user(pid).is_some_and(|user| user == 0 || user == uid)
}

/// From `status`, as the owner of the directory is root for processes that hide from debuggers.
fn user(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}

/// Guests' user ids are configured above this, see [`crate::host::check`].
pub const MIN_GUEST_UID: u32 = 100_000;

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Identity of this boot of the host.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper<'a>(owner: &'a Path, server: ServerId) -> Launch<'a> {
        Launch {
            program: Path::new("sleep"),
            arguments: vec!["60".into()],
            owner,
            server,
            inherit: Vec::new(),
            user: None,
            unconfined: false,
            log: tempfile::tempfile().unwrap(),
            cgroup: None,
        }
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_mark_and_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (ServerId::new(), ServerId::new());
        let process = launch(sleeper(dir.path(), ours)).unwrap();
        assert_eq!(find(dir.path()).get(&ours), Some(&vec![process.pid()]));
        assert!(find(Path::new("/elsewhere")).is_empty());
        assert!(Process::adopt(process.pid(), dir.path(), other).unwrap().is_none());
        let adopted = Process::adopt(process.pid(), dir.path(), ours).unwrap().expect("it runs");
        assert!(!adopted.has_ended());
        adopted.kill().await;
        process.ended().await;
        assert_eq!(adopted.status().or(process.status()).as_deref(), Some("signal 9"));
        assert!(find(dir.path()).is_empty());
        sweep(dir.path(), ours).await;
    }

    /// Takes CAP_SYS_ADMIN from this thread and what it starts.
    fn give_up_namespaces() {
        const SYS_ADMIN: u32 = 1 << 21;
        let header = [0x2008_0522u32, 0];
        let mut sets = [0u32; 6];
        // SAFETY: both point to what the system call takes: a header of two words, and two triples of words.
        let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
        assert_eq!(got, 0);
        for set in &mut sets[..3] {
            *set &= !SYS_ADMIN;
        }
        // SAFETY: as above.
        let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
        assert_eq!(set, 0);
    }

    #[test]
    fn without_namespaces_nothing_runs_unless_that_is_accepted() {
        let thread = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                give_up_namespaces();
                let dir = tempfile::tempdir().unwrap();
                let server = ServerId::new();
                let guest = || Launch { user: Some(1_880_000_001), ..sleeper(dir.path(), server) };
                let error = launch(guest()).unwrap_err().to_string();
                assert!(error.contains("namespaces") && error.contains("qemu_unconfined"), "{error}");
                assert!(find(dir.path()).is_empty());
                let process = launch(Launch { unconfined: true, ..guest() }).unwrap();
                assert_eq!(find(dir.path()).get(&server), Some(&vec![process.pid()]));
                process.kill().await;
            });
        });
        thread.join().unwrap();
    }
}
