//! What vhost-user devices are for: the only place where a disk differs from a network interface.

use vhost::vhost_user::VhostUserProtocolFeatures;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_FS, VIRTIO_ID_NET};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::link::LinkError;
use crate::virtio::bits;

/// Longest name of a shared directory in bytes.
pub const TAG_MAX: usize = 36;

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes of a disk's configuration space that are asked for: `struct virtio_blk_config` up to its zeroes.
const BLK_SPACE: usize = 60;

/// Where a disk's configuration space has its number of queues.
const BLK_QUEUES_AT: usize = 34;

/// What a device is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A disk; at most so many queues.
    Disk {
        /// Most queues.
        queues: u16,
    },
    /// A network interface.
    Nic {
        /// Hardware address.
        mac: [u8; 6],
        /// Largest packet without its Ethernet header, in bytes.
        mtu: u16,
    },
    /// A shared directory (virtio-fs).
    Files {
        /// What the guest mounts it by.
        tag: String,
    },
}

impl Kind {
    /// Virtio device id.
    #[must_use]
    pub fn device_type(&self) -> u16 {
        let id = match self {
            Self::Disk { .. } => VIRTIO_ID_BLOCK,
            Self::Nic { .. } => VIRTIO_ID_NET,
            Self::Files { .. } => VIRTIO_ID_FS,
        };
        u16::try_from(id).unwrap_or_default()
    }

    /// Most queues that are used.
    #[must_use]
    pub fn most_queues(&self) -> u16 {
        match self {
            Self::Disk { queues } => (*queues).max(1),
            // To the guest and from it; requests that come first and all others.
            Self::Nic { .. } | Self::Files { .. } => 2,
        }
    }

    /// Fewest queues that are of use.
    #[must_use]
    pub fn least_queues(&self) -> u16 {
        match self {
            Self::Disk { .. } => 1,
            Self::Nic { .. } | Self::Files { .. } => 2,
        }
    }

    /// Protocol features that are used where a back end has them.
    #[must_use]
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        let all = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        match self {
            Self::Disk { .. } => {
                all | VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            }
            Self::Nic { .. } | Self::Files { .. } => all,
        }
    }

    /// Features of the back end that a guest may have, with the monitor's own.
    ///
    /// # Errors
    /// The back end lacks what every guest needs.
    pub fn known_features(&self, offered: u64) -> Result<u64, LinkError> {
        if offered & bits(&[VIRTIO_F_VERSION_1]) == 0 {
            return Err(LinkError::Lacks("it only knows virtio before version 1".into()));
        }
        let ring = bits(&[VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC]);
        let (theirs, ours) = match self {
            Self::Disk { .. } => (DISK, &[][..]),
            Self::Nic { .. } => (NIC, NIC_OURS),
            Self::Files { .. } => (&[][..], &[][..]),
        };
        Ok((offered & (ring | bits(theirs))) | bits(ours))
    }

    /// How many queues the device has, of a back end that has at most so many.
    ///
    /// # Errors
    /// They are too few.
    pub fn queues(&self, features: u64, most: u16, space: &[u8]) -> Result<u16, LinkError> {
        let told = match self {
            Self::Disk { .. } if features & bits(&[VIRTIO_BLK_F_MQ]) == 0 => 1,
            Self::Disk { .. } => half_at(space, BLK_QUEUES_AT),
            Self::Nic { .. } | Self::Files { .. } => 2,
        };
        let queues = most.min(told);
        if queues < self.least_queues() {
            return Err(LinkError::Lacks(format!(
                "it has {queues} queues where {} are needed",
                self.least_queues()
            )));
        }
        Ok(queues)
    }

    /// Bytes of the configuration space that the back end is asked for.
    #[must_use]
    pub fn space_length(&self) -> usize {
        match self {
            Self::Disk { .. } => BLK_SPACE,
            Self::Nic { .. } | Self::Files { .. } => 0,
        }
    }

    /// The configuration space as the guest sees it, of what the back end said.
    #[must_use]
    pub fn space(&self, told: &[u8], queues: u16, connected: bool) -> Vec<u8> {
        match self {
            Self::Disk { .. } => {
                let mut space = told.to_vec();
                if let Some(to) = space.get_mut(BLK_QUEUES_AT..BLK_QUEUES_AT + 2) {
                    to.copy_from_slice(&queues.to_le_bytes());
                }
                space
            }
            Self::Nic { mac, mtu } => {
                let mut space = mac.to_vec();
                for half in [u16::from(connected), 1, *mtu] {
                    space.extend(half.to_le_bytes());
                }
                space
            }
            Self::Files { tag } => {
                let mut space = tag.clone().into_bytes();
                space.resize(TAG_MAX, 0);
                space.extend(u32::from(queues.saturating_sub(1)).to_le_bytes());
                space
            }
        }
    }

    /// Whether the queues can go on with another back end, which knows nothing of requests that were under way, if there may have been any
    /// (`unknown`): frames may be lost or
    /// come twice, writes to a disk must not, and a file server's memory of open files is gone with it.
    #[must_use]
    pub fn goes_on(&self, unknown: bool) -> bool {
        match self {
            Self::Nic { .. } => true,
            Self::Disk { .. } => !unknown,
            Self::Files { .. } => false,
        }
    }
}

/// Size of a disk in sectors of 512 bytes, by its configuration space.
#[must_use]
pub fn sectors(space: &[u8]) -> u64 {
    space.get(..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn half_at(space: &[u8], at: usize) -> u16 {
    space.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// What a disk's back end may offer to the guest. Not the choice of the cache's mode: it would have to be passed on.
const DISK: &[u32] = &[
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
];

/// Likewise of a network interface. Not the control queue, which is not the back end's.
const NIC: &[u32] = &[
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
];

/// What the monitor does of a network interface.
const NIC_OURS: &[u32] = &[VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS];
