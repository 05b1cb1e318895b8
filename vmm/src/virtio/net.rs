//! virtio-net (virtio 1.2, section 5.1): a tap as a network interface.
//!
//! The configuration space lives here, a pair of queues in [`engine`], the control queue in [`control`], the header of
//! outgoing packets in [`header`]. A tap with several queues makes as many pairs, each with a thread of its own once the guest
//! uses it.

pub mod control;
pub mod engine;
pub mod header;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use wire::machine::{DeviceCounts, Limits};

use self::control::Shared;
use self::engine::NetEngine;
use super::worker::{Confine, Worker};
use super::{
    ActivateError, Activation, ActiveQueue, DeviceState, QueueProgress, RestoreError, Snapshot, VirtioDevice,
    bits, read_space,
};
use crate::backend::tap::Tap;

/// Size of each receive or send queue.
pub const QUEUE_SIZE: u16 = 256;

/// Size of the control queue.
pub const CONTROL_SIZE: u16 = 64;

/// Most pairs of queues.
pub const MAX_PAIRS: usize = 16;

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
    /// Queue pairs in use.
    pub pairs: u16,
    /// Offloads that it set by the control queue.
    pub offloads: Option<u64>,
}

impl Snapshot for Net {
    type State = NetState;

    fn save(&self) -> NetState {
        NetState {
            mac: self.shared.mac(),
            mtu: self.config.mtu,
            pairs: self.shared.pairs(),
            offloads: self.shared.offloads(),
        }
    }

    /// A driver that can is asked to tell the network where the machine is now.
    fn restore(&mut self, state: &NetState) -> Result<(), RestoreError> {
        if !(1..=self.workers.len()).contains(&usize::from(state.pairs)) {
            return Err(RestoreError::Host(format!(
                "the guest uses {} queue pairs of a network interface that has {} now",
                state.pairs,
                self.workers.len()
            )));
        }
        self.config.mtu = state.mtu;
        self.shared.set_mac(state.mac);
        self.shared.set_pairs(state.pairs);
        self.shared.set_offloads(state.offloads);
        self.shared.set_announce(true);
        Ok(())
    }
}

/// A network interface.
pub struct Net {
    /// One for each pair of queues.
    workers: Vec<Worker>,
    sizes: Vec<u16>,
    shared: Arc<Shared>,
    features: u64,
    config: NetConfig,
}

impl Net {
    /// Makes an interface of a tap's queues, of which there is at least one; see [`Worker::new`] for what `confine` gives each
    /// worker.
    #[must_use]
    pub fn new(taps: Vec<Tap>, config: NetConfig, limits: [Limits; 2], confine: fn() -> Confine) -> Self {
        let taps: Vec<Arc<Tap>> = taps.into_iter().take(MAX_PAIRS).map(Arc::new).collect();
        let mut features = bits(&FEATURES);
        if taps.len() > 1 {
            features |= bits(&[VIRTIO_NET_F_MQ]);
        }
        if taps.iter().all(|tap| tap.segments_udp()) {
            features |= bits(&[VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO]);
        }
        let shared = Arc::new(Shared::new(taps.clone(), config.mac, limits));
        let sizes = vec![QUEUE_SIZE; taps.len() * 2].into_iter().chain([CONTROL_SIZE]).collect();
        let worker = |tap: Arc<Tap>| {
            let shared = Arc::clone(&shared);
            Worker::new("net", move || Ok(NetEngine::new(tap, shared)), confine())
        };
        let workers = taps.into_iter().map(worker).collect();
        Self { workers, sizes, shared, features, config }
    }

    /// Index of the control queue for a driver with these features: behind all pairs that it knows of.
    fn control_index(&self, features: u64) -> usize {
        if features & bits(&[VIRTIO_NET_F_MQ]) != 0 { self.workers.len() * 2 } else { 2 }
    }
}

/// What every interface offers.
const FEATURES: [u32; 22] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// Status bit: the link is up.
const LINK_UP: u16 = 1;
/// Status bit: the driver is to tell the network where it is.
const ANNOUNCE: u16 = 2;

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_NET).unwrap_or(1)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config: address, status, number of queue pairs, MTU.
        let mut space = [0; 12];
        let (mac, rest) = space.split_at_mut(6);
        mac.copy_from_slice(&self.shared.mac());
        let status = LINK_UP | if self.shared.announces() { ANNOUNCE } else { 0 };
        let pairs = u16::try_from(self.workers.len()).unwrap_or(1);
        for (to, value) in rest.chunks_exact_mut(2).zip([status, pairs, self.config.mtu]) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, features } = activation;
        let control_index = self.control_index(features);
        let mut queues: Vec<Option<ActiveQueue>> =
            queues.into_iter().map(|active| Some(active).filter(|active| active.queue.ready())).collect();
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let mut control =
            if features & bits(&[VIRTIO_NET_F_CTRL_VQ]) != 0 { take(control_index) } else { None };
        self.shared
            .steer()
            .map_err(|source| ActivateError::Host { what: "choose the tap's queues", source })?;
        for (pair, worker) in self.workers.iter_mut().enumerate() {
            let (receive, send) = (take(pair * 2), take(pair * 2 + 1));
            let (Some(receive), Some(send)) = (receive, send) else {
                if pair == 0 {
                    return Err(ActivateError::Driver(
                        "the interface's first queues are not set up".to_owned(),
                    ));
                }
                break;
            };
            let queues = [Some(receive), Some(send), control.take()].into_iter().flatten().collect();
            let (memory, interrupt) = (Arc::clone(&memory), Arc::clone(&interrupt));
            worker.start(Activation { memory, queues, interrupt, features })?;
        }
        if self.shared.announces() {
            interrupt.config();
        }
        Ok(())
    }

    fn reset(&mut self) {
        for worker in &self.workers {
            worker.stop();
        }
        // As it was before a driver came.
        self.shared.set_mac(self.config.mac);
        self.shared.set_pairs(1);
        self.shared.set_offloads(None);
        self.shared.set_announce(false);
        let _ = self.shared.apply_offloads(0);
    }

    fn pause(&mut self) -> Vec<QueueProgress> {
        self.workers.iter().flat_map(Worker::pause).collect()
    }

    fn resume(&mut self) {
        for worker in &self.workers {
            worker.resume();
        }
    }

    fn set_limits(&mut self, [receive, send]: [Limits; 2]) -> bool {
        self.shared.receive.set(receive);
        self.shared.send.set(send);
        for worker in &self.workers {
            worker.nudge();
        }
        true
    }

    fn counts(&self) -> Option<DeviceCounts> {
        Some(DeviceCounts { to_guest: self.shared.received.read(), from_guest: self.shared.sent.read() })
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(Snapshot::save(self))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if let DeviceState::Net(state) = state {
            return Snapshot::restore(self, state);
        }
        Err(state.is_not("a network interface"))
    }
}
