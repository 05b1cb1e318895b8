//! The worker dies at every point of every step; restarted, the end is the same and nothing is left over.

use super::world::World;
use base::store::testing::on_both;
use base::task::{Crash, CrashPoint};
use serde_json::json;

/// Every point of the first `steps` steps.
pub fn points(steps: usize) -> impl Iterator<Item = CrashPoint> {
    (0..steps).flat_map(|n| [CrashPoint::Before(n), CrashPoint::Between(n), CrashPoint::After(n)])
}

pub async fn crash(world: &World, point: CrashPoint) -> bool {
    let died = world.work(Crash::at(point)).await;
    world.drain().await;
    died
}

async fn delete(world: &World, id: &str) {
    assert_eq!(world.call("DELETE", &format!("/servers/{id}"), None).await.status, 204);
    world.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_created_whole_whenever_the_worker_dies() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let mut deaths = 0;
        for point in points(7) {
            let asked = world.ask(&json!({"config_drive": true})).await;
            let id = asked.json["server"]["id"].as_str().unwrap().to_owned();
            deaths += usize::from(crash(&world, point).await);
            let shown = world.show(&id).await;
            assert_eq!(shown["status"], "ACTIVE", "{point:?}: {shown}");
            assert_eq!(shown["addresses"]["net"].as_array().unwrap().len(), 1, "{point:?}");
            {
                let has = world.has.lock().unwrap();
                assert_eq!((has.servers.len(), has.disks.len()), (1, 2), "{point:?}");
            }
            delete(&world, &id).await;
            assert_eq!(world.leftovers(&[]).await, Vec::<String>::new(), "{point:?}");
        }
        assert_eq!(deaths, 21, "each point was met");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_fails_leaves_only_the_reason() {
    on_both(|db| async move {
        let world = World::on(db).await;
        for point in points(8) {
            world.has.lock().unwrap().fault = Some("the disk has no kernel; choose another image".to_owned());
            let asked = world.ask(&json!({})).await;
            let id = asked.json["server"]["id"].as_str().unwrap().to_owned();
            crash(&world, point).await;
            let shown = world.show(&id).await;
            assert_eq!(shown["status"], "ERROR", "{point:?}: {shown}");
            assert_eq!(shown["fault"]["message"], "the disk has no kernel; choose another image");
            let left = world.leftovers(&[]).await;
            assert_eq!(left, [format!("servers: {id}")], "{point:?}");
            world.has.lock().unwrap().fault = None;
            delete(&world, &id).await;
            assert_eq!(world.leftovers(&[]).await, Vec::<String>::new(), "{point:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_attached_and_detached_whole_whenever_the_worker_dies() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let (id, volume) = (world.server().await, world.volume().await);
        let path = format!("/servers/{id}/os-volume_attachments");
        let mut deaths = 0;
        let plugged = || {
            let has = world.has.lock().unwrap();
            let (call, _) = has.servers.values().next().unwrap();
            call.spec.disks.iter().filter(|disk| disk.key == volume).count()
        };
        for point in points(3) {
            let body = json!({"volumeAttachment": {"volumeId": volume}});
            let asked = world.call("POST", &path, Some(body)).await;
            assert_eq!(asked.status, 200, "{point:?}: {asked:?}");
            deaths += usize::from(crash(&world, point).await);
            assert_eq!(world.volume_status(&volume).await, "in-use", "{point:?}");
            assert_eq!(plugged(), 1, "{point:?}");

            let gone = world.call("DELETE", &format!("{path}/{volume}"), None).await;
            assert_eq!(gone.status, 202, "{point:?}: {gone:?}");
            deaths += usize::from(crash(&world, point).await);
            assert_eq!(world.volume_status(&volume).await, "available", "{point:?}");
            assert_eq!(plugged(), 0, "{point:?}");
            let list = world.call("GET", &path, None).await;
            assert_eq!(list.json["volumeAttachments"], json!([]), "{point:?}");
        }
        assert_eq!(deaths, 18, "each point was met");
        delete(&world, &id).await;
        assert_eq!(world.leftovers(&[&volume]).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_deleted_whole_whenever_the_worker_dies() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let volume = world.volume().await;
        let mut deaths = 0;
        for point in points(5) {
            let id = world.server().await;
            let body = json!({"volumeAttachment": {"volumeId": volume}});
            let path = format!("/servers/{id}/os-volume_attachments");
            assert_eq!(world.call("POST", &path, Some(body)).await.status, 200);
            world.drain().await;
            assert_eq!(world.call("DELETE", &format!("/servers/{id}"), None).await.status, 204);
            deaths += usize::from(crash(&world, point).await);
            assert_eq!(world.call("GET", &format!("/servers/{id}"), None).await.status, 404, "{point:?}");
            assert_eq!(world.volume_status(&volume).await, "available", "{point:?}");
            assert_eq!(world.leftovers(&[&volume]).await, Vec::<String>::new(), "{point:?}");
        }
        assert_eq!(deaths, 15, "each point was met");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_deleted_while_it_is_made_leaves_nothing() {
    on_both(|db| async move {
        let world = World::on(db).await;
        for point in points(7) {
            let asked = world.ask(&json!({"config_drive": true})).await;
            let id = asked.json["server"]["id"].as_str().unwrap().to_owned();
            world.work(Crash::at(point)).await;
            delete(&world, &id).await;
            assert_eq!(world.call("GET", &format!("/servers/{id}"), None).await.status, 404, "{point:?}");
            assert_eq!(world.leftovers(&[]).await, Vec::<String>::new(), "{point:?}");
        }
    })
    .await;
}
