//! Packs Ferrostack's two disk images from Debian packages: the small guest image that tests and first steps boot, and the
//! appliance that is flashed onto a machine.
//!
//! Neither needs loop devices, a chroot or a running service: packages are unpacked as archives, file systems are made by
//! `mkfs` from a directory, partition tables are written here. A build ends in a rename, so a killed one leaves the last
//! whole image (or none), never half of one.

pub mod appliance;
pub mod cpio;
pub mod fault;
pub mod guest;
pub mod mbr;
pub mod outdir;
pub mod packages;
pub mod tree;

pub use fault::Fault;
