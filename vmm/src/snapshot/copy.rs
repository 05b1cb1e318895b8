//! Copying guest memory to where it is kept, while the machine runs or not.

use super::memory::PAGE;
use super::pages::Pages;
use crate::virtio::Memory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Bytes that are looked at at a time.
const CHUNK: usize = 256 << 10;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// A place in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Region, by its number.
    pub region: usize,
    /// Bytes from the region's start.
    pub offset: usize,
    /// Bytes from the start of all RAM, region after region.
    pub at: u64,
}

/// Where memory goes.
pub trait Sink {
    /// Why not.
    type Error;

    /// Takes whole pages.
    ///
    /// # Errors
    /// [`Sink::Error`]
    fn data(&mut self, place: Place, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Takes whole pages of zeros.
    ///
    /// # Errors
    /// [`Sink::Error`]
    fn zeros(&mut self, place: Place, len: usize) -> Result<(), Self::Error>;
}

/// Copies pages. `pace` hears after each piece of the bytes that were looked at and of those that were not zero, and
/// may wait or break off. What is written
/// to a page meanwhile may or may not be in the copy, so a page must be copied again when a log that began before has it.
///
/// # Errors
/// What sink and `pace` say.
pub fn copy<S: Sink>(
    memory: &Memory,
    pages: &Pages,
    to: &mut S,
    mut pace: impl FnMut(u64, u64) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    let mut buffer = vec![0; CHUNK];
    let mut before = 0;
    for (index, region) in memory.iter().enumerate() {
        for run in pages.runs(index, CHUNK) {
            let Some(bytes) = buffer.get_mut(..run.len()) else { continue };
            let at = MemoryRegionAddress(run.start as u64);
            // Bits past the end of a region are never set.
            let Ok(slice) = region.get_slice(at, run.len()) else { continue };
            slice.copy_to(bytes);
            let mut went = 0;
            for (piece, zero) in pieces(bytes) {
                let offset = run.start + piece.start;
                let place = Place { region: index, offset, at: before + offset as u64 };
                if zero {
                    to.zeros(place, piece.len())?;
                } else {
                    went += piece.len() as u64;
                    to.data(place, bytes.get(piece).unwrap_or_default())?;
                }
            }
            pace(run.len() as u64, went)?;
        }
        before += region.len();
    }
    Ok(())
}

/// Runs of pages that are all zero, or all not.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = (std::ops::Range<usize>, bool)> {
    let zero = |at: usize| bytes.get(at..at + PAGE).is_some_and(|page| page == ZEROS);
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let kind = zero(start);
        while at < bytes.len() && zero(at) == kind {
            at = (at + PAGE).min(bytes.len());
        }
        (start < at).then_some((start..at, kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_all_of_it(pages in prop::collection::vec(0u8..3, 0..40)) {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| {
                let mut bytes = vec![0; PAGE];
                if *page > 0 { bytes[usize::from(*page) * 1000] = *page; }
                bytes
            }).collect();
            let mut at = 0;
            for (piece, zero) in pieces(&bytes) {
                prop_assert_eq!(piece.start, at);
                at = piece.end;
                for page in piece.step_by(PAGE) {
                    prop_assert_eq!(pages[page / PAGE] == 0, zero);
                }
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
