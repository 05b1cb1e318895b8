//! What reaches the machine beyond its size, and what it tells.

use super::world::World;
use crate::testing::ADMIN_PROJECT;
use base::store::testing::sqlite;
use serde_json::{Value, json};
use wire::host::Bite;
use wire::machine::{Limit, Topology};

async fn admin(world: &World, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let headers = [("openstack-api-version", "compute latest"), ("content-type", "application/json")];
    let body = body.map_or_else(bytes::Bytes::new, |body| body.to_string().into());
    let answer = world.cloud.call_with("admin", method, path, &headers, body).await;
    (answer.status, answer.json)
}

/// Makes a flavor with these extra specs; its id.
async fn flavor(world: &World, specs: Value) -> String {
    let flavor = json!({"flavor": {"id": "own", "name": "own", "ram": 128, "vcpus": 2, "disk": 1}});
    assert_eq!(admin(world, "POST", "/compute/v2.1/flavors", Some(flavor)).await.0, 200);
    let path = "/compute/v2.1/flavors/own/os-extra_specs";
    let (status, said) = admin(world, "POST", path, Some(json!({"extra_specs": specs}))).await;
    assert_eq!(status, 200, "{said}");
    "own".to_owned()
}

#[tokio::test]
async fn flavors_and_volume_types_limit_what_a_server_may_move() {
    let world = World::on(sqlite().await).await;
    let specs = json!({"quota:disk_total_bytes_sec": "1000", "quota:vif_inbound_average": "2",
        "hw:watchdog_action": "pause", "hw:cpu_sockets": "1"});
    let flavor = flavor(&world, specs).await;
    let path = "/compute/v2.1/flavors/own/os-extra_specs";
    for wrong in [json!({"quota:disk_total_bytes_sec": "x"}), json!({"hw:nonsense": "1"})] {
        let (status, said) = admin(&world, "POST", path, Some(json!({"extra_specs": wrong}))).await;
        assert_eq!(status, 400, "{said}");
    }

    // A volume of a type with QoS specs.
    let volume = format!("/volume/v3/{ADMIN_PROJECT}");
    let qos = json!({"qos_specs": {"name": "slow", "consumer": "front-end", "total_iops_sec_per_gb": "30", "own": 1}});
    let (status, qos) = admin(&world, "POST", &format!("{volume}/qos-specs"), Some(qos)).await;
    assert_eq!((status, &qos["qos_specs"]["specs"]["own"]), (200, &json!("1")), "{qos}");
    let qos = qos["qos_specs"]["id"].as_str().unwrap().to_owned();
    let kind = json!({"volume_type": {"name": "bronze"}});
    let (status, kind) = admin(&world, "POST", &format!("{volume}/types"), Some(kind)).await;
    assert_eq!(status, 200, "{kind}");
    let kind = kind["volume_type"]["id"].as_str().unwrap().to_owned();
    let associate = format!("{volume}/qos-specs/{qos}/associate?vol_type_id={kind}");
    assert_eq!(admin(&world, "GET", &associate, None).await.0, 202);
    let (_, listed) = admin(&world, "GET", &format!("{volume}/qos-specs/{qos}/associations"), None).await;
    assert_eq!(listed["qos_associations"][0]["id"], json!(kind));
    let demo = format!("/volume/v3/{}", crate::testing::DEMO_PROJECT);
    let body = json!({"volume": {"size": 2, "volume_type": "bronze"}});
    let made = world.cloud.call("demo", "POST", &format!("{demo}/volumes"), Some(body)).await;
    assert_eq!((made.status, &made.json["volume"]["volume_type"]), (202, &json!("bronze")), "{made:?}");
    world.drain().await;
    let id = made.json["volume"]["id"].as_str().unwrap();

    let asked = world.ask(&json!({"flavorRef": flavor})).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    world.drain().await;
    let server = asked.json["server"]["id"].as_str().unwrap();
    let body = json!({"volumeAttachment": {"volumeId": id}});
    assert_eq!(
        world.call("POST", &format!("/servers/{server}/os-volume_attachments"), Some(body)).await.status,
        200
    );
    world.drain().await;
    let spec = world.has.lock().unwrap().servers.values().next().unwrap().0.spec.clone();
    assert_eq!(spec.disks[0].limits.bytes, Some(Limit { per_second: 1000, burst: 1000 }));
    assert_eq!(spec.disks[1].limits.operations, Some(Limit { per_second: 60, burst: 60 }));
    assert_eq!(spec.disks[1].limits.bytes, None, "a flavor's limits are for the server's own disks");
    assert_eq!(spec.nics[0].limits.to_guest.bytes, Some(Limit { per_second: 2000, burst: 2000 }));
    assert_eq!(spec.hardware.watchdog, Some(Bite::Pause));
    assert_eq!(spec.hardware.topology, Some(Topology { sockets: 1, cores: 2, threads: 1 }));

    // What is used is not taken away.
    let answer = admin(&world, "DELETE", &format!("{volume}/qos-specs/{qos}"), None).await;
    assert_eq!(answer.0, 400, "{answer:?}");
    assert_eq!(admin(&world, "DELETE", &format!("{volume}/types/{kind}"), None).await.0, 400);
    let keys = Some(json!({"keys": ["own"]}));
    assert_eq!(admin(&world, "PUT", &format!("{volume}/qos-specs/{qos}/delete_keys"), keys).await.0, 202);
    let (_, shown) = admin(&world, "GET", &format!("{volume}/qos-specs/{qos}"), None).await;
    assert_eq!(shown["qos_specs"]["specs"], json!({"total_iops_sec_per_gb": "30"}));
    assert_eq!(admin(&world, "DELETE", &format!("{volume}/qos-specs/{qos}?force=true"), None).await.0, 202);
    let (_, shown) = admin(&world, "GET", &format!("{volume}/types/{kind}"), None).await;
    assert_eq!(shown["volume_type"]["qos_specs_id"], Value::Null);
}

#[tokio::test]
async fn what_no_host_can_give_is_refused_before_anything_is_made() {
    let world = World::on(sqlite().await).await;
    let flavor = flavor(&world, json!({"hw:cpu_policy": "dedicated"})).await;
    let asked = world.ask(&json!({"flavorRef": flavor})).await;
    assert_eq!(asked.status, 400, "{asked:?}");
    let why = asked.json["badRequest"]["message"].as_str().unwrap();
    assert!(why.contains("hw:cpu_policy=dedicated"), "{why}");
    assert_eq!(world.leftovers(&[]).await, Vec::<String>::new());
}

#[tokio::test]
async fn figures_of_a_machine_are_for_administrators_in_either_shape() {
    let world = World::on(sqlite().await).await;
    let id = world.server().await;
    let path = format!("/compute/v2.1/servers/{id}/diagnostics");
    assert_eq!(world.cloud.call("demo", "GET", &path, None).await.status, 403);
    let old = world.cloud.call("admin", "GET", &path, None).await;
    assert_eq!((old.status, &old.json["cpu0_time"]), (200, &json!(5)), "{old:?}");
    assert_eq!((&old.json["vda_read"], &old.json["memory"]), (&json!(7), &json!(128 << 10)));
    let (status, new) = admin(&world, "GET", &path, None).await;
    assert_eq!((status, &new["state"], &new["hypervisor"]), (200, &json!("running"), &json!("kvm")), "{new}");
    assert_eq!((&new["num_disks"], &new["disk_details"][0]["read_bytes"]), (&json!(1), &json!(7)));
    assert_eq!(new["memory_details"], json!({"maximum": 128, "used": null}));
    world.act(&id, json!({"os-stop": null})).await;
    assert_eq!(world.cloud.call("admin", "GET", &path, None).await.status, 409);
}
