//! Reading the image: bounded windows over whatever holds its bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes of a disk image; only ever read.
pub trait Disk: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] past the end, otherwise what the system says.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// An image in an open raw file.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    size: u64,
}

impl DiskFile {
    /// Takes over an open raw file (or block device).
    ///
    /// # Errors
    /// When its size cannot be found.
    pub fn new(file: File) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        let size = (&file).seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl Disk for DiskFile {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

impl Disk for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let past_end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let from = usize::try_from(offset).map_err(|_| past_end())?;
        let to = from.checked_add(into.len()).ok_or_else(past_end)?;
        into.copy_from_slice(self.get(from..to).ok_or_else(past_end)?);
        Ok(())
    }
}

/// A part of a disk, addressed from its own zero.
#[derive(Clone)]
pub struct Window {
    disk: Arc<dyn Disk>,
    start: u64,
    size: u64,
}

impl Window {
    /// The whole disk.
    #[must_use]
    pub fn whole(disk: Arc<dyn Disk>) -> Self {
        let size = disk.size();
        Self { disk, start: 0, size }
    }

    /// A part of this window; `None` when it starts past its end. A part that reaches past the end is cut
    /// there, as images that were shrunk or truncated still hold their boot files at the front.
    #[must_use]
    pub fn part(&self, start: u64, size: u64) -> Option<Self> {
        let room = self.size.checked_sub(start).filter(|room| *room > 0)?;
        Some(Self {
            disk: Arc::clone(&self.disk),
            start: self.start.checked_add(start)?,
            size: size.min(room),
        })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] past the window's end, otherwise what the system says.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let past_end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let end = offset.checked_add(into.len() as u64).ok_or_else(past_end)?;
        if end > self.size {
            return Err(past_end());
        }
        self.disk.read(self.start.checked_add(offset).ok_or_else(past_end)?, into)
    }

    /// Reads `N` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Window::read`].
    pub fn bytes<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A little-endian number in `bytes` at `at`; zero where there are not enough bytes (a parser's own checks
/// refuse zero where it matters).
#[must_use]
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    let part = at.checked_add(2).and_then(|end| bytes.get(at..end));
    part.and_then(|part| part.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// As [`le16`], of 4 bytes.
#[must_use]
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    let part = at.checked_add(4).and_then(|end| bytes.get(at..end));
    part.and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// As [`le16`], of 8 bytes.
#[must_use]
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    let part = at.checked_add(8).and_then(|end| bytes.get(at..end));
    part.and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}
