//! The command line of a QEMU: a q35 machine in software emulation, everything handed in as a descriptor.

use super::{BALLOON, CONSOLE_SET, UEFI_SET, disk_device, disk_node, nic_device, nic_node, port_name};
use crate::hypervisor::Plan;
use serde_json::json;
use std::ffi::OsString;
use std::os::fd::RawFd;
use wire::host::{Bite, DiskSpec, NicSpec};
use wire::machine::{Identity, MAX_DISKS, MAX_NICS, Topology};

/// Root ports beyond those that the machine starts with: how many devices can be plugged in before the next start.
/// Each costs the guest some boot time, so there are not always all.
const SPARE: usize = 8;

/// The descriptors that go with the command line.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// Listening monitor socket.
    pub monitor: RawFd,
    /// Console log, opened to append.
    pub console: RawFd,
    /// Kernel; none when firmware starts the guest.
    pub kernel: Option<RawFd>,
    /// UEFI firmware and its variables.
    pub uefi: Option<[RawFd; 2]>,
    /// Initial RAM disk.
    pub initrd: Option<RawFd>,
    /// Disks in their order.
    pub disks: Vec<RawFd>,
    /// Taps in their order.
    pub taps: Vec<RawFd>,
}

/// Number of root ports of a machine.
#[must_use]
pub fn ports(plan: &Plan) -> usize {
    (plan.spec.disks.len() + plan.spec.nics.len() + SPARE).min(MAX_DISKS + MAX_NICS)
}

/// The whole command line. Disks take the first root ports, network interfaces the next.
#[must_use]
pub fn arguments(plan: &Plan, numbers: &Numbers, command_line: &str) -> Vec<OsString> {
    let id = plan.seat.id;
    let identity = Identity::default();
    let mut line = Line(Vec::new());
    line.pair("-name", format!("guest={id},debug-threads=on"));
    line.flags(&["-nodefaults", "-no-user-config", "-display", "none"]);
    // No SATA, USB, sound or graphics: less to emulate, less to attack.
    let chips = if numbers.uefi.is_some() { ",pflash0=flash0,pflash1=flash1" } else { "" };
    line.pair(
        "-machine",
        format!("q35,vmport=off,smm=off,sata=off,smbus=off,usb=off,graphics=off,hpet=off,dump-guest-core=off{chips}"),
    );
    // QEMU would let its translated code grow to a gibibyte for each guest.
    line.pair("-accel", "tcg,tb-size=256");
    // Five-level page tables would cost every emulated page walk a level.
    line.pair("-cpu", "max,la57=off");
    line.pair("-smp", processors(plan));
    line.pair("-m", format!("{}M", plan.spec.memory.0));
    line.pair("-uuid", id.to_string());
    line.pair(
        "-smbios",
        format!(
            "type=1,manufacturer={},product={},version={},serial={id},uuid={id}",
            identity.manufacturer, identity.product, identity.version
        ),
    );
    line.pair("-rtc", "base=utc");
    // A guest that resets or powers off leaves QEMU standing still: hostd asks it why, also after a restart of its own.
    line.pair("-action", "reboot=shutdown,shutdown=pause,panic=none");
    line.pair("-trace", "qemu_system_shutdown_request");
    line.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.pair("-chardev", format!("socket,id=monitor,fd={},server=on,wait=off", numbers.monitor));
    line.pair("-mon", "chardev=monitor,mode=control");
    line.pair("-add-fd", format!("fd={},set={CONSOLE_SET}", numbers.console));
    line.pair("-chardev", format!("file,id=console,path=/dev/fdset/{CONSOLE_SET},append=on"));
    line.pair("-serial", "chardev:console");
    if let Some([code, variables]) = numbers.uefi {
        for (unit, (fd, read_only)) in [(code, true), (variables, false)].into_iter().enumerate() {
            line.pair("-add-fd", format!("fd={fd},set={}", UEFI_SET + unit));
            line.pair("-blockdev", flash(unit, read_only).to_string());
        }
    }
    if let Some(kernel) = numbers.kernel {
        line.pair("-kernel", format!("/proc/self/fd/{kernel}"));
        line.pair("-append", without_timer_check(command_line));
    }
    if let Some(initrd) = numbers.initrd {
        line.pair("-initrd", format!("/proc/self/fd/{initrd}"));
    }
    line.pair("-object", "rng-builtin,id=entropy");
    line.pair("-device", "virtio-rng-pci,rng=entropy,bus=pcie.0,addr=1,romfile=");
    // Empty: it is there for its reports of free pages, which go back to the host, and its statistics.
    line.pair(
        "-device",
        format!("virtio-balloon-pci,id={BALLOON},free-page-reporting=on,deflate-on-oom=on,bus=pcie.0,addr=1d,romfile="),
    );
    if let Some(bite) = plan.spec.hardware.watchdog {
        line.pair("-device", "i6300esb,bus=pcie.0,addr=1e");
        line.pair("-action", format!("watchdog={}", watchdog(bite)));
    }
    for port in 0..ports(plan) {
        line.pair("-device", root_port(port));
    }
    for (port, (disk, fd)) in plan.spec.disks.iter().zip(&numbers.disks).enumerate() {
        line.pair("-add-fd", format!("fd={fd},set={port}"));
        line.pair("-blockdev", blockdev(port, disk).to_string());
        line.pair("-device", disk_options(port, disk).to_string());
    }
    let first = plan.spec.disks.len();
    for (at, (nic, fd)) in plan.spec.nics.iter().zip(&numbers.taps).enumerate() {
        let port = first + at;
        line.pair("-netdev", format!("tap,id={},fd={fd},vhost=off", nic_node(port)));
        line.pair("-device", nic_options(port, nic).to_string());
    }
    if plan.paused {
        line.flags(&["-S"]);
    }
    line.0
}

/// What QEMU is to do when the guest stops calling its watchdog. `poweroff` ends the process.
fn watchdog(bite: Bite) -> &'static str {
    match bite {
        Bite::Reset => "reset",
        Bite::PowerOff => "poweroff",
        Bite::Pause => "pause",
        Bite::Nothing => "none",
    }
}

fn processors(plan: &Plan) -> String {
    let count = plan.spec.vcpus;
    match plan.spec.hardware.topology {
        None => count.to_string(),
        Some(Topology { sockets, cores, threads }) => {
            format!("{count},sockets={sockets},cores={cores},threads={threads}")
        }
    }
}

/// Linux checks its timer against the CPU's speed at boot and panics when a busy host makes the emulated one late. Under
/// KVM it knows better by itself; here it must be told. The word goes first, as what follows `--` is for init.
fn without_timer_check(command_line: &str) -> String {
    const WORD: &str = "no_timer_check";
    let told = command_line.split_whitespace().any(|word| word == WORD);
    if told || command_line.len() + WORD.len() + 1 > LINUX_COMMAND_LINE {
        command_line.to_owned()
    } else {
        format!("{WORD} {command_line}").trim_end().to_owned()
    }
}

/// Longest command line that Linux takes on x86, in bytes.
const LINUX_COMMAND_LINE: usize = 2047;

struct Line(Vec<OsString>);

impl Line {
    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }
}

/// Eight root ports share a PCI slot; slot 0 is the bridge and slot 1 the entropy device.
fn root_port(port: usize) -> String {
    let (slot, function, chassis) = (2 + port / 8, port % 8, port + 1);
    format!(
        "pcie-root-port,id={},bus=pcie.0,chassis={chassis},port={port},addr={slot:x}.{function:x},multifunction=on,io-reserve=0",
        port_name(port)
    )
}

/// The block node of one of the flash chips that UEFI firmware lies in.
fn flash(unit: usize, read_only: bool) -> serde_json::Value {
    json!({
        "driver": "raw",
        "node-name": format!("flash{unit}"),
        "read-only": read_only,
        "file": {
            "driver": "file",
            "filename": format!("/dev/fdset/{}", UEFI_SET + unit),
            "locking": "off",
            "read-only": read_only,
        },
    })
}

/// The block node of the disk at a root port; its file is the descriptor set of the same number.
#[must_use]
pub fn blockdev(port: usize, disk: &DiskSpec) -> serde_json::Value {
    json!({
        "driver": "raw",
        "node-name": disk_node(port),
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": format!("/dev/fdset/{port}"),
            "locking": "off",
            "discard": "unmap",
            "read-only": disk.read_only,
        },
    })
}

/// The disk's device.
#[must_use]
pub fn disk_options(port: usize, disk: &DiskSpec) -> serde_json::Value {
    json!({
        "driver": "virtio-blk-pci",
        "id": disk_device(&disk.key),
        "bus": port_name(port),
        "drive": disk_node(port),
        "serial": disk.serial,
        // A full pool is the guest's I/O error to handle; a machine that stands still for it would look hung.
        "werror": "report",
        "rerror": "report",
    })
}

/// The network interface's device.
#[must_use]
pub fn nic_options(port: usize, nic: &NicSpec) -> serde_json::Value {
    json!({
        "driver": "virtio-net-pci",
        "id": nic_device(nic.port),
        "bus": port_name(port),
        "netdev": nic_node(port),
        "mac": nic.mac.to_string(),
        "host_mtu": nic.mtu,
        "romfile": "",
    })
}

#[cfg(test)]
mod tests {
    use super::{LINUX_COMMAND_LINE, without_timer_check};

    #[test]
    fn the_timer_check_is_switched_off_once_and_never_at_the_cost_of_the_entry() {
        assert_eq!(without_timer_check(""), "no_timer_check");
        assert_eq!(
            without_timer_check("root=/dev/vda1 -- single"),
            "no_timer_check root=/dev/vda1 -- single"
        );
        assert_eq!(without_timer_check("a no_timer_check b"), "a no_timer_check b");
        let long = "x".repeat(LINUX_COMMAND_LINE);
        assert_eq!(without_timer_check(&long), long);
    }
}
