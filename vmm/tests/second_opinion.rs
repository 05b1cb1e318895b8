//! A second opinion on virtio: one tiny guest drives a disk and a network interface under this monitor and under QEMU's software
//! emulation. What it sees must be the same wherever the specification (virtio 1.2) leaves no freedom.

// Numbers are cut to what a register takes.
#![allow(unsafe_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::{Guest, Plan, kvm};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wire::ids::{Mac, PortId};
use wire::machine::MachineCall;

/// Where one monitor puts a device and its structures (section 4.1.4). The guest places the BAR itself.
struct Place {
    slot: u8,
    /// Register of the BAR, of 64 bits if `wide`.
    register: u8,
    wide: bool,
    bar: u32,
    device: u32,
    notify: u32,
}

const OURS: Place =
    Place { slot: 10, register: 0x10, wide: false, bar: 0xc002_8000, device: 0x200, notify: 0x2000 };
/// BAR 4 of QEMU's devices has each structure on a page of its own.
const QEMU: Place =
    Place { slot: 10, register: 0x20, wide: true, bar: 0xc100_0000, device: 0x2000, notify: 0x3000 };

/// What the disk is called, and what it then says of itself.
const KEY: &str = "opinion";
const SERIAL: &str = "serial-opinion";
const SECTORS: u64 = 64;
/// Request header, data and status byte.
const HEADER: u32 = DATA + 0x3000;
const BUFFER: u32 = DATA + 0x4000;
const STATUS: u32 = DATA + 0x6000;

/// Says what a register or a word of memory has.
fn tell(asm: Asm, name: &str, read: impl FnOnce(Asm) -> Asm) -> Asm {
    read(asm.print(name).print("=")).print_eax().print("\n")
}

/// A byte, with the rest of `eax` cleared.
fn byte(address: u32) -> impl FnOnce(Asm) -> Asm {
    move |asm| asm.mov_eax(0).read8(address)
}

/// 16 bits: registers are read in their own width (section 4.1.3.1).
fn half(address: u32) -> impl FnOnce(Asm) -> Asm {
    move |asm| asm.read16(address)
}

fn word(address: u32) -> impl FnOnce(Asm) -> Asm {
    move |asm| asm.read32(address)
}

/// Requests to a disk, one after another, and what came of them.
struct Driver<'a> {
    place: &'a Place,
    offered: u32,
}

impl Driver<'_> {
    /// Offers a chain of header, data and status, waits until it is used, and tells how.
    fn request(&mut self, asm: Asm, name: &str, kind: u32, sector: u64, data: &[(u32, u32, bool)]) -> Asm {
        let sector = [sector & 0xffff_ffff, sector >> 32].map(|half| u32::try_from(half).unwrap());
        let mut asm = asm.write32(HEADER, kind).write32(HEADER + 4, 0);
        asm = asm.write32(HEADER + 8, sector[0]).write32(HEADER + 12, sector[1]).write8(STATUS, 0xff);
        let mut pieces = vec![(HEADER, 16, false)];
        pieces.extend(data);
        pieces.push((STATUS, 1, true));
        for (index, (address, length, write)) in (0u32..).zip(&pieces) {
            let last = address == &STATUS;
            let flags = u32::from(!last) | (u32::from(*write) << 1);
            let at = DATA + index * 16;
            asm = asm.write32(at, *address).write32(at + 4, 0).write32(at + 8, *length);
            asm = asm.write32(at + 12, flags | ((index + 1) << 16));
        }
        // Its head is descriptor 0; the ring has 8 places.
        asm = asm.write16(DATA + 0x1004 + (self.offered % 8) * 2, 0);
        let used = DATA + 0x2004 + (self.offered % 8) * 8;
        self.offered += 1;
        asm = asm.write32(DATA + 0x1000, self.offered << 16).write16(self.place.bar + self.place.notify, 0);
        // The used index is the upper half of the ring's first word: until it has changed to this.
        asm = wait_used(asm, self.offered);
        asm = tell(asm.print(name).print(" "), "status", byte(STATUS));
        tell(asm.print(name).print(" "), "head", word(used))
    }
}

/// Waits until the used index is `wanted`.
fn wait_used(asm: Asm, wanted: u32) -> Asm {
    let start = asm.here();
    // mov eax, [used]; shr eax, 16; cmp eax, wanted; jne start
    let asm = asm.read32(DATA + 0x2000).raw(&[0xc1, 0xe8, 0x10, 0x3d]).raw(&wanted.to_le_bytes());
    let next = asm.here() + 6;
    asm.raw(&[0x0f, 0x85]).raw(&start.wrapping_sub(next).to_le_bytes())
}

/// Common configuration, with its offsets in section 4.1.4.3.
fn disk_guest(place: &Place) -> Asm {
    let bar = place.bar;
    let config = bar + place.device;
    let mut asm = Asm::new().print("begin\n").pci_write(place.slot, place.register, bar);
    if place.wide {
        asm = asm.pci_write(place.slot, place.register + 4, 0);
    }
    asm = asm.pci_write(place.slot, 0x04, 6);
    asm = tell(asm, "vendor and device", |asm| asm.pci_read(place.slot, 0));
    asm = asm.write8(bar + 0x14, 0).until_zero(bar + 0x14);
    asm = tell(asm, "status at first", byte(bar + 0x14));
    asm = tell(asm.write8(bar + 0x14, 3), "status with a driver", byte(bar + 0x14));
    // FLUSH (9) of the disk's own, VERSION_1 (32).
    asm = tell(asm.write32(bar, 0), "features", |asm| {
        asm.read32(bar + 4).raw(&[0x25]).raw(&(1u32 << 9).to_le_bytes())
    });
    asm = tell(asm.write32(bar, 1), "features above", |asm| asm.read32(bar + 4).raw(&[0x83, 0xe0, 0x01]));
    asm = asm.write32(bar + 8, 0).write32(bar + 0xc, 1 << 9).write32(bar + 8, 1).write32(bar + 0xc, 1);
    asm = tell(asm.write8(bar + 0x14, 11), "status with features", byte(bar + 0x14));
    asm = tell(asm, "capacity", word(config));
    asm = tell(asm, "capacity above", word(config + 4));
    asm = asm.write16(bar + 0x16, 0).write16(bar + 0x18, 8);
    asm = tell(asm, "queue size", half(bar + 0x18));
    asm = tell(asm, "queue enabled", half(bar + 0x1c));
    for (register, address) in [(0x20, DATA), (0x28, DATA + 0x1000), (0x30, DATA + 0x2000)] {
        asm = asm.write32(bar + register, address).write32(bar + register + 4, 0);
    }
    asm = asm.write16(bar + 0x1a, 0xffff).write16(bar + 0x1c, 1);
    asm = tell(asm, "queue enabled", half(bar + 0x1c));
    asm = tell(asm.write8(bar + 0x14, 15), "status at work", byte(bar + 0x14));

    let mut driver = Driver { place, offered: 0 };
    let sector = [(BUFFER, 512, true)];
    asm = driver.request(asm, "read", 0, 1, &sector);
    asm = tell(asm, "length", word(DATA + 0x2008));
    asm = tell(tell(asm, "data", word(BUFFER)), "data's end", word(BUFFER + 508));
    asm = asm.write32(BUFFER, 0x1234_5678).write32(BUFFER + 508, 0x9abc_def0);
    asm = driver.request(asm, "write", 1, 2, &[(BUFFER, 512, false)]);
    asm = driver.request(
        asm.write32(BUFFER, 0),
        "read back",
        0,
        2,
        &[(BUFFER, 200, true), (BUFFER + 200, 312, true)],
    );
    asm = tell(tell(asm, "data", word(BUFFER)), "data's end", word(BUFFER + 508));
    asm = driver.request(asm, "flush", 4, 0, &[]);
    asm = driver.request(asm, "last", 0, SECTORS - 1, &sector);
    asm = driver.request(asm, "beyond", 0, SECTORS, &sector);
    asm = driver.request(asm, "half beyond", 0, SECTORS - 1, &[(BUFFER, 1024, true)]);
    asm = driver.request(asm, "write beyond", 1, SECTORS, &[(BUFFER, 512, false)]);
    asm = driver.request(asm, "far beyond", 0, u64::MAX - 3, &sector);
    asm = driver.request(asm, "unknown", 99, 0, &sector);
    // Cleared first: behind the end of the string QEMU leaves what was there, although it is to be padded (section 5.2.6).
    for place in 0..5 {
        asm = asm.write32(BUFFER + 4 * place, 0);
    }
    asm = driver.request(asm, "identity", 8, 0, &[(BUFFER, 20, true)]);
    for place in 0..5 {
        asm = tell(asm, "identity", word(BUFFER + 4 * place));
    }
    // Nothing is left of all that after a reset.
    asm = asm.write8(bar + 0x14, 0).until_zero(bar + 0x14).write16(bar + 0x16, 0);
    asm = tell(asm, "queue enabled", half(bar + 0x1c));
    asm.print("end\n").stop()
}

fn disk() -> tempfile::NamedTempFile {
    let disk = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS * 512).map(|at| ((at * 7) ^ (at >> 9)).to_le_bytes()[0]).collect();
    disk.as_file().write_all_at(&content, 0).unwrap();
    disk
}

fn under_qemu(guest: Asm, device: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, console) = (folder.path().join("kernel"), folder.path().join("console"));
    std::fs::write(&kernel, guest.elf()).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(&kernel).arg("-serial").arg(format!("file:{}", console.display()));
    let mut qemu = qemu.args(device).stdin(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + common::longest();
    let said = loop {
        let said = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
        if said.contains("end\n") || Instant::now() > until || qemu.try_wait().unwrap().is_some() {
            break said;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let _ = qemu.kill();
    let _ = qemu.wait();
    // Its firmware talks first.
    said.split_once("begin\n").map_or(said.clone(), |(_, said)| format!("begin\n{said}"))
}

fn under_ours(mut plan: Plan, guest: Asm) -> String {
    plan.kernel = guest.elf();
    let mut guest = Guest::start(plan);
    guest.wait_console("end\n");
    guest.done(&MachineCall::Stop);
    guest.wait_end();
    guest.console()
}

fn same(ours: &str, theirs: &str) {
    assert!(ours.ends_with("end\n"), "{ours}");
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs, "ours and QEMU's");
    }
    assert_eq!(ours, theirs);
}

#[test]
fn a_disk_behaves_as_qemu_s_does() {
    if !kvm() {
        return;
    }
    let (one, two) = (disk(), disk());
    let mut plan = Plan::new(Vec::new());
    plan.disks.push((KEY.into(), one.reopen().unwrap(), false));
    let ours = under_ours(plan, disk_guest(&OURS));
    let drive = format!("file={},format=raw,if=none,id=disk", two.path().display());
    let device = format!("virtio-blk-pci,drive=disk,addr=0xa,disable-legacy=on,num-queues=1,serial={SERIAL}");
    let theirs = under_qemu(disk_guest(&QEMU), &["-drive", &drive, "-device", &device]);
    assert!(ours.contains(&format!("capacity={}\n", printed(64))), "{ours}");
    same(&ours, &theirs);
    assert_eq!(std::fs::read(one.path()).unwrap(), std::fs::read(two.path()).unwrap(), "the disks differ");
}

const OUR_NIC: Place = Place { slot: 2, bar: 0xc000_8000, ..OURS };
const QEMU_NIC: Place = Place { slot: 11, ..QEMU };
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Of frames for experiments, which nobody else sends.
const KIND: [u8; 2] = [0x88, 0xb5];
const FRAME: u32 = 60;

/// Sends a frame, gets it back, and tells what came with it. The second queue's rings lie above the first one's.
fn nic_guest(place: &Place) -> Asm {
    const SEND: u32 = DATA + 0x1_0000;
    let (bar, config) = (place.bar, place.bar + place.device);
    let mut asm = Asm::new().print("begin\n").pci_write(place.slot, place.register, bar);
    if place.wide {
        asm = asm.pci_write(place.slot, place.register + 4, 0);
    }
    asm = asm.pci_write(place.slot, 0x04, 6);
    asm = tell(asm, "vendor and device", |asm| asm.pci_read(place.slot, 0));
    asm = asm.write8(bar + 0x14, 0).until_zero(bar + 0x14).write8(bar + 0x14, 3);
    // MAC (5), STATUS (16) and CTRL_VQ (17) are offered; MAC alone is taken.
    asm = tell(asm.write32(bar, 0), "features", |asm| {
        asm.read32(bar + 4).raw(&[0x25]).raw(&0x2_0020_u32.to_le_bytes())
    });
    asm = asm.write32(bar + 8, 0).write32(bar + 0xc, 1 << 5).write32(bar + 8, 1).write32(bar + 0xc, 1);
    asm = tell(asm.write8(bar + 0x14, 11), "status with features", byte(bar + 0x14));
    for at in 0..6 {
        asm = tell(asm, "address", byte(config + at));
    }
    for (queue, base) in [(0, DATA), (1, SEND)] {
        asm = asm.write16(bar + 0x16, queue).write16(bar + 0x18, 8);
        for (register, address) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
            asm = asm.write32(bar + register, address).write32(bar + register + 4, 0);
        }
        asm = asm.write16(bar + 0x1a, 0xffff).write16(bar + 0x1c, 1);
    }
    asm = tell(asm.write8(bar + 0x14, 15), "status at work", byte(bar + 0x14));
    // Room for what comes, in two pieces: 12 bytes of header and then the frame.
    for (index, address, length, flags) in [(0, BUFFER, 12, 0x1_0003), (1, BUFFER + 0x100, 1514, 2)] {
        let at = DATA + index * 16;
        asm = asm.write32(at, address).write32(at + 4, 0).write32(at + 8, length).write32(at + 12, flags);
    }
    asm = asm.write32(BUFFER + 8, u32::MAX).write32(DATA + 0x1000, 1 << 16).write16(bar + place.notify, 0);
    // The frame, behind an empty header: to everybody, from this address.
    let mut frame = vec![0u8; 12];
    frame.extend([[0xff; 6], MAC].concat());
    frame.extend(KIND);
    frame.extend((frame.len() as u8..).take(FRAME as usize + 12 - frame.len()));
    for (at, word) in (0..).step_by(4).zip(frame.chunks_exact(4)) {
        asm = asm.write32(SEND + 0x4000 + at, u32::from_le_bytes(word.try_into().unwrap()));
    }
    asm = asm
        .write32(SEND, SEND + 0x4000)
        .write32(SEND + 4, 0)
        .write32(SEND + 8, 12 + FRAME)
        .write32(SEND + 12, 0);
    asm = asm.write32(SEND + 0x1000, 1 << 16).write16(bar + place.notify + 4, 1);
    asm = asm.until(0xffff_0000, |asm| asm.read32(SEND + 0x2000)).print("sent\n");
    asm = wait_used(asm, 1);
    asm = tell(tell(asm, "head", word(DATA + 0x2004)), "length", word(DATA + 0x2008));
    // Flags and kind of segmentation are none.
    asm = tell(tell(asm, "header", half(BUFFER)), "buffers", half(BUFFER + 10));
    for at in (0..FRAME).step_by(4) {
        asm = tell(asm, "frame", word(BUFFER + 0x100 + at));
    }
    asm.print("end\n").stop()
}

/// A tap whose other end sends back every frame of [`KIND`], from a namespace of its own that lasts as long as the tap.
fn echoing_tap() -> std::os::fd::OwnedFd {
    let (give, take) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let tap = common::tap(Some("tap0".into()));
        // What the kernel says of itself when an interface comes up would be the first to arrive.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1");
        assert!(Command::new("ip").args(["link", "set", "tap0", "up"]).status().unwrap().success());
        let kind = i32::from(u16::from_ne_bytes(KIND));
        // SAFETY: takes numbers, answers a descriptor.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, kind) };
        assert!(raw >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just made it, and nobody else has it.
        let mut socket = File::from(unsafe { std::os::fd::OwnedFd::from_raw_fd(raw) });
        // SAFETY: plain bytes; zero is a value of each.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = u16::from_ne_bytes(KIND);
        address.sll_ifindex = nix::net::if_::if_nametoindex("tap0").unwrap() as i32;
        let length = size_of_val(&address) as u32;
        // SAFETY: the kernel reads one address of that length.
        let bound = unsafe { libc::bind(raw, (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        give.send(tap).unwrap();
        let mut frame = [0; 2048];
        while let Ok(count) = socket.read(&mut frame) {
            let _ = socket.write_all(&frame[..count]);
        }
    });
    // It comes when the echo listens.
    take.recv().unwrap()
}

#[test]
fn a_network_interface_behaves_as_qemu_s_does() {
    if !kvm() {
        return;
    }
    let mut plan = Plan::new(Vec::new());
    plan.nics.push((PortId::new(), echoing_tap(), Mac(MAC)));
    let ours = under_ours(plan, nic_guest(&OUR_NIC));
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let socket = UnixDatagram::bind(&here).unwrap();
    std::thread::spawn(move || {
        let mut frame = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut frame) {
            let _ = socket.send_to_addr(&frame[..count], &from);
        }
    });
    let wire = format!(
        "dgram,id=wire,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        there.display(),
        here.display()
    );
    let device = "virtio-net-pci,netdev=wire,addr=0xb,disable-legacy=on,mac=02:00:00:00:00:09";
    let theirs = under_qemu(nic_guest(&QEMU_NIC), &["-netdev", &wire, "-device", device]);
    assert!(ours.contains(&format!("length={}\n", printed(12 + FRAME))), "{ours}");
    // The device has to say one buffer (section 5.1.6.4.1). QEMU 7.2 leaves what was there.
    assert!(ours.contains(&format!("buffers={}\n", printed(1))), "{ours}");
    let others = |said: &str| -> String {
        said.lines().filter(|line| !line.starts_with("buffers=")).map(|line| format!("{line}\n")).collect()
    };
    same(&others(&ours), &others(&theirs));
}
