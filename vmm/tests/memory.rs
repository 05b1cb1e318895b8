//! Kinds of guest memory, with tiny guests.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::{Guest, Plan, kvm};
use std::fs::File;
use wire::MiB;
use wire::machine::{EndReason, MachineCall, MemoryBacking, Pages};

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
