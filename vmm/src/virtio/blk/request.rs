//! The words of a disk request: what the guest wrote, checked once, and what it means.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{MAX_RANGE_SECTORS, MAX_RANGES};
use crate::backend::file::{Change, SECTOR};

/// Bytes of a request's header: type, reserved, sector.
pub const HEADER: usize = 16;

/// Bytes of one range of a discard or write-zeroes request: sector, number of sectors, flags.
pub const RANGE: usize = 16;

/// How a request ended: the value of its status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed, or made no sense.
    IoError = 1,
    /// Not known or not offered.
    Unsupported = 2,
}

/// What a request's type asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Read from this sector.
    Read(u64),
    /// Write from this sector.
    Write(u64),
    /// Make all writes durable.
    Flush,
    /// Tell the serial number.
    Identify,
    /// Forget ranges.
    Discard,
    /// Zero ranges.
    WriteZeroes,
}

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// How to change it.
    pub change: Change,
    /// Start.
    pub offset: u64,
    /// Length, not zero.
    pub len: u64,
}

fn le32(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn sector_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// Reads a header.
///
/// # Errors
/// [`Status::Unsupported`] for a type that is not known.
pub fn verb(header: &[u8; HEADER]) -> Result<Verb, Status> {
    let sector = sector_at(header, 8);
    match le32(header, 0) {
        VIRTIO_BLK_T_IN => Ok(Verb::Read(sector)),
        VIRTIO_BLK_T_OUT => Ok(Verb::Write(sector)),
        VIRTIO_BLK_T_FLUSH => Ok(Verb::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Verb::Identify),
        VIRTIO_BLK_T_DISCARD => Ok(Verb::Discard),
        VIRTIO_BLK_T_WRITE_ZEROES => Ok(Verb::WriteZeroes),
        _ => Err(Status::Unsupported),
    }
}

/// What requests have to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// The unit of all requests in bytes: a multiple of 512.
    pub block: u64,
}

/// Checks a span of sectors against the disk's size, and answers where it starts, in bytes.
///
/// # Errors
/// [`Status::IoError`] when it is not whole blocks or not all on the disk.
pub fn span(sector: u64, bytes: u64, disk: Geometry) -> Result<u64, Status> {
    let whole = |bytes: u64| bytes.is_multiple_of(disk.block.max(SECTOR));
    if !whole(bytes) || !sector.checked_mul(SECTOR).is_some_and(whole) {
        return Err(Status::IoError);
    }
    let end = sector.checked_add(bytes / SECTOR).filter(|end| *end <= disk.sectors).ok_or(Status::IoError)?;
    // The end fits the file, so the start in bytes does too; checked all the same.
    if end.checked_mul(SECTOR).is_none() {
        return Err(Status::IoError);
    }
    sector.checked_mul(SECTOR).ok_or(Status::IoError)
}

/// Checks how many ranges a payload of `bytes` holds.
///
/// # Errors
/// [`Status::IoError`] for none, a broken one, or more than [`MAX_RANGES`].
pub fn range_count(bytes: usize) -> Result<usize, Status> {
    let count = bytes / RANGE;
    let most = usize::try_from(MAX_RANGES).unwrap_or(usize::MAX);
    if bytes.is_multiple_of(RANGE) && (1..=most).contains(&count) { Ok(count) } else { Err(Status::IoError) }
}

const UNMAP: u32 = 1;

/// Reads one range; `None` when it is empty.
///
/// # Errors
/// [`Status::Unsupported`] for flags that the request must not have, [`Status::IoError`] for a range that is
/// too long or not on the disk.
pub fn range(bytes: &[u8; RANGE], zeroes: bool, disk: Geometry) -> Result<Option<Range>, Status> {
    let (sector, count, flags) = (sector_at(bytes, 0), le32(bytes, 8), le32(bytes, 12));
    let change = match (zeroes, flags) {
        (true, UNMAP) | (false, 0) => Change::Punch,
        (true, 0) => Change::Zero,
        (true | false, _) => return Err(Status::Unsupported),
    };
    if count > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    let len = u64::from(count) * SECTOR;
    let offset = span(sector, len, disk)?;
    Ok((len > 0).then_some(Range { change, offset, len }))
}

#[cfg(test)]
mod tests {
    use super::{Geometry, Range, Status, Verb, range, range_count, span, verb};
    use crate::backend::file::Change;
    use proptest::prelude::any;

    const fn disk(sectors: u64) -> Geometry {
        Geometry { sectors, block: 512 }
    }

    #[test]
    fn spans() {
        assert_eq!(span(0, 512, disk(1)), Ok(0));
        assert_eq!(span(7, 1024, disk(9)), Ok(3584));
        assert_eq!(span(9, 0, disk(9)), Ok(4608));
        let large = Geometry { sectors: 64, block: 4096 };
        assert_eq!(span(8, 8192, large), Ok(4096));
        for (sector, bytes) in [(8, 512), (1, 4096), (7, 8192), (64, 4096)] {
            assert_eq!(span(sector, bytes, large), Err(Status::IoError), "{sector} {bytes}");
        }
        for (sector, bytes, sectors) in [
            (0, 511, 9),
            (1, 512, 1),
            (u64::MAX, 512, u64::MAX),
            (0, 1024, 1),
            (u64::MAX / 512, 512, u64::MAX),
        ] {
            assert_eq!(
                span(sector, bytes, disk(sectors)),
                Err(Status::IoError),
                "{sector} {bytes} {sectors}"
            );
        }
    }

    #[test]
    fn headers() {
        let header = |kind: u32| {
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&0x1_0000_0002_u64.to_le_bytes());
            verb(&header)
        };
        assert_eq!(header(0), Ok(Verb::Read(0x1_0000_0002)));
        assert_eq!(header(13), Ok(Verb::WriteZeroes));
        assert_eq!(header(2), Err(Status::Unsupported));
    }

    #[test]
    fn ranges() {
        let bytes = |sector: u64, count: u32, flags: u32| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
            bytes[8..12].copy_from_slice(&count.to_le_bytes());
            bytes[12..].copy_from_slice(&flags.to_le_bytes());
            bytes
        };
        let punch = Range { change: Change::Punch, offset: 512, len: 1024 };
        assert_eq!(range(&bytes(1, 2, 0), false, disk(8)), Ok(Some(punch)));
        assert_eq!(range(&bytes(1, 2, 1), true, disk(8)), Ok(Some(punch)));
        assert_eq!(range(&bytes(1, 0, 0), true, disk(8)), Ok(None));
        assert_eq!(range(&bytes(1, 2, 1), false, disk(8)), Err(Status::Unsupported));
        assert_eq!(range(&bytes(1, 2, 2), true, disk(8)), Err(Status::Unsupported));
        assert_eq!(range(&bytes(7, 2, 0), false, disk(8)), Err(Status::IoError));
        assert_eq!(range(&bytes(0, u32::MAX, 0), false, disk(u64::MAX)), Err(Status::IoError));
        assert_eq!((range_count(16), range_count(256)), (Ok(1), Ok(16)));
        assert_eq!(
            (range_count(0), range_count(17), range_count(272)),
            (Err(Status::IoError), Err(Status::IoError), Err(Status::IoError))
        );
    }

    proptest::proptest! {
        #[test]
        fn a_range_that_passes_is_on_the_disk(bytes in any::<[u8; 16]>(), zeroes in any::<bool>(), sectors in 0..1_u64 << 40, large in any::<bool>()) {
            let disk = Geometry { sectors, block: if large { 4096 } else { 512 } };
            if let Ok(Some(range)) = range(&bytes, zeroes, disk) {
                proptest::prop_assert!(range.offset.is_multiple_of(disk.block) && range.len.is_multiple_of(disk.block));
                proptest::prop_assert!(range.len > 0);
                proptest::prop_assert!(range.offset.checked_add(range.len).is_some_and(|end| end <= sectors * 512));
            }
        }
    }
}
