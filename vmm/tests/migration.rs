//! Machines with tiny guests that move from one monitor to another.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::driver::{BAR, descriptor, start_disk};
use common::link::{self, link};
use common::{Guest, Plan, file, kvm, tap};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{
    EndReason, MachineCall, MachineReply, MachineState, MigrationPlan, TransferPhase, Unconverged,
};

/// Where the generation id is.
const GENERATION: u32 = 0xf_e000;

/// Counts presses of the power button in memory and in a register, and prints both.
fn counter() -> Asm {
    let asm = Asm::new().write32(DATA, 0).raw(&[0x31, 0xf6]).print("ready");
    let start = asm.here();
    let asm = asm.until(1, |asm| asm.in32(0x610)).raw(&[0xff, 0x05]).raw(&DATA.to_le_bytes()).raw(&[0x46]);
    asm.read32(DATA).print_eax().raw(&[0x89, 0xf0]).print_eax().jump(start)
}

fn counted(count: u32) -> String {
    printed(count).repeat(2)
}

fn press(guest: &mut Guest, text: &str) {
    guest.done(&MachineCall::PowerButton);
    guest.wait_console(text);
}

fn machine(vcpus: u32) -> Plan {
    Plan { vcpus, memory: MiB(32), ..Plan::new(counter().elf()) }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (one, two) = UnixStream::pair().unwrap();
    (one.into(), two.into())
}

fn coming(plan: Plan, stream: OwnedFd) -> Guest {
    Guest::start(Plan { incoming: Some(stream), ..plan })
}

/// Writes a word of each page of so many MiB from 32 MiB on, round after round, and prints a dot after each.
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

/// Checks that a writer's memory is that of one moment: each page counts as much as the one before it, but for one place where it
/// counts one less.
fn consistent(guest: &Guest, mebibytes: u64) {
    let ([_, memory], _) = guest.snapshot();
    let mut word = [0; 4];
    let mut counters = Vec::new();
    for page in 0..mebibytes * 256 {
        memory.read_exact_at(&mut word, (32 << 20) + page * 4096).unwrap();
        counters.push(u32::from_le_bytes(word));
    }
    let falls = counters.windows(2).filter(|pair| pair[0] != pair[1]).collect::<Vec<_>>();
    assert!(falls.len() <= 1 && falls.iter().all(|pair| pair[0] == pair[1] + 1), "{falls:?}");
    assert!(counters[0] > 0);
}

/// Waits until the destination has the machine, and checks that the source has not.
fn moved(source: &mut Guest, destination: &Guest) {
    destination.wait_transfer(&[TransferPhase::Done]);
    let (status, end) = source.wait_end();
    let end = end.unwrap_or_else(|| panic!("nothing recorded, {status}: {}", source.log()));
    assert_eq!((end.reason, end.detail.as_str()), (EndReason::Migrated, ""));
    assert_eq!(status.code(), Some(10));
}

#[test]
fn a_guest_goes_on_from_the_same_count_in_another_monitor() {
    if !kvm() {
        return;
    }
    for vcpus in [1, 3] {
        let mut first = Guest::start(machine(vcpus));
        first.wait_console("ready");
        press(&mut first, &counted(1));
        let (here, there) = pair();
        let mut second = coming(machine(vcpus), there);
        let waiting = second.status();
        assert_eq!(waiting.state, MachineState::Paused);
        assert!(matches!(second.call(&MachineCall::PowerButton), MachineReply::Refused(_)));
        first.migrate(here, MigrationPlan::default());
        moved(&mut first, &second);
        let status = second.status();
        assert!(status.state == MachineState::Running && status.sequence > waiting.sequence, "{status:?}");
        assert!(status.transfer.unwrap().stood_us > 0);
        press(&mut second, &counted(2));
        // And back, from a machine that came itself; this time it is paused, and stays so.
        second.done(&MachineCall::Pause);
        let ([_, before], _) = second.snapshot();
        let (here, there) = pair();
        let mut third = coming(machine(vcpus), there);
        second.migrate(here, MigrationPlan::default());
        moved(&mut second, &third);
        assert_eq!(third.status().state, MachineState::Paused);
        let ([_, after], _) = third.snapshot();
        let mut pages = [[0; 4096]; 2];
        for offset in (0..32 << 20).step_by(4096) {
            before.read_exact_at(&mut pages[0], offset).unwrap();
            after.read_exact_at(&mut pages[1], offset).unwrap();
            assert_eq!(pages[0], pages[1], "memory at {offset:#x}");
        }
        third.done(&MachineCall::Resume);
        press(&mut third, &counted(3));
    }
}

#[test]
fn it_is_the_same_machine() {
    if !kvm() {
        return;
    }
    // No other generation id, and no event of one (bit 2).
    let id = |asm: Asm| (0..4).fold(asm, |asm, word| asm.read32(GENERATION + 4 * word).print_eax());
    let asm = id(Asm::new()).print("ready").until(1, |asm| asm.in32(0x610));
    let plan = || Plan { memory: MiB(32), ..Plan::new(id(asm.clone()).in32(0x610).print_eax().stop().elf()) };
    let mut first = Guest::start(plan());
    first.wait_console("ready");
    let (here, there) = pair();
    let mut second = coming(plan(), there);
    first.migrate(here, MigrationPlan::default());
    moved(&mut first, &second);
    second.done(&MachineCall::PowerButton);
    let ids = first.console().trim_end_matches("ready").to_owned();
    second.wait_console(&format!("{ids}{}", printed(0)));
}

#[test]
fn disks_and_taps_go_on_where_they_were() {
    if !kvm() {
        return;
    }
    let asm = start_disk(Asm::new());
    let asm = descriptor(asm, 0, DATA + 0x3000, 16, 1);
    let asm = descriptor(asm, 1, DATA + 0x4000, 512, 3);
    let asm = descriptor(asm, 2, DATA + 0x4200, 1, 2);
    let read = |asm: Asm, round: u32| {
        asm.write32(DATA + 0x3008, round)
            .write32(DATA + 0x1000, round << 16)
            .write16(BAR + 0x2000, 0)
            .until(round << 16, |asm| asm.read32(DATA + 0x2000))
            .read8(DATA + 0x4000)
            .put_al()
    };
    let asm = read(asm, 1).until(1, |asm| asm.in32(0x610));
    let asm = read(asm, 2).power_off();
    let disk = || {
        let sector = |byte: u8| [byte; 512];
        vec![("root".to_owned(), file(&[sector(b'-'), sector(b'a'), sector(b'b')].concat()), false)]
    };
    let port = PortId::new();
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let plan = || Plan {
        disks: disk(),
        nics: vec![(port, tap(None), mac)],
        memory: MiB(32),
        ..Plan::new(asm.clone().elf())
    };
    let mut first = Guest::start(plan());
    first.wait_console("a");
    let (here, there) = pair();
    let mut second = coming(plan(), there);
    first.migrate(here, MigrationPlan::default());
    moved(&mut first, &second);
    assert!(second.status().disks[0].driver_ok);
    second.done(&MachineCall::PowerButton);
    assert_eq!(second.wait_end().1.unwrap().reason, EndReason::PowerButton);
    assert_eq!(second.console(), "b");
}

#[test]
fn what_does_not_fit_is_refused_in_words_and_the_machine_stays() {
    if !kvm() {
        return;
    }
    let mut first = Guest::start(machine(1));
    first.wait_console("ready");
    let mut count = 0;
    let mut refused = |plan: Plan, change: fn(&mut link::Passing), words: &str| {
        let (here, there) = link(move |passing| {
            change(passing);
            true
        });
        let mut second = coming(plan, there);
        first.migrate(here, MigrationPlan::default());
        let status = first.wait_transfer(&[TransferPhase::Failed]);
        assert!(status.detail.contains(words), "{status:?}");
        let end = second.wait_end().1.unwrap();
        assert_eq!(end.reason, EndReason::NotStarted, "{end:?}");
        assert_eq!(first.status().state, MachineState::Running);
        count += 1;
        press(&mut first, &counted(count));
    };
    fn nothing(_: &mut link::Passing) {}
    refused(
        machine(2),
        nothing,
        "1 vCPUs and 32 MiB of memory, and the destination was configured with 2 and 32",
    );
    refused(Plan { memory: MiB(64), ..machine(1) }, nothing, "configured with 1 and 64");
    let disks = vec![("more".to_owned(), file(&[0; 512]), false)];
    refused(Plan { disks, ..machine(1) }, nothing, "the disk 'more', which the machine does not have");
    // A processor of the future: all of CPUID leaf 7's EBX. Entries are the bytes of KVM's structure.
    fn future(passing: &mut link::Passing) {
        if passing.kind == link::DESCRIBE {
            let mut described: serde_json::Value = serde_json::from_slice(&passing.bytes[24..]).unwrap();
            for entry in described["cpuid"].as_array_mut().unwrap() {
                if entry[0] == 7 && entry[4] == 0 {
                    for byte in 16..20 {
                        entry[byte] = 255.into();
                    }
                }
            }
            let body = serde_json::to_vec(&described).unwrap();
            passing.bytes.truncate(24);
            passing.bytes[4..8].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
            passing.bytes.extend(body);
        }
    }
    refused(machine(1), future, "lacks what the guest uses (");
    fn version(passing: &mut link::Passing) {
        if passing.kind == 0 {
            passing.bytes[8..12].fill(0);
        }
    }
    refused(machine(1), version, "speaks version 0");
    // A state that cannot be restored: its checksum is wrong.
    fn damaged(passing: &mut link::Passing) {
        if passing.kind == link::STATE {
            *passing.bytes.last_mut().unwrap() ^= 1;
        }
    }
    refused(machine(1), damaged, "checksum");
    // What is no stream, and a call without one.
    assert!(matches!(
        first.call(&MachineCall::Migrate { plan: MigrationPlan::default() }),
        MachineReply::Refused(_)
    ));
    first.migrate(file(b"x").into(), MigrationPlan::default());
    first.wait_transfer(&[TransferPhase::Failed]);
    assert!(matches!(first.call(&MachineCall::TakeBack), MachineReply::Refused(_)));
    press(&mut first, &counted(count + 1));
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    SourceDies,
    DestinationDies,
    /// The frame is lost, and all that would follow.
    LinkBreaks,
}

/// What becomes of the machine.
enum Expected {
    /// It moves as if nothing had happened.
    Moves,
    /// It goes on at the source, at once.
    Stays,
    /// It stands still at the source until somebody decides; it runs over there, or not.
    Doubt { there: bool },
    /// It dies with the source's monitor.
    DiesHere,
    /// It dies with the destination's monitor, which had it.
    DiesThere,
    /// The source's monitor dies, which had it no more.
    GoesOnThere,
}

fn expected(fault: Fault, step: usize) -> Expected {
    match (fault, step) {
        (_, 10) => Expected::Moves,
        (Fault::SourceDies, 0..=7) => Expected::DiesHere,
        (Fault::SourceDies, _) => Expected::GoesOnThere,
        (Fault::DestinationDies, 0..=6) | (Fault::LinkBreaks, 0..=7) => Expected::Stays,
        // Its last word was that it is ready, so Commit goes to nobody.
        (Fault::DestinationDies, 7 | 8) | (Fault::LinkBreaks, 8) => Expected::Doubt { there: false },
        (Fault::DestinationDies, _) => Expected::DiesThere,
        (Fault::LinkBreaks, _) => Expected::Doubt { there: true },
    }
}

/// The frames between the monitors, by direction (from the source?) and kind.
const STEPS: [(bool, u32); 11] = [
    (true, 0),
    (false, 0),
    (true, link::DESCRIBE),
    (false, link::ACCEPT),
    (true, link::DATA),
    (true, link::STOPPED),
    (true, link::STATE),
    (false, link::READY),
    (true, link::COMMIT),
    (false, link::RUNNING),
    // Nothing comes after that: no fault.
    (false, u32::MAX),
];

fn never_two_and_one_whenever_it_can_be(fault: Fault) {
    if !kvm() {
        return;
    }
    for (index, step) in STEPS.into_iter().enumerate() {
        let mut first = Guest::start(machine(1));
        first.wait_console("ready");
        press(&mut first, &counted(1));
        let pids = Arc::new(Mutex::new([0; 2]));
        let seen = pids.clone();
        let (here, there) = link(move |passing| {
            if (passing.forth, passing.kind, passing.before) != (step.0, step.1, 0) {
                return true;
            }
            let [source, destination] = *seen.lock().unwrap();
            let kill = |pid: i32| {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                    .unwrap();
            };
            match fault {
                Fault::SourceDies => kill(source),
                Fault::DestinationDies => kill(destination),
                Fault::LinkBreaks => return false,
            }
            true
        });
        // Nothing happens before everybody is known and the migration has begun.
        let mut known = pids.lock().unwrap();
        let mut second = coming(machine(1), there);
        *known = [first.machine_pid(), second.machine_pid()];
        first.migrate(here, MigrationPlan::default());
        drop(known);
        let what = format!("{fault:?} at step {index}");
        match expected(fault, index) {
            Expected::Moves => {
                moved(&mut first, &second);
                press(&mut second, &counted(2));
            }
            Expected::Stays => {
                let status = first.wait_transfer(&[TransferPhase::Failed]);
                assert!(!status.detail.is_empty(), "{what}");
                second.wait_end();
                assert_eq!(first.status().state, MachineState::Running, "{what}");
                press(&mut first, &counted(2));
                // It can go another time.
                let (here, there) = pair();
                let mut third = coming(machine(1), there);
                first.migrate(here, MigrationPlan::default());
                moved(&mut first, &third);
                press(&mut third, &counted(3));
            }
            Expected::Doubt { there } => {
                // Commit went, and nothing came back: the source does not run it by itself.
                let status = first.wait_transfer(&[TransferPhase::InDoubt, TransferPhase::Failed]);
                if status.phase == TransferPhase::Failed {
                    // The end of the destination came through before Commit could go.
                    assert_eq!((fault, index), (Fault::DestinationDies, 7), "{what}: {status:?}");
                    assert_eq!(first.status().state, MachineState::Running, "{what}");
                    press(&mut first, &counted(2));
                    continue;
                }
                assert!(status.detail.contains("take_back"), "{what}: {status:?}");
                assert_eq!(first.status().state, MachineState::Paused, "{what}");
                assert!(matches!(first.call(&MachineCall::Resume), MachineReply::Refused(_)));
                assert!(matches!(first.call(&MachineCall::CancelTransfer), MachineReply::Refused(_)));
                if there {
                    second.wait_transfer(&[TransferPhase::Done]);
                    press(&mut second, &counted(2));
                    first.done(&MachineCall::Stop);
                    assert_eq!(first.wait_end().1.unwrap().reason, EndReason::Stopped);
                } else {
                    // Killed, or it says that it never began.
                    let reason = second.wait_end().1.map(|end| end.reason);
                    let killed = fault == Fault::DestinationDies;
                    assert!(killed || reason == Some(EndReason::NotStarted), "{what}: {reason:?}");
                    first.done(&MachineCall::TakeBack);
                    assert_eq!(first.status().state, MachineState::Running);
                    press(&mut first, &counted(2));
                }
            }
            Expected::DiesHere => {
                // Nobody pretends to be a machine whose monitor was killed.
                first.child.wait().unwrap();
                assert_eq!(second.wait_end().1.unwrap().reason, EndReason::NotStarted, "{what}");
            }
            Expected::DiesThere => {
                second.child.wait().unwrap();
                assert_eq!(first.wait_end().1.unwrap().reason, EndReason::Migrated, "{what}");
            }
            Expected::GoesOnThere => {
                second.wait_transfer(&[TransferPhase::Done]);
                first.child.wait().unwrap();
                press(&mut second, &counted(2));
            }
        }
    }
}

#[test]
fn the_source_dies_at_every_step() {
    never_two_and_one_whenever_it_can_be(Fault::SourceDies);
}

#[test]
fn the_destination_dies_at_every_step() {
    never_two_and_one_whenever_it_can_be(Fault::DestinationDies);
}

#[test]
fn the_link_breaks_at_every_step() {
    never_two_and_one_whenever_it_can_be(Fault::LinkBreaks);
}

#[test]
fn a_busy_guest_is_slowed_down_until_it_fits_through_a_slow_link() {
    if !kvm() {
        return;
    }
    let plan = || Plan { memory: MiB(96), ..Plan::new(writer(48).elf()) };
    let mut first = Guest::start(plan());
    first.wait_console(".");
    let (here, there) = pair();
    let mut second = coming(plan(), there);
    let how = MigrationPlan {
        downtime_ms: 150,
        bytes_per_second: Some(150 << 20),
        otherwise: Unconverged::Finish,
        rounds: 12,
        ..MigrationPlan::default()
    };
    first.migrate(here, how);
    let status = second.wait_transfer(&[TransferPhase::Done]);
    println!("{status:?}");
    moved(&mut first, &second);
    assert!(status.bytes > 48 << 20, "{status:?}");
    consistent(&second, 48);
    let dots = second.console().len();
    second.wait_console_times(".", dots + 1);
}

#[test]
fn a_guest_that_is_too_busy_stays_and_says_why() {
    if !kvm() {
        return;
    }
    let plan = || Plan { memory: MiB(96), ..Plan::new(writer(48).elf()) };
    let mut first = Guest::start(plan());
    first.wait_console(".");
    let (here, there) = pair();
    let mut second = coming(plan(), there);
    let how = MigrationPlan { downtime_ms: 0, throttle: false, rounds: 2, ..MigrationPlan::default() };
    first.migrate(here, how);
    let status = first.wait_transfer(&[TransferPhase::Failed]);
    assert!(status.detail.contains("faster than it can be sent: after 2 rounds"), "{status:?}");
    assert_eq!(second.wait_end().1.unwrap().reason, EndReason::NotStarted);
    let dots = first.console().len();
    first.wait_console_times(".", dots);
    consistent(&first, 48);
}

#[test]
fn a_migration_is_cancelled_at_any_moment() {
    if !kvm() {
        return;
    }
    let plan = || Plan { memory: MiB(96), ..Plan::new(writer(48).elf()) };
    let mut first = Guest::start(plan());
    first.wait_console(".");
    // Over a link that takes nothing, and one that takes little.
    for slow in [false, true] {
        let (here, there) = pair();
        let second = slow.then(|| coming(plan(), there.try_clone().unwrap()));
        first.migrate(here, MigrationPlan { bytes_per_second: Some(1 << 20), ..MigrationPlan::default() });
        if slow {
            let status = first.wait_status(|status| {
                status
                    .transfer
                    .as_ref()
                    .is_some_and(|transfer| transfer.phase == TransferPhase::Copying && transfer.bytes > 0)
            });
            assert!(status.transfer.unwrap().remaining > 0);
            // The machine cannot change meanwhile.
            let unplug = MachineCall::UnplugDisk { key: "x".into() };
            assert!(matches!(first.call(&unplug), MachineReply::Refused(_)));
            let again = first.call_with(
                &MachineCall::Migrate { plan: MigrationPlan::default() },
                Some(std::os::fd::AsFd::as_fd(&there)),
            );
            assert!(matches!(again, MachineReply::Refused(_)));
        }
        let start = Instant::now();
        first.done(&MachineCall::CancelTransfer);
        first.wait_transfer(&[TransferPhase::Cancelled]);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        drop(there);
        if let Some(mut second) = second {
            let end = second.wait_end().1.unwrap();
            assert_eq!(end.reason, EndReason::NotStarted, "{end:?}");
        }
        let dots = first.console().len();
        first.wait_console_times(".", dots);
    }
    // A destination that is not wanted any more ends at once.
    let (_here, there) = pair();
    let mut second = coming(plan(), there);
    second.done(&MachineCall::Stop);
    assert_eq!(second.wait_end().1.unwrap().reason, EndReason::NotStarted);
}

#[test]
fn nothing_that_is_answered_with_done_is_lost_in_a_hand_over() {
    if !kvm() {
        return;
    }
    // The frame is held until this end is dropped.
    for (held, committed) in [(link::READY, false), (link::COMMIT, true)] {
        let mut first = Guest::start(machine(1));
        first.wait_console("ready");
        let (arrived, arrives) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (here, there) = link(move |passing| {
            if passing.kind == held {
                arrived.send(()).unwrap();
                let _ = gone.recv();
            }
            true
        });
        let mut second = coming(machine(1), there);
        first.migrate(here, MigrationPlan::default());
        arrives.recv_timeout(common::longest()).unwrap();
        for call in [
            MachineCall::PowerButton,
            MachineCall::PlugVcpus { count: 1 },
            MachineCall::ResizeDisk { key: "x".into() },
            MachineCall::Balloon { target: MiB(0) },
        ] {
            let MachineReply::Refused(why) = first.call(&call) else { panic!("{call:?}") };
            assert!(why.message.contains("handed over"), "{call:?}: {why}");
        }
        let stopped = first.call(&MachineCall::Stop);
        if committed {
            // It may run over there before long: whoever was told that it is stopped would be wrong.
            assert!(matches!(stopped, MachineReply::Refused(_)), "{stopped:?}");
            drop(go);
            moved(&mut first, &second);
            press(&mut second, &counted(1));
        } else {
            assert_eq!(stopped, MachineReply::Done);
            assert_eq!(first.wait_end().1.unwrap().reason, EndReason::Stopped);
            drop(go);
            assert_eq!(second.wait_end().1.unwrap().reason, EndReason::NotStarted);
        }
    }
}

#[test]
fn strangers_on_the_stream_are_no_machine() {
    if !kvm() {
        return;
    }
    for (bytes, words) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "FERROMIG"),
        (b"FERROMIG\x01\0\0\0\0\0\0\0\xff\xff\xff\xff", "closed"),
        (b"", "closed"),
    ] {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let mut guest = coming(machine(1), theirs.into());
        (&mine).write_all(bytes).unwrap();
        mine.shutdown(std::net::Shutdown::Write).unwrap();
        let end = guest.wait_end().1.unwrap();
        assert!(end.reason == EndReason::NotStarted && end.detail.contains(words), "{end:?}");
    }
}

#[test]
fn by_hand_too() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (kernel, socket) = (path("kernel"), path("socket"));
    // Echoes what is typed, with a number that it counts up.
    let asm = Asm::new().raw(&[0x31, 0xf6]).print("ready");
    let start = asm.here();
    let asm = asm.until(1, |asm| asm.in8(0x3fd)).in8(0x3f8).put_al().raw(&[0x46, 0x89, 0xf0]).print_eax();
    std::fs::write(&kernel, asm.jump(start).elf()).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["run", "--mem", "64"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let expect = |from: &mut dyn Read, text: &str| {
        let mut seen = vec![0; text.len()];
        from.read_exact(&mut seen).unwrap();
        assert_eq!(String::from_utf8_lossy(&seen), text);
    };
    let mut first = run(&["--kernel", &kernel, "--migrate", &socket]);
    let (mut keys, mut said) = (first.stdin.take().unwrap(), first.stderr.take().unwrap());
    keys.write_all(b"a").unwrap();
    expect(first.stdout.as_mut().unwrap(), &format!("readya{}", printed(1)));
    keys.write_all(b"\x01m").unwrap();
    expect(&mut said, "vmm: no other monitor waits for the guest: ");
    let mut second = run(&["--incoming", &socket]);
    // It waits once its greeting can be taken: asked again and again, the guest goes as soon as it may.
    let start = Instant::now();
    let end = loop {
        let _ = keys.write_all(b"\x01m");
        if let Some(end) = first.try_wait().unwrap() {
            break end;
        }
        assert!(start.elapsed() < common::longest());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(end.code(), Some(i32::from(EndReason::Migrated.exit_code())));
    let mut keys = second.stdin.take().unwrap();
    keys.write_all(b"b\x01.").unwrap();
    expect(second.stdout.as_mut().unwrap(), &format!("b{}", printed(2)));
    let mut all = String::new();
    said.read_to_string(&mut all).unwrap();
    let last = all.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("goes on in another monitor; it stood still for about"), "{all}");
    println!("{last}");
    keys.write_all(b"\x01x").unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(i32::from(EndReason::Stopped.exit_code())));
}
