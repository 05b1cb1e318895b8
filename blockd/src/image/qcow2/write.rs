//! A new qcow2 image from a sparse raw file: version 3, clusters of 64 KiB, data sharing its blocks with the raw file
//! where the file system can do that.
//!
//! ```text
//! | header | refcount table | refcount blocks | L1 | L2 tables | data clusters in disk order |
//! ```

use super::{Bad, MAGIC};
use crate::sys;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BITS: u32 = 16;
const CLUSTER: u64 = 1 << BITS;
/// Entries of a second-level table and of the first.
const ENTRIES: u64 = CLUSTER / 8;
/// 16-bit counters in a refcount block.
const COUNTERS: u64 = CLUSTER / 2;
const COPIED: u64 = 1 << 63;

struct Plan {
    table_clusters: u64,
    blocks: u64,
    l1_clusters: u64,
    l1_entries: u64,
    l2_tables: u64,
    data: u64,
}

impl Plan {
    fn new(virtual_bytes: u64, l2_tables: u64, data: u64) -> Self {
        let l1_entries = virtual_bytes.div_ceil(CLUSTER * ENTRIES).max(1);
        let mut plan = Self {
            table_clusters: 1,
            blocks: 1,
            l1_clusters: (l1_entries * 8).div_ceil(CLUSTER),
            l1_entries,
            l2_tables,
            data,
        };
        // Counters count their own clusters too: grow until they fit.
        loop {
            let blocks = plan.total().div_ceil(COUNTERS);
            let table_clusters = (blocks * 8).div_ceil(CLUSTER);
            if blocks <= plan.blocks && table_clusters <= plan.table_clusters {
                return plan;
            }
            plan.blocks = blocks.max(plan.blocks);
            plan.table_clusters = table_clusters.max(plan.table_clusters);
        }
    }

    fn blocks_at(&self) -> u64 {
        1 + self.table_clusters
    }
    fn l1_at(&self) -> u64 {
        self.blocks_at() + self.blocks
    }
    fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1_clusters
    }
    fn data_at(&self) -> u64 {
        self.l2_at() + self.l2_tables
    }
    fn total(&self) -> u64 {
        self.data_at() + self.data
    }
}

/// Writes `from`, a raw disk, to `to` as qcow2.
///
/// # Errors
/// What the system says.
pub fn from_raw(from: &File, to: &File, reserve: u64) -> Result<u64, Bad> {
    let bytes = from.metadata()?.len();
    let virtual_bytes = bytes.next_multiple_of(512);
    let runs = runs(from, bytes)?;
    let (mut data, mut tables, mut last) = (0u64, 0u64, None);
    for (first, end) in &runs {
        data += end - first;
        let (low, high) = (first / ENTRIES, (end - 1) / ENTRIES);
        tables += high - low + u64::from(last != Some(low));
        last = Some(high);
    }
    let plan = Plan::new(virtual_bytes, tables, data);
    to.set_len(plan.total() * CLUSTER)?;
    write_head(to, &plan, virtual_bytes)?;
    write_counters(to, &plan)?;

    let mut l1 = vec![0u8; usize::try_from(plan.l1_entries * 8).map_err(|_| too_large())?];
    let mut l2: Option<(u64, Vec<u8>)> = None;
    let (mut next_table, mut next_data) = (plan.l2_at(), plan.data_at());
    let put = |table: &(u64, Vec<u8>), at: u64| to.write_all_at(&table.1, at * CLUSTER);
    for (first, end) in runs {
        for index in first..end {
            let table = index / ENTRIES;
            if l2.as_ref().is_none_or(|(current, _)| *current != table) {
                if let Some(done) = l2.take() {
                    put(&done, next_table)?;
                    next_table += 1;
                }
                set(&mut l1, table, (next_table * CLUSTER) | COPIED);
                l2 = Some((table, vec![0; 1 << BITS]));
            }
            if let Some((_, entries)) = &mut l2 {
                set(entries, index % ENTRIES, ((next_data + index - first) * CLUSTER) | COPIED);
            }
        }
        if sys::space(to)?.0 < reserve {
            return Err(Bad::Full);
        }
        let start = first * CLUSTER;
        sys::copy_range(from, start, to, next_data * CLUSTER, (end * CLUSTER).min(bytes) - start)?;
        next_data += end - first;
    }
    if let Some(done) = l2.take() {
        put(&done, next_table)?;
    }
    to.write_all_at(&l1, plan.l1_at() * CLUSTER)?;
    Ok(virtual_bytes)
}

/// Ranges of clusters that hold data, merged.
fn runs(from: &File, bytes: u64) -> Result<Vec<(u64, u64)>, Bad> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = sys::next_data(from, at, bytes)? {
        let (first, last) = (start / CLUSTER, end.div_ceil(CLUSTER));
        match runs.last_mut() {
            Some(run) if run.1 >= first => run.1 = run.1.max(last),
            _ => runs.push((first, last)),
        }
        at = end;
    }
    Ok(runs)
}

fn write_head(to: &File, plan: &Plan, virtual_bytes: u64) -> Result<(), Bad> {
    let narrow = |number: u64| u32::try_from(number).map_err(|_| too_large());
    let mut head = Vec::with_capacity(128);
    head.extend(MAGIC);
    head.extend(3u32.to_be_bytes());
    head.extend(0u64.to_be_bytes()); // no backing file
    head.extend(0u32.to_be_bytes());
    head.extend(BITS.to_be_bytes());
    head.extend(virtual_bytes.to_be_bytes());
    head.extend(0u32.to_be_bytes()); // not encrypted
    head.extend(narrow(plan.l1_entries)?.to_be_bytes());
    head.extend((plan.l1_at() * CLUSTER).to_be_bytes());
    head.extend(CLUSTER.to_be_bytes()); // refcount table
    head.extend(narrow(plan.table_clusters)?.to_be_bytes());
    head.extend(0u32.to_be_bytes()); // no snapshots
    head.extend(0u64.to_be_bytes());
    head.extend([0u8; 24]); // no features
    head.extend(4u32.to_be_bytes()); // 16-bit counters
    head.extend(104u32.to_be_bytes());
    head.extend([0u8; 8]); // end of the extensions
    to.write_all_at(&head, 0)?;
    Ok(())
}

fn write_counters(to: &File, plan: &Plan) -> Result<(), Bad> {
    let mut table = vec![0u8; usize::try_from(plan.blocks * 8).map_err(|_| too_large())?];
    for block in 0..plan.blocks {
        set(&mut table, block, (plan.blocks_at() + block) * CLUSTER);
        let used = plan.total().saturating_sub(block * COUNTERS).min(COUNTERS);
        let ones: Vec<u8> = (0..used).flat_map(|_| 1u16.to_be_bytes()).collect();
        to.write_all_at(&ones, (plan.blocks_at() + block) * CLUSTER)?;
    }
    to.write_all_at(&table, CLUSTER)?;
    Ok(())
}

fn set(table: &mut [u8], index: u64, value: u64) {
    let at = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(8);
    if let Some(slot) = table.get_mut(at..at.saturating_add(8)) {
        slot.copy_from_slice(&value.to_be_bytes());
    }
}

fn too_large() -> Bad {
    Bad::Unsupported("a disk of this size".into())
}
