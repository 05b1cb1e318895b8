//! Stories with our own monitor and a tiny guest on this machine's KVM, emulated or not.

use crate::guest::{Manner, kernel};
use crate::lab::{Lab, next, server, vmm_program};
use wire::host::{Bite, DiskCounts, Firmware, Power, PowerNow, ReadFigures, Reboots};
use wire::machine::{EndReason, Limit, Limits, NicLimits, Topology};
use wire::{MiB, RefusedKind};

async fn lab(more: &str) -> Option<Lab> {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: /dev/kvm is missing");
        return None;
    }
    build_vmm();
    let mut lab = Lab::new("vmm", more);
    lab.up().await;
    Some(lab)
}

/// The monitor is another package's program, which building these tests does not bring up to date.
pub fn build_vmm() {
    let mut build = std::process::Command::new(env!("CARGO"));
    build.args(["build", "-q", "-p", "vmm"]);
    if vmm_program().parent().is_some_and(|dir| dir.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "cannot build the vmm program");
    assert!(vmm_program().exists(), "{} was not built", vmm_program().display());
}

#[tokio::test]
async fn a_guest_lives_through_everything_but_what_it_must_agree_to() {
    let Some(mut lab) = lab("unplug_secs = 1").await else { return };
    let (root, nic) = (lab.disk("root"), lab.nic());
    let first = server(&kernel(lab.dir.path(), Manner::Deaf), vec![root], vec![nic.clone()]);
    let id = first.id;
    let now = lab.ensure(&first).await.unwrap();
    assert_eq!((now.fault.clone(), now.power), (None, PowerNow::Running), "{}", lab.log());
    assert_eq!(
        (now.disks.as_slice(), now.nics.as_slice()),
        (["root".to_owned()].as_slice(), [nic.port].as_slice())
    );
    lab.console_has(id, "up\n", 1).await;
    let pids = lab.processes();
    for pid in &pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        assert!(status.contains("Uid:\t1880000000\t1880000000"), "{status}");
    }
    let paused = next(&first, |call| call.power = Power::Paused);
    assert_eq!(lab.ensure(&paused).await.unwrap().power, PowerNow::Paused);
    let plugged = next(&paused, |call| {
        call.power = Power::On;
        call.spec.disks.push(lab.disk("data"));
        call.spec.nics.push(lab.nic());
    });
    let now = lab.ensure(&plugged).await.unwrap();
    assert_eq!((now.power, now.fault, now.disks.len(), now.nics.len()), (PowerNow::Running, None, 2, 2));
    assert_eq!(lab.asked_taps().len(), 2);

    lab.kill();
    assert_eq!(lab.processes(), pids, "the guest survives");
    lab.up().await;
    let now = lab.until(id, "running", |now| now.power == PowerNow::Running).await;
    assert_eq!((now.settled, now.disks.len()), (plugged.generation, 2));
    assert_eq!(lab.processes(), pids, "the guest is the same");

    let unplugged = next(&plugged, |call| call.spec.disks.truncate(1));
    let fault = lab.ensure(&unplugged).await.unwrap().fault.expect("the guest is deaf");
    assert!(fault.contains("disk data"), "{fault}");
    let rebooted = next(&unplugged, |call| call.reboots = Reboots { count: 1, grace_secs: 0 });
    let now = lab.ensure(&rebooted).await.unwrap();
    assert_eq!((now.power, now.fault, now.disks.len()), (PowerNow::Running, None, 1));
    lab.console_has(id, "up\n", 2).await;
    let off = next(&rebooted, |call| call.power = Power::Off { grace_secs: 1 });
    assert_eq!(lab.ensure(&off).await.unwrap().power, PowerNow::Off);
    assert!(lab.processes().is_empty());
    lab.forget(id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_that_hangs_gets_what_its_owner_wants_and_figures_are_told() {
    let Some(mut lab) = lab("").await else { return };
    let kernel = kernel(lab.dir.path(), Manner::Hanging);
    let hanging = |lab: &Lab, bite| {
        let mut call = server(&kernel, vec![lab.disk("root")], vec![lab.nic()]);
        call.spec.hardware.watchdog = Some(bite);
        call.spec.hardware.topology = Some(Topology { sockets: 1, cores: 1, threads: 1 });
        call
    };
    let reset = hanging(&lab, Bite::Reset);
    lab.ensure(&reset).await.unwrap();
    lab.console_has(reset.id, "up\n", 2).await;
    let now = lab.until(reset.id, "bitten", |now| now.last_end.is_some()).await;
    assert_eq!(now.last_end.unwrap().reason, EndReason::Watchdog);
    lab.forget(reset.id).await;

    let off = hanging(&lab, Bite::PowerOff);
    lab.ensure(&off).await.unwrap();
    let now = lab.until(off.id, "off", |now| now.power == PowerNow::Off).await;
    assert_eq!((now.fault, now.last_end.unwrap().reason), (None, EndReason::Watchdog));
    let refused = lab.client.call(&ReadFigures { id: off.id }).await.unwrap_err();
    assert_eq!(refused.kind, RefusedKind::Conflict);
    lab.forget(off.id).await;

    let pause = hanging(&lab, Bite::Pause);
    lab.ensure(&pause).await.unwrap();
    lab.until(pause.id, "paused", |now| now.power == PowerNow::Paused).await;
    // It stays so until its owner lets it go on, whatever becomes of hostd.
    lab.kill();
    lab.up().await;
    let now = lab.until(pause.id, "paused", |now| now.power == PowerNow::Paused).await;
    assert_eq!(now.settled, pause.generation);
    let limited = next(&pause, |call| {
        let limits = Limits { bytes: Some(Limit { per_second: 1 << 20, burst: 1 << 20 }), operations: None };
        call.spec.disks[0].limits = limits;
        call.spec.nics[0].limits = NicLimits { to_guest: limits, from_guest: Limits::default() };
    });
    let now = lab.ensure(&limited).await.unwrap();
    assert_eq!((now.fault, now.settled), (None, limited.generation), "{}", lab.log());
    let figures = lab.client.call(&ReadFigures { id: pause.id }).await.unwrap();
    assert_eq!((figures.hypervisor.as_str(), figures.memory.given), ("vmm", MiB(32)));
    assert!(figures.cpus_ns.len() == 1 && figures.uptime_secs.is_some(), "{figures:?}");
    assert!(figures.memory.resident.is_some_and(|resident| resident.0 < 200), "{figures:?}");
    assert_eq!(figures.disks[0].counts, Some(DiskCounts::default()), "this guest has no driver");
    assert_eq!(figures.nics[0].mac, Some(pause.spec.nics[0].mac));
    lab.forget(pause.id).await;

    let mut uefi = server(&kernel, Vec::new(), Vec::new());
    uefi.spec.hardware.firmware = Firmware::Uefi;
    let now = lab.ensure(&uefi).await.unwrap();
    assert!(
        now.fault.as_deref().is_some_and(|fault| fault.contains("UEFI") && fault.contains("qemu")),
        "{now:?}"
    );
    lab.forget(uefi.id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_suspended_guest_goes_on_where_it_was() {
    let Some(mut lab) = lab("").await else { return };
    let first = server(&kernel(lab.dir.path(), Manner::Counting), vec![lab.disk("root")], vec![lab.nic()]);
    let id = first.id;
    lab.ensure(&first).await.unwrap();
    lab.console_has(id, "c", 1).await;
    let suspended = next(&first, |call| call.power = Power::Suspended);
    let now = lab.ensure(&suspended).await.unwrap();
    assert_eq!((now.power, now.fault), (PowerNow::Suspended, None), "{}", lab.log());
    assert!(lab.processes().is_empty());
    lab.kill();
    lab.up().await;
    let resumed = next(&suspended, |call| call.power = Power::On);
    let now = lab.ensure(&resumed).await.unwrap();
    assert_eq!((now.power, now.fault, now.disks.len()), (PowerNow::Running, None, 1), "{}", lab.log());
    // It prints each letter once: none is missing, and it did not begin again.
    lab.console_has(id, "z", 1).await;
    let said = lab.client.call(&wire::host::ReadConsole { id, lines: None }).await.unwrap();
    let letters: String = ('a'..='z').collect();
    assert_eq!(said, format!("up\n{letters}"));
    lab.forget(id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn resets_are_followed_and_what_cannot_start_says_why() {
    let Some(mut lab) = lab("").await else { return };
    let resetting = server(&kernel(lab.dir.path(), Manner::Resetting), Vec::new(), Vec::new());
    lab.ensure(&resetting).await.unwrap();
    lab.console_has(resetting.id, "up\n", 3).await;
    lab.forget(resetting.id).await;
    std::fs::write(lab.dir.path().join("junk.elf"), "not a kernel at all").unwrap();
    let bad = server(&lab.dir.path().join("junk.elf"), Vec::new(), Vec::new());
    let now = lab.ensure(&bad).await.unwrap();
    assert_eq!(now.power, PowerNow::Off);
    assert!(now.fault.as_deref().is_some_and(|fault| fault.contains("kernel")), "{now:?}");

    // A monitor that is killed while hostd is away has crashed; its guest may be started again.
    let lost = server(&kernel(lab.dir.path(), Manner::Deaf), Vec::new(), Vec::new());
    lab.ensure(&lost).await.unwrap();
    lab.kill();
    let pid = lab.processes()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    lab.up().await;
    let now = lab.until(lost.id, "crashed", |now| now.power == PowerNow::Crashed).await;
    assert!(now.fault.is_some());
    let again = next(&lost, |_| ());
    assert_eq!(lab.ensure(&again).await.unwrap().power, PowerNow::Running);
    for id in [bad.id, lost.id] {
        lab.forget(id).await;
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}
