//! Which device is in which PCI slot, and plugging them in and out.
//!
//! Each kind has slots of its own, so that a volume more or less never renames a network interface at the next start.

use super::memory;
use crate::bus::pci::PciBus;
use crate::bus::power::Power;
use crate::machine::signals::Signals;
use crate::snapshot::{SlotState, SnapshotError};
use crate::virtio::transport::{Host, VirtioPci};
use crate::virtio::{Memory, RestoreError, Snapshot, VirtioDevice};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::MiB;
use wire::ids::PortId;
use wire::machine::{
    BackendName, BackendStatus, BalloonStatus, DiskStatus, Limits, MAX_DISKS, MAX_NICS, MachineCounts,
    MemoryStatus, NicStatus,
};

const RNG_SLOT: RangeInclusive<u8> = 1..=1;
const NIC_SLOTS: RangeInclusive<u8> = 2..=9;
const DISK_SLOTS: RangeInclusive<u8> = 10..=27;
const BALLOON_SLOT: RangeInclusive<u8> = 28..=28;
const VSOCK_SLOT: RangeInclusive<u8> = 29..=29;
const CONSOLE_SLOT: RangeInclusive<u8> = 30..=30;
const MEMORY_SLOT: RangeInclusive<u8> = 31..=31;
const _: () = assert!(MAX_NICS == 8 && MAX_DISKS == 18);

/// What a device is to the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The entropy device.
    Rng,
    /// The balloon.
    Balloon,
    /// The socket device.
    Vsock,
    /// The virtio console.
    Console,
    /// Memory that is plugged in and out.
    Memory,
    /// A disk.
    Disk {
        /// Its name.
        key: String,
    },
    /// A network interface.
    Nic {
        /// Its port.
        port: PortId,
    },
    /// A shared directory.
    Files {
        /// What the guest mounts it by.
        tag: String,
    },
}

impl Role {
    /// Which device of a back end it would be, if it had one.
    fn backend(&self) -> Option<BackendName> {
        match self {
            Self::Disk { key } => Some(BackendName::Disk { key: key.clone() }),
            Self::Nic { port } => Some(BackendName::Nic { port: *port }),
            Self::Files { tag } => Some(BackendName::Files { tag: tag.clone() }),
            Self::Rng | Self::Balloon | Self::Vsock | Self::Console | Self::Memory => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rng => f.write_str("entropy device"),
            Self::Balloon => f.write_str("balloon"),
            Self::Vsock => f.write_str("socket device"),
            Self::Console => f.write_str("virtio console"),
            Self::Memory => f.write_str("memory device"),
            Self::Disk { key } => write!(f, "disk '{key}'"),
            Self::Nic { port } => write!(f, "network interface {port}"),
            Self::Files { tag } => write!(f, "shared directory '{tag}'"),
        }
    }
}

/// Why a device was not plugged in or out.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The name is taken.
    #[error("there is already a {0}")]
    Exists(String),
    /// All slots of its kind are taken.
    #[error(
        "no PCI slot is free: a machine has at most {MAX_DISKS} disks and {MAX_NICS} network interfaces; detach one first"
    )]
    Full,
    /// The host refused something.
    #[error("cannot set up the {what}: {source}")]
    Host {
        /// Which device.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

struct Entry {
    role: Role,
    device: Arc<Mutex<VirtioPci>>,
    unplugging: bool,
}

impl Entry {
    fn device(&self) -> MutexGuard<'_, VirtioPci> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots.
pub struct Slots {
    host: Host,
    pci: Arc<PciBus>,
    power: Arc<Power>,
    entries: BTreeMap<u8, Entry>,
    paused: bool,
    /// Slots that asked for attention while paused.
    later: u32,
}

impl Slots {
    pub(super) fn new(host: Host, pci: Arc<PciBus>, power: Arc<Power>) -> Self {
        Self { host, pci, power, entries: BTreeMap::new(), paused: true, later: 0 }
    }

    /// Slot of a disk.
    #[must_use]
    pub fn disk(&self, key: &str) -> Option<u8> {
        self.find(|role| matches!(role, Role::Disk { key: own } if own == key))
    }

    /// Slot of a network interface.
    #[must_use]
    pub fn nic(&self, port: PortId) -> Option<u8> {
        self.find(|role| matches!(role, Role::Nic { port: own } if *own == port))
    }

    /// Slot of a shared directory.
    #[must_use]
    pub fn files(&self, tag: &str) -> Option<u8> {
        self.find(|role| matches!(role, Role::Files { tag: own } if own == tag))
    }

    /// Slot of a device by what it is to the outside.
    #[must_use]
    pub fn role(&self, wanted: &Role) -> Option<u8> {
        self.find(|role| role == wanted)
    }

    fn find(&self, wanted: impl Fn(&Role) -> bool) -> Option<u8> {
        self.entries.iter().find(|(_, entry)| wanted(&entry.role)).map(|(slot, _)| *slot)
    }

    /// Whether the guest was asked to give the device back.
    #[must_use]
    pub fn unplugging(&self, slot: u8) -> bool {
        self.entries.get(&slot).is_some_and(|entry| entry.unplugging)
    }

    /// Puts a device into the first free slot of its kind. `hot` tells the guest, which must be running by then.
    ///
    /// # Errors
    /// No slot, a taken name, or the host has no more descriptors.
    pub fn plug(&mut self, role: Role, device: Box<dyn VirtioDevice>, hot: bool) -> Result<u8, PlugError> {
        let (mut slots, taken) = match &role {
            Role::Rng => (RNG_SLOT, None),
            Role::Balloon => (BALLOON_SLOT, None),
            Role::Vsock => (VSOCK_SLOT, None),
            Role::Console => (CONSOLE_SLOT, None),
            Role::Memory => (MEMORY_SLOT, None),
            Role::Disk { key } => (DISK_SLOTS, self.disk(key)),
            Role::Nic { port } => (NIC_SLOTS, self.nic(*port)),
            // From the other end, so that disks keep their names.
            Role::Files { tag } => (DISK_SLOTS, self.files(tag)),
        };
        let name = role.to_string();
        if taken.is_some() {
            return Err(PlugError::Exists(name));
        }
        let free = |slot: &u8| !self.entries.contains_key(slot);
        let slot = match &role {
            Role::Files { .. } => slots.rfind(free),
            Role::Rng
            | Role::Balloon
            | Role::Vsock
            | Role::Console
            | Role::Memory
            | Role::Disk { .. }
            | Role::Nic { .. } => slots.find(free),
        };
        let slot = slot.ok_or(PlugError::Full)?;
        let device = VirtioPci::new(self.host.clone(), slot, device)
            .map_err(|source| PlugError::Host { what: name, source })?;
        self.put(slot, role, device, false);
        if hot {
            self.power.inserted(slot);
        }
        Ok(slot)
    }

    fn put(&mut self, slot: u8, role: Role, device: VirtioPci, unplugging: bool) {
        let base = device.base();
        let device = Arc::new(Mutex::new(device));
        self.pci.insert(slot, device.clone(), base);
        self.entries.insert(slot, Entry { role, device, unplugging });
    }

    /// All devices as a snapshot holds them. Only while paused.
    #[must_use]
    pub fn save(&self) -> Vec<SlotState> {
        let save = |(slot, entry): (&u8, &Entry)| SlotState {
            slot: *slot,
            role: entry.role.clone(),
            unplugging: entry.unplugging,
            device: entry.device().save(),
        };
        self.entries.iter().map(save).collect()
    }

    /// Puts devices back where a snapshot had them. The devices must be those of the snapshot, no more and no fewer; only a balloon that
    /// it lacks is left out, as a machine that was started before balloons were asked for goes on without one.
    ///
    /// # Errors
    /// A device too many or too few, or one that does not go with its state.
    pub fn restore(
        &mut self,
        made: Vec<(Role, Box<dyn VirtioDevice>)>,
        states: &[SlotState],
    ) -> Result<(), SnapshotError> {
        let mut made: Vec<_> = made.into_iter().map(Some).collect();
        for state in states {
            let own = made.iter_mut().find(|made| made.as_ref().is_some_and(|(role, _)| *role == state.role));
            let Some((role, device)) = own.and_then(Option::take) else {
                return Err(SnapshotError::Other(format!("the {} is missing", state.role)));
            };
            let failed = |source| SnapshotError::Device { slot: state.slot, source };
            let mut device = VirtioPci::new(self.host.clone(), state.slot, device)
                .map_err(|error| failed(RestoreError::Host(error.to_string())))?;
            device.restore(&state.device).map_err(failed)?;
            self.put(state.slot, role, device, state.unplugging);
        }
        match made.into_iter().flatten().find(|(role, _)| *role != Role::Balloon) {
            Some((role, _)) => Err(SnapshotError::Other(format!("it has no {role}"))),
            None => Ok(()),
        }
    }

    /// Asks the guest to give a slot's device back.
    pub fn ask_back(&mut self, slot: u8) {
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.unplugging = true;
            self.power.ask_back(slot);
        }
    }

    /// The guest ejected these slots: their devices stop and go, with their descriptors. Returns whether there were any.
    pub fn eject(&mut self, slots: u32) -> bool {
        let mut any = false;
        for slot in bits(slots) {
            if let Some(entry) = self.entries.remove(&slot) {
                self.pci.remove(slot);
                entry.device().stop();
                any = true;
            }
        }
        any
    }

    /// Does what drivers in the guest asked their devices for. Returns what went wrong, for the log.
    pub fn settle(&mut self, slots: u32) -> Vec<String> {
        if self.paused {
            self.later |= slots;
            return Vec::new();
        }
        let mut troubles = Vec::new();
        for slot in bits(slots) {
            if let Some(entry) = self.entries.get(&slot)
                && let Err(error) = entry.device().settle()
            {
                troubles.push(format!("device in PCI slot {slot}: {error}"));
            }
        }
        troubles
    }

    /// Stops all workers.
    pub fn pause(&mut self) {
        self.paused = true;
        for entry in self.entries.values() {
            entry.device().pause();
        }
    }

    /// Lets all workers go on.
    pub fn resume(&mut self) {
        self.paused = false;
        for entry in self.entries.values() {
            entry.device().resume();
        }
        if self.later != 0 {
            // The marks were taken while nothing could be done about them.
            for slot in bits(std::mem::take(&mut self.later)) {
                self.host.signals.device(slot);
            }
        }
    }

    /// Makes a disk look at its file's size again. `None` when the slot has no disk.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn resize(&self, slot: u8) -> Option<std::io::Result<u64>> {
        self.entries.get(&slot)?.device().refresh_size().transpose()
    }

    /// Changes the limits of a slot's device. Answers whether there is one that can be limited.
    pub fn set_limits(&self, slot: u8, limits: [Limits; 2]) -> bool {
        self.entries.get(&slot).is_some_and(|entry| entry.device().set_limits(limits))
    }

    /// The memory that the guest has now, rounded down.
    #[must_use]
    pub fn memory(&self) -> MiB {
        MiB(memory::size(&self.host.memory) >> 20)
    }

    /// Asks the guest to plug so many bytes of memory in. Answers whether it can.
    #[must_use]
    pub fn set_plugged(&self, bytes: u64) -> bool {
        self.entries.values().any(|entry| entry.device().device().set_plugged(bytes))
    }

    /// How much memory there is, in a machine that can have more.
    #[must_use]
    pub fn plugged(&self) -> Option<MemoryStatus> {
        self.entries.values().find_map(|entry| entry.device().device().plugged())
    }

    /// Asks the balloon to hold so many bytes. Answers whether there is one.
    #[must_use]
    pub fn set_balloon(&self, bytes: u64) -> bool {
        self.entries.values().any(|entry| entry.device().device().set_balloon(bytes))
    }

    /// How the balloon is, if there is one.
    #[must_use]
    pub fn balloon(&self) -> Option<BalloonStatus> {
        self.entries.values().find_map(|entry| entry.device().device().balloon())
    }

    /// What the devices moved, in slot order.
    #[must_use]
    pub fn counts(&self) -> MachineCounts {
        let mut counts = MachineCounts::default();
        for entry in self.entries.values() {
            let Some(own) = entry.device().device().counts() else { continue };
            match &entry.role {
                Role::Disk { key } => counts.disks.push((key.clone(), own)),
                Role::Nic { port } => counts.nics.push((*port, own)),
                Role::Rng
                | Role::Balloon
                | Role::Vsock
                | Role::Console
                | Role::Memory
                | Role::Files { .. } => {}
            }
        }
        counts
    }

    /// What all devices are, in slot order.
    #[must_use]
    pub fn roles(&self) -> Vec<Role> {
        self.entries.values().map(|entry| entry.role.clone()).collect()
    }

    /// Disks in slot order.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskStatus> {
        let disks = self.entries.values().filter_map(|entry| match &entry.role {
            Role::Disk { key } => {
                let device = entry.device();
                Some(DiskStatus {
                    key: key.clone(),
                    bytes: device.disk_bytes(),
                    unplugging: entry.unplugging,
                    driver_ok: device.driver_ok(),
                })
            }
            Role::Rng
            | Role::Balloon
            | Role::Vsock
            | Role::Console
            | Role::Memory
            | Role::Nic { .. }
            | Role::Files { .. } => None,
        });
        disks.collect()
    }

    /// Network interfaces in slot order.
    #[must_use]
    pub fn nics(&self) -> Vec<NicStatus> {
        let nics = self.entries.values().filter_map(|entry| match &entry.role {
            Role::Nic { port } => {
                let driver_ok = entry.device().driver_ok();
                Some(NicStatus { port: *port, unplugging: entry.unplugging, driver_ok })
            }
            Role::Rng
            | Role::Balloon
            | Role::Vsock
            | Role::Console
            | Role::Memory
            | Role::Disk { .. }
            | Role::Files { .. } => None,
        });
        nics.collect()
    }

    /// Devices that other processes work, in slot order.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendStatus> {
        let status = |entry: &Entry| {
            let mut device = entry.device();
            let state = device.device().backend()?;
            let (unplugging, driver_ok) = (entry.unplugging, device.driver_ok());
            Some(BackendStatus { device: entry.role.backend()?, state, unplugging, driver_ok })
        };
        self.entries.values().filter_map(status).collect()
    }

    /// Gives a slot's device another back end. `None` when there is no device that has one.
    ///
    /// # Errors
    /// When the descriptor is no socket.
    pub fn connect(&self, slot: u8, connection: OwnedFd) -> Option<std::io::Result<()>> {
        self.entries.get(&slot)?.device().device().connect(connection)
    }

    /// Why there can be no snapshot with these devices, or none whose successor is to hold only changes.
    #[must_use]
    pub fn unsaved(&self, track: bool) -> Option<String> {
        self.entries.values().find_map(|entry| {
            let why = entry.device().device().unsaved(track)?;
            Some(format!("the {}: {why}", entry.role))
        })
    }

    /// The guest's memory as devices see it.
    #[must_use]
    pub fn guest_memory(&self) -> Arc<Memory> {
        self.host.memory.clone()
    }

    /// Marks for the driver thread.
    #[must_use]
    pub fn signals(&self) -> Arc<Signals> {
        self.host.signals.clone()
    }
}

fn bits(slots: u32) -> impl Iterator<Item = u8> {
    (0..32u8).filter(move |slot| slots & (1u32 << slot) != 0)
}
