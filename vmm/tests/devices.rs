//! Single devices under tiny guests that drive them, through `vmm serve` as `hostd` starts it.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::driver::{BAR, DISK_SLOT, end_of, read_sector, start_device, start_disk};
use common::{Guest, Plan, file, kvm};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use wire::MiB;
use wire::machine::{
    BalloonConfig, EndReason, MachineCall, MachineReply, MachineState, MachineStatus, WatchdogAction,
};

/// BAR and slot of the entropy device.
const RNG_SLOT: u8 = 1;
const RNG_BAR: u32 = 0xc000_0000 + 0x4000;

#[test]
fn a_guest_reads_its_disk_over_pci() {
    if !kvm() {
        return;
    }
    let asm = read_sector(start_disk(Asm::new()), 1);
    let asm = asm
        .until(0xffff_0000, |asm| asm.read32(DATA + 0x2000))
        .read8(DATA + 0x4200)
        .raw(&[0x04, b'0'])
        .put_al();
    let mut asm = asm;
    for byte in 0..6 {
        asm = asm.read8(DATA + 0x4000 + byte).put_al();
    }
    // Reset by the driver, waiting until it is done, and no answer while the device is idle.
    let asm = asm.write8(BAR + 0x14, 0);
    let asm = asm.until_zero(BAR + 0x14);
    let mut content = vec![0u8; 4096];
    content[512..518].copy_from_slice(b"sector");
    let mut plan = Plan::new(asm.print("reset").power_off().elf());
    plan.disks.push(("root".into(), file(&content), true));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff);
    assert_eq!(guest.console(), "0sectorreset");
}

#[test]
fn a_guest_gets_entropy() {
    if !kvm() {
        return;
    }
    let asm = start_device(Asm::new(), RNG_SLOT, RNG_BAR);
    let asm = asm.write32(DATA, DATA + 0x4000).write32(DATA + 8, 32).write32(DATA + 12, 2);
    let asm = asm.write32(DATA + 0x1000, 1 << 16).write16(RNG_BAR + 0x2000, 0);
    let mut asm = asm.until(0xffff_0000, |asm| asm.read32(DATA + 0x2000)).read32(DATA + 0x2008).print_eax();
    for word in 0..8 {
        asm = asm.read32(DATA + 0x4000 + 4 * word).print_eax();
    }
    let elf = asm.power_off().elf();
    let run = || {
        let mut guest = Guest::start(Plan::new(elf.clone()));
        assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
        guest.console()
    };
    let (one, two) = (run(), run());
    assert_eq!((one.len(), &one[..8]), (72, printed(32).as_str()));
    assert_ne!(one[8..], two[8..]);
}

#[test]
fn memory_in_the_balloon_goes_back_to_the_host() {
    if !kvm() {
        return;
    }
    const BALLOON: u32 = 0xc000_0000 + 28 * 0x4000;
    const PAGES: u32 = 2048;
    const FIRST: u32 = 0x200_0000;
    const NUMBERS: u32 = DATA + 0x1_0000;
    // mov edi, FIRST; mov ecx, PAGES; again: mov byte [edi], 1; add edi, 4096; loop again
    let mut asm = Asm::new().raw(&[0xbf]).raw(&FIRST.to_le_bytes()).raw(&[0xb9]).raw(&PAGES.to_le_bytes());
    asm = asm.raw(&[0xc6, 0x07, 0x01, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0xe2, 0xf5]);
    // mov edi, NUMBERS; mov eax, FIRST / 4096; mov ecx, PAGES; again: stosd; inc eax; loop again
    asm = asm.raw(&[0xbf]).raw(&NUMBERS.to_le_bytes()).mov_eax(FIRST >> 12);
    asm = asm.raw(&[0xb9]).raw(&PAGES.to_le_bytes()).raw(&[0xab, 0x40, 0xe2, 0xfc]);
    // The deflate queue, then the inflate queue and DRIVER_OK.
    asm = asm.pci_write(28, 0x04, 6).write16(BALLOON + 0x16, 1).write16(BALLOON + 0x18, 8);
    for (register, address) in [(0x20, 0x5000), (0x28, 0x6000), (0x30, 0x7000)] {
        asm = asm.write32(BALLOON + register, DATA + address);
    }
    asm = start_device(asm.write16(BALLOON + 0x1c, 1), 28, BALLOON).print("touched");
    asm = asm.until(u32::MAX, |asm| asm.read32(BALLOON + 0x200));
    asm = asm.write32(DATA, NUMBERS).write32(DATA + 8, PAGES * 4).write32(DATA + 12, 0);
    asm = asm.write32(DATA + 0x1000, 1 << 16).write16(BALLOON + 0x2000, 0);
    asm = asm.until(0xffff_0000, |asm| asm.read32(DATA + 0x2000));
    let mut plan = Plan::new(asm.write32(BALLOON + 0x204, PAGES).print(" given").stop().elf());
    plan.memory = MiB(64);
    plan.balloon = Some(BalloonConfig { target: MiB(0), deflate_on_oom: true });
    let mut guest = Guest::start(plan);
    guest.wait_console("touched");
    let resident = |guest: &Guest| {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", guest.machine_pid())).unwrap();
        // Without pages of files, such as code that runs for the first time.
        let pages: Vec<u32> = text.split_whitespace().map(|count| count.parse().unwrap()).collect();
        pages[1] - pages[2]
    };
    let before = resident(&guest);
    assert!(matches!(guest.call(&MachineCall::Balloon { target: MiB(60) }), MachineReply::Refused(_)));
    guest.done(&MachineCall::Balloon { target: MiB(8) });
    guest.wait_console(" given");
    let after = resident(&guest);
    assert!(before - after > PAGES - 100, "{before} pages before, {after} after");
    let MachineReply::Balloon(status) = guest.call(&MachineCall::BalloonStatus) else { panic!("no balloon") };
    assert_eq!((status.target, status.actual, status.given_back), (8 << 20, 8 << 20, 8 << 20));
    guest.done(&MachineCall::Stop);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
fn a_host_s_program_talks_to_one_in_the_guest() {
    if !kvm() {
        return;
    }
    const VSOCK: u32 = 0xc000_0000 + 29 * 0x4000;
    const RECEIVED: u32 = DATA + 0x4000;
    const SENT: u32 = DATA + 0x1_4000;
    // The guest's second and third queues, then the first and DRIVER_OK.
    let mut asm = Asm::new().pci_write(29, 0x04, 6);
    for queue in 1..3_u16 {
        let base = DATA + 0x1_0000 * u32::from(queue);
        asm = asm.write16(VSOCK + 0x16, queue).write16(VSOCK + 0x18, 8);
        for (register, address) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] {
            asm = asm.write32(VSOCK + register, base + address);
        }
        asm = asm.write16(VSOCK + 0x1c, 1);
    }
    asm = start_device(asm, 29, VSOCK);
    // Two buffers of 256 bytes, one for the request and one for data.
    for index in 0..2_u32 {
        let at = DATA + 16 * index;
        asm = asm.write32(at, RECEIVED + 0x100 * index).write32(at + 8, 0x100).write32(at + 12, 2);
    }
    asm = asm.write32(DATA + 0x1004, 1 << 16).write32(DATA + 0x1000, 2 << 16).write16(VSOCK + 0x2000, 0);
    asm = asm.print("ready ").until(0xffff_0000, |asm| asm.read32(DATA + 0x2000));
    // The operation, then an answer: address, ports (`mov [SENT + 20], eax`), Response, room.
    asm = asm.read32(RECEIVED + 28).print_eax();
    asm = asm.read32(RECEIVED + 16).raw(&[0xa3]).raw(&(SENT + 20).to_le_bytes());
    asm = asm.write32(SENT, 7).write32(SENT + 8, 2).write32(SENT + 16, 52);
    asm = asm.write32(SENT + 28, 1 | (2 << 16)).write32(SENT + 36, 4096);
    asm = asm.write32(DATA + 0x1_0000, SENT).write32(DATA + 0x1_0008, 44);
    asm = asm.write32(DATA + 0x1_1000, 1 << 16).write16(VSOCK + 0x2004, 1);
    asm = asm.until(0xfffe_0000, |asm| asm.read32(DATA + 0x2000));
    asm = asm.read32(RECEIVED + 0x100 + 44).print_eax();
    let mut plan = Plan::new(asm.power_off().elf());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    plan.vsock = Some((7, UnixListener::bind(&path).unwrap().into()));
    // Before the guest is ready: it waits at the door.
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 52\n").unwrap();
    let mut guest = Guest::start(plan);
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line}");
    stream.write_all(b"ping").unwrap();
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    let words = [0x0001_0001, u32::from_le_bytes(*b"ping")].map(printed).concat();
    assert_eq!(guest.console(), format!("ready {words}"));
}

#[test]
fn a_guest_that_stops_calling_its_watchdog_is_ended() {
    const WATCHDOG: u16 = 0x640;
    if !kvm() {
        return;
    }
    let asm = Asm::new().out32(WATCHDOG, 3).out8(WATCHDOG + 8, 1).print("hang").stop();
    assert_eq!(end_of(asm), (EndReason::Watchdog, "hang".into()));
    // It stands still with the machine.
    let mut asm = Asm::new().out32(WATCHDOG, 20).out8(WATCHDOG + 8, 1).print("on");
    asm = asm.out8(WATCHDOG + 9, 1).in32(WATCHDOG).print_eax();
    let mut guest = Guest::start(Plan::new(asm.stop().elf()));
    guest.wait_console(&format!("on{}", printed(20)));
    guest.done(&MachineCall::Pause);
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(guest.status().state, MachineState::Paused);
    guest.done(&MachineCall::Resume);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Watchdog);
}

#[test]
fn a_watchdog_pauses_or_is_counted_where_that_is_wanted() {
    if !kvm() {
        return;
    }
    const WATCHDOG: u16 = 0x640;
    let asm = || Asm::new().out32(WATCHDOG, 1).out8(WATCHDOG + 8, 1).print("hang").stop();
    let start = |action| {
        let mut plan = Plan::new(asm().elf());
        plan.watchdog_action = action;
        Guest::start(plan)
    };
    let until = |guest: &Guest, test: fn(&MachineStatus) -> bool| loop {
        let now = guest.status();
        if test(&now) {
            return now;
        }
        let after = MachineCall::Status { after: Some(now.sequence), wait_ms: 20_000 };
        let MachineReply::Status(next) = guest.call(&after) else { panic!("no status") };
        assert!(next.sequence > now.sequence, "nothing happens: {next:?}");
    };
    let mut guest = start(WatchdogAction::Pause);
    let now = until(&guest, |now| now.bites > 0);
    assert_eq!((now.state, now.bites), (MachineState::Paused, 1));
    guest.done(&MachineCall::Resume);
    let now = until(&guest, |now| now.bites > 1);
    assert_eq!(now.state, MachineState::Paused, "it bites again when the guest still hangs");
    guest.done(&MachineCall::Stop);
    guest.wait_end();
    let mut guest = start(WatchdogAction::Count);
    let now = until(&guest, |now| now.bites > 1);
    assert_eq!(now.state, MachineState::Running);
    guest.done(&MachineCall::Stop);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
fn msi_x_interrupts_arrive() {
    if !kvm() {
        return;
    }
    const IDT: u32 = DATA + 0x8000;
    const LAPIC: u32 = 0xfee0_0000;
    const VECTOR: u32 = 0x40;
    // The handler comes first, behind a jump. It does not return: an emulating host cannot do that.
    let asm = Asm::new();
    let handler = asm.here() + 5;
    let body = |asm: Asm| asm.write32(LAPIC + 0xb0, 0).print("interrupt").power_off();
    let length = body(Asm::new()).here() - Asm::new().here();
    let asm = body(asm.jump(handler + length));
    let asm = asm
        .write32(IDT + VECTOR * 8, (handler & 0xffff) | (0x10 << 16))
        .write32(IDT + VECTOR * 8 + 4, (handler & 0xffff_0000) | 0x8e00)
        .write32(DATA + 0x7000, 0x7ff | ((IDT & 0xffff) << 16))
        .write32(DATA + 0x7004, IDT >> 16)
        .raw(&[0x0f, 0x01, 0x1d])
        .raw(&(DATA + 0x7000).to_le_bytes())
        .write32(LAPIC + 0xf0, 0x1ff);
    // Vector 0 of the disk: its message, unmasked; then MSI-X on.
    let asm = asm.pci_write(DISK_SLOT, 0x04, 6).write32(BAR + 0x1000, LAPIC).write32(BAR + 0x1004, 0);
    let asm =
        asm.write32(BAR + 0x1008, VECTOR).write32(BAR + 0x100c, 0).pci_write(DISK_SLOT, 0x40, 0x8000_0000);
    let asm = read_sector(start_disk(asm), 0);
    // sti; hlt: only an interrupt gets past.
    let asm = asm.print("wait ").raw(&[0xfb, 0xf4, 0xfa]).print("passed").power_off();
    let mut plan = Plan::new(asm.elf());
    plan.disks.push(("root".into(), file(&[0; 4096]), false));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff);
    assert_eq!(guest.console(), "wait interrupt");
}
