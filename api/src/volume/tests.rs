use super::inner;
use crate::app;
use crate::object::fake::Fake;
use crate::testing::{ADMIN_PROJECT, Answer, Cloud, DEMO_PROJECT, caller};
use base::CancellationToken;
use base::task::{Crash, CrashPoint, Workers};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::ids::{DiskId, ServerId, SnapshotId};

const DEADLINE: Duration = Duration::from_secs(20);

fn at(path: &str) -> String {
    format!("/volume/v3/{DEMO_PROJECT}{path}")
}

async fn cloud() -> (Cloud, Fake) {
    let (cloud, fake) = (Cloud::new().await, Fake::default());
    fake.serve(&cloud);
    (cloud, fake)
}

async fn create(cloud: &Cloud, fields: Value) -> Answer {
    cloud.call("demo", "POST", &at("/volumes"), Some(json!({"volume": fields}))).await
}

fn id(answer: &Answer, kind: &str) -> String {
    answer.json[kind]["id"].as_str().unwrap_or_else(|| panic!("{:?}", answer.json)).to_owned()
}

async fn status(cloud: &Cloud, path: &str, kind: &str) -> String {
    let answer = cloud.call("demo", "GET", &at(path), None).await;
    if answer.status == 404 {
        return "gone".to_owned();
    }
    answer.json[kind]["status"].as_str().unwrap_or_default().to_owned()
}

async fn wait(cloud: &Cloud, path: &str, kind: &str, wanted: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        let now = status(cloud, path, kind).await;
        if now == wanted {
            return;
        }
        assert!(Instant::now() < end, "{path} stays {now}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn volume(cloud: &Cloud, gib: u64) -> String {
    let id = id(&create(cloud, json!({"size": gib, "name": "v"})).await, "volume");
    wait(cloud, &format!("/volumes/{id}"), "volume", "available").await;
    id
}

async fn action(cloud: &Cloud, token: &str, id: &str, body: Value) -> Answer {
    let project = if token == "admin" { ADMIN_PROJECT } else { DEMO_PROJECT };
    cloud.call(token, "POST", &format!("/volume/v3/{project}/volumes/{id}/action"), Some(body)).await
}

#[test]
fn declarations_are_whole() {
    assert_eq!(api_kit::coverage::faults(&[super::service()]), Vec::<String>::new());
}

#[tokio::test]
async fn volumes_snapshots_and_copies_live_and_go() {
    let (cloud, fake) = cloud().await;
    cloud.start();
    let first = volume(&cloud, 2).await;
    let grown = action(&cloud, "demo", &first, json!({"os-extend": {"new_size": 3}})).await;
    assert_eq!(grown.status, 202, "{:?}", grown.json);
    wait(&cloud, &format!("/volumes/{first}"), "volume", "available").await;
    assert_eq!(fake.with(|held| held.disks[&first.parse().unwrap()]), 3 << 30);
    let shrunk = action(&cloud, "demo", &first, json!({"os-extend": {"new_size": 1}})).await;
    assert_eq!(shrunk.status, 400);

    let body = json!({"snapshot": {"volume_id": first, "name": "s"}});
    let snapshot = id(&cloud.call("demo", "POST", &at("/snapshots"), Some(body)).await, "snapshot");
    wait(&cloud, &format!("/snapshots/{snapshot}"), "snapshot", "available").await;
    let delete = cloud.call("demo", "DELETE", &at(&format!("/volumes/{first}")), None).await;
    assert_eq!(delete.status, 400, "it has a snapshot");

    let small = create(&cloud, json!({"size": 1, "snapshot_id": snapshot})).await;
    assert_eq!(small.status, 400);
    let copy = id(&create(&cloud, json!({"snapshot_id": snapshot})).await, "volume");
    wait(&cloud, &format!("/volumes/{copy}"), "volume", "available").await;
    let shown = cloud.call("demo", "GET", &at(&format!("/volumes/{copy}")), None).await.json;
    assert_eq!(
        (shown["volume"]["size"].as_i64(), shown["volume"]["snapshot_id"].as_str()),
        (Some(3), Some(&*snapshot))
    );

    assert_eq!(cloud.call("demo", "DELETE", &at(&format!("/snapshots/{snapshot}")), None).await.status, 202);
    wait(&cloud, &format!("/snapshots/{snapshot}"), "snapshot", "gone").await;
    for one in [&first, &copy] {
        assert_eq!(cloud.call("demo", "DELETE", &at(&format!("/volumes/{one}")), None).await.status, 202);
        wait(&cloud, &format!("/volumes/{one}"), "volume", "gone").await;
    }
    assert!(fake.with(|held| held.disks.is_empty() && held.snapshots.is_empty()));
}

#[tokio::test]
async fn a_volume_of_an_image_is_bootable_and_becomes_an_image() {
    let (cloud, _fake) = cloud().await;
    cloud.start();
    let body = json!({"name": "i", "disk_format": "qcow2", "container_format": "bare", "hw": "x"});
    let image = cloud.call("demo", "POST", "/image/v2/images", Some(body)).await;
    let image = image.json["id"].as_str().unwrap().to_owned();
    assert_eq!(create(&cloud, json!({"size": 2, "imageRef": image})).await.status, 400, "not active");
    let headers = [("content-type", "application/octet-stream")];
    let file = format!("/image/v2/images/{image}/file");
    assert_eq!(cloud.call_with("demo", "PUT", &file, &headers, "QFI".into()).await.status, 204);
    let small = create(&cloud, json!({"size": 1, "imageRef": image})).await;
    assert!(
        small.status == 400 && small.json["badRequest"]["message"].as_str().unwrap().contains("2GB"),
        "{:?}",
        small.json
    );
    let id = id(&create(&cloud, json!({"size": 2, "imageRef": image})).await, "volume");
    wait(&cloud, &format!("/volumes/{id}"), "volume", "available").await;
    let shown = cloud.call("demo", "GET", &at(&format!("/volumes/{id}")), None).await.json;
    assert_eq!(
        (shown["volume"]["bootable"].as_str(), shown["volume"]["volume_image_metadata"]["hw"].as_str()),
        (Some("true"), Some("x"))
    );

    let upload = json!({"os-volume_upload_image": {"image_name": "back", "disk_format": "qcow2"}});
    let answer = action(&cloud, "demo", &id, upload).await;
    assert_eq!(answer.status, 202, "{:?}", answer.json);
    let new = answer.json["os-volume_upload_image"]["image_id"].as_str().unwrap().to_owned();
    wait(&cloud, &format!("/volumes/{id}"), "volume", "available").await;
    let made = cloud.call("demo", "GET", &format!("/image/v2/images/{new}"), None).await.json;
    assert_eq!(
        (made["status"].as_str(), made["hw"].as_str(), made["min_disk"].as_i64()),
        (Some("active"), Some("x"), Some(2))
    );
}

#[tokio::test]
async fn attaching_goes_through_its_states_and_repeats_harmlessly() {
    let (cloud, _fake) = cloud().await;
    cloud.start();
    let id = volume(&cloud, 1).await;
    let (app, demo) = (&cloud.app, caller("demo", DEMO_PROJECT, &["member"]));
    let (server, rival) = (ServerId::new(), ServerId::new());
    let path = format!("/volumes/{id}");
    let now = async || status(&cloud, &path, "volume").await;
    let stranger = caller("other", "p", &["member"]);
    assert_eq!(inner::reserve(app, &stranger, &id, server).await.unwrap_err().status, 404);
    let one = inner::reserve(app, &demo, &id, server).await.unwrap();
    assert_eq!(inner::reserve(app, &demo, &id, server).await.unwrap(), one);
    assert_eq!(inner::reserve(app, &demo, &id, rival).await.unwrap_err().status, 400);
    assert_eq!(now().await, "reserved");
    let exported = inner::export(app, &one).await.unwrap();
    assert_eq!((exported.disk.key.as_str(), exported.disk.serial.len()), (id.as_str(), 20));
    for _ in 0..2 {
        inner::complete(app, &one, "/dev/vdb", "host-1").await.unwrap();
    }
    assert_eq!(now().await, "in-use");
    let shown = cloud.call("demo", "GET", &at(&path), None).await.json;
    assert_eq!(shown["volume"]["attachments"][0]["server_id"], server.to_string());
    assert_eq!(cloud.call("demo", "DELETE", &at(&path), None).await.status, 400);
    let old = cloud.call("demo", "GET", &at("/attachments"), None).await;
    assert_eq!(old.status, 404, "attachments came with 3.27");
    let headers = [("openstack-api-version", "volume 3.27")];
    let listed = cloud.call_with("demo", "GET", &at("/attachments"), &headers, Default::default()).await;
    assert_eq!(listed.json["attachments"][0]["id"], one, "{:?}", listed.json);
    inner::begin_detach(app, &one).await.unwrap();
    assert_eq!(now().await, "detaching");
    for _ in 0..2 {
        inner::release(app, &one).await.unwrap();
    }
    assert_eq!(now().await, "available");
}

#[tokio::test]
async fn quotas_and_bad_requests_are_answered_with_reasons() {
    let (cloud, fake) = cloud().await;
    let set = json!({"quota_set": {"volumes": 1, "gigabytes": 5}});
    let path = at(&format!("/os-quota-sets/{DEMO_PROJECT}"));
    assert_eq!(cloud.call("demo", "PUT", &path, Some(set.clone())).await.status, 403);
    let path = format!("/volume/v3/{ADMIN_PROJECT}/os-quota-sets/{DEMO_PROJECT}");
    assert_eq!(cloud.call("admin", "PUT", &path, Some(set)).await.status, 200);
    let over = create(&cloud, json!({"size": 6})).await;
    assert_eq!(over.status, 413, "{:?}", over.json);
    assert!(over.json["overLimit"]["message"].as_str().unwrap().contains("gigabytes"));
    assert_eq!(create(&cloud, json!({"size": 1})).await.status, 202);
    assert_eq!(create(&cloud, json!({"size": 1})).await.status, 413);
    for (fields, code) in [
        (json!({}), 400),
        (json!({"size": 0}), 400),
        (json!({"size": "x"}), 400),
        (json!({"size": 1, "name": "x".repeat(10_000)}), 400),
        (json!({"size": 1, "availability_zone": "moon"}), 400),
        (json!({"size": 1, "volume_type": "gold"}), 404),
        (json!({"size": 1, "snapshot_id": "nothing"}), 404),
        (json!({"size": 1, "source_volid": "nothing"}), 404),
        (json!({"size": 1, "imageRef": "nothing"}), 400),
        (json!({"size": 1, "imageRef": "a", "snapshot_id": "b"}), 400),
    ] {
        let answer = create(&cloud, fields.clone()).await;
        assert_eq!(answer.status, code, "{fields}: {:?}", answer.json);
    }
    assert!(fake.with(|held| held.disks.is_empty()), "no worker runs");
}

/// Works until nothing is live, or until the crash.
async fn work(cloud: &Cloud, crash: Arc<Crash>) {
    let end = CancellationToken::new();
    let workers: Workers<app::App> = app::workers(cloud.app.tasks.clone()).crashing(crash.clone());
    let running = workers.run(cloud.app.clone(), "node".into(), 2, end.clone());
    let idle = async {
        let sql = "SELECT id FROM tasks WHERE state IN ('live', 'undoing')";
        while base::store::Query::row(&cloud.app.store, sql, Vec::new()).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        end.cancel();
    };
    let both = async {
        tokio::select! { ((), ()) = async { tokio::join!(running, idle) } => (), () = crash.happened() => () }
    };
    tokio::time::timeout(DEADLINE, both).await.expect("the queue drains");
}

/// Dies at every point of every step of making, snapshotting and deleting a volume; what is left is always the same.
#[tokio::test]
async fn a_crash_at_any_step_ends_in_the_right_state_with_nothing_left() {
    let (cloud, fake) = cloud().await;
    for operation in ["create", "create-fails", "snapshot", "extend", "delete", "delete-while-creating"] {
        for number in 0.. {
            let mut died = false;
            for point in [CrashPoint::Before(number), CrashPoint::Between(number), CrashPoint::After(number)]
            {
                let ready = operation != "create" && !operation.starts_with("create-");
                let fields = match operation {
                    "create-fails" => json!({"size": 1, "source_volid": volume_now(&cloud).await}),
                    _ => json!({"size": 1}),
                };
                let source = fields["source_volid"].as_str().map(str::to_owned);
                let id = id(&create(&cloud, fields).await, "volume");
                let path = format!("/volumes/{id}");
                let mut snapshot = None;
                if let Some(source) = &source {
                    // The source's disk is lost behind the service's back: the step cannot succeed.
                    fake.with(|held| held.disks.remove(&source.parse().unwrap()));
                }
                if ready && operation != "delete-while-creating" {
                    work(&cloud, Arc::default()).await;
                }
                match operation {
                    "snapshot" => {
                        let body = json!({"snapshot": {"volume_id": id}});
                        let answer = cloud.call("demo", "POST", &at("/snapshots"), Some(body)).await;
                        snapshot = Some(self::id(&answer, "snapshot"));
                    }
                    "extend" => {
                        let answer = action(&cloud, "demo", &id, json!({"os-extend": {"new_size": 2}})).await;
                        assert_eq!(answer.status, 202);
                    }
                    "delete" => {
                        assert_eq!(cloud.call("demo", "DELETE", &at(&path), None).await.status, 202);
                    }
                    "delete-while-creating" => {
                        let answer = action(&cloud, "admin", &id, json!({"os-force_delete": {}})).await;
                        assert_eq!(answer.status, 202, "{:?}", answer.json);
                    }
                    _ => (),
                }
                let crash = Crash::at(point);
                work(&cloud, crash.clone()).await;
                died |= crash.died();
                work(&cloud, Arc::default()).await;
                let wanted = match operation {
                    "create-fails" => "error",
                    "delete" | "delete-while-creating" => "gone",
                    _ => "available",
                };
                assert_eq!(status(&cloud, &path, "volume").await, wanted, "{operation} {point:?}");
                let disk = fake.with(|held| held.disks.get(&id.parse().unwrap()).copied());
                let gib = match operation {
                    "create-fails" | "delete" | "delete-while-creating" => None,
                    "extend" => Some(2 << 30),
                    _ => Some(1 << 30),
                };
                assert_eq!(disk, gib, "{operation} {point:?}");
                if let Some(snapshot) = snapshot {
                    let path = format!("/snapshots/{snapshot}");
                    assert_eq!(status(&cloud, &path, "snapshot").await, "available");
                    assert_eq!(cloud.call("demo", "DELETE", &at(&path), None).await.status, 202);
                    work(&cloud, Arc::default()).await;
                }
                for leftover in source.iter().chain([&id]) {
                    cloud.call("demo", "DELETE", &at(&format!("/volumes/{leftover}")), None).await;
                }
                work(&cloud, Arc::default()).await;
                let held = fake.with(|held| (held.disks.len(), held.snapshots.len()));
                assert_eq!(held, (0, 0), "{operation} {point:?} left something");
            }
            if !died {
                assert!(number >= 1, "{operation} had no step");
                break;
            }
        }
    }
}

/// A volume, made at once.
async fn volume_now(cloud: &Cloud) -> String {
    let id = id(&create(cloud, json!({"size": 1})).await, "volume");
    work(cloud, Arc::default()).await;
    id
}

#[tokio::test]
async fn the_path_names_the_callers_project_and_lists_are_filtered_before_they_are_cut() {
    let (cloud, _fake) = cloud().await;
    let made = create(&cloud, json!({"size": 1, "name": "a", "metadata": {"k": "v", "other": "x"}})).await;
    assert_eq!(made.status, 202, "{made:?}");
    assert_eq!(create(&cloud, json!({"size": 1, "name": "b", "metadata": {"k": "V"}})).await.status, 202);
    assert_eq!(create(&cloud, json!({"size": 1, "name": "c"})).await.status, 202);
    let list = async |filter: &str| {
        let path = at(&format!("/volumes?sort=name:asc&{filter}"));
        let answer = cloud.call("demo", "GET", &path, None).await;
        let all = answer.json["volumes"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone();
        all.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    for (filter, wanted) in [
        ("metadata=%7B%27k%27%3A+%27v%27%7D", "a"),
        ("metadata=%7B%22k%22%3A%22V%22%7D&limit=1", "b"),
        ("metadata=%7B%27k%27%3A%27v%27,%27other%27%3A%27y%27%7D", ""),
        ("availability_zone=mars", ""),
        ("offset=1&limit=1", "b"),
        ("limit=1", "a"),
    ] {
        assert_eq!(list(filter).await, wanted, "{filter}");
    }
    assert_eq!(cloud.call("demo", "GET", &at("/volumes?metadata=k"), None).await.status, 400);
    // Not for an administrator either, who sees others' volumes by all_tenants under the own project.
    let id = id(&made, "volume");
    for token in ["other", "admin"] {
        let answer = cloud.call(token, "GET", &at(&format!("/volumes/{id}")), None).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.json["badRequest"]["message"], "Malformed request url");
    }
    let own = format!("/volume/v3/{}/volumes/{id}", ADMIN_PROJECT);
    assert_eq!(cloud.call("admin", "GET", &own, None).await.status, 200);
}

#[tokio::test]
async fn disks_and_snapshots_that_nobody_names_are_removed() {
    let (cloud, fake) = cloud().await;
    cloud.start();
    let kept = volume(&cloud, 1).await;
    let body = json!({"snapshot": {"volume_id": kept, "name": "s"}});
    let snapshot = id(&cloud.call("demo", "POST", &at("/snapshots"), Some(body)).await, "snapshot");
    wait(&cloud, &format!("/snapshots/{snapshot}"), "snapshot", "available").await;
    let (lost, lost_snapshot, working) = (DiskId::new(), SnapshotId::new(), SnapshotId::new());
    fake.with(|held| {
        held.disks.insert(lost, 1 << 30);
        held.snapshots.insert(lost_snapshot, lost);
        held.snapshots.insert(working, lost);
    });
    // A task without workers of its kind: it stays live, and names a snapshot in its step.
    let store = &cloud.app.store;
    let step = &json!({"step": "fill", "snapshot": working}).to_string();
    store
        .tx(|tx| async move {
            let sql =
                "INSERT INTO tasks (id, kind, subject, request_id, state, step, entered, attempts, due_ms,
                lease_until_ms, superseded, created_ms, updated_ms)
                VALUES ('t', 'test.none', 'test:1', 'r', 'live', $1, '[]', 0, 0, 0, 0, 0, 0)";
            tx.exec(sql, base::args![step]).await
        })
        .await
        .unwrap();
    crate::pool::scan(&cloud.app).await.unwrap();
    let left = fake
        .with(|held| (held.disks.keys().map(DiskId::to_string).collect::<Vec<_>>(), held.snapshots.len()));
    assert_eq!(left, (vec![kept.clone()], 2));
    assert!(
        fake.with(
            |held| held.snapshots.contains_key(&working) && !held.snapshots.contains_key(&lost_snapshot)
        )
    );

    // Not by the word of a database that does not know them because it is another cloud's.
    let other = Cloud::new().await;
    fake.serve(&other);
    crate::pool::scan(&other.app).await.unwrap_err();
    assert_eq!(fake.with(|held| (held.disks.len(), held.snapshots.len())), (1, 2));
}
