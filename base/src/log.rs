//! Structured logs: one JSON object a line on standard error, each with the request id it belongs to.
//!
//! Where standard error is a file that is appended to, it never grows beyond [`LIMIT`]: its older part is cut off. In
//! place, because the file may be in a folder where this daemon can make no other; a service manager's journal has limits
//! of its own.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use tracing::Instrument;

/// Largest log file, in bytes.
pub const LIMIT: u64 = 16 << 20;
/// What is kept of it when it has become too large, in bytes.
const KEPT: u64 = 4 << 20;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// Starts logging for this process. `RUST_LOG` overrides the default level `info`.
///
/// # Panics
/// Never; a second call is ignored.
pub fn init(daemon: &'static str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn,hyper=warn"));
    let builder = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_env_filter(filter)
        // Else a reader of standard error that went away makes every log line a panic.
        .log_internal_errors(false);
    let file = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let outcome = match file.ok().and_then(|file| Bounded::new(file, LIMIT, KEPT)) {
        Some(file) => builder.with_writer(Mutex::new(file)).try_init(),
        None => builder.with_writer(io::stderr).try_init(),
    };
    if outcome.is_ok() {
        tracing::info!(daemon, version = env!("CARGO_PKG_VERSION"), "started logging");
    }
}

/// A file that is appended to and cut when it becomes too large.
struct Bounded {
    file: File,
    limit: u64,
    kept: u64,
}

impl Bounded {
    /// `None` when this is no plain file opened for appending, whose length is nobody's business.
    fn new(file: File, limit: u64, kept: u64) -> Option<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL).ok()?);
        let facts = file.metadata().ok()?;
        let bounded = Self { file, limit, kept };
        (facts.is_file() && flags.contains(OFlag::O_APPEND)).then_some(bounded)
    }

    fn cut(&mut self) -> io::Result<()> {
        // The last lines, read before anything is removed. Unreadable, all goes: the disk matters more.
        let tail = self.tail().unwrap_or_default();
        self.file.set_len(0)?;
        self.file.write_all(&tail)
    }

    fn tail(&self) -> io::Result<Vec<u8>> {
        // Ours is for writing only; whoever may write a log may read it.
        let mut file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(self.kept)))?;
        let mut tail = Vec::new();
        file.take(self.kept).read_to_end(&mut tail)?;
        if length > self.kept {
            let begin = tail.iter().position(|byte| *byte == b'\n').map_or(tail.len(), |end| end + 1);
            tail.drain(..begin);
        }
        Ok(tail)
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Asked each time: others write to it too (the last words of a panic) or cut it.
        let after =
            self.file.metadata()?.len().saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if after > self.limit {
            self.cut()?;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work` under a request id: its log lines and the calls it makes to other daemons carry it.
pub async fn with_request_id<T>(id: String, work: impl Future<Output = T>) -> T {
    let span = tracing::info_span!("request", request_id = %id);
    REQUEST_ID.scope(id, work.instrument(span)).await
}

/// The request id that this code runs under, if any.
#[must_use]
pub fn request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// A new request id in the form that OpenStack clients print, `req-UUID`.
#[must_use]
pub fn new_request_id() -> String {
    format!("req-{}", uuid::Uuid::new_v4().hyphenated())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(path: &std::path::Path) -> File {
        File::options().append(true).create(true).open(path).unwrap()
    }

    #[test]
    fn a_log_file_stays_within_its_limit_and_keeps_its_latest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        std::fs::write(&path, "from an earlier start\n").unwrap();
        let mut log = Bounded::new(append(&path), 1000, 300).unwrap();
        for number in 0..500 {
            writeln!(log, "{{\"line\":{number}}}").unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
            if number % 50 == 0 {
                // What others write to the same file counts too.
                writeln!(append(&path), "a panic's last words").unwrap();
            }
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('a')).collect();
        assert!(lines.len() >= 10, "{text}");
        let first = 500 - lines.len();
        for (line, number) in lines.iter().zip(first..) {
            assert_eq!(*line, format!("{{\"line\":{number}}}"), "whole lines, none missing: {text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_back_is_bounded_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let file = append(&path);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o200)).unwrap();
        crate::testing::as_uid(64_999, dir.path(), || {
            let mut log = Bounded::new(file, 1000, 300).unwrap();
            for _ in 0..100 {
                log.write_all(&[b'x'; 99]).unwrap();
            }
        });
        assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
    }

    #[test]
    fn only_files_that_are_appended_to_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Bounded::new(File::create(dir.path().join("x")).unwrap(), 10, 5).is_none());
        assert!(Bounded::new(File::options().append(true).open("/dev/null").unwrap(), 10, 5).is_none());
    }
}
