//! The process between `hostd` and the machine.
//!
//! A PID namespace only holds for children, so the machine is a child of the process that `hostd` started. That process keeps its id,
//! gives up everything else, waits, and ends as the machine ends. If it is killed, the kernel kills the machine.

use super::{JailError, become_user, give_up, wall};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use wire::machine::{EndReason, JailConfig, MachineEnd};

/// Which side of the fork this is.
pub enum Fork {
    /// The process that becomes the machine; it must call [`Leash::fasten`] after it changed its user.
    Machine(Leash),
    /// The keeper: the machine has ended, exit with this.
    Ended(ExitCode),
}

/// Ties the machine to its keeper.
pub struct Leash(OwnedFd);

impl Leash {
    /// Makes the kernel kill this process when the keeper dies. Changing the user undoes it, so it comes after.
    ///
    /// # Errors
    /// When the kernel refuses, or the keeper is dead already.
    pub fn fasten(self) -> Result<(), JailError> {
        let refused = wall("tie between the machine and its keeper", "start the monitor again");
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(&refused)?;
        // The keeper holds the other end of the pipe for as long as it lives, and never writes.
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            Ok(_) => Err(refused(nix::Error::ESRCH)),
            Err(error) => Err(refused(error)),
        }
    }
}

/// Forks: the child becomes the machine, the parent stays as its keeper and returns when the machine has ended. `end` is where the
/// machine records how it ended; the keeper does it when a signal ended it.
///
/// # Errors
/// When there is no second process.
pub fn fork_keeper(config: &JailConfig, end: Option<&File>) -> Result<Fork, JailError> {
    let refused = wall("process of its own", "see whether the host is short of processes or descriptors");
    let (read, write) = pipe().map_err(&refused)?;
    // SAFETY: the process has a single thread at this point, so the child may do anything.
    match unsafe { fork() }.map_err(refused)? {
        ForkResult::Child => Ok(Fork::Machine(Leash(read))),
        ForkResult::Parent { child } => {
            // Closed with all the others.
            std::mem::forget(read);
            let kept = [Some(write.as_raw_fd()), end.map(AsRawFd::as_raw_fd)];
            close_all_but(kept.into_iter().flatten().filter_map(|fd| u32::try_from(fd).ok()).collect());
            let status = keep(config, end, child);
            drop(write);
            Ok(Fork::Ended(status))
        }
    }
}

fn keep(config: &JailConfig, end: Option<&File>, child: Pid) -> ExitCode {
    // The kernel asks whether the keeper may signal the machine when it ends it with the keeper, so that stays allowed.
    if let Err(error) = become_user(config).and_then(|()| give_up(false)) {
        // The machine is not to run under a keeper that is root or sees the host's files.
        eprintln!("vmm: {error}");
        let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
    }
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                let detail = match signal {
                    Signal::SIGSYS => {
                        "killed for a system call that its filter forbids: the guest may have broken in"
                            .to_owned()
                    }
                    Signal::SIGKILL => "killed from outside, perhaps for lack of memory".to_owned(),
                    other => format!("killed by signal {other}"),
                };
                eprintln!("vmm: the machine was {detail}");
                let ended = MachineEnd { reason: EndReason::Failed, detail };
                if let (Some(mut end), Ok(bytes)) = (end, serde_json::to_vec(&ended))
                    && end.metadata().is_ok_and(|meta| meta.len() == 0)
                {
                    let _ = end.write_all(&bytes).and_then(|()| end.sync_data());
                }
                return ExitCode::from(EndReason::Failed.exit_code());
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                eprintln!("vmm: cannot wait for the machine: {error}");
                return ExitCode::from(EndReason::Failed.exit_code());
            }
        }
    }
}

/// Closes every descriptor from 3 on but these: the keeper must not hold a disk, a tap or the control socket.
fn close_all_but(mut kept: Vec<u32>) {
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = first.max(fd.saturating_add(1));
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closing descriptors is sound here because this process only uses those that are kept from now on: nothing that owns one
    // of the others is used or dropped before it exits.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}
