//! Processors that come and go while the guest runs.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, printed};
use common::{Guest, Plan, kvm};
use wire::machine::{EndReason, MachineCall, MachineReply, Topology};

/// The processors' registers.
const THERE: u16 = 0x620;
const CAME: u16 = 0x628;
const ASKED_BACK: u16 = 0x630;
const EJECT: u16 = 0x638;

/// Puts what other processors do when they are started: they count themselves.
fn trampoline(asm: Asm) -> Asm {
    let code: [u8; 13] = [
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0xf0, 0xff, 0x06, 0x00, 0x70, // lock inc word [0x7000]
        0xfa, 0xf4, 0xeb, 0xfd, // cli; hlt; jmp -3
    ];
    let asm = (0x8000u32..).zip(code).fold(asm, |asm, (at, byte)| asm.write8(at, byte));
    asm.write32(0x7000, 0).write32(0xfee0_00f0, 0x1ff)
}

/// Starts the processor with an APIC id: INIT, then start-up with vector 8. Answers once it has counted itself, which sets this bit.
fn start(asm: Asm, id: u32, bit: u32) -> Asm {
    let to = |asm: Asm, what| asm.write32(0xfee0_0310, id << 24).write32(0xfee0_0300, what);
    to(to(asm, 0x0000_4500), 0x0000_4608).until(bit, |asm| asm.read32(0x7000))
}

/// Waits for the event of the processors, and prints a register.
fn heard(asm: Asm, register: u16) -> Asm {
    asm.until(8, |asm| asm.in32(0x610)).in32(register).print_eax().in32(THERE).print_eax()
}

fn guest() -> Vec<u8> {
    let asm = trampoline(Asm::new()).in32(THERE).print_eax().print(" ready ");
    let asm = heard(asm, CAME);
    // Told once only.
    let asm = asm.in32(CAME).print_eax();
    let asm = start(start(asm, 1, 1), 2, 2).print(" three ");
    let asm = heard(asm, ASKED_BACK).print(" asked ").until(1, |asm| asm.in32(0x610));
    // The first one stays, and what is not there cannot be ejected.
    let asm = asm.out32(EJECT, 0b1101).out32(EJECT + 4, u32::MAX);
    // The guest looks at once whether they went.
    let asm =
        asm.in32(THERE).print_eax().print(" two ").until(8, |asm| asm.in32(0x610)).in32(CAME).print_eax();
    start(asm, 2, 1).print(" again").power_off().elf()
}

fn plan() -> Plan {
    Plan { max_vcpus: Some(4), ..Plan::new(guest()) }
}

fn vcpus(guest: &Guest, count: u32) {
    guest.wait_status(|status| status.vcpus == count);
}

#[test]
fn processors_come_and_go() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::start(plan());
    guest.wait_console("ready");
    vcpus(&guest, 1);
    for wrong in [0, 5, u32::MAX] {
        let refused = guest.call(&MachineCall::PlugVcpus { count: wrong });
        let MachineReply::Refused(refused) = refused else { panic!("{refused:?}") };
        assert!(refused.to_string().contains("it has 1 to 4"), "{refused}");
    }
    guest.done(&MachineCall::PlugVcpus { count: 3 });
    guest.done(&MachineCall::PlugVcpus { count: 3 });
    guest.wait_console(" three ");
    vcpus(&guest, 3);
    let came = [0b110, 0b111, 0].map(printed).concat();
    assert_eq!(guest.console(), format!("{} ready {came} three ", printed(1)));
    guest.done(&MachineCall::PlugVcpus { count: 2 });
    guest.wait_console(" asked ");
    vcpus(&guest, 3);
    // In a snapshot, and on from it.
    let (files, _) = guest.snapshot();
    guest.done(&MachineCall::Stop);
    let none = Plan {
        restore: Some([files[0].try_clone().unwrap(), files[1].try_clone().unwrap()]),
        ..Plan::new(Vec::new())
    };
    let end = Guest::start(none).wait_end().1.unwrap();
    assert!(end.detail.contains("4 vCPUs"), "{}", end.detail);
    std::io::Seek::rewind(&mut &files[0]).unwrap();
    let mut guest = Guest::start(Plan { restore: Some(files), ..plan() });
    vcpus(&guest, 3);
    guest.done(&MachineCall::PowerButton);
    guest.wait_console(" two ");
    vcpus(&guest, 2);
    guest.done(&MachineCall::Pause);
    guest.done(&MachineCall::PlugVcpus { count: 4 });
    vcpus(&guest, 4);
    guest.done(&MachineCall::Resume);
    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::PowerButton, "{}", guest.log());
    assert_eq!(guest.console(), format!("{} two {} again", printed(0b11), printed(0b1100)));
}

#[test]
fn the_last_wish_for_processors_counts() {
    if !kvm() {
        return;
    }
    let asm = Asm::new().print("ready").until(8, |asm| asm.in32(0x610)).in32(ASKED_BACK).print_eax();
    let asm = asm.until(1, |asm| asm.in32(0x610)).out32(EJECT, 0b1100).print(" ejected");
    let asm = heard(asm, CAME).print(" back").until(1, |asm| asm.in32(0x610)).in32(ASKED_BACK).print_eax();
    let mut guest = Guest::start(Plan { vcpus: 4, max_vcpus: Some(5), ..Plan::new(asm.power_off().elf()) });
    guest.wait_console("ready");
    guest.done(&MachineCall::PlugVcpus { count: 2 });
    guest.wait_console(&printed(0b1100));
    // It has read that it is to give them back, and gives them back all the same.
    guest.done(&MachineCall::PlugVcpus { count: 4 });
    guest.done(&MachineCall::PowerButton);
    guest.wait_console(" back");
    vcpus(&guest, 4);
    // Asked for and not wanted any more, before it has read it.
    guest.done(&MachineCall::PlugVcpus { count: 2 });
    guest.done(&MachineCall::PlugVcpus { count: 4 });
    guest.done(&MachineCall::PowerButton);
    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::PowerButton, "{}", guest.log());
    let told =
        [printed(0b1100), " ejected".into(), printed(0b1100), printed(0b1111), " back".into(), printed(0)];
    assert_eq!(guest.console(), format!("ready{}", told.concat()));
}

#[test]
fn a_machine_of_fixed_processors_says_so() {
    if !kvm() {
        return;
    }
    let asm = Asm::new().in32(THERE).print_eax().print(" ready").stop();
    let mut guest = Guest::start(Plan { vcpus: 2, ..Plan::new(asm.clone().elf()) });
    guest.wait_console("ready");
    assert_eq!(guest.console(), format!("{} ready", printed(u32::MAX)));
    guest.done(&MachineCall::PlugVcpus { count: 2 });
    let refused = guest.call(&MachineCall::PlugVcpus { count: 1 });
    let MachineReply::Refused(refused) = refused else { panic!("{refused:?}") };
    assert!(refused.to_string().contains("max_vcpus"), "{refused}");
    guest.done(&MachineCall::Stop);
    let topology = Some(Topology { sockets: 2, cores: 2, threads: 1 });
    for (vcpus, max_vcpus, words) in [
        (3, Some(2), "can have 3 to 64 of them, not 2"),
        (1, Some(65), "not 65"),
        (2, Some(3), "do not make 3 vCPUs"),
    ] {
        let plan = Plan { vcpus, max_vcpus, topology, ..Plan::new(asm.clone().elf()) };
        let end = Guest::start(plan).wait_end().1.unwrap();
        assert!(end.detail.contains(words), "{}", end.detail);
    }
}
