//! The one place where a server's rows become what the host should do.

use super::hardware;
use super::records::attachments::Attachment;
use super::records::servers::{Disk, Server, Wanted};
use super::records::shape::Mode;
use wire::host::{Boot, DiskSpec, EnsureServer, NicSpec, Reboots, ServerSpec};
use wire::machine::Limits;
use wire::{Generation, MiB};

/// Seconds that a guest may take to shut itself down before the plug is pulled: what nova waits.
pub const GRACE_SECS: u32 = 60;
/// Key of the root disk.
pub const ROOT: &str = "root";
/// Key of the own root disk of a server that runs from another one.
pub const RESCUED: &str = "rescued";
/// Key of the config drive.
pub const CONFIG: &str = "config";

fn disk(key: &str, disk: &Disk, read_only: bool, limits: Limits) -> Option<DiskSpec> {
    let path = disk.path.clone()?;
    Some(DiskSpec { key: key.to_owned(), path, read_only, serial: serial(&disk.id.to_string()), limits })
}

/// A virtio serial number: the first 20 characters of an id.
#[must_use]
pub fn serial(id: &str) -> String {
    id.chars().take(20).collect()
}

/// What the host should do for this server. Disks that do not exist yet are left out.
#[must_use]
pub fn ensure(server: &Server, attachments: &[Attachment]) -> EnsureServer {
    let body = &server.body;
    let plugged = |boot: bool| {
        attachments.iter().filter(move |it| it.body.boot == boot).filter_map(|it| it.body.disk.clone())
    };
    // Both were looked at when the server was made; a row from before that was, and what it asked for, has none of it.
    let asked = hardware::of(&body.flavor, body.image.as_ref()).unwrap_or_default();
    let own =
        |key, it: &Option<Disk>, read_only| it.as_ref().and_then(|it| disk(key, it, read_only, asked.disk));
    let mut disks: Vec<DiskSpec> = own(ROOT, &body.disks.root, false).into_iter().collect();
    if server.mode == Mode::Rescued
        && let Some(shape) = &body.aside
    {
        disks.extend(own(RESCUED, &shape.disks.root, false));
    }
    disks.extend(plugged(true));
    disks.extend(own("ephemeral0", &body.disks.ephemeral, false));
    disks.extend(own("swap", &body.disks.swap, false));
    disks.extend(own(CONFIG, &body.disks.config, true));
    disks.extend(plugged(false));
    let boot = match body.kernel.as_ref().and_then(|it| it.kernel.clone().map(|file| (it, file))) {
        Some((it, kernel)) => {
            Boot::Kernel { kernel, initrd: it.ramdisk.clone(), command_line: it.command_line.clone() }
        }
        None => Boot::Disk,
    };
    EnsureServer {
        id: server.id,
        generation: Generation(u64::try_from(server.generation).unwrap_or_default()),
        spec: ServerSpec {
            name: server.name.clone(),
            vcpus: body.flavor.vcpus,
            memory: MiB(body.flavor.memory_mb.into()),
            boot,
            disks,
            nics: body.nics.iter().map(|nic| NicSpec { limits: asked.nic, ..nic.spec.clone() }).collect(),
            hardware: asked.hardware,
        },
        power: server.power.power(if server.power == Wanted::Off && !body.hasty { GRACE_SECS } else { 0 }),
        reboots: Reboots {
            count: u64::try_from(server.reboots).unwrap_or_default(),
            grace_secs: u32::try_from(server.reboot_grace).unwrap_or_default(),
        },
        wait_ms: 0,
    }
}
