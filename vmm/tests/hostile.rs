//! A guest that attacks every device from inside: rings that loop, lie about their length and point anywhere, and writes of anything to
//! registers, configuration space and ports. Its program is made here from a fixed seed, so that a run can be repeated.

// Numbers are cut to whatever a register takes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use common::asm::{Asm, DATA};
use common::{Guest, Plan, file, kvm, tap};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{BalloonConfig, EndReason, MachineCall, MachineState};

/// Slots of one device of each kind: entropy, network, disk, balloon, socket, console; and how many queues it has.
const DEVICES: [(u8, u16); 7] = [(1, 1), (2, 3), (10, 1), (28, 4), (29, 3), (30, 2), (31, 1)];
/// Where the rings and buffers of a queue are: descriptors, available, used; buffers behind.
const QUEUE: u32 = 0x1_0000;

/// Numbers that look random, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 32).unwrap()
    }

    fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }

    fn of(&mut self, menu: &[u32]) -> u32 {
        menu[usize::try_from(self.below(u32::try_from(menu.len()).unwrap())).unwrap()]
    }
}

fn bar(slot: u8) -> u32 {
    0xc000_0000 + u32::from(slot) * 0x4000
}

/// A device with all its queues set up: mostly rightly, or it would only ever be refused.
fn set_up(mut asm: Asm, numbers: &mut Numbers, slot: u8, queues: u16) -> Asm {
    let bar = bar(slot);
    asm = asm.pci_write(slot, 0x10, bar).pci_write(slot, 0x04, 6).write8(bar + 0x14, 0);
    // mov ecx, 2000; again: mov al, [status]; test al, al; jz out; loop again; out: it may be ejected, and then reads all-ones.
    asm = asm.raw(&[0xb9, 0xd0, 0x07, 0, 0]).read8(bar + 0x14).raw(&[0x84, 0xc0, 0x74, 0x02, 0xe2, 0xf5]);
    asm = asm.write8(bar + 0x14, 3);
    for half in 0..2 {
        asm = asm.write32(bar + 0x08, half);
        let offered = if half == 1 { 1 } else { numbers.of(&[0, u32::MAX, 0x2000_0000, 0x3000_0000]) };
        asm = asm.write32(bar + 0x0c, offered);
    }
    asm = asm.write8(bar + 0x14, 11);
    for queue in 0..queues {
        let base = DATA + u32::from(queue) * QUEUE;
        asm = asm
            .write16(bar + 0x16, queue)
            .write16(bar + 0x18, numbers.of(&[8, 8, 8, 16, 1, 256, 0, 7]) as u16);
        for (register, address) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
            let address = if numbers.below(12) == 0 {
                numbers.of(&[0, 0xffff_f000, 0xc000_0000, base])
            } else {
                address
            };
            asm = asm.write32(bar + register, address);
        }
        asm = asm.write16(bar + 0x1a, numbers.of(&[0, 0, 1, 0xffff]) as u16).write16(bar + 0x1c, 1);
    }
    asm.write8(bar + 0x14, 15)
}

/// Rings full of lies, and kicks. No buffer may reach this program's own code, or the guest would only hurt itself.
fn lie(mut asm: Asm, numbers: &mut Numbers, slot: u8, queues: u16) -> Asm {
    let queue = numbers.below(u32::from(queues));
    let base = DATA + queue * QUEUE;
    for index in 0..numbers.below(9) {
        let at = base + index * 16;
        let address = match numbers.below(4) {
            0 => numbers.of(&[0xffff_ffff, 0xc000_0000, 0x0400_0000, 0xfee0_0000, 0x03ff_fff0]),
            1 => base + numbers.below(8) * 16,
            _ => base + 0x4000 + numbers.below(0x8000),
        };
        let length = numbers.of(&[0, 1, 12, 16, 44, 511, 512, 4095, 0x7fff_ffff, 0xffff_ffff]);
        // Next, write, indirect; and a next one that may be itself, an earlier one or none.
        let flags = numbers.below(8) | (numbers.of(&[0, 1, 2, 3, 4, 7, 8, 0xffff]) << 16);
        asm = asm.write32(at, address).write32(at + 4, numbers.of(&[0, 0, 0, 0, 1, u32::MAX]));
        asm = asm.write32(at + 8, length).write32(at + 12, flags);
    }
    // What requests begin with: a type and a sector, a packet's header, page numbers.
    for word in 0..4 {
        let value = numbers.of(&[0, 1, 2, 4, 8, 11, 13, 52, 0x7fff_ffff, u32::MAX, 0x0002_0001]);
        asm = asm.write32(base + 0x4000 + numbers.below(64) * 16 + word * 4, value);
    }
    for place in 0..4 {
        asm = asm.write16(base + 0x1004 + place * 2, numbers.of(&[0, 1, 2, 7, 8, 255, 0xffff]) as u16);
    }
    let index = numbers.of(&[1, 1, 2, 3, 4, 9, 300, 0x8000, 0xffff]);
    asm.write32(base + 0x1000, (index << 16) | numbers.below(2))
        .write16(bar(slot) + 0x2000 + queue * 4, queue as u16)
}

/// Writes of anything to the registers of a device, by all ways there are.
fn scribble(asm: Asm, numbers: &mut Numbers, slot: u8) -> Asm {
    // An interrupt message must not reset this processor: fixed delivery only.
    let value =
        if numbers.below(2) == 0 { numbers.next() & 0xff } else { numbers.of(&[0, 1, 15, 0x80, u32::MAX]) };
    let register = numbers.below(256);
    match numbers.below(8) {
        0 => asm.write32(bar(slot) + (numbers.below(0x1000) & !3), value),
        1 => asm.write16(bar(slot) + numbers.below(0x40), value as u16),
        2 => asm.write8(bar(slot) + numbers.below(0x4000), value as u8 & 0x7f),
        3 => asm.read32(bar(slot) + numbers.below(0x4000)),
        4 => asm.pci_write(slot, register as u8, value),
        5 => asm.write32(0xe000_0000 + (u32::from(slot) << 15) + numbers.below(0x1000), value),
        6 => asm.out32(0xcf8, numbers.next()).out8(0xcfc + numbers.below(4) as u16, value as u8).in32(0xcfc),
        _ => asm.write32(0xfec0_0000 + numbers.of(&[0, 0x10, 0x20, 0x40]), value & 0xff),
    }
}

/// Ports that do not end the machine, which a guest may do as it likes.
fn ports(asm: Asm, numbers: &mut Numbers) -> Asm {
    let port = match numbers.below(3) {
        // The serial port without its data register: what the guest says is looked at.
        0 => 0x3f9 + numbers.below(7),
        1 => numbers.of(&[
            0x60, 0x61, 0x70, 0x71, 0x80, 0x505, 0x610, 0x614, 0x618, 0x61c, 0x620, 0x628, 0x630, 0x638,
            0x5000, 0xffff,
        ]),
        _ => 0x1000 + numbers.below(0xe000),
    } as u16;
    if port == 0x638 {
        // Ejects processors that are not there, and the first.
        return asm.out32(port, numbers.next());
    }
    if numbers.below(2) == 0 { asm.in32(port) } else { asm.out8(port, numbers.of(&[0, 1, 3, 0x55]) as u8) }
}

fn attack(seed: u64) -> Asm {
    let mut numbers = Numbers(seed);
    let mut asm = Asm::new().print("begin ");
    for round in 0..500 {
        let (slot, queues) = DEVICES[usize::try_from(numbers.below(7)).unwrap()];
        asm = set_up(asm, &mut numbers, slot, queues);
        for _ in 0..numbers.below(6) {
            asm = lie(asm, &mut numbers, slot, queues);
        }
        for _ in 0..numbers.below(8) {
            asm = scribble(asm, &mut numbers, slot);
        }
        asm = ports(asm, &mut numbers);
        if round % 50 == 0 {
            asm = asm.print(".");
        }
    }
    // The serial port may be anyhow by now; this is how it prints again.
    asm.out8(0x3fb, 3).out8(0x3fc, 0).print("survived").stop()
}

/// Resident memory of a process in KiB, of all mappings that are too small for the guest's memory.
fn own_memory(pid: i32, guest: MiB) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut total, mut counts) = (0, true);
    for line in text.lines() {
        if let Some((range, _)) = line.split_once(' ').filter(|(range, _)| range.contains('-')) {
            let (from, to) = range.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            counts = number(to) - number(from) < guest.bytes().unwrap() / 2;
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| counts) {
            total += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    total
}

#[test]
fn a_hostile_guest_harms_only_itself() {
    if !kvm() {
        return;
    }
    for seed in 1..=3 {
        let mut plan = Plan::new(attack(seed).elf());
        plan.disks.push(("disk".into(), file(&vec![0; 1 << 20]), false));
        plan.nics.push((PortId::new(), tap(None), Mac([2, 0, 0, 0, 0, 1])));
        plan.balloon = Some(BalloonConfig { target: MiB(0), deflate_on_oom: true });
        let directory = tempfile::tempdir().unwrap();
        plan.vsock = Some((7, UnixListener::bind(directory.path().join("vsock")).unwrap().into()));
        plan.virtio_console = Some([file(&[]), file(&[])]);
        let memory = plan.memory;
        (plan.max_memory, plan.max_vcpus) = (Some(MiB(memory.0 + 128)), Some(3));
        let mut guest = Guest::start(plan);
        guest.wait_console("begin");
        guest.done(&MachineCall::ResizeMemory { target: MiB(memory.0 + 64) });
        guest.done(&MachineCall::PlugVcpus { count: 2 });
        let since = Instant::now();
        let mut slowest = Duration::ZERO;
        while !guest.console().contains("survived") {
            let asked = Instant::now();
            assert_eq!(guest.status().state, MachineState::Running, "seed {seed}");
            slowest = slowest.max(asked.elapsed());
            assert!(since.elapsed() < common::longest(), "seed {seed}: still at it: {}", guest.console());
            let ended = guest.child.try_wait().unwrap();
            assert!(ended.is_none(), "seed {seed}: {ended:?} {:?}", guest.wait_end());
            std::thread::sleep(Duration::from_millis(5));
        }
        // Other calls go through all the while, and its devices stop when told to.
        guest.done(&MachineCall::Pause);
        guest.done(&MachineCall::Resume);
        let resident = own_memory(guest.machine_pid(), memory);
        println!(
            "seed {seed}: {:?}, slowest answer {slowest:?}, {resident} KiB, log {}",
            since.elapsed(),
            guest.log().len()
        );
        assert!(slowest < Duration::from_secs(10), "seed {seed}: an answer took {slowest:?}");
        assert!(resident < 16 << 10, "seed {seed}: {resident} KiB besides the guest's memory");
        assert!(guest.log().len() < 64 << 10, "seed {seed}: the guest filled the log");
        assert!(!guest.log().contains("panicked"), "seed {seed}");
        guest.done(&MachineCall::Stop);
        assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped, "seed {seed}");
    }
}

#[test]
fn breaking_rings_for_ever_does_not_fill_the_log() {
    if !kvm() {
        return;
    }
    let mut asm = Asm::new().pci_write(10, 0x04, 6);
    for _ in 0..400 {
        asm = common::driver::start_disk(asm.write8(bar(10) + 0x14, 0).until_zero(bar(10) + 0x14));
        // A head outside of the ring.
        asm = asm.write16(DATA + 0x1004, 99).write32(DATA + 0x1000, 1 << 16).write16(bar(10) + 0x2000, 0);
        // The device has looked once it is reset, which comes next.
    }
    let asm = asm.write8(bar(10) + 0x14, 0).until_zero(bar(10) + 0x14).print("done").power_off();
    let mut plan = Plan::new(asm.elf());
    plan.disks.push(("disk".into(), file(&vec![0; 4096]), false));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    assert!(guest.console().contains("done"));
    let told = guest.log().matches("is broken").count();
    assert!((1..=101).contains(&told), "{told} lines");
}
