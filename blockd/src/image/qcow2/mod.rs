//! qcow2, as far as untrusted images need it: header, tables, reading, and writing of a new image.
//!
//! The layout is that of QEMU's `docs/interop/qcow2`. Everything that would make the reader look at another file (a
//! backing file, an external data file) is refused before anything else is done with the image.

mod header;
mod read;
mod write;

pub use header::{Header, SMALLEST_HEADER};
pub use read::{Cluster, check, clusters, to_raw};
pub use write::from_raw;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `QFI\xfb`
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Largest first-level table in bytes, as in QEMU.
pub(crate) const L1_LIMIT: u64 = 32 << 20;

/// Why an image is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// It refers to another file of the host.
    #[error("the qcow2 header names {what} ('{name}'), which would read another file of the host")]
    OtherFile {
        /// `a backing file` or `an external data file`.
        what: &'static str,
        /// The name, cut to 64 printable characters.
        name: String,
    },
    /// It ends before what its tables point at.
    #[error("the qcow2 image is truncated: {what} ends at byte {end} but the file has {bytes}")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Where it ends.
        end: u64,
        /// Length of the file.
        bytes: u64,
    },
    /// It contradicts itself.
    #[error("the qcow2 image is damaged: {0}")]
    Damaged(String),
    /// A feature that is not read here.
    #[error("the qcow2 image uses {0}, which is not supported")]
    Unsupported(String),
    /// Its disk is larger than allowed.
    #[error("the qcow2 image describes a disk of {bytes} bytes, more than the allowed {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The pool has no room for what it expands to.
    #[error("the storage pool has no room for the image's content")]
    Full,
    /// Reading or writing failed.
    #[error("cannot convert the image: {0}")]
    Io(#[from] io::Error),
}

impl Bad {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::OtherFile { .. } => {
                "make a self-contained image with `qemu-img convert -O qcow2 IMAGE NEW` and upload that"
            }
            Self::Truncated { .. } => "compare the checksum with the publisher's and upload the image again",
            Self::Damaged(_) => "check it with `qemu-img check` and upload a good copy",
            Self::Unsupported(_) => "convert it with `qemu-img convert -O qcow2 IMAGE NEW` and upload that",
            Self::TooLarge { .. } => "upload a smaller image",
            Self::Full => {
                "delete images, volumes or snapshots that are no longer needed, or enlarge the pool"
            }
            Self::Io(_) => "see the storage daemon's log",
        }
    }
}

/// Bytes at an offset: the image file, or a slice in tests.
pub trait Source {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn length(&self) -> io::Result<u64>;
    /// Fills `buffer` from `at`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, else what the system says.
    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
    fn fill(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The big-endian number at `at` of a buffer that is known to be long enough; 0 past its end.
pub(crate) fn be32(buffer: &[u8], at: usize) -> u32 {
    buffer.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// See [`be32`].
pub(crate) fn be64(buffer: &[u8], at: usize) -> u64 {
    buffer.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
