//! Rebuild, resize and rescue: what a server becomes, and that nothing of it is lost or left behind.

use super::crash::{crash, points};
use super::world::World;
use crate::testing::Answer;
use base::store::testing::{on_both, sqlite};
use base::store::{Query, Sql};
use serde_json::{Value, json};
use wire::host::{DiskSpec, PowerNow};

fn disks(world: &World) -> Vec<DiskSpec> {
    world.has.lock().unwrap().servers.values().next().unwrap().0.spec.disks.clone()
}

async fn ask(world: &World, id: &str, action: Value) -> Answer {
    world.call("POST", &format!("/servers/{id}/action"), Some(action)).await
}

/// A larger flavor than the first one; its id.
async fn larger(world: &World) -> String {
    let flavor = json!({"flavor": {"id": "2x", "name": "2x", "ram": 256, "vcpus": 2, "disk": 2}});
    assert_eq!(world.cloud.call("admin", "POST", "/compute/v2.1/flavors", Some(flavor)).await.status, 200);
    "2x".to_owned()
}

/// What a class of the host's resources is used for.
async fn used(world: &World, class: &str) -> i64 {
    let sql =
        "SELECT CAST(COALESCE(SUM(used), 0) AS BIGINT) AS n FROM placement_allocations WHERE class = $1";
    let row = world.cloud.app.store.row(Sql::from(sql), base::args![class]).await.unwrap().unwrap();
    row.int("n").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilt_server_has_new_disks_and_the_rest_of_its_life() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let id = world.server().await;
        let (before, port) = (disks(&world), world.show(&id).await["addresses"].clone());
        let body = json!({"rebuild": {"imageRef": world.image, "name": "anew", "metadata": {"a": "b"}}});
        let made = ask(&world, &id, body).await;
        assert_eq!((made.status, &made.json["server"]["status"]), (202, &json!("REBUILD")), "{made:?}");
        assert!(made.json["server"]["adminPass"].is_string());
        let busy = ask(&world, &id, json!({"os-stop": null})).await;
        assert_eq!(busy.status, 409, "{busy:?}");
        world.drain().await;
        let shown = world.show(&id).await;
        assert_eq!((&shown["status"], &shown["name"]), (&json!("ACTIVE"), &json!("anew")), "{shown}");
        assert_eq!((&shown["metadata"], &shown["addresses"]), (&json!({"a": "b"}), &port));
        let after = disks(&world);
        assert_ne!(before[0].path, after[0].path);
        assert_eq!(world.has.lock().unwrap().disks.len(), 1, "the old one is gone");
        // One that was off stays off.
        world.act(&id, json!({"os-stop": null})).await;
        world.act(&id, json!({"rebuild": {"imageRef": world.image}})).await;
        assert_eq!(world.show(&id).await["status"], "SHUTOFF");
        let actions = world.call("GET", &format!("/servers/{id}/os-instance-actions"), None).await;
        assert_eq!(actions.json["instanceActions"][0]["action"], "rebuild");
    })
    .await;
}

#[tokio::test]
async fn a_resized_server_waits_to_be_confirmed_or_taken_back() {
    let world = World::on(sqlite().await).await;
    let (id, flavor) = (world.server().await, larger(&world).await);
    let before = disks(&world);
    let same = ask(&world, &id, json!({"resize": {"flavorRef": "42"}})).await;
    assert_eq!(same.status, 400, "{same:?}");
    world.act(&id, json!({"resize": {"flavorRef": flavor}})).await;
    let shown = world.show(&id).await;
    assert_eq!(
        (&shown["status"], &shown["OS-EXT-STS:vm_state"]),
        (&json!("VERIFY_RESIZE"), &json!("resized"))
    );
    assert_eq!(
        (&shown["flavor"]["original_name"], &shown["OS-EXT-STS:power_state"]),
        (&json!("2x"), &json!(1))
    );
    let found = world.call("GET", "/servers?status=VERIFY_RESIZE", None).await;
    assert_eq!(found.json["servers"][0]["id"], json!(id));
    assert_eq!(world.call("GET", "/servers?status=ACTIVE", None).await.json["servers"], json!([]));
    let spec = world.has.lock().unwrap().servers.values().next().unwrap().0.spec.clone();
    assert_eq!((spec.vcpus, spec.memory.0), (2, 256));
    assert_ne!(spec.disks[0].path, before[0].path);
    assert_eq!((used(&world, "VCPU").await, used(&world, "DISK_GB").await), (2, 2));
    crate::pool::scan(&world.cloud.app).await.unwrap();
    assert_eq!(world.has.lock().unwrap().disks.len(), 2, "the old disk is kept");
    for no in [
        json!({"os-stop": null}),
        json!({"resize": {"flavorRef": "42"}}),
        json!({"rebuild": {"imageRef": world.image}}),
    ] {
        assert_eq!(ask(&world, &id, no.clone()).await.status, 409, "{no}");
    }

    world.act(&id, json!({"revertResize": null})).await;
    let shown = world.show(&id).await;
    assert_eq!((&shown["status"], &shown["flavor"]["original_name"]), (&json!("ACTIVE"), &json!("m1.nano")));
    assert_eq!(disks(&world)[0].path, before[0].path);
    assert_eq!((used(&world, "VCPU").await, world.has.lock().unwrap().disks.len()), (1, 1));

    world.act(&id, json!({"resize": {"flavorRef": flavor}})).await;
    assert_eq!(ask(&world, &id, json!({"confirmResize": null})).await.status, 204);
    world.drain().await;
    let shown = world.show(&id).await;
    assert_eq!((&shown["status"], &shown["flavor"]["original_name"]), (&json!("ACTIVE"), &json!("2x")));
    assert_eq!((used(&world, "MEMORY_MB").await, world.has.lock().unwrap().disks.len()), (256, 1));
    let limits = world.call("GET", "/limits", None).await;
    assert_eq!(limits.json["limits"]["absolute"]["totalCoresUsed"], 2);
    let down = ask(&world, &id, json!({"resize": {"flavorRef": "42"}})).await;
    assert_eq!(down.status, 400, "its disk would be smaller: {down:?}");
    // What is put aside goes with the server.
    world.act(&id, json!({"resize": {"flavorRef": "3"}})).await;
    assert_eq!(world.call("DELETE", &format!("/servers/{id}"), None).await.status, 204);
    world.drain().await;
    assert_eq!(world.leftovers(&[]).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_rescued_server_has_its_own_disk_beside_another() {
    let world = World::on(sqlite().await).await;
    let id = world.server().await;
    let own = disks(&world)[0].clone();
    let answer = ask(&world, &id, json!({"rescue": {"adminPass": "x"}})).await;
    assert_eq!((answer.status, &answer.json["adminPass"]), (200, &json!("x")), "{answer:?}");
    world.drain().await;
    let shown = world.show(&id).await;
    assert_eq!((&shown["status"], &shown["OS-EXT-STS:vm_state"]), (&json!("RESCUE"), &json!("rescued")));
    let now = disks(&world);
    assert_eq!(now.iter().map(|disk| disk.key.as_str()).collect::<Vec<_>>(), ["root", "rescued"]);
    assert!(now[0].path != own.path && now[1].path == own.path, "{now:?}");
    world.act(&id, json!({"unrescue": null})).await;
    assert_eq!(world.show(&id).await["status"], "ACTIVE");
    assert_eq!(disks(&world), [own]);
    assert_eq!(world.has.lock().unwrap().disks.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shelved_server_is_an_image_until_it_comes_back() {
    let world = World::on(sqlite().await).await;
    let id = world.server().await;
    let images = async || {
        let sql = "SELECT id FROM image_images WHERE name = 'one-shelved'";
        world.cloud.app.store.rows(Sql::from(sql), Vec::new()).await.unwrap().len()
    };
    let addresses = world.show(&id).await["addresses"].clone();
    let mut deaths = 0;
    for point in points(5) {
        assert_eq!(ask(&world, &id, json!({"shelve": null})).await.status, 202, "{point:?}");
        deaths += usize::from(crash(&world, point).await);
        let shown = world.show(&id).await;
        assert_eq!(shown["status"], "SHELVED_OFFLOADED", "{point:?}: {shown}");
        assert_eq!((used(&world, "VCPU").await, images().await), (0, 1), "{point:?}");
        crate::compute::reconcile::settle(&world.cloud.app).await.unwrap();
        {
            let has = world.has.lock().unwrap();
            assert!(has.servers.is_empty() && has.disks.is_empty() && has.snapshots.is_empty(), "{point:?}");
        }
        assert_eq!(ask(&world, &id, json!({"os-start": null})).await.status, 409);
        assert_eq!(ask(&world, &id, json!({"unshelve": null})).await.status, 202, "{point:?}");
        deaths += usize::from(crash(&world, point).await);
        let shown = world.show(&id).await;
        assert_eq!(
            (&shown["status"], &shown["addresses"]),
            (&json!("ACTIVE"), &addresses),
            "{point:?}: {shown}"
        );
        assert_eq!((used(&world, "VCPU").await, images().await), (1, 0), "{point:?}");
        assert_eq!((disks(&world).len(), world.has.lock().unwrap().disks.len()), (1, 1), "{point:?}");
    }
    assert!(deaths >= 27, "each point of five steps and of four was met, not {deaths}");
    assert_eq!(ask(&world, &id, json!({"shelve": null})).await.status, 202);
    world.drain().await;
    assert_eq!(world.call("DELETE", &format!("/servers/{id}"), None).await.status, 204);
    world.drain().await;
    assert_eq!((world.leftovers(&[]).await, images().await), (Vec::new(), 0));
}

#[tokio::test]
async fn what_fails_brings_the_old_server_back() {
    let world = World::on(sqlite().await).await;
    let (id, flavor) = (world.server().await, larger(&world).await);
    let before = disks(&world);
    // The new machine does not start; the old one does.
    world.has.lock().unwrap().fault_above = Some(128);
    world.act(&id, json!({"resize": {"flavorRef": flavor}})).await;
    let shown = world.show(&id).await;
    assert_eq!(
        (&shown["status"], &shown["flavor"]["original_name"]),
        (&json!("ACTIVE"), &json!("m1.nano")),
        "{shown}"
    );
    assert_eq!(disks(&world), before);
    assert_eq!((used(&world, "VCPU").await, world.has.lock().unwrap().disks.len()), (1, 1));
    let power = world.has.lock().unwrap().servers.values().next().unwrap().1;
    assert_eq!(power, PowerNow::Running);
    let actions = world.call("GET", &format!("/servers/{id}/os-instance-actions"), None).await;
    let last = &actions.json["instanceActions"][0];
    assert_eq!((&last["action"], &last["message"]), (&json!("resize"), &json!("Error")));

    // More than the host has, or the project may.
    let big = ask(&world, &id, json!({"resize": {"flavorRef": "4"}})).await;
    assert_eq!(big.status, 202, "{big:?}");
    world.drain().await;
    assert_eq!(world.show(&id).await["status"], "ACTIVE");
    let set = json!({"quota_set": {"cores": 1}});
    let path = format!("/compute/v2.1/os-quota-sets/{}", crate::testing::DEMO_PROJECT);
    assert_eq!(world.cloud.call("admin", "PUT", &path, Some(set)).await.status, 200);
    let over = ask(&world, &id, json!({"resize": {"flavorRef": flavor}})).await;
    assert_eq!(over.status, 403, "{over:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_is_whole_whenever_the_worker_dies() {
    let world = World::on(sqlite().await).await;
    let (id, flavor) = (world.server().await, larger(&world).await);
    let before = disks(&world);
    let mut deaths = 0;
    for point in points(5) {
        for action in [json!({"resize": {"flavorRef": flavor}}), json!({"revertResize": null})] {
            let asked = ask(&world, &id, action).await;
            assert_eq!(asked.status, 202, "{point:?}: {asked:?}");
            deaths += usize::from(crash(&world, point).await);
        }
        let shown = world.show(&id).await;
        assert_eq!(
            (&shown["status"], &shown["flavor"]["original_name"]),
            (&json!("ACTIVE"), &json!("m1.nano")),
            "{point:?}"
        );
        assert_eq!((disks(&world), used(&world, "VCPU").await), (before.clone(), 1), "{point:?}");
        assert_eq!(world.has.lock().unwrap().disks.len(), 1, "{point:?}");
    }
    assert_eq!(deaths, 30, "each point was met");
}
