//! The memory file: the guest's RAM region after region, as it is, with holes where it is zero.

#![allow(unsafe_code)]

use super::SnapshotError;
use super::dirty::{DirtyMap, Log};
use crate::virtio::Memory;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Largest single write, in bytes.
const CHUNK: usize = 4 << 20;

static ZEROS: [u8; PAGE] = [0; PAGE];

fn io(what: &'static str) -> impl Fn(std::io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { what, source }
}

/// Writes all of the guest's RAM to a file, of which it makes a file of exactly that size. Nothing may write to guest memory meanwhile.
/// Answers how many bytes were written; the rest of the file is holes. Syncing it is the caller's.
///
/// # Errors
/// What the file system says.
pub fn write(memory: &Memory, to: &File) -> Result<u64, SnapshotError> {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let sized = to.set_len(0).and_then(|()| to.set_len(total));
    sized.map_err(io("give the snapshot's memory file its size"))?;
    let (mut offset, mut written) = (0, 0);
    for region in memory.iter() {
        let bytes = bytes(memory, region)?;
        for present in present(region)? {
            let start = present.start;
            for run in runs(bytes.get(present).unwrap_or_default()) {
                let part = bytes.get(start + run.start..start + run.end).unwrap_or_default();
                to.write_all_at(part, offset + (start + run.start) as u64)
                    .map_err(io("write the guest's memory"))?;
                written += part.len() as u64;
            }
        }
        offset += region.len();
    }
    Ok(written)
}

/// Where a region may have something else than zeros: looking at a page of a file takes that page from the host, even if it is a hole.
fn present(region: &GuestRegionMmap<DirtyMap>) -> Result<Vec<std::ops::Range<usize>>, SnapshotError> {
    let length = region.len();
    let Some(of) = region.file_offset().filter(|_| region.flags() & libc::MAP_SHARED != 0) else {
        return Ok(std::iter::once(0..region.size()).collect());
    };
    let (file, start) = (of.file(), of.start());
    let mut found = Vec::new();
    let mut at = start;
    while let Some(data) = data(file, at, start + length)? {
        at = data.end;
        let within = |at: u64| usize::try_from(at - start).unwrap_or(region.size());
        found.push(within(data.start)..within(data.end));
    }
    Ok(found)
}

/// Writes what a log has over a file that holds the guest's RAM as it was when the log was empty. Answers how many bytes were written.
///
/// # Errors
/// What the file system says; the file then holds neither the old memory nor the new one.
pub fn write_changes(memory: &Memory, log: &Log, to: &File) -> Result<u64, SnapshotError> {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let length = to.metadata().map_err(io("look at the snapshot's memory file"))?.len();
    if length != total {
        return Err(SnapshotError::Other(format!(
            "the file with the memory of the snapshot before has {length} bytes and the machine {total}"
        )));
    }
    let (mut offset, mut written) = (0, 0);
    for (index, region) in memory.iter().enumerate() {
        let bytes = bytes(memory, region)?;
        for run in log.runs(index, CHUNK) {
            let part = bytes.get(run.start..run.end.min(bytes.len())).unwrap_or_default();
            to.write_all_at(part, offset + run.start as u64).map_err(io("write the guest's memory"))?;
            written += part.len() as u64;
        }
        offset += region.len();
    }
    Ok(written)
}

/// A region's bytes.
fn bytes<'m>(memory: &'m Memory, region: &GuestRegionMmap<DirtyMap>) -> Result<&'m [u8], SnapshotError> {
    let host = memory.get_host_address(region.start_addr());
    let host = host.map_err(|error| io("find the guest's memory")(std::io::Error::other(error)))?;
    let length = usize::try_from(region.len()).unwrap_or(0);
    // SAFETY: the region is mapped for as long as `memory` lives, and the caller lets nothing write to it.
    Ok(unsafe { std::slice::from_raw_parts(host, length) })
}

/// Runs of pages that are not all zero, none longer than [`CHUNK`].
fn runs(bytes: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut at = 0;
    let zero = |at: usize| bytes.get(at..at + PAGE).is_some_and(|page| page == ZEROS);
    std::iter::from_fn(move || {
        while at < bytes.len() && zero(at) {
            at += PAGE;
        }
        let start = at;
        while at < bytes.len() && at - start < CHUNK && !zero(at) {
            at = (at + PAGE).min(bytes.len());
        }
        (start < at).then_some(start..at)
    })
}

/// Maps a memory file privately as the guest's RAM: what the guest writes stays its own, and what it does not touch is not read.
///
/// # Errors
/// When the file is too short, or the host has no address space for it.
pub fn map(from: &File, ranges: &[(GuestAddress, usize)]) -> Result<Memory, SnapshotError> {
    let total: u64 = ranges.iter().map(|(_, length)| *length as u64).sum();
    check_length(from, total)?;
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, length) in ranges {
        let file = from.try_clone().map_err(io("use the snapshot's memory file"))?;
        let mapped = MmapRegion::build(
            Some(FileOffset::new(file, offset)),
            *length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        );
        let mapped =
            mapped.map_err(|error| io("map the snapshot's memory file")(std::io::Error::other(error)))?;
        let region = GuestRegionMmap::new(mapped, *start);
        regions.push(region.ok_or_else(|| SnapshotError::Other("memory beyond the address space".into()))?);
        offset += *length as u64;
    }
    Memory::from_regions(regions)
        .map_err(|error| io("map the snapshot's memory file")(std::io::Error::other(error)))
}

/// Reads a memory file into the guest's RAM, which is all zero; holes of the file are not read.
///
/// # Errors
/// When the file is too short or cannot be read.
pub fn read(from: &File, into: &Memory) -> Result<(), SnapshotError> {
    let total: u64 = into.iter().map(GuestMemoryRegion::len).sum();
    check_length(from, total)?;
    let mut file = from.try_clone().map_err(io("use the snapshot's memory file"))?;
    let mut offset = 0;
    for region in into.iter() {
        let mut at = offset;
        while let Some(data) = data(from, at, offset + region.len())? {
            file.seek(SeekFrom::Start(data.start)).map_err(io("read the snapshot's memory file"))?;
            let to = region.start_addr().unchecked_add(data.start - offset);
            let count = usize::try_from(data.end - data.start).unwrap_or(usize::MAX);
            into.read_exact_volatile_from(to, &mut file, count)
                .map_err(|error| io("read the snapshot's memory file")(std::io::Error::other(error)))?;
            at = data.end;
        }
        offset += region.len();
    }
    Ok(())
}

/// The next bytes of a file, from one place to another, that are no hole.
fn data(file: &File, from: u64, to: u64) -> Result<Option<std::ops::Range<u64>>, SnapshotError> {
    let seek = |at: u64, whence| {
        let at = libc::off_t::try_from(at).unwrap_or(libc::off_t::MAX);
        // SAFETY: moves the file's position, nothing else.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
        u64::try_from(found).map_err(|_| std::io::Error::last_os_error())
    };
    let start = match seek(from, libc::SEEK_DATA) {
        Ok(start) => start,
        // Nothing but a hole up to the end.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(io("look for holes in guest memory's file")(error)),
    };
    if start >= to {
        return Ok(None);
    }
    let end = seek(start, libc::SEEK_HOLE).map_err(io("look for holes in guest memory's file"))?;
    Ok(Some(start..end.min(to)))
}

/// A shorter file would end the machine at its first touch of what is missing.
fn check_length(from: &File, total: u64) -> Result<(), SnapshotError> {
    let facts = from.metadata().map_err(io("look at the snapshot's memory file"))?;
    if facts.len() < total || !facts.is_file() {
        return Err(SnapshotError::Other(format!(
            "its memory file has {} bytes and the machine {total}; give the file that was written with the state",
            facts.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_comes_back_and_stays_private() {
        let ranges = [(GuestAddress(0), 64 * PAGE), (GuestAddress(1 << 32), 16 * PAGE)];
        let memory = Memory::from_ranges(&ranges).unwrap();
        let places = [(5, 1u8), (4096 * 7 + 9, 2), ((1 << 32) + 4096 * 15 + 4095, 3)];
        for (at, value) in places {
            memory.write_obj(value, GuestAddress(at)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 100], (90 * PAGE) as u64).unwrap();
        assert_eq!(write(&memory, &file).unwrap(), 3 * PAGE as u64);
        assert_eq!(file.metadata().unwrap().len(), 80 * PAGE as u64);
        let clones = [map(&file, &ranges).unwrap(), map(&file, &ranges).unwrap()];
        clones[0].write_obj(77u8, GuestAddress(5)).unwrap();
        for (at, value) in places.into_iter().skip(1) {
            assert_eq!(clones[0].read_obj::<u8>(GuestAddress(at)).unwrap(), value);
        }
        assert_eq!(clones[1].read_obj::<u8>(GuestAddress(5)).unwrap(), 1);
        file.set_len(79 * PAGE as u64).unwrap();
        let short = map(&file, &ranges).unwrap_err().to_string();
        assert!(short.contains("memory file has"), "{short}");
    }

    proptest! {
        #[test]
        fn runs_cover_what_is_not_zero(pages in prop::collection::vec(0u8..3, 0..40)) {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| {
                let mut bytes = vec![0; PAGE];
                if *page > 0 { bytes[usize::from(*page) * 1000] = *page; }
                bytes
            }).collect();
            let mut copy = vec![0; bytes.len()];
            let mut covered = 0;
            for run in runs(&bytes) {
                covered += run.len();
                copy[run.clone()].copy_from_slice(&bytes[run]);
            }
            prop_assert_eq!(&copy, &bytes);
            prop_assert_eq!(covered, pages.iter().filter(|page| **page > 0).count() * PAGE);
        }
    }
}
