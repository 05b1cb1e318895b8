//! A Linux guest. It needs hardware virtualisation (or an hour), so it only runs where it is told which kernel to boot:
//!
//! `VMM_LINUX_KERNEL` (bzImage or ELF), `VMM_LINUX_INITRD`: an initramfs that prints `L2: ready` once its drivers are loaded,
//! `L2: blocks NAMES` whenever its block devices change, `L2: vda size SECTORS` when that does, and powers off at the power button.
//! `VMM_LINUX_TAP`: name of a tap to plug in; the initramfs then pings the host over it.
//!
//! `VMM_LINUX_DEVICES`: another initramfs, that drives every device: it prints `L2: queues N` of its disk, `L2: mtu N` of its network
//! interface after it set the offloads and address of that anew, writes `L2: words` to `/dev/hvc0`, echoes what comes to vsock port 52,
//! prints `L2: freed` when the balloon has taken 64 MiB, starts its watchdog with 2 s and stops calling it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Guest, Plan, file};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{BalloonConfig, BlockSize, EndReason, Limits, MachineCall, MachineReply};

#[test]
fn linux_boots_and_takes_disks_in_and_out() {
    let Some(kernel) = std::env::var_os("VMM_LINUX_KERNEL") else {
        println!("skipped: VMM_LINUX_KERNEL names no kernel");
        return;
    };
    let mut plan = Plan::new(std::fs::read(kernel).unwrap());
    plan.initrd = std::env::var_os("VMM_LINUX_INITRD").map(|path| std::fs::read(path).unwrap());
    plan.command_line = "console=ttyS0 quiet".into();
    plan.memory = MiB(256);
    plan.vcpus = 2;
    let root = file(&vec![0; 8 << 20]);
    plan.disks.push(("root".into(), root.try_clone().unwrap(), false));
    let tap = std::env::var("VMM_LINUX_TAP").ok();
    if let Some(name) = tap.clone() {
        plan.nics.push((PortId::new(), common::tap(Some(name)), Mac([2, 0, 0, 0, 0, 1])));
    }
    let mut guest = Guest::start(plan);
    guest.wait_console("L2: ready");
    if tap.is_some() {
        assert!(guest.console().contains(" 0% packet loss"));
    }
    let status = guest.wait_status(|status| status.disks.iter().all(|disk| disk.driver_ok));
    assert_eq!(status.disks.len(), 1);

    guest.done(&MachineCall::Pause);
    guest.done(&MachineCall::Resume);

    let volume = file(&vec![0; 4 << 20]);
    for round in 0..2 {
        let plug = MachineCall::PlugDisk {
            key: "volume".into(),
            read_only: false,
            serial: "volume-serial".into(),
            block_size: BlockSize::default(),
            limits: Limits::default(),
        };
        assert_eq!(guest.call_with(&plug, Some(volume.as_fd())), MachineReply::Done);
        guest.wait_status(|status| status.disks.len() == 2 && status.disks.iter().all(|disk| disk.driver_ok));
        guest.wait_console_times("L2: disk vdb 8192 serial volume-serial", round + 1);
        guest.done(&MachineCall::UnplugDisk { key: "volume".into() });
        guest.wait_status(|status| status.disks.len() == 1);
        guest.wait_console_times("L2: blocks vda \r\n", round + 2);
    }

    root.set_len(16 << 20).unwrap();
    guest.done(&MachineCall::ResizeDisk { key: "root".into() });
    guest.wait_console("L2: vda size 32768");

    guest.done(&MachineCall::PowerButton);
    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::PowerButton);
    assert!(guest.console().contains("L2: power button"));
}

#[test]
fn linux_drives_every_device() {
    let (Some(kernel), Some(initrd)) =
        (std::env::var_os("VMM_LINUX_KERNEL"), std::env::var_os("VMM_LINUX_DEVICES"))
    else {
        println!("skipped: VMM_LINUX_KERNEL and VMM_LINUX_DEVICES name no kernel and initramfs");
        return;
    };
    let mut plan = Plan::new(std::fs::read(kernel).unwrap());
    plan.initrd = Some(std::fs::read(initrd).unwrap());
    plan.command_line = "console=ttyS0 quiet".into();
    plan.memory = MiB(256);
    plan.vcpus = 2;
    plan.disks.push(("root".into(), file(&vec![0; 8 << 20]), false));
    plan.nics.push((PortId::new(), common::tap(None), Mac([2, 0, 0, 0, 0, 1])));
    plan.balloon = Some(BalloonConfig { target: MiB(0), deflate_on_oom: true });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    plan.vsock = Some((7, UnixListener::bind(&path).unwrap().into()));
    let log = file(&[]);
    plan.virtio_console = Some([log.try_clone().unwrap(), file(&[])]);
    let mut guest = Guest::start(plan);
    guest.wait_console("L2: queues 2");
    guest.wait_console("L2: mtu 1450");
    guest.wait_console("L2: printed");
    let mut words = [0; 9];
    log.read_exact_at(&mut words, 0).unwrap();
    assert_eq!(&words, b"L2: words");

    guest.wait_console("L2: listens");
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 52\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line}");
    let sent: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stream.write_all(&copy).map(|()| stream));
    let mut back = vec![0; sent.len()];
    reader.read_exact(&mut back).unwrap();
    assert!(back == sent);
    writer.join().unwrap().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the guest closes when it has read all");

    let balloon = |guest: &Guest| match guest.call(&MachineCall::BalloonStatus) {
        MachineReply::Balloon(status) => status,
        other => panic!("{other:?}"),
    };
    let reported = balloon(&guest).given_back;
    guest.done(&MachineCall::Balloon { target: MiB(64) });
    guest.wait_console("L2: freed");
    let until = Instant::now() + common::longest();
    while balloon(&guest).actual < 64 << 20 || balloon(&guest).statistics.total.is_none() {
        assert!(Instant::now() < until, "{:?}", balloon(&guest));
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = balloon(&guest);
    assert!(status.given_back >= 64 << 20, "{status:?}");
    println!("free pages reported before: {} MiB; now {status:?}", reported >> 20);

    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::Watchdog, "{}", guest.console());
}
