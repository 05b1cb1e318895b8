//! Guest RAM.

pub mod backing;

use super::layout::{ABOVE_4G, PCI_WINDOW};
use crate::virtio::Memory;
use backing::HostPages;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use wire::MiB;
use wire::machine::MemoryBacking;

/// Least memory that a machine may have: below it no kernel that we load fits.
pub const LEAST: MiB = MiB(32);
/// Most memory that a machine may have.
pub const MOST: MiB = MiB(1 << 20);

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
}

impl Ram {
    /// So much memory, had in this way. Looks at what the host has of it, which a jailed process cannot any more.
    #[must_use]
    pub fn new(size: MiB, backing: MemoryBacking) -> Self {
        Self { size, backing, host: HostPages::look(&backing) }
    }

    /// Whether nothing in particular was asked for.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.backing == MemoryBacking::default()
    }

    /// Has it from the host.
    ///
    /// # Errors
    /// A size out of range, and what the host has not.
    pub fn reserve(&self) -> Result<Memory, MemoryError> {
        let memory = backing::map(&ranges(self.size)?, &self.backing, &self.host)?;
        if self.backing.prefault {
            backing::prefault(&memory)?;
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

/// End of the RAM below the hole.
#[must_use]
pub fn low_end(memory: &Memory) -> u64 {
    memory.iter().next().map_or(0, |region| region.start_addr().0.saturating_add(region.len()))
}

/// Size of the RAM above 4 GiB in bytes.
#[must_use]
pub fn high_size(memory: &Memory) -> u64 {
    memory.iter().nth(1).map_or(0, GuestMemoryRegion::len)
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
    fn sizes_out_of_range_are_refused_in_words() {
        for bad in [MiB(0), MiB(31), MiB((1 << 20) + 1), MiB(u64::MAX)] {
            let text = reserve(bad).unwrap_err().to_string();
            assert!(text.contains("32 to 1048576 MiB"), "{text}");
        }
    }
}
