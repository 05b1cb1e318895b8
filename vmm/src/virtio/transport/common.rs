//! The common configuration structure (virtio 1.2, section 4.1.4.3) and the interrupt side of the transport.

use crate::bus::msix::Msix;
use crate::virtio::{Interrupt, RestoreError, VirtioDevice};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 0x40;
const VERSION_1: u64 = 1 << 32;
const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Interrupts of one device: which vector each queue uses, and the status register.
pub struct PciInterrupt {
    msix: Arc<Msix>,
    queues: Vec<AtomicU16>,
    config: AtomicU16,
    isr: AtomicU8,
    generation: AtomicU8,
}

impl PciInterrupt {
    pub(super) fn new(msix: Arc<Msix>, queues: usize) -> Self {
        Self {
            msix,
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        }
    }

    pub(super) fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.isr.store(0, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        self.msix.signal(self.config.load(Ordering::SeqCst));
    }

    pub(super) fn save(&self) -> InterruptState {
        let vector = |vector: &AtomicU16| vector.load(Ordering::SeqCst);
        InterruptState {
            queues: self.queues.iter().map(vector).collect(),
            config: vector(&self.config),
            isr: self.isr.load(Ordering::SeqCst),
            generation: self.generation(),
        }
    }

    pub(super) fn restore(&self, state: &InterruptState) -> Result<(), RestoreError> {
        if state.queues.len() != self.queues.len() {
            return Err(other_queues(state.queues.len(), self.queues.len()));
        }
        for (to, from) in self.queues.iter().zip(&state.queues) {
            to.store(self.checked(*from), Ordering::SeqCst);
        }
        self.config.store(self.checked(state.config), Ordering::SeqCst);
        self.isr.store(state.isr, Ordering::SeqCst);
        self.generation.store(state.generation, Ordering::SeqCst);
        Ok(())
    }

    /// The vector of each queue.
    pub(super) fn vectors(&self) -> Vec<u16> {
        self.queues.iter().map(|vector| vector.load(Ordering::SeqCst)).collect()
    }

    /// The vector as the driver asked for it, or "none" when there is no such vector.
    fn checked(&self, vector: u16) -> u16 {
        if vector < self.msix.count() { vector } else { NO_VECTOR }
    }
}

impl Interrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        if let Some(vector) = self.queues.get(usize::from(index)) {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
            self.msix.signal(vector.load(Ordering::SeqCst));
        }
    }

    fn config(&self) {
        self.config_changed();
    }

    fn event(&self, index: u16) -> std::io::Result<EventFd> {
        let vector =
            self.queues.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst));
        match self.msix.event(vector) {
            Some(event) => event,
            // The driver wants no interrupts of this queue: nobody listens.
            None => EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC),
        }
    }
}

/// [`PciInterrupt`] in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptState {
    /// Vector of each queue; 0xffff for none.
    pub queues: Vec<u16>,
    /// Vector of the configuration.
    pub config: u16,
    /// Status register.
    pub isr: u8,
    /// Generation of the configuration.
    pub generation: u8,
}

/// One queue in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Size.
    pub size: u16,
    /// Whether the driver enabled it.
    pub enabled: bool,
    /// Descriptor table, driver area, device area.
    pub areas: [u64; 3],
}

/// [`Common`] in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonState {
    /// The queues.
    pub queues: Vec<QueueState>,
    /// Which half of the device's features is read.
    pub device_feature_select: u32,
    /// Which half of the driver's features is accessed.
    pub driver_feature_select: u32,
    /// The driver's features.
    pub driver_features: u64,
    /// Which queue is accessed.
    pub queue_select: u16,
    /// Device status.
    pub status: u8,
    /// The driver wrote status 0, and the reset was not done yet.
    pub reset_wanted: bool,
}

fn other_queues(found: usize, wanted: usize) -> RestoreError {
    RestoreError::Host(format!(
        "the device had {found} queues and is made with {wanted} now; make it as it was when the snapshot was taken"
    ))
}

/// One queue as the driver configures it.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    max_size: u16,
    size: u16,
    enabled: bool,
    /// Descriptor table, driver area, device area.
    areas: [u64; 3],
}

impl QueueConfig {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, enabled: false, areas: [0; 3] }
    }

    /// Largest size that the device takes.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver enabled it.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Gives the configuration to a queue.
    pub fn apply(&self, queue: &mut Queue) {
        let halves = |value: u64| {
            let low = u32::try_from(value & 0xffff_ffff).unwrap_or_default();
            (Some(low), u32::try_from(value >> 32).ok())
        };
        let [descriptors, driver, device] = self.areas.map(halves);
        queue.set_size(self.size);
        queue.set_desc_table_address(descriptors.0, descriptors.1);
        queue.set_avail_ring_address(driver.0, driver.1);
        queue.set_used_ring_address(device.0, device.1);
        queue.set_ready(true);
    }
}

/// The registers.
pub struct Common {
    sizes: Vec<u16>,
    queues: Vec<QueueConfig>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    reset_wanted: bool,
}

impl Common {
    /// Registers after reset.
    pub fn new(sizes: &[u16]) -> Self {
        Self {
            sizes: sizes.to_vec(),
            queues: sizes.iter().map(|size| QueueConfig::new(*size)).collect(),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            reset_wanted: false,
        }
    }

    pub fn reset(&mut self) {
        *self = Self::new(&std::mem::take(&mut self.sizes));
    }

    pub fn save(&self) -> CommonState {
        let queue =
            |queue: &QueueConfig| QueueState { size: queue.size, enabled: queue.enabled, areas: queue.areas };
        CommonState {
            queues: self.queues.iter().map(queue).collect(),
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            status: self.status,
            reset_wanted: self.reset_wanted,
        }
    }

    pub fn restore(&mut self, state: &CommonState, device: &dyn VirtioDevice) -> Result<(), RestoreError> {
        if state.queues.len() != self.queues.len() {
            return Err(other_queues(state.queues.len(), self.queues.len()));
        }
        let missing = state.driver_features & !device.features();
        if state.status & FEATURES_OK != 0 && missing != 0 {
            return Err(RestoreError::Host(format!(
                "the guest uses features {missing:#x} of a device that this host cannot offer"
            )));
        }
        for (queue, state) in self.queues.iter_mut().zip(&state.queues) {
            if !state.size.is_power_of_two() || state.size > queue.max_size {
                return Err(RestoreError::Damaged(format!(
                    "a queue of {} where at most {} fit",
                    state.size, queue.max_size
                )));
            }
            (queue.size, queue.enabled, queue.areas) = (state.size, state.enabled, state.areas);
        }
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.status = state.status;
        self.reset_wanted = state.reset_wanted;
        // What could not have come about by writes must not by a file either.
        if self.status & FEATURES_OK == 0 {
            self.status &= !DRIVER_OK;
        }
        Ok(())
    }

    pub fn wants_reset(&self) -> bool {
        self.reset_wanted
    }

    pub fn wants_start(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & NEEDS_RESET == 0 && !self.reset_wanted
    }

    pub fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    pub fn features(&self) -> u64 {
        self.driver_features
    }

    pub fn queues(&self) -> &[QueueConfig] {
        &self.queues
    }

    fn queue(&self) -> Option<&QueueConfig> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Reads a register by its natural width, or a half of a 64-bit one; anything else reads as zero.
    pub fn read(
        &self,
        device: &dyn VirtioDevice,
        interrupt: &PciInterrupt,
        generation: u8,
        offset: u32,
        data: &mut [u8],
    ) {
        let queue = self.queue();
        let area = |index: usize| queue.and_then(|queue| queue.areas.get(index)).copied().unwrap_or_default();
        let value: u64 = match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select.into(),
            (0x04, 4) => match self.device_feature_select {
                0 => device.features() & 0xffff_ffff,
                1 => device.features() >> 32,
                _ => 0,
            },
            (0x08, 4) => self.driver_feature_select.into(),
            (0x0c, 4) => match self.driver_feature_select {
                0 => self.driver_features & 0xffff_ffff,
                1 => self.driver_features >> 32,
                _ => 0,
            },
            (0x10, 2) => interrupt.config.load(Ordering::SeqCst).into(),
            (0x12, 2) => self.queues.len() as u64,
            (0x14, 1) => self.status.into(),
            (0x15, 1) => generation.into(),
            (0x16, 2) => self.queue_select.into(),
            (0x18, 2) => queue.map_or(0, |queue| queue.size).into(),
            (0x1a, 2) => interrupt
                .queues
                .get(usize::from(self.queue_select))
                .map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
                .into(),
            (0x1c, 2) => queue.is_some_and(|queue| queue.enabled).into(),
            (0x1e, 2) => self.queue_select.into(),
            (0x20, 4 | 8) => area(0),
            (0x24, 4) => area(0) >> 32,
            (0x28, 4 | 8) => area(1),
            (0x2c, 4) => area(1) >> 32,
            (0x30, 4 | 8) => area(2),
            (0x34, 4) => area(2) >> 32,
            _ => 0,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Writes a register. Returns whether the driver thread must look at the device.
    pub fn write(
        &mut self,
        device: &dyn VirtioDevice,
        interrupt: &PciInterrupt,
        offset: u32,
        data: &[u8],
    ) -> bool {
        let mut bytes = [0u8; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        let [a, b, c, d, ..] = bytes;
        let (low, half) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([a, b]));
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = low,
            (0x08, 4) => self.driver_feature_select = low,
            (0x0c, 4) if self.status & FEATURES_OK == 0 => match self.driver_feature_select {
                0 => self.driver_features = (self.driver_features & !0xffff_ffff) | u64::from(low),
                1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (u64::from(low) << 32),
                _ => {}
            },
            (0x10, 2) => interrupt.config.store(interrupt.checked(half), Ordering::SeqCst),
            (0x14, 1) => return self.write_status(device, a),
            (0x16, 2) => self.queue_select = half,
            (0x1a, 2) => {
                if let Some(vector) = interrupt.queues.get(usize::from(self.queue_select)) {
                    vector.store(interrupt.checked(half), Ordering::SeqCst);
                    // Who interrupts directly has to hear of it.
                    return self.status & DRIVER_OK != 0;
                }
            }
            _ => self.write_queue(offset, data.len(), value, low, half),
        }
        false
    }

    fn write_queue(&mut self, offset: u32, length: usize, value: u64, low: u32, half: u16) {
        // Once the device works, its queues are its own.
        if self.status & DRIVER_OK != 0 {
            return;
        }
        let select = usize::from(self.queue_select);
        let Some(queue) = self.queues.get_mut(select).filter(|queue| !queue.enabled) else { return };
        let [descriptors, driver, device] = &mut queue.areas;
        let set_low = |area: &mut u64| *area = (*area & !0xffff_ffff) | u64::from(low);
        let set_high = |area: &mut u64| *area = (*area & 0xffff_ffff) | (u64::from(low) << 32);
        match (offset, length) {
            (0x18, 2) if half.is_power_of_two() && half <= queue.max_size => queue.size = half,
            (0x1c, 2) if half == 1 => queue.enabled = true,
            (0x20, 8) => *descriptors = value,
            (0x28, 8) => *driver = value,
            (0x30, 8) => *device = value,
            (0x20, 4) => set_low(descriptors),
            (0x24, 4) => set_high(descriptors),
            (0x28, 4) => set_low(driver),
            (0x2c, 4) => set_high(driver),
            (0x30, 4) => set_low(device),
            (0x34, 4) => set_high(device),
            _ => {}
        }
    }

    fn write_status(&mut self, device: &dyn VirtioDevice, value: u8) -> bool {
        if value == 0 {
            // Reads stay non-zero until the driver thread has stopped the device.
            self.reset_wanted = self.status != 0;
            return self.reset_wanted;
        }
        if self.reset_wanted {
            return false;
        }
        let mut next = value | (self.status & NEEDS_RESET);
        if value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            let unknown = self.driver_features & !device.features();
            if unknown != 0 || self.driver_features & VERSION_1 == 0 {
                next &= !FEATURES_OK;
            }
        }
        if next & FEATURES_OK == 0 {
            next &= !DRIVER_OK;
        }
        let starts = next & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = next;
        starts
    }
}
