//! A folder of results: one builder at a time, files appear whole or not at all, leftovers of killed builds are removed.

use crate::Fault;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// A locked folder with a scratch folder inside, removed on drop.
pub struct OutDir {
    dir: PathBuf,
    scratch: PathBuf,
    _lock: File,
}

impl OutDir {
    /// Makes `dir` if needed and waits until no other builder works in it.
    ///
    /// # Errors
    /// When the folder cannot be made or locked.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        std::fs::create_dir_all(dir).map_err(Fault::file("make folder", dir))?;
        let dir = dir.canonicalize().map_err(Fault::file("find", dir))?;
        let lock_path = dir.join(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Fault::file("open", &lock_path))?;
        lock.lock().map_err(Fault::file("lock", &lock_path))?;
        let scratch = dir.join(".building");
        // Under the lock, whatever is here belongs to a build that was killed.
        remove_tree(&scratch)?;
        std::fs::create_dir(&scratch).map_err(Fault::file("make folder", &scratch))?;
        Ok(Self { dir, scratch, _lock: lock })
    }

    /// Where results go.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A folder on the same file system for everything unfinished.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Moves a finished file out of the scratch folder: durable, then visible.
    ///
    /// # Errors
    /// When syncing or renaming fails.
    pub fn publish(&self, from: &Path, name: &str) -> Result<PathBuf, Fault> {
        let target = self.dir.join(name);
        publish(from, &target)?;
        Ok(target)
    }
}

impl Drop for OutDir {
    fn drop(&mut self) {
        // The next build removes what cannot be removed now.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Makes `from` durable and renames it to `target` on the same file system.
///
/// # Errors
/// When syncing or renaming fails.
pub fn publish(from: &Path, target: &Path) -> Result<(), Fault> {
    File::open(from).and_then(|file| file.sync_all()).map_err(Fault::file("sync", from))?;
    std::fs::rename(from, target).map_err(Fault::file("write", target))?;
    if let Some(dir) = target.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Fault::file("sync", dir))?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), Fault> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::File { action: "remove", path: path.to_path_buf(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::OutDir;

    #[test]
    fn leftovers_of_a_killed_build_vanish_and_results_stay() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let leftover = dir.path().join(".building/half");
        std::fs::create_dir_all(&leftover).expect("folder");
        std::fs::write(dir.path().join("earlier"), b"result").expect("write");
        let out = OutDir::open(dir.path()).expect("open");
        assert!(!leftover.exists());
        std::fs::write(out.scratch().join("r"), b"whole").expect("write");
        let result = out.publish(&out.scratch().join("r"), "result").expect("publish");
        drop(out);
        assert_eq!(std::fs::read(result).expect("read"), b"whole");
        assert!(dir.path().join("earlier").exists() && !dir.path().join(".building").exists());
    }

    #[test]
    fn one_builder_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let out = OutDir::open(dir.path()).expect("open");
        let lock = std::fs::File::open(dir.path().join(".lock")).expect("open");
        assert!(matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        drop(out);
        lock.try_lock().expect("free again");
    }
}
