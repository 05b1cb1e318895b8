//! A reader of FAT12, FAT16 and FAT32 with long names: what EFI system partitions and some `/boot` partitions
//! hold.
//!
//! Our own, because the crates for FAT want to write too (dirty flags, access times) and trust the allocation
//! table; here every chain is bounded by the number of clusters, so that a circle of clusters ends.

use super::disk::{Window, le16, le32};
use super::fs::{BootFs, FsError, MAX_NAMES, OpenFile};
use std::io::{self, Read};

/// Most bytes of one directory that are read: 65,536 entries of 32 bytes, the format's own limit.
const MAX_DIRECTORY: u64 = 65_536 * 32;

/// Deepest path that is walked.
const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// A FAT file system.
pub struct Fat {
    window: Window,
    width: Width,
    table_at: u64,
    root_at: u64,
    root_size: u64,
    root_cluster: u32,
    data_at: u64,
    cluster_size: u64,
    clusters: u32,
}

/// Where a file's or directory's bytes are.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// The fixed root directory of FAT12 and FAT16.
    Root,
    /// A chain of clusters.
    Chain(u32),
}

struct Entry {
    name: String,
    short: String,
    directory: bool,
    cluster: u32,
    size: u32,
}

impl Fat {
    /// Opens the file system.
    ///
    /// # Errors
    /// When its boot sector contradicts itself.
    pub fn new(window: Window) -> Result<Self, FsError> {
        let sector: [u8; 512] =
            window.bytes(0).map_err(|error| FsError::Broken(format!("cannot read it: {error}")))?;
        Self::parse(window, &sector)
            .ok_or_else(|| FsError::Broken("its boot sector contradicts itself".to_owned()))
    }

    fn parse(window: Window, sector: &[u8; 512]) -> Option<Self> {
        let sector_size = u64::from(le16(sector, 11));
        let cluster_size = sector_size.checked_mul(u64::from(sector[13])).filter(|size| *size > 0)?;
        let pick = |small: u16, large: u32| if small == 0 { u64::from(large) } else { u64::from(small) };
        let table_sectors = pick(le16(sector, 22), le32(sector, 36));
        let total = pick(le16(sector, 19), le32(sector, 32)).checked_mul(sector_size)?;
        let table_at = u64::from(le16(sector, 14)).checked_mul(sector_size)?;
        let tables = table_sectors.checked_mul(u64::from(sector[16]))?.checked_mul(sector_size)?;
        let root_at = table_at.checked_add(tables)?;
        let root_size = u64::from(le16(sector, 17)).checked_mul(32)?;
        let data_at = root_at.checked_add(root_size.checked_next_multiple_of(sector_size)?)?;
        let clusters = u32::try_from(total.checked_sub(data_at)? / cluster_size).ok()?;
        let width = match clusters {
            0..=4084 => Width::Twelve,
            4085..=65_524 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        let root_cluster = le32(sector, 44);
        Some(Self {
            window,
            width,
            table_at,
            root_at,
            root_size,
            root_cluster,
            data_at,
            cluster_size,
            clusters,
        })
    }

    /// The cluster after `cluster`; `None` at the end of the chain or where the table makes no sense.
    fn next(&self, cluster: u32) -> io::Result<Option<u32>> {
        let number = u64::from(cluster);
        let (next, end) = match self.width {
            Width::Twelve => {
                let pair = self
                    .window
                    .bytes::<2>(self.table_at.saturating_add(number.saturating_add(number / 2)))?;
                let both = u16::from_le_bytes(pair);
                (u32::from(if cluster.is_multiple_of(2) { both & 0xfff } else { both >> 4 }), 0xff8)
            }
            Width::Sixteen => {
                let bytes = self.window.bytes::<2>(self.table_at.saturating_add(number.saturating_mul(2)))?;
                (u32::from(u16::from_le_bytes(bytes)), 0xfff8)
            }
            Width::ThirtyTwo => {
                let bytes = self.window.bytes::<4>(self.table_at.saturating_add(number.saturating_mul(4)))?;
                (u32::from_le_bytes(bytes) & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        Ok((next < end && self.holds(next)).then_some(next))
    }

    fn holds(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster.saturating_sub(2) < self.clusters
    }

    fn read_cluster(&self, cluster: u32, into: &mut [u8]) -> io::Result<()> {
        let index = u64::from(cluster.checked_sub(2).ok_or(io::ErrorKind::InvalidData)?);
        let at = index.saturating_mul(self.cluster_size).saturating_add(self.data_at);
        self.window.read(at, into)
    }

    fn chain(&self, first: u32, size: u64) -> Chain<'_> {
        let cluster = self.holds(first).then_some(first);
        Chain { fat: self, cluster, steps: 0, left: size, buffer: Vec::new(), taken: 0 }
    }

    fn directory(&self, place: Place) -> Result<Vec<Entry>, FsError> {
        let mut bytes = Vec::new();
        let broken = |error: io::Error| FsError::Broken(format!("cannot read a directory: {error}"));
        match place {
            Place::Root if self.width != Width::ThirtyTwo => {
                bytes.resize(usize::try_from(self.root_size.min(MAX_DIRECTORY)).unwrap_or(0), 0);
                self.window.read(self.root_at, &mut bytes).map_err(broken)?;
            }
            Place::Root => {
                self.chain(self.root_cluster, MAX_DIRECTORY).read_to_end(&mut bytes).map_err(broken)?;
            }
            Place::Chain(first) => {
                self.chain(first, MAX_DIRECTORY).read_to_end(&mut bytes).map_err(broken)?;
            }
        }
        Ok(entries(&bytes))
    }

    /// Finds what a path names. Names compare without regard to ASCII case, as the format wants.
    fn walk(&self, path: &str) -> Result<(Place, Option<Entry>), FsError> {
        let mut place = Place::Root;
        let mut last: Option<Entry> = None;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".").take(MAX_DEPTH) {
            if last.as_ref().is_some_and(|entry| !entry.directory) {
                return Err(FsError::Missing);
            }
            let found = self.directory(place)?.into_iter().find(|entry| {
                entry.name.eq_ignore_ascii_case(name) || entry.short.eq_ignore_ascii_case(name)
            });
            let found = found.ok_or(FsError::Missing)?;
            // `..` of a first-level directory names the root by cluster 0.
            place = if found.cluster == 0 { Place::Root } else { Place::Chain(found.cluster) };
            last = Some(found);
        }
        Ok((place, last))
    }
}

impl BootFs for Fat {
    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let (place, entry) = self.walk(path)?;
        if entry.is_some_and(|entry| !entry.directory) {
            return Err(FsError::Missing);
        }
        Ok(self.directory(place)?.into_iter().take(MAX_NAMES).map(|entry| entry.name).collect())
    }

    fn open(&self, path: &str) -> Result<OpenFile<'_>, FsError> {
        let entry = self.walk(path)?.1.filter(|entry| !entry.directory).ok_or(FsError::Missing)?;
        let size = u64::from(entry.size);
        Ok(OpenFile { size, data: Box::new(self.chain(entry.cluster, size)) })
    }
}

/// Reads along a chain of clusters, at most as many as the file system has.
struct Chain<'a> {
    fat: &'a Fat,
    cluster: Option<u32>,
    steps: u32,
    left: u64,
    buffer: Vec<u8>,
    taken: usize,
}

impl Read for Chain<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || into.is_empty() {
            return Ok(0);
        }
        if self.taken >= self.buffer.len() {
            let Some(cluster) = self.cluster else { return Ok(0) };
            self.buffer.resize(usize::try_from(self.fat.cluster_size).unwrap_or(0), 0);
            self.fat.read_cluster(cluster, &mut self.buffer)?;
            self.taken = 0;
            self.steps = self.steps.saturating_add(1);
            let next = self.fat.next(cluster)?;
            self.cluster = next.filter(|_| self.steps < self.fat.clusters);
        }
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(into.len()).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if let (Some(to), Some(from)) = (into.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken = self.taken.saturating_add(count);
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

const LONG_NAME: u8 = 0x0f;
const VOLUME_LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;

/// The entries in a directory's bytes. Long names that do not fit their short entry's checksum are ignored.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long: Vec<u16> = Vec::new();
    let mut long_sum = 0;
    for slot in bytes.chunks_exact(32) {
        let (first, attributes) = (slot[0], slot[11]);
        if first == 0 {
            break;
        }
        if first == 0xe5 {
            long.clear();
            continue;
        }
        if attributes & 0x3f == LONG_NAME {
            let units = [1_usize, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30].map(|at| le16(slot, at));
            if first & 0x40 != 0 || long_sum != slot[13] {
                long.clear();
                long_sum = slot[13];
            }
            // Parts come last first, at most 20 of them by the format.
            if long.len() < 20 * 13 {
                long.splice(0..0, units);
            }
            continue;
        }
        let raw: Vec<u16> = std::mem::take(&mut long);
        if attributes & VOLUME_LABEL != 0 {
            continue;
        }
        let short = short_name(slot);
        let units: Vec<u16> = raw.into_iter().take_while(|unit| *unit != 0).collect();
        let fits = !units.is_empty() && checksum(slot) == long_sum;
        let name = if fits { String::from_utf16_lossy(&units) } else { short.clone() };
        let cluster = u32::from(le16(slot, 20)) << 16 | u32::from(le16(slot, 26));
        if short != "." {
            found.push(Entry {
                name,
                short,
                directory: attributes & DIRECTORY != 0,
                cluster,
                size: le32(slot, 28),
            });
        }
    }
    found
}

fn short_name(slot: &[u8]) -> String {
    // Windows and Linux keep all-lowercase names short by two flags.
    let flags = slot[12];
    let part = |from: usize, to: usize, lower: bool| {
        let bytes = slot.get(from..to).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes).trim_end_matches(' ').to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    let (base, extension) = (part(0, 8, flags & 0x08 != 0), part(8, 11, flags & 0x10 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

fn checksum(slot: &[u8]) -> u8 {
    slot.iter().take(11).fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}
