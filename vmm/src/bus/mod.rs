//! What connects the vCPUs with the devices: I/O ports, memory-mapped registers, PCI, interrupts.

pub mod ioapic;
pub mod msix;
pub mod pci;
pub mod ports;
pub mod power;
pub mod processors;
pub mod watchdog;

use crate::machine::layout::{ECAM, ECAM_SIZE, IOAPIC, IOAPIC_SIZE, PCI_WINDOW, PCI_WINDOW_SIZE};
use ioapic::IoApic;
use pci::PciBus;
use ports::Ports;
use std::sync::Arc;

/// Everything that a vCPU exit may reach.
pub struct Bus {
    /// I/O ports.
    pub ports: Ports,
    /// PCI.
    pub pci: Arc<PciBus>,
    /// The IOAPIC.
    pub ioapic: Arc<IoApic>,
}

impl Bus {
    /// A read from an address without RAM. Nothing there reads as all-ones.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if let Some(offset) = within(address, PCI_WINDOW, PCI_WINDOW_SIZE) {
            self.pci.read_window(PCI_WINDOW + offset, data);
        } else if let Some(offset) = within(address, ECAM, ECAM_SIZE) {
            self.pci.read_ecam(offset, data);
        } else if let Some(offset) = within(address, IOAPIC, IOAPIC_SIZE) {
            data.fill(0);
            for (to, from) in data.iter_mut().zip(self.ioapic.read(offset).to_le_bytes()) {
                *to = from;
            }
        } else {
            data.fill(0xff);
        }
    }

    /// A write to an address without RAM. Nothing there drops it.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some(offset) = within(address, PCI_WINDOW, PCI_WINDOW_SIZE) {
            self.pci.write_window(PCI_WINDOW + offset, data);
        } else if let Some(offset) = within(address, ECAM, ECAM_SIZE) {
            self.pci.write_ecam(offset, data);
        } else if let (Some(offset), Ok(bytes)) =
            (within(address, IOAPIC, IOAPIC_SIZE), <[u8; 4]>::try_from(data))
        {
            self.ioapic.write(offset, u32::from_le_bytes(bytes));
        }
    }
}

fn within(address: u64, base: u64, size: u64) -> Option<u64> {
    address.checked_sub(base).filter(|offset| *offset < size)
}
