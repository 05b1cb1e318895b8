//! What the guest's doings ask of the driver thread.
//!
//! vCPU threads never start, stop or remove devices themselves; they leave a mark here and wake the driver. Marks are bits
//! and a slot for the end, so a guest that repeats itself uses no memory.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;
use wire::machine::{EndReason, MachineEnd};

/// Marks for the driver thread.
pub struct Signals {
    wake: EventFd,
    devices: AtomicU32,
    ejected: AtomicU32,
    processors: AtomicBool,
    panicked: AtomicBool,
    ended: AtomicBool,
    end: Mutex<Option<MachineEnd>>,
}

impl Signals {
    /// No marks.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            devices: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
            processors: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            end: Mutex::new(None),
        })
    }

    /// Readable when there are marks.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }

    /// Wakes the driver without a mark.
    pub fn wake(&self) {
        // The counter can only be full when the driver is woken already.
        let _ = self.wake.write(1);
    }

    /// A slot's device wants to be started, stopped or moved.
    pub fn device(&self, slot: u8) {
        self.devices.fetch_or(1u32.checked_shl(slot.into()).unwrap_or_default(), Ordering::SeqCst);
        self.wake();
    }

    /// The guest ejected these slots.
    pub fn eject(&self, slots: u32) {
        self.ejected.fetch_or(slots, Ordering::SeqCst);
        self.wake();
    }

    /// The guest ejected processors.
    pub fn processors_went(&self) {
        self.processors.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Takes whether it did.
    #[must_use]
    pub fn take_processors(&self) -> bool {
        self.processors.swap(false, Ordering::SeqCst)
    }

    /// The guest's kernel says that it panicked.
    pub fn panic(&self) {
        if !self.panicked.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Whether it did.
    #[must_use]
    pub fn panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }

    /// The machine ends; the first reason counts.
    pub fn end(&self, reason: EndReason, detail: impl Into<String>) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert_with(|| MachineEnd { reason, detail: detail.into() });
        drop(end);
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether the machine ends.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Takes the reason of the end.
    #[must_use]
    pub fn take_end(&self) -> Option<MachineEnd> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes the slots that want attention and those that were ejected.
    #[must_use]
    pub fn take(&self) -> (u32, u32) {
        let _ = self.wake.read();
        (self.devices.swap(0, Ordering::SeqCst), self.ejected.swap(0, Ordering::SeqCst))
    }
}
