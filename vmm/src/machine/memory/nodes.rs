//! NUMA nodes: which part of guest memory is whose, and on which node of the host it lies.

#![allow(unsafe_code)]

use super::{MemoryError, PCI_WINDOW};
use crate::machine::layout::ABOVE_4G;
use crate::virtio::Memory;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use wire::MiB;
use wire::machine::{MAX_NODES, NumaNode};

/// Distance of a node from itself, and from others when nothing is said.
const NEAR: u8 = 10;
const FAR: u8 = 20;
/// `mbind`: these nodes only.
const MPOL_BIND: libc::c_ulong = 2;
/// Most nodes of a host that can be named.
const HOST_NODES: u32 = 64;

/// A part of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Whose.
    pub node: u32,
    /// Where it starts.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// The nodes of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// Memory, upwards.
    pub pieces: Vec<Piece>,
    /// Memory that can be plugged in, which is the first node's: start and length.
    pub pluggable: Option<(u64, u64)>,
    /// Distances from each node to each.
    pub distances: Vec<Vec<u8>>,
    /// The node of each vCPU.
    vcpus: Vec<u32>,
    /// The host's node of each.
    host: Vec<Option<u32>>,
}

/// The nodes of this host that have memory; none when it does not say.
#[must_use]
pub fn of_host() -> Vec<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

impl Nodes {
    /// Checks nodes, and finds what of guest memory is whose. `None` for a machine that has no nodes.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn new(nodes: &[NumaNode], memory: MiB, page: MiB, vcpus: u32) -> Result<Option<Self>, MemoryError> {
        let wrong = |text: String| Err(MemoryError::Nodes(text));
        if nodes.is_empty() {
            return Ok(None);
        }
        if nodes.len() > MAX_NODES {
            return wrong(format!("{} are named; at most {MAX_NODES} fit", nodes.len()));
        }
        let sum = nodes.iter().try_fold(0u64, |sum, node| sum.checked_add(node.memory.0));
        if sum != Some(memory.0) {
            let sum = sum.map_or("too many".into(), |sum| sum.to_string());
            return wrong(format!("together they have {sum} MiB of memory, and the machine {}", memory.0));
        }
        let mut of = vec![None; usize::try_from(vcpus).unwrap_or(usize::MAX)];
        let mut all = Self {
            pieces: Vec::new(),
            pluggable: None,
            distances: Vec::new(),
            vcpus: Vec::new(),
            host: nodes.iter().map(|node| node.host_node).collect(),
        };
        let mut from = 0u64;
        for (index, node) in nodes.iter().enumerate() {
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            if node.memory.0 == 0 || page.0 == 0 || !node.memory.0.is_multiple_of(page.0) {
                let page = page.0;
                return wrong(format!(
                    "node {index} has {} MiB; a node has a multiple of {page} MiB, more than none",
                    node.memory.0
                ));
            }
            for vcpu in &node.vcpus {
                match usize::try_from(*vcpu).ok().and_then(|vcpu| of.get_mut(vcpu)) {
                    Some(place @ None) => *place = Some(number),
                    Some(Some(other)) => {
                        return wrong(format!("vCPU {vcpu} is in node {other} and in node {index}"));
                    }
                    None => return wrong(format!("there is no vCPU {vcpu} for node {index}")),
                }
            }
            let far = |other| if other == index { NEAR } else { FAR };
            let row = if node.distances.is_empty() {
                (0..nodes.len()).map(far).collect()
            } else {
                node.distances.clone()
            };
            let fits = |(other, distance): (usize, &u8)| {
                if other == index { *distance == NEAR } else { (NEAR + 1..=254).contains(distance) }
            };
            if row.len() != nodes.len() || !row.iter().enumerate().all(fits) {
                return wrong(format!(
                    "node {index} has distances {row:?}; there is one to each of {} nodes, {NEAR} to itself and more to others",
                    nodes.len()
                ));
            }
            all.distances.push(row);
            let end = from + node.memory.bytes().unwrap_or(0);
            // Below the hole, and above.
            for (low, high, shift) in [(0, PCI_WINDOW, 0), (PCI_WINDOW, u64::MAX, ABOVE_4G - PCI_WINDOW)] {
                let (first, last) = (from.max(low), end.min(high));
                if first < last {
                    all.pieces.push(Piece { node: number, start: first + shift, length: last - first });
                }
            }
            from = end;
        }
        if let Some(lost) = of.iter().position(Option::is_none) {
            return wrong(format!("vCPU {lost} is in none"));
        }
        all.vcpus = of.into_iter().flatten().collect();
        Ok(Some(all))
    }

    /// The node of a vCPU.
    #[must_use]
    pub fn of_vcpu(&self, vcpu: u32) -> u32 {
        usize::try_from(vcpu).ok().and_then(|vcpu| self.vcpus.get(vcpu)).copied().unwrap_or(0)
    }

    /// Whether memory lies on a certain node of the host.
    #[must_use]
    pub fn bound(&self) -> bool {
        self.host.iter().any(Option::is_some)
    }

    /// Has each node's memory from the host's node that was named for it, from now on. `known` are the nodes that the host has.
    ///
    /// # Errors
    /// A node that the host does not have, and what it says.
    pub fn bind(&self, memory: &Memory, known: &[u32]) -> Result<(), MemoryError> {
        for piece in &self.pieces {
            let host =
                usize::try_from(piece.node).ok().and_then(|node| self.host.get(node)).copied().flatten();
            let Some(host) = host else { continue };
            if host >= HOST_NODES || !known.contains(&host) {
                return Err(MemoryError::Nodes(format!(
                    "node {} is to lie on node {host} of the host, which has these with memory: {known:?}",
                    piece.node
                )));
            }
            let at = memory.get_host_address(GuestAddress(piece.start));
            let at = at.map_err(|error| MemoryError::Nodes(error.to_string()))?;
            let mask = 1u64 << host;
            // SAFETY: the range is guest memory, which stays mapped; a policy changes nothing about its contents. The kernel reads 64 bits
            // of the mask.
            let bound = unsafe {
                libc::syscall(
                    libc::SYS_mbind,
                    at,
                    piece.length,
                    MPOL_BIND,
                    &raw const mask,
                    u64::from(HOST_NODES) + 1,
                    0,
                )
            };
            if bound != 0 {
                return Err(MemoryError::Host {
                    what: "have memory from one node of the host",
                    source: std::io::Error::last_os_error(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(memory: u64, vcpus: &[u32]) -> NumaNode {
        NumaNode { memory: MiB(memory), vcpus: vcpus.to_vec(), host_node: None, distances: Vec::new() }
    }

    #[test]
    fn memory_is_shared_out_around_the_hole() {
        let nodes = [node(2048, &[0, 2]), node(3072, &[1])];
        let nodes = Nodes::new(&nodes, MiB(5120), MiB(1), 3).unwrap().unwrap();
        let gib = |n: u64| n << 30;
        let piece = |node, start, length| Piece { node, start: gib(start), length: gib(length) };
        assert_eq!(nodes.pieces, [piece(0, 0, 2), piece(1, 2, 1), piece(1, 4, 2)]);
        assert_eq!([0, 1, 2].map(|vcpu| nodes.of_vcpu(vcpu)), [0, 1, 0]);
        assert_eq!(nodes.distances, [[10, 20], [20, 10]]);
        assert!(!nodes.bound() && Nodes::new(&[], MiB(64), MiB(1), 1).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let bad = |nodes: &[NumaNode], page: u64| {
            Nodes::new(nodes, MiB(128), MiB(page), 2).unwrap_err().to_string()
        };
        let far = |distances: &[u8]| NumaNode { distances: distances.to_vec(), ..node(64, &[0, 1]) };
        for (nodes, page, words) in [
            (vec![node(64, &[0]), node(32, &[1])], 1, "together they have 96 MiB"),
            (vec![node(u64::MAX, &[0]), node(1, &[1])], 1, "together they have too many MiB"),
            (vec![node(128, &[0, 1]), node(0, &[])], 1, "more than none"),
            (vec![node(64, &[0]), node(64, &[1])], 1024, "a multiple of 1024 MiB"),
            (vec![node(64, &[0, 1]), node(64, &[1])], 1, "vCPU 1 is in node 0 and in node 1"),
            (vec![node(64, &[0]), node(64, &[7])], 1, "no vCPU 7 for node 1"),
            (vec![node(64, &[0]), node(64, &[])], 1, "vCPU 1 is in none"),
            (vec![far(&[10]), node(64, &[])], 1, "one to each of 2 nodes"),
            (vec![far(&[11, 20]), node(64, &[])], 1, "10 to itself"),
            (vec![far(&[10, 10]), node(64, &[])], 1, "more to others"),
            (vec![far(&[10, 255]), node(64, &[])], 1, "more to others"),
            (vec![node(8, &[]); 17], 1, "at most 16"),
        ] {
            let text = bad(&nodes, page);
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn memory_lies_on_a_node_that_the_host_has() {
        let known = of_host();
        let Some(first) = known.first().copied() else {
            println!("skipped: this host's kernel knows no nodes");
            return;
        };
        let memory = crate::machine::memory::reserve(MiB(64)).unwrap();
        let nodes = |host| [NumaNode { host_node: Some(host), ..node(64, &[0]) }];
        let nodes = |host| Nodes::new(&nodes(host), MiB(64), MiB(1), 1).unwrap().unwrap();
        assert!(nodes(first).bound());
        nodes(first).bind(&memory, &known).unwrap();
        // The kernel's own words: bound to this node.
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        assert!(maps.contains(&format!("bind:{first}")), "{maps}");
        for wrong in [63, 64, u32::MAX] {
            let text = nodes(wrong).bind(&memory, &known).unwrap_err().to_string();
            assert!(text.contains("these with memory"), "{text}");
        }
    }
}
