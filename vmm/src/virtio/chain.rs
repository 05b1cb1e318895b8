//! From a descriptor chain to checked pieces of guest memory.
//!
//! A descriptor's address and length are the guest's words: every one is looked up in guest memory here,
//! once, and what comes out is a list of host addresses that are inside it. A chain that is broken (a `next`
//! outside of the table, a circle, a nested indirect table, readable after writable) is an error; the queue
//! crate merely stops at such a place, so the last descriptor is asked whether it wanted to go on.
#![allow(unsafe_code)]

use std::sync::Arc;

use libc::iovec;
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Memory;

/// Most pieces of one chain: what one `readv` takes (`IOV_MAX`).
pub const MAX_PIECES: usize = 1024;

/// Why a chain cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// It ends in the middle, circles or is empty.
    #[error("the descriptor chain is broken")]
    Broken,
    /// It has more than [`MAX_PIECES`] pieces.
    #[error("the descriptor chain has more than {MAX_PIECES} pieces")]
    TooLong,
    /// A buffer is not in guest memory.
    #[error("a buffer is outside of guest memory")]
    Outside,
    /// A device-readable buffer follows a device-writable one.
    #[error("a readable buffer follows a writable one")]
    Order,
}

/// Pieces of guest memory in order, as host addresses. Keeps the memory mapped for as long as it lives.
pub struct Segments {
    memory: Arc<Memory>,
    pieces: Vec<iovec>,
    /// Pieces before this one are used up.
    first: usize,
    /// What may be written, as it was added.
    writable: Vec<iovec>,
}

// SAFETY: the addresses point into guest memory, which any thread may access (volatile, racing with the
// guest) and which `memory` keeps mapped.
unsafe impl Send for Segments {}

impl Segments {
    /// No pieces yet.
    #[must_use]
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, pieces: Vec::new(), first: 0, writable: Vec::new() }
    }

    /// Forgets all pieces, of which those that may have been written are marked.
    pub fn clear(&mut self) {
        self.wrote();
        self.writable.clear();
        self.pieces.clear();
        self.first = 0;
    }

    /// Adds `len` bytes at a guest address that are only read.
    ///
    /// # Errors
    /// When they are not all in guest memory, or there are too many pieces.
    pub fn push(&mut self, address: GuestAddress, len: usize) -> Result<(), BadChain> {
        self.add(address, len, false)
    }

    /// Marks what may have been written by address: whoever let the kernel write calls this before the guest is told, or clears or drops
    /// the pieces. Marking it only when it was added would be too early: memory is copied while the machine runs.
    pub fn wrote(&self) {
        for piece in &self.writable {
            mark(&self.memory, piece.iov_base.cast(), piece.iov_len);
        }
    }

    /// Adds `len` bytes at a guest address that may be written.
    ///
    /// # Errors
    /// As [`Segments::push`].
    pub fn push_writable(&mut self, address: GuestAddress, len: usize) -> Result<(), BadChain> {
        self.add(address, len, true)
    }

    fn add(&mut self, address: GuestAddress, len: usize, writable: bool) -> Result<(), BadChain> {
        for slice in GuestMemoryBackend::get_slices(self.memory.as_ref(), address, len) {
            let slice = slice.map_err(|_| BadChain::Outside)?;
            if self.pieces.len() >= MAX_PIECES {
                return Err(BadChain::TooLong);
            }
            // The guard only matters for memory that is mapped on demand; this memory stays mapped.
            let base = slice.ptr_guard_mut().as_ptr();
            let piece = iovec { iov_base: base.cast(), iov_len: slice.len() };
            if writable {
                self.writable.push(piece);
            }
            self.pieces.push(piece);
        }
        Ok(())
    }

    /// The pieces that are left, for `readv` and its like. Valid as long as this value is neither changed nor
    /// dropped.
    #[must_use]
    pub fn as_iovecs(&self) -> &[iovec] {
        self.pieces.get(self.first..).unwrap_or_default()
    }

    /// Bytes that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_iovecs().iter().fold(0, |sum: usize, piece| sum.saturating_add(piece.iov_len))
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_iovecs().iter().all(|piece| piece.iov_len == 0)
    }

    /// Whether every piece starts and ends at a multiple of `align` (a power of two) in host memory.
    #[must_use]
    pub fn aligned(&self, align: usize) -> bool {
        let mask = align.saturating_sub(1);
        self.as_iovecs().iter().all(|piece| (piece.iov_base as usize | piece.iov_len) & mask == 0)
    }

    /// Copies from the front into `out` and takes what was copied off; answers how much it was.
    pub fn take(&mut self, out: &mut [u8]) -> usize {
        self.consume(out.len(), |at, from, count| {
            // SAFETY: `from` is valid for `count` bytes of guest memory (see `push`), `out` for `at + count`
            // as `consume` never goes beyond `out.len()`; they cannot overlap, `out` being a Rust reference.
            // The guest may write meanwhile: bytes may be torn.
            unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), out.as_mut_ptr().add(at), count) };
        })
    }

    /// Copies `bytes` to the front and takes the place off; answers how much fitted.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let memory = Arc::clone(&self.memory);
        self.consume(bytes.len(), |at, to, count| {
            // SAFETY: as in `take`, with the roles changed.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().add(at), to, count) };
            mark(&memory, to, count);
        })
    }

    /// Copies `bytes` to the front and leaves the place on.
    pub fn copy_in(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in self.as_iovecs() {
            let (now, later) = rest.split_at(piece.iov_len.min(rest.len()));
            // SAFETY: as in `take`: `now` is not longer than the piece.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            mark(&self.memory, piece.iov_base.cast(), now.len());
            rest = later;
        }
    }

    /// Copies from the front into `out` and leaves it on.
    pub fn copy_out(&self, out: &mut [u8]) {
        let mut rest = out;
        for piece in self.as_iovecs() {
            let (now, later) = rest.split_at_mut(piece.iov_len.min(rest.len()));
            // SAFETY: as in `take`: `now` is not longer than the piece.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.iov_base.cast::<u8>(), now.as_mut_ptr(), now.len())
            };
            rest = later;
        }
    }

    /// Keeps the first `len` bytes only.
    pub fn truncate(&mut self, len: usize) {
        let mut room = len;
        let mut kept = self.first;
        for piece in self.pieces.iter_mut().skip(self.first) {
            if room == 0 {
                break;
            }
            piece.iov_len = piece.iov_len.min(room);
            room = room.saturating_sub(piece.iov_len);
            kept = kept.saturating_add(1);
        }
        self.pieces.truncate(kept);
    }

    /// Takes `count` bytes off the front; answers how many there were.
    pub fn skip(&mut self, count: usize) -> usize {
        self.consume(count, |_, _, _| {})
    }

    /// Calls `each(offset, address, count)` for the pieces of the first `wanted` bytes, and takes them off.
    fn consume(&mut self, wanted: usize, mut each: impl FnMut(usize, *mut u8, usize)) -> usize {
        let mut done = 0_usize;
        while let Some(piece) = self.pieces.get_mut(self.first) {
            let count = piece.iov_len.min(wanted.saturating_sub(done));
            each(done, piece.iov_base.cast(), count);
            done = done.saturating_add(count);
            if count < piece.iov_len {
                // SAFETY: `count` is within the piece.
                piece.iov_base = unsafe { piece.iov_base.cast::<u8>().add(count) }.cast();
                piece.iov_len = piece.iov_len.saturating_sub(count);
                break;
            }
            self.first = self.first.saturating_add(1);
        }
        done
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        self.wrote();
    }
}

/// Marks bytes of guest memory, by their host address, as written.
fn mark(memory: &Memory, at: *const u8, len: usize) {
    for region in memory.iter() {
        let offset = (at as usize).checked_sub(region.as_ptr() as usize);
        if let Some(offset) = offset.filter(|offset| (*offset as u64) < region.len()) {
            region.bitmap().mark_dirty(offset, len);
        }
    }
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments")
            .field("pieces", &self.as_iovecs().len())
            .field("bytes", &self.len())
            .finish()
    }
}

/// Sorts a chain into what the device reads and what it writes; both must come in empty. Answers the last
/// writable descriptor's address and length, if any.
///
/// # Errors
/// When the chain is unusable; what was collected until then is left in place.
pub fn collect(
    chain: DescriptorChain<&Memory>,
    readable: &mut Segments,
    writable: &mut Segments,
) -> Result<Option<(GuestAddress, u32)>, BadChain> {
    let mut last_writable = None;
    let mut goes_on = true;
    let mut count = 0_usize;
    for descriptor in chain {
        count = count.saturating_add(1);
        if count > MAX_PIECES {
            return Err(BadChain::TooLong);
        }
        goes_on = descriptor.has_next();
        let len = usize::try_from(descriptor.len()).map_err(|_| BadChain::TooLong)?;
        if descriptor.is_write_only() {
            writable.push_writable(descriptor.addr(), len)?;
            if len > 0 {
                last_writable = Some((descriptor.addr(), descriptor.len()));
            }
        } else if last_writable.is_some() {
            return Err(BadChain::Order);
        } else {
            readable.push(descriptor.addr(), len)?;
        }
    }
    if goes_on { Err(BadChain::Broken) } else { Ok(last_writable) }
}

#[cfg(test)]
mod tests {
    use super::{BadChain, MAX_PIECES, Segments};
    use crate::virtio::Memory;
    use proptest::prelude::{any, prop};
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    fn memory() -> Arc<Memory> {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000)];
        Arc::new(Memory::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_buffer_across_two_regions_becomes_two_pieces() {
        let memory = memory();
        memory.write_slice(b"abcdef", GuestAddress(0x3ffd)).unwrap();
        let mut segments = Segments::new(Arc::clone(&memory));
        segments.push(GuestAddress(0x3ffd), 6).unwrap();
        assert_eq!((segments.as_iovecs().len(), segments.len()), (2, 6));
        let mut out = [0; 4];
        assert_eq!(segments.take(&mut out), 4);
        assert_eq!(&out, b"abcd");
        assert_eq!(segments.put(b"XYZ"), 2);
        assert!(segments.is_empty());
        let mut out = [0; 6];
        memory.read_slice(&mut out, GuestAddress(0x3ffd)).unwrap();
        assert_eq!(&out, b"abcdXY");
        segments.clear();
        segments.push(GuestAddress(0x3ffd), 6).unwrap();
        segments.skip(1);
        segments.truncate(3);
        assert_eq!((segments.as_iovecs().len(), segments.len()), (2, 3));
        segments.truncate(2);
        assert_eq!((segments.as_iovecs().len(), segments.len()), (1, 2));
    }

    #[test]
    fn what_is_not_in_memory_is_refused() {
        let mut segments = Segments::new(memory());
        for (address, len) in
            [(0x7fff, 2), (0x8000, 1), (u64::MAX, 1), (0, usize::MAX), (u64::MAX, usize::MAX)]
        {
            assert_eq!(
                segments.push(GuestAddress(address), len),
                Err(BadChain::Outside),
                "{address:x} {len}"
            );
        }
        segments.clear();
        for _ in 0..MAX_PIECES {
            segments.push(GuestAddress(0), 1).unwrap();
        }
        assert_eq!(segments.push(GuestAddress(0), 1), Err(BadChain::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn taking_in_any_portions_gives_the_same_bytes(pieces in prop::collection::vec((0..0x4000_u64, 0..300_usize), 0..8),
                                                       portions in prop::collection::vec(0..100_usize, 0..40), seed in any::<u8>()) {
            let memory = memory();
            let content: Vec<u8> = (0..0x8000_usize).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1] ^ seed).collect();
            memory.write_slice(&content, GuestAddress(0)).unwrap();
            let mut segments = Segments::new(memory);
            let mut expected = Vec::new();
            for (address, len) in pieces {
                segments.push(GuestAddress(address), len).unwrap();
                let from = usize::try_from(address).unwrap();
                expected.extend_from_slice(&content[from..from + len]);
            }
            let mut got = Vec::new();
            for portion in portions {
                let mut out = vec![0; portion];
                let count = segments.take(&mut out);
                got.extend_from_slice(&out[..count]);
            }
            proptest::prop_assert_eq!(segments.len() + got.len(), expected.len());
            proptest::prop_assert!(expected.starts_with(&got));
        }
    }
}
