//! Which file system or container a partition holds, by its magic numbers.

use super::disk::{Window, le16, le32};

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4: can be read.
    Ext,
    /// XFS: can be read.
    Xfs,
    /// FAT12, 16 or 32: can be read.
    Fat,
    /// Recognised, but cannot be read here; the name is for people.
    Other(&'static str),
    /// Swap space, BIOS boot code and the like: never holds a kernel.
    Nothing,
    /// Not recognised.
    Unknown,
}

/// Magic bytes at an offset, and the name of what they begin.
const OTHERS: [(u64, &[u8], &str); 11] = [
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (512, b"LABELONE", "LVM"),
    (0, b"hsqs", "squashfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0x8001, b"CD001", "ISO 9660"),
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6], "bcachefs"),
    (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "Linux RAID"),
];

/// Tells what `window` holds.
#[must_use]
pub fn probe(window: &Window) -> Kind {
    let has = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        window.read(at, &mut bytes).is_ok() && bytes == magic
    };
    if has(4086, b"SWAPSPACE2") {
        return Kind::Nothing;
    }
    // Containers first: what they wrap may show through at a later offset.
    if let Some((_, _, name)) = OTHERS.iter().find(|(at, magic, _)| has(*at, magic)) {
        return Kind::Other(name);
    }
    if has(0, b"XFSB") {
        return Kind::Xfs;
    }
    if has(1024 + 56, &[0x53, 0xef]) {
        return Kind::Ext;
    }
    match window.bytes::<512>(0) {
        Ok(sector) if is_fat_boot_sector(&sector) => Kind::Fat,
        Ok(_) | Err(_) => Kind::Unknown,
    }
}

/// Whether a sector begins a FAT file system: jump, sane geometry and signature.
#[must_use]
pub fn is_fat_boot_sector(sector: &[u8; 512]) -> bool {
    let jump = matches!(sector, [0xeb, _, 0x90, ..] | [0xe9, ..]);
    let per_cluster = sector[13];
    jump && matches!(le16(sector, 11), 512 | 1024 | 2048 | 4096)
        && per_cluster.is_power_of_two()
        && le16(sector, 14) != 0
        && matches!(sector[16], 1 | 2)
        && (le16(sector, 19) != 0 || le32(sector, 32) != 0)
        && sector[510..] == [0x55, 0xaa]
}
