//! What is needed of a file system to boot from it, and how ext2/3/4 gives it.

use super::disk::{Window, le32};
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
        check_size(&window)?;
        Ok(Self { fs: Ext4::load(Box::new(ExtSource(window))).map_err(|error| refusal(&error))? })
    }
}

/// Most block groups: 2 TiB with the smallest blocks, 32 TiB with usual ones. The reader takes memory for all of them at once.
const MOST_GROUPS: u64 = 1 << 18;

/// Refuses a file system that says it is larger than what it lies on, as Linux does, or has more groups than fit into memory. What is no
/// ext file system passes: the reader says so.
fn check_size(window: &Window) -> Result<(), FsError> {
    const SUPERBLOCK: u64 = 1024;
    const IS_64_BIT: u32 = 0x80;
    let Ok(block) = window.bytes::<1024>(SUPERBLOCK) else { return Ok(()) };
    let high = if le32(&block, 0x60) & IS_64_BIT == 0 { 0 } else { le32(&block, 0x150) };
    let blocks = u64::from(le32(&block, 0x4)) | (u64::from(high) << 32);
    // The largest blocks have 64 KiB.
    let shift = Some(le32(&block, 0x18)).filter(|shift| *shift <= 6);
    let size = shift.and_then(|shift| blocks.checked_mul(1024 << shift));
    if size.is_none_or(|size| size > window.size()) {
        let have = window.size();
        return Err(FsError::Broken(format!(
            "it says it has {blocks} blocks, more than fit into {have} bytes"
        )));
    }
    let groups = blocks.checked_div(le32(&block, 0x20).into()).unwrap_or(0);
    if groups > MOST_GROUPS {
        return Err(FsError::Broken(format!("{groups} block groups; at most {MOST_GROUPS} are read")));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::Ext;
    use crate::boot_entries::disk::Window;
    use std::sync::Arc;

    #[test]
    fn sizes_that_cannot_be_are_refused_before_memory_is_taken() {
        let image = include_bytes!("../../fuzz/seeds/boot_entries/ext4");
        let with = |at: usize, value: u32| {
            let mut image = image.to_vec();
            image[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes());
            Ext::new(Window::whole(Arc::new(image))).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with(0x20, 8192), Ok(()), "as it is");
        // The number of blocks, and the size of one.
        assert!(with(0x4, u32::MAX).is_err_and(|text| text.contains("more than fit")));
        assert!(with(0x18, 63).is_err_and(|text| text.contains("more than fit")));
        assert!(with(0x18, 80).is_err_and(|text| text.contains("more than fit")));
    }
}
