//! Ethernet frames by hand: replies to guests that have no address yet, and gratuitous ARP.
#![allow(unsafe_code)]

use super::namespace::{Place, within};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use wire::ids::Mac;

/// A socket that sends whole frames on one device; it receives none.
#[derive(Debug)]
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// Opens it on a device of a place.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(place: &Place, device: &str) -> std::io::Result<Self> {
        within(place, || {
            let index = nix::net::if_::if_nametoindex(device)?;
            // SAFETY: plain system call; protocol 0 means that nothing is received.
            let fd = unsafe {
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
            };
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: the kernel just gave it to us.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: an all-zero sockaddr_ll is valid.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
            address.sll_ifindex = i32::try_from(index).map_err(std::io::Error::other)?;
            let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
            // SAFETY: the address is valid for its length and outlives the call.
            if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Self(fd))
        })
    }

    /// Sends a frame, Ethernet header included.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, frame: &[u8]) -> std::io::Result<()> {
        nix::sys::socket::send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty())?;
        Ok(())
    }
}

/// An ARP announcement of an address: a request for itself (RFC 5227, section 3).
#[must_use]
pub fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&address.octets());
    frame
}

/// A UDP datagram in an Ethernet frame; `None` when the payload does not fit IPv4.
#[must_use]
pub fn udp(macs: (Mac, Mac), from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(payload.len().checked_add(8)?).ok()?;
    let ip_length = udp_length.checked_add(20)?;
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&ip_length.to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&from.ip().octets());
    ip.extend_from_slice(&to.ip().octets());
    let sum = checksum(&[&ip]);
    ip.splice(10..12, sum.to_be_bytes());
    let mut udp = Vec::with_capacity(payload.len() + 8);
    udp.extend_from_slice(&from.port().to_be_bytes());
    udp.extend_from_slice(&to.port().to_be_bytes());
    udp.extend_from_slice(&udp_length.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(payload);
    let pseudo = [&[0, 17][..], &udp_length.to_be_bytes()].concat();
    let sum = checksum(&[&from.ip().octets(), &to.ip().octets(), &pseudo, &udp]);
    // Zero would mean "no checksum" (RFC 768).
    let sum = if sum == 0 { 0xffff } else { sum };
    udp.splice(6..8, sum.to_be_bytes());
    Some([&macs.1.0[..], &macs.0.0[..], &[0x08, 0x00], &ip, &udp].concat())
}

/// The internet checksum (RFC 1071) over parts, each of which is of even length but the last.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_over_a_whole_header_is_zero() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 67);
        let frame = udp((mac, mac), from, SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 68), b"odd").unwrap();
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        let pseudo = [&frame[26..34], &[0, 17, 0, 11][..]].concat();
        assert_eq!(checksum(&[&pseudo, &frame[34..]]), 0);
        assert!(udp((mac, mac), from, from, &[0; 65_500]).is_some());
        assert!(udp((mac, mac), from, from, &[0; 65_520]).is_none());
    }
}
