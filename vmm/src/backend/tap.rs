//! A tap that was opened by somebody else (`netd`) and handed in.
//!
//! The kernel and the guest speak the same header in front of each packet (`virtio_net_hdr_v1`, 12 bytes), so
//! that checksums and segmentation are left to whoever does them cheapest, and packets go from and to guest
//! memory without a copy of ours.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Bytes of the header in front of each packet.
pub const HEADER: usize = 12;

/// The peer leaves checksums to us (linux/if_tun.h).
pub const TUN_F_CSUM: u32 = 0x01;
/// The peer takes unsegmented TCP over IPv4.
pub const TUN_F_TSO4: u32 = 0x02;
/// The peer takes unsegmented TCP over IPv6.
pub const TUN_F_TSO6: u32 = 0x04;
/// The peer takes unsegmented TCP with ECN bits.
pub const TUN_F_TSO_ECN: u32 = 0x08;
/// The peer takes unfragmented UDP.
pub const TUN_F_UFO: u32 = 0x10;
/// The peer takes unsegmented UDP over IPv4 (Linux 6.2).
pub const TUN_F_USO4: u32 = 0x20;
/// The peer takes unsegmented UDP over IPv6 (Linux 6.2).
pub const TUN_F_USO6: u32 = 0x40;

const IFF_ATTACH_QUEUE: i16 = 0x200;
const IFF_DETACH_QUEUE: i16 = 0x400;

mod ioctls {
    nix::ioctl_read_bad!(get_interface, super::tun(2, 210, 4), libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_queue, super::tun(1, 217, 4), libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, super::tun(1, 208, 4));
    nix::ioctl_write_ptr_bad!(set_header_size, super::tun(1, 216, 4), libc::c_int);
    nix::ioctl_write_ptr_bad!(set_little_endian, super::tun(1, 220, 4), libc::c_int);
}

/// Number of an ioctl of the tun driver: direction (1 write, 2 read), number, and size of the argument by its
/// declaration.
const fn tun(direction: u64, number: u64, size: u64) -> u64 {
    (direction << 30) | (size << 16) | ((b'T' as u64) << 8) | number
}

/// Why a descriptor does not serve as a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is no tap, or the kernel refused to set it up.
    #[error("the descriptor is no usable tap: cannot {what}: {source}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It was opened without what the device needs.
    #[error("the tap must be opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR; its flags are {flags:#x}")]
    Flags {
        /// What it was opened with.
        flags: i32,
    },
}

/// An open tap, or one queue of a tap that was opened with `IFF_MULTI_QUEUE`.
#[derive(Debug)]
pub struct Tap {
    file: File,
    segments_udp: bool,
    attached: AtomicBool,
}

impl Tap {
    /// Takes over an open tap: checks how it was opened and sets the header size.
    ///
    /// # Errors
    /// When it is no tap with headers.
    pub fn new(file: File) -> Result<Self, TapError> {
        let setup = |what| move |source: nix::Error| TapError::Setup { what, source: source.into() };
        // SAFETY: `ifreq` is plain bytes; zero is a value of each.
        let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one `ifreq`.
        unsafe { ioctls::get_interface(file.as_raw_fd(), &raw mut interface) }
            .map_err(setup("ask for its interface"))?;
        // SAFETY: TUNGETIFF fills in the flags.
        let flags = i32::from(unsafe { interface.ifr_ifru.ifru_flags });
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // A short of flags sign-extends; only these bits matter.
        if flags & needed != needed {
            return Err(TapError::Flags { flags: flags & 0xffff });
        }
        let size = libc::c_int::try_from(HEADER).unwrap_or(12);
        // SAFETY: the kernel reads one int.
        unsafe { ioctls::set_header_size(file.as_raw_fd(), &raw const size) }
            .map_err(setup("set its header size"))?;
        let yes: libc::c_int = 1;
        // SAFETY: the kernel reads one int.
        unsafe { ioctls::set_little_endian(file.as_raw_fd(), &raw const yes) }
            .map_err(setup("set its byte order"))?;
        let flags =
            OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL).map_err(setup("read its flags"))?);
        fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
            .map_err(setup("make it non-blocking"))?;
        let mut tap = Self { file, segments_udp: false, attached: AtomicBool::new(true) };
        tap.segments_udp = tap.set_offload(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).is_ok();
        tap.set_offload(0).map_err(|source| TapError::Setup { what: "turn its offloads off", source })?;
        Ok(tap)
    }

    /// Says what the reader (the guest) takes: `TUN_F_*`.
    ///
    /// # Errors
    /// When the kernel does not know a flag.
    pub fn set_offload(&self, flags: u32) -> io::Result<()> {
        let flags = i32::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: takes a number.
        unsafe { ioctls::set_offload(self.file.as_raw_fd(), flags) }?;
        Ok(())
    }

    /// Whether the kernel knows of unsegmented UDP (`TUN_F_USO4` and `TUN_F_USO6`).
    #[must_use]
    pub fn segments_udp(&self) -> bool {
        self.segments_udp
    }

    /// Lets the kernel give packets to this queue of the tap, or not. Queues are attached when they are opened.
    ///
    /// # Errors
    /// What the kernel says, when that is a change.
    pub fn attach(&self, on: bool) -> io::Result<()> {
        if self.attached.load(Ordering::Acquire) == on {
            return Ok(());
        }
        // SAFETY: `ifreq` is plain bytes; zero is a value of each.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        // SAFETY: the kernel reads one `ifreq`.
        unsafe { ioctls::set_queue(self.file.as_raw_fd(), &raw const request) }?;
        self.attached.store(on, Ordering::Release);
        Ok(())
    }

    /// Reads one packet with its header; answers its length. A packet that is longer than the pieces is cut.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    ///
    /// # Safety
    /// The pieces must be valid memory to write to.
    pub unsafe fn read(&self, pieces: &[libc::iovec]) -> io::Result<usize> {
        let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: by this function's contract.
        length(unsafe { libc::readv(self.file.as_raw_fd(), pieces.as_ptr(), count) })
    }

    /// Writes one packet with its header.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the kernel cannot take it now; [`io::ErrorKind::InvalidInput`] when
    /// its header makes no sense.
    ///
    /// # Safety
    /// The pieces must be valid memory to read from.
    pub unsafe fn write(&self, pieces: &[libc::iovec]) -> io::Result<usize> {
        let count = i32::try_from(pieces.len()).unwrap_or(i32::MAX);
        // SAFETY: by this function's contract.
        length(unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), count) })
    }

    /// Reads a packet only to be rid of it.
    ///
    /// # Errors
    /// As [`Tap::read`].
    pub fn discard(&self) -> io::Result<()> {
        (&self.file).read(&mut [0; HEADER]).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
