//! Which pages of guest memory were written.
//!
//! Two parties write: vCPUs, of which KVM keeps a log, and devices in this process, which mark a [`DirtyMap`] (guest memory's own
//! operations do by themselves after they have written, and pieces that the kernel writes are marked when they are given back, see
//! [`crate::virtio::chain`]). Both cost something, so neither is on until [`Log::start`]; until then a mark is one load.

#![allow(unsafe_code)]

use super::SnapshotError;
use super::memory::PAGE;
use super::pages::{BITS, Pages};
use crate::machine::memory;
use crate::machine::memory::plugged::Plugged;
use crate::virtio::Memory;
use kvm_ioctls::VmFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryRegion;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Marks of one region of guest memory.
#[derive(Debug, Default)]
pub struct DirtyMap {
    pages: usize,
    marks: OnceLock<Box<[AtomicU64]>>,
    /// What of the region is plugged in; it is not there at all where nothing is.
    plugged: OnceLock<Arc<Plugged>>,
}

impl DirtyMap {
    fn start(&self) {
        self.marks.get_or_init(|| (0..self.pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect());
    }

    /// Says that the region can be plugged in and out, and what of it is. Counts once.
    pub fn pluggable(&self, plugged: Arc<Plugged>) {
        let _ = self.plugged.set(plugged);
    }

    /// What of the region is plugged in; `None` for one that is just there.
    #[must_use]
    pub fn plugged(&self) -> Option<&Arc<Plugged>> {
        self.plugged.get()
    }

    /// Takes the marks off and adds them to `into`.
    fn take(&self, into: &mut [u64]) {
        for (to, from) in into.iter_mut().zip(self.marks.get().into_iter().flatten()) {
            *to |= from.swap(0, Ordering::AcqRel);
        }
    }
}

impl Bitmap for DirtyMap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(marks) = self.marks.get() else { return };
        let Some(last) = len.checked_sub(1).and_then(|more| offset.checked_add(more)) else { return };
        for page in offset / PAGE..=(last / PAGE).min(self.pages.saturating_sub(1)) {
            if let Some(word) = marks.get(page / BITS) {
                word.fetch_or(1 << (page % BITS), Ordering::AcqRel);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE;
        let word = self.marks.get().and_then(|marks| marks.get(page / BITS));
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % BITS)) != 0)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { map: self, offset }
    }
}

impl NewBitmap for DirtyMap {
    fn with_len(len: usize) -> Self {
        Self { pages: len.div_ceil(PAGE), ..Self::default() }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyMap {
    type S = DirtySlice<'a>;
}

/// Marks from an offset on.
#[derive(Debug, Clone, Copy)]
pub struct DirtySlice<'m> {
    map: &'m DirtyMap,
    offset: usize,
}

impl<'m> DirtySlice<'m> {
    /// The map.
    #[must_use]
    pub fn map(&self) -> &'m DirtyMap {
        self.map
    }
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(offset) = self.offset.checked_add(offset) {
            self.map.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.offset.checked_add(offset).is_some_and(|offset| self.map.dirty_at(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { map: self.map, offset: self.offset.saturating_add(offset) }
    }
}

/// What was written since a point in time.
#[derive(Debug)]
pub struct Log {
    pages: Pages,
}

impl Log {
    /// Starts to log: whatever is written after this returns is in the log. The guest may run.
    ///
    /// # Errors
    /// What KVM says.
    pub fn start(vm: &VmFd, memory: &Memory) -> Result<Self, SnapshotError> {
        for region in memory.iter() {
            region.bitmap_map().start();
        }
        memory::log_writes(vm, memory, true).map_err(kvm("log the guest's writes"))?;
        let mut log = Self { pages: Pages::none(memory) };
        // Marks from an earlier time.
        log.collect(vm, memory)?;
        log.clear();
        Ok(log)
    }

    /// Stops to log; marks cost a little until the machine ends.
    ///
    /// # Errors
    /// What KVM says.
    pub fn stop(self, vm: &VmFd, memory: &Memory) -> Result<(), SnapshotError> {
        memory::log_writes(vm, memory, false).map_err(kvm("stop logging the guest's writes"))
    }

    /// Adds what was written since the last time, and answers what that was. The guest may run: what it writes meanwhile is in this
    /// answer or the next.
    ///
    /// # Errors
    /// What KVM says.
    pub fn collect(&mut self, vm: &VmFd, memory: &Memory) -> Result<Pages, SnapshotError> {
        let mut fresh = Pages::none(memory);
        let told = Self::read(vm, memory, &mut fresh);
        // What KVM has told it does not tell again, also when it fails at the next slot.
        self.pages.add(&fresh);
        told.map(|()| fresh)
    }

    fn read(vm: &VmFd, memory: &Memory, fresh: &mut Pages) -> Result<(), SnapshotError> {
        for (index, (slot, region)) in (0u32..).zip(memory.iter()).enumerate() {
            let length = usize::try_from(region.len()).unwrap_or(0);
            let logged = vm.get_dirty_log(slot, length).map_err(kvm("tell what the guest wrote"))?;
            let words = fresh.words(index);
            for (to, from) in words.iter_mut().zip(logged) {
                *to |= from;
            }
            region.bitmap_map().take(words);
        }
        Ok(())
    }

    /// Forgets: what is logged has been saved.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// What was written.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        &self.pages
    }
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> SnapshotError {
    move |source| SnapshotError::Kvm { what, source }
}

/// The map of a region.
trait Mapped {
    fn bitmap_map(&self) -> &DirtyMap;
}

impl Mapped for vm_memory::GuestRegionMmap<DirtyMap> {
    fn bitmap_map(&self) -> &DirtyMap {
        self.bitmap().map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn marks_count_once_they_are_wanted() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 70 * PAGE)]).unwrap();
        let region = memory.iter().next().unwrap();
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        region.bitmap_map().start();
        memory.write_obj(1u64, GuestAddress(3 * 4096 - 4)).unwrap();
        memory.write_slice(&[1; 10], GuestAddress(69 * 4096)).unwrap();
        let mut pages = vec![0; 2];
        region.bitmap_map().take(&mut pages);
        assert_eq!(pages, [0b1100, 1 << 5]);
        let mut again = vec![0; 2];
        region.bitmap_map().take(&mut again);
        assert_eq!(again, [0; 2]);
    }

    #[test]
    fn what_the_kernel_may_write_for_a_device_is_marked() {
        let memory = std::sync::Arc::new(Memory::from_ranges(&[(GuestAddress(0), 16 * PAGE)]).unwrap());
        let region = memory.iter().next().unwrap();
        region.bitmap_map().start();
        let marked = || {
            let mut pages = vec![0];
            region.bitmap_map().take(&mut pages);
            pages[0]
        };
        let mut segments = crate::virtio::chain::Segments::new(memory.clone());
        segments.push(GuestAddress(0), 2 * PAGE).unwrap();
        segments.push_writable(GuestAddress(5 * 4096 + 1), PAGE).unwrap();
        // Whoever looks while the kernel may still write has to look again afterwards.
        marked();
        segments.skip(PAGE);
        segments.truncate(0);
        segments.clear();
        assert_eq!(marked(), 0b110_0000);
        segments.push_writable(GuestAddress(4096), 3).unwrap();
        marked();
        segments.put(b"ab");
        assert_eq!(marked(), 2);
        segments.copy_in(b"c");
        assert_eq!(marked(), 2);
        drop(segments);
        assert_eq!(marked(), 2);
    }

    proptest! {
        #[test]
        fn any_range_is_marked_whole_and_nothing_else(offset in 0usize..90 * PAGE, len in 0usize..90 * PAGE) {
            let map = DirtyMap::with_len(80 * PAGE);
            map.start();
            map.slice_at(offset / 2).mark_dirty(offset - offset / 2, len);
            for page in 0..80 {
                let touched = len > 0 && page * PAGE < offset + len && (page + 1) * PAGE > offset;
                prop_assert_eq!(map.dirty_at(page * PAGE), touched);
            }
            map.mark_dirty(usize::MAX, 2);
        }
    }
}
