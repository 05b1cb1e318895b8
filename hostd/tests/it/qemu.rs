//! Stories with QEMU and a tiny guest.

use crate::guest::{Manner, kernel};
use crate::lab::{Lab, next, server};
use wire::host::{Bite, Boot, Firmware, Hardware, Power, PowerNow, ReadFigures, Reboots};
use wire::machine::Limit;

fn lab() -> Option<Lab> {
    lab_with("unplug_secs = 20")
}

fn lab_with(more: &str) -> Option<Lab> {
    if hostd::host::find_program(std::path::Path::new("qemu-system-x86_64")).is_none() {
        println!("skipped: qemu-system-x86_64 is not installed");
        return None;
    }
    Some(Lab::new("qemu", more))
}

#[tokio::test]
async fn a_guest_lives_through_everything() {
    let Some(mut lab) = lab() else { return };
    lab.up().await;
    let (root, nic) = (lab.disk("root"), lab.nic());
    let first = server(&kernel(lab.dir.path(), Manner::Polite), vec![root], vec![nic.clone()]);
    let id = first.id;
    let now = lab.ensure(&first).await.unwrap();
    assert_eq!((now.fault.clone(), now.power), (None, PowerNow::Running), "{}", lab.log());
    assert_eq!((now.settled, now.disks.as_slice()), (first.generation, ["root".to_owned()].as_slice()));
    assert_eq!(now.nics, [nic.port]);
    lab.console_has(id, "up\n", 1).await;
    assert_eq!(lab.ensure(&first).await.unwrap().settled, first.generation, "repeating is harmless");

    // Its process has the server's own user and no privilege.
    let pid = lab.processes()[0];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("CapEff:\t0000000000000000"), "{status}");
    assert!(status.contains("Uid:\t1880000000\t1880000000"), "{status}");

    let limited = next(&first, |call| {
        call.spec.disks[0].limits.operations = Some(Limit { per_second: 100, burst: 200 });
    });
    assert_eq!(lab.ensure(&limited).await.unwrap().fault, None, "{}", lab.log());
    let figures = lab.client.call(&ReadFigures { id }).await.unwrap();
    assert!(figures.cpus_ns.len() == 1 && figures.disks[0].counts.is_some(), "{figures:?}");
    assert!(figures.memory.resident.is_some() && figures.nics[0].counts.is_none(), "{figures:?}");

    let first = limited;
    let paused = next(&first, |call| call.power = Power::Paused);
    assert_eq!(lab.ensure(&paused).await.unwrap().power, PowerNow::Paused);
    let resumed = next(&paused, |call| call.power = Power::On);
    assert_eq!(lab.ensure(&resumed).await.unwrap().power, PowerNow::Running);

    // Devices come and go while it runs, also across a crash of hostd.
    let second = lab.nic();
    let plugged = next(&resumed, |call| {
        call.spec.disks.push(lab.disk("data"));
        call.spec.nics.push(second.clone());
    });
    let now = lab.ensure(&plugged).await.unwrap();
    assert_eq!((now.fault, now.disks.len(), now.nics.len()), (None, 2, 2));
    lab.kill();
    assert_eq!(lab.processes(), [pid], "the guest survives");
    lab.up().await;
    let now = lab.until(id, "running", |now| now.power == PowerNow::Running).await;
    assert_eq!((now.settled, now.disks.len(), now.nics.len()), (plugged.generation, 2, 2));
    assert_eq!(lab.processes(), [pid], "the guest is the same");
    let unplugged = next(&plugged, |call| {
        call.spec.disks.truncate(1);
        call.spec.nics.truncate(1);
    });
    let now = lab.ensure(&unplugged).await.unwrap();
    assert_eq!((now.fault, now.disks.len(), now.nics.len()), (None, 1, 1), "{}", lab.log());
    let again = next(&unplugged, |call| call.spec.disks.push(lab.disk("data")));
    assert_eq!(lab.ensure(&again).await.unwrap().disks.len(), 2, "the freed port is used again");

    let rebooted = next(&again, |call| call.reboots = Reboots { count: 1, grace_secs: 30 });
    let now = lab.ensure(&rebooted).await.unwrap();
    assert_eq!((now.power, now.reboots, now.fault), (PowerNow::Running, 1, None));
    lab.console_has(id, "up\n", 2).await;
    assert_ne!(lab.processes(), [pid]);

    let off = next(&rebooted, |call| call.power = Power::Off { grace_secs: 30 });
    assert_eq!(lab.ensure(&off).await.unwrap().power, PowerNow::Off);
    assert!(lab.processes().is_empty());
    lab.forget(id).await;
    lab.forget(id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_deaf_guest_is_killed_after_its_grace_and_keeps_its_devices_until_then() {
    let Some(mut lab) = lab_with("unplug_secs = 1") else { return };
    lab.up().await;
    let disks = vec![lab.disk("root"), lab.disk("data")];
    let first = server(&kernel(lab.dir.path(), Manner::Deaf), disks, Vec::new());
    lab.ensure(&first).await.unwrap();
    let unplugged = next(&first, |call| call.spec.disks.truncate(1));
    let now = lab.ensure(&unplugged).await.unwrap();
    assert_eq!((now.settled, now.disks.len()), (unplugged.generation, 2));
    let fault = now.fault.expect("the guest never answers");
    assert!(fault.contains("disk data") && fault.contains("stopping the server"), "{fault}");
    let off = next(&unplugged, |call| call.power = Power::Off { grace_secs: 1 });
    let now = lab.ensure(&off).await.unwrap();
    assert_eq!((now.power, now.fault), (PowerNow::Off, None));
    let on = next(&off, |call| call.power = Power::On);
    assert_eq!(lab.ensure(&on).await.unwrap().disks, ["root"]);
    lab.forget(first.id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn uefi_firmware_starts_and_keeps_its_variables_until_the_server_goes() {
    let Some(mut lab) = lab() else { return };
    if !std::path::Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() {
        println!("skipped: the package ovmf is not installed");
        return;
    }
    lab.up().await;
    let mut first = server(&lab.dir.path().join("none.elf"), vec![lab.disk("root")], Vec::new());
    first.spec.boot = Boot::Disk;
    first.spec.memory = wire::MiB(256);
    first.spec.hardware = Hardware { firmware: Firmware::Uefi, watchdog: Some(Bite::Pause), topology: None };
    let now = lab.ensure(&first).await.unwrap();
    assert_eq!((now.fault, now.power), (None, PowerNow::Running), "{}", lab.log());
    // The firmware finds nothing to start on an empty disk, and says so.
    lab.console_has(first.id, "BdsDxe", 1).await;
    let variables = lab.dir.path().join(format!("state/servers/{}/uefi-variables.fd", first.id));
    let of_packet = std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap();
    let own = std::fs::read(&variables).unwrap();
    assert!(own.len() == of_packet.len() && own != of_packet, "the firmware keeps its boot order there");
    let again = next(&first, |call| call.reboots = Reboots { count: 1, grace_secs: 0 });
    assert_eq!(lab.ensure(&again).await.unwrap().fault, None);
    lab.console_has(first.id, "BdsDxe", 2).await;
    lab.forget(first.id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn resets_and_power_offs_of_the_guest_are_followed_also_when_hostd_was_away() {
    let Some(mut lab) = lab() else { return };
    lab.up().await;
    let resetting = server(&kernel(lab.dir.path(), Manner::Resetting), Vec::new(), Vec::new());
    lab.ensure(&resetting).await.unwrap();
    lab.console_has(resetting.id, "up\n", 3).await;
    let going = server(&kernel(lab.dir.path(), Manner::PoweringOff), Vec::new(), Vec::new());
    lab.ensure(&going).await.unwrap();
    let now = lab.until(going.id, "off", |now| now.power == PowerNow::Off).await;
    assert_eq!(now.fault, None);
    let again = next(&going, |_| ());
    // This one powers off while hostd is away.
    let mut quick = again.clone();
    quick.wait_ms = 0;
    lab.ensure(&quick).await.unwrap();
    lab.console_has(going.id, "up\n", 2).await;
    lab.kill();
    lab.up().await;
    lab.until(going.id, "off", |now| now.power == PowerNow::Off && now.settled == again.generation).await;
    for id in [resetting.id, going.id] {
        lab.forget(id).await;
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_no_process() {
    let Some(mut lab) = lab() else { return };
    lab.up().await;
    let mut bad = server(&lab.dir.path().join("none.elf"), Vec::new(), Vec::new());
    let now = lab.ensure(&bad).await.unwrap();
    assert_eq!((now.settled, now.power), (bad.generation, PowerNow::Off));
    assert!(now.fault.as_deref().is_some_and(|fault| fault.contains("none.elf")), "{now:?}");
    std::fs::write(lab.dir.path().join("junk.elf"), "not a kernel at all").unwrap();
    bad = next(&bad, |call| {
        call.spec.boot = Boot::Kernel {
            kernel: lab.dir.path().join("junk.elf"),
            initrd: None,
            command_line: String::new(),
        };
    });
    let now = lab.ensure(&bad).await.unwrap();
    assert!(now.fault.as_deref().is_some_and(|fault| fault.contains("QEMU")), "{now:?}");
    assert!(lab.processes().is_empty());
    let good = next(&bad, |call| {
        call.spec = server(&kernel(lab.dir.path(), Manner::Polite), Vec::new(), Vec::new()).spec;
    });
    let now = lab.ensure(&good).await.unwrap();
    assert_eq!((now.power, now.fault), (PowerNow::Running, None));

    // A guest that is killed from outside has crashed, and can be started again.
    let pid = lab.processes()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let now = lab.until(good.id, "crashed", |now| now.power == PowerNow::Crashed).await;
    assert!(now.fault.as_deref().is_some_and(|fault| fault.contains("signal 9")), "{now:?}");
    let again = next(&good, |_| ());
    assert_eq!(lab.ensure(&again).await.unwrap().power, PowerNow::Running);
    lab.forget(again.id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}
