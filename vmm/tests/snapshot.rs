//! Snapshots of machines with tiny guests, and machines that go on from them.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::driver::{BAR, descriptor, start_disk};
use common::{Guest, Plan, file, kvm};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use wire::MiB;
use wire::machine::{
    BalloonConfig, EndReason, MachineCall, MachineReply, MachineState, TransferKind, TransferPhase,
};

/// Where the generation id is.
const GENERATION: u32 = 0xf_e000;

/// Waits for an event by ACPI.
fn event(asm: Asm, bit: u32) -> Asm {
    asm.until(bit, |asm| asm.in32(0x610))
}

/// Counts presses of the power button in memory and in a register, and prints both.
fn counter() -> Asm {
    // xor esi, esi
    let asm = Asm::new().write32(DATA, 0).raw(&[0x31, 0xf6]).print("ready");
    let start = asm.here();
    // inc dword [DATA]; inc esi
    let asm = event(asm, 1).raw(&[0xff, 0x05]).raw(&DATA.to_le_bytes()).raw(&[0x46]);
    // mov eax, esi
    asm.read32(DATA).print_eax().raw(&[0x89, 0xf0]).print_eax().jump(start)
}

/// What it prints at the `count`th press.
fn counted(count: u32) -> String {
    printed(count).repeat(2)
}

fn press(guest: &mut Guest, text: &str) {
    guest.done(&MachineCall::PowerButton);
    guest.wait_console(text);
}

fn copies(files: &[File; 2]) -> [File; 2] {
    // A new description each: the state is read from its start.
    let open = |file: &File| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        File::open(path).unwrap()
    };
    [open(&files[0]), open(&files[1])]
}

fn restored(plan: Plan, files: &[File; 2]) -> Guest {
    Guest::start(Plan { restore: Some(copies(files)), ..plan })
}

fn machine(vcpus: u32) -> Plan {
    Plan { vcpus, ..Plan::new(counter().elf()) }
}

#[test]
fn a_guest_goes_on_from_the_same_count_in_another_process() {
    if !kvm() {
        return;
    }
    for vcpus in [1, 3] {
        let mut first = Guest::start(machine(vcpus));
        first.wait_console("ready");
        for count in 1..=3 {
            press(&mut first, &counted(count));
        }
        let (files, taken) = first.snapshot();
        assert!(taken.memory_bytes < 1 << 20 && taken.stood_us > 0, "{taken:?}");
        assert_eq!(first.status().state, MachineState::Running);
        // It goes on, and so do two others, each for itself.
        press(&mut first, &counted(4));
        press(&mut first, &counted(5));
        let mut clones = [restored(machine(vcpus), &files), restored(machine(vcpus), &files)];
        for clone in &mut clones {
            press(clone, &counted(4));
            assert_eq!(clone.console(), counted(4));
        }
        // A snapshot of a clone, taken while it is paused, is as good.
        let [second, _] = &mut clones;
        second.done(&MachineCall::Pause);
        let (again, _) = second.snapshot();
        assert_eq!(second.status().state, MachineState::Paused);
        let mut third = restored(machine(vcpus), &again);
        press(&mut third, &counted(5));
    }
}

#[test]
fn a_restored_machine_stands_still_when_asked_and_may_lack_the_balloon() {
    if !kvm() {
        return;
    }
    let mut first = Guest::start(machine(1));
    first.wait_console("ready");
    press(&mut first, &counted(1));
    let (files, _) = first.snapshot();
    let balloon = Some(BalloonConfig { target: MiB(0), deflate_on_oom: true });
    let mut second = restored(Plan { paused: true, balloon, ..machine(1) }, &files);
    assert_eq!(second.status().state, MachineState::Paused);
    assert!(matches!(second.call(&MachineCall::BalloonStatus), MachineReply::Refused(_)));
    second.done(&MachineCall::PowerButton);
    assert_eq!(second.status().state, MachineState::Paused);
    assert_eq!(second.console(), "");
    second.done(&MachineCall::Resume);
    second.wait_console(&counted(2));
    assert_eq!(second.console(), counted(2));
}

#[test]
fn clones_get_a_generation_id_of_their_own_and_are_told() {
    if !kvm() {
        return;
    }
    let id = |asm: Asm| (0..4).fold(asm, |asm, word| asm.read32(GENERATION + 4 * word).print_eax());
    let asm = id(event(id(Asm::new()).print("ready"), 4)).print("told").stop();
    let plan = || Plan::new(asm.clone().elf());
    let mut first = Guest::start(plan());
    first.wait_console("ready");
    let (files, _) = first.snapshot();
    let mut ids = vec![first.console().trim_end_matches("ready").to_owned()];
    for _ in 0..2 {
        let mut clone = restored(plan(), &files);
        clone.wait_console("told");
        ids.push(clone.console().trim_end_matches("told").to_owned());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert_eq!(first.console().len(), 32 + "ready".len(), "the first machine keeps its id");
}

#[test]
fn the_clock_has_gone_on() {
    if !kvm() {
        return;
    }
    // kvm-clock on at DATA; then at each press: its time, in units of 2^20 ns.
    let asm = Asm::new()
        .raw(&[0xb9, 0x01, 0x4d, 0x56, 0x4b]) // mov ecx, MSR_KVM_SYSTEM_TIME_NEW
        .raw(&[0x31, 0xd2]) // xor edx, edx
        .mov_eax(DATA | 1)
        .raw(&[0x0f, 0x30]) // wrmsr
        .print("ready");
    let start = asm.here();
    let asm = event(asm, 1)
        // mov eax, [DATA + 16]; mov edx, [DATA + 20]; shrd eax, edx, 20
        .read32(DATA + 16)
        .raw(&[0x8b, 0x15])
        .raw(&(DATA + 20).to_le_bytes())
        .raw(&[0x0f, 0xac, 0xd0, 20])
        .print_eax()
        .print("\n")
        .jump(start);
    let read = |text: &str| {
        let nibbles = text.bytes().rev().map(|byte| u64::from(byte - b'@'));
        nibbles.fold(0, |value, nibble| (value << 4) | nibble) << 20
    };
    let plan = || Plan::new(asm.clone().elf());
    let mut first = Guest::start(plan());
    first.wait_console("ready");
    press(&mut first, "\n");
    let (files, _) = first.snapshot();
    let (before, at) = (read(first.console()["ready".len()..].trim()), SystemTime::now());
    drop(first);
    std::thread::sleep(Duration::from_millis(700));
    let mut clone = restored(plan(), &files);
    press(&mut clone, "\n");
    let (after, gone) = (read(clone.console().trim()), at.elapsed().unwrap());
    let grown = Duration::from_nanos(after - before);
    assert!(
        grown >= Duration::from_millis(690) && grown < gone + Duration::from_secs(5),
        "{grown:?} in {gone:?}"
    );
}

#[test]
fn a_disk_in_use_goes_on_where_it_was() {
    if !kvm() {
        return;
    }
    let asm = start_disk(Asm::new());
    let asm = descriptor(asm, 0, DATA + 0x3000, 16, 1);
    let asm = descriptor(asm, 1, DATA + 0x4000, 512, 3);
    let asm = descriptor(asm, 2, DATA + 0x4200, 1, 2);
    // The `round`th request: reads that sector and prints its first byte.
    let read = |asm: Asm, round: u32| {
        asm.write32(DATA + 0x3008, round)
            .write32(DATA + 0x1000, round << 16)
            .write16(BAR + 0x2000, 0)
            .until(round << 16, |asm| asm.read32(DATA + 0x2000))
            .read8(DATA + 0x4000)
            .put_al()
    };
    // Rounds whose bits are not in the rounds before them, so that waiting for one is waiting for it.
    let asm = event(read(asm, 1), 1);
    let asm = event(read(asm, 2), 1);
    let asm = asm.write32(BAR + 0x08, 0).read32(BAR + 0x0c).print_eax().power_off();
    let disk = || {
        let sector = |byte: u8| [byte; 512];
        let disk = file(&[sector(b'-'), sector(b'a'), sector(b'b'), sector(b'c')].concat());
        vec![("root".to_owned(), disk, false)]
    };
    let plan = || Plan { disks: disk(), ..Plan::new(asm.clone().elf()) };
    let mut first = Guest::start(plan());
    first.wait_console("a");
    let (files, _) = first.snapshot();
    drop(first);
    let mut clone = restored(plan(), &files);
    clone.wait_status(|status| status.disks.first().is_some_and(|disk| disk.driver_ok));
    press(&mut clone, "b");
    let (files, _) = clone.snapshot();
    let mut last = restored(plan(), &files);
    last.done(&MachineCall::PowerButton);
    assert_eq!(last.wait_end().1.unwrap().reason, EndReason::PowerButton);
    assert_eq!(last.console(), printed(0));

    // Another machine's devices are refused in words.
    let refused = |plan: Plan, words: &str| {
        let end = restored(plan, &files).wait_end().1.unwrap();
        assert!(end.reason == EndReason::NotStarted && end.detail.contains(words), "{end:?}");
    };
    refused(Plan { disks: Vec::new(), ..plan() }, "the disk 'root' is missing");
    let mut two = plan();
    two.disks.push(("more".into(), file(&[0; 512]), false));
    refused(two, "it has no disk 'more'");
    refused(Plan { disks: vec![("root".into(), file(&[0; 512]), false)], ..plan() }, "2048 bytes");
    refused(Plan { memory: MiB(96), ..plan() }, "64 MiB of memory, not 1 and 96");
    refused(Plan { vcpus: 2, ..plan() }, "1 vCPUs");
}

#[test]
fn damaged_snapshots_are_refused_in_words() {
    if !kvm() {
        return;
    }
    let mut first = Guest::start(machine(1));
    first.wait_console("ready");
    let ([state, memory], _) = first.snapshot();
    let mut bytes = Vec::new();
    copies(&[state.try_clone().unwrap(), memory.try_clone().unwrap()])[0].read_to_end(&mut bytes).unwrap();
    let refused = |state: &[u8], memory: &File, words: &str| {
        let mut guest = restored(machine(1), &[file(state), memory.try_clone().unwrap()]);
        let end = guest.wait_end().1.unwrap();
        assert!(end.reason == EndReason::NotStarted && end.detail.contains(words), "{end:?}");
    };
    refused(b"", &memory, "does not begin with FERROVMS");
    refused(&bytes[..bytes.len() - 1], &memory, "its body has");
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    refused(&changed, &memory, "checksum");
    let mut later = bytes.clone();
    later[8] = 200;
    refused(&later, &memory, "format version 200");
    let short = file(&[0; 4096]);
    refused(&bytes, &short, "memory file has 4096 bytes");
    // The calls say what they need, and the machine goes on.
    assert!(matches!(
        first.call(&MachineCall::Snapshot { track: false, changes: false }),
        MachineReply::Refused(_)
    ));
    press(&mut first, &counted(1));
}

#[test]
fn by_hand_too() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    // Echoes what is typed, with a number that it counts up.
    let asm = Asm::new().raw(&[0x31, 0xf6]).print("ready");
    let start = asm.here();
    let asm = asm.until(1, |asm| asm.in8(0x3fd)).in8(0x3f8).put_al().raw(&[0x46, 0x89, 0xf0]).print_eax();
    std::fs::write(&kernel, asm.jump(start).elf()).unwrap();
    let to = directory.path().join("taken");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command
            .arg("run")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let (kernel, to) = (kernel.to_str().unwrap(), to.to_str().unwrap());
    let mut first = run(&["--kernel", kernel, "--mem", "64", "--snapshot", to]);
    let mut keys = first.stdin.take().unwrap();
    let mut screen = first.stdout.take().unwrap();
    let expect = |screen: &mut dyn Read, text: &str| {
        let mut seen = vec![0; text.len()];
        screen.read_exact(&mut seen).unwrap();
        assert_eq!(String::from_utf8_lossy(&seen), text);
    };
    keys.write_all(b"a").unwrap();
    expect(&mut screen, &format!("readya{}", printed(1)));
    keys.write_all(b"\x01s").unwrap();
    let said = {
        let mut said = [0; 20];
        first.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    };
    assert!(said.starts_with("vmm: snapshot taken:"), "{said}");
    keys.write_all(b"\x01x").unwrap();
    first.wait().unwrap();
    let start = Instant::now();
    let mut second = run(&["--restore", to]);
    let mut keys = second.stdin.take().unwrap();
    keys.write_all(b"b\x01.").unwrap();
    expect(second.stdout.as_mut().unwrap(), &format!("b{}", printed(2)));
    println!("restored and answered in {:?}", start.elapsed());
    keys.write_all(b"\x01x").unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(i32::from(EndReason::Stopped.exit_code())));
    // A snapshot is not overwritten.
    let again = run(&["--kernel", kernel, "--snapshot", to]).wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("cannot make"), "{again:?}");
}

/// A copy of a memory file, holes and all.
fn copy(of: &File) -> File {
    let to = tempfile::tempfile().unwrap();
    to.set_len(of.metadata().unwrap().len()).unwrap();
    let (mut page, zeros) = ([0; 4096], [0; 4096]);
    for offset in (0..of.metadata().unwrap().len()).step_by(4096) {
        of.read_exact_at(&mut page, offset).unwrap();
        if page != zeros {
            to.write_all_at(&page, offset).unwrap();
        }
    }
    to
}

fn same(one: &File, two: &File) -> bool {
    let mut pages = [[0; 4096]; 2];
    (0..one.metadata().unwrap().len()).step_by(4096).all(|offset| {
        one.read_exact_at(&mut pages[0], offset).unwrap();
        two.read_exact_at(&mut pages[1], offset).unwrap();
        pages[0] == pages[1]
    })
}

#[test]
fn later_snapshots_hold_only_what_changed() {
    if !kvm() {
        return;
    }
    // Sixteen pages of its own, and one that it writes at each press.
    let asm = (0..16).fold(Asm::new(), |asm, page| asm.write32(DATA + 0x10_0000 + page * 4096, page + 1));
    let asm = asm.write32(DATA, 0).raw(&[0x31, 0xf6]).print("ready");
    let start = asm.here();
    let asm = event(asm, 1).raw(&[0xff, 0x05]).raw(&DATA.to_le_bytes()).raw(&[0x46]).read32(DATA).print_eax();
    let asm = asm.raw(&[0x89, 0xf0]).print_eax().jump(start);
    let plan = || Plan::new(asm.clone().elf());
    let mut first = Guest::start(plan());
    first.wait_console("ready");
    let (whole, all) = first.snapshot_into(tempfile::tempfile().unwrap(), true, false);
    press(&mut first, &counted(1));
    press(&mut first, &counted(2));
    first.done(&MachineCall::Pause);
    let (diff, few) = first.snapshot_into(copy(&whole[1]), true, true);
    assert!(few.memory_bytes > 0 && few.memory_bytes <= 4 * 4096, "{few:?} after {all:?}");
    // It is the same as a whole one taken at the same moment.
    let (now, _) = first.snapshot();
    assert!(same(&diff[1], &now[1]) && !same(&whole[1], &now[1]));
    // The whole one turned tracking off.
    let mut clone = Guest::start(Plan { restore: Some(copies(&diff)), track: true, ..plan() });
    press(&mut clone, &counted(3));
    let (again, few) = clone.snapshot_into(copy(&diff[1]), true, true);
    // The generation id, written before the guest goes on, is a change too.
    assert!(few.memory_bytes <= 5 * 4096, "{few:?}");
    let mut last = restored(plan(), &again);
    press(&mut last, &counted(4));
    first.done(&MachineCall::Resume);
    let refused = {
        let files = [tempfile::tempfile().unwrap(), copy(&now[1])];
        first.call_with_all(&MachineCall::Snapshot { track: true, changes: true }, &files)
    };
    assert!(
        matches!(&refused, MachineReply::Refused(why) if why.message.contains("not tracked")),
        "{refused:?}"
    );
    press(&mut first, &counted(3));
}

/// Writes a word of each page of so many MiB from 32 MiB on, round after round, and prints a dot after each; a press of the power
/// button makes it print `end`.
fn writer(mebibytes: u32) -> Asm {
    let (start, end) = (32 << 20, (32 + mebibytes) << 20);
    let asm = Asm::new().print("ready");
    let again = asm.here();
    // mov edi, start; lap: inc dword [edi]; add edi, 4096; cmp edi, end; jb lap
    let asm = asm.raw(&[0xbf]).raw(&u32::to_le_bytes(start));
    let asm = asm.raw(&[0xff, 0x07, 0x81, 0xc7]).raw(&4096u32.to_le_bytes());
    let asm = asm.raw(&[0x81, 0xff]).raw(&u32::to_le_bytes(end)).raw(&[0x72, 0xf0]);
    asm.print(".").jump(again)
}

#[test]
fn others_are_answered_while_a_snapshot_is_taken() {
    if !kvm() {
        return;
    }
    // Big enough to take a while, and written without pause.
    let plan = || Plan { memory: MiB(256), ..Plan::new(writer(160).elf()) };
    let mut first = Guest::start(plan());
    first.wait_console(".");
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let other = first.connect();
    let fds = [files[0].as_fd(), files[1].as_fd()];
    let call = MachineCall::Snapshot { track: false, changes: false };
    vmm::control::send_with(other.as_fd(), &serde_json::to_vec(&call).unwrap(), &fds).unwrap();
    let now = |guest: &Guest| guest.status().transfer;
    let copying = first.wait_status(|status| {
        status
            .transfer
            .as_ref()
            .is_some_and(|transfer| transfer.bytes > 0 || transfer.phase == TransferPhase::Done)
    });
    assert_ne!(now(&first).unwrap().phase, TransferPhase::Failed);
    assert_eq!(copying.transfer.unwrap().kind, TransferKind::Snapshot);
    let MachineReply::Snapshot(taken) = vmm::control::receive_reply(&other).unwrap() else {
        panic!("no snapshot")
    };
    let transfer = now(&first).unwrap();
    assert_eq!((transfer.phase, transfer.stood_us), (TransferPhase::Done, taken.stood_us));
    println!("{taken:?} in {} rounds", transfer.rounds);
    assert!(taken.memory_bytes >= 160 << 20 && taken.memory_bytes < 170 << 20, "{taken:?}");
    // What it holds is one moment: counters fall once at most, from a lap to the one before.
    let mut word = [0; 4];
    let mut counters = Vec::new();
    for page in 0..160 * 256u64 {
        files[1].read_exact_at(&mut word, (32 << 20) + page * 4096).unwrap();
        counters.push(u32::from_le_bytes(word));
    }
    let falls = counters.windows(2).filter(|pair| pair[0] != pair[1]).collect::<Vec<_>>();
    assert!(falls.len() <= 1 && falls.iter().all(|pair| pair[0] == pair[1] + 1), "{falls:?}");
    // Both go on.
    let mut clone = restored(plan(), &files);
    clone.wait_console("..");
    let dots = first.console().len();
    first.wait_console_times(".", dots);

    // One that is cancelled leaves the machine as it was.
    vmm::control::send_with(other.as_fd(), &serde_json::to_vec(&call).unwrap(), &fds).unwrap();
    first.wait_status(|status| {
        status.transfer.as_ref().is_some_and(|transfer| transfer.phase != TransferPhase::Done)
    });
    first.done(&MachineCall::CancelTransfer);
    let reply = vmm::control::receive_reply(&other).unwrap();
    let phase = now(&first).unwrap().phase;
    match reply {
        MachineReply::Refused(why) => {
            assert!(
                why.message.contains("cancelled") && phase == TransferPhase::Cancelled,
                "{why} {phase:?}"
            );
        }
        // It was quicker.
        other => assert!(matches!(other, MachineReply::Snapshot(_)), "{other:?}"),
    }
    let dots = first.console().len();
    first.wait_console_times(".", dots);

    // One that the machine's end comes in between is answered.
    vmm::control::send_with(other.as_fd(), &serde_json::to_vec(&call).unwrap(), &fds).unwrap();
    first.wait_status(|status| {
        status.transfer.as_ref().is_some_and(|transfer| transfer.phase == TransferPhase::Copying)
    });
    first.done(&MachineCall::Stop);
    match vmm::control::receive_reply(&other).unwrap() {
        MachineReply::Refused(why) => assert!(why.message.contains("ended"), "{why}"),
        other => assert!(matches!(other, MachineReply::Snapshot(_)), "{other:?}"),
    }
}
