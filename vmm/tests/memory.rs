//! Kinds of guest memory, with tiny guests.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::driver::{descriptor, start_device};
use common::{Guest, Plan, kvm};
use std::fs::File;
use std::io::Seek;
use wire::MiB;
use wire::machine::{EndReason, MachineCall, MachineReply, MemoryBacking, MemoryStatus, NumaNode, Pages};

/// Writes a word, waits for the power button, and prints the word.
fn keeper() -> Vec<u8> {
    let asm = Asm::new().write32(DATA, 0x1234_5678).print("ready").until(1, |asm| asm.in32(0x610));
    asm.read32(DATA).print_eax().power_off().elf()
}

fn plan(memory_backing: MemoryBacking) -> Plan {
    let mut plan = Plan::new(keeper());
    plan.memory_backing = memory_backing;
    plan
}

fn ends_well(mut guest: Guest) {
    guest.done(&MachineCall::PowerButton);
    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::PowerButton, "{}", guest.log());
    assert!(guest.console().ends_with(&printed(0x1234_5678)), "{}", guest.console());
}

#[test]
fn a_machine_goes_on_in_memory_of_another_kind() {
    if !kvm() {
        return;
    }
    let shared = MemoryBacking { shared: true, ..MemoryBacking::default() };
    let taken = MemoryBacking { prefault: true, ..MemoryBacking::default() };
    let mut before: Option<[File; 2]> = None;
    for backing in [MemoryBacking::default(), shared, taken, MemoryBacking { prefault: true, ..shared }] {
        let mut plan = plan(backing);
        let restored = before.is_some();
        plan.restore = before.take();
        let mut guest = Guest::start(plan);
        if !restored {
            guest.wait_console("ready");
        }
        let (files, taken) = guest.snapshot();
        // What the guest never touched is not in the file, and is not taken from the host by looking for it.
        assert!(taken.memory_bytes < 4 << 20, "{backing:?}: {taken:?}");
        before = Some([files[0].try_clone().unwrap(), files[1].try_clone().unwrap()]);
        ends_well(guest);
    }
}

#[test]
fn a_guest_of_a_tebibyte_starts_and_takes_next_to_nothing() {
    if !kvm() {
        return;
    }
    for shared in [false, true] {
        let mut plan = plan(MemoryBacking { shared, ..MemoryBacking::default() });
        plan.memory = MiB(1 << 20);
        let mut guest = Guest::start(plan);
        guest.wait_console("ready");
        let status = std::fs::read_to_string(format!("/proc/{}/status", guest.machine_pid())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 64 << 10, "{kib} KiB resident");
        ends_well(guest);
    }
}

#[test]
fn huge_pages_that_the_host_lacks_are_named_with_the_remedy() {
    if !kvm() {
        return;
    }
    let mut plan = plan(MemoryBacking { pages: Pages::Huge1G, ..MemoryBacking::default() });
    plan.memory = MiB(1 << 20);
    let mut guest = Guest::start(plan);
    let end = guest.wait_end().1.unwrap();
    assert_eq!(end.reason, EndReason::NotStarted);
    let words = ["nr_hugepages", "has no pages of 1024 MiB"];
    assert!(words.iter().any(|words| end.detail.contains(words)), "{}", end.detail);
}

/// The memory device's registers.
const DEVICE: u32 = 0xc000_0000 + 31 * 0x4000;
/// Its blocks.
const BLOCK: u32 = 2 << 20;

/// Asks the device, in its request number `number`, for something about blocks from the first on; its answer goes to `eax`: type and,
/// in the upper half, state.
fn request(asm: Asm, number: u16, kind: u32, blocks: u32) -> Asm {
    const ASKED: u32 = DATA + 0x1_0000;
    const ANSWER: u32 = DATA + 0x1_0100;
    // The area starts at 8 GiB.
    let asm =
        asm.write32(ASKED, kind).write32(ASKED + 8, 0).write32(ASKED + 12, 2).write32(ASKED + 16, blocks);
    let asm = descriptor(descriptor(asm, 0, ASKED, 24, 1), 1, ANSWER, 10, 2);
    let asm = asm.write16(DATA + 0x1002, number + 1).write16(DEVICE + 0x2000, 0);
    // Until the used index has the bit that this request sets.
    let used = u32::from((number + 1) & !number);
    let asm = asm.until(used << 16, |asm| asm.read32(DATA + 0x2000));
    asm.raw(&[0x0f, 0xb7, 0x05])
        .raw(&ANSWER.to_le_bytes()) // movzx eax, word [ANSWER]
        .raw(&[0x66, 0xc1, 0xc0, 0x08])
        .raw(&[0x02, 0x05])
        .raw(&(ANSWER + 8).to_le_bytes()) // rol ax, 8; add al, [state]
}

fn memory(guest: &Guest) -> MemoryStatus {
    match guest.call(&MachineCall::MemoryStatus) {
        MachineReply::Memory(memory) => memory,
        other => panic!("no memory: {other:?}"),
    }
}

#[test]
fn a_guest_plugs_memory_in_and_out_as_it_is_asked_to() {
    if !kvm() {
        return;
    }
    // Waits until four blocks are wanted, plugs them in; after the button has been pressed, tells how they are and plugs them out.
    let asm = start_device(Asm::new(), 31, DEVICE).print("ready ");
    let asm = asm.until(4 * BLOCK, |asm| asm.read32(DEVICE + 0x230));
    let asm = request(asm, 0, 0, 5).print_eax();
    let asm = request(asm, 1, 0, 4).print_eax().read32(DEVICE + 0x228).print_eax();
    let asm = asm.print(" in ").until(1, |asm| asm.in32(0x610));
    let asm = request(asm, 2, 3, 4).print_eax();
    let asm = request(asm, 3, 1, 4).print_eax().read32(DEVICE + 0x228).print_eax().print(" out").stop();
    let start = |restore| {
        let mut plan = Plan::new(asm.clone().elf());
        plan.max_memory = Some(MiB(64 + 256));
        plan.restore = restore;
        Guest::start(plan)
    };
    let mut guest = start(None);
    guest.wait_console("ready");
    for wrong in [63, 65, 64 + 257, 1 << 40] {
        let refused = guest.call(&MachineCall::ResizeMemory { target: MiB(wrong) });
        let MachineReply::Refused(refused) = refused else { panic!("{refused:?}") };
        assert!(refused.to_string().contains("it has 64 to 320 MiB, in steps of 2 MiB"), "{refused}");
    }
    guest.done(&MachineCall::ResizeMemory { target: MiB(64 + 8) });
    guest.wait_console(" in ");
    let (least, most) = (64 << 20, 320 << 20);
    let with_eight = MemoryStatus { target: 72 << 20, actual: 72 << 20, least, most };
    assert_eq!(memory(&guest), with_eight);
    let words = [0x100, 0, 4 * BLOCK].map(printed).concat();
    assert_eq!(guest.console(), format!("ready {words} in "));
    // In a snapshot, and on from it.
    let ([state, file], taken) = guest.snapshot();
    assert!(taken.memory_bytes < 4 << 20 && file.metadata().unwrap().len() == 320 << 20, "{taken:?}");
    guest.done(&MachineCall::Stop);
    let mut smaller = Plan::new(Vec::new());
    smaller.restore = Some([state.try_clone().unwrap(), file.try_clone().unwrap()]);
    let end = Guest::start(smaller).wait_end().1.unwrap();
    assert!(end.detail.contains("at most 320 MiB of memory, and this one no more"), "{}", end.detail);
    (&state).rewind().unwrap();
    let mut guest = start(Some([state, file]));
    assert_eq!(memory(&guest), with_eight);
    guest.done(&MachineCall::PowerButton);
    guest.done(&MachineCall::ResizeMemory { target: MiB(64) });
    guest.wait_console(" out");
    let words = [0, 0, 0].map(printed).concat();
    assert_eq!(guest.console(), format!("{words} out"));
    assert_eq!(memory(&guest), MemoryStatus { target: least, actual: least, least, most });
    guest.done(&MachineCall::Stop);
}

#[test]
fn a_machine_without_more_memory_says_so() {
    if !kvm() {
        return;
    }
    let guest = Guest::start(plan(MemoryBacking::default()));
    for call in [MachineCall::MemoryStatus, MachineCall::ResizeMemory { target: MiB(128) }] {
        let MachineReply::Refused(refused) = guest.call(&call) else { panic!("{call:?}") };
        assert!(refused.to_string().contains("max_memory"), "{refused}");
    }
    guest.done(&MachineCall::Stop);
}

#[test]
fn nodes_lie_where_they_are_to_or_are_refused() {
    if !kvm() {
        return;
    }
    let node = |memory, vcpus: &[u32], host_node| NumaNode {
        memory: MiB(memory),
        vcpus: vcpus.to_vec(),
        host_node,
        distances: Vec::new(),
    };
    let known = vmm::machine::memory::nodes::of_host();
    let mut plan = plan(MemoryBacking::default());
    plan.numa = vec![node(40, &[0], known.first().copied()), node(24, &[], None)];
    let mut guest = Guest::start(plan);
    guest.wait_console("ready");
    ends_well(guest);
    for (numa, words) in [
        (vec![node(64, &[0], Some(63))], "these with memory"),
        (vec![node(64, &[0, 1], None)], "no vCPU 1 for node 0"),
        (vec![node(65, &[0], None)], "together they have 65 MiB"),
    ] {
        let mut plan = Plan::new(keeper());
        plan.numa = numa;
        let end = Guest::start(plan).wait_end().1.unwrap();
        assert_eq!(end.reason, EndReason::NotStarted);
        assert!(end.detail.contains(words), "{}", end.detail);
    }
}
