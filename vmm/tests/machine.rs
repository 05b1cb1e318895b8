//! Machines with tiny guests, through `vmm serve` as `hostd` starts it: jailed, filtered, with descriptors only.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, printed};
use common::driver::{BAR, DISK_SLOT, end_of, start_disk};
use common::{Guest, Plan, file, kvm};
use std::os::fd::AsFd;
use std::time::Duration;
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{
    BlockSize, CpuModel, EndReason, Limits, MachineCall, MachineReply, MachineState, NicLimits, Topology,
};

#[test]
fn each_end_is_told_from_the_others() {
    if !kvm() {
        return;
    }
    let hello = || Asm::new().print("hi\n");
    let cases = [
        (hello().power_off(), EndReason::PowerOff),
        (hello().out8(0x64, 0xfe).stop(), EndReason::Reset),
        (hello().out8(0xcf9, 6).stop(), EndReason::Reset),
        (hello().jump(0xf_fff0), EndReason::Reset),
        (hello().raw(&[0x0f, 0x0b]), EndReason::TripleFault),
        // A kernel that panics with panic=-1, and one whose reset is a triple fault.
        (hello().out8(0x505, 1).out8(0x64, 0xfe).stop(), EndReason::Panicked),
        (hello().out8(0x505, 2).raw(&[0x0f, 0x0b]), EndReason::Panicked),
        // What is no panic event.
        (hello().out8(0x505, 0).out8(0x505, 0xfc).out8(0x64, 0xfe).stop(), EndReason::Reset),
    ];
    for (asm, reason) in cases {
        assert_eq!(end_of(asm), (reason, "hi\n".to_owned()));
    }
}

#[test]
fn nobody_s_ports_and_memory_read_as_all_ones() {
    if !kvm() {
        return;
    }
    let asm = Asm::new().in32(0x70).print_eax().read32(0xd000_0000).print_eax().write32(0xd000_0000, 1);
    // Sleep control with another type than S5, and without the enable bit, does nothing.
    let asm = asm.out8(0x600, (1 << 2) | 0x20).out8(0x600, 5 << 2).in32(0x600).print_eax().power_off();
    let ones = printed(u32::MAX);
    assert_eq!(end_of(asm), (EndReason::PowerOff, ones.repeat(3)));
}

#[test]
fn pci_is_enumerated_both_ways_and_bars_move() {
    if !kvm() {
        return;
    }
    let ecam = |slot: u32, register: u32| 0xe000_0000 + (slot << 15) + register;
    let asm = Asm::new()
        .pci_read(0, 0)
        .print_eax()
        .pci_read(DISK_SLOT, 0)
        .print_eax()
        .read32(ecam(DISK_SLOT.into(), 0))
        .print_eax()
        .pci_read(DISK_SLOT + 1, 0)
        .print_eax()
        // Sizing, then another place, and the number of queues read there.
        .pci_write(DISK_SLOT, 0x10, u32::MAX)
        .pci_read(DISK_SLOT, 0x10)
        .print_eax()
        .pci_write(DISK_SLOT, 0x10, 0xd400_0000)
        .pci_write(DISK_SLOT, 0x04, 2)
        .raw(&[0x31, 0xc0, 0x66, 0xa1])
        .raw(&0xd400_0012u32.to_le_bytes())
        .print_eax()
        .power_off();
    let mut plan = Plan::new(asm.elf());
    plan.disks.push(("root".into(), file(&[0; 4096]), false));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff);
    let disk = 0x1042_1af4;
    let words = [0x0d57_8086, disk, disk, u32::MAX, 0xffff_c000, 1];
    assert_eq!(guest.console(), words.map(printed).concat());
}

#[test]
fn pause_stops_the_guest_and_resume_lets_it_go_on() {
    if !kvm() {
        return;
    }
    let asm = Asm::new();
    let start = asm.here();
    let guest = Guest::start(Plan::new(asm.print(".").jump(start).elf()));
    let grown = |than: usize| {
        let until = std::time::Instant::now() + common::longest();
        while guest.console().len() <= than {
            assert!(std::time::Instant::now() < until, "the guest does not run");
        }
    };
    grown(0);
    for _ in 0..3 {
        guest.done(&MachineCall::Pause);
        guest.done(&MachineCall::Pause);
        assert_eq!(guest.status().state, MachineState::Paused);
        let length = guest.console().len();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.console().len(), length, "the guest ran while paused");
        guest.done(&MachineCall::Resume);
        grown(length);
    }
    guest.done(&MachineCall::Stop);
    let mut guest = guest;
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
fn the_power_button_reaches_the_guest_and_the_status() {
    if !kvm() {
        return;
    }
    let asm = Asm::new().print("ready").until(1, |asm| asm.in32(0x610)).print("pressed").power_off();
    let mut guest = Guest::start(Plan::new(asm.elf()));
    guest.wait_console("ready");
    let before = guest.status();
    guest.done(&MachineCall::PowerButton);
    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::PowerButton);
    assert_eq!((before.power_button_presses, guest.console().as_str()), (0, "readypressed"));
}

#[test]
fn a_panic_is_told_while_the_machine_stands() {
    if !kvm() {
        return;
    }
    let asm = Asm::new().print("ready").until(1, |asm| asm.in32(0x610)).in8(0x505).print_eax();
    let mut guest = Guest::start(Plan::new(asm.out8(0x505, 1).print("panicked").stop().elf()));
    guest.wait_console("ready");
    assert!(!guest.status().panicked);
    guest.done(&MachineCall::PowerButton);
    guest.wait_status(|status| status.panicked);
    guest.wait_console("panicked");
    // It says which events it takes.
    assert!(guest.console().contains(&printed(3)), "{}", guest.console());
    guest.done(&MachineCall::Stop);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
fn every_machine_has_a_generation_id_of_its_own() {
    if !kvm() {
        return;
    }
    let ids = [(); 2].map(|()| {
        let words = [0u32, 4, 8, 12].map(|offset| 0xf_e000 + offset);
        let asm = words.iter().fold(Asm::new(), |asm, at| asm.read32(*at).print_eax());
        end_of(asm.power_off())
    });
    assert_eq!(ids[0].0, EndReason::PowerOff);
    assert_ne!(ids[0].1, ids[1].1);
    assert_ne!(ids[0].1, printed(0).repeat(4));
}

#[test]
fn a_disk_comes_and_goes_while_the_guest_runs() {
    if !kvm() {
        return;
    }
    let asm = Asm::new()
        .print("ready")
        .until(2, |asm| asm.in32(0x610))
        .in32(0x614)
        .print_eax()
        .pci_read(DISK_SLOT, 0)
        .print_eax()
        .print("plugged")
        .until(2, |asm| asm.in32(0x610))
        .in32(0x618)
        .print_eax()
        .out32(0x61c, 1 << DISK_SLOT)
        .print("ejected");
    // Wait until it is really gone.
    let asm = asm.until(1, |asm| asm.pci_read(DISK_SLOT, 0)).print("gone").stop();
    let mut guest = Guest::start(Plan::new(asm.elf()));
    guest.wait_console("ready");
    let disk = file(&[0; 8192]);
    let plug = |key: &str| MachineCall::PlugDisk {
        key: key.into(),
        read_only: false,
        serial: "s".into(),
        block_size: BlockSize::default(),
        limits: Limits::default(),
    };
    let refused = guest.call(&plug("volume"));
    assert!(
        matches!(&refused, MachineReply::Refused(why) if why.message.contains("descriptor")),
        "{refused:?}"
    );
    for _ in 0..2 {
        assert_eq!(guest.call_with(&plug("volume"), Some(disk.as_fd())), MachineReply::Done);
    }
    guest.wait_console("plugged");
    let status = guest.status();
    assert_eq!((status.disks.len(), status.disks[0].bytes, status.disks[0].unplugging), (1, 8192, false));
    guest.done(&MachineCall::UnplugDisk { key: "other".into() });
    guest.done(&MachineCall::UnplugDisk { key: "volume".into() });
    let status = guest.wait_status(|status| status.disks.is_empty());
    assert!(status.sequence > 0);
    guest.wait_console("gone");
    let bit = printed(1 << DISK_SLOT);
    let text = ["ready", &bit, &printed(0x1042_1af4), "plugged", &bit, "ejected", "gone"].concat();
    assert_eq!(guest.console(), text);
}

#[test]
fn network_interfaces_have_their_address_and_come_and_go() {
    if !kvm() {
        return;
    }
    const FIRST: u32 = 0xc000_0000 + 2 * 0x4000;
    // The MAC is the first thing in the device's configuration space.
    let mac = |asm: Asm, slot: u8, bar: u32| asm.pci_write(slot, 4, 2).read32(bar + 0x200).print_eax();
    let asm = mac(Asm::new(), 2, FIRST).print("ready").until(2, |asm| asm.in32(0x610));
    let asm = mac(asm, 3, FIRST + 0x4000).until(2, |asm| asm.in32(0x610)).out32(0x61c, 1 << 3);
    let (one, two) = (PortId::new(), PortId::new());
    let mut plan = Plan::new(asm.stop().elf());
    plan.nics.push((one, common::tap(None), Mac([2, 0, 0, 0, 0, 1])));
    let mut guest = Guest::start(plan);
    guest.wait_console("ready");
    assert_eq!(guest.status().nics.iter().map(|nic| nic.port).collect::<Vec<_>>(), [one]);
    let tap = common::tap(None);
    let plug = MachineCall::PlugNic {
        port: two,
        mac: Mac([2, 0, 0, 7, 0, 1]),
        mtu: 1500,
        limits: NicLimits::default(),
    };
    assert_eq!(guest.call_with(&plug, Some(tap.as_fd())), MachineReply::Done);
    assert_eq!(guest.status().nics.len(), 2);
    let no_tap = MachineCall::PlugNic {
        port: PortId::new(),
        mac: Mac([2, 0, 0, 7, 0, 1]),
        mtu: 1500,
        limits: NicLimits::default(),
    };
    let refused = guest.call_with(&no_tap, Some(file(b"").as_fd()));
    assert!(
        matches!(&refused, MachineReply::Refused(why) if why.message.contains("no usable tap")),
        "{refused:?}"
    );
    guest.wait_console(&[printed(2).as_str(), "ready", &printed(0x0700_0002)].concat());
    guest.done(&MachineCall::UnplugNic { port: two });
    guest.wait_status(|status| status.nics.len() == 1);
}

#[test]
fn hostile_register_writes_do_no_harm() {
    if !kvm() {
        return;
    }
    let mut asm = Asm::new().pci_write(DISK_SLOT, 0x04, 6);
    for (offset, value) in [(0x16u32, 0xffff_u32), (0x1c, 1), (0x18, 0xffff), (0x1a, 0xfffe), (0x10, 0xfffe)]
    {
        asm = asm.write32(BAR + offset, value).write16(BAR + offset, 0xffff).write8(BAR + offset, 0xff);
    }
    for offset in [0x00u32, 0x3c, 0x100, 0x1fc, 0xffc, 0x17fc, 0x1ffc, 0x2ffc, 0x3ffc] {
        asm = asm.write32(BAR + offset, u32::MAX).read32(BAR + offset);
    }
    // A queue outside of memory, then DRIVER_OK: the device asks for a reset (0x40) instead of working.
    let asm = start_disk(
        asm.write8(BAR + 0x14, 0)
            .until(0xff, |asm| asm.read8(BAR + 0x14).raw(&[0x3c, 0x00, 0x0f, 0x94, 0xc0])),
    );
    let asm = asm
        .write8(BAR + 0x14, 0)
        .until(0xff, |asm| asm.read8(BAR + 0x14).raw(&[0x3c, 0x00, 0x0f, 0x94, 0xc0]));
    let asm = asm
        .write8(BAR + 0x14, 3)
        .write32(BAR + 0x08, 1)
        .write32(BAR + 0x0c, 1)
        .write8(BAR + 0x14, 11)
        .write16(BAR + 0x16, 0)
        .write32(BAR + 0x20, 0xfff0_0000)
        .write16(BAR + 0x1c, 1)
        .write8(BAR + 0x14, 15)
        .until(0x40, |asm| asm.raw(&[0x31, 0xc0]).read8(BAR + 0x14))
        .print("refused")
        .power_off();
    let mut plan = Plan::new(asm.elf());
    plan.disks.push(("root".into(), file(&[0; 4096]), false));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    assert_eq!(guest.console(), "refused");
    assert!(guest.log().contains("not inside guest memory"), "{}", guest.log());
}

#[test]
fn a_guest_by_hand_hears_the_keyboard() {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    if !kvm() {
        return;
    }
    // Echoes what comes in.
    let asm = Asm::new().print("hello:");
    let start = asm.here();
    let asm = asm.until(1, |asm| asm.in8(0x3fd)).in8(0x3f8).put_al().jump(start);
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    std::fs::write(&kernel, asm.elf()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["run", "--mem", "64", "--kernel"])
        .arg(&kernel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // More than the port's FIFO holds; Ctrl-A twice is one for the guest.
    let text = "0123456789".repeat(20);
    keys.write_all(text.as_bytes()).unwrap();
    keys.write_all(b"\x01\x01.").unwrap();
    let mut seen = vec![0u8; "hello:".len() + text.len() + 2];
    screen.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), format!("hello:{text}\x01."));
    keys.write_all(b"\x01x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(i32::from(EndReason::Stopped.exit_code())));
}

#[test]
fn a_waiting_client_holds_nobody_up_and_hears_of_changes() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::start(Plan::new(Asm::new().print("up").stop().elf()));
    guest.wait_console("up");
    let sequence = guest.status().sequence;
    let waiter = guest.connect();
    let wait = MachineCall::Status { after: Some(sequence), wait_ms: 60_000 };
    vmm::control::send(waiter.as_fd(), &serde_json::to_vec(&wait).unwrap(), None).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(guest.status().sequence, sequence);
    guest.done(&MachineCall::PowerButton);
    let MachineReply::Status(status) = vmm::control::receive_reply(&waiter).unwrap() else {
        panic!("no status")
    };
    assert!(status.sequence > sequence && status.power_button_presses == 1);
    // Nothing changes any more: the wait ends by itself.
    let wait = MachineCall::Status { after: Some(status.sequence), wait_ms: 20 };
    vmm::control::send(waiter.as_fd(), &serde_json::to_vec(&wait).unwrap(), None).unwrap();
    assert_eq!(vmm::control::receive_reply(&waiter).unwrap(), MachineReply::Status(status));
    assert!(started.elapsed() < Duration::from_secs(30));
    // Who waits when the machine ends hears that too.
    let wait = MachineCall::Status { after: Some(u64::MAX), wait_ms: 60_000 };
    vmm::control::send(waiter.as_fd(), &serde_json::to_vec(&wait).unwrap(), None).unwrap();
    guest.done(&MachineCall::Pause);
    guest.done(&MachineCall::Stop);
    assert!(vmm::control::receive_reply(&waiter).is_ok());
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
fn the_machine_s_process_owns_nothing() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::start(Plan::new(Asm::new().print("up").stop().elf()));
    guest.wait_console("up");
    // Answered by the driver thread once it is confined.
    guest.status();
    let pid = guest.machine_pid();
    for process in [pid, guest.child.id().try_into().unwrap()] {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let uid = guest.uid.to_string();
        assert_eq!(field("Uid:"), [uid.as_str(); 4]);
        assert_eq!(
            (field("CapEff:"), field("NoNewPrivs:")),
            (vec!["0000000000000000".into()], vec!["1".into()])
        );
    }
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    let entries = std::fs::read_dir(format!("/proc/{pid}/root/")).map(Iterator::count);
    assert!(matches!(entries, Ok(0)), "{entries:?}; {}", guest.log());
    // Killing what hostd knows kills the machine.
    guest.child.kill().unwrap();
    let until = std::time::Instant::now() + common::longest();
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !gone() {
        assert!(std::time::Instant::now() < until, "the machine outlives its keeper");
    }
}

#[test]
fn a_machine_without_all_its_walls_does_not_start() {
    if !kvm() {
        return;
    }
    let refused = |change: fn(&mut Plan), words: &str| {
        let mut plan = Plan::new(Asm::new().print("up").power_off().elf());
        change(&mut plan);
        let mut guest = Guest::start(plan);
        let (status, end) = guest.wait_end();
        let end = end.unwrap();
        assert_eq!((status.code(), end.reason), (Some(1), EndReason::NotStarted), "{end:?}");
        assert!(end.detail.contains(words) && end.detail.contains("--no-jail"), "{end:?}");
        assert_eq!(guest.console(), "");
    };
    refused(|plan| plan.namespaces = false, "mount namespace");
    refused(|plan| plan.jailed = false, "names no jail");
    // Only for who asks for it in as many words.
    let mut plan = Plan::new(Asm::new().print("up").power_off().elf());
    (plan.namespaces, plan.no_jail) = (false, true);
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    assert!(guest.console() == "up" && guest.log().contains("--no-jail"), "{}", guest.log());
}

#[test]
fn a_machine_that_is_killed_is_recorded_as_failed() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::start(Plan::new(Asm::new().print("up").stop().elf()));
    guest.wait_console("up");
    let pid = nix::unistd::Pid::from_raw(guest.machine_pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let (status, end) = guest.wait_end();
    let end = end.unwrap();
    assert_eq!((status.code(), end.reason), (Some(6), EndReason::Failed));
    assert!(end.detail.contains("killed from outside"), "{end:?}");
}

#[test]
fn a_wrong_start_says_why_and_records_it() {
    if !kvm() {
        return;
    }
    let broken = |change: fn(&mut Plan), words: &str| {
        let mut plan = Plan::new(Asm::new().stop().elf());
        change(&mut plan);
        let mut guest = Guest::start(plan);
        let (status, end) = guest.wait_end();
        let end = end.unwrap();
        assert_eq!((status.code(), end.reason), (Some(1), EndReason::NotStarted));
        assert!(end.detail.contains(words) && guest.log().contains(words), "{end:?}");
    };
    broken(|plan| plan.kernel = b"#!/bin/sh".to_vec(), "neither a bzImage nor");
    broken(|plan| plan.vcpus = 0, "1 to 64");
    broken(|plan| plan.memory = MiB(1), "32 to 1048576 MiB");
    broken(|plan| plan.command_line = "x".repeat(4000), "at most 2047");
    broken(|plan| plan.initrd = Some(vec![0; 100 << 20]), "initrd does not fit");
    broken(|plan| plan.disks = vec![("".into(), file(b"x"), false)], "1 to 128 bytes");
}

/// Wakes all other processors, which count themselves and add up their initial APIC ids; prints both.
fn wake_all(others: u32) -> Asm {
    // Real mode at 0x8000: lock inc dword [0x7000]; cpuid leaf 1; shr ebx, 24; lock add [0x7004], ebx; cli; hlt; jmp -3.
    let trampoline: [u8; 41] = [
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0x66, 0xb8, 1, 0, 0, 0, // mov eax, 1
        0x0f, 0xa2, // cpuid
        0x66, 0xc1, 0xeb, 24, // shr ebx, 24
        0xf0, 0x66, 0x01, 0x1e, 0x04, 0x70, // lock add [0x7004], ebx
        0xf0, 0x66, 0xff, 0x06, 0x00, 0x70, // lock inc dword [0x7000]
        0xfa, 0xf4, 0xeb, 0xfd, // cli; hlt; jmp -3
        0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
    ];
    let asm = Asm::new().write32(0x7000, 0).write32(0x7004, 0);
    let asm = (0x8000u32..).zip(trampoline).fold(asm, |asm, (at, byte)| asm.write8(at, byte));
    // The local APIC on; INIT, then SIPI with vector 8, to all but this one.
    let asm =
        asm.write32(0xfee0_00f0, 0x1ff).write32(0xfee0_0300, 0x000c_4500).write32(0xfee0_0300, 0x000c_4608);
    let wait = asm.here();
    // mov eax, [0x7000]; cmp eax, others; jb wait
    let asm = asm.read32(0x7000).raw(&[0x3d]).raw(&others.to_le_bytes());
    let next = asm.here() + 6;
    let asm = asm.raw(&[0x0f, 0x82]).raw(&wait.wrapping_sub(next).to_le_bytes());
    asm.print_eax().read32(0x7004).print_eax().power_off()
}

#[test]
fn up_to_64_processors_start_with_the_ids_of_their_topology() {
    if !kvm() {
        return;
    }
    let two = Topology { sockets: 2, cores: 3, threads: 2 };
    // With two sockets of three cores, ids 6, 7, 14 and 15 are left out.
    for (vcpus, topology, sum) in [(64, None, 64 * 63 / 2), (12, Some(two), 15 + 63)] {
        let plan = Plan { vcpus, topology, ..Plan::new(wake_all(vcpus - 1).elf()) };
        let mut guest = Guest::start(plan);
        assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
        assert_eq!(guest.console(), printed(vcpus - 1) + &printed(sum));
    }
    let wrong = Plan { vcpus: 4, topology: Some(two), ..Plan::new(Asm::new().stop().elf()) };
    let end = Guest::start(wrong).wait_end().1.unwrap();
    assert!(end.detail.contains("do not make 4 vCPUs"), "{end:?}");
}

#[test]
fn a_cpu_model_hides_what_later_ones_have() {
    if !kvm() {
        return;
    }
    // mov eax, 7; xor ecx, ecx; cpuid; mov eax, ebx
    let asm = Asm::new().mov_eax(7).raw(&[0x31, 0xc9, 0x0f, 0xa2, 0x89, 0xd8]).print_eax().power_off();
    let read = |cpu_model| {
        let mut guest = Guest::start(Plan { cpu_model, ..Plan::new(asm.clone().elf()) });
        let end = guest.wait_end().1.unwrap();
        match end.reason {
            EndReason::PowerOff => Some(guest.console()),
            // A host older than the model, in words.
            EndReason::NotStarted => {
                assert!(end.detail.contains("it lacks CPUID leaf"), "{end:?}");
                None
            }
            other => panic!("{other:?}"),
        }
    };
    let value = |text: String| {
        let nibbles = text.bytes().rev().map(|byte| u32::from(byte - b'@'));
        nibbles.fold(0, |value, nibble| (value << 4) | nibble)
    };
    let avx2 = |text: String| (value(text) >> 5) & 1;
    let host = avx2(read(CpuModel::Host).expect("every host is like itself"));
    // Where KVM emulates, not even the oldest model is there; `read` has seen that this is said.
    assert_eq!(read(CpuModel::V2).map_or(0, avx2), 0);
    assert!(read(CpuModel::V3).map(avx2).is_none_or(|has| has == 1 && host == 1));
}
