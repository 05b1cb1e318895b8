//! MSI-X: a device's vectors, delivered by irqfd.
//!
//! A vector is *open* while the guest has MSI-X enabled, the function unmasked and the vector unmasked. Signalling an open
//! vector writes its eventfd, which KVM turns into the message of the vector's route; any thread may do it without a lock. Signalling a
//! closed one sets its pending bit, which opening delivers.
//!
//! A vector whose event was given away ([`Msix::event`]) is signalled by others, who know nothing of masks: while it is closed KVM does
//! not listen, so that the event itself remembers what is pending.

use crate::machine::layout::IOAPIC_PINS;
use crate::virtio::RestoreError;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Most vectors of a device; also the stride of interrupt numbers between slots.
pub const MAX_VECTORS: u16 = 64;
/// Bytes of a table entry.
const ENTRY: usize = 16;
/// Message control: MSI-X on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: this vector masked.
const VECTOR_MASK: u32 = 1;

/// The message that KVM sends for each interrupt number of the machine.
pub struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<BTreeMap<u32, (u64, u32)>>,
}

impl Routes {
    /// No routes yet.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::new(BTreeMap::new()) }
    }

    /// Sets or takes away the message of an interrupt number. KVM only takes the whole table, and only when it changed.
    fn set(&self, gsi: u32, message: Option<(u64, u32)>) -> Result<(), kvm_ioctls::Error> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match message {
            Some(message) => table.insert(gsi, message),
            None => table.remove(&gsi),
        };
        if before == message {
            return Ok(());
        }
        let entries: Vec<_> =
            table.iter().map(|(gsi, (address, data))| route(*gsi, *address, *data)).collect();
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        self.vm.set_gsi_routing(&routing)
    }

    fn forget(&self, gsis: std::ops::Range<u32>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|gsi, _| !gsis.contains(gsi));
    }
}

fn route(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = u32::try_from(address & 0xffff_ffff).unwrap_or_default();
    entry.u.msi.address_hi = u32::try_from(address >> 32).unwrap_or_default();
    entry.u.msi.data = data;
    entry
}

/// [`Msix`] in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The table's bytes.
    pub table: Vec<u8>,
    /// Message control: enable and function mask.
    pub control: u16,
    /// Pending bits.
    pub pending: u64,
}

struct Vector {
    event: EventFd,
    gsi: u32,
    open: AtomicBool,
    /// Others may write the event.
    given: AtomicBool,
}

impl Vector {
    /// Whether a given event was written while nobody listened.
    fn waits(&self) -> bool {
        let closed = self.given.load(Ordering::SeqCst) && !self.open.load(Ordering::SeqCst);
        let waits = closed && self.event.read().is_ok();
        if waits {
            let _ = self.event.write(1);
        }
        waits
    }
}

struct Table {
    bytes: Vec<u8>,
    control: u16,
    /// Vectors whose eventfd KVM listens to.
    attached: Vec<bool>,
}

/// The MSI-X vectors of one device.
pub struct Msix {
    routes: Arc<Routes>,
    vectors: Vec<Vector>,
    pending: AtomicU64,
    table: Mutex<Table>,
}

impl Msix {
    /// `count` vectors (at most [`MAX_VECTORS`]) for the device in a slot.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new(routes: Arc<Routes>, slot: u8, count: u16) -> std::io::Result<Self> {
        let count = count.min(MAX_VECTORS);
        let first = IOAPIC_PINS + u32::from(slot) * u32::from(MAX_VECTORS);
        let vectors = (0..count)
            .map(|index| {
                let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
                let (open, given) = (AtomicBool::new(false), AtomicBool::new(false));
                Ok(Vector { event, gsi: first + u32::from(index), open, given })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let mut bytes = vec![0u8; usize::from(count) * ENTRY];
        for entry in bytes.chunks_exact_mut(ENTRY) {
            if let Some(control) = entry.get_mut(12) {
                *control = 1;
            }
        }
        let table = Mutex::new(Table { bytes, control: 0, attached: vec![false; usize::from(count)] });
        Ok(Self { routes, vectors, pending: AtomicU64::new(0), table })
    }

    /// Number of vectors.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals a vector. Vectors that do not exist are ignored.
    pub fn signal(&self, index: u16) {
        let Some(vector) = self.vectors.get(usize::from(index)) else { return };
        if vector.open.load(Ordering::SeqCst) {
            let _ = vector.event.write(1);
            return;
        }
        let bit = 1u64 << index;
        self.pending.fetch_or(bit, Ordering::SeqCst);
        // It may have been opened in between, without seeing the pending bit.
        if vector.open.load(Ordering::SeqCst) && self.pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
            let _ = vector.event.write(1);
        }
    }

    /// The event that signals a vector, for others to write, whether or not it is open. `None` when there is no such vector.
    pub fn event(&self, index: u16) -> Option<std::io::Result<EventFd>> {
        let vector = self.vectors.get(usize::from(index))?;
        let mut table = self.table();
        vector.given.store(true, Ordering::SeqCst);
        self.settle(&mut table, usize::from(index));
        Some(vector.event.try_clone())
    }

    /// What is pending: signalled while closed.
    fn pending(&self) -> u64 {
        let waits = (0u32..).zip(&self.vectors).filter(|(_, vector)| vector.waits());
        waits.fold(self.pending.load(Ordering::SeqCst), |bits, (index, _)| {
            bits | 1u64.checked_shl(index).unwrap_or_default()
        })
    }

    /// Message control as the guest reads it: the table's size in the low bits.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.table().control | self.count().saturating_sub(1)
    }

    /// The guest writes message control.
    pub fn set_control(&self, value: u16) {
        let mut table = self.table();
        table.control = value & (ENABLE | FUNCTION_MASK);
        self.settle_all(&mut table);
    }

    /// What a snapshot holds.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let table = self.table();
        let pending = self.pending();
        MsixState { table: table.bytes.clone(), control: table.control, pending }
    }

    /// Takes over what [`Msix::save`] said; what was pending and is open is delivered.
    ///
    /// # Errors
    /// When it is of another number of vectors.
    pub fn restore(&self, state: &MsixState) -> Result<(), RestoreError> {
        let mut table = self.table();
        if state.table.len() != table.bytes.len() {
            let (found, wanted) = (state.table.len() / ENTRY, self.vectors.len());
            return Err(RestoreError::Host(format!("the device had {found} interrupts, not {wanted}")));
        }
        table.bytes.clone_from(&state.table);
        table.control = state.control & (ENABLE | FUNCTION_MASK);
        let known = 1u64.checked_shl(self.count().into()).map_or(u64::MAX, |above| above - 1);
        self.pending.store(state.pending & known, Ordering::SeqCst);
        self.settle_all(&mut table);
        Ok(())
    }

    /// Reads the table. Bytes past its end are zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let table = self.table();
        let bytes =
            usize::try_from(offset).ok().and_then(|offset| table.bytes.get(offset..)).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Writes the table. Bytes past its end are dropped.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut table = self.table();
        let Ok(offset) = usize::try_from(offset) else { return };
        let Some(bytes) = table.bytes.get_mut(offset..) else { return };
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let last = offset.saturating_add(data.len().saturating_sub(1)) / ENTRY;
        for index in offset / ENTRY..=last {
            self.settle(&mut table, index);
        }
    }

    /// Reads the pending bit array.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let bits = self.pending().to_le_bytes();
        for (at, to) in (offset..).zip(data.iter_mut()) {
            *to = usize::try_from(at).ok().and_then(|at| bits.get(at)).copied().unwrap_or_default();
        }
    }

    fn settle_all(&self, table: &mut Table) {
        for index in 0..self.vectors.len() {
            self.settle(table, index);
        }
    }

    /// Opens or closes a vector as the table says.
    fn settle(&self, table: &mut Table, index: usize) {
        let Some(vector) = self.vectors.get(index) else { return };
        let Some(entry) = table.bytes.get(index * ENTRY..(index + 1) * ENTRY) else { return };
        let word = |at: usize| {
            entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let address = u64::from(word(0)) | (u64::from(word(4)) << 32);
        let (data, masked) = (word(8), word(12) & VECTOR_MASK != 0);
        if table.control & ENABLE == 0 || table.control & FUNCTION_MASK != 0 || masked {
            vector.open.store(false, Ordering::SeqCst);
            if vector.given.load(Ordering::SeqCst)
                && let Some(attached) = table.attached.get_mut(index).filter(|attached| **attached)
            {
                *attached = self.routes.vm.unregister_irqfd(&vector.event, vector.gsi).is_err();
            }
            return;
        }
        // A message that KVM refuses leaves the vector closed: the guest asked for nonsense.
        if self.routes.set(vector.gsi, Some((address, data))).is_err() {
            let _ = self.routes.set(vector.gsi, None);
            return;
        }
        if let Some(attached) = table.attached.get_mut(index).filter(|attached| !**attached) {
            if self.routes.vm.register_irqfd(&vector.event, vector.gsi).is_err() {
                return;
            }
            *attached = true;
        }
        vector.open.store(true, Ordering::SeqCst);
        let bit = 1u64 << index;
        if self.pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
            let _ = vector.event.write(1);
        }
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        let attached = std::mem::take(&mut self.table().attached);
        for (vector, attached) in self.vectors.iter().zip(attached) {
            if attached {
                let _ = self.routes.vm.unregister_irqfd(&vector.event, vector.gsi);
            }
        }
        if let (Some(first), Some(last)) = (self.vectors.first(), self.vectors.last()) {
            self.routes.forget(first.gsi..last.gsi + 1);
        }
    }
}
