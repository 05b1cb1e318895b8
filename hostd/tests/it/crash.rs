//! `hostd` is killed at every step of a story, once each, and the story must end the same.

use crate::guest::{Manner, kernel};
use crate::lab::{Lab, next, ours, server};
use std::time::{Duration, Instant};
use wire::host::{EnsureServer, ForgetServer, Observed, Power, PowerNow, ReadConsole, Reboots};
use wire::ids::ServerId;
use wire::machine::EndReason;
use wire::{Call, Refused, RefusedKind};

/// Makes a call as `api` does: again when the daemon went away, which is started again when it did.
async fn persist<C: Call>(lab: &mut Lab, call: &C) -> C::Reply {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match lab.client.call(call).await {
            Ok(reply) => return reply,
            Err(Refused { kind: RefusedKind::Unavailable, .. }) => {
                assert!(Instant::now() < deadline, "hostd stays away\n{}", lab.log());
                // Its death may show in the connection before it shows to us.
                tokio::time::sleep(Duration::from_millis(10)).await;
                if lab.has_ended() {
                    lab.spawn(None);
                }
            }
            Err(refused) => panic!("{refused}\n{}", lab.log()),
        }
    }
}

async fn wish(lab: &mut Lab, call: &EnsureServer) -> Observed {
    let now = persist(lab, call).await;
    assert_eq!((now.fault.as_deref(), now.settled), (None, call.generation), "{}", lab.log());
    now
}

/// When the guest of a simulated machine booted, as its memory has it.
fn remembers(lab: &Lab, id: ServerId) -> serde_json::Value {
    let text = std::fs::read(lab.dir.path().join(format!("run/servers/{id}/simulated.json"))).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["booted_ns"].take()
}

/// Runs a story with a kill at fault point 1, 2, 3... until one passes without; returns how many kills there were.
async fn at_every_point<F>(hypervisor: &str, story: F) -> u64
where
    F: AsyncFn(&mut Lab),
{
    at_every_point_after(hypervisor, async |_| (), async |lab, ()| story(lab).await).await
}

/// The same for what comes after a beginning that nothing disturbs.
async fn at_every_point_after<B, T, F>(hypervisor: &str, beginning: B, story: F) -> u64
where
    B: AsyncFn(&mut Lab) -> T,
    F: AsyncFn(&mut Lab, T),
{
    for point in 1..200 {
        let mut lab = Lab::new(hypervisor, "");
        let begun = beginning(&mut lab).await;
        lab.spawn(Some(point));
        story(&mut lab, begun).await;
        assert_eq!(lab.leftovers(), Vec::<String>::new(), "after a kill at point {point}\n{}", lab.log());
        let log = std::fs::read_to_string(lab.dir.path().join("hostd.log")).unwrap();
        if !log.contains("killing itself at fault point") {
            return point - 1;
        }
    }
    panic!("the story has no end");
}

#[tokio::test]
async fn a_whole_life_survives_a_kill_at_every_step() {
    let kills = at_every_point("simulated", async |lab| {
        let none = lab.dir.path().join("none");
        let first = server(&none, vec![lab.disk("root")], vec![lab.nic()]);
        let now = wish(lab, &first).await;
        assert_eq!((now.power, now.disks.len(), now.nics.len()), (PowerNow::Running, 1, 1));
        let plugged = next(&first, |call| call.spec.disks.push(lab.disk("data")));
        assert_eq!(wish(lab, &plugged).await.disks, ["root", "data"]);
        let paused = next(&plugged, |call| {
            call.spec.disks.truncate(1);
            call.power = Power::Paused;
        });
        let now = wish(lab, &paused).await;
        assert_eq!((now.power, now.disks.as_slice()), (PowerNow::Paused, ["root".to_owned()].as_slice()));
        let booted = remembers(lab, first.id);
        let suspended = next(&paused, |call| call.power = Power::Suspended);
        let now = wish(lab, &suspended).await;
        assert_eq!((now.power, now.disks.len()), (PowerNow::Suspended, 0));
        let resumed = next(&suspended, |call| call.power = Power::On);
        assert_eq!(wish(lab, &resumed).await.power, PowerNow::Running);
        assert_eq!(remembers(lab, first.id), booted, "its memory is another\n{}", lab.log());
        let paused = resumed;
        let rebooted = next(&paused, |call| {
            call.power = Power::On;
            call.reboots = Reboots { count: 1, grace_secs: 0 };
        });
        let now = wish(lab, &rebooted).await;
        assert_eq!((now.power, now.reboots), (PowerNow::Running, 1));
        assert_ne!(remembers(lab, first.id), booted, "a reboot starts anew");
        let soft = next(&rebooted, |call| call.reboots = Reboots { count: 2, grace_secs: 20 });
        let now = wish(lab, &soft).await;
        assert_eq!((now.power, now.reboots), (PowerNow::Running, 2));
        let off = next(&soft, |call| call.power = Power::Off { grace_secs: 20 });
        assert_eq!(wish(lab, &off).await.power, PowerNow::Off);
        persist(lab, &ForgetServer { id: first.id, by: ours() }).await;
    })
    .await;
    println!("{kills} kills");
    assert!(kills >= 30, "only {kills} fault points were met");
}

#[tokio::test]
async fn a_real_guest_is_never_doubled_or_lost_by_a_kill() {
    if hostd::host::find_program(std::path::Path::new("qemu-system-x86_64")).is_none() {
        println!("skipped: qemu-system-x86_64 is not installed");
        return;
    }
    let kills = at_every_point("qemu", async |lab| {
        let first = server(&kernel(lab.dir.path(), Manner::Polite), vec![lab.disk("root")], Vec::new());
        let now = wish(lab, &first).await;
        assert_eq!(now.power, PowerNow::Running);
        assert_eq!(lab.processes().len(), 1, "{}", lab.log());
        persist(lab, &ForgetServer { id: first.id, by: ours() }).await;
    })
    .await;
    println!("{kills} kills");
    assert!(kills >= 8, "only {kills} fault points were met");
}

#[tokio::test]
async fn memory_is_gone_on_from_once_and_never_lost_by_a_kill() {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: /dev/kvm is missing");
        return;
    }
    crate::vmm::build_vmm();
    let beginning = async |lab: &mut Lab| {
        lab.spawn(None);
        let first = server(&kernel(lab.dir.path(), Manner::Obeying), vec![lab.disk("root")], Vec::new());
        assert_eq!(wish(lab, &first).await.power, PowerNow::Running);
        lab.console_has(first.id, "up\n", 1).await;
        let suspended = next(&first, |call| call.power = Power::Suspended);
        assert_eq!(wish(lab, &suspended).await.power, PowerNow::Suspended);
        lab.kill();
        suspended
    };
    let kills = at_every_point_after("vmm", beginning, async |lab, suspended| {
        let resumed = next(&suspended, |call| call.power = Power::On);
        assert_eq!(wish(lab, &resumed).await.power, PowerNow::Running);
        // What comes now has its kills in the other stories.
        lab.kill();
        lab.spawn(None);
        // A guest that follows the button is up, and it says so once for each time that it boots.
        let off = next(&resumed, |call| call.power = Power::Off { grace_secs: 60 });
        let now = wish(lab, &off).await;
        let ended = now.last_end.map(|end| end.reason);
        assert_eq!((now.power, ended), (PowerNow::Off, Some(EndReason::PowerButton)), "{}", lab.log());
        let said = persist(lab, &ReadConsole { id: resumed.id, lines: None }).await;
        assert_eq!(said, "up\n", "it booted instead of going on\n{}", lab.log());
        let kept = lab.dir.path().join(format!("state/servers/{}/suspended", resumed.id));
        assert!(!kept.exists());
        persist(lab, &ForgetServer { id: resumed.id, by: ours() }).await;
    })
    .await;
    println!("{kills} kills");
    assert!(kills >= 9, "only {kills} fault points were met");
}
