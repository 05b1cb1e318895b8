//! Walking the tables, checking them against the file, and writing the disk out as a sparse raw file.

use super::header::{Compression, Header};
use super::{Bad, Source, be64};
use crate::sys;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bytes written between two looks at the free space.
const STRIDE: u64 = 64 << 20;

/// Where a cluster's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// As it is, at this offset of the file.
    Plain {
        /// Offset in the file.
        host: u64,
    },
    /// Compressed, in at most `length` bytes from here.
    Compressed {
        /// Offset in the file.
        host: u64,
        /// Bytes up to the end of its last sector (cut to the file's end).
        length: u64,
    },
}

/// Calls `each` with (offset on the disk, bytes on the disk, where) for every cluster that holds data, in order.
///
/// # Errors
/// A table or cluster that lies outside the file or is not aligned, or what `each` returned.
pub fn clusters<S: Source + ?Sized>(
    source: &S,
    header: &Header,
    mut each: impl FnMut(u64, u64, Cluster) -> Result<(), Bad>,
) -> Result<(), Bad> {
    let cluster = header.cluster();
    let length = |bytes: u64| usize::try_from(bytes).map_err(|_| Bad::Damaged("a table is too large".into()));
    let mut l1 = vec![0u8; length(header.l1_entries.saturating_mul(8))?];
    source.fill(&mut l1, header.l1_offset)?;
    let mut l2 = vec![0u8; length(cluster)?];
    for (index, entry) in (0u64..).zip(l1.chunks_exact(8)) {
        let offset = be64(entry, 0) & OFFSET;
        if offset == 0 {
            continue;
        }
        if !offset.is_multiple_of(cluster) {
            return Err(Bad::Damaged(format!("second-level table {index} does not begin at a cluster")));
        }
        header.within("a second-level table", offset, cluster)?;
        source.fill(&mut l2, offset)?;
        let first = index * header.l2_entries() * cluster;
        for (slot, entry) in (0u64..).zip(l2.chunks_exact(8)) {
            let at = first + slot * cluster;
            if at >= header.virtual_bytes {
                break;
            }
            let bytes = cluster.min(header.virtual_bytes - at);
            if let Some(place) = locate(header, be64(entry, 0), bytes)? {
                each(at, bytes, place)?;
            }
        }
    }
    Ok(())
}

fn locate(header: &Header, entry: u64, bytes: u64) -> Result<Option<Cluster>, Bad> {
    if entry & COMPRESSED != 0 {
        let split = 62 - (header.cluster_bits - 8);
        let host = entry & ((1 << split) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> split;
        let end = (host & !511).saturating_add((sectors + 1) * 512);
        // The content ends within its last sector, and the file may end with the content.
        header.within("a compressed cluster", host, end.saturating_sub(511).saturating_sub(host).max(1))?;
        let end = end.min(header.file_bytes);
        return Ok(Some(Cluster::Compressed { host, length: end.saturating_sub(host) }));
    }
    let host = entry & OFFSET;
    if host == 0 || (header.version >= 3 && entry & ZERO != 0) {
        return Ok(None);
    }
    if !host.is_multiple_of(header.cluster()) {
        return Err(Bad::Damaged(format!("a data cluster at {host} is not aligned")));
    }
    header.within("a data cluster", host, bytes)?;
    Ok(Some(Cluster::Plain { host }))
}

/// Checks the whole image without reading its data.
///
/// # Errors
/// The first thing that is wrong.
pub fn check<S: Source + ?Sized>(source: &S, virtual_limit: u64) -> Result<Header, Bad> {
    let header = Header::read(source, virtual_limit)?;
    clusters(source, &header, |_, _, _| Ok(()))?;
    Ok(header)
}

/// Writes the disk to `to` as a sparse raw file. Plain clusters share their blocks with the image where the file system
/// can do that. `reserve` free bytes are left alone.
///
/// # Errors
/// The first thing that is wrong; what was written so far is of no use then.
pub fn to_raw(from: &File, to: &File, virtual_limit: u64, reserve: u64) -> Result<u64, Bad> {
    let header = Header::read(from, virtual_limit)?;
    to.set_len(header.virtual_bytes)?;
    let mut inflate = Inflate::new(&header)?;
    // A run of clusters that lie behind each other on both sides: (disk, file, length).
    let mut run: (u64, u64, u64) = (0, 0, 0);
    let mut written = 0u64;
    let flush = |run: (u64, u64, u64)| -> Result<(), Bad> {
        let (at, host, length) = run;
        if length > 0 {
            sys::copy_range(from, host, to, at, length)?;
        }
        Ok(())
    };
    clusters(from, &header, |at, bytes, place| {
        match place {
            Cluster::Plain { host } => {
                if run.0 + run.2 == at && run.1 + run.2 == host && run.2 > 0 {
                    run.2 += bytes;
                } else {
                    flush(run)?;
                    run = (at, host, bytes);
                }
            }
            Cluster::Compressed { host, length } => {
                let content = inflate.cluster(from, host, length)?;
                let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
                let content = content.get(..wanted).unwrap_or(content);
                if content.iter().any(|byte| *byte != 0) {
                    to.write_all_at(content, at)?;
                }
            }
        }
        written += bytes;
        if written >= STRIDE {
            written = 0;
            if sys::space(to)?.0 < reserve {
                return Err(Bad::Full);
            }
        }
        Ok(())
    })?;
    flush(run)?;
    Ok(header.virtual_bytes)
}

/// Decompresses clusters into one buffer.
struct Inflate {
    compression: Compression,
    packed: Vec<u8>,
    plain: Vec<u8>,
    state: Box<DecompressorOxide>,
}

impl Inflate {
    fn new(header: &Header) -> Result<Self, Bad> {
        let cluster =
            usize::try_from(header.cluster()).map_err(|_| Bad::Damaged("clusters too large".into()))?;
        Ok(Self {
            compression: header.compression,
            packed: Vec::new(),
            plain: vec![0; cluster],
            state: Box::default(),
        })
    }

    fn cluster(&mut self, from: &impl Source, host: u64, length: u64) -> Result<&[u8], Bad> {
        let broken = || Bad::Damaged(format!("the compressed cluster at {host} does not decompress"));
        // At most 2^13 sectors for clusters of 2 MiB, by the width of the field.
        self.packed.resize(usize::try_from(length).map_err(|_| broken())?, 0);
        from.fill(&mut self.packed, host)?;
        match self.compression {
            Compression::Deflate => {
                self.state.init();
                let (status, _, written) = decompress(
                    &mut self.state,
                    &self.packed,
                    &mut self.plain,
                    0,
                    inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
                );
                // The stream may end with the cluster full and its end mark unread.
                let whole = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
                if !whole || written != self.plain.len() {
                    return Err(broken());
                }
            }
            Compression::Zstd => {
                let mut stream =
                    ruzstd::decoding::StreamingDecoder::new(self.packed.as_slice()).map_err(|_| broken())?;
                stream.read_exact(&mut self.plain).map_err(|_| broken())?;
            }
        }
        Ok(&self.plain)
    }
}
