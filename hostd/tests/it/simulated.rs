//! Stories of the driver and its requests, without guests.

use crate::lab::{Lab, next, ours, server};
use wire::RefusedKind;
use wire::cloud::{Attest, Epoch, Ground, Warrant};
use wire::host::{DescribeHost, ForgetServer, ListServers, Power, PowerNow, ReadConsole, WatchServer};
use wire::ids::{CloudId, ServerId};
use wire::{GiB, MiB};

#[tokio::test]
async fn requests_are_numbered_and_unknown_servers_are_missing() {
    let mut lab = Lab::new("simulated", "guest_uid_count = 2");
    lab.up().await;
    let facts = lab.client.call(&DescribeHost {}).await.unwrap();
    assert_eq!((facts.name.as_str(), facts.hypervisor.as_str()), ("lab", "simulated"));
    // Its size is not this machine's, and nothing about it pretends to be real.
    assert!(facts.cpus >= 1000 && facts.memory >= MiB(1 << 20) && facts.disk >= Some(GiB(100_000)));
    assert!(facts.reason.contains("made up") && facts.cpu_model == "simulated", "{facts:?}");
    let none = lab.dir.path().join("none");
    let first = server(&none, vec![lab.disk("root")], Vec::new());
    lab.ensure(&first).await.unwrap();
    let second = next(&first, |call| call.power = Power::Paused);
    assert_eq!(lab.ensure(&second).await.unwrap().power, PowerNow::Paused);
    assert_eq!(lab.ensure(&first).await.unwrap_err().kind, RefusedKind::Stale);
    let mut other = second.clone();
    other.power = Power::On;
    assert_eq!(lab.ensure(&other).await.unwrap_err().kind, RefusedKind::Conflict);
    let id = ServerId::new();
    let watch = WatchServer { id, settled: wire::Generation(1), wait_ms: 0 };
    assert_eq!(lab.client.call(&watch).await.unwrap_err().kind, RefusedKind::Missing);
    assert_eq!(
        lab.client.call(&ReadConsole { id, lines: None }).await.unwrap_err().kind,
        RefusedKind::Missing
    );
    lab.forget(id).await;

    // Each server has a user id of its own; a refused one leaves nothing.
    let third = server(&none, vec![lab.disk("other")], Vec::new());
    lab.ensure(&third).await.unwrap();
    let fourth = server(&none, vec![lab.disk("more")], Vec::new());
    let refused = lab.ensure(&fourth).await.unwrap_err();
    assert_eq!(refused.kind, RefusedKind::NoSpace);
    assert!(refused.remedy.contains("guest_uid_count"), "{refused}");
    let all = lab.client.call(&ListServers {}).await.unwrap();
    assert_eq!(all.len(), 2);
    lab.forget(first.id).await;
    lab.ensure(&fourth).await.unwrap();
    for id in [third.id, fourth.id] {
        lab.forget(id).await;
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_purge_ends_all_and_the_next_start_brings_back_what_should_run() {
    let mut lab = Lab::new("simulated", "");
    lab.up().await;
    let none = lab.dir.path().join("none");
    let running = server(&none, vec![lab.disk("root")], Vec::new());
    let off = next(&server(&none, vec![lab.disk("other")], Vec::new()), |call| {
        call.power = Power::Off { grace_secs: 0 };
    });
    for call in [&running, &off] {
        lab.ensure(call).await.unwrap();
    }
    lab.kill();
    let purge = std::process::Command::new(env!("CARGO_BIN_EXE_hostd"))
        .arg("--purge")
        .arg("--config")
        .arg(lab.dir.path().join("hostd.toml"))
        .output()
        .unwrap();
    assert!(purge.status.success(), "{purge:?}");
    assert!(lab.processes().is_empty() && !lab.dir.path().join("run/servers").exists());
    lab.up().await;
    lab.until(running.id, "running again", |now| now.power == PowerNow::Running).await;
    lab.until(off.id, "off", |now| now.power == PowerNow::Off && now.settled == off.generation).await;
    for id in [running.id, off.id] {
        lab.forget(id).await;
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_suspended_server_goes_on_after_a_restart_and_leaves_nothing() {
    let mut lab = Lab::new("simulated", "");
    lab.up().await;
    let first = server(&lab.dir.path().join("none"), vec![lab.disk("root")], Vec::new());
    lab.ensure(&first).await.unwrap();
    let kept = lab.dir.path().join(format!("state/servers/{}/suspended", first.id));
    let suspended = next(&first, |call| call.power = Power::Suspended);
    let now = lab.ensure(&suspended).await.unwrap();
    assert_eq!((now.power, now.fault), (PowerNow::Suspended, None));
    assert!(kept.join("state").exists());
    lab.kill();
    lab.up().await;
    lab.until(first.id, "suspended", |now| now.power == PowerNow::Suspended).await;
    let resumed = next(&suspended, |call| call.power = Power::On);
    assert_eq!(lab.ensure(&resumed).await.unwrap().power, PowerNow::Running);
    assert!(!kept.exists(), "it must not be gone on from twice");
    // Memory that is lost is a fault that names it, and a reboot starts the server anew.
    let again = next(&resumed, |call| call.power = Power::Suspended);
    lab.ensure(&again).await.unwrap();
    std::fs::remove_file(kept.join("state")).unwrap();
    let lost = next(&again, |call| call.power = Power::On);
    let now = lab.ensure(&lost).await.unwrap();
    assert!(now.power == PowerNow::Suspended && now.fault.is_some(), "{now:?}");
    let rebooted = next(&lost, |call| call.reboots.count = 1);
    let now = lab.ensure(&rebooted).await.unwrap();
    assert_eq!((now.power, now.fault), (PowerNow::Running, None));
    let off = next(&rebooted, |call| call.power = Power::Suspended);
    lab.ensure(&off).await.unwrap();
    let off = next(&off, |call| call.power = Power::Off { grace_secs: 0 });
    assert_eq!(lab.ensure(&off).await.unwrap().power, PowerNow::Off);
    assert!(!kept.exists());
    lab.forget(first.id).await;
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn a_configuration_that_cannot_work_ends_with_one_plain_line() {
    let lab = Lab::new("simulated", "guest_uid_first = 5");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_hostd"))
        .arg("--config")
        .arg(lab.dir.path().join("hostd.toml"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("guest_uid_first is 5"), "{said}");
}

#[tokio::test]
async fn servers_end_by_the_word_of_their_own_cloud_only() {
    let mut lab = Lab::new("simulated", "");
    lab.up().await;
    let call = server(&lab.dir.path().join("none"), vec![lab.disk("root")], Vec::new());
    let id = call.id;
    lab.ensure(&call).await.unwrap();
    let (ours, theirs) = (ours().cloud, CloudId::new());
    lab.client.call(&Attest { cloud: ours, epoch: Epoch(8) }).await.unwrap();
    lab.kill();
    lab.up().await;
    let forget = async |cloud, ground| {
        lab.client
            .call(&ForgetServer { id, by: Warrant { cloud, ground } })
            .await
            .map_err(|refused| refused.kind)
    };
    assert_eq!(forget(theirs, Ground::Asked).await, Err(RefusedKind::Forbidden));
    assert_eq!(forget(theirs, Ground::Unknown { epoch: Epoch(9) }).await, Err(RefusedKind::Forbidden));
    assert_eq!(forget(ours, Ground::Unknown { epoch: Epoch(7) }).await, Err(RefusedKind::Stale));
    assert_eq!(lab.client.call(&ListServers {}).await.unwrap().len(), 1, "it still runs");

    let adopt = |cloud: CloudId| {
        std::process::Command::new(env!("CARGO_BIN_EXE_hostd"))
            .arg("--config")
            .arg(lab.dir.path().join("hostd.toml"))
            .args(["--adopt", &cloud.to_string()])
            .output()
            .unwrap()
    };
    let said = adopt(theirs);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains(&ours.to_string()));
    forget(theirs, Ground::Unknown { epoch: Epoch(1) }).await.unwrap();
    assert!(lab.client.call(&ListServers {}).await.unwrap().is_empty());
}
