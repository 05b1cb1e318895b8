//! What every monitor's process has in its server's directories: logs, a listening socket, a control group.

use super::Seat;
use crate::cgroup::{Cgroup, Limits};
use crate::{console, durable};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wire::Refused;

/// Largest monitor's log, in bytes.
pub const LOG_LIMIT: u64 = 64 << 10;

/// Where the monitor's own messages go.
pub fn log_path(seat: &Seat) -> PathBuf {
    seat.state.join("machine.log")
}

/// Makes the run directory and an empty monitor's log.
pub fn prepare(seat: &Seat) -> io::Result<File> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&seat.run)?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(log_path(seat))?;
    log.set_len(0)?;
    Ok(log)
}

/// Opens one of the console's files with what `options` say.
pub fn open_console(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.create(true).mode(0o600).open(path)
}

/// The current file of the console log, for a monitor that only appends.
pub fn console_to_append(seat: &Seat) -> io::Result<File> {
    open_console(&console::current(&seat.state), OpenOptions::new().append(true))
}

/// The control group of the server's processes. A host without usable ones runs guests without limits.
pub fn cgroup(seat: &Seat, limits: Limits) -> Option<Cgroup> {
    match Cgroup::make(&seat.cgroup_parent, seat.id, limits) {
        Ok(group) => Some(group),
        Err(error) => {
            tracing::warn!(server = %seat.id, %error, "no control group: the guest runs without limits");
            None
        }
    }
}

/// Does something with the short path of a socket in the run directory: the kernel takes at most 108 bytes.
pub fn with_short_path<T>(
    seat: &Seat,
    name: &str,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let dir = File::open(&seat.run)?;
    act(&PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())))
}

/// Removes a stale socket.
pub fn remove_socket(seat: &Seat, name: &str) -> io::Result<()> {
    durable::remove_file(&seat.run.join(name))
}

/// The end of the monitor's log, for the sentence that says why it ended.
pub fn last_words(seat: &Seat) -> String {
    let text = std::fs::read(log_path(seat)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("qemu_system_") && !line.trim().is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join("; ");
    last.chars().take(600).collect()
}

/// A failure to set the monitor up.
pub fn trouble(what: &str) -> impl Fn(io::Error) -> Refused + '_ {
    move |error| Refused::internal(format!("cannot {what}: {error}"))
}
