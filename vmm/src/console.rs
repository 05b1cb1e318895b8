//! The bounded log of a guest's serial console.
//!
//! Two plain files, handed in as descriptors: `console.log` takes every byte the guest prints; when it holds
//! half of the limit its content moves to `console.log.1` (replacing what was there) and it starts again from
//! empty. So the log is always the concatenation `console.log.1` + `console.log`, between half of and the
//! whole limit once it has filled, and readable by anything (`cat console.log.1 console.log`), before and
//! after the machine's life.
//!
//! Why no rename, as other log rotations do: the machine's process is jailed and can open or rename nothing.
//! Why two files instead of a ring in one: a reader needs no format, and other monitors' users trip over
//! holes and headers.
//!
//! ```text
//!            write            size + new > limit / 2
//! guest ───────────▶ current ───────────────────────▶ previous   (previous is emptied, filled, then current is emptied)
//! ```
//!
//! A kill between the last two steps leaves the same bytes in both files until the next rotation; nothing is
//! lost.
//!
//! Readers (`hostd`): read `previous`, `current` twice, and `previous` again, and start over until `previous` is what it was and
//! `current` still begins with what it held: then no rotation came between. When `current` begins with the whole of `previous`, a
//! rotation was caught half done: take `current` alone; else the concatenation. [`read_tail`] does exactly that.
//!
//! The serial port writes on a vCPU's thread, so nothing here waits: no fsync, one `write` per call, and when
//! the file system refuses (full, quota) the bytes are counted and dropped instead of stopping the guest.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// The limit when the configuration names none, in bytes of both files together.
pub const DEFAULT_LIMIT: u64 = 1 << 20;

/// The smallest limit that is accepted, in bytes: below it a log holds less than a screen.
pub const MIN_LIMIT: u64 = 8 << 10;

/// Bytes moved per step of a rotation.
const CHUNK: usize = 64 << 10;

/// Why a console log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The limit is below [`MIN_LIMIT`].
    #[error("a console log of {limit} bytes is too small; give at least {MIN_LIMIT}")]
    Limit {
        /// What was asked for.
        limit: u64,
    },
    /// A descriptor is not a regular file open for reading and writing.
    #[error("the {which} console log is not a regular file open for reading and writing")]
    Descriptor {
        /// `current` or `previous`.
        which: &'static str,
    },
    /// The kernel refused to look at or set up a descriptor.
    #[error("cannot set up the {which} console log: {source}")]
    Setup {
        /// `current` or `previous`.
        which: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Writer of the log. One per machine; it owns both descriptors.
#[derive(Debug)]
pub struct ConsoleLog {
    current: File,
    previous: File,
    half: u64,
    size: u64,
    dropped: u64,
}

impl ConsoleLog {
    /// Takes over `console.log` and `console.log.1`; what they hold already is kept. `limit` bounds both
    /// together, in bytes.
    ///
    /// # Errors
    /// A limit that is too small, descriptors that are not regular files open for reading and writing.
    pub fn new(current: File, previous: File, limit: u64) -> Result<Self, ConsoleError> {
        if limit < MIN_LIMIT {
            return Err(ConsoleError::Limit { limit });
        }
        let size = adopt(&current, "current")?;
        adopt(&previous, "previous")?;
        Ok(Self { current, previous, half: limit / 2, size, dropped: 0 })
    }

    /// Bytes that the file system refused since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Moves the content of `current` to `previous`. On failure (no space), history is given up rather than
    /// the newest output.
    fn rotate(&mut self) {
        if self.keep_history().is_err() {
            // Best effort on a file system that is already failing; an `Err` shows as the next write's.
            let _ = self.previous.set_len(0);
        }
        let _ = self.current.set_len(0);
        self.size = 0;
    }

    fn keep_history(&mut self) -> io::Result<()> {
        self.previous.set_len(0)?;
        let mut chunk = vec![0; CHUNK];
        let mut from = self.size.saturating_sub(self.half);
        while from < self.size {
            let got = self.current.read_at(&mut chunk, from)?;
            if got == 0 {
                break;
            }
            let part = chunk.get(..got).unwrap_or_default();
            self.previous.write_all(part)?;
            from = from.saturating_add(got as u64);
        }
        Ok(())
    }
}

impl Write for ConsoleLog {
    /// Appends all of `bytes`; always says that it took them, see the module's head.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part_max = usize::try_from(self.half).unwrap_or(usize::MAX);
        for part in bytes.chunks(part_max) {
            if self.size.saturating_add(part.len() as u64) > self.half {
                self.rotate();
            }
            match self.current.write_all(part) {
                Ok(()) => self.size = self.size.saturating_add(part.len() as u64),
                Err(_) => {
                    self.dropped = self.dropped.saturating_add(part.len() as u64);
                    // A short write may have happened, so ask instead of guessing.
                    self.size = self.current.metadata().map_or(self.size, |meta| meta.len());
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks one descriptor, makes its writes append, and tells its size.
fn adopt(file: &File, which: &'static str) -> Result<u64, ConsoleError> {
    let setup = |source: nix::Error| ConsoleError::Setup { which, source: source.into() };
    let meta = file.metadata().map_err(|source| ConsoleError::Setup { which, source })?;
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL).map_err(setup)?);
    if !meta.is_file() || flags & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Err(ConsoleError::Descriptor { which });
    }
    // Without O_APPEND, a write after the file was emptied would leave a hole of its old length.
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_APPEND)).map_err(setup)?;
    Ok(meta.len())
}

/// How often a reader starts over when a rotation runs through its reading.
const READ_TRIES: usize = 64;

/// The last `lines` lines of the log (all of it for `None`), from the two files in any process. A last line
/// without a line feed counts as one. The machine may be writing.
///
/// # Errors
/// What the kernel says when a file cannot be read.
pub fn read_tail(current: &File, previous: &File, lines: Option<u32>) -> io::Result<Vec<u8>> {
    let (mut old, mut new) = (read_whole(previous)?, Vec::new());
    for _ in 0..READ_TRIES {
        new = read_whole(current)?;
        let again = read_whole(current)?;
        // Last: had it been read before `current` is, a rotation might come between the two.
        let after = read_whole(previous)?;
        let settled = old == after && again.starts_with(&new);
        old = after;
        if settled {
            break;
        }
    }
    // Between the copy and the truncation of a rotation, `previous` repeats the beginning of `current`.
    let mut all = if new.starts_with(&old) { Vec::new() } else { old };
    all.append(&mut new);
    let from = lines.map_or(0, |lines| tail_start(&all, lines));
    Ok(all.split_off(from))
}

fn read_whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    // The bound keeps a reader finite beside a writer that never pauses.
    file.take(file.metadata()?.len()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the last `lines` lines of `text` begin.
fn tail_start(text: &[u8], lines: u32) -> usize {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let Some(breaks_before) = lines.checked_sub(1) else { return text.len() };
    let skip = usize::try_from(breaks_before).unwrap_or(usize::MAX);
    body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(skip).map_or(0, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::{ConsoleError, ConsoleLog, MIN_LIMIT, read_tail, tail_start};
    use proptest::prelude::{any, prop};
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    struct Pair {
        dir: tempfile::TempDir,
    }

    impl Pair {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }
        fn current(&self) -> File {
            open(&self.dir.path().join("console.log"))
        }
        fn previous(&self) -> File {
            open(&self.dir.path().join("console.log.1"))
        }
        fn log(&self) -> ConsoleLog {
            ConsoleLog::new(self.current(), self.previous(), MIN_LIMIT).unwrap()
        }
        fn tail(&self, lines: Option<u32>) -> Vec<u8> {
            read_tail(&self.current(), &self.previous(), lines).unwrap()
        }
    }

    #[test]
    fn keeps_all_until_half_the_limit_and_never_exceeds_it() {
        let pair = Pair::new();
        let mut log = pair.log();
        let mut sent = Vec::new();
        for n in 0..3000_u32 {
            let line = format!("line {n}\n");
            log.write_all(line.as_bytes()).unwrap();
            sent.extend_from_slice(line.as_bytes());
            let held = pair.current().metadata().unwrap().len() + pair.previous().metadata().unwrap().len();
            assert!(held <= MIN_LIMIT);
        }
        let kept = pair.tail(None);
        assert!(kept.len() as u64 >= MIN_LIMIT / 2);
        assert!(sent.ends_with(&kept));
        assert_eq!(pair.tail(Some(2)), b"line 2998\nline 2999\n");
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn another_start_continues_the_log_and_a_foreign_truncation_leaves_no_hole() {
        let pair = Pair::new();
        pair.log().write_all(b"first life\n").unwrap();
        let mut log = pair.log();
        log.write_all(b"second life\n").unwrap();
        assert_eq!(pair.tail(None), b"first life\nsecond life\n");
        pair.current().set_len(0).unwrap();
        log.write_all(b"third\n").unwrap();
        assert_eq!(pair.tail(None), b"third\n");
    }

    #[test]
    fn a_kill_between_copy_and_truncation_heals_at_the_next_rotation() {
        let pair = Pair::new();
        let half = usize::try_from(MIN_LIMIT / 2).unwrap();
        let old = vec![b'a'; half];
        pair.current().write_all(&old).unwrap();
        pair.previous().write_all(&old).unwrap();
        pair.log().write_all(b"b").unwrap();
        let kept = pair.tail(None);
        assert_eq!(kept.len(), half + 1);
        assert_eq!(kept.last(), Some(&b'b'));
        pair.current().set_len(0).unwrap();
        pair.current().write_all(&old).unwrap();
        assert_eq!(pair.tail(None), old, "the half done rotation shows its text once");
    }

    #[test]
    fn a_write_longer_than_the_log_keeps_its_end() {
        let pair = Pair::new();
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        pair.log().write_all(&bytes).unwrap();
        let kept = pair.tail(None);
        assert!(kept.len() as u64 <= MIN_LIMIT && kept.len() as u64 >= MIN_LIMIT / 2);
        assert!(bytes.ends_with(&kept));
    }

    #[test]
    fn a_full_file_system_drops_output_and_says_how_much() {
        // A file size limit would raise SIGXFSZ for the whole test process, so the file refuses by its own
        // seal instead.
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let sealed = |name| {
            let fd = memfd_create(name, MFdFlags::MFD_ALLOW_SEALING).unwrap();
            File::from(fd)
        };
        let (current, previous) = (sealed(c"current"), sealed(c"previous"));
        let seals = SealFlag::F_SEAL_GROW;
        fcntl(&current, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let mut log = ConsoleLog::new(current, previous, MIN_LIMIT).unwrap();
        log.write_all(b"lost").unwrap();
        assert_eq!(log.dropped(), 4);
    }

    #[test]
    fn wrong_descriptors_and_limits_are_refused() {
        let pair = Pair::new();
        let read_only = File::open("/dev/null").unwrap();
        assert!(matches!(
            ConsoleLog::new(read_only, pair.previous(), MIN_LIMIT),
            Err(ConsoleError::Descriptor { which: "current" })
        ));
        assert!(matches!(
            ConsoleLog::new(pair.current(), pair.previous(), MIN_LIMIT - 1),
            Err(ConsoleError::Limit { .. })
        ));
    }

    #[test]
    fn a_reader_beside_a_writer_sees_unbroken_text() {
        let pair = Pair::new();
        let mut log = pair.log();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20_000_u32 {
                    writeln!(log, "{n:08}").unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let text = pair.tail(None);
                let numbers: Vec<u32> = String::from_utf8(text)
                    .unwrap()
                    .lines()
                    .filter(|line| line.len() == 8)
                    .map(|line| line.parse().unwrap())
                    .collect();
                assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "a gap or a repetition");
            }
        });
    }

    #[test]
    fn counts_lines_from_the_end() {
        for (text, lines, tail) in [
            ("", 3, ""),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\n", 0, ""),
            ("\n\n", 1, "\n"),
        ] {
            assert_eq!(&text[tail_start(text.as_bytes(), lines)..], tail, "{text:?} {lines}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_sequence_of_writes_keeps_the_end(writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..12)) {
            let pair = Pair::new();
            let mut log = pair.log();
            let mut sent = Vec::new();
            for bytes in &writes {
                log.write_all(bytes).unwrap();
                sent.extend_from_slice(bytes);
            }
            let kept = pair.tail(None);
            proptest::prop_assert!(sent.ends_with(&kept));
            proptest::prop_assert!(kept.len() as u64 <= MIN_LIMIT);
            proptest::prop_assert!(kept.len() as u64 >= (MIN_LIMIT / 2).min(sent.len() as u64));
        }
    }
}
