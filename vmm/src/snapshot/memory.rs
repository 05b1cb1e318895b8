//! The memory file: the guest's RAM region after region, as it is, with holes where it is zero.

#![allow(unsafe_code)]

use super::SnapshotError;
use super::copy::{Place, Sink};
use super::pages::Pages;
use crate::machine::memory::plugged::plugged;
use crate::virtio::Memory;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page.
pub const PAGE: usize = 4096;

static ZEROS: [u8; PAGE] = [0; PAGE];

fn io(what: &'static str) -> impl Fn(std::io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { what, source }
}

/// The memory file, while it is written.
pub struct MemoryFile<'f> {
    file: &'f File,
    /// What was written: the rest of a new file is holes.
    written: Pages,
    /// It is a copy of an older one.
    older: bool,
}

impl<'f> MemoryFile<'f> {
    /// A file of holes, of exactly the size of the guest's RAM.
    ///
    /// # Errors
    /// What the file system says.
    pub fn whole(memory: &Memory, file: &'f File) -> Result<Self, SnapshotError> {
        let sized = file.set_len(0).and_then(|()| file.set_len(size(memory)));
        sized.map_err(io("give the snapshot's memory file its size"))?;
        Ok(Self { file, written: Pages::none(memory), older: false })
    }

    /// A file that holds the guest's RAM as it was when it was last saved. It holds neither the old memory nor the new one until all that
    /// changed is written.
    ///
    /// # Errors
    /// What the file system says, or that it has another size.
    pub fn older(memory: &Memory, file: &'f File) -> Result<Self, SnapshotError> {
        let length = file.metadata().map_err(io("look at the snapshot's memory file"))?.len();
        let total = size(memory);
        if length != total {
            return Err(SnapshotError::Other(format!(
                "the file with the memory of the snapshot before has {length} bytes and the machine {total}"
            )));
        }
        Ok(Self { file, written: Pages::none(memory), older: true })
    }

    /// How many bytes of the file were written, however often.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.bytes()
    }
}

impl Sink for MemoryFile<'_> {
    type Error = SnapshotError;

    fn data(&mut self, place: Place, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file.write_all_at(bytes, place.at).map_err(io("write the guest's memory"))?;
        self.written.set(place.region, place.offset..place.offset + bytes.len());
        Ok(())
    }

    fn zeros(&mut self, place: Place, len: usize) -> Result<(), SnapshotError> {
        for page in (0..len).step_by(PAGE) {
            let offset = place.offset + page;
            if self.older || self.written.has(place.region, offset) {
                self.data(Place { offset, at: place.at + page as u64, ..place }, &ZEROS)?;
            }
        }
        Ok(())
    }
}

/// Pages that may have something else than zeros. Memory that is not plugged in is not looked at, and neither are holes of shared memory:
/// looking at a page of a file takes that page from the host.
///
/// # Errors
/// What the host says of the file.
pub fn present(memory: &Memory) -> Result<Pages, SnapshotError> {
    let mut found = Pages::none(memory);
    for (index, region) in memory.iter().enumerate() {
        let length = region.len();
        if let Some(plugged) = plugged(region) {
            plugged.byte_runs().for_each(|run| found.set(index, run));
            continue;
        }
        let Some(of) = region.file_offset().filter(|_| region.flags() & libc::MAP_SHARED != 0) else {
            found.set(index, 0..region.size());
            continue;
        };
        let (file, start) = (of.file(), of.start());
        let mut at = start;
        while let Some(data) = data(file, at, start + length)? {
            at = data.end;
            let within = |at: u64| usize::try_from(at - start).unwrap_or(region.size());
            found.set(index, within(data.start)..within(data.end));
        }
    }
    Ok(found)
}

/// Bytes of RAM.
fn size(memory: &Memory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
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
    use crate::snapshot::copy::copy;

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
        let mut to = MemoryFile::whole(&memory, &file).unwrap();
        let mut moved = 0;
        let count = |_, went| {
            moved += went;
            Ok(())
        };
        copy(&memory, &Pages::all(&memory), &mut to, count).unwrap();
        assert_eq!((to.written(), moved), (3 * PAGE as u64, 3 * PAGE as u64));
        // What became zero meanwhile does not stay.
        memory.write_obj(0u8, GuestAddress(5)).unwrap();
        let mut again = Pages::none(&memory);
        again.set(0, 0..2 * PAGE);
        copy(&memory, &again, &mut to, |_, _| Ok(())).unwrap();
        assert_eq!(to.written(), 3 * PAGE as u64);
        assert_eq!(map(&file, &ranges).unwrap().read_obj::<u8>(GuestAddress(5)).unwrap(), 0);
        memory.write_obj(1u8, GuestAddress(5)).unwrap();
        let mut older = MemoryFile::older(&memory, &file).unwrap();
        copy(&memory, &again, &mut older, |_, _| Ok(())).unwrap();
        assert_eq!(older.written(), 2 * PAGE as u64);
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
}
