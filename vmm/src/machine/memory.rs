//! Guest RAM.

use super::layout::{ABOVE_4G, PCI_WINDOW};
use crate::virtio::Memory;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use wire::MiB;

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
    #[error("cannot reserve {size} MiB of address space for the guest's memory: {1}; give the guest less memory or raise the limit (ulimit -v)", size = .0.0)]
    Map(MiB, vm_memory::mmap::FromRangesError),
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

/// Reserves RAM. Pages are taken from the host when they are touched.
///
/// # Errors
/// A size out of range or an address space that is too small.
pub fn reserve(size: MiB) -> Result<Memory, MemoryError> {
    Memory::from_ranges(&ranges(size)?).map_err(|error| MemoryError::Map(size, error))
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
