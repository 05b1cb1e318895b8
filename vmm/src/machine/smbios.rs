//! SMBIOS 3 tables: BIOS, system and chassis. cloud-init finds its data source by them.

use super::layout::{GENERATION, SMBIOS};
use crate::virtio::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use wire::ids::ServerId;
use wire::machine::Identity;

/// Longest string that is kept; the rest is cut.
const LONGEST: usize = 64;

/// A structure: fixed part, then its strings.
fn structure(kind: u8, handle: u16, fixed: &[u8], strings: &[&str]) -> Vec<u8> {
    let length = u8::try_from(fixed.len() + 4).unwrap_or(u8::MAX);
    let mut out = vec![kind, length];
    out.extend(handle.to_le_bytes());
    out.extend(fixed);
    for text in strings {
        let clean = text.bytes().filter(|byte| (0x20..0x7f).contains(byte)).take(LONGEST);
        let before = out.len();
        out.extend(clean);
        if out.len() == before {
            // An empty string would end the list.
            out.push(b' ');
        }
        out.push(0);
    }
    if strings.is_empty() {
        out.push(0);
    }
    out.push(0);
    out
}

/// Writes entry point and tables.
///
/// # Errors
/// When guest memory is too small.
pub fn write(memory: &Memory, id: ServerId, identity: &Identity) -> Result<(), GuestMemoryError> {
    let mut tables = Vec::new();
    // BIOS: vendor, version, segment, date, size, characteristics ("not supported"), extension ("virtual machine"), release.
    let mut bios = vec![1, 2, 0, 0, 3, 0];
    bios.extend((1u64 << 3).to_le_bytes());
    bios.extend([0, 0x18, 0, 1, 0xff, 0xff]);
    tables.extend(structure(0, 0, &bios, &["Ferrostack", env!("CARGO_PKG_VERSION"), "11/22/2026"]));
    // System: manufacturer, product, version, serial, UUID (first three fields little endian), wake-up by switch, SKU, family.
    let mut system = vec![1, 2, 3, 4];
    system.extend(id.0.to_bytes_le());
    system.extend([6, 0, 5]);
    let serial = id.to_string();
    let (manufacturer, product, version) = (&identity.manufacturer, &identity.product, &identity.version);
    tables.extend(structure(1, 1, &system, &[manufacturer, product, version, &serial, "Virtual Machine"]));
    // Chassis: manufacturer, type "other", version, serial, asset tag, states unknown, security none, no records.
    let chassis = [1, 1, 0, 0, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0];
    tables.extend(structure(3, 2, &chassis, &[manufacturer, "OpenStack Nova"]));
    tables.extend(structure(127, 3, &[], &[]));

    let at = SMBIOS + 0x20;
    if at + tables.len() as u64 > GENERATION {
        return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(at)));
    }
    let mut entry = b"_SM3_\0\x18\x03\x00\x00\x01\x00".to_vec();
    entry.extend(u32::try_from(tables.len()).unwrap_or_default().to_le_bytes());
    entry.extend(at.to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    memory.write_slice(&entry, GuestAddress(SMBIOS))?;
    memory.write_slice(&tables, GuestAddress(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::reserve;
    use wire::MiB;

    #[test]
    fn entry_point_sums_to_zero_and_structures_end() {
        let memory = reserve(MiB(32)).unwrap();
        let mut identity = Identity::default();
        identity.version.clear();
        write(&memory, ServerId::new(), &identity).unwrap();
        let mut entry = [0u8; 24];
        memory.read_slice(&mut entry, GuestAddress(SMBIOS)).unwrap();
        assert_eq!(&entry[..5], b"_SM3_");
        assert_eq!(entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let length = u32::from_le_bytes(entry[12..16].try_into().unwrap());
        let mut tables = vec![0u8; length.try_into().unwrap()];
        memory.read_slice(&mut tables, GuestAddress(SMBIOS + 0x20)).unwrap();
        let (mut at, mut kinds) = (0, Vec::new());
        while at < tables.len() {
            kinds.push(tables[at]);
            let strings = at + usize::from(tables[at + 1]);
            at = strings + tables[strings..].windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
        }
        assert_eq!((kinds, at), (vec![0, 1, 3, 127], tables.len()));
        assert!(tables.windows(14).any(|text| text == b"OpenStack Nova"));
    }
}
