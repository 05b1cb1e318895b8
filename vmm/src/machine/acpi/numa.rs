//! SRAT and SLIT: which memory and which processors are near each other, in a machine with NUMA nodes.

use super::{Board, OEM, REVISION, TABLE};
use crate::machine::memory::nodes::Nodes;
use acpi_tables::sdt::Sdt;

/// An entry counts.
const ENABLED: u32 = 1;
/// Memory that may come later.
const HOT_PLUGGABLE: u32 = 2;

/// The static resource affinity table.
pub(super) fn srat(board: &Board, nodes: &Nodes) -> Sdt {
    let mut table = Sdt::new(*b"SRAT", 36, 3, OEM, TABLE, REVISION);
    // Reserved: 1 for compatibility, and nothing.
    table.append_slice(&1u32.to_le_bytes());
    table.append_slice(&[0; 8]);
    let mut memory = |node: u32, start: u64, length: u64, flags: u32| {
        table.append_slice(&[1, 40]);
        table.append_slice(&node.to_le_bytes());
        table.append_slice(&[0; 2]);
        table.append_slice(&start.to_le_bytes());
        table.append_slice(&length.to_le_bytes());
        table.append_slice(&[0; 4]);
        table.append_slice(&flags.to_le_bytes());
        table.append_slice(&[0; 8]);
    };
    for piece in &nodes.pieces {
        memory(piece.node, piece.start, piece.length, ENABLED);
    }
    if let Some((start, length)) = nodes.pluggable {
        memory(0, start, length, ENABLED | HOT_PLUGGABLE);
    }
    for index in 0..board.all {
        let node = nodes.of_vcpu(index).to_le_bytes();
        let apic_id = board.layout.apic_id(index).to_le_bytes();
        // Processor local APIC affinity: low byte of the node, the id, flags, SAPIC id, high bytes of the node, clock domain.
        table.append_slice(&[0, 16, node[0], apic_id[0]]);
        table.append_slice(&ENABLED.to_le_bytes());
        table.append_slice(&[0, node[1], node[2], node[3], 0, 0, 0, 0]);
    }
    table
}

/// The system locality information table.
pub(super) fn slit(nodes: &Nodes) -> Sdt {
    let mut table = Sdt::new(*b"SLIT", 36, 1, OEM, TABLE, REVISION);
    table.append_slice(&(nodes.distances.len() as u64).to_le_bytes());
    for row in &nodes.distances {
        table.append_slice(row);
    }
    table
}
