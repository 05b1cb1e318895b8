//! Taps for guests: persistent, with the 12-byte header of virtio-net, so that they outlive `netd` and a guest's
//! restarts. Opening one without `IFF_VNET_HDR` would silently clear that flag; nobody but this file opens them.
#![allow(unsafe_code)]

use super::namespace::{Place, within};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};

mod ioctl {
    #![allow(missing_docs)]
    use nix::{ioctl_write_int_bad, ioctl_write_ptr_bad, request_code_write};
    ioctl_write_ptr_bad!(tun_set_iff, request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
    ioctl_write_int_bad!(tun_set_persist, request_code_write!(b'T', 203, size_of::<libc::c_int>()));
    ioctl_write_ptr_bad!(
        tun_set_vnet_hdr_size,
        request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
}

/// Bytes of `struct virtio_net_hdr_v1` before each frame.
const HEADER: libc::c_int = 12;

fn attach(name: &str, flags: libc::c_int) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "a device name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
    request.ifr_ifru.ifru_flags =
        i16::try_from(flags).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is the tun device and the request is a filled ifreq that outlives the call.
    unsafe { ioctl::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    let header = HEADER;
    // SAFETY: the kernel reads one int, which outlives the call.
    unsafe { ioctl::tun_set_vnet_hdr_size(file.as_raw_fd(), &raw const header) }?;
    Ok(file)
}

/// Makes a tap, down and in no bridge.
///
/// # Errors
/// What the kernel says.
pub fn create(place: &Place, name: &str) -> std::io::Result<()> {
    within(place, || {
        let file = attach(name, 0)?;
        // SAFETY: takes an int by value.
        unsafe { ioctl::tun_set_persist(file.as_raw_fd(), 1) }?;
        Ok(())
    })
}

/// Opens an existing tap for a guest.
///
/// # Errors
/// What the kernel says: `ResourceBusy` (EBUSY) while somebody else holds it.
pub fn open(place: &Place, name: &str) -> std::io::Result<OwnedFd> {
    within(place, || {
        // Without this look, a missing tap would be made anew: unfiltered and in no bridge.
        nix::net::if_::if_nametoindex(name)?;
        attach(name, 0).map(OwnedFd::from)
    })
}
