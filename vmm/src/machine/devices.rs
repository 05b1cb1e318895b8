//! Makes devices from descriptors.

use super::memory::plugged::Pluggable;
use super::slots::{PlugError, Role};
use crate::backend::file::DiskFile;
use crate::backend::tap::Tap;
use crate::jail::{ThreadKind, confine};
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Blk, BlkConfig};
use crate::virtio::console::{Console, Output};
use crate::virtio::mem::Mem;
use crate::virtio::net::{Net, NetConfig};
use crate::virtio::rng::Rng;
use crate::virtio::vhost_user::kind::{Kind, TAG_MAX};
use crate::virtio::vhost_user::peer::{Notify, stream};
use crate::virtio::vhost_user::{VhostUser, link};
use crate::virtio::vsock::Vsock;
use crate::virtio::worker::Confine;
use crate::virtio::{Memory, VirtioDevice};
use std::fs::File;
use std::os::fd::OwnedFd;
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{BackendDevice, BackendName, BalloonConfig, NicLimits};

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

/// What a device that another process works is to the outside.
#[must_use]
pub fn role_of(name: &BackendName) -> Role {
    match name {
        BackendName::Disk { key } => Role::Disk { key: key.clone() },
        BackendName::Nic { port } => Role::Nic { port: *port },
        BackendName::Files { tag } => Role::Files { tag: tag.clone() },
    }
}

/// A device that another process works, on a connection to it. The process is asked what it offers, within seconds. `notify` is
/// called when it comes or goes.
///
/// # Errors
/// The guest's memory is not shared, or the process is of no use.
pub fn backend(
    device: &BackendDevice,
    socket: OwnedFd,
    memory: &Memory,
    vcpus: u32,
    notify: Notify,
) -> Result<Made, PlugError> {
    let role = role_of(&device.name());
    let failed = |source| PlugError::Host { what: role.to_string(), source };
    let wrong = |text: &str| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, text.to_owned()));
    if !link::is_shared(memory) {
        return Err(wrong(
            "another process is to work it, and the guest's memory is private: start the machine with shared memory",
        ));
    }
    let kind = match device {
        BackendDevice::Disk { .. } => Kind::Disk { queues: disk_queues(vcpus) },
        BackendDevice::Nic { mac, mtu, .. } => Kind::Nic { mac: mac.0, mtu: *mtu },
        BackendDevice::Files { tag } if (1..=TAG_MAX).contains(&tag.len()) => {
            Kind::Files { tag: tag.clone() }
        }
        BackendDevice::Files { .. } => return Err(wrong("its tag has 1 to 36 bytes")),
    };
    let confine: Confine = Box::new(|| confine(ThreadKind::Backend));
    let stream = stream(socket).map_err(failed)?;
    let device = VhostUser::new(role.to_string(), kind, stream, notify, confine).map_err(failed)?;
    Ok((role, Box::new(device)))
}
