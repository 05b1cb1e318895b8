//! The generation id (VMGenID): 16 random bytes in guest memory that are never the same for two lives of a machine.
//!
//! A guest that goes on from a snapshot may be one of several that do. It finds another id there, is told by an ACPI event, and then makes
//! its random numbers and whatever else must differ anew. The ACPI table names the place ([`GENERATION`]).

#![allow(unsafe_code)]

use super::layout::GENERATION;
use crate::virtio::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Writes an id that nobody has had.
///
/// # Errors
/// When guest memory is too small, or the kernel has no random bytes.
pub fn write(memory: &Memory) -> Result<(), GuestMemoryError> {
    let mut id = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes to an array of 16. So few bytes come whole or not at all.
    let got = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    if got != 16 {
        return Err(GuestMemoryError::IOError(std::io::Error::last_os_error()));
    }
    memory.write_slice(&id, GuestAddress(GENERATION))
}
