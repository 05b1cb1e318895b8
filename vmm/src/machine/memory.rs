//! Guest RAM.

pub mod backing;
pub mod nodes;
pub mod plugged;

use super::layout::{ABOVE_4G, PCI_WINDOW};
use crate::virtio::Memory;
use backing::HostPages;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use nodes::Nodes;
use plugged::{Pluggable, Plugged, plugged};
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use wire::MiB;
use wire::machine::{MemoryBacking, NumaNode};

/// Least memory that a machine may have: below it no kernel that we load fits.
pub const LEAST: MiB = MiB(32);
/// Most memory that a machine may have.
pub const MOST: MiB = MiB(1 << 20);

/// Memory is plugged in and out in blocks of so many bytes.
pub const PLUG_BLOCK: usize = 2 << 20;
/// What can be plugged in is a multiple of what Linux takes in at once.
pub const PLUG_STEP: MiB = MiB(128);
/// Where it starts: a multiple of the largest piece that Linux takes in at once, and never where RAM above 4 GiB starts.
const PLUG_ALIGN: u64 = 8 << 30;

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Out of range.
    #[error("{size} MiB of memory asked for: a machine has {least} to {most} MiB", size = .0.0, least = LEAST.0, most = MOST.0)]
    Size(MiB),
    /// The host has no address space for it.
    #[error(
        "cannot reserve {0} MiB of address space for the guest's memory: {1}; give the guest less memory or raise the limit (ulimit -v)"
    )]
    Map(u64, std::io::Error),
    /// A size that the pages do not go into.
    #[error("{size} MiB of memory do not consist of pages of {page} MiB; give the guest a multiple of that")]
    Uneven {
        /// Asked for, in MiB.
        size: u64,
        /// The pages, in MiB.
        page: u64,
    },
    /// No room to plug in.
    #[error(
        "{most} MiB asked for as the most memory of a machine that starts with {size} MiB: it is more by a multiple of {step} MiB, and at most {limit} MiB",
        most = most.0, size = size.0, step = PLUG_STEP.0, limit = MOST.0
    )]
    Most {
        /// Asked for as the most.
        most: MiB,
        /// At the start.
        size: MiB,
    },
    /// What can be plugged in is not taken from the host until then.
    #[error("memory that is plugged in while the guest runs cannot be of pages of {size} MiB that are set aside; use transparent huge pages", size = .0.0)]
    PlugHuge(MiB),
    /// NUMA nodes that do not fit.
    #[error("the machine cannot have these NUMA nodes: {0}")]
    Nodes(String),
    /// No transparent huge pages.
    #[error("the guest's memory cannot have transparent huge pages: {0}")]
    Transparent(String),
    /// No huge pages.
    #[error("the guest's memory cannot have huge pages ({source}): {text}")]
    Huge {
        /// What the host has, and what to do.
        text: String,
        /// What it said.
        source: std::io::Error,
    },
    /// Not enough memory.
    #[error(
        "cannot take {0} MiB of memory from the host before the start: {1}; give the guest less memory, or let it take memory when it needs it (no prefault)"
    )]
    Prefault(usize, std::io::Error),
    /// The host refused something else.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// KVM refused it.
    #[error("KVM refused the guest's memory: {0}")]
    Kvm(kvm_ioctls::Error),
}

/// Where RAM is: up to 3 GiB below the hole, the rest from 4 GiB on.
///
/// # Errors
/// A size out of range.
pub fn ranges(size: MiB) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
    let bytes = size.bytes().filter(|_| size >= LEAST && size <= MOST).ok_or(MemoryError::Size(size))?;
    let low = bytes.min(PCI_WINDOW);
    let mut ranges = Vec::with_capacity(2);
    for (start, length) in [(0, low), (ABOVE_4G, bytes - low)] {
        let length = usize::try_from(length).map_err(|_| MemoryError::Size(size))?;
        if length > 0 {
            ranges.push((GuestAddress(start), length));
        }
    }
    Ok(ranges)
}

/// The RAM that a machine is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ram {
    /// How much.
    pub size: MiB,
    /// How it is had from the host.
    pub backing: MemoryBacking,
    /// What the host has for that.
    pub host: HostPages,
    /// How much it can become while the machine runs, with what is plugged in; `None` for no more than at the start.
    pub most: Option<MiB>,
    /// NUMA nodes.
    pub nodes: Option<Nodes>,
    /// The host's nodes that have memory.
    pub host_nodes: Vec<u32>,
}

impl Ram {
    /// So much memory, had in this way. Looks at what the host has of it, which a jailed process cannot any more.
    #[must_use]
    pub fn new(size: MiB, backing: MemoryBacking) -> Self {
        Self {
            size,
            backing,
            host: HostPages::look(&backing),
            most: None,
            nodes: None,
            host_nodes: Vec::new(),
        }
    }

    /// With NUMA nodes, in a machine that can have so many vCPUs. Looks at the nodes that the host has.
    ///
    /// # Errors
    /// Nodes that do not fit.
    pub fn with_nodes(mut self, nodes: &[NumaNode], vcpus: u32) -> Result<Self, MemoryError> {
        let page = self.backing.pages.set_aside().unwrap_or(MiB(1));
        self.nodes = Nodes::new(nodes, self.size, page, vcpus)?;
        let area = self.ranges()?.split_off(ranges(self.size)?.len()).pop();
        if let Some(nodes) = &mut self.nodes {
            nodes.pluggable = area.map(|(start, length)| (start.0, length as u64));
            self.host_nodes = nodes::of_host();
        }
        Ok(self)
    }

    /// Where all of it is, and how much of that, at the end, is not there until it is plugged in.
    ///
    /// # Errors
    /// A size out of range.
    pub fn ranges(&self) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
        let mut all = ranges(self.size)?;
        let Some(most) = self.most.filter(|most| *most != self.size) else { return Ok(all) };
        let more = most.0.checked_sub(self.size.0).filter(|_| most <= MOST);
        let more = more.filter(|more| more % PLUG_STEP.0 == 0);
        let length = more.and_then(|more| MiB(more).bytes()).and_then(|bytes| usize::try_from(bytes).ok());
        let length = length.ok_or(MemoryError::Most { most, size: self.size })?;
        if let Some(page) = self.backing.pages.set_aside() {
            return Err(MemoryError::PlugHuge(page));
        }
        let high = all.get(1).map_or(0, |(_, length)| *length as u64);
        all.push((GuestAddress((ABOVE_4G + high).next_multiple_of(PLUG_ALIGN)), length));
        Ok(all)
    }

    /// Says which memory of a machine is not there until it is plugged in.
    #[must_use]
    pub fn pluggable(&self, memory: &Memory) -> Option<Pluggable> {
        self.most.filter(|most| *most != self.size)?;
        let region = memory.iter().last()?;
        let plugged = Arc::new(Plugged::none(region.size(), PLUG_BLOCK));
        region.bitmap().map().pluggable(plugged.clone());
        Some(Pluggable { start: region.start_addr(), length: region.size(), plugged })
    }

    /// Whether nothing in particular was asked for.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.backing == MemoryBacking::default() && !self.nodes.as_ref().is_some_and(Nodes::bound)
    }

    /// Has it from the host.
    ///
    /// # Errors
    /// A size out of range, and what the host has not.
    pub fn reserve(&self) -> Result<Memory, MemoryError> {
        let memory = backing::map(&self.ranges()?, &self.backing, &self.host)?;
        if let Some(nodes) = &self.nodes {
            nodes.bind(&memory, &self.host_nodes)?;
        }
        if self.backing.prefault {
            // What can be plugged in is taken when it is.
            backing::prefault(&memory, ranges(self.size)?.len())?;
        }
        Ok(memory)
    }
}

/// Reserves RAM of no particular kind. Pages are taken from the host when they are touched.
///
/// # Errors
/// A size out of range or an address space that is too small.
pub fn reserve(size: MiB) -> Result<Memory, MemoryError> {
    Ram::new(size, MemoryBacking::default()).reserve()
}

/// Gives the RAM to KVM, a slot for each range. This comes before the irqchip: the other order costs milliseconds of waiting.
///
/// # Errors
/// What KVM says.
pub fn give(vm: &VmFd, memory: &Memory) -> Result<(), MemoryError> {
    log_writes(vm, memory, false).map_err(MemoryError::Kvm)
}

/// Gives the RAM to KVM, or gives it again, with a log of the pages that vCPUs write or without.
///
/// # Errors
/// What KVM says.
#[allow(unsafe_code)]
pub fn log_writes(vm: &VmFd, memory: &Memory, log: bool) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let host =
            memory.get_host_address(region.start_addr()).map_err(|_| kvm_ioctls::Error::new(libc::EFAULT))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a mapping of `memory`, which the machine keeps for as long as the VM exists, and no two slots overlap.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// Size of the RAM that is there now, in bytes.
#[must_use]
pub fn size(memory: &Memory) -> u64 {
    memory.iter().map(|region| plugged(region).map_or(region.len(), |plugged| plugged.bytes())).sum()
}

/// End of the RAM below the hole.
#[must_use]
pub fn low_end(memory: &Memory) -> u64 {
    memory.iter().next().map_or(0, |region| region.start_addr().0.saturating_add(region.len()))
}

/// Size of the RAM above 4 GiB in bytes, without what can be plugged in.
#[must_use]
pub fn high_size(memory: &Memory) -> u64 {
    let high = memory.iter().nth(1).filter(|region| region.start_addr().0 == ABOVE_4G);
    high.map_or(0, GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_free() {
        let small = reserve(MiB(64)).unwrap();
        assert_eq!((low_end(&small), high_size(&small)), (64 << 20, 0));
        let large = reserve(MiB(5 * 1024)).unwrap();
        assert_eq!((low_end(&large), high_size(&large)), (PCI_WINDOW, 2 << 30));
        assert!(large.iter().all(|region| region.start_addr().0 != PCI_WINDOW));
    }

    #[test]
    fn what_can_be_plugged_in_lies_behind_all_else() {
        for (size, most, start) in
            [(64, 192, 8u64 << 30), (5 * 1024, 9 * 1024, 8 << 30), (8 * 1024, 9 * 1024, 16 << 30)]
        {
            let ram = Ram { most: Some(MiB(most)), ..Ram::new(MiB(size), MemoryBacking::default()) };
            let memory = ram.reserve().unwrap();
            let area = ram.pluggable(&memory).unwrap();
            assert_eq!((area.start.0, area.length as u64), (start, (most - size) << 20));
            assert_eq!(
                (super::size(&memory), low_end(&memory) + high_size(&memory)),
                (size << 20, size << 20)
            );
            area.plugged.set(0..3, true);
            assert_eq!(super::size(&memory), (size + 6) << 20);
        }
        for (size, most) in [(64, 63), (64, 100), (64, (1 << 20) + 64), (1 << 20, u64::MAX)] {
            let ram = Ram { most: Some(MiB(most)), ..Ram::new(MiB(size), MemoryBacking::default()) };
            let error = ram.reserve().unwrap_err().to_string();
            assert!(error.contains("a multiple of 128 MiB"), "{error}");
        }
        let same = Ram { most: Some(MiB(64)), ..Ram::new(MiB(64), MemoryBacking::default()) };
        assert!(same.pluggable(&same.reserve().unwrap()).is_none());
    }

    #[test]
    fn sizes_out_of_range_are_refused_in_words() {
        for bad in [MiB(0), MiB(31), MiB((1 << 20) + 1), MiB(u64::MAX)] {
            let text = reserve(bad).unwrap_err().to_string();
            assert!(text.contains("32 to 1048576 MiB"), "{text}");
        }
    }
}
