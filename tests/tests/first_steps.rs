//! The newcomer's path, whole: `./ferro up`, then everything the README shows, with the unmodified client, a real guest,
//! and nothing left on the host at the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tests::{Client, Instance, eventually, finished, ssh};

const BOOT: Duration = Duration::from_secs(120);

struct Guest<'a> {
    client: &'a Client,
    key: PathBuf,
}

impl Guest<'_> {
    fn wait(&self, server: &str, status: &str) {
        eventually(BOOT, || {
            let shown = self.client.json(&format!("server show {server}"))?;
            match shown["status"].as_str() {
                Some(now) if now == status => Ok(()),
                Some("ERROR") => panic!("{server} failed: {}", shown["fault"]),
                now => Err(format!("{server} is {now:?}, not {status}")),
            }
        })
        .unwrap();
    }

    fn ssh(&self, address: &str, command: &str) -> String {
        eventually(BOOT, || ssh(&self.key, address, command)).unwrap()
    }
}

fn names(list: &Value, column: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|row| row[column].as_str().map(str::to_owned)).collect()
}

#[test]
#[allow(clippy::too_many_lines)] // One story, told in order.
fn a_newcomer_gets_a_cloud_and_leaves_nothing_behind() {
    let cloud = Instance::up("first").unwrap();
    let tag = cloud.tag().unwrap();
    // A second `up` is a quick no-op.
    assert!(cloud.ferro("up").unwrap().contains("answers at"));
    let status = cloud.ferro("status").unwrap();
    assert!(status.contains("hypervisor"), "{status}");

    let (demo, admin) = (&cloud.demo(), &cloud.admin());
    assert!(!demo.field("token issue", "id").unwrap().is_empty());
    assert!(names(&admin.json("catalog list").unwrap(), "Type").contains(&"compute".to_owned()));

    // Images, raw and qcow2.
    let folder = tempfile::tempdir().unwrap();
    let qcow2 = tests::cache().join("guest/guest.qcow2");
    let raw = folder.path().join("guest.raw");
    finished(std::process::Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&qcow2).arg(&raw))
        .unwrap();
    for (name, format, file) in [("my-raw", "raw", &raw), ("my-qcow2", "qcow2", &qcow2)] {
        let command = format!(
            "image create --disk-format {format} --container-format bare --file {} {name}",
            file.display()
        );
        demo.text(&command).unwrap();
        assert_eq!(demo.field(&format!("image show {name}"), "status").unwrap(), "active");
    }

    // Key, network, subnet, router, port, security group, floating IP.
    let key = folder.path().join("key");
    let private = demo.text("keypair create mine").unwrap();
    std::fs::write(&key, private).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for command in [
        "network create mynet",
        "subnet create --network mynet --subnet-range 10.9.8.0/24 mysubnet",
        "router create myrouter",
        "router set --external-gateway public myrouter",
        "router add subnet myrouter mysubnet",
        "security group create mygroup",
        "security group rule create --protocol icmp mygroup",
        "security group rule create --protocol tcp --dst-port 22 mygroup",
        "port create --network mynet --security-group mygroup myport",
    ] {
        demo.text(command).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    let address = demo.field("floating ip create public --port myport", "floating_ip_address").unwrap();

    // A server with user data and key: ACTIVE, console, SSH.
    let user_data = folder.path().join("user-data");
    std::fs::write(&user_data, "#!/bin/sh\necho made-by-user-data > /tmp/marker\n").unwrap();
    let guest = Guest { client: demo, key };
    demo.text(&format!(
        "server create --image my-qcow2 --flavor m1.nano --port myport --key-name mine --user-data {} one",
        user_data.display()
    ))
    .unwrap();
    guest.wait("one", "ACTIVE");
    assert!(guest.ssh(&address, "hostname").trim() == "one");
    eventually(BOOT, || ssh(&guest.key, &address, "cat /tmp/marker")).unwrap();
    let console = demo.text("console log show one").unwrap();
    assert!(console.contains("login:"), "{console}");

    // A volume into the running server, written, moved to another server, read back.
    demo.text("volume create --size 1 data").unwrap();
    eventually(BOOT, || match demo.field("volume show data", "status")?.as_str() {
        "available" => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
    demo.text("server add volume one data").unwrap();
    guest.ssh(&address, "test -b /dev/vdb");
    guest.ssh(&address, "sudo mkfs.ext4 -q /dev/vdb && sudo mount /dev/vdb /mnt && echo kept | sudo tee /mnt/file && sudo umount /mnt");
    demo.text("server remove volume one data").unwrap();
    eventually(BOOT, || ssh(&guest.key, &address, "test ! -e /dev/vdb")).unwrap();
    demo.text("server create --image my-raw --flavor m1.nano --network mynet --security-group mygroup --key-name mine two").unwrap();
    guest.wait("two", "ACTIVE");
    let second = demo.field("floating ip create public", "floating_ip_address").unwrap();
    demo.text(&format!("server add floating ip two {second}")).unwrap();
    demo.text("server add volume two data").unwrap();
    let read = guest
        .ssh(&second, "test -b /dev/vdb && sudo mount /dev/vdb /mnt && cat /mnt/file && sudo umount /mnt");
    assert_eq!(read.trim(), "kept");
    demo.text("server remove volume two data").unwrap();

    // Stop, start, reboot.
    demo.text("server stop one").unwrap();
    guest.wait("one", "SHUTOFF");
    demo.text("server start one").unwrap();
    guest.wait("one", "ACTIVE");
    guest.ssh(&address, "sudo touch /var/before-reboot && sync");
    demo.text("server reboot --hard --wait one").unwrap();
    guest.ssh(&address, "test -e /var/before-reboot");

    // A snapshot, and a server from it.
    demo.text("server image create --wait --name snap one").unwrap();
    demo.text("server delete --wait two").unwrap();
    demo.text("server create --image snap --flavor m1.nano --network mynet --security-group mygroup --key-name mine three").unwrap();
    guest.wait("three", "ACTIVE");
    demo.text(&format!("server add floating ip three {second}")).unwrap();
    guest.ssh(&second, "test -e /var/before-reboot");

    // All gone, nothing left.
    for floating in names(&demo.json("floating ip list").unwrap(), "ID") {
        demo.text(&format!("floating ip delete {floating}")).unwrap();
    }
    for command in [
        "server delete --wait one three",
        "volume delete data",
        "image delete snap my-raw my-qcow2",
        "router remove subnet myrouter mysubnet",
        "router delete myrouter",
        "port delete myport",
        "network delete mynet",
        "security group delete mygroup",
        "keypair delete mine",
    ] {
        demo.text(command).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    for list in ["server list", "volume list", "router list"] {
        let left = demo.json(list).unwrap();
        let mine =
            names(&left, "Name").into_iter().filter(|name| !name.starts_with("demo")).collect::<Vec<_>>();
        assert_eq!(mine, Vec::<String>::new(), "{list}");
    }
    cloud.ferro("down").unwrap();
    assert_eq!(cloud.leftovers(&tag).unwrap(), Vec::<String>::new());
}
