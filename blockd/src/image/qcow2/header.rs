//! The header, parsed once into checked numbers.

use super::{Bad, L1_LIMIT, MAGIC, Source, be32, be64};

/// Bytes of a version 2 header.
pub const SMALLEST_HEADER: usize = 72;
/// Bytes of a version 3 header up to its compression type.
const LONG_HEADER: usize = 112;
const EXTERNAL_DATA: u64 = 1 << 2;
const CORRUPT: u64 = 1 << 1;
const EXTENDED_L2: u64 = 1 << 4;
/// Dirty, corrupt, external data, compression type, extended L2.
const KNOWN: u64 = 0x1f;
/// Extension that names an external data file.
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
/// Most header extensions that are looked at.
const EXTENSIONS: usize = 64;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// A header whose numbers agree with each other and with the file's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Size of the disk in bytes, not 0 and within the limit.
    pub virtual_bytes: u64,
    /// Offset of the first-level table.
    pub l1_offset: u64,
    /// Entries of the first-level table that the disk needs; the file holds them all.
    pub l1_entries: u64,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Length of the file.
    pub file_bytes: u64,
}

impl Header {
    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a second-level table.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    /// What is wrong with it; a reference to another file comes first.
    pub fn read(source: &(impl Source + ?Sized), virtual_limit: u64) -> Result<Self, Bad> {
        let file_bytes = source.length()?;
        let mut bytes = [0u8; LONG_HEADER];
        let have = usize::try_from(file_bytes).unwrap_or(usize::MAX).min(LONG_HEADER);
        source.fill(&mut bytes[..have], 0)?;
        if bytes[..4] != MAGIC {
            return Err(Bad::Damaged("it does not begin with the qcow2 magic".into()));
        }
        if have < SMALLEST_HEADER {
            return Err(Bad::Truncated {
                what: "the header",
                end: SMALLEST_HEADER as u64,
                bytes: file_bytes,
            });
        }
        let version = be32(&bytes, 4);
        let features = match version {
            2 => 0,
            3 => be64(&bytes, 72),
            other => return Err(Bad::Unsupported(format!("version {other} of the format"))),
        };
        refuse_other_files(source, &bytes, version, features, file_bytes)?;
        if be32(&bytes, 32) != 0 {
            return Err(Bad::Unsupported("encryption".into()));
        }
        if features & CORRUPT != 0 {
            return Err(Bad::Damaged("it is marked corrupt".into()));
        }
        if features & EXTENDED_L2 != 0 {
            return Err(Bad::Unsupported("extended L2 entries (subclusters)".into()));
        }
        if features & !KNOWN != 0 {
            return Err(Bad::Unsupported(format!("unknown incompatible features {:#x}", features & !KNOWN)));
        }
        let compression = match (version, be32(&bytes, 100)) {
            (3, length) if length > 104 => match bytes[104] {
                0 => Compression::Deflate,
                1 => Compression::Zstd,
                other => return Err(Bad::Unsupported(format!("compression type {other}"))),
            },
            _ => Compression::Deflate,
        };
        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(Bad::Damaged(format!(
                "its cluster size is 2^{cluster_bits}; 2^9 to 2^21 is allowed"
            )));
        }
        let virtual_bytes = be64(&bytes, 24);
        if virtual_bytes == 0 {
            return Err(Bad::Damaged("the disk that it describes has no bytes".into()));
        }
        if virtual_bytes > virtual_limit {
            return Err(Bad::TooLarge { bytes: virtual_bytes, limit: virtual_limit });
        }
        let mut header = Self {
            version,
            cluster_bits,
            virtual_bytes,
            l1_offset: be64(&bytes, 40),
            l1_entries: 0,
            compression,
            file_bytes,
        };
        header.l1_entries = virtual_bytes.div_ceil(header.cluster() * header.l2_entries());
        header.check_l1(u64::from(be32(&bytes, 36)))?;
        Ok(header)
    }

    fn check_l1(&self, claimed: u64) -> Result<(), Bad> {
        if self.l1_entries > claimed {
            return Err(Bad::Damaged(format!(
                "its first-level table has {claimed} entries, the disk needs {}",
                self.l1_entries
            )));
        }
        if claimed.saturating_mul(8) > L1_LIMIT {
            return Err(Bad::Damaged(format!("its first-level table has {claimed} entries, too many")));
        }
        if !self.l1_offset.is_multiple_of(self.cluster()) || self.l1_offset == 0 {
            return Err(Bad::Damaged("its first-level table does not begin at a cluster".into()));
        }
        self.within("the first-level table", self.l1_offset, self.l1_entries.saturating_mul(8))
    }

    /// Refuses a range that the file does not have.
    pub(super) fn within(&self, what: &'static str, offset: u64, length: u64) -> Result<(), Bad> {
        let end = offset.saturating_add(length);
        if end > self.file_bytes { Err(Bad::Truncated { what, end, bytes: self.file_bytes }) } else { Ok(()) }
    }
}

fn refuse_other_files(
    source: &(impl Source + ?Sized),
    bytes: &[u8],
    version: u32,
    features: u64,
    file_bytes: u64,
) -> Result<(), Bad> {
    let (offset, length) = (be64(bytes, 8), be32(bytes, 16));
    if offset != 0 || length != 0 {
        return Err(Bad::OtherFile { what: "a backing file", name: name(source, offset, length) });
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(Bad::OtherFile { what: "an external data file", name: String::new() });
    }
    // Extensions follow the header; one that names a data file is refused even without the feature bit.
    let mut at = if version == 2 { SMALLEST_HEADER as u64 } else { u64::from(be32(bytes, 100)) };
    for _ in 0..EXTENSIONS {
        let mut head = [0u8; 8];
        if at.saturating_add(8) > file_bytes || source.fill(&mut head, at).is_err() {
            return Ok(());
        }
        let (kind, length) = (be32(&head, 0), be32(&head, 4));
        match kind {
            0 => return Ok(()),
            EXTENSION_DATA_FILE => {
                let name = name(source, at.saturating_add(8), length);
                return Err(Bad::OtherFile { what: "an external data file", name });
            }
            _ => at = at.saturating_add(8).saturating_add(u64::from(length).next_multiple_of(8)),
        }
    }
    Ok(())
}

/// A name in the image, cut and cleaned for a message.
fn name(source: &(impl Source + ?Sized), offset: u64, length: u32) -> String {
    let mut bytes = vec![0u8; usize::try_from(length.min(64)).unwrap_or(0)];
    if source.fill(&mut bytes, offset).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    text.chars().map(|each| if each.is_ascii_graphic() || each == ' ' { each } else { '?' }).collect()
}
