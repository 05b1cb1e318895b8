//! Partition tables: GPT (primary, or the backup when that is damaged), MBR with logical partitions, or none
//! at all.

use super::disk::{Window, le32, le64};

/// Most partitions that are looked at.
const MAX_PARTITIONS: usize = 128;

/// Sizes of a logical block that disks come with.
const BLOCK_SIZES: [u64; 2] = [512, 4096];

/// One partition.
#[derive(Clone)]
pub struct Partition {
    /// Its number as Linux counts; 0 is the whole disk without a partition table.
    pub number: u32,
    /// Its bytes.
    pub window: Window,
}

/// The partitions of a disk in table order. Without a table, the whole disk is the only one.
#[must_use]
pub fn partitions(disk: &Window) -> Vec<Partition> {
    let found = gpt(disk).or_else(|| mbr(disk)).unwrap_or_default();
    if found.is_empty() { vec![Partition { number: 0, window: disk.clone() }] } else { found }
}

fn gpt(disk: &Window) -> Option<Vec<Partition>> {
    for block in BLOCK_SIZES {
        let backup = (disk.size() / block).checked_sub(1)?.checked_mul(block)?;
        for header_at in [block, backup] {
            if let Some(found) = gpt_at(disk, block, header_at) {
                return Some(found);
            }
        }
    }
    None
}

/// Reads the table that the GPT header at `header_at` describes; `None` when that is no sound header.
fn gpt_at(disk: &Window, block: u64, header_at: u64) -> Option<Vec<Partition>> {
    let mut header: [u8; 92] = disk.bytes(header_at).ok()?;
    if !header.starts_with(b"EFI PART") || le32(&header, 12) != 92 {
        return None;
    }
    let sum = le32(&header, 16);
    header.get_mut(16..20)?.fill(0);
    if crc32(&header) != sum {
        return None;
    }
    let entries_at = le64(&header, 72).checked_mul(block)?;
    let count = u64::from(le32(&header, 80)).min(MAX_PARTITIONS as u64);
    let entry_size = u64::from(le32(&header, 84));
    if !(128..=4096).contains(&entry_size) {
        return None;
    }
    let mut found = Vec::new();
    for index in 0..count {
        let at = entries_at.checked_add(index.checked_mul(entry_size)?)?;
        let Ok(entry) = disk.bytes::<128>(at) else { break };
        let unused = entry.iter().take(16).all(|byte| *byte == 0);
        let (first, last) = (le64(&entry, 32), le64(&entry, 40));
        if unused || first == 0 || last < first {
            continue;
        }
        let part = first.checked_mul(block).and_then(|start| {
            let blocks = last.checked_sub(first)?.checked_add(1)?;
            disk.part(start, blocks.checked_mul(block)?)
        });
        let number = u32::try_from(index).ok().and_then(|index| index.checked_add(1));
        if let (Some(window), Some(number)) = (part, number) {
            found.push(Partition { number, window });
        }
    }
    Some(found)
}

/// CRC-32 (IEEE 802.3, reflected), as GPT headers carry it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

const SECTOR: u64 = 512;

/// One MBR slot: type, first sector, sectors. `None` when unused or senseless.
fn mbr_slot(sector: &[u8; 512], slot: usize) -> Option<(u8, u64, u64)> {
    let at = slot.checked_mul(16)?.checked_add(446)?;
    // A boot sector of a bare file system also ends in 55 aa; there, the status byte is code, not 00 or 80.
    if !matches!(sector.get(at)?, 0 | 0x80) {
        return None;
    }
    let kind = *sector.get(at.checked_add(4)?)?;
    let (first, sectors) = (le32(sector, at.checked_add(8)?), le32(sector, at.checked_add(12)?));
    (kind != 0 && first != 0 && sectors != 0).then_some((kind, u64::from(first), u64::from(sectors)))
}

fn mbr(disk: &Window) -> Option<Vec<Partition>> {
    let sector: [u8; 512] = disk.bytes(0).ok()?;
    if sector.get(510..) != Some(&[0x55, 0xaa]) || super::probe::is_fat_boot_sector(&sector) {
        return None;
    }
    let mut found = Vec::new();
    for slot in 0..4 {
        let Some((kind, first, sectors)) = mbr_slot(&sector, slot) else { continue };
        if matches!(kind, 0x05 | 0x0f | 0x85) {
            logical(disk, first, &mut found);
        } else if let Some(window) = disk.part(first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?) {
            found.push(Partition { number: u32::try_from(slot).ok()?.checked_add(1)?, window });
        }
    }
    found.sort_by_key(|partition| partition.number);
    Some(found)
}

/// Follows the chain of extended boot records; bounded, as a hostile chain may be a circle.
fn logical(disk: &Window, base: u64, found: &mut Vec<Partition>) {
    let mut record = base;
    for number in 5..64_u32 {
        let Some(Ok(sector)) = record.checked_mul(SECTOR).map(|at| disk.bytes::<512>(at)) else { return };
        if sector.get(510..) != Some(&[0x55, 0xaa]) {
            return;
        }
        if let Some((_, first, sectors)) = mbr_slot(&sector, 0) {
            let start = record.checked_add(first).and_then(|first| first.checked_mul(SECTOR));
            let window = start.and_then(|start| disk.part(start, sectors.checked_mul(SECTOR)?));
            if let Some(window) = window {
                found.push(Partition { number, window });
            }
        }
        match mbr_slot(&sector, 1).and_then(|(_, next, _)| base.checked_add(next)) {
            Some(next) if next > record => record = next,
            Some(_) | None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{crc32, partitions};
    use crate::boot_entries::disk::Window;
    use proptest::prelude::{any, prop};
    use std::sync::Arc;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn an_empty_disk_is_one_bare_partition() {
        let disk = Window::whole(Arc::new(vec![0; 1 << 20]));
        let found = partitions(&disk);
        assert_eq!((found.len(), found[0].number, found[0].window.size()), (1, 0, 1 << 20));
    }

    #[test]
    fn a_circle_of_extended_records_ends() {
        let mut disk = vec![0_u8; 64 << 10];
        let mut slot = |sector: usize, slot: usize, kind: u8, first: u32, count: u32| {
            let at = sector * 512 + 446 + slot * 16;
            disk[at + 4] = kind;
            disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
            disk[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
        };
        slot(0, 0, 0x05, 8, 100);
        slot(8, 0, 0x83, 2, 4);
        slot(8, 1, 0x05, 8, 4);
        slot(16, 0, 0x83, 2, 4);
        slot(16, 1, 0x05, 8, 4);
        let found = partitions(&Window::whole(Arc::new(disk)));
        let numbers: Vec<u32> = found.iter().map(|partition| partition.number).collect();
        assert_eq!(numbers, [5, 6]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_windows_inside_the_disk(mut bytes in prop::collection::vec(any::<u8>(), 512..4096), magic in any::<bool>()) {
            if magic {
                bytes[510] = 0x55;
                bytes[511] = 0xaa;
                bytes[446] = 0;
                bytes[462] = 0x80;
            }
            let size = bytes.len() as u64;
            for partition in partitions(&Window::whole(Arc::new(bytes))) {
                proptest::prop_assert!(partition.window.size() <= size);
            }
        }
    }
}
