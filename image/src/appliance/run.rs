//! Starts the appliance in QEMU under software emulation, with virtualisation for its own guests: for a look at it, and for
//! the nested tests.

use super::{initrd_of, kernel_of};
use crate::fault::Fault;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian keeps the UEFI firmware for QEMU (package ovmf).
pub const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Its variable store, copied for each machine.
pub const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// How to start.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The disk; written to.
    pub disk: PathBuf,
    /// Where the image's kernel and initrd lie, to start without firmware (about 8 s faster); `None` for UEFI.
    pub direct: Option<Direct>,
    /// Copy of [`FIRMWARE_VARIABLES`], for UEFI.
    pub variables: Option<PathBuf>,
    /// Memory, MiB.
    pub memory: u32,
    /// QEMU's `-netdev` options after `user,id=uplink`.
    pub network: String,
}

/// A start without firmware.
#[derive(Debug, Clone)]
pub struct Direct {
    /// Kernel.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: PathBuf,
    /// Command line.
    pub command_line: String,
}

impl Direct {
    /// The kernel beside `image`, with the command line of its boot image.
    ///
    /// # Errors
    /// When the image was not built by this program's `appliance`.
    pub fn of(image: &Path) -> Result<Self, Fault> {
        let note = super::beside(image, "json");
        let text = std::fs::read(&note).map_err(Fault::file("read", &note))?;
        let facts: super::Facts = serde_json::from_slice(&text)
            .map_err(|fault| Fault::Input(format!("{}: {fault}", note.display())))?;
        Ok(Self { kernel: kernel_of(image), initrd: initrd_of(image), command_line: facts.command_line })
    }
}

/// QEMU's command for `machine`, without console and monitor: the caller adds those.
#[must_use]
pub fn command(machine: &Machine) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max,+svm", "-smp", "2"]);
    qemu.args(["-m", &machine.memory.to_string(), "-display", "none", "-nodefaults", "-no-reboot"]);
    if let Some(direct) = &machine.direct {
        qemu.arg("-kernel").arg(&direct.kernel).arg("-initrd").arg(&direct.initrd);
        qemu.args(["-append", &direct.command_line]);
    } else {
        qemu.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}")]);
    }
    if let Some(variables) = &machine.variables {
        qemu.arg("-drive").arg(with_path("if=pflash,format=raw,file=", variables));
    }
    qemu.arg("-drive").arg(with_path("format=raw,if=none,id=disk,cache=unsafe,file=", &machine.disk));
    qemu.args(["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]);
    qemu.args([
        "-netdev",
        &format!("user,id=uplink{}", machine.network),
        "-device",
        "virtio-net-pci,netdev=uplink",
    ]);
    qemu
}

fn with_path(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    // A comma separates QEMU's options; doubled it is itself.
    text.push(path.to_string_lossy().replace(',', ",,"));
    text
}

/// Boots `image` on a copy-on-write disk of `disk_gib` GiB with its serial console on this terminal, and waits for its end.
/// Its port 443 is reachable at loopback port `port`.
///
/// # Errors
/// When QEMU or the firmware is not installed.
pub fn run(image: &Path, port: u16, memory: u32, disk_gib: u32, firmware: bool) -> Result<(), Fault> {
    if !image.is_file() {
        return Err(Fault::Input(format!(
            "{} does not exist: make it with the `appliance` command",
            image.display()
        )));
    }
    if firmware && !Path::new(FIRMWARE).is_file() {
        return Err(Fault::ToolMissing { tool: "the UEFI firmware".into(), package: "ovmf" });
    }
    let image = image.canonicalize().map_err(Fault::file("find", image))?;
    let scratch = std::env::temp_dir().join(format!("ferrostack-appliance-{}", std::process::id()));
    std::fs::create_dir(&scratch).map_err(Fault::file("make folder", &scratch))?;
    let result = run_in(&scratch, &image, port, memory, disk_gib, firmware);
    let _ = std::fs::remove_dir_all(&scratch);
    result
}

fn run_in(
    scratch: &Path,
    image: &Path,
    port: u16,
    memory: u32,
    disk_gib: u32,
    firmware: bool,
) -> Result<(), Fault> {
    let disk = scratch.join("disk.raw");
    std::fs::copy(image, &disk).map_err(Fault::file("copy", image))?;
    std::fs::OpenOptions::new()
        .write(true)
        .open(&disk)
        .and_then(|file| file.set_len(u64::from(disk_gib) << 30))
        .map_err(Fault::file("grow", &disk))?;
    let variables = scratch.join("variables.fd");
    if firmware {
        let from = Path::new(FIRMWARE_VARIABLES);
        std::fs::copy(from, &variables).map_err(Fault::file("copy", from))?;
    }
    let mut qemu = command(&Machine {
        disk,
        direct: if firmware { None } else { Some(Direct::of(image)?) },
        variables: firmware.then_some(variables),
        memory,
        network: format!(",hostfwd=tcp:127.0.0.1:{port}-:443"),
    });
    println!(
        "starting it in QEMU; what its console calls https://ADDRESS is https://127.0.0.1:{port} here; Ctrl-A X ends it"
    );
    qemu.args([
        "-chardev",
        "stdio,id=console,mux=on,signal=off",
        "-serial",
        "chardev:console",
        "-mon",
        "chardev=console",
    ]);
    let status = qemu.status().map_err(|fault| match fault.kind() {
        std::io::ErrorKind::NotFound => {
            Fault::ToolMissing { tool: "qemu-system-x86_64".into(), package: "qemu-system-x86" }
        }
        _ => Fault::File { action: "run", path: "qemu-system-x86_64".into(), source: fault },
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Fault::ToolFailed {
            tool: "qemu-system-x86_64".into(),
            status: status.to_string(),
            message: "its messages are above".into(),
        })
    }
}
