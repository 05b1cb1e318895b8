//! Sets of pages of guest memory.

use super::memory::PAGE;
use crate::virtio::Memory;
use std::ops::Range;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub(super) const BITS: usize = 64;

/// A set of pages: a bit for each page of each region of guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    regions: Vec<Vec<u64>>,
}

impl Pages {
    /// No page of this memory.
    #[must_use]
    pub fn none(memory: &Memory) -> Self {
        let pages = |region: &_| pages_of(region).div_ceil(BITS);
        Self { regions: memory.iter().map(|region| vec![0; pages(region)]).collect() }
    }

    /// All pages of this memory.
    #[must_use]
    pub fn all(memory: &Memory) -> Self {
        let mut all = Self::none(memory);
        for (index, region) in memory.iter().enumerate() {
            all.set(index, 0..pages_of(region) * PAGE);
        }
        all
    }

    /// Words of a region.
    pub(super) fn words(&mut self, region: usize) -> &mut [u64] {
        self.regions.get_mut(region).map(Vec::as_mut_slice).unwrap_or_default()
    }

    /// Adds what another set of the same memory has.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.regions.iter_mut().zip(&other.regions) {
            for (to, from) in to.iter_mut().zip(from) {
                *to |= from;
            }
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        for region in &mut self.regions {
            region.fill(0);
        }
    }

    /// How many pages it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.regions.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many bytes its pages have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count() * PAGE as u64
    }

    /// Whether it has the page with this byte of a region.
    #[must_use]
    pub fn has(&self, region: usize, offset: usize) -> bool {
        let page = offset / PAGE;
        let word = self.regions.get(region).and_then(|words| words.get(page / BITS));
        word.is_some_and(|word| word & (1 << (page % BITS)) != 0)
    }

    /// Adds the pages with these bytes of a region; what is past its end is ignored.
    pub fn set(&mut self, region: usize, bytes: Range<usize>) {
        self.change(region, bytes, |word, mask| *word |= mask);
    }

    /// Takes the pages with these bytes of a region out.
    pub fn unset(&mut self, region: usize, bytes: Range<usize>) {
        self.change(region, bytes, |word, mask| *word &= !mask);
    }

    fn change(&mut self, region: usize, bytes: Range<usize>, change: impl Fn(&mut u64, u64)) {
        let words = self.words(region);
        let mut page = bytes.start / PAGE;
        let end = bytes.end.div_ceil(PAGE);
        while page < end {
            let Some(word) = words.get_mut(page / BITS) else { return };
            let first = page % BITS;
            let count = (BITS - first).min(end - page);
            change(word, (u64::MAX >> (BITS - count)) << first);
            page += count;
        }
    }

    /// Runs of pages of a region, as ranges of bytes that are none longer than `most`.
    pub fn runs(&self, region: usize, most: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let words = self.regions.get(region).map(Vec::as_slice).unwrap_or_default();
        let is = |page: usize| words.get(page / BITS).is_some_and(|word| word & (1 << (page % BITS)) != 0);
        let pages = words.len() * BITS;
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < pages && !is(at) {
                // Whole words at once: most of memory is not in most sets.
                let skip = at.is_multiple_of(BITS) && words.get(at / BITS) == Some(&0);
                at += if skip { BITS } else { 1 };
            }
            let start = at;
            while at < pages && (at - start) * PAGE < most && is(at) {
                at += 1;
            }
            (start < at).then(|| start * PAGE..at * PAGE)
        })
    }

    /// The first page from a byte of a region on, or of a later region.
    #[must_use]
    pub fn next(&self, region: usize, offset: usize) -> Option<(usize, usize)> {
        let mut page = offset.div_ceil(PAGE);
        for (index, words) in self.regions.iter().enumerate().skip(region) {
            while let Some(word) = words.get(page / BITS) {
                let rest = word & (u64::MAX << (page % BITS));
                if rest != 0 {
                    let bit = usize::try_from(rest.trailing_zeros()).unwrap_or(0);
                    return Some((index, (page / BITS * BITS + bit) * PAGE));
                }
                page = (page / BITS + 1) * BITS;
            }
            page = 0;
        }
        None
    }
}

/// Pages of a region.
fn pages_of(region: &impl GuestMemoryRegion) -> usize {
    usize::try_from(region.len()).unwrap_or(0) / PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use vm_memory::GuestAddress;

    proptest! {
        #[test]
        fn it_is_a_set(changes in prop::collection::vec((any::<bool>(), 0usize..2, 0usize..200, 0usize..90), 0..20), most in 1usize..9) {
            let memory =
                Memory::from_ranges(&[(GuestAddress(0), 70 * PAGE), (GuestAddress(1 << 20), 130 * PAGE)]).unwrap();
            let mut pages = Pages::none(&memory);
            let mut model = BTreeSet::new();
            for (set, region, first, count) in changes {
                let end = (first + count).min([70, 130][region]);
                let range = first * PAGE..end * PAGE;
                for page in first..end {
                    if set { model.insert((region, page)); } else { model.remove(&(region, page)); }
                }
                if set { pages.set(region, range) } else { pages.unset(region, range) }
            }
            prop_assert_eq!(pages.count(), model.len() as u64);
            let listed: BTreeSet<_> = (0..2)
                .flat_map(|region| pages.runs(region, most * PAGE).map(move |run| (region, run)))
                .flat_map(|(region, run)| run.step_by(PAGE).map(move |at| (region, at / PAGE)))
                .collect();
            prop_assert_eq!(&listed, &model);
            let mut walked = BTreeSet::new();
            let mut at = Some((0, 0));
            while let Some((region, offset)) = at.and_then(|(region, offset)| pages.next(region, offset)) {
                walked.insert((region, offset / PAGE));
                prop_assert!(pages.has(region, offset + 1));
                at = Some((region, offset + PAGE));
            }
            prop_assert_eq!(&walked, &model);
            prop_assert_eq!(Pages::all(&memory).count(), 200);
        }
    }
}
