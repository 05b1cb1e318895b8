//! Which blocks of the memory that can be plugged in are.

use crate::snapshot::dirty::DirtyMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use vm_memory::GuestAddress;
use vm_memory::mmap::GuestRegionMmap;

const BITS: usize = 64;

/// A bit for each block. One thread changes them (the device's worker); everybody may look.
#[derive(Debug)]
pub struct Plugged {
    block: usize,
    blocks: usize,
    count: AtomicUsize,
    words: Box<[AtomicU64]>,
}

impl Plugged {
    /// Nothing of an area of so many bytes, in blocks of so many bytes.
    #[must_use]
    pub fn none(length: usize, block: usize) -> Self {
        let blocks = length / block.max(1);
        let words = (0..blocks.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect();
        Self { block, blocks, count: AtomicUsize::new(0), words }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// How many blocks there are, plugged or not.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that are plugged.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.count.load(Ordering::Acquire) as u64).saturating_mul(self.block as u64)
    }

    fn is(&self, block: usize) -> bool {
        self.words.get(block / BITS).is_some_and(|word| word.load(Ordering::Acquire) & bit(block) != 0)
    }

    /// How many of these blocks are plugged.
    #[must_use]
    pub fn of(&self, blocks: Range<usize>) -> usize {
        blocks.filter(|block| self.is(*block)).count()
    }

    /// Plugs blocks in or out. What is beyond the last block does not exist.
    pub fn set(&self, blocks: Range<usize>, on: bool) {
        for block in blocks.start..blocks.end.min(self.blocks) {
            let Some(word) = self.words.get(block / BITS) else { return };
            let was = if on {
                word.fetch_or(bit(block), Ordering::AcqRel)
            } else {
                word.fetch_and(!bit(block), Ordering::AcqRel)
            };
            match (was & bit(block) != 0, on) {
                (false, true) => {
                    self.count.fetch_add(1, Ordering::AcqRel);
                }
                (true, false) => {
                    self.count.fetch_sub(1, Ordering::AcqRel);
                }
                (true, true) | (false, false) => {}
            }
        }
    }

    /// Runs of plugged blocks, upwards.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.blocks && !self.is(at) {
                let none = at.is_multiple_of(BITS)
                    && self.words.get(at / BITS).is_some_and(|word| word.load(Ordering::Acquire) == 0);
                at += if none { BITS } else { 1 };
            }
            let start = at;
            while at < self.blocks && self.is(at) {
                at += 1;
            }
            (start < at).then_some(start..at)
        })
    }

    /// Runs of plugged bytes, upwards.
    pub fn byte_runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.runs().map(|run| run.start * self.block..run.end * self.block)
    }
}

fn bit(block: usize) -> u64 {
    1 << (block % BITS)
}

/// Memory of a machine that can be plugged in and out.
#[derive(Debug, Clone)]
pub struct Pluggable {
    /// Where it starts.
    pub start: GuestAddress,
    /// Its size in bytes.
    pub length: usize,
    /// What of it is plugged.
    pub plugged: Arc<Plugged>,
}

/// What of a region is plugged; `None` for one that is just there.
#[must_use]
pub fn plugged(region: &GuestRegionMmap<DirtyMap>) -> Option<&Arc<Plugged>> {
    region.bitmap().plugged()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_counts_as_a_list_would(changes in prop::collection::vec((0usize..200, 0usize..90, any::<bool>()), 0..30)) {
            let plugged = Plugged::none(150 * 4096 + 5, 4096);
            prop_assert_eq!(plugged.blocks(), 150);
            let mut list = [false; 150];
            for (first, count, on) in changes {
                plugged.set(first..first + count, on);
                list.iter_mut().skip(first).take(count).for_each(|is| *is = on);
                let expected = list.iter().filter(|is| **is).count();
                prop_assert_eq!(plugged.bytes(), expected as u64 * 4096);
                prop_assert_eq!(plugged.of(0..1000), expected);
                let mut found = [false; 150];
                for run in plugged.runs() {
                    prop_assert!(run.start == 0 || !found[run.start - 1]);
                    found[run].fill(true);
                }
                prop_assert_eq!(found, list);
            }
        }
    }
}
