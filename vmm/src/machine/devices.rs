//! Makes devices from descriptors.

use super::memory::plugged::Pluggable;
use super::slots::{PlugError, Role};
use crate::backend::file::DiskFile;
use crate::backend::tap::Tap;
use crate::jail::{ThreadKind, confine};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Blk, BlkConfig};
use crate::virtio::console::{Console, Output};
use crate::virtio::mem::Mem;
use crate::virtio::net::{Net, NetConfig};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::virtio::worker::Confine;
use std::fs::File;
use std::os::fd::OwnedFd;
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{BalloonConfig, NicLimits};

/// A device and what it is to the outside.
pub type Made = (Role, Box<dyn VirtioDevice>);

/// Locks a worker in.
fn worker() -> Confine {
    Box::new(|| confine(ThreadKind::Worker))
}

/// The entropy device.
///
/// # Errors
/// When there is no thread for it.
pub fn entropy() -> Result<Made, PlugError> {
    Ok((Role::Rng, Box::new(Rng::new(worker()))))
}

/// A balloon.
#[must_use]
pub fn balloon(config: BalloonConfig) -> Made {
    let mut device = Balloon::new(config.deflate_on_oom, worker());
    device.set_balloon(config.target.bytes().unwrap_or(u64::MAX));
    (Role::Balloon, Box::new(device))
}

/// A socket device on a listening socket.
#[must_use]
pub fn vsock(cid: u32, listener: OwnedFd) -> Made {
    let confine: Confine = Box::new(|| confine(ThreadKind::Sockets));
    (Role::Vsock, Box::new(Vsock::new(cid, listener, confine)))
}

/// A virtio console.
#[must_use]
pub fn console(output: Output, input: Option<OwnedFd>) -> Made {
    (Role::Console, Box::new(Console::new(output, input, worker())))
}

/// Memory that is plugged in and out, in a machine that has so much besides.
#[must_use]
pub fn memory(area: Pluggable, base: MiB, prefault: bool) -> Made {
    (Role::Memory, Box::new(Mem::new(area, base.bytes().unwrap_or(0), prefault, worker())))
}

/// Most queues that a disk has for vCPUs of its machine: beyond, threads cost more than they bring.
const DISK_QUEUES: u16 = 8;

/// Queues of a disk in a machine of so many vCPUs.
#[must_use]
pub fn disk_queues(vcpus: u32) -> u16 {
    u16::try_from(vcpus).unwrap_or(DISK_QUEUES).clamp(1, DISK_QUEUES)
}

/// A disk on a raw file.
///
/// # Errors
/// When the descriptor is no usable file.
pub fn disk(key: String, file: OwnedFd, config: &BlkConfig) -> Result<Made, PlugError> {
    let failed = |source| PlugError::Host { what: format!("disk '{key}'"), source };
    let file = DiskFile::new(File::from(file), config.block_size.bytes()).map_err(failed)?;
    let device = Blk::new(file, config, worker).map_err(failed)?;
    Ok((Role::Disk { key }, Box::new(device)))
}

/// A network interface on the queues of a tap, at least one.
///
/// # Errors
/// When a descriptor is no usable tap.
pub fn nic(
    port: PortId,
    taps: Vec<OwnedFd>,
    mac: Mac,
    mtu: u16,
    limits: &NicLimits,
) -> Result<Made, PlugError> {
    let failed = |source| PlugError::Host { what: format!("network interface {port}"), source };
    let open = |tap| Tap::new(File::from(tap)).map_err(|error| failed(std::io::Error::other(error)));
    let taps = taps.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let device = Net::new(taps, NetConfig { mac: mac.0, mtu }, [limits.to_guest, limits.from_guest], worker);
    Ok((Role::Nic { port }, Box::new(device)))
}
