//! Virtio over PCI (virtio 1.2, section 4.1, modern only), one BAR, MSI-X only.
//!
//! BAR layout:
//!
//! | offset | what |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x0100 | interrupt status |
//! | 0x0200 | device configuration (up to 0xe00 bytes) |
//! | 0x1000 | MSI-X table |
//! | 0x1800 | MSI-X pending bits |
//! | 0x2000 | notifications, 4 bytes a queue |
//!
//! A vCPU thread only notes what the guest's driver wants ("start" by `DRIVER_OK`, "reset" by status 0) and marks the slot in
//! [`Signals`]; the driver thread then calls [`VirtioPci::settle`], which does it. Virtio allows this: a driver waits
//! until the status reads 0 after a reset, and buffers offered before the device started are looked at when it starts.
//!
//! ```text
//!            DRIVER_OK                 settle
//!   idle ---------------> to start --------------> active
//!    ^                       |                       |
//!    |       settle          |      status = 0       |
//!    +------------------- to reset <-----------------+
//! ```

mod common;
mod space;

pub use common::{CommonState, InterruptState, PciInterrupt, QueueState};

use crate::bus::msix::{Msix, MsixState, Routes};
use crate::bus::pci::{BAR_SIZE, Base, PciDevice, UNMAPPED, first_base};
use crate::machine::signals::Signals;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, DeviceState, Interrupt, Memory, QueueProgress, RestoreError,
    Snapshot, VirtioDevice,
};
use common::Common;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use serde::{Deserialize, Serialize};
use space::ConfigSpace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;
use wire::machine::Limits;

const ISR: u32 = 0x100;
const DEVICE_CONFIG: u32 = 0x200;
const DEVICE_CONFIG_LEN: u32 = 0xe00;
const TABLE: u32 = 0x1000;
const PENDING: u32 = 0x1800;
const NOTIFY: u32 = 0x2000;
const NOTIFY_LEN: u32 = 0x1000;
/// Distance between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

/// What a transport is plugged into.
#[derive(Clone)]
pub struct Host {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its interrupt routes.
    pub routes: Arc<Routes>,
    /// Its memory.
    pub memory: Arc<Memory>,
    /// Marks for the driver thread.
    pub signals: Arc<Signals>,
}

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    host: Host,
    slot: u8,
    base: Base,
    space: ConfigSpace,
    common: Common,
    msix: Arc<Msix>,
    interrupt: Arc<PciInterrupt>,
    device: Box<dyn VirtioDevice>,
    active: bool,
    /// Kick events of the active queues with their index, and the BAR base where KVM listens for them.
    kicks: Vec<(u16, EventFd)>,
    listening: Option<u32>,
    /// How far its queues were when the device was last paused, or restored and not started since.
    progress: Vec<QueueProgress>,
    /// The vectors of the active queues as the device knows them.
    wired: Vec<u16>,
}

/// A device in its slot, as a snapshot holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// Virtio device id.
    pub device_type: u16,
    /// The 256 bytes of its configuration space.
    pub space: Vec<u8>,
    /// Common configuration.
    pub common: CommonState,
    /// Which vector each queue and the configuration use, and what was not looked at yet.
    pub interrupt: InterruptState,
    /// The vectors.
    pub msix: MsixState,
    /// How far each enabled queue is, for a device that works.
    pub progress: Vec<QueueProgress>,
    /// The device itself.
    pub device: DeviceState,
}

impl Snapshot for VirtioPci {
    type State = VirtioPciState;

    /// Only while the device is paused or idle.
    fn save(&self) -> VirtioPciState {
        VirtioPciState {
            device_type: self.device.device_type(),
            space: self.space.bytes().to_vec(),
            common: self.common.save(),
            interrupt: self.interrupt.save(),
            msix: self.msix.save(),
            progress: self.progress.clone(),
            device: self.device.save(),
        }
    }

    /// Leaves the device idle with a mark for the driver thread, whose next [`VirtioPci::settle`] starts it where it was.
    fn restore(&mut self, state: &VirtioPciState) -> Result<(), RestoreError> {
        if state.device_type != self.device.device_type() {
            return Err(state.device.is_not(&format!("virtio device type {}", self.device.device_type())));
        }
        self.device.restore(&state.device)?;
        self.common.restore(&state.common, &*self.device)?;
        self.interrupt.restore(&state.interrupt)?;
        self.space.restore(&state.space)?;
        self.msix.restore(&state.msix)?;
        self.space.set_msix_control(self.msix.control());
        self.progress.clone_from(&state.progress);
        self.base.store(self.space.mapped_base(), Ordering::Release);
        self.host.signals.device(self.slot);
        Ok(())
    }
}

impl VirtioPci {
    /// Puts a device behind a transport for a slot.
    ///
    /// # Errors
    /// When the host has no more eventfds.
    pub fn new(host: Host, slot: u8, device: Box<dyn VirtioDevice>) -> std::io::Result<Self> {
        let queues = device.queue_sizes().to_vec();
        let vectors = u16::try_from(queues.len()).unwrap_or(u16::MAX).saturating_add(1);
        let msix = Arc::new(Msix::new(host.routes.clone(), slot, vectors)?);
        let interrupt = Arc::new(PciInterrupt::new(msix.clone(), queues.len()));
        Ok(Self {
            host,
            slot,
            base: Arc::new(AtomicU32::new(UNMAPPED)),
            space: ConfigSpace::new(device.device_type(), first_base(slot), msix.count()),
            common: Common::new(&queues),
            msix,
            interrupt,
            device,
            active: false,
            kicks: Vec::new(),
            listening: None,
            progress: Vec::new(),
            wired: Vec::new(),
        })
    }

    /// Where the BAR is, for the bus.
    #[must_use]
    pub fn base(&self) -> Base {
        self.base.clone()
    }

    /// The guest's driver uses the device.
    #[must_use]
    pub fn driver_ok(&self) -> bool {
        self.active
    }

    /// Makes the device look again at the size of what is behind it. `None` for devices without one.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn refresh_size(&mut self) -> std::io::Result<Option<u64>> {
        self.device.refresh_size()
    }

    /// The device behind the transport, for what is said to it from outside of the guest.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    /// See [`VirtioDevice::set_limits`].
    pub fn set_limits(&mut self, limits: [Limits; 2]) -> bool {
        self.device.set_limits(limits)
    }

    /// Size of a disk in bytes: its configuration space starts with the number of 512-byte sectors.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let mut sectors = [0u8; 8];
        self.device.read_config(0, &mut sectors);
        u64::from_le_bytes(sectors).saturating_mul(512)
    }

    /// Stops the device's worker until [`VirtioPci::resume`].
    pub fn pause(&mut self) {
        if self.active {
            self.progress = self.device.pause();
        }
    }

    /// Lets the device's worker go on.
    pub fn resume(&mut self) {
        if self.active {
            self.device.resume();
        }
    }

    /// Does what the guest's driver asked for since the last time. Only the machine's driver thread calls this.
    ///
    /// # Errors
    /// Why the device did not start, for the log; the guest's driver is told by `DEVICE_NEEDS_RESET`.
    pub fn settle(&mut self) -> Result<(), ActivateError> {
        let mut result = Ok(());
        if self.common.wants_reset() {
            self.progress.clear();
            self.stop();
            self.common.reset();
            self.interrupt.reset();
        }
        if self.common.wants_start() && !self.active {
            result = self.start();
            if result.is_err() {
                self.progress.clear();
                self.stop();
                self.common.set_needs_reset();
                self.interrupt.config_changed();
            }
        }
        if self.active && self.wired != self.interrupt.vectors() {
            self.wired = self.interrupt.vectors();
            self.device.rewire();
        }
        self.listen();
        result
    }

    /// Stops the device for good: before it leaves its slot.
    pub fn stop(&mut self) {
        self.device.reset();
        self.unlisten();
        self.kicks.clear();
        self.active = false;
    }

    fn start(&mut self) -> Result<(), ActivateError> {
        let host = |what| move |source| ActivateError::Host { what, source };
        let features = self.common.features();
        let mut queues = Vec::with_capacity(self.common.queues().len());
        let mut kicks = Vec::new();
        for (index, config) in (0u16..).zip(self.common.queues()) {
            let mut queue = Queue::new(config.max_size())
                .map_err(|error| ActivateError::Driver(format!("queue {index}: {error}")))?;
            let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an event"))?;
            if config.enabled() {
                config.apply(&mut queue);
                queue.set_event_idx(features & EVENT_IDX != 0);
                if let Some(progress) = self.progress.iter().find(|progress| progress.queue == index) {
                    queue.set_next_avail(progress.next_avail);
                    queue.set_next_used(progress.next_used);
                }
                if !queue.is_valid(&*self.host.memory) {
                    return Err(ActivateError::Driver(format!("queue {index} is not inside guest memory")));
                }
                kicks.push((index, kick.try_clone().map_err(host("copy an event"))?));
            }
            queues.push(ActiveQueue { index, queue, kick });
        }
        let activation = Activation {
            memory: self.host.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features,
        };
        self.wired = self.interrupt.vectors();
        self.device.activate(activation)?;
        self.active = true;
        self.kicks = kicks;
        let restored = !std::mem::take(&mut self.progress).is_empty();
        // Kicks that came before now are not known one by one; a kick too many is harmless, and so is an interrupt too many: one may
        // have been on its way when the state was saved.
        for (index, kick) in &self.kicks {
            self.kick(*index, kick);
            if restored {
                self.interrupt.queue(*index);
            }
        }
        Ok(())
    }

    /// Lets KVM turn notification writes into kick events, where the BAR is now.
    fn listen(&mut self) {
        let base = self.base.load(Ordering::Acquire);
        let wanted = (self.active && base != UNMAPPED).then_some(base);
        if wanted == self.listening {
            return;
        }
        self.unlisten();
        if let Some(base) = wanted {
            for (index, kick) in &self.kicks {
                // Should KVM refuse, notifications still arrive as exits.
                let _ = self.host.vm.register_ioevent(kick, &notify_address(base, *index), NoDatamatch);
            }
            self.listening = Some(base);
        }
    }

    fn unlisten(&mut self) {
        if let Some(base) = self.listening.take() {
            for (index, kick) in &self.kicks {
                let _ = self.host.vm.unregister_ioevent(kick, &notify_address(base, *index), NoDatamatch);
            }
        }
    }

    fn notify(&self, offset: u32) {
        let queue = u16::try_from(offset / NOTIFY_MULTIPLIER).unwrap_or(u16::MAX);
        if let Some((_, kick)) = self.kicks.iter().find(|(index, _)| *index == queue) {
            self.kick(queue, kick);
        }
    }

    fn kick(&self, queue: u16, event: &EventFd) {
        if !self.device.kick(queue) {
            let _ = event.write(1);
        }
    }

    /// After a configuration write: moves the BAR, and asks for attention when KVM listens at the old place.
    fn follow_base(&mut self) {
        let base = self.space.mapped_base();
        if self.base.swap(base, Ordering::AcqRel) != base && self.active {
            self.host.signals.device(self.slot);
        }
    }

    /// The BAR access that the guest asks for through configuration space (`VIRTIO_PCI_CAP_PCI_CFG`).
    fn indirect(&self) -> Option<(u32, usize)> {
        let (offset, length) = self.space.indirect();
        let length = usize::try_from(length).ok().filter(|length| matches!(length, 1 | 2 | 4))?;
        let aligned = offset.is_multiple_of(u32::try_from(length).ok()?);
        (aligned && offset < BAR_SIZE).then_some((offset, length))
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.stop();
    }
}

fn notify_address(base: u32, queue: u16) -> IoEventAddress {
    IoEventAddress::Mmio(
        u64::from(base) + u64::from(NOTIFY) + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER),
    )
}

impl PciDevice for VirtioPci {
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        if ConfigSpace::is_indirect_data(offset)
            && let Some((at, length)) = self.indirect()
        {
            let mut word = [0u8; 4];
            if let Some(part) = word.get_mut(..length) {
                self.read_bar(at, part);
            }
            self.space.set_indirect_data(word);
        }
        self.space.set_msix_control(self.msix.control());
        self.space.read(offset, data);
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        self.space.write(offset, data);
        if let Some(control) = self.space.msix_control_written(offset, data.len()) {
            self.msix.set_control(control);
        }
        if ConfigSpace::is_indirect_data(offset)
            && let Some((at, length)) = self.indirect()
        {
            let word = self.space.indirect_data();
            if let Some(part) = word.get(..length) {
                self.write_bar(at, part);
            }
        }
        self.follow_base();
    }

    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        match offset {
            0..ISR => {
                let generation = self.interrupt.generation();
                self.common.read(&*self.device, &self.interrupt, generation, offset, data);
            }
            ISR => {
                if let Some(first) = data.first_mut() {
                    *first = self.interrupt.take_isr();
                }
            }
            DEVICE_CONFIG..TABLE => {
                self.device.read_config((offset - DEVICE_CONFIG).into(), data);
            }
            TABLE..PENDING => self.msix.read_table((offset - TABLE).into(), data),
            PENDING..NOTIFY => self.msix.read_pending((offset - PENDING).into(), data),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        match offset {
            0..ISR => {
                let attention = self.common.write(&*self.device, &self.interrupt, offset, data);
                if attention {
                    self.host.signals.device(self.slot);
                }
            }
            DEVICE_CONFIG..TABLE => self.device.write_config((offset - DEVICE_CONFIG).into(), data),
            TABLE..PENDING => self.msix.write_table((offset - TABLE).into(), data),
            NOTIFY.. if offset - NOTIFY < NOTIFY_LEN => self.notify(offset - NOTIFY),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
