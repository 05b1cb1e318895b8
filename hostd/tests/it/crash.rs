//! `hostd` is killed at every step of a story, once each, and the story must end the same.

use crate::guest::{Manner, kernel};
use crate::lab::{Lab, next, ours, server};
use std::time::{Duration, Instant};
use wire::host::{EnsureServer, ForgetServer, Observed, Power, PowerNow, Reboots};
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

/// Runs a story with a kill at fault point 1, 2, 3... until one passes without; returns how many kills there were.
async fn at_every_point<F>(hypervisor: &str, story: F) -> u64
where
    F: AsyncFn(&mut Lab),
{
    for point in 1..200 {
        let mut lab = Lab::new(hypervisor, "");
        lab.spawn(Some(point));
        story(&mut lab).await;
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
        let suspended = next(&paused, |call| call.power = Power::Suspended);
        let now = wish(lab, &suspended).await;
        assert_eq!((now.power, now.disks.len()), (PowerNow::Suspended, 0));
        let resumed = next(&suspended, |call| call.power = Power::On);
        assert_eq!(wish(lab, &resumed).await.power, PowerNow::Running);
        let paused = resumed;
        let rebooted = next(&paused, |call| {
            call.power = Power::On;
            call.reboots = Reboots { count: 1, grace_secs: 0 };
        });
        let now = wish(lab, &rebooted).await;
        assert_eq!((now.power, now.reboots), (PowerNow::Running, 1));
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
