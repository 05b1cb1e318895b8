//! The few system calls that neither the standard library nor `nix` wraps, and helpers about durability.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// Makes `to` share all blocks of `from` (`FICLONE`).
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` or `EXDEV` where reflinks do not exist.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: FICLONE takes a descriptor by value; both stay open during the call.
    let done = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an extended attribute.
///
/// # Errors
/// What the kernel says.
pub fn set_attribute(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: name is a C string, value is a valid range of bytes; the kernel copies both.
    let done =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an extended attribute of at most 4096 bytes.
///
/// # Errors
/// What the kernel says.
pub fn attribute(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; 4096];
    // SAFETY: the kernel writes at most value.len() bytes into value.
    let length =
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    value.truncate(length);
    Ok(value)
}

/// Starts to write a range back to disk without waiting, so that the final sync finds little left. A hint: errors are
/// of no consequence.
pub fn start_writeback(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: plain numbers; a hint to the kernel.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The next range of `file` at or after `from` and before `end` that holds data (not a hole), as (start, end).
///
/// # Errors
/// What the kernel says.
pub fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    use nix::unistd::{Whence, lseek64};
    let seek = |at: u64, whence| -> io::Result<u64> {
        let at = i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let found = lseek64(file, at, whence)?;
        u64::try_from(found).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    if from >= end {
        return Ok(None);
    }
    let start = match seek(from, Whence::SeekData) {
        Ok(start) if start < end => start,
        Ok(_) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some((start, seek(start, Whence::SeekHole)?.min(end))))
}

/// Copies a range between files inside the kernel, which shares the blocks where it can.
///
/// # Errors
/// What the kernel says; `UnexpectedEof` when `from` is shorter.
pub fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, length: u64) -> io::Result<()> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (mut from_at, mut to_at, mut left) = (offset(from_at)?, offset(to_at)?, length);
    while left > 0 {
        let step = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
        let copied = nix::fcntl::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), step)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(copied as u64);
    }
    Ok(())
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// What the kernel says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Free and total bytes of the file system that holds this file or directory.
///
/// # Errors
/// What the kernel says.
pub fn space(file: impl AsFd) -> io::Result<(u64, u64)> {
    let facts = nix::sys::statvfs::fstatvfs(file)?;
    let unit = facts.fragment_size();
    Ok((facts.blocks_available().saturating_mul(unit), facts.blocks().saturating_mul(unit)))
}

/// Whether this error says that the disk (or a quota) is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
