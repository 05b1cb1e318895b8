//! What users and guests see.

use super::world::World;
use crate::compute::{inner, reconcile};
use base::store::testing::{on_both, sqlite};
use serde_json::{Value, json};
use wire::host::PowerNow;
use wire::ids::{PortId, ServerId};
use wire::metadata::ReadMetadata;

#[test]
fn every_operation_is_declared_whole() {
    assert_eq!(api_kit::coverage::faults(&[crate::compute::service()]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_lives_from_create_to_delete() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let id = world.server().await;
        let shown = world.show(&id).await;
        assert_eq!(shown["status"], "ACTIVE", "{shown}");
        assert_eq!(shown["flavor"]["original_name"], "m1.nano");
        assert_eq!(shown["security_groups"], json!([{"name": "default"}]));
        assert_eq!(shown["addresses"]["net"][0]["OS-EXT-IPS:type"], "fixed");
        assert!(shown.get("OS-EXT-SRV-ATTR:host").is_none(), "members do not see hosts: {shown}");
        let old = world.call_at("2.1", "GET", &format!("/servers/{id}"), None).await.json;
        assert_eq!(old["server"]["flavor"]["id"], "42");
        assert!(old["server"].get("description").is_none());
        assert_eq!(
            world.cloud.call("other", "GET", &format!("/compute/v2.1/servers/{id}"), None).await.status,
            404
        );

        for (action, status) in [
            (json!({"os-stop": null}), "SHUTOFF"),
            (json!({"os-start": null}), "ACTIVE"),
            (json!({"pause": null}), "PAUSED"),
            (json!({"unpause": null}), "ACTIVE"),
            (json!({"suspend": null}), "SUSPENDED"),
            (json!({"resume": null}), "ACTIVE"),
            (json!({"reboot": {"type": "HARD"}}), "ACTIVE"),
        ] {
            world.act(&id, action.clone()).await;
            assert_eq!(world.show(&id).await["status"], status, "{action}");
        }
        assert_eq!(world.has.lock().unwrap().servers.values().next().unwrap().0.reboots.count, 1);
        let again =
            world.call("POST", &format!("/servers/{id}/action"), Some(json!({"os-start": null}))).await;
        assert_eq!(again.status, 409);
        assert!(again.json["conflictingRequest"]["message"].as_str().unwrap().contains("vm_state active"));
        let read = json!({"os-getConsoleOutput": {"length": 3}});
        let log = world.call("POST", &format!("/servers/{id}/action"), Some(read)).await;
        assert!(log.json["output"].as_str().unwrap().starts_with("Some(3) lines"));

        let made = world
            .call("POST", &format!("/servers/{id}/action"), Some(json!({"createImage": {"name": "copy"}})))
            .await;
        assert_eq!(made.status, 202, "{made:?}");
        world.drain().await;
        let image = made.json["image_id"].as_str().unwrap();
        assert_eq!(crate::image::inner::by_id(&world.cloud.app, image).await.unwrap().status, "active");
        assert!(world.has.lock().unwrap().snapshots.is_empty());

        let named = world.call("GET", "/servers?name=^o.e$&status=ACTIVE", None).await;
        assert_eq!(named.json["servers"][0]["id"], json!(id), "{named:?}");
        assert_eq!(world.call("GET", "/servers?name=nobody", None).await.json["servers"], json!([]));
        assert_eq!(world.call("GET", "/servers?nonsense=1", None).await.status, 400);

        let actions = world.call("GET", &format!("/servers/{id}/os-instance-actions"), None).await;
        let names: Vec<&str> = actions.json["instanceActions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["action"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["createImage", "reboot", "resume", "suspend", "unpause", "pause", "start", "stop", "create"]
        );

        assert_eq!(world.call("DELETE", &format!("/servers/{id}"), None).await.status, 204);
        world.drain().await;
        assert_eq!(world.call("GET", &format!("/servers/{id}"), None).await.status, 404);
        assert_eq!(world.leftovers(&[]).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_made() {
    let world = World::on(sqlite().await).await;
    let small = json!({"flavor": {"id": "small", "name": "small", "ram": 64, "vcpus": 1, "disk": 1}});
    let made = world.cloud.call("admin", "POST", "/compute/v2.1/flavors", Some(small)).await;
    assert_eq!(made.status, 200, "{made:?}");
    for (more, words) in [
        (json!({"name": "x".repeat(10_000)}), "too long"),
        (json!({"flavorRef": "none"}), "Flavor none could not be found."),
        (json!({"imageRef": "d3a1a3a7-1111-4222-8333-123456789abc"}), "Can not find requested image"),
        (json!({"user_data": "%%%"}), "base 64"),
        (json!({"user_data": "A".repeat(70_000)}), "User data too large"),
        (json!({"key_name": "nobody"}), "Invalid key_name provided."),
        (json!({"availability_zone": "mars"}), "availability zone is not available"),
        (json!({"min_count": 3, "max_count": 2}), "min_count must be <= max_count"),
        (json!({"unknown": 1}), "unknown"),
        (json!({"security_groups": [{"name": "nothere"}]}), "nothere"),
    ] {
        let answer = world.ask(&more).await;
        let text = answer.json["badRequest"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, 400, "{words}: {:?}", answer.json);
        assert!(text.contains(words), "{words}: {}", text.chars().take(300).collect::<String>());
    }
    assert_eq!(world.leftovers(&[]).await, Vec::<String>::new());

    // 8192 MiB less 512 for the host; a larger flavor passes the quota but finds no room.
    let big = world.ask(&json!({"flavorRef": "4"})).await;
    assert_eq!(big.status, 202, "{big:?}");
    world.drain().await;
    let shown = world.show(big.json["server"]["id"].as_str().unwrap()).await;
    assert_eq!(shown["status"], "ERROR");
    let why = shown["fault"]["message"].as_str().unwrap();
    assert!(
        why.contains("No valid host was found. Host host-1: needs 8192 MB of memory, 7680 MB free"),
        "{why}"
    );

    let over = world.ask(&json!({"min_count": 30})).await;
    assert_eq!(over.status, 403);
    let why = over.json["forbidden"]["message"].as_str().unwrap();
    assert!(why.starts_with("Quota exceeded for instances: Requested 30, but already used 1 of 10"), "{why}");
}

#[tokio::test]
async fn what_the_host_does_is_what_users_see() {
    let world = World::on(sqlite().await).await;
    let app = world.cloud.app.clone();
    let id = world.server().await;
    let server: ServerId = id.parse().unwrap();
    // The guest powers itself off.
    world.has.lock().unwrap().servers.get_mut(&server).unwrap().1 = PowerNow::Off;
    reconcile::settle(&app).await.unwrap();
    assert_eq!(world.show(&id).await["status"], "SHUTOFF");
    // The host forgets everything, and knows a server that nobody else does.
    let lost = {
        let mut has = world.has.lock().unwrap();
        let (mut call, power) = has.servers.remove(&server).unwrap();
        call.id = ServerId::new();
        has.servers.insert(call.id, (call.clone(), power));
        call.id
    };
    reconcile::settle(&app).await.unwrap();
    let has = world.has.lock().unwrap();
    assert!(has.servers.contains_key(&server) && !has.servers.contains_key(&lost));
    assert_eq!(has.servers[&server].1, PowerNow::Off, "it was off and stays off");
}

#[tokio::test]
async fn the_pools_collector_leaves_servers_disks_alone() {
    let world = World::on(sqlite().await).await;
    world.server().await;
    let before = world.has.lock().unwrap().disks.clone();
    assert!(!before.is_empty());
    world.has.lock().unwrap().disks.insert(wire::ids::DiskId::new());
    crate::pool::scan(&world.cloud.app).await.unwrap();
    assert_eq!(world.has.lock().unwrap().disks, before);
}

#[tokio::test]
async fn guests_read_who_they_are() {
    let world = World::on(sqlite().await).await;
    let made = world.call_at("2.1", "POST", "/os-keypairs", Some(json!({"keypair": {"name": "k"}}))).await;
    assert_eq!(made.status, 200, "{made:?}");
    let key = made.json["keypair"]["public_key"].as_str().unwrap().to_owned();
    assert!(made.json["keypair"]["private_key"].as_str().unwrap().contains("PRIVATE KEY"));
    let asked = world
        .ask(&json!({"key_name": "k", "user_data": "IyEvYmluL3NoCg==", "metadata": {"a": "b"},
        "config_drive": true, "name": "Big One"}))
        .await;
    assert_eq!(asked.status, 202, "{asked:?}");
    world.drain().await;
    let server: ServerId = asked.json["server"]["id"].as_str().unwrap().parse().unwrap();
    let from = async |port: PortId, path: &str| {
        let request = ReadMetadata { server, port, path: path.to_owned() };
        let reply = inner::metadata(&world.cloud.app, request).await;
        (reply.status, String::from_utf8(reply.body).unwrap())
    };
    let own = world.has.lock().unwrap().servers[&server].0.spec.nics[0].port;
    let read = async |path: &str| from(own, path).await;
    // Another's port that names this server is answered like no server at all.
    let body =
        json!({"port": {"network_id": world.network, "device_id": server, "device_owner": "compute:nova"}});
    let foreign = world.cloud.call("demo", "POST", "/network/v2.0/ports", Some(body)).await;
    assert_eq!(foreign.status, 201, "{foreign:?}");
    let foreign: PortId = foreign.json["port"]["id"].as_str().unwrap().parse().unwrap();
    for path in ["/openstack/latest/user_data", "/latest/user-data", "/latest/meta-data/instance-id"] {
        assert_eq!(from(foreign, path).await, (404, "404 Not Found".to_owned()), "{path}");
    }
    let meta: Value = serde_json::from_str(&read("/openstack/latest/meta_data.json").await.1).unwrap();
    assert_eq!(meta["uuid"], json!(server));
    assert_eq!(meta["hostname"], "big-one");
    assert_eq!(meta["meta"], json!({"a": "b"}));
    assert_eq!(meta["public_keys"]["k"], json!(key));
    assert_eq!(read("/openstack/2018-08-27/user_data").await, (200, "#!/bin/sh\n".to_owned()));
    let network: Value = serde_json::from_str(&read("/openstack/latest/network_data.json").await.1).unwrap();
    assert_eq!(network["links"].as_array().unwrap().len(), 1);
    assert!(read("/latest/meta-data/").await.1.contains("public-keys/"));
    assert_eq!(read("/latest/meta-data/public-keys/").await.1, "0=k");
    assert_eq!(read("/2009-04-04/meta-data/public-keys/0/openssh-key").await.1, key);
    assert!(read("/latest/meta-data/local-ipv4").await.1.starts_with("10.1.0."));
    assert_eq!(read("/latest/user-data").await.1, "#!/bin/sh\n");
    assert_eq!(read("/latest/meta-data/../../etc/passwd").await.0, 404);
    assert_eq!(read("/openstack/2030-01-01/meta_data.json").await.0, 404);
    let disks = &world.has.lock().unwrap().servers[&server].0.spec.disks.clone();
    assert_eq!(disks.iter().map(|disk| disk.key.as_str()).collect::<Vec<_>>(), ["root", "config"]);
    assert!(disks[1].read_only);
}

#[tokio::test]
async fn interfaces_come_and_go() {
    let world = World::on(sqlite().await).await;
    let id = world.server().await;
    let path = format!("/servers/{id}/os-interface");
    let body = json!({"interfaceAttachment": {"net_id": world.network}});
    let made = world.call("POST", &path, Some(body)).await;
    assert_eq!(made.status, 200, "{made:?}");
    world.drain().await;
    let port = made.json["interfaceAttachment"]["port_id"].as_str().unwrap().to_owned();
    let nics = || world.has.lock().unwrap().servers.values().next().unwrap().0.spec.nics.len();
    assert_eq!(nics(), 2);
    assert_eq!(world.call("DELETE", &format!("{path}/{port}"), None).await.status, 202);
    world.drain().await;
    assert_eq!(nics(), 1);
    assert_eq!(
        world.call("GET", &path, None).await.json["interfaceAttachments"].as_array().unwrap().len(),
        1
    );
}
