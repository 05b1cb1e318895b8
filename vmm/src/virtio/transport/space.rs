//! PCI configuration space of a virtio function.

use super::{DEVICE_CONFIG, DEVICE_CONFIG_LEN, ISR, NOTIFY, NOTIFY_LEN, NOTIFY_MULTIPLIER, PENDING, TABLE};
use crate::bus::pci::{BAR_SIZE, UNMAPPED, in_window};
use crate::virtio::RestoreError;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
const MSIX_CAP: usize = 0x40;
const COMMON_CAP: usize = 0x4c;
const ISR_CAP: usize = 0x5c;
const DEVICE_CAP: usize = 0x6c;
const NOTIFY_CAP: usize = 0x7c;
const INDIRECT_CAP: usize = 0x90;
const INDIRECT_DATA: usize = INDIRECT_CAP + 16;

/// Command register: memory decoding.
const MEMORY_ENABLE: u8 = 2;
/// Capability ids.
const CAP_VENDOR: u8 = 9;
const CAP_MSIX: u8 = 0x11;

/// Configuration space: bytes, and which of their bits the guest may write.
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
}

impl ConfigSpace {
    /// The space of a device of a virtio type, with its BAR at `base`.
    pub fn new(device_type: u16, base: u32, vectors: u16) -> Self {
        let mut space = Self { bytes: [0; 256], writable: [0; 256] };
        space.put(0x00, &VENDOR.to_le_bytes());
        space.put(0x02, &DEVICE_BASE.saturating_add(device_type).to_le_bytes());
        // Capability list present.
        space.put(0x06, &[0x10]);
        // Revision 1, class code.
        space.put(0x08, &[1, 0]);
        space.put(0x0a, &class(device_type));
        space.put(BAR0, &base.to_le_bytes());
        space.put(0x2c, &VENDOR.to_le_bytes());
        space.put(0x2e, &DEVICE_BASE.saturating_add(device_type).to_le_bytes());
        space.put(0x34, &[0x40]);
        // Memory decoding, bus mastering, INTx off.
        space.allow(COMMAND, &[0x06, 0x04]);
        space.allow(0x0c, &[0xff]);
        space.allow(BAR0, &(!(BAR_SIZE - 1)).to_le_bytes());
        space.allow(0x3c, &[0xff]);

        let size = vectors.saturating_sub(1).to_le_bytes();
        space.put(MSIX_CAP, &[CAP_MSIX, cap(COMMON_CAP), size[0], size[1]]);
        space.put(MSIX_CAP + 4, &TABLE.to_le_bytes());
        space.put(MSIX_CAP + 8, &PENDING.to_le_bytes());
        space.allow(MSIX_CAP + 2, &[0, 0xc0]);
        space.virtio(COMMON_CAP, ISR_CAP, 16, 1, 0, 0x40);
        space.virtio(ISR_CAP, DEVICE_CAP, 16, 3, ISR, 4);
        space.virtio(DEVICE_CAP, NOTIFY_CAP, 16, 4, DEVICE_CONFIG, DEVICE_CONFIG_LEN);
        space.virtio(NOTIFY_CAP, INDIRECT_CAP, 20, 2, NOTIFY, NOTIFY_LEN);
        space.put(NOTIFY_CAP + 16, &NOTIFY_MULTIPLIER.to_le_bytes());
        space.virtio(INDIRECT_CAP, 0, 20, 5, 0, 0);
        space.allow(INDIRECT_CAP + 4, &[0xff]);
        space.allow(INDIRECT_CAP + 8, &[0xff; 12]);
        space
    }

    /// A virtio capability.
    fn virtio(&mut self, at: usize, next: usize, length: u8, kind: u8, offset: u32, size: u32) {
        self.put(at, &[CAP_VENDOR, cap(next), length, kind, 0, 0, 0, 0]);
        self.put(at + 8, &offset.to_le_bytes());
        self.put(at + 12, &size.to_le_bytes());
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }

    fn word(&self, at: usize) -> u32 {
        self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// Reads; past the end are zeros.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    /// Writes what may be written.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(self.writable.iter()).skip(offset.into());
        for ((to, mask), from) in places.zip(data) {
            *to = (*to & !mask) | (from & mask);
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over what a guest wrote into another space of the same kind; the rest stays its own.
    ///
    /// # Errors
    /// When it is no configuration space.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        if bytes.len() != self.bytes.len() {
            return Err(RestoreError::Damaged(format!("a configuration space of {} bytes", bytes.len())));
        }
        self.write(0, bytes);
        Ok(())
    }

    /// Where the BAR is mapped now.
    pub fn mapped_base(&self) -> u32 {
        let base = self.word(BAR0);
        let on = self.bytes.get(COMMAND).is_some_and(|command| command & MEMORY_ENABLE != 0);
        if on && in_window(base) { base } else { UNMAPPED }
    }

    /// Makes message control read as it is.
    pub fn set_msix_control(&mut self, control: u16) {
        self.put(MSIX_CAP + 2, &control.to_le_bytes());
    }

    /// Message control, when a write of `length` bytes at `offset` touched its upper byte.
    pub fn msix_control_written(&self, offset: u8, length: usize) -> Option<u16> {
        let start = usize::from(offset);
        let touched = start <= MSIX_CAP + 3 && start + length > MSIX_CAP + 3;
        touched.then(|| u16::from_le_bytes([self.bytes[MSIX_CAP + 2], self.bytes[MSIX_CAP + 3]]))
    }

    /// Whether an access is to the data window of the configuration access capability.
    pub fn is_indirect_data(offset: u8) -> bool {
        usize::from(offset) == INDIRECT_DATA
    }

    /// BAR offset and length of the configuration access capability; length 0 when another BAR is named.
    pub fn indirect(&self) -> (u32, u32) {
        let own = self.bytes[INDIRECT_CAP + 4] == 0;
        (self.word(INDIRECT_CAP + 8), if own { self.word(INDIRECT_CAP + 12) } else { 0 })
    }

    /// Bytes in the data window.
    pub fn indirect_data(&self) -> [u8; 4] {
        self.word(INDIRECT_DATA).to_le_bytes()
    }

    /// Sets the bytes in the data window.
    pub fn set_indirect_data(&mut self, data: [u8; 4]) {
        self.put(INDIRECT_DATA, &data);
    }
}

fn cap(at: usize) -> u8 {
    u8::try_from(at).unwrap_or_default()
}

/// Sub-class and class by virtio type: network, mass storage, or "other".
fn class(device_type: u16) -> [u8; 2] {
    match device_type {
        1 => [0x00, 0x02],
        2 => [0x80, 0x01],
        _ => [0x00, 0xff],
    }
}
