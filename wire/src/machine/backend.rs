//! Devices whose queues another process works (vhost-user).
//!
//! The back end is the socket's other end: it gets the guest's whole memory, so the machine's memory has to be shared, and the back end
//! is to be trusted with the guest. When it goes away the device keeps its queues: the status says [`BackendState::Lost`], and whoever
//! keeps the back end starts another and hands a connection to it in by [`MachineCall::ConnectBackend`](super::MachineCall::ConnectBackend).
//! The monitor itself opens nothing.

use super::Fd;
use crate::ids::{Mac, PortId};
use serde::{Deserialize, Serialize};

/// A device with its back end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Which device.
    pub device: BackendDevice,
    /// A unix `SOCK_STREAM` socket that is connected to the back end.
    pub socket_fd: Fd,
}

/// A device that another process works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendDevice {
    /// A disk (vhost-user-blk). Size, serial and whether it may be written are the back end's.
    Disk {
        /// Name for hot-unplug, among all disks.
        key: String,
    },
    /// A network interface (vhost-user-net) with a pair of queues. It has no limits: the monitor does not see its packets.
    Nic {
        /// Which port: name for hot-unplug.
        port: PortId,
        /// Guest-visible address.
        mac: Mac,
        /// Advertised MTU in bytes.
        mtu: u16,
    },
    /// A shared directory (virtio-fs).
    Files {
        /// What the guest mounts it by: 1 to 36 bytes.
        tag: String,
    },
}

impl BackendDevice {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> BackendName {
        match self {
            Self::Disk { key } => BackendName::Disk { key: key.clone() },
            Self::Nic { port, .. } => BackendName::Nic { port: *port },
            Self::Files { tag } => BackendName::Files { tag: tag.clone() },
        }
    }
}

/// Which device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BackendName {
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

/// How a device's back end is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Which device; disks and network interfaces are among the others too.
    pub device: BackendName,
    /// How its back end is.
    pub state: BackendState,
    /// The guest was asked to give it back and has not yet.
    pub unplugging: bool,
    /// The guest's driver uses it.
    pub driver_ok: bool,
}

/// How a back end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It works.
    Connected,
    /// It is gone; requests wait for another one.
    Lost,
    /// Another one is being asked what it offers.
    Connecting,
    /// Another one is there and cannot go on, because what was under way is not known: the guest has to be restarted. Never with a
    /// back end that keeps track (`VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD`), and never with a network interface.
    Stuck,
}
