//! A reader of XFS, version 4 and 5: directories, symbolic links and files.
//!
//! Our own, because no crate reads it. Everything in it is the tenant's: each walk is bounded (depth of trees, number of extents,
//! blocks and names), and each place is checked by the window it is read from. The log is not replayed: what a killed guest had not
//! written back is read as it was before.

use super::disk::Window;
use super::fs::{BootFs, FsError, MAX_NAMES, OpenFile};
use std::io::{self, Read};

/// Most extents of one file: a fully scattered initial RAM disk of 512 MiB.
const MOST_EXTENTS: usize = 1 << 17;
/// Most blocks of one extent tree.
const MOST_BLOCKS: usize = 4096;
/// Most bytes of one directory.
const MOST_DIRECTORY: u64 = 16 << 20;
/// Longest target of a symbolic link.
const MOST_LINK: u64 = 1024;
/// Most symbolic links on one path.
const MOST_LINKS: usize = 16;
/// Deepest path.
const MOST_DEPTH: usize = 32;

/// Incompatible features of version 5 that change nothing here, or are handled: file types in directories, sparse inode chunks, the
/// metadata's own UUID, large timestamps, "needs repair", large extent counters, exchanged ranges, parent pointers.
const KNOWN_FEATURES: u32 = 0xff;
/// Version 4: file types in directories.
const FILE_TYPES_4: u32 = 0x200;
const FILE_TYPES_5: u32 = 1;
/// Inode flag (second set): extent counters are large.
const LARGE_COUNTERS: u64 = 1 << 4;
/// Inode flag: data is on the realtime device.
const REALTIME: u16 = 1;

const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const LINK: u16 = 0o120_000;
const KIND: u16 = 0o170_000;

fn be16(bytes: &[u8], at: usize) -> u16 {
    let part = at.checked_add(2).and_then(|end| bytes.get(at..end));
    part.and_then(|part| part.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let part = at.checked_add(4).and_then(|end| bytes.get(at..end));
    part.and_then(|part| part.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let part = at.checked_add(8).and_then(|end| bytes.get(at..end));
    part.and_then(|part| part.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn broken(why: &str) -> FsError {
    FsError::Broken(why.to_owned())
}

fn unread(error: &io::Error) -> FsError {
    FsError::Broken(format!("cannot read it: {error}"))
}

/// An XFS file system.
pub struct Xfs {
    window: Window,
    version: u16,
    block: u64,
    group_blocks: u64,
    group_bits: u32,
    inode_size: usize,
    /// Bits of an inode number that are its place in a block.
    inode_bits: u32,
    directory_block: usize,
    root: u64,
    file_types: bool,
}

/// A run of blocks of a file, in blocks of the file system.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// First block of the file.
    at: u64,
    /// First block of the file system.
    block: u64,
    count: u64,
    /// Allocated and never written: reads as zeros.
    unwritten: bool,
}

struct Inode {
    kind: u16,
    size: u64,
    format: u8,
    extents: u64,
    fork: Vec<u8>,
}

impl Xfs {
    /// Opens the file system.
    ///
    /// # Errors
    /// When its superblock contradicts itself, or it has a feature that cannot be read.
    pub fn new(window: Window) -> Result<Self, FsError> {
        let sector: [u8; 512] = window.bytes(0).map_err(|error| unread(&error))?;
        let version = be16(&sector, 100) & 15;
        let unknown = be32(&sector, 216) & !KNOWN_FEATURES;
        if !matches!(version, 4 | 5) || (version == 5 && unknown != 0) {
            return Err(FsError::Broken(format!(
                "XFS version {version} with features {unknown:#x} is not known"
            )));
        }
        Self::parse(window, &sector, version).ok_or_else(|| broken("its superblock contradicts itself"))
    }

    fn parse(window: Window, sector: &[u8; 512], version: u16) -> Option<Self> {
        let block = u64::from(be32(sector, 4));
        let (group_blocks, inode_size) = (u64::from(be32(sector, 84)), u64::from(be16(sector, 104)));
        let (block_bits, inode_bits, group_bits) = (sector[120], sector[123], sector[124]);
        let directory_bits = u32::from(sector[192]);
        let sane = (512..=65536).contains(&block)
            && 1u64.checked_shl(block_bits.into()) == Some(block)
            && (256..=4096).contains(&inode_size)
            && 1u64.checked_shl(inode_bits.into())?.checked_mul(inode_size)? == block
            && (1..=31).contains(&group_bits)
            && group_blocks > 0
            && group_blocks <= 1 << group_bits
            && directory_bits <= 7;
        let directory_block = block.checked_shl(directory_bits).filter(|size| sane && *size <= 65536)?;
        let file_types = match version {
            4 => be32(sector, 200) & FILE_TYPES_4 != 0,
            _ => be32(sector, 216) & FILE_TYPES_5 != 0,
        };
        Some(Self {
            window,
            version,
            block,
            group_blocks,
            group_bits: group_bits.into(),
            inode_size: usize::try_from(inode_size).ok()?,
            inode_bits: inode_bits.into(),
            directory_block: usize::try_from(directory_block).ok()?,
            root: be64(sector, 56),
            file_types,
        })
    }

    /// Where a block of the file system is, in bytes.
    fn place(&self, block: u64) -> Result<u64, FsError> {
        let (group, within) = (block >> self.group_bits, block & ((1 << self.group_bits) - 1));
        let place = group.checked_mul(self.group_blocks).and_then(|first| first.checked_add(within));
        let place = place.and_then(|block| block.checked_mul(self.block));
        place.filter(|_| within < self.group_blocks).ok_or_else(|| broken("a block is outside of its group"))
    }

    fn inode(&self, number: u64) -> Result<Inode, FsError> {
        let index = number & ((1 << self.inode_bits) - 1);
        let at = self.place(number >> self.inode_bits)?;
        let at = at
            .checked_add(index.saturating_mul(self.inode_size as u64))
            .ok_or_else(|| broken("no such inode"))?;
        let mut raw = vec![0; self.inode_size];
        self.window.read(at, &mut raw).map_err(|error| unread(&error))?;
        if raw.get(..2) != Some(b"IN") {
            return Err(broken("an inode is not where it should be"));
        }
        let (start, flags2) = if raw[4] >= 3 { (176, be64(&raw, 120)) } else { (100, 0) };
        if be16(&raw, 90) & REALTIME != 0 {
            return Err(broken("a file is on the realtime device"));
        }
        let extents = if flags2 & LARGE_COUNTERS == 0 { u64::from(be32(&raw, 76)) } else { be64(&raw, 24) };
        // The attributes' fork begins after so many times 8 bytes, if there is one.
        let end = match usize::from(raw[82]) {
            0 => raw.len(),
            offset => (start + offset * 8).min(raw.len()),
        };
        let fork = raw.get(start..end).unwrap_or_default().to_vec();
        Ok(Inode { kind: be16(&raw, 2) & KIND, size: be64(&raw, 56), format: raw[5], extents, fork })
    }

    /// The extents of an inode, in the order of the file.
    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, FsError> {
        let mut extents = Vec::new();
        match inode.format {
            2 => {
                let count = usize::try_from(inode.extents).unwrap_or(usize::MAX);
                push_extents(&inode.fork, count, &mut extents)?;
            }
            3 => {
                let (level, count) = (be16(&inode.fork, 0), usize::from(be16(&inode.fork, 2)));
                let most = inode.fork.len().saturating_sub(4) / 16;
                if level == 0 || count > most {
                    return Err(broken("an extent tree's root contradicts itself"));
                }
                let mut left = MOST_BLOCKS;
                for index in 0..count {
                    let block = be64(&inode.fork, 4 + most * 8 + index * 8);
                    self.walk(block, level - 1, &mut left, &mut extents)?;
                }
            }
            _ => return Err(broken("a file has no extents")),
        }
        extents.sort_unstable_by_key(|extent| extent.at);
        Ok(extents)
    }

    /// Collects a block of an extent tree and what is below. Levels fall, and blocks are counted, so a circle ends.
    fn walk(&self, block: u64, level: u16, left: &mut usize, into: &mut Vec<Extent>) -> Result<(), FsError> {
        *left = left.checked_sub(1).ok_or_else(|| broken("an extent tree has too many blocks"))?;
        let mut raw = vec![0; usize::try_from(self.block).unwrap_or(4096)];
        self.window.read(self.place(block)?, &mut raw).map_err(|error| unread(&error))?;
        let header = match raw.get(..4) {
            Some(b"BMAP") => 24,
            Some(b"BMA3") => 72,
            _ => return Err(broken("a block of an extent tree is not one")),
        };
        let (own, count) = (be16(&raw, 4), usize::from(be16(&raw, 6)));
        let most = (raw.len() - header) / 16;
        if own != level || count > most {
            return Err(broken("a block of an extent tree contradicts itself"));
        }
        if level == 0 {
            return push_extents(raw.get(header..).unwrap_or_default(), count, into);
        }
        for index in 0..count {
            self.walk(be64(&raw, header + most * 8 + index * 8), level - 1, left, into)?;
        }
        Ok(())
    }

    fn content(&self, inode: &Inode) -> Result<Content<'_>, FsError> {
        Ok(Content { fs: self, extents: self.extents(inode)?, size: inode.size, at: 0, next: 0 })
    }

    /// Calls `each` for the names in a directory until it answers true.
    fn names(&self, inode: &Inode, each: &mut dyn FnMut(&[u8], u64) -> bool) -> Result<(), FsError> {
        if inode.kind != DIRECTORY {
            return Err(FsError::Missing);
        }
        if inode.format == 1 {
            self.short_names(&inode.fork, each);
            return Ok(());
        }
        let size = inode.size.min(MOST_DIRECTORY);
        let mut content = self.content(inode)?;
        content.size = size;
        let mut block = vec![0; self.directory_block];
        for _ in 0..size / (self.directory_block as u64) {
            content.read_exact(&mut block).map_err(|error| unread(&error))?;
            if self.block_names(&block, each)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Names that lie in the inode itself.
    fn short_names(&self, fork: &[u8], each: &mut dyn FnMut(&[u8], u64) -> bool) {
        let (count, wide) = (fork.first().copied().unwrap_or(0), fork.get(1).is_some_and(|wide| *wide > 0));
        let width = if wide { 8 } else { 4 };
        let mut at = 2 + width;
        for _ in 0..count {
            let Some(length) = fork.get(at).map(|length| usize::from(*length)) else { return };
            let name_at = at + 3;
            let number_at = name_at + length + usize::from(self.file_types);
            let Some(name) = fork.get(name_at..name_at + length) else { return };
            if fork.len() < number_at + width {
                return;
            }
            let number = if wide { be64(fork, number_at) } else { u64::from(be32(fork, number_at)) };
            if each(name, number) {
                return;
            }
            at = number_at + width;
        }
    }

    /// Names in a block of a directory. Answers whether `each` is content.
    fn block_names(&self, block: &[u8], each: &mut dyn FnMut(&[u8], u64) -> bool) -> Result<bool, FsError> {
        let header = if self.version == 5 { 64 } else { 16 };
        let end = match block.get(..4) {
            Some(b"XD2D" | b"XDD3") => block.len(),
            // A directory of one block: its index and its length are at the end.
            Some(b"XD2B" | b"XDB3") => {
                let count = usize::try_from(be32(block, block.len() - 8)).unwrap_or(usize::MAX);
                block.len().saturating_sub(count.saturating_mul(8).saturating_add(8))
            }
            // A hole: the directory has shrunk here.
            Some([0, 0, 0, 0]) => return Ok(false),
            _ => return Err(broken("a block of a directory is not one")),
        };
        let mut at = header;
        // The shortest entry takes 16 bytes.
        while at + 16 <= end {
            if be16(block, at) == 0xffff {
                let length = usize::from(be16(block, at + 2));
                if length < 8 || !length.is_multiple_of(8) {
                    return Err(broken("a free place in a directory contradicts itself"));
                }
                at += length;
                continue;
            }
            let length = usize::from(block[at + 8]);
            let Some(name) = block.get(at + 9..at + 9 + length).filter(|_| at + 9 + length <= end) else {
                return Err(broken("a name in a directory is cut"));
            };
            if each(name, be64(block, at)) {
                return Ok(true);
            }
            at += (8 + 1 + length + usize::from(self.file_types) + 2).next_multiple_of(8);
        }
        Ok(false)
    }

    fn target(&self, inode: &Inode) -> Result<String, FsError> {
        let size = usize::try_from(inode.size.min(MOST_LINK)).unwrap_or(0);
        let mut bytes = Vec::new();
        if inode.format == 1 {
            bytes.extend_from_slice(inode.fork.get(..size).ok_or_else(|| broken("a symbolic link is cut"))?);
        } else {
            // Blocks of version 5 begin with a header of their own.
            let skip: usize = if self.version == 5 { 56 } else { 0 };
            let mut content = self.content(inode)?;
            let block = usize::try_from(self.block).unwrap_or(4096);
            content.size =
                self.block.saturating_mul(MOST_LINK.div_ceil(self.block - skip as u64).saturating_add(1));
            let mut raw = vec![0; block];
            while bytes.len() < size {
                content.read_exact(&mut raw).map_err(|error| unread(&error))?;
                let part = raw.get(skip..).unwrap_or_default();
                bytes.extend_from_slice(part.get(..part.len().min(size - bytes.len())).unwrap_or_default());
            }
        }
        String::from_utf8(bytes).map_err(|_| FsError::Missing)
    }

    /// The inode at the end of a path, symbolic links followed.
    fn find(&self, path: &str) -> Result<Inode, FsError> {
        // What is still to be walked, last first.
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut above = Vec::new();
        let mut here = self.root;
        let mut inode = self.inode(here)?;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => here = above.pop().unwrap_or(self.root),
                name => {
                    let mut found = None;
                    self.names(&inode, &mut |own, number| {
                        let same = own == name.as_bytes();
                        if same {
                            found = Some(number);
                        }
                        same
                    })?;
                    let number = found.ok_or(FsError::Missing)?;
                    let next = self.inode(number)?;
                    if next.kind == LINK {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(broken("too many symbolic links"));
                        }
                        let target = self.target(&next)?;
                        if target.starts_with('/') {
                            above.clear();
                            here = self.root;
                        }
                        rest.extend(target.split('/').rev().map(str::to_owned));
                    } else {
                        if above.len() >= MOST_DEPTH {
                            return Err(FsError::Missing);
                        }
                        above.push(here);
                        here = number;
                    }
                }
            }
            inode = self.inode(here)?;
        }
        Ok(inode)
    }
}

/// Reads `count` extents from packed records of 16 bytes.
fn push_extents(raw: &[u8], count: usize, into: &mut Vec<Extent>) -> Result<(), FsError> {
    let records = raw.chunks_exact(16).take(count);
    if records.len() < count || into.len().saturating_add(count) > MOST_EXTENTS {
        return Err(broken("a file has more extents than it can have"));
    }
    for record in records {
        // A flag, 54 bits of place in the file, 52 bits of block, 21 bits of length.
        let (high, low) = (be64(record, 0), be64(record, 8));
        into.push(Extent {
            at: (high >> 9) & ((1 << 54) - 1),
            block: (high & 0x1ff) << 43 | low >> 21,
            count: low & ((1 << 21) - 1),
            unwritten: high >> 63 != 0,
        });
    }
    Ok(())
}

/// A file's content.
struct Content<'a> {
    fs: &'a Xfs,
    extents: Vec<Extent>,
    size: u64,
    at: u64,
    /// The extent that `at` may be in: reading only goes forward.
    next: usize,
}

impl Read for Content<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let block = self.fs.block;
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        while self
            .extents
            .get(self.next)
            .is_some_and(|extent| bytes(extent.at).saturating_add(bytes(extent.count)) <= self.at)
        {
            self.next += 1;
        }
        let left = self.size.saturating_sub(self.at);
        let (mut length, mut source) = (left, None);
        if let Some(extent) = self.extents.get(self.next) {
            let start = bytes(extent.at);
            match self.at.checked_sub(start) {
                // A hole before it.
                None => length = left.min(start - self.at),
                Some(within) => {
                    length = left.min(bytes(extent.count).saturating_sub(within));
                    source = (!extent.unwritten).then_some((extent.block, within));
                }
            }
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..length).unwrap_or_default();
        match source {
            None => into.fill(0),
            Some((block, within)) => {
                let place = self.fs.place(block).map_err(io::Error::other)?;
                self.fs.window.read(place.saturating_add(within), into)?;
            }
        }
        self.at = self.at.saturating_add(length as u64);
        Ok(length)
    }
}

impl BootFs for Xfs {
    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let mut names = Vec::new();
        self.names(&self.find(path)?, &mut |name, _| {
            if let Ok(name) = std::str::from_utf8(name)
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
            names.len() >= MAX_NAMES
        })?;
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<OpenFile<'_>, FsError> {
        let inode = self.find(path)?;
        if inode.kind != REGULAR {
            return Err(FsError::Missing);
        }
        Ok(OpenFile { size: inode.size, data: Box::new(self.content(&inode)?) })
    }
}
