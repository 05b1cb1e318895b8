//! A Linux guest. It needs hardware virtualisation (or an hour), so it only runs where it is told which kernel to boot:
//!
//! `VMM_LINUX_KERNEL` (bzImage or ELF), `VMM_LINUX_INITRD`: an initramfs that prints `L2: ready` once its drivers are loaded,
//! `L2: blocks NAMES` whenever its block devices change, `L2: vda size SECTORS` when that does, and powers off at the power button.
//! `VMM_LINUX_TAP`: name of a tap to plug in; the initramfs then pings the host over it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Guest, Plan, file};
use std::os::fd::AsFd;
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{BlockSize, EndReason, Limits, MachineCall, MachineReply};

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
