//! virtio-vsock (virtio 1.2, section 5.10): streams between programs on the host and in the guest.
//!
//! The host's side is one listening unix socket, handed in. Who connects to it writes `CONNECT PORT` and a line feed, gets
//! `OK LOCAL_PORT` and a line feed once a program in the guest that listens on that port has accepted, and has a stream to it from
//! there on; when nobody listens, the connection is closed. (Firecracker's users know this protocol.) The monitor opens nothing by
//! itself, so connections that the guest begins are refused.
//!
//! Packets live in [`packet`], the queues and connections in [`engine`] and [`connection`].

pub mod connection;
pub mod engine;
pub mod packet;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::engine::VsockEngine;
use super::worker::{Confine, Worker};
use super::{
    ActivateError, Activation, DeviceState, QueueProgress, RestoreError, Snapshot, VirtioDevice, bits,
    read_space,
};

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// The host's address, by the specification.
pub const HOST: u64 = 2;

/// The least address that a guest may have: those below have meanings.
pub const LEAST_GUEST: u32 = 3;

/// A socket device.
pub struct Vsock {
    worker: Worker,
    guest: u32,
    /// The driver is to be told that all connections are gone.
    broken: Arc<AtomicBool>,
}

/// What the driver knows of a socket device. Its connections do not outlive a snapshot: the driver is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's address.
    pub guest: u32,
}

impl Vsock {
    /// A device for the guest with an address of its own; see [`Worker::new`] for `confine`. `listener` is a listening unix stream
    /// socket.
    #[must_use]
    pub fn new(guest: u32, listener: OwnedFd, confine: Confine) -> Self {
        let broken = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&broken);
        let worker = Worker::new("vsock", move || VsockEngine::new(guest.into(), listener, seen), confine);
        Self { worker, guest, broken }
    }
}

impl Snapshot for Vsock {
    type State = VsockState;

    fn save(&self) -> VsockState {
        VsockState { guest: self.guest }
    }

    fn restore(&mut self, state: &VsockState) -> Result<(), RestoreError> {
        if state.guest != self.guest {
            return Err(RestoreError::Host(format!(
                "the guest's socket address was {} and is to be {} now",
                state.guest, self.guest
            )));
        }
        self.broken.store(true, Ordering::Release);
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_VSOCK).unwrap_or(19)
    }

    fn queue_sizes(&self) -> &[u16] {
        // To the guest, from the guest, events.
        &[QUEUE_SIZE, QUEUE_SIZE, 16]
    }

    fn features(&self) -> u64 {
        bits(&[VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC])
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&u64::from(self.guest).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
        self.broken.store(false, Ordering::Release);
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if let DeviceState::Vsock(state) = state {
            return Snapshot::restore(self, state);
        }
        Err(state.is_not("a socket device"))
    }
}
