//! The registers by which processors are plugged in and out, as the DSDT's methods read and write them.
//!
//! | port | width | what |
//! |---|---|---|
//! | +0x00 | 4 + 4 | processors that are there, a bit each: 0 to 31, 32 to 63 |
//! | +0x08 | 4 + 4 | those that came, cleared by reading |
//! | +0x10 | 4 + 4 | those that are asked back, cleared by reading |
//! | +0x18 | 4 + 4 | write: those that the guest ejects |
//!
//! An ejected processor is not there any more when the write returns: the guest looks next. Should more have been wanted meanwhile, the
//! driver thread plugs it in again.
//!
//! A processor that is plugged in only does something once the guest starts it (`INIT`, start-up); one that was ejected does nothing
//! more. The first one stays. KVM keeps a start-up that was sent to a processor before it came (a broadcast), and gives it then.

use super::power::Power;
use crate::machine::signals::Signals;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Offset of the processors that are there.
pub const THERE: u16 = 0;
/// Offset of those that came.
pub const CAME: u16 = 8;
/// Offset of those that are asked back.
pub const ASKED_BACK: u16 = 0x10;
/// Offset of the eject register.
pub const EJECT: u16 = 0x18;

/// The registers in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorsState {
    /// Processors that are there.
    pub there: u64,
    /// Those that came, of which the guest has not read yet.
    pub came: u64,
    /// Those that are asked back, of which it has not read yet.
    pub asked_back: u64,
    /// How many there are to be; `None` in snapshots of monitors that did not keep it.
    #[serde(default)]
    pub wanted: Option<u32>,
}

/// The registers.
pub struct Processors {
    power: Arc<Power>,
    signals: Arc<Signals>,
    there: AtomicU64,
    came: AtomicU64,
    asked_back: AtomicU64,
    wanted: AtomicU32,
}

impl Processors {
    /// Registers of a machine that starts with these processors.
    #[must_use]
    pub fn new(there: u64, power: Arc<Power>, signals: Arc<Signals>) -> Self {
        let zero = || AtomicU64::new(0);
        let wanted = AtomicU32::new(there.count_ones());
        Self { power, signals, there: AtomicU64::new(there), came: zero(), asked_back: zero(), wanted }
    }

    /// Their state.
    #[must_use]
    pub fn save(&self) -> ProcessorsState {
        ProcessorsState {
            there: self.there(),
            came: self.came.load(Ordering::SeqCst),
            asked_back: self.asked_back.load(Ordering::SeqCst),
            wanted: Some(self.wanted()),
        }
    }

    /// Takes over a state.
    pub fn restore(&self, state: &ProcessorsState) {
        self.there.store(state.there | 1, Ordering::SeqCst);
        self.came.store(state.came, Ordering::SeqCst);
        self.asked_back.store(state.asked_back, Ordering::SeqCst);
        self.wanted.store(state.wanted.unwrap_or(self.there().count_ones()), Ordering::SeqCst);
    }

    /// How many there are to be.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Keeps how many there are to be.
    pub fn want(&self, count: u32) {
        self.wanted.store(count, Ordering::SeqCst);
    }

    /// The processors that are there, a bit each.
    #[must_use]
    pub fn there(&self) -> u64 {
        self.there.load(Ordering::SeqCst)
    }

    /// Tells the guest of processors that come.
    pub fn come(&self, which: u64) {
        self.there.fetch_or(which, Ordering::SeqCst);
        self.asked_back.fetch_and(!which, Ordering::SeqCst);
        self.came.fetch_or(which, Ordering::SeqCst);
        self.power.processors();
    }

    /// Asks the guest for these processors and no others.
    pub fn ask_back(&self, which: u64) {
        self.asked_back.store(which, Ordering::SeqCst);
        if which != 0 {
            self.power.processors();
        }
    }

    /// Processors went.
    fn go(&self, which: u64) {
        let which = which & !1;
        self.came.fetch_and(!which, Ordering::SeqCst);
        self.asked_back.fetch_and(!which, Ordering::SeqCst);
        if self.there.fetch_and(!which, Ordering::SeqCst) & which != 0 {
            self.signals.processors_went();
        }
    }

    /// Reads a register, at the offset from the first port. What is no register is all-ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let shift = u32::from(offset & 4) * 8;
        let half = u64::from(u32::MAX) << shift;
        let value = match (offset & !4, data.len()) {
            (THERE, 4) => self.there() >> shift,
            (CAME, 4) => (self.came.fetch_and(!half, Ordering::SeqCst) & half) >> shift,
            (ASKED_BACK, 4) => (self.asked_back.fetch_and(!half, Ordering::SeqCst) & half) >> shift,
            _ => u64::MAX,
        };
        data.fill(0xff);
        for (to, from) in data.iter_mut().take(4).zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Writes a register, at the offset from the first port.
    pub fn write(&self, offset: u16, data: &[u8]) {
        if let (EJECT, Ok(bytes)) = (offset & !4, <[u8; 4]>::try_from(data)) {
            self.go(u64::from(u32::from_le_bytes(bytes)) << (u32::from(offset & 4) * 8));
        }
    }
}
