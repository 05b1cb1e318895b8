//! What is needed of a file system to boot from it, and how ext2/3/4 gives it.

use super::disk::Window;
use ext4_view::{Ext4, Ext4Error, Ext4Read};
use std::io::Read;

/// Most names taken from one directory.
pub const MAX_NAMES: usize = 4096;

/// Why a path could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Nothing is there, or not the kind of thing that was asked for.
    #[error("not found")]
    Missing,
    /// The file system is damaged, or has a feature that cannot be read.
    #[error("{0}")]
    Broken(String),
}

/// A file being read.
pub struct OpenFile<'a> {
    /// What its inode or directory entry says, in bytes. Only a claim: count what comes out of `data`.
    pub size: u64,
    /// Its content.
    pub data: Box<dyn Read + 'a>,
}

/// A file system, read-only. Paths are absolute, with `/`.
pub trait BootFs {
    /// Names in a directory, in no order, at most [`MAX_NAMES`]; names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// [`FsError::Missing`] when there is no such directory.
    fn list(&self, path: &str) -> Result<Vec<String>, FsError>;

    /// Opens a regular file, following symbolic links.
    ///
    /// # Errors
    /// [`FsError::Missing`] when there is no such file.
    fn open(&self, path: &str) -> Result<OpenFile<'_>, FsError>;

    /// Reads a small file as text; invalid UTF-8 is replaced. Bytes past `max` are an error.
    ///
    /// # Errors
    /// As [`BootFs::open`]; a longer file is [`FsError::Broken`].
    fn text(&self, path: &str, max: u64) -> Result<String, FsError> {
        let file = self.open(path)?;
        let mut bytes = Vec::new();
        let taken = file.data.take(max.saturating_add(1)).read_to_end(&mut bytes);
        taken.map_err(|error| FsError::Broken(format!("cannot read {path}: {error}")))?;
        if bytes.len() as u64 > max {
            return Err(FsError::Broken(format!("{path} is longer than {max} bytes")));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// ext2, ext3 or ext4.
pub struct Ext {
    fs: Ext4,
}

struct ExtSource(Window);

impl Ext4Read for ExtSource {
    fn read(
        &mut self,
        start: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read(start, into)?)
    }
}

impl Ext {
    /// Opens the file system. A journal that holds unwritten changes (the guest was killed) is replayed in
    /// memory.
    ///
    /// # Errors
    /// When it is damaged or has a feature that cannot be read.
    pub fn new(window: Window) -> Result<Self, FsError> {
        Ok(Self { fs: Ext4::load(Box::new(ExtSource(window))).map_err(|error| refusal(&error))? })
    }
}

fn refusal(error: &Ext4Error) -> FsError {
    use Ext4Error::{IsADirectory, IsASpecialFile, NotADirectory, NotFound};
    if matches!(error, NotFound | NotADirectory | IsADirectory | IsASpecialFile) {
        FsError::Missing
    } else {
        FsError::Broken(error.to_string())
    }
}

impl BootFs for Ext {
    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let mut names = Vec::new();
        for entry in self.fs.read_dir(path).map_err(|error| refusal(&error))?.take(MAX_NAMES) {
            let entry = entry.map_err(|error| refusal(&error))?;
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<OpenFile<'_>, FsError> {
        let file = self.fs.open(path).map_err(|error| refusal(&error))?;
        Ok(OpenFile { size: file.metadata().len(), data: Box::new(file) })
    }
}
