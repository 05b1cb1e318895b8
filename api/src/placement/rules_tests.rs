use super::super::inner::{self, HostRoom};
use super::super::records::{self, MIGRATIONS, Resources};
use super::{Inventory, Owner, Refusal, put, rooms};
use base::store::Store;
use base::store::testing::on_both;
use std::collections::BTreeMap;

const OWNER: Owner<'static> = Owner { project: "p", user: "u", kind: "" };

fn resources(cpus: i64, memory: i64, disk: i64) -> Resources {
    [("VCPU", cpus), ("MEMORY_MB", memory), ("DISK_GB", disk)].map(|(class, n)| (class.to_owned(), n)).into()
}

async fn host(store: &Store, memory_mib: u64) -> String {
    store.migrate("placement", MIGRATIONS).await.unwrap();
    let room = HostRoom { name: "h1".into(), cpus: 2, memory_mib, disk_gib: 100 };
    inner::refresh_host(store, &room).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_race_for_the_room_of_five_and_five_get_it() {
    on_both(|db| async move {
        // 2048 MiB, a quarter reserved at most: 512 stay, 1536 are for five times 300.
        let provider = host(&db.store, 2048).await;
        let racers: Vec<_> = (0..20)
            .map(|n| {
                let (store, provider) = (db.store.clone(), provider.clone());
                tokio::spawn(async move {
                    inner::claim(&store, &format!("c{n}"), OWNER, &provider, &resources(1, 300, 1)).await
                })
            })
            .collect();
        let (mut won, mut lost) = (0, 0);
        for racer in racers {
            match racer.await.unwrap() {
                Ok(()) => won += 1,
                Err(Refusal::NoRoom { shortage, .. }) => {
                    assert_eq!(shortage.to_string(), "needs 300 MB of memory, 36 MB free");
                    lost += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!((won, lost), (5, 15));
        let used = records::usage(&db.store, &provider).await.unwrap();
        assert_eq!(used, resources(5, 1500, 5));
    })
    .await;
}

#[tokio::test]
async fn claims_repeat_and_releases_leave_nothing() {
    on_both(|db| async move {
        let provider = host(&db.store, 8192).await;
        for _ in 0..2 {
            inner::claim(&db.store, "c", OWNER, &provider, &resources(1, 1024, 0)).await.unwrap();
        }
        let held = records::of_consumer(&db.store, "c").await.unwrap();
        assert_eq!(held[&provider], [("VCPU".to_owned(), 1), ("MEMORY_MB".to_owned(), 1024)].into());
        for _ in 0..2 {
            inner::release(&db.store, "c").await.unwrap();
        }
        assert!(records::usage(&db.store, &provider).await.unwrap().is_empty());
        assert!(records::consumer(&db.store, "c").await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn what_does_not_fit_changes_nothing_and_says_by_how_much() {
    on_both(|db| async move {
        let provider = host(&db.store, 8192).await;
        inner::claim(&db.store, "c", OWNER, &provider, &resources(1, 1024, 1)).await.unwrap();
        let wanted = BTreeMap::from([(provider.clone(), resources(1, 9000, 1))]);
        let refusal = put(&db.store, "c", OWNER, &wanted).await.unwrap_err();
        assert!(
            refusal.to_string().ends_with("needs 9000 MB of memory, one consumer may have at most 8192 MB")
        );
        assert_eq!(records::usage(&db.store, &provider).await.unwrap(), resources(1, 1024, 1));
        let room = &rooms(&db.store).await.unwrap()[0];
        let short: Vec<String> =
            room.shortages(&resources(9, 7000, 200)).iter().map(ToString::to_string).collect();
        assert_eq!(
            short,
            [
                "needs 200 GB of disk, one consumer may have at most 100 GB",
                "needs 7000 MB of memory, 6656 MB free",
                "needs 9 vCPUs, one consumer may have at most 2",
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn a_refresh_keeps_what_an_administrator_set_and_counts_only_changes() {
    on_both(|db| async move {
        let provider = host(&db.store, 8192).await;
        let before = records::provider_by_id(&db.store, &provider).await.unwrap().unwrap();
        assert_eq!(host(&db.store, 8192).await, provider);
        assert_eq!(records::provider_by_id(&db.store, &provider).await.unwrap().unwrap(), before);
        let id = provider.clone();
        db.store
            .tx(|tx| {
                let id = id.clone();
                async move {
                    let mut all = records::inventories(&tx, &id).await?;
                    all.get_mut("VCPU").unwrap().ratio = 16.0;
                    super::put_inventories(&tx, &id, None, &all).await
                }
            })
            .await
            .unwrap();
        host(&db.store, 4096).await;
        let all = records::inventories(&db.store, &provider).await.unwrap();
        assert!((all["VCPU"].ratio - 16.0).abs() < f64::EPSILON);
        assert_eq!(all["MEMORY_MB"].total, 4096);
    })
    .await;
}

#[test]
fn capacity_is_whole_and_never_negative() {
    let it = Inventory { total: 3, reserved: 0, min_unit: 1, max_unit: 3, step_size: 1, ratio: 1.5 };
    assert_eq!(it.capacity(), 4);
    assert_eq!(Inventory { reserved: 9, ..it.clone() }.capacity(), 0);
    assert!(Inventory { step_size: 2, ..it }.shortage("X", 0, 3).is_some());
}

#[tokio::test]
async fn the_rest_interface_reads_and_claims_by_the_same_rules() {
    use crate::testing::Cloud;
    use serde_json::json;
    assert_eq!(api_kit::coverage::faults(&[crate::placement::service()]), Vec::<String>::new());
    let cloud = Cloud::new().await;
    let made = cloud.call("admin", "POST", "/placement/resource_providers", Some(json!({"name": "h"}))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let list = cloud.call("admin", "GET", "/placement/resource_providers?name=h", None).await;
    let uuid = list.json["resource_providers"][0]["uuid"].as_str().unwrap().to_owned();
    let path = format!("/placement/resource_providers/{uuid}/inventories");
    let body = json!({"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4}}});
    assert_eq!(cloud.call("admin", "PUT", &path, Some(body.clone())).await.status, 200);
    let stale = cloud
        .call(
            "admin",
            "PUT",
            &path,
            Some(json!({"resource_provider_generation": 0,
        "inventories": {"VCPU": {"total": 5}}})),
        )
        .await;
    assert_eq!(stale.status, 409, "{stale:?}");
    assert_eq!(cloud.call("demo", "GET", &path, None).await.status, 403);
    let version = [("openstack-api-version", "placement 1.12"), ("content-type", "application/json")];
    let consumer = format!("/placement/allocations/{}", uuid::Uuid::new_v4());
    let ask = async |n: i64| {
        let body =
            json!({"project_id": "p", "user_id": "u", "allocations": {&uuid: {"resources": {"VCPU": n}}}});
        cloud.call_with("admin", "PUT", &consumer, &version, body.to_string().into()).await
    };
    assert_eq!(ask(3).await.status, 204);
    let over = ask(5).await;
    assert_eq!(over.status, 409);
    assert!(over.json["errors"][0]["detail"].as_str().unwrap().contains("needs 5 vCPUs, 4 free"), "{over:?}");
    let fits = async |query: &str| {
        let path = format!("/placement/allocation_candidates?resources={query}");
        cloud.call_with("admin", "GET", &path, &version, bytes::Bytes::new()).await.json
    };
    assert_eq!(fits("VCPU:1").await["allocation_requests"][0]["allocations"][&uuid]["resources"]["VCPU"], 1);
    assert_eq!(fits("VCPU:2").await["allocation_requests"], json!([]));
    assert_eq!(cloud.call("admin", "DELETE", &consumer, None).await.status, 204);
    assert_eq!(cloud.call("admin", "DELETE", &consumer, None).await.status, 404);
}
