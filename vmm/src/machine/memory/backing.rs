//! Has guest memory from the host, in the way that was asked for.
//!
//! | asked for | mapping |
//! |---|---|
//! | nothing | private, anonymous, not reserved: costs what is touched |
//! | shared | one memfd for all ranges, sealed against another size: its descriptor can be given to back ends |
//! | transparent huge pages | as above, with `MADV_HUGEPAGE`, at an address that huge pages fit |
//! | huge pages of 2 MiB or 1 GiB | reserved with the mapping, so that a guest never finds out later that there are none |
//!
//! What the host has is read ([`HostPages::look`]) before the jail closes the way there, and only serves messages.

#![allow(unsafe_code)]

use super::MemoryError;
use crate::snapshot::dirty::DirtyMap;
use crate::virtio::Memory;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};
use wire::machine::{MemoryBacking, Pages};

/// Size of transparent huge pages.
const HUGE: usize = 2 << 20;
/// Where `mmap` and `memfd_create` have the logarithm of the page size in their flags.
const SIZE_SHIFT: i32 = libc::MAP_HUGE_SHIFT;
/// Most threads that take memory from the host at once.
const MOST_THREADS: usize = 8;

type Region = MmapRegion<DirtyMap>;

/// What the host has of the pages that are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPages {
    /// Huge pages of the size, set aside and free of them; `None` when the host has no such size.
    huge: Option<(u64, u64)>,
    /// The switch of transparent huge pages; `None` when the host has none.
    transparent: Option<String>,
}

impl HostPages {
    /// Looks, as far as the backing needs it.
    #[must_use]
    pub fn look(backing: &MemoryBacking) -> Self {
        let number = |path: String| std::fs::read_to_string(path).ok()?.trim().parse().ok();
        let huge = backing.pages.set_aside().and_then(|size| {
            let of = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size.0 << 10);
            let free: u64 = number(format!("{of}/free_hugepages"))?;
            let promised: u64 = number(format!("{of}/resv_hugepages"))?;
            Some((number(format!("{of}/nr_hugepages"))?, free.saturating_sub(promised)))
        });
        let transparent = (backing.pages == Pages::Transparent)
            .then(|| std::fs::read_to_string(switch(backing)).ok())
            .flatten();
        Self { huge, transparent }
    }
}

/// The file that switches transparent huge pages on and off.
fn switch(backing: &MemoryBacking) -> &'static str {
    if backing.shared {
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    } else {
        "/sys/kernel/mm/transparent_hugepage/enabled"
    }
}

/// Has memory for these ranges.
///
/// # Errors
/// Sizes that do not go with the pages, and what the host does not have or do.
pub fn map(
    ranges: &[(GuestAddress, usize)],
    backing: &MemoryBacking,
    host: &HostPages,
) -> Result<Memory, MemoryError> {
    let total = ranges.iter().map(|(_, length)| *length).sum::<usize>();
    check(ranges, backing, host)?;
    let file = if backing.shared { Some(file(total, backing, host)?) } else { None };
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, length) in ranges {
        let mut flags =
            if backing.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        flags |= huge_flags(backing.pages, libc::MAP_HUGETLB).unwrap_or(libc::MAP_NORESERVE);
        let file = file.as_ref().map(File::try_clone).transpose().map_err(failed("share guest memory"))?;
        let of = file.map(|file| FileOffset::new(file, offset));
        let mapped = build(of, *length, flags, backing.pages == Pages::Transparent);
        let mapped = mapped.map_err(|error| refused(total, backing, host, &error))?;
        if backing.pages == Pages::Transparent {
            // SAFETY: the mapping was just made; the advice changes nothing about its contents.
            let advised = unsafe { libc::madvise(mapped.as_ptr().cast(), *length, libc::MADV_HUGEPAGE) };
            if advised != 0 {
                return Err(failed("use transparent huge pages")(io::Error::last_os_error()));
            }
        }
        let region = GuestRegionMmap::new(mapped, *start);
        regions
            .push(region.ok_or_else(|| failed("address guest memory")(io::ErrorKind::InvalidInput.into()))?);
        offset += *length as u64;
    }
    Memory::from_regions(regions).map_err(|error| failed("address guest memory")(io::Error::other(error)))
}

/// Takes all pages of the first regions from the host, writable.
///
/// # Errors
/// When the host has not so many.
pub fn prefault(memory: &Memory, regions: usize) -> Result<(), MemoryError> {
    let parallel = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    for region in memory.iter().take(regions) {
        let at = region.as_ptr().expose_provenance();
        let pieces = pieces(region.size(), page_size(region).max(HUGE), parallel);
        let take = |(from, length): (usize, usize)| populate(at + from, length);
        let taken: io::Result<()> = match pieces.as_slice() {
            [one] => take(*one),
            many => std::thread::scope(|scope| {
                let threads: Vec<_> = many.iter().map(|piece| scope.spawn(|| take(*piece))).collect();
                let lost = || Err(io::Error::other("a thread was lost"));
                threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| lost()))
            }),
        };
        taken.map_err(|error| MemoryError::Prefault(region.size() >> 20, error))?;
    }
    Ok(())
}

/// Cuts a length into at most so many pieces at multiples of a unit: (start, length).
fn pieces(length: usize, unit: usize, most: usize) -> Vec<(usize, usize)> {
    let each = length.div_ceil(unit).div_ceil(most.max(1)).max(1) * unit;
    (0..length).step_by(each).map(|from| (from, each.min(length - from))).collect()
}

/// Takes the pages of a range of guest memory from the host, whatever they hold.
///
/// # Errors
/// What the host says.
pub fn populate(at: usize, length: usize) -> io::Result<()> {
    let at = std::ptr::with_exposed_provenance_mut::<libc::c_void>(at);
    // SAFETY: the callers give ranges of guest memory, which stays mapped; its contents do not change.
    if unsafe { libc::madvise(at, length, libc::MADV_POPULATE_WRITE) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// How memory goes back to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    advice: i32,
    page: usize,
}

impl Return {
    /// For this memory.
    #[must_use]
    pub fn of(memory: &Memory) -> Self {
        let region = memory.iter().next();
        // A page of a file is still there when a mapping of it has been forgotten.
        let shared = region.is_some_and(|region| region.flags() & libc::MAP_SHARED != 0);
        let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        Self { advice, page: region.map_or(4096, |region| page_size(region)) }
    }

    /// Gives back the whole pages of a range of guest memory, by its address in this process; they read as zero (or as the snapshot that
    /// they came from) afterwards. Answers how many bytes went.
    ///
    /// # Safety
    /// The range is guest memory that is mapped, and nobody relies on its contents.
    #[must_use]
    pub unsafe fn give(self, address: usize, length: usize) -> u64 {
        let Some(start) = address.checked_next_multiple_of(self.page) else { return 0 };
        let end = address.saturating_add(length) & !(self.page - 1);
        let Some(length) = end.checked_sub(start).filter(|length| *length > 0) else { return 0 };
        let start = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        // SAFETY: the caller's promise.
        let given = unsafe { libc::madvise(start, length, self.advice) };
        if given == 0 { length as u64 } else { 0 }
    }
}

/// Size of a region's pages, as far as it was asked for.
fn page_size(region: &Region) -> usize {
    let flags = region.flags();
    if flags & libc::MAP_HUGETLB == 0 { 4096 } else { 1 << ((flags >> SIZE_SHIFT) & libc::MAP_HUGE_MASK) }
}

/// Flags that ask for pages that were set aside, beside `base`.
fn huge_flags(pages: Pages, base: i32) -> Option<i32> {
    let size = pages.set_aside()?.bytes()?;
    Some(base | (i32::try_from(size.ilog2()).unwrap_or(0) << SIZE_SHIFT))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> MemoryError {
    move |source| MemoryError::Host { what, source }
}

/// Checks what cannot be.
fn check(
    ranges: &[(GuestAddress, usize)],
    backing: &MemoryBacking,
    host: &HostPages,
) -> Result<(), MemoryError> {
    if let Some(page) = backing.pages.set_aside() {
        let total = ranges.iter().map(|(_, length)| *length as u64).sum::<u64>();
        if total % page.bytes().unwrap_or(u64::MAX) != 0 {
            return Err(MemoryError::Uneven { size: total >> 20, page: page.0 });
        }
    }
    if backing.pages == Pages::Transparent {
        let at = switch(backing);
        match host.transparent.as_deref() {
            None => return Err(MemoryError::Transparent("this host's kernel has none".into())),
            Some(words) if words.contains("[never]") || words.contains("[deny]") => {
                let word = if backing.shared { "advise" } else { "madvise" };
                let text = format!("they are switched off on this host: write {word} into {at}");
                return Err(MemoryError::Transparent(text));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A file for all of guest memory, whose size nobody can change.
fn file(total: usize, backing: &MemoryBacking, host: &HostPages) -> Result<File, MemoryError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // `memfd_create` has the page size at the same place as `mmap`.
    let huge = huge_flags(backing.pages, 0).map(|size| libc::MFD_HUGETLB | size.unsigned_abs());
    // SAFETY: the name is a string, and the result is checked.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), flags | huge.unwrap_or(0)) };
    if fd < 0 {
        return Err(refused(total, backing, host, &io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and ours alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(total as u64).map_err(|error| refused(total, backing, host, &error))?;
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: sealing changes nothing in this process's memory.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(failed("seal guest memory's size")(io::Error::last_os_error()));
    }
    Ok(file)
}

/// Maps a range; at a multiple of the huge pages' size where that can be had, if `aligned`.
fn build(of: Option<FileOffset>, length: usize, flags: i32, aligned: bool) -> io::Result<Region> {
    let map = |of| {
        let mapped = MmapRegion::build(of, length, libc::PROT_READ | libc::PROT_WRITE, flags);
        mapped.map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        })
    };
    let region: Region = map(of.clone())?;
    let over = region.as_ptr().addr() % HUGE;
    if !aligned || over == 0 {
        return Ok(region);
    }
    // Kernels that do not align by themselves map downwards: what is too much is held while the range is mapped again below it.
    drop(region);
    let held = MmapRegion::<()>::build(None, over, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let region = map(of);
    drop(held);
    region
}

/// Why there is no memory, with what the host has of it.
fn refused(total: usize, backing: &MemoryBacking, host: &HostPages, error: &io::Error) -> MemoryError {
    let size = (total as u64) >> 20;
    let Some(page) = backing.pages.set_aside() else {
        return MemoryError::Map(
            size,
            io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::ENOMEM)),
        );
    };
    let need = size.div_ceil(page.0.max(1));
    let kib = page.0 << 10;
    let text = match host.huge {
        None => format!("this host's kernel or processor has no pages of {} MiB", page.0),
        Some((all, free)) => format!(
            "{need} pages of {} MiB are needed; the host has set aside {all}, of which {free} are free: write more into \
             /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages, or set them aside with the host's kernel parameters \
             hugepagesz={} hugepages={need}",
            page.0, backing.pages
        ),
    };
    MemoryError::Huge {
        text,
        source: io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::ENOMEM)),
    }
}

/// What of a region takes memory of the host, in bytes.
#[cfg(test)]
pub fn resident(region: &Region) -> usize {
    let mut pages = vec![0u8; region.size() / 4096];
    // SAFETY: the range is mapped, and there is a byte for each of its pages.
    let told = unsafe { libc::mincore(region.as_ptr().cast(), region.size(), pages.as_mut_ptr()) };
    assert_eq!(told, 0);
    pages.iter().filter(|page| **page & 1 != 0).count() * 4096
}

#[cfg(test)]
mod tests;
