//! The IOAPIC, in this process: KVM's irqchip is split, so only the local APICs are in the kernel.
//!
//! Everything wired to a pin here (serial port, generic event device) is edge-triggered and PCI devices have MSI-X only, so
//! a pin never waits for an end-of-interrupt and raising it is just sending the message that its redirection entry describes.

use crate::machine::layout::IOAPIC_PINS;
use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PINS: usize = IOAPIC_PINS as usize;
/// Version 0x20 with the highest pin in bits 16 to 23.
const VERSION: u32 = 0x20 | ((IOAPIC_PINS - 1) << 16);
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are read-only.
const READ_ONLY: u64 = (1 << 12) | (1 << 14);

/// Sends message-signalled interrupts.
pub trait MsiSink: Send + Sync {
    /// Sends one. Failures cannot be told to anybody and are dropped, as a bus would.
    fn send(&self, address: u64, data: u32);
}

impl MsiSink for VmFd {
    fn send(&self, address: u64, data: u32) {
        let msi = kvm_msi {
            address_lo: u32::try_from(address & 0xffff_ffff).unwrap_or_default(),
            address_hi: u32::try_from(address >> 32).unwrap_or_default(),
            data,
            ..kvm_msi::default()
        };
        let _ = self.signal_msi(msi);
    }
}

struct State {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Raised while masked: delivered when unmasked.
    pending: u32,
}

/// The IOAPIC in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Register that is accessed.
    pub select: u8,
    /// Its id.
    pub id: u32,
    /// Redirection entries.
    pub entries: [u64; PINS],
    /// Pins that were raised while masked, a bit each.
    pub pending: u32,
}

/// The IOAPIC.
pub struct IoApic {
    sink: Arc<dyn MsiSink>,
    state: Mutex<State>,
}

impl IoApic {
    /// An IOAPIC with all pins masked.
    #[must_use]
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        Self { sink, state: Mutex::new(State { select: 0, id: 0, entries: [MASKED; PINS], pending: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its state.
    #[must_use]
    pub fn save(&self) -> IoApicState {
        let state = self.state();
        IoApicState { select: state.select, id: state.id, entries: state.entries, pending: state.pending }
    }

    /// Takes over a state. Pins that were raised before stay so, and are delivered if they can be.
    pub fn restore(&self, from: &IoApicState) {
        let mut state = self.state();
        (state.select, state.id, state.entries) = (from.select, from.id, from.entries);
        state.pending |= from.pending;
        for (pin, entry) in from.entries.iter().enumerate() {
            if entry & MASKED == 0 && state.pending & (1 << pin) != 0 {
                state.pending &= !(1 << pin);
                self.deliver(*entry);
            }
        }
    }

    /// An edge on a pin. Pins that do not exist are ignored.
    pub fn raise(&self, pin: u32) {
        let mut state = self.state();
        let Some(entry) = usize::try_from(pin).ok().and_then(|pin| state.entries.get(pin)).copied() else {
            return;
        };
        if entry & MASKED == 0 {
            self.deliver(entry);
        } else {
            state.pending |= 1 << pin;
        }
    }

    fn deliver(&self, entry: u64) {
        let destination = (entry >> 56) & 0xff;
        let logical = (entry >> 11) & 1;
        let address = 0xfee0_0000 | (destination << 12) | (logical << 2);
        // Vector and delivery mode keep their places; the trigger mode stays edge.
        self.sink.send(address, u32::try_from(entry & 0x7ff).unwrap_or_default());
    }

    /// Reads a register, at the offset from the IOAPIC's base.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let state = self.state();
        match offset {
            0 => state.select.into(),
            0x10 => match state.select {
                0 | 2 => state.id,
                1 => VERSION,
                select => match Self::half(select) {
                    Some((pin, high)) => {
                        let entry = state.entries.get(pin).copied().unwrap_or_default();
                        u32::try_from((entry >> if high { 32 } else { 0 }) & 0xffff_ffff).unwrap_or_default()
                    }
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    /// Writes a register, at the offset from the IOAPIC's base.
    pub fn write(&self, offset: u64, value: u32) {
        let mut state = self.state();
        match offset {
            0 => state.select = value.to_le_bytes()[0],
            0x10 => match state.select {
                0 => state.id = value & 0x0f00_0000,
                select => {
                    let Some((pin, high)) = Self::half(select) else { return };
                    let Some(entry) = state.entries.get_mut(pin) else { return };
                    *entry = if high {
                        (*entry & 0xffff_ffff) | (u64::from(value) << 32)
                    } else {
                        (*entry & !0xffff_ffff) | (u64::from(value) & !READ_ONLY)
                    };
                    let entry = *entry;
                    if entry & MASKED == 0 && state.pending & (1 << pin) != 0 {
                        state.pending &= !(1 << pin);
                        self.deliver(entry);
                    }
                }
            },
            _ => {}
        }
    }

    /// Which redirection entry, and whether its upper half, a register index means.
    fn half(select: u8) -> Option<(usize, bool)> {
        let index = usize::from(select.checked_sub(0x10)?);
        (index / 2 < PINS).then_some((index / 2, index % 2 == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);
    impl MsiSink for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    fn set(ioapic: &IoApic, index: u32, value: u32) {
        ioapic.write(0, index);
        ioapic.write(0x10, value);
    }

    #[test]
    fn a_masked_edge_is_delivered_once_when_unmasked() {
        let sent = Arc::new(Sent::default());
        let ioapic = IoApic::new(sent.clone());
        ioapic.raise(4);
        ioapic.raise(4);
        assert!(sent.0.lock().unwrap().is_empty());
        set(&ioapic, 0x10 + 9, 3 << 24);
        set(&ioapic, 0x10 + 8, 0x31);
        set(&ioapic, 0x10 + 8, 0x31);
        assert_eq!(*sent.0.lock().unwrap(), [(0xfee0_3000, 0x31)]);
        ioapic.raise(4);
        assert_eq!(sent.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_restored_one_goes_on_and_delivers_what_was_pending() {
        let (first, second) = (Arc::new(Sent::default()), Arc::new(Sent::default()));
        let old = IoApic::new(first.clone());
        set(&old, 0x10 + 9, 3 << 24);
        old.raise(4);
        old.raise(5);
        let mut state = old.save();
        assert_eq!(state.pending, 0b11_0000);
        state.entries[4] &= !MASKED;
        let new = IoApic::new(second.clone());
        new.restore(&state);
        assert_eq!(*second.0.lock().unwrap(), [(0xfee0_3000, 0)]);
        assert_eq!((new.save().pending, new.save().entries), (0b10_0000, state.entries));
        assert!(first.0.lock().unwrap().is_empty());
    }

    #[test]
    fn indexes_out_of_range_do_nothing() {
        let ioapic = IoApic::new(Arc::new(Sent::default()));
        for select in 0..=255 {
            set(&ioapic, select, u32::MAX);
            let _ = ioapic.read(0x10);
        }
        ioapic.raise(24);
        ioapic.raise(u32::MAX);
        ioapic.write(0, 1);
        assert_eq!(ioapic.read(0x10), 0x0017_0020);
    }
}
