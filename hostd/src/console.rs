//! Reads the end of a console log, whichever hypervisor wrote it, and bounds those that bound themselves not.
//!
//! `vmm` keeps two files, each at most half of the limit: it appends to `console.log`, and when that is full copies it
//! to `console.log.1` and empties it. QEMU only appends; for it, [`trim`] gives the beginning of the file back to the
//! file system (a hole), which loses no byte that is being written meanwhile. A log is hence the text of
//! `console.log.1` and then `console.log`, of which at most the limit counts.

use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How often a reader starts over when a rotation runs through its reading.
const TRIES: usize = 64;

/// The file that is written.
#[must_use]
pub fn current(state: &Path) -> PathBuf {
    state.join("console.log")
}

/// The file with what came before.
#[must_use]
pub fn previous(state: &Path) -> PathBuf {
    state.join("console.log.1")
}

/// The last `lines` lines (all that is kept for `None`). Bytes that are no UTF-8 are replaced.
///
/// # Errors
/// What the file system says.
pub fn tail(state: &Path, lines: Option<u32>, limit: u64) -> io::Result<String> {
    let (mut old, mut new) = (end(&previous(state), limit)?, Vec::new());
    for _ in 0..TRIES {
        new = end(&current(state), limit)?;
        let again = end(&current(state), limit)?;
        // Last: had it been read before the other file is, a rotation might come between the two.
        let after = end(&previous(state), limit)?;
        let settled = old == after && again.starts_with(&new);
        old = after;
        if settled {
            break;
        }
    }
    // Between the copy and the truncation of a rotation, the old file repeats the beginning of the new one.
    let mut all = if new.starts_with(&old) { Vec::new() } else { old };
    all.append(&mut new);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let all = all.get(all.len().saturating_sub(limit)..).unwrap_or_default();
    let from = lines.map_or(0, |lines| tail_start(all, lines));
    Ok(String::from_utf8_lossy(all.get(from..).unwrap_or_default()).into_owned())
}

fn end(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn tail_start(text: &[u8], lines: u32) -> usize {
    let Some(breaks) = lines.checked_sub(1) else { return text.len() };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let nth = usize::try_from(breaks).unwrap_or(usize::MAX);
    let found = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(nth);
    found.map_or(0, |(at, _)| at + 1)
}

/// Gives all but the last `limit` bytes of a file that others append to back to the file system.
///
/// # Errors
/// What the file system says; one that knows no holes gets the file emptied instead.
pub fn trim(path: &Path, limit: u64) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let facts = file.metadata()?;
    // Slack, so that a busy console is not trimmed at every look.
    if facts.blocks().saturating_mul(512) <= limit.saturating_add(limit / 2) || facts.len() <= limit {
        return Ok(());
    }
    let end = i64::try_from(facts.len() - limit).unwrap_or(i64::MAX);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(&file, hole, 0, end) {
        Ok(()) => Ok(()),
        Err(_) => file.set_len(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn both_files_count_and_lines_are_counted_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tail(dir.path(), None, 100).unwrap(), "");
        std::fs::write(previous(dir.path()), "a\nb\n").unwrap();
        std::fs::write(current(dir.path()), b"c\nd\xff").unwrap();
        assert_eq!(tail(dir.path(), None, 100).unwrap(), "a\nb\nc\nd\u{fffd}");
        assert_eq!(tail(dir.path(), Some(3), 100).unwrap(), "b\nc\nd\u{fffd}");
        assert_eq!(tail(dir.path(), Some(0), 100).unwrap(), "");
        assert_eq!(tail(dir.path(), None, 3).unwrap(), "\nd\u{fffd}");
        // A rotation caught half done shows its text once.
        std::fs::write(previous(dir.path()), "c\n").unwrap();
        assert_eq!(tail(dir.path(), None, 100).unwrap(), "c\nd\u{fffd}");
    }

    #[test]
    fn a_log_that_others_append_to_is_bounded_without_losing_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = current(dir.path());
        let mut writer = File::options().append(true).create(true).open(&path).unwrap();
        let limit = 64 << 10;
        let mut last = String::new();
        for round in 0..40 {
            for line in 0..512 {
                last = format!("round {round:04} line {line:04}\n");
                writer.write_all(last.as_bytes()).unwrap();
            }
            trim(&path, limit).unwrap();
            assert!(path.metadata().unwrap().blocks() * 512 <= 2 * limit + 8192);
        }
        let text = tail(dir.path(), None, limit).unwrap();
        assert_eq!(text.len() as u64, limit);
        assert!(text.ends_with(&last));
        assert!(!text.contains('\0'), "the hole is never shown");
        trim(&dir.path().join("none"), limit).unwrap();
    }
}
