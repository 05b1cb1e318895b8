//! Whatever daemon dies, guests and their traffic go on, and the system settles by itself after the next start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::process::Command;
use std::time::Duration;
use tests::{Client, Instance, eventually, finished, ssh};

const BOOT: Duration = Duration::from_secs(150);

fn active(client: &Client, server: &str) {
    eventually(BOOT, || match client.field(&format!("server show {server}"), "status")?.as_str() {
        "ACTIVE" => Ok(()),
        other => Err(format!("{server} is {other}")),
    })
    .unwrap();
}

#[test]
fn guests_outlive_every_daemon() {
    let cloud = Instance::up("survive").unwrap();
    let tag = cloud.tag().unwrap();
    let demo = &cloud.demo();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, demo.text("keypair create mine").unwrap()).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    demo.text("server create --image ferro --flavor m1.nano --network demo --key-name mine one").unwrap();
    active(demo, "one");
    let address = demo.field("floating ip create public", "floating_ip_address").unwrap();
    demo.text(&format!("server add floating ip one {address}")).unwrap();
    eventually(BOOT, || ssh(&key, &address, "echo running > /tmp/since-boot")).unwrap();

    for daemon in ["api", "hostd", "netd", "blockd"] {
        let pid = cloud.pid(daemon).unwrap();
        finished(Command::new("kill").args(["-9", &pid.to_string()])).unwrap();
        // Without the daemon: the same boot of the guest still answers.
        eventually(BOOT, || ssh(&key, &address, "cat /tmp/since-boot")).unwrap();
        cloud.ferro("up").unwrap();
        assert_ne!(cloud.pid(daemon).unwrap(), pid, "{daemon} is back");
        eventually(BOOT, || ssh(&key, &address, "cat /tmp/since-boot")).unwrap();
        active(demo, "one");
    }

    // Daemons that die while a server is made and another is deleted.
    for (number, daemon) in ["api", "hostd", "netd", "blockd"].into_iter().enumerate() {
        demo.text(&format!("server create --image ferro --flavor m1.nano --network demo s{number}")).unwrap();
        finished(Command::new("kill").args(["-9", &cloud.pid(daemon).unwrap().to_string()])).unwrap();
        cloud.ferro("up").unwrap();
        active(demo, &format!("s{number}"));
        demo.text(&format!("server delete s{number}")).unwrap();
        finished(Command::new("kill").args(["-9", &cloud.pid(daemon).unwrap().to_string()])).unwrap();
        cloud.ferro("up").unwrap();
        eventually(BOOT, || match demo.text(&format!("server show s{number}")) {
            Ok(_) => Err(format!("s{number} is still there")),
            Err(_) => Ok(()),
        })
        .unwrap();
    }
    demo.text("server delete --wait one").unwrap();
    assert_eq!(demo.json("port list --device-owner compute:nova").unwrap(), serde_json::json!([]));
    cloud.ferro("down").unwrap();
    assert_eq!(cloud.leftovers(&tag).unwrap(), Vec::<String>::new());
}
