//! The pool: where things lie, and how one is made so that a crash leaves all of it or nothing.

mod locks;
mod making;

pub use locks::{Held, Locks, Thing};
pub use making::Making;

use crate::config::{Config, Limits};
use crate::sys;
use base::owner::Owner;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::Semaphore;
use wire::Refused;
use wire::block::Pool as Listing;
use wire::ids::{BlobId, DiskId, SnapshotId};

/// The kinds of things in the pool; each has a directory.
const DIRS: [&str; 5] = ["blobs", "raw", "disks", "snapshots", "tmp"];

/// The pool. Cheap to share behind an [`Arc`].
#[derive(Debug)]
pub struct Pool {
    dir: PathBuf,
    /// Bounds on what callers can ask.
    pub limits: Limits,
    /// Whether `FICLONE` works here.
    pub reflinks: bool,
    /// Which cloud it belongs to.
    pub owner: Owner,
    /// One operation at a time on each thing.
    pub locks: Locks,
    /// Bounds the processor time that conversions and digest runs take together.
    pub heavy: Arc<Semaphore>,
    serial: AtomicU64,
    crash: making::Crash,
}

impl Pool {
    /// Opens the pool: makes its directories, removes what a crash left in `tmp/`, and finds out whether reflinks work.
    ///
    /// # Errors
    /// When the directory is not usable, or has no reflinks and `allow_copies` is off; the text says what to do.
    pub fn open(config: &Config) -> Result<Self, Refused> {
        let dir = config.pool_dir.clone();
        let broken = |error: io::Error| {
            Refused::unavailable(format!("cannot use the pool directory {}: {error}", dir.display()))
                .remedy("mount the pool there (`blockd pool-mount`) and let this user write to it")
        };
        for name in DIRS {
            match fs::create_dir(dir.join(name)) {
                Ok(()) => {
                    fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o750)).map_err(broken)?
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                Err(error) => return Err(broken(error)),
            }
        }
        for entry in fs::read_dir(dir.join("tmp")).map_err(broken)? {
            let path = entry.map_err(broken)?.path();
            tracing::info!(path = %path.display(), "removing what was half made");
            fs::remove_file(&path).map_err(broken)?;
        }
        sys::sync_dir(&dir).map_err(broken)?;
        let reflinks = probe_reflinks(&dir.join("tmp")).map_err(broken)?;
        if !reflinks && !config.allow_copies {
            return Err(Refused::unavailable(format!(
                "the file system at {} has no reflinks, so every clone and snapshot would be a full copy",
                dir.display()
            ))
            .remedy(
                "put the pool on XFS made with `-m reflink=1` (`blockd pool-mount` does), or set allow_copies = true",
            ));
        }
        Ok(Self {
            owner: owner(&dir),
            dir,
            limits: config.limits,
            reflinks,
            locks: Locks::default(),
            heavy: Arc::new(Semaphore::new(config.limits.conversions.max(1))),
            serial: AtomicU64::new(0),
            crash: making::Crash::from_env(),
        })
    }

    /// Where a disk lies.
    #[must_use]
    pub fn disk(&self, id: DiskId) -> PathBuf {
        self.dir.join("disks").join(id.to_string())
    }

    /// Where a snapshot lies.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.dir.join("snapshots").join(id.to_string())
    }

    /// Where a blob lies: in one of 256 directories, so that none grows without bound.
    #[must_use]
    pub fn blob(&self, id: BlobId) -> PathBuf {
        let name = id.to_string();
        self.dir.join("blobs").join(&name[..2]).join(name)
    }

    /// Where the raw form of a blob lies.
    #[must_use]
    pub fn raw(&self, id: BlobId) -> PathBuf {
        self.dir.join("raw").join(id.to_string())
    }

    /// Starts to make something: a file in `tmp/`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self) -> Result<Making<'_>, Refused> {
        Making::start(self)
    }

    /// Opens something for reading.
    ///
    /// # Errors
    /// [`Refused::missing`] with `what` in the text when it is not there.
    pub fn open_read(&self, path: &Path, what: &str) -> Result<File, Refused> {
        File::open(path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Refused::missing(format!("{what} is not in the pool"))
            } else {
                self.fault("open", path, &error)
            }
        })
    }

    /// Removes a file; whether it was there. Durable when this returns.
    ///
    /// # Errors
    /// When the file system does not do it.
    pub fn remove(&self, path: &Path) -> Result<bool, Refused> {
        match fs::remove_file(path) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.fault("remove", path, &error)),
        }
        if let Some(parent) = path.parent() {
            sys::sync_dir(parent).map_err(|error| self.fault("sync", parent, &error))?;
        }
        Ok(true)
    }

    /// Copies the content of one file to a new one: shares the blocks, or copies them where that is allowed.
    ///
    /// # Errors
    /// When the kernel does not do it.
    pub fn clone_into(&self, from: &File, to: &File) -> Result<(), Refused> {
        let outcome = if self.reflinks { sys::clone_file(from, to) } else { making::copy(from, to) };
        outcome.map_err(|error| self.fault("clone into", &self.dir.join("tmp"), &error))
    }

    /// Refuses when fewer than `wanted` bytes are free beyond the reserve.
    ///
    /// # Errors
    /// [`Refused::no_space`] with the figures.
    pub fn room_for(&self, wanted: u64) -> Result<(), Refused> {
        let (free, total) = self.space()?;
        let usable = free.saturating_sub(self.limits.reserve_bytes);
        if wanted <= usable {
            return Ok(());
        }
        Err(Refused::no_space(format!(
            "the storage pool has {} MiB to give of {} MiB, and {} MiB are needed",
            usable >> 20,
            total >> 20,
            wanted.div_ceil(1 << 20)
        ))
        .remedy("delete images, volumes or snapshots that are no longer needed, or enlarge the pool"))
    }

    /// Free and total bytes.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub fn space(&self) -> Result<(u64, u64), Refused> {
        File::open(&self.dir)
            .and_then(sys::space)
            .map_err(|error| self.fault("read the free space of", &self.dir, &error))
    }

    /// An error of the file system as a refusal: a full disk is named as such.
    #[must_use]
    pub fn fault(&self, verb: &str, path: &Path, error: &io::Error) -> Refused {
        if sys::is_full(error) {
            Refused::no_space("the storage pool is full")
                .remedy("delete images, volumes or snapshots that are no longer needed, or enlarge the pool")
        } else {
            Refused::internal(format!("cannot {verb} {}: {error}", path.display()))
        }
    }

    /// Everything that is in the pool.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn list(&self) -> Result<Listing, Refused> {
        let (free_bytes, total_bytes) = self.space()?;
        let mut listing = Listing {
            total_bytes,
            free_bytes,
            disks: self.ids::<DiskId>(&self.dir.join("disks"))?,
            snapshots: self.ids::<SnapshotId>(&self.dir.join("snapshots"))?,
            blobs: Vec::new(),
        };
        for shard in self.names(&self.dir.join("blobs"))? {
            listing.blobs.extend(self.ids::<BlobId>(&self.dir.join("blobs").join(shard))?);
        }
        Ok(listing)
    }

    /// Files in `tmp/` and raw forms whose blob is gone: what should not be there while nothing runs.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn leftovers(&self) -> Result<Vec<String>, Refused> {
        let mut left = self.names(&self.dir.join("tmp"))?;
        for id in self.ids::<BlobId>(&self.dir.join("raw"))? {
            if !self.blob(id).exists() {
                left.push(format!("raw/{id}"));
            }
        }
        Ok(left)
    }

    fn names(&self, dir: &Path) -> Result<Vec<String>, Refused> {
        let read = || -> io::Result<Vec<String>> {
            fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        read().map_err(|error| self.fault("list", dir, &error))
    }

    fn ids<T: FromStr>(&self, dir: &Path) -> Result<Vec<T>, Refused> {
        Ok(self.names(dir)?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

/// Whose the pool in this directory is.
#[must_use]
pub fn owner(dir: &Path) -> Owner {
    Owner::new(dir.join("owner.json"), "this storage pool", "blockd adopt --config FILE")
}

fn probe_reflinks(dir: &Path) -> io::Result<bool> {
    let (one, two) = (dir.join("reflink-probe-1"), dir.join("reflink-probe-2"));
    let outcome = (|| {
        fs::write(&one, b"probe")?;
        let (from, to) = (File::open(&one)?, File::create(&two)?);
        Ok(sys::clone_file(&from, &to).is_ok())
    })();
    for path in [one, two] {
        let _ = fs::remove_file(path);
    }
    outcome
}
