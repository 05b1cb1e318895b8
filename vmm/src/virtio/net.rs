//! virtio-net (virtio 1.2, section 5.1): a tap as a network interface, with one pair of queues.
//!
//! The configuration space lives here, the queues in [`engine`], the header of outgoing packets in
//! [`header`]. There is no control queue: the tap takes every packet, so there is nothing to filter or
//! announce.

pub mod engine;
pub mod header;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::engine::NetEngine;
use super::worker::{Confine, Worker};
use super::{
    ActivateError, Activation, DeviceState, QueueProgress, RestoreError, Snapshot, VirtioDevice, bits,
    read_space,
};
use crate::backend::tap::Tap;

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// What the guest reads about its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet without its Ethernet header, in bytes.
    pub mtu: u16,
}

/// What the driver knows and set of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet that it was told.
    pub mtu: u16,
}

impl Snapshot for Net {
    type State = NetState;

    fn save(&self) -> NetState {
        NetState { mac: self.config.mac, mtu: self.config.mtu }
    }

    fn restore(&mut self, state: &NetState) -> Result<(), RestoreError> {
        self.config = NetConfig { mac: state.mac, mtu: state.mtu };
        Ok(())
    }
}

/// A network interface.
pub struct Net {
    worker: Worker,
    config: NetConfig,
}

impl Net {
    /// Makes an interface of a tap; see [`Worker::new`] for `confine`.
    #[must_use]
    pub fn new(tap: Tap, config: NetConfig, confine: Confine) -> Self {
        Self { worker: Worker::new("net", move || Ok(NetEngine::new(tap)), confine), config }
    }
}

/// Status bit: the link is up.
const LINK_UP: u16 = 1;

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_NET).unwrap_or(1)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        bits(&[
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_STATUS,
        ])
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config: address, status, number of queue pairs, MTU.
        let mut space = [0; 12];
        let (mac, rest) = space.split_at_mut(6);
        mac.copy_from_slice(&self.config.mac);
        for (to, value) in rest.chunks_exact_mut(2).zip([LINK_UP, 1, self.config.mtu]) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.worker.pause()
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Net(state) => Snapshot::restore(self, state),
            DeviceState::Blk(_) | DeviceState::Rng => Err(state.is_not("a network interface")),
        }
    }
}
