//! A partition table with one Linux partition, as the guest image has it.
//!
//! An MBR rather than GPT: the guest grows its partition at first boot by rewriting four bytes with the shell, no
//! partitioning tool in the image and no backup table at the old end of the disk. The cost is a limit of 2 TiB.

/// Bytes in a sector, here and in the table.
pub const SECTOR: u64 = 512;
/// First sector of the partition: 1 MiB in, the alignment everyone uses.
pub const FIRST_SECTOR: u32 = 2048;

/// Sector 0 of a disk of `disk_bytes` with one bootable Linux partition from [`FIRST_SECTOR`] to the end; `None` when the disk
/// is too small to hold one. Beyond 2 TiB the partition ends at the table's limit.
#[must_use]
pub fn one_partition(disk_bytes: u64, signature: u32) -> Option<[u8; 512]> {
    let sectors = u32::try_from(disk_bytes / SECTOR).unwrap_or(u32::MAX);
    let length = sectors.checked_sub(FIRST_SECTOR).filter(|length| *length > 0)?;
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&signature.to_le_bytes());
    let entry = &mut sector[446..462];
    entry[0] = 0x80; // active: some readers of boot entries look there first
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]); // no cylinder geometry: use the sector numbers
    entry[4] = 0x83; // Linux
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&FIRST_SECTOR.to_le_bytes());
    entry[12..16].copy_from_slice(&length.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Some(sector)
}

#[cfg(test)]
mod tests {
    use super::one_partition;

    #[test]
    fn fills_the_disk() {
        let sector = one_partition(112 << 20, 7).expect("large enough");
        assert_eq!(u32::from_le_bytes(sector[458..462].try_into().expect("4 bytes")), (112 << 11) - 2048);
        assert_eq!(&sector[510..], &[0x55, 0xaa]);
    }

    #[test]
    fn too_small_and_too_large() {
        assert!(one_partition(1 << 20, 0).is_none());
        assert!(one_partition(0, 0).is_none());
        let sector = one_partition(16 << 40, 0).expect("capped");
        assert_eq!(u32::from_le_bytes(sector[458..462].try_into().expect("4 bytes")), u32::MAX - 2048);
    }
}
