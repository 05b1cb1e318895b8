//! Something that is being made: a file in `tmp/` that is either published whole or vanishes.

use super::Pool;
use crate::sys;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::Refused;

/// A file in `tmp/`, removed on drop unless it was published.
#[derive(Debug)]
pub struct Making<'a> {
    pool: &'a Pool,
    path: PathBuf,
    file: File,
    published: bool,
}

impl<'a> Making<'a> {
    pub(super) fn start(pool: &'a Pool) -> Result<Self, Refused> {
        let serial = pool.serial.fetch_add(1, Ordering::Relaxed);
        let path = pool.dir.join("tmp").join(serial.to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| pool.fault("make", &path, &error))?;
        pool.crash.point();
        Ok(Self { pool, path, file, published: false })
    }

    /// The file that is being filled.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts or extends it to `bytes`; an extension is a hole.
    ///
    /// # Errors
    /// What the file system says.
    pub fn resize(&self, bytes: u64) -> Result<(), Refused> {
        self.file.set_len(bytes).map_err(|error| self.pool.fault("resize", &self.path, &error))?;
        self.pool.crash.point();
        Ok(())
    }

    /// Makes it durable under its name. Whoever sees the name sees all of the content, also after a power cut.
    ///
    /// # Errors
    /// What the file system says; nothing is left then.
    pub fn publish(mut self, to: &Path) -> Result<(), Refused> {
        let pool = self.pool;
        pool.crash.point();
        self.file.sync_all().map_err(|error| pool.fault("sync", &self.path, &error))?;
        pool.crash.point();
        let parent = to.parent().unwrap_or(&pool.dir);
        match fs::create_dir(parent) {
            Ok(()) => {
                let above = parent.parent().unwrap_or(&pool.dir);
                sys::sync_dir(above).map_err(|error| pool.fault("sync", above, &error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            Err(error) => return Err(pool.fault("make", parent, &error)),
        }
        pool.crash.point();
        fs::rename(&self.path, to).map_err(|error| pool.fault("rename to", to, &error))?;
        self.published = true;
        pool.crash.point();
        sys::sync_dir(parent).map_err(|error| pool.fault("sync", parent, &error))?;
        pool.crash.point();
        Ok(())
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if !self.published {
            // Left behind on an error, it would be removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A full copy, for file systems without reflinks; holes stay holes.
pub(super) fn copy(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while let Some((start, end)) = sys::next_data(from, at, length)? {
        sys::copy_range(from, start, to, start, end - start)?;
        at = end;
    }
    Ok(())
}

/// Ends the process like a power cut at the n-th point where something is half made, for the crash tests:
/// `BLOCKD_CRASH_AT=n`. Release builds have the points too: what is tested is what is shipped.
#[derive(Debug)]
pub(super) struct Crash {
    at: Option<u64>,
    seen: AtomicU64,
}

impl Crash {
    pub(super) fn from_env() -> Self {
        let at = std::env::var("BLOCKD_CRASH_AT").ok().and_then(|text| text.parse().ok());
        Self { at, seen: AtomicU64::new(0) }
    }

    pub(super) fn point(&self) {
        if let Some(at) = self.at
            && self.seen.fetch_add(1, Ordering::SeqCst) == at
        {
            std::process::abort();
        }
    }
}
