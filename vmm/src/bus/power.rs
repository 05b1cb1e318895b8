//! ACPI's own registers: sleep control, and what the DSDT's methods read and write for the power button and PCI hot-plug.
//!
//! | port | width | what |
//! |---|---|---|
//! | +0x00 | 1 | sleep control (FADT): `SLP_EN` with type 5 powers off |
//! | +0x01 | 1 | sleep status (FADT) |
//! | +0x10 | 4 | events since the last read, cleared by reading: see [`EVENT_POWER`], [`EVENT_PCI`], [`EVENT_GENERATION`], [`EVENT_PROCESSORS`] |
//! | +0x14 | 4 | slots that got a device, a bit each, cleared by reading |
//! | +0x18 | 4 | slots whose device is asked back, a bit each, cleared by reading |
//! | +0x1c | 4 | write: slots that the guest ejects, a bit each |
//!
//! A new bit raises the generic event device's interrupt; its `_EVT` method reads the events.

use super::ioapic::IoApic;
use crate::machine::layout::GED_IRQ;
use crate::machine::signals::Signals;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use wire::machine::EndReason;

/// Offset of the events register.
pub const EVENTS: u16 = 0x10;
/// Offset of the inserted-slots register.
pub const INSERTED: u16 = 0x14;
/// Offset of the asked-back register.
pub const ASKED_BACK: u16 = 0x18;
/// Offset of the eject register.
pub const EJECT: u16 = 0x1c;

/// The power button was pressed.
pub const EVENT_POWER: u32 = 1;
/// Look at the slot registers.
pub const EVENT_PCI: u32 = 2;
/// The machine's generation id changed.
pub const EVENT_GENERATION: u32 = 4;

/// Look at the processors' registers.
pub const EVENT_PROCESSORS: u32 = 8;

/// `SLP_TYP` value of S5, as the DSDT's `\_S5` says.
pub const S5: u8 = 5;
const SLP_EN: u8 = 1 << 5;

/// The registers in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// Events that the guest has not read yet.
    pub events: u32,
    /// Slots that got a device, which it has not read yet.
    pub inserted: u32,
    /// Slots whose device is asked back, which it has not read yet.
    pub asked_back: u32,
    /// It has read of the power button.
    pub heard: bool,
}

/// The registers.
pub struct Power {
    ioapic: Arc<IoApic>,
    signals: Arc<Signals>,
    events: AtomicU32,
    inserted: AtomicU32,
    asked_back: AtomicU32,
    /// The guest took notice of the power button.
    heard: AtomicBool,
}

impl Power {
    /// Registers at rest.
    #[must_use]
    pub fn new(ioapic: Arc<IoApic>, signals: Arc<Signals>) -> Self {
        let zero = || AtomicU32::new(0);
        let heard = AtomicBool::new(false);
        Self { ioapic, signals, events: zero(), inserted: zero(), asked_back: zero(), heard }
    }

    /// Their state.
    #[must_use]
    pub fn save(&self) -> PowerState {
        PowerState {
            events: self.events.load(Ordering::SeqCst),
            inserted: self.inserted.load(Ordering::SeqCst),
            asked_back: self.asked_back.load(Ordering::SeqCst),
            heard: self.heard.load(Ordering::SeqCst),
        }
    }

    /// Takes over a state.
    pub fn restore(&self, state: &PowerState) {
        self.events.store(state.events, Ordering::SeqCst);
        self.inserted.store(state.inserted, Ordering::SeqCst);
        self.asked_back.store(state.asked_back, Ordering::SeqCst);
        self.heard.store(state.heard, Ordering::SeqCst);
    }

    fn event(&self, event: u32) {
        self.events.fetch_or(event, Ordering::SeqCst);
        self.ioapic.raise(GED_IRQ);
    }

    /// Presses the power button.
    pub fn press(&self) {
        self.event(EVENT_POWER);
    }

    /// Tells the guest that it goes on as another machine.
    pub fn new_generation(&self) {
        self.event(EVENT_GENERATION);
    }

    /// Tells the guest to look at the processors' registers.
    pub fn processors(&self) {
        self.event(EVENT_PROCESSORS);
    }

    /// Tells the guest that a slot got a device.
    pub fn inserted(&self, slot: u8) {
        self.asked_back.fetch_and(!bit(slot), Ordering::SeqCst);
        self.inserted.fetch_or(bit(slot), Ordering::SeqCst);
        self.event(EVENT_PCI);
    }

    /// Asks the guest to eject a slot's device.
    pub fn ask_back(&self, slot: u8) {
        self.asked_back.fetch_or(bit(slot), Ordering::SeqCst);
        self.event(EVENT_PCI);
    }

    /// Reads a register, at the offset from the first port. What is no register is all-ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (0 | 1, 1) => 0,
            (EVENTS, 4) => {
                let events = self.events.swap(0, Ordering::SeqCst);
                if events & EVENT_POWER != 0 {
                    self.heard.store(true, Ordering::SeqCst);
                }
                events
            }
            (INSERTED, 4) => self.inserted.swap(0, Ordering::SeqCst),
            (ASKED_BACK, 4) => self.asked_back.swap(0, Ordering::SeqCst),
            _ => u32::MAX,
        };
        data.fill(0xff);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Writes a register, at the offset from the first port.
    pub fn write(&self, offset: u16, data: &[u8]) {
        match (offset, data) {
            (0, [value]) if value & SLP_EN != 0 && (value >> 2) & 7 == S5 => {
                let asked = self.heard.load(Ordering::SeqCst);
                self.signals.end(if asked { EndReason::PowerButton } else { EndReason::PowerOff }, "");
            }
            (EJECT, data) => {
                if let Ok(bytes) = <[u8; 4]>::try_from(data) {
                    self.signals.eject(u32::from_le_bytes(bytes));
                }
            }
            _ => {}
        }
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or_default()
}
