use crate::object::fake::Fake;
use crate::testing::{Answer, Cloud, OTHER_PROJECT};
use base::store::testing::on_both;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

async fn upload(cloud: &Cloud, id: &str, body: &'static [u8]) -> Answer {
    let headers = [("content-type", "application/octet-stream")];
    let path = format!("/image/v2/images/{id}/file");
    cloud.call_with("demo", "PUT", &path, &headers, Bytes::from_static(body)).await
}

async fn create(cloud: &Cloud, token: &str, more: &[(&str, Value)]) -> Answer {
    let mut body = json!({"name": "i", "disk_format": "qcow2", "container_format": "bare"});
    for (name, value) in more {
        body[*name] = value.clone();
    }
    cloud.call(token, "POST", "/image/v2/images", Some(body)).await
}

async fn patch(cloud: &Cloud, token: &str, id: &str, changes: Value) -> Answer {
    let headers = [("content-type", "application/openstack-images-v2.1-json-patch")];
    let path = format!("/image/v2/images/{id}");
    cloud.call_with(token, "PATCH", &path, &headers, changes.to_string().into()).await
}

fn id(answer: &Answer) -> String {
    answer.json["id"].as_str().unwrap().to_owned()
}

#[test]
fn declarations_are_whole() {
    assert_eq!(api_kit::coverage::faults(&[super::service()]), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_is_made_filled_read_and_deleted() {
    on_both(|db| async move {
        let (cloud, fake) = (Cloud::on(db).await, Fake::default());
        fake.serve(&cloud);
        let made = create(&cloud, "demo", &[("os_distro", json!("debian")), ("tags", json!(["t"]))]).await;
        assert_eq!((made.status, made.json["status"].as_str()), (201, Some("queued")), "{:?}", made.json);
        let id = id(&made);
        let show = async || cloud.call("demo", "GET", &format!("/image/v2/images/{id}"), None).await;
        let file = format!("/image/v2/images/{id}/file");
        assert_eq!(cloud.call("demo", "GET", &file, None).await.status, 204);

        // Not what it is said to be: refused, nothing kept, and it may be tried again.
        let refused = upload(&cloud, &id, b"MZ").await;
        assert_eq!(refused.status, 400);
        assert!(refused.json["message"].as_str().unwrap().contains("mislabelled"), "{:?}", refused.json);
        assert_eq!(show().await.json["status"], "queued");
        crate::object::garbage::collect(&cloud.app).await.unwrap();
        assert_eq!(fake.with(|held| held.blobs.len()), 0);

        assert_eq!(upload(&cloud, &id, b"QFI good").await.status, 204);
        let image = show().await.json;
        assert_eq!((image["status"].as_str(), image["size"].as_i64()), (Some("active"), Some(8)));
        assert_eq!(image["virtual_size"], 2_i64 << 30);
        assert_eq!(
            (image["os_hash_algo"].as_str(), image["os_distro"].as_str()),
            (Some("sha512"), Some("debian"))
        );
        assert_eq!(upload(&cloud, &id, b"QFI again").await.status, 409);
        let got = cloud.call("demo", "GET", &file, None).await;
        assert_eq!((got.status, &got.bytes[..]), (200, &b"QFI good"[..]));

        assert_eq!(cloud.call("other", "GET", &format!("/image/v2/images/{id}"), None).await.status, 404);
        assert_eq!(cloud.call("reader", "DELETE", &format!("/image/v2/images/{id}"), None).await.status, 403);
        let protect = json!([{"op": "replace", "path": "/protected", "value": true}]);
        assert_eq!(patch(&cloud, "demo", &id, protect).await.status, 200);
        assert_eq!(cloud.call("demo", "DELETE", &format!("/image/v2/images/{id}"), None).await.status, 403);
        let free = json!([{"op": "replace", "path": "/protected", "value": false}]);
        patch(&cloud, "demo", &id, free).await;
        assert_eq!(cloud.call("demo", "DELETE", &format!("/image/v2/images/{id}"), None).await.status, 204);
        assert_eq!(show().await.status, 404);
        crate::object::garbage::collect(&cloud.app).await.unwrap();
        assert_eq!(fake.with(|held| held.blobs.len()), 0);
    })
    .await;
}

#[tokio::test]
async fn patches_and_bad_values_are_judged_one_by_one() {
    let cloud = Cloud::new().await;
    let id = id(&create(&cloud, "demo", &[("a", json!("1"))]).await);
    let changed = patch(
        &cloud,
        "demo",
        &id,
        json!([{"op": "add", "path": "/b", "value": "2"}, {"op": "remove", "path": "/a"},
            {"op": "replace", "path": "/name", "value": "n"}, {"op": "replace", "path": "/tags", "value": ["x"]}]),
    )
    .await;
    assert_eq!(changed.status, 200, "{:?}", changed.json);
    assert_eq!(
        (changed.json["b"].as_str(), changed.json.get("a"), changed.json["name"].as_str()),
        (Some("2"), None, Some("n"))
    );
    for (change, status) in [
        (json!({"op": "replace", "path": "/nothing", "value": "x"}), 409),
        (json!({"op": "remove", "path": "/nothing"}), 409),
        (json!({"op": "replace", "path": "/status", "value": "active"}), 403),
        (json!({"op": "replace", "path": "/id", "value": "x"}), 403),
        (json!({"op": "replace", "path": "/visibility", "value": "public"}), 403),
        (json!({"op": "replace", "path": "/visibility", "value": "odd"}), 400),
        (json!({"op": "replace", "path": "/min_disk", "value": -1}), 400),
        (json!({"op": "move", "path": "/a", "value": "x"}), 400),
        (json!({"op": "add", "path": "a", "value": "x"}), 400),
        (json!({"op": "add", "path": "/p", "value": 7}), 400),
    ] {
        let answer = patch(&cloud, "demo", &id, json!([change])).await;
        assert_eq!(answer.status, status, "{change}: {:?}", answer.json);
    }
    assert_eq!(create(&cloud, "demo", &[("visibility", json!("public"))]).await.status, 403);
    assert_eq!(create(&cloud, "demo", &[("disk_format", json!("odd"))]).await.status, 400);
    assert_eq!(create(&cloud, "demo", &[("name", json!("x".repeat(10_000)))]).await.status, 400);
    assert_eq!(create(&cloud, "demo", &[("id", json!(id))]).await.status, 409);
}

#[tokio::test]
async fn lists_show_what_the_caller_may_see_page_by_page() {
    let cloud = Cloud::new().await;
    for number in 0..5 {
        let visibility = if number == 4 { "private" } else { "public" };
        let more = [("name", json!(format!("p{number}"))), ("visibility", json!(visibility))];
        assert_eq!(create(&cloud, "admin", &more).await.status, 201);
    }
    let shared = id(&create(&cloud, "demo", &[("name", json!("s")), ("k", json!("v"))]).await);
    let names = async |token: &str, query: &str| {
        let answer = cloud.call(token, "GET", &format!("/image/v2/images?{query}"), None).await;
        assert_eq!(answer.status, 200, "{:?}", answer.json);
        let list = answer.json["images"].as_array().unwrap().clone();
        (
            list.iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>(),
            answer.json["next"].clone(),
        )
    };
    assert_eq!(names("other", "sort=name:asc").await.0, ["p0", "p1", "p2", "p3"]);
    assert_eq!(names("demo", "sort=name:asc").await.0, ["p0", "p1", "p2", "p3", "s"]);
    assert_eq!(names("demo", "k=v").await.0, ["s"]);
    assert_eq!(names("demo", "name=p1").await.0, ["p1"]);
    assert_eq!(names("demo", "visibility=shared").await.0, ["s"]);
    let (first, next) = names("demo", "sort=name:asc&limit=3").await;
    assert_eq!(first, ["p0", "p1", "p2"]);
    let next = next.as_str().unwrap();
    assert!(next.starts_with("/v2/images?"), "{next}");
    assert_eq!(names("demo", next.split_once('?').unwrap().1).await.0, ["p3", "s"]);

    // Shared once the other project accepts.
    let member = json!({"member": OTHER_PROJECT});
    let path = format!("/image/v2/images/{shared}/members");
    assert_eq!(cloud.call("other", "POST", &path, Some(member.clone())).await.status, 404);
    assert_eq!(cloud.call("demo", "POST", &path, Some(member.clone())).await.status, 200);
    assert_eq!(cloud.call("demo", "POST", &path, Some(member)).await.status, 409);
    assert_eq!(names("other", "visibility=shared").await.0, Vec::<String>::new());
    let accept = Some(json!({"status": "accepted"}));
    let mine = format!("{path}/{OTHER_PROJECT}");
    assert_eq!(cloud.call("demo", "PUT", &mine, accept.clone()).await.status, 403);
    assert_eq!(cloud.call("other", "PUT", &mine, accept).await.status, 200);
    assert_eq!(names("other", "visibility=shared").await.0, ["s"]);
}

#[tokio::test]
async fn an_upload_whose_process_died_goes_back_to_queued() {
    let (cloud, fake) = (Cloud::new().await, Fake::default());
    fake.serve(&cloud);
    let id = id(&create(&cloud, "demo", &[]).await);
    let image = super::records::find(&cloud.app.store, &id).await.unwrap().unwrap();
    let blob = super::data::begin(&cloud.app, &image, None).await.unwrap().blob;
    super::data::settle(&cloud.app).await.unwrap();
    let status = async || super::records::find(&cloud.app.store, &id).await.unwrap().unwrap().status;
    assert_eq!(status().await, "saving", "it is still running");
    crate::object::inner::reserve(&cloud.app, blob, -3600).await.unwrap();
    super::data::settle(&cloud.app).await.unwrap();
    assert_eq!(status().await, "queued");
    assert_eq!(upload(&cloud, &id, b"QFI").await.status, 204);
}

#[tokio::test]
async fn the_guest_image_is_made_once() {
    let (cloud, fake) = (Cloud::new().await, Fake::default());
    fake.serve(&cloud);
    let dir = tempfile::tempdir().unwrap();
    let mut params = cloud.params();
    super::inner::bootstrap(&cloud.app, &params).await.unwrap();
    let path = dir.path().join("guest.qcow2");
    std::fs::write(&path, b"QFI guest").unwrap();
    params.guest_image = Some(path);
    for _ in 0..2 {
        super::inner::bootstrap(&cloud.app, &params).await.unwrap();
        let list = cloud.call("other", "GET", "/image/v2/images", None).await.json;
        assert_eq!(list["images"].as_array().unwrap().len(), 1, "{list}");
        assert_eq!(
            (list["images"][0]["status"].as_str(), list["images"][0]["visibility"].as_str()),
            (Some("active"), Some("public"))
        );
    }
}

async fn until(what: &str, test: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !test().await {
        assert!(Instant::now() < deadline, "not {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_upload_that_is_looked_at_is_not_collected() {
    let (cloud, fake) = (Cloud::new().await, Fake::default());
    fake.serve(&cloud);
    let gate = Arc::new(Semaphore::new(0));
    fake.with(|held| held.gate = Some(gate.clone()));
    let id = id(&create(&cloud, "demo", &[]).await);
    let app = &cloud.app;
    let meanwhile = async {
        until("stored", async || fake.with(|held| !held.blobs.is_empty())).await;
        let blob = fake.with(|held| *held.blobs.keys().next().unwrap());
        // As if the last word of it had been long ago: who looks at it speaks up again.
        crate::object::inner::reserve(app, blob, -3600).await.unwrap();
        until("heard of", async || crate::object::inner::is_uploading(app, blob).await.unwrap()).await;
        crate::object::garbage::scan(app).await.unwrap();
        super::data::settle(app).await.unwrap();
        assert_eq!(fake.with(|held| held.blobs.len()), 1);
        gate.add_permits(1);
    };
    let (uploaded, ()) = tokio::join!(upload(&cloud, &id, b"QFI slow"), meanwhile);
    assert_eq!(uploaded.status, 204, "{uploaded:?}");
    let shown = cloud.call("demo", "GET", &format!("/image/v2/images/{id}"), None).await;
    assert_eq!(shown.json["status"], "active");
}

#[tokio::test]
async fn an_upload_that_was_given_up_does_not_become_an_image_without_data() {
    let (cloud, fake) = (Cloud::new().await, Fake::default());
    fake.serve(&cloud);
    let id = id(&create(&cloud, "demo", &[]).await);
    let app = &cloud.app;
    let image = super::records::find(&app.store, &id).await.unwrap().unwrap();
    let blob = super::data::begin(app, &image, None).await.unwrap().blob;
    let body = axum::body::Body::from("QFI late");
    let info = crate::object::inner::upload(app, blob, Some(8), true, body).await.unwrap();
    crate::object::inner::reserve(app, blob, -3600).await.unwrap();
    let bytes = fake.with(|held| held.blobs[&blob].clone());
    crate::object::garbage::scan(app).await.unwrap();
    assert_eq!(fake.with(|held| held.blobs.len()), 0, "its process seemed to be dead");
    fake.with(|held| held.blobs.insert(blob, bytes));
    let fault = super::data::finish(app, &id, blob, "qcow2", Ok(info)).await.unwrap_err();
    assert_eq!(fault.status.as_u16(), 503, "{fault}");
    let image = super::records::find(&app.store, &id).await.unwrap().unwrap();
    assert_eq!(image.status, "queued");
    crate::object::garbage::collect(app).await.unwrap();
    assert_eq!(fake.with(|held| held.blobs.len()), 0);
}

#[tokio::test]
async fn projects_have_limits_of_images_and_bytes() {
    on_both(|db| async move {
        let cloud = Cloud::configured(db, |config| {
            config.images.image_size_total = 1;
            config.images.image_count_total = 2;
            config.images.image_count_uploading = 1;
        })
        .await;
        let fake = Fake::default();
        fake.serve(&cloud);
        let first = id(&create(&cloud, "demo", &[]).await);
        let second = id(&create(&cloud, "demo", &[]).await);
        let refused = create(&cloud, "demo", &[]).await;
        assert_eq!(refused.status, 413);
        let why = refused.json["message"].as_str().unwrap().to_owned();
        assert!(
            why.contains("image_count_total is over limit of 2 due to current usage 2 and delta 1"),
            "{why}"
        );
        assert_eq!(create(&cloud, "other", &[]).await.status, 201, "each project has its own");

        static LARGE: [u8; (1 << 20) + 1] = [b'Q'; (1 << 20) + 1];
        let path = format!("/image/v2/images/{first}/file");
        let kind = ("content-type", "application/octet-stream");
        let length = LARGE.len().to_string();
        let announced = [kind, ("content-length", length.as_str())];
        let refused = cloud.call_with("demo", "PUT", &path, &announced, Bytes::from_static(&LARGE)).await;
        assert_eq!(refused.status, 413, "{refused:?}");
        assert_eq!(upload(&cloud, &first, &LARGE).await.status, 413, "neither without an announcement");
        crate::object::garbage::collect(&cloud.app).await.unwrap();
        assert_eq!(fake.with(|held| held.blobs.len()), 0);

        let image = super::records::find(&cloud.app.store, &second).await.unwrap().unwrap();
        let begun = super::data::begin(&cloud.app, &image, None).await.unwrap();
        assert_eq!(upload(&cloud, &first, b"QFI").await.status, 413, "one at a time");
        super::data::give_up(&cloud.app, &second, begun.blob).await.unwrap();
        assert_eq!(upload(&cloud, &first, b"QFI").await.status, 204);
        let usage = cloud.call("demo", "GET", "/image/v2/info/usage", None).await.json;
        assert_eq!(usage["usage"]["image_size_total"], json!({"limit": 1, "usage": 1}));
        assert_eq!(usage["usage"]["image_count_total"], json!({"limit": 2, "usage": 2}));
        assert_eq!(usage["usage"]["image_count_uploading"], json!({"limit": 1, "usage": 0}));
    })
    .await;
}
