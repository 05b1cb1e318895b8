//! The header that the guest puts in front of a packet, checked against what was negotiated before the kernel
//! sees it.
//!
//! The kernel checks it again; this is the second lock on the door, and it keeps a guest from using what it
//! did not negotiate.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
};

use crate::backend::tap::HEADER;
use crate::virtio::bits;

const NEEDS_CHECKSUM: u8 = 1;
const NO_SEGMENTS: u8 = 0;
const TCP4: u8 = 1;
const UDP: u8 = 3;
const TCP6: u8 = 4;
const UDP_SEGMENTS: u8 = 5;
const ECN: u8 = 0x80;

/// Bytes of an Ethernet header: the least that a packet has.
pub const ETHERNET: usize = 14;

/// Checks the header of a packet of `len` bytes (without it), and answers what the kernel is to see; `None`
/// when the packet is to be dropped.
#[must_use]
pub fn outgoing(raw: [u8; HEADER], len: usize, features: u64) -> Option<[u8; HEADER]> {
    let has = |bit: u32| features & bits(&[bit]) != 0;
    let word = |at: usize| usize::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
    let (flags, kind) = (raw[0], raw[1]);
    let (header_len, segment, start, offset) = (word(2), word(4), word(6), word(8));
    if len < ETHERNET {
        return None;
    }
    let checksum = flags & NEEDS_CHECKSUM != 0;
    if checksum && (!has(VIRTIO_NET_F_CSUM) || start + offset + 2 > len) {
        return None;
    }
    let allowed = match kind & !ECN {
        NO_SEGMENTS => kind == NO_SEGMENTS,
        TCP4 => has(VIRTIO_NET_F_HOST_TSO4),
        TCP6 => has(VIRTIO_NET_F_HOST_TSO6),
        UDP => kind == UDP && has(VIRTIO_NET_F_HOST_UFO),
        UDP_SEGMENTS => kind == UDP_SEGMENTS && has(VIRTIO_NET_F_HOST_USO),
        _ => false,
    };
    let segmented = kind != NO_SEGMENTS;
    if !allowed
        || (kind & ECN != 0 && !has(VIRTIO_NET_F_HOST_ECN))
        || (segmented && (!checksum || segment == 0 || header_len > len))
    {
        return None;
    }
    let mut checked = [0; HEADER];
    checked[0] = flags & NEEDS_CHECKSUM;
    if checksum {
        checked[6..10].copy_from_slice(&raw[6..10]);
    }
    if segmented {
        checked[1..6].copy_from_slice(&raw[1..6]);
    }
    Some(checked)
}

#[cfg(test)]
mod tests {
    use super::outgoing;
    use proptest::prelude::any;

    const ALL: u64 = u64::MAX;

    fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; 12] {
        let mut raw = [0; 12];
        raw[0] = flags;
        raw[1] = kind;
        for (to, word) in raw[2..10].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        raw
    }

    #[test]
    fn plain_checksum_and_segmented_packets_pass() {
        assert_eq!(outgoing([0; 12], 60, 0), Some([0; 12]));
        let checksum = header(1, 0, [0, 0, 34, 16]);
        assert_eq!(outgoing(checksum, 60, ALL), Some(checksum));
        let tso = header(1, 0x81, [54, 1448, 34, 16]);
        assert_eq!(outgoing(tso, 9000, ALL), Some(tso));
        for kind in [3, 5] {
            let udp = header(1, kind, [42, 1448, 34, 6]);
            assert_eq!(outgoing(udp, 9000, ALL), Some(udp));
        }
        // What does not belong to a plain packet is not passed on.
        assert_eq!(outgoing([2, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], 60, ALL), Some([0; 12]));
    }

    #[test]
    fn what_was_not_negotiated_or_makes_no_sense_is_dropped() {
        assert_eq!(outgoing([0; 12], 13, ALL), None);
        assert_eq!(outgoing(header(1, 0, [0, 0, 34, 16]), 60, ALL & !1), None);
        assert_eq!(outgoing(header(1, 0, [0, 0, 50, 9]), 60, ALL), None);
        assert_eq!(outgoing(header(1, 0, [0, 0, 0xffff, 0xffff]), 60, ALL), None);
        assert_eq!(outgoing(header(0, 1, [54, 1448, 0, 0]), 9000, ALL), None);
        assert_eq!(outgoing(header(1, 1, [54, 0, 34, 16]), 9000, ALL), None);
        assert_eq!(outgoing(header(1, 1, [9001, 1448, 34, 16]), 9000, ALL), None);
        assert_eq!(outgoing(header(1, 1, [54, 1448, 34, 16]), 9000, ALL & !(1 << 11)), None);
        assert_eq!(outgoing(header(1, 4, [54, 1448, 34, 16]), 9000, ALL & !(1 << 12)), None);
        assert_eq!(outgoing(header(1, 0x81, [54, 1448, 34, 16]), 9000, ALL & !(1 << 13)), None);
        assert_eq!(outgoing(header(1, 3, [42, 1448, 34, 6]), 9000, ALL & !(1 << 14)), None);
        assert_eq!(outgoing(header(1, 5, [42, 1448, 34, 6]), 9000, ALL & !(1 << 56)), None);
        assert_eq!(outgoing(header(1, 0x83, [42, 1448, 34, 6]), 9000, ALL), None);
        assert_eq!(outgoing(header(1, 0x85, [42, 1448, 34, 6]), 9000, ALL), None);
        assert_eq!(outgoing(header(1, 2, [54, 1448, 34, 16]), 9000, ALL), None);
        assert_eq!(outgoing(header(0, 0x80, [0; 4]), 9000, ALL), None);
    }

    proptest::proptest! {
        #[test]
        fn what_passes_stays_within_the_packet(raw in any::<[u8; 12]>(), len in 0..70_000_usize, features in any::<u64>()) {
            if let Some(checked) = outgoing(raw, len, features) {
                let word = |at: usize| usize::from(u16::from_le_bytes([checked[at], checked[at + 1]]));
                proptest::prop_assert!(len >= 14 && checked[0] <= 1);
                proptest::prop_assert!(checked[0] == 0 || word(6) + word(8) + 2 <= len);
                proptest::prop_assert!(checked[1] == 0 || word(4) > 0);
            }
        }
    }
}
