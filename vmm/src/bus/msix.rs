//! MSI-X: a device's vectors, delivered by irqfd.
//!
//! A vector is *open* while the guest has MSI-X enabled, the function unmasked and the vector unmasked. Signalling an open
//! vector writes its eventfd, which KVM turns into the message of the vector's route; any thread may do it without a lock. Signalling a
//! closed one sets its pending bit, which opening delivers.
//!
//! Others signal a vector by an event of their own ([`Msix::event`]), which is one more irqfd of the same route. They know nothing of
//! masks: while the vector is closed KVM does not listen to it, so that the event itself remembers what is pending. The monitor neither
//! reads nor writes such an event: whoever holds it can make both block, for `O_NONBLOCK` belongs to all who hold it together.

use crate::machine::layout::IOAPIC_PINS;
use crate::virtio::RestoreError;
use crate::virtio::worker::borrow;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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
}

/// An event that others write.
struct Given {
    event: EventFd,
    /// KVM listens to it.
    attached: bool,
}

impl Given {
    /// Whether it was written while nobody listened.
    fn waits(&self) -> bool {
        let mut fds = [PollFd::new(borrow(&self.event), PollFlags::POLLIN)];
        !self.attached && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

struct Table {
    bytes: Vec<u8>,
    control: u16,
    /// Vectors whose eventfd KVM listens to.
    attached: Vec<bool>,
    /// Events that were given away, by vector.
    given: BTreeMap<usize, Given>,
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
                Ok(Vector { event, gsi: first + u32::from(index), open: AtomicBool::new(false) })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let mut bytes = vec![0u8; usize::from(count) * ENTRY];
        for entry in bytes.chunks_exact_mut(ENTRY) {
            if let Some(control) = entry.get_mut(12) {
                *control = 1;
            }
        }
        let (attached, given) = (vec![false; usize::from(count)], BTreeMap::new());
        let table = Mutex::new(Table { bytes, control: 0, attached, given });
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

    /// The event by which others signal a vector, whether or not it is open. `None` when there is no such vector.
    pub fn event(&self, index: u16) -> Option<std::io::Result<EventFd>> {
        let index = usize::from(index);
        self.vectors.get(index)?;
        let mut table = self.table();
        if let Entry::Vacant(place) = table.given.entry(index) {
            let event = match EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) {
                Ok(event) => event,
                Err(error) => return Some(Err(error)),
            };
            place.insert(Given { event, attached: false });
            self.settle(&mut table, index);
        }
        table.given.get(&index).map(|given| given.event.try_clone())
    }

    /// What is pending: signalled while closed.
    fn pending(&self, table: &Table) -> u64 {
        let waits = table.given.iter().filter(|(_, given)| given.waits());
        waits.fold(self.pending.load(Ordering::SeqCst), |bits, (index, _)| {
            bits | u32::try_from(*index).ok().and_then(|index| 1u64.checked_shl(index)).unwrap_or_default()
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
        let pending = self.pending(&table);
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
        let bits = self.pending(&self.table()).to_le_bytes();
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
        let shut = table.control & ENABLE == 0 || table.control & FUNCTION_MASK != 0 || masked;
        // A message that KVM refuses leaves the vector closed: the guest asked for nonsense.
        if shut || !self.route(vector, address, data) {
            vector.open.store(false, Ordering::SeqCst);
            if let Some(given) = table.given.get_mut(&index).filter(|given| given.attached) {
                given.attached = self.routes.vm.unregister_irqfd(&given.event, vector.gsi).is_err();
            }
            return;
        }
        if let Some(given) = table.given.get_mut(&index).filter(|given| !given.attached) {
            // What it remembers is delivered by this.
            given.attached = self.routes.vm.register_irqfd(&given.event, vector.gsi).is_ok();
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

    /// Gives a vector its message; answers whether KVM takes it.
    fn route(&self, vector: &Vector, address: u64, data: u32) -> bool {
        let taken = self.routes.set(vector.gsi, Some((address, data))).is_ok();
        if !taken {
            let _ = self.routes.set(vector.gsi, None);
        }
        taken
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        let mut table = self.table();
        let attached = std::mem::take(&mut table.attached);
        for (vector, attached) in self.vectors.iter().zip(attached) {
            if attached {
                let _ = self.routes.vm.unregister_irqfd(&vector.event, vector.gsi);
            }
        }
        for (index, given) in std::mem::take(&mut table.given) {
            if let Some(vector) = self.vectors.get(index).filter(|_| given.attached) {
                let _ = self.routes.vm.unregister_irqfd(&given.event, vector.gsi);
            }
        }
        if let (Some(first), Some(last)) = (self.vectors.first(), self.vectors.last()) {
            self.routes.forget(first.gsi..last.gsi + 1);
        }
    }
}
