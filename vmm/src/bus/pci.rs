//! PCI segment 0, bus 0: 32 slots with one function each, found by ECAM or by configuration mechanism 1.
//!
//! Slot 0 is the host bridge. Every device has one 32-bit memory BAR inside the window, at an address of its own from the start;
//! the guest may move it. Lookups by address go through [`Slots::bases`], so that a device's lock is only taken for its own accesses.

use crate::machine::layout::{PCI_WINDOW, PCI_WINDOW_SIZE};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of slots.
pub const SLOTS: u8 = 32;
/// Size of every device's BAR in bytes.
pub const BAR_SIZE: u32 = 0x4000;
/// Base of an unmapped BAR.
pub const UNMAPPED: u32 = 0;

/// Host bridge: vendor and device id (Intel, "virtual PCIe host"), class bridge.
const BRIDGE_ID: u32 = 0x0d57_8086;
const BRIDGE_CLASS: u32 = 0x0600_0000;

/// A device in a slot.
pub trait PciDevice: Send {
    /// Reads configuration space; `offset` is below 256 and the access does not cross its end.
    fn read_config(&mut self, offset: u8, data: &mut [u8]);
    /// Writes configuration space; `offset` is below 256 and the access does not cross its end.
    fn write_config(&mut self, offset: u8, data: &[u8]);
    /// Reads the BAR; `offset` is below [`BAR_SIZE`].
    fn read_bar(&mut self, offset: u32, data: &mut [u8]);
    /// Writes the BAR; `offset` is below [`BAR_SIZE`].
    fn write_bar(&mut self, offset: u32, data: &[u8]);
}

/// A device as the bus holds it.
pub type Shared = Arc<Mutex<dyn PciDevice>>;

/// Where the BAR of a slot's device is now: [`UNMAPPED`] or an address in the window. Written by the device, read by the bus.
pub type Base = Arc<AtomicU32>;

/// Address that a slot's BAR has before the guest moves it.
#[must_use]
pub fn first_base(slot: u8) -> u32 {
    u32::try_from(PCI_WINDOW).unwrap_or_default() + u32::from(slot) * BAR_SIZE
}

/// Whether a BAR at this address is inside the window.
#[must_use]
pub fn in_window(base: u32) -> bool {
    let base = u64::from(base);
    base >= PCI_WINDOW && base + u64::from(BAR_SIZE) <= PCI_WINDOW + PCI_WINDOW_SIZE
}

struct Slot {
    device: Shared,
    base: Base,
}

/// The bus.
#[derive(Default)]
pub struct PciBus {
    slots: Mutex<[Option<Slot>; SLOTS as usize]>,
    /// Configuration address of mechanism 1.
    address: AtomicU32,
}

fn lock(device: &Shared) -> MutexGuard<'_, dyn PciDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    fn slots(&self) -> MutexGuard<'_, [Option<Slot>; SLOTS as usize]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a device into a slot, in place of what was there.
    pub fn insert(&self, slot: u8, device: Shared, base: Base) {
        if let Some(place) = self.slots().get_mut(usize::from(slot)) {
            *place = Some(Slot { device, base });
        }
    }

    /// Takes a device out of its slot.
    pub fn remove(&self, slot: u8) -> Option<Shared> {
        self.slots().get_mut(usize::from(slot))?.take().map(|slot| slot.device)
    }

    fn device(&self, slot: u8) -> Option<Shared> {
        self.slots().get(usize::from(slot))?.as_ref().map(|slot| slot.device.clone())
    }

    /// Reads configuration space at an ECAM offset.
    pub fn read_ecam(&self, offset: u64, data: &mut [u8]) {
        let (slot, function, register) = split(offset);
        data.fill(0xff);
        if function != 0 || !fits(register, data.len()) {
            return;
        }
        if slot == 0 {
            read_bridge(register, data);
        } else if let Some(device) = self.device(slot) {
            match u8::try_from(register) {
                Ok(register) if usize::from(register) + data.len() <= 256 => {
                    lock(&device).read_config(register, data)
                }
                // No extended capabilities.
                _ => data.fill(0),
            }
        }
    }

    /// Writes configuration space at an ECAM offset.
    pub fn write_ecam(&self, offset: u64, data: &[u8]) {
        let (slot, function, register) = split(offset);
        if function != 0 || slot == 0 || !fits(register, data.len()) {
            return;
        }
        if let (Some(device), Ok(register)) = (self.device(slot), u8::try_from(register))
            && usize::from(register) + data.len() <= 256
        {
            lock(&device).write_config(register, data);
        }
    }

    /// Reads the configuration address port.
    #[must_use]
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Writes the configuration address port.
    pub fn set_address(&self, value: u32) {
        self.address.store(value & 0x80ff_fffc, Ordering::Relaxed);
    }

    /// ECAM offset that the configuration address and a data port mean, when it is enabled and on bus 0.
    fn selected(&self, port_offset: u16) -> Option<u64> {
        let address = self.address();
        let (enabled, bus) = (address >> 31 == 1, (address >> 16) & 0xff);
        let (place, register) = ((address >> 8) & 0xff, address & 0xfc);
        (enabled && bus == 0)
            .then(|| (u64::from(place) << 12) | u64::from(register) | u64::from(port_offset & 3))
    }

    /// Reads a configuration data port, 0 to 3 bytes above the first.
    pub fn read_data(&self, port_offset: u16, data: &mut [u8]) {
        match self.selected(port_offset) {
            Some(offset) => self.read_ecam(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes a configuration data port, 0 to 3 bytes above the first.
    pub fn write_data(&self, port_offset: u16, data: &[u8]) {
        if let Some(offset) = self.selected(port_offset) {
            self.write_ecam(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(Shared, u32)> {
        let address = u32::try_from(address).ok()?;
        self.slots().iter().flatten().find_map(|slot| {
            let base = slot.base.load(Ordering::Acquire);
            let offset = address.checked_sub(base).filter(|offset| base != UNMAPPED && *offset < BAR_SIZE)?;
            Some((slot.device.clone(), offset))
        })
    }

    /// Reads memory in the window; unmapped memory reads as all-ones.
    pub fn read_window(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => lock(&device).read_bar(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes memory in the window.
    pub fn write_window(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            lock(&device).write_bar(offset, data);
        }
    }
}

/// Slot, function and register of an ECAM offset.
fn split(offset: u64) -> (u8, u8, u16) {
    let part = |shift: u32, mask: u64| u16::try_from((offset >> shift) & mask).unwrap_or_default();
    (part(15, 0x1f).to_le_bytes()[0], part(12, 7).to_le_bytes()[0], part(0, 0xfff))
}

/// Configuration accesses are of 1, 2 or 4 bytes and do not cross a double word.
fn fits(register: u16, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && usize::from(register & 3) + length <= 4
}

fn read_bridge(register: u16, data: &mut [u8]) {
    let value = match register & !3 {
        0 => BRIDGE_ID,
        8 => BRIDGE_CLASS,
        _ => 0,
    };
    let bytes = value.to_le_bytes();
    for (to, from) in data.iter_mut().zip(bytes.iter().skip(usize::from(register & 3))) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl PciDevice for Echo {
        fn read_config(&mut self, offset: u8, data: &mut [u8]) {
            data.fill(offset);
        }
        fn write_config(&mut self, offset: u8, _data: &[u8]) {
            self.0 = offset;
        }
        fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }
        fn write_bar(&mut self, _offset: u32, _data: &[u8]) {}
    }

    #[test]
    fn both_mechanisms_see_the_same_and_absent_is_all_ones() {
        let bus = PciBus::default();
        let base: Base = Arc::new(AtomicU32::new(first_base(3)));
        bus.insert(3, Arc::new(Mutex::new(Echo(0))), base.clone());
        let mut word = [0u8; 4];
        bus.read_ecam((3 << 15) | 0x10, &mut word);
        assert_eq!(word, [0x10; 4]);
        bus.set_address(0x8000_0000 | (3 << 11) | 0x10);
        bus.read_data(0, &mut word);
        assert_eq!(word, [0x10; 4]);
        bus.read_ecam(4 << 15, &mut word);
        assert_eq!(word, [0xff; 4]);
        bus.read_ecam((3 << 15) | 0x100, &mut word);
        assert_eq!(word, [0; 4]);
        bus.read_ecam(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), BRIDGE_ID);
        bus.read_window(u64::from(first_base(3)) + 5, &mut word);
        assert_eq!(word, [5; 4]);
        base.store(UNMAPPED, Ordering::Release);
        bus.read_window(u64::from(first_base(3)) + 5, &mut word);
        assert_eq!(word, [0xff; 4]);
        assert!(bus.remove(3).is_some() && bus.remove(3).is_none());
    }

    #[test]
    fn strange_accesses_are_dropped() {
        let bus = PciBus::default();
        bus.insert(3, Arc::new(Mutex::new(Echo(0))), Arc::new(AtomicU32::new(0)));
        for length in 0..9 {
            let mut data = vec![0; length];
            for register in [0u64, 1, 3, 0xfe, 0xff, 0xfff] {
                bus.read_ecam((3 << 15) | register, &mut data);
                bus.write_ecam((3 << 15) | register, &data);
            }
        }
    }
}
