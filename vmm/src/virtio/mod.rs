//! Virtio devices and the seam between them and the machine.
//!
//! The transport (PCI, in `transport`) owns negotiation, queue configuration and interrupts; a device owns its
//! configuration space and what its queues mean. The two meet in [`VirtioDevice`]. Life of a device:
//!
//! ```text
//!            activate               pause
//!   idle ---------------> working --------> paused
//!    ^                     |   ^  <--------  |
//!    |        reset        |   |   resume    |
//!    +---------------------+---+-------------+
//! ```
//!
//! All of these calls come from the machine's driver thread; only configuration space accesses come from vCPU threads,
//! serialised with them by the transport's lock. Workers never take that lock.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod counters;
pub mod limit;
pub mod mem;
pub mod net;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vhost_user;
pub mod vring;
pub mod vsock;
pub mod worker;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;
use wire::machine::{BackendState, BalloonStatus, DeviceCounts, Limits, MemoryStatus};

/// The guest's memory, as devices see it.
pub type Memory = vm_memory::GuestMemoryMmap<crate::snapshot::dirty::DirtyMap>;

/// A virtio device behind a transport.
pub trait VirtioDevice: Send {
    /// Virtio device id (virtio 1.2, section 5).
    fn device_type(&self) -> u16;

    /// Maximum size of each queue; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Offered feature bits, `VIRTIO_F_VERSION_1` and the ring features included.
    fn features(&self) -> u64;

    /// Reads the device's configuration space. Bytes past its end read as zero; `offset` comes from the guest.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's configuration space. What is not writable is ignored; both arguments come from the guest.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready: starts the worker.
    ///
    /// # Errors
    /// When the worker cannot start or the queues are not usable; the transport then sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the worker, waits until nothing touches guest memory any more, and is ready for a new `activate`.
    /// Harmless on an idle device.
    fn reset(&mut self);

    /// Returns once the worker has stopped touching guest memory, with its queues kept; answers how far each queue is. Harmless unless
    /// working: the answer is empty for an idle device, and the same again for a paused one.
    fn pause(&mut self) -> Vec<QueueProgress>;

    /// Lets the worker go on after [`VirtioDevice::pause`], looking at every queue once. Harmless unless paused.
    fn resume(&mut self);

    /// Takes over the size that the backend has now and tells the driver. Returns it in bytes, or `None` for a device without a size.
    ///
    /// # Errors
    /// When the backend cannot be looked at.
    fn refresh_size(&mut self) -> std::io::Result<Option<u64>> {
        Ok(None)
    }

    /// Changes what the device may move: what comes to the guest (or all of it), and what comes from it. Answers whether it can be
    /// limited.
    fn set_limits(&mut self, _limits: [Limits; 2]) -> bool {
        false
    }

    /// Asks the driver of a balloon to hold so many bytes. Answers whether this is one.
    fn set_balloon(&mut self, _bytes: u64) -> bool {
        false
    }

    /// What it moved; `None` for devices that do not count.
    fn counts(&self) -> Option<DeviceCounts> {
        None
    }

    /// How a balloon is, asking its driver for newer statistics; `None` for other devices.
    fn balloon(&mut self) -> Option<BalloonStatus> {
        None
    }

    /// Asks the driver of a memory device to plug so many bytes in. Answers whether this is one.
    fn set_plugged(&mut self, _bytes: u64) -> bool {
        false
    }

    /// How much memory there is with what is plugged in; `None` for other devices.
    fn plugged(&mut self) -> Option<MemoryStatus> {
        None
    }

    /// Interrupts of some queues come by other vectors now: tells who sends them directly, by [`Interrupt::event`].
    fn rewire(&mut self) {}

    /// Makes a device look at a queue whose event is not the monitor's to write, because another process holds it. Answers whether this is
    /// such a device; others are kicked by the event.
    fn kick(&self, _queue: u16) -> bool {
        false
    }

    /// Gives a device that another process works a connection to another such process; `None` for other devices.
    ///
    /// # Errors
    /// When the descriptor is no socket.
    fn connect(&mut self, _connection: OwnedFd) -> Option<std::io::Result<()>> {
        None
    }

    /// How the process is that works the device; `None` for devices that need none.
    fn backend(&self) -> Option<BackendState> {
        None
    }

    /// Why the device cannot be part of a snapshot, or of one whose successor is to hold only changes (`track`), if it cannot.
    fn unsaved(&self, _track: bool) -> Option<&'static str> {
        None
    }

    /// What the driver set in the device, besides its queues. Only asked while idle or paused.
    fn save(&self) -> DeviceState;

    /// Takes over what [`VirtioDevice::save`] said of another device of the same kind. Only called on an idle device, before
    /// `activate`.
    ///
    /// # Errors
    /// When it is the state of something else, or cannot be true.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// Something whose state outlives its process: written to a snapshot, sent to another host.
///
/// `save` is only called while nothing changes the state (a paused machine), and `restore` on a value that was just made from
/// the same configuration. The state may come from a file that somebody else wrote: `restore` believes nothing.
pub trait Snapshot {
    /// The state: plain numbers, readable by later versions.
    type State: Serialize + DeserializeOwned;

    /// The state now.
    fn save(&self) -> Self::State;

    /// Takes over a state.
    ///
    /// # Errors
    /// When it does not fit what this was made from, or cannot be true. The value must not be used then.
    fn restore(&mut self, state: &Self::State) -> Result<(), RestoreError>;
}

/// Why a state was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It is of something else.
    #[error("the state is of {found}, and this is {wanted}")]
    Kind {
        /// What the state is of.
        found: String,
        /// What it is to be.
        wanted: String,
    },
    /// It cannot be true.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// The host cannot do what the guest was promised.
    #[error("{0}")]
    Host(String),
}

/// How far a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueProgress {
    /// Which queue.
    pub queue: u16,
    /// The available index of the next chain that the device takes.
    pub next_avail: u16,
    /// The used index of the next chain that it gives back.
    pub next_used: u16,
}

/// What a driver set in a device, besides its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// A balloon.
    Balloon(balloon::BalloonState),
    /// A disk.
    Blk(blk::BlkState),
    /// Memory that is plugged in and out.
    Mem(mem::MemState),
    /// A network interface.
    Net(net::NetState),
    /// A console, which knows nothing.
    Console,
    /// An entropy device, which knows nothing.
    Rng,
    /// A socket device.
    Vsock(vsock::VsockState),
    /// A device that another process works.
    VhostUser(vhost_user::VhostUserState),
}

impl DeviceState {
    /// What it is of, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Balloon(_) => "a balloon",
            Self::Blk(_) => "a disk",
            Self::Mem(_) => "a memory device",
            Self::Net(_) => "a network interface",
            Self::Console => "a console",
            Self::Rng => "an entropy device",
            Self::Vsock(_) => "a socket device",
            Self::VhostUser(_) => "a device of a back end",
        }
    }

    /// The error that this is not the state of what is `wanted`.
    #[must_use]
    pub fn is_not(&self, wanted: &str) -> RestoreError {
        RestoreError::Kind { found: self.kind().to_owned(), wanted: wanted.to_owned() }
    }
}

/// What a device needs to work.
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// The configured and valid queues in order. A queue that the driver left disabled is there too, not `ready()`.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Negotiated features: a subset of those offered.
    pub features: u64,
}

/// A queue as it is handed to a device.
pub struct ActiveQueue {
    /// Which one.
    pub index: u16,
    /// The ring.
    pub queue: Queue,
    /// The driver's kick.
    pub kick: EventFd,
}

/// Interrupts towards the driver. Callable from any thread, never blocks.
pub trait Interrupt: Send + Sync {
    /// Queue `index` has used buffers.
    fn queue(&self, index: u16);
    /// The configuration space changed.
    fn config(&self);
    /// An event whose writing interrupts for queue `index`, from whatever process, until the driver chooses another vector for it.
    ///
    /// # Errors
    /// When the host has no more descriptors.
    fn event(&self, index: u16) -> std::io::Result<EventFd>;
}

/// Why a device did not start working.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver configured something that the device cannot work with.
    #[error("the guest's driver configured the device wrongly: {0}")]
    Driver(String),
    /// The host refused something.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A set of feature bits from their numbers.
#[must_use]
pub fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |set, number| set | 1_u64.checked_shl(*number).unwrap_or(0))
}

/// Reads `data` from a configuration space; zero past its end.
pub fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    for (to, from) in data.iter_mut().zip(space.get(from..).unwrap_or_default()) {
        *to = *from;
    }
}
