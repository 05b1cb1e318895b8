use super::fake::Fake;
use crate::testing::{Answer, Cloud, DEMO_PROJECT};
use bytes::Bytes;
use std::time::{Duration, Instant};

async fn cloud() -> (Cloud, Fake) {
    let (cloud, fake) = (Cloud::new().await, Fake::default());
    fake.serve(&cloud);
    (cloud, fake)
}

fn at(path: &str) -> String {
    format!("/object-store/v1/AUTH_{DEMO_PROJECT}{path}")
}

async fn put(cloud: &Cloud, path: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Answer {
    let length = body.len().to_string();
    let headers: Vec<_> = headers.iter().copied().chain([("content-length", length.as_str())]).collect();
    cloud.call_with("demo", "PUT", &at(path), &headers, Bytes::from_static(body)).await
}

async fn ask(cloud: &Cloud, token: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    cloud.call_with(token, method, &at(path), headers, Bytes::new()).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[test]
fn declarations_are_whole() {
    assert_eq!(api_kit::coverage::faults(&[super::service()]), Vec::<String>::new());
}

#[tokio::test]
async fn objects_go_in_and_out_with_their_metadata() {
    let (cloud, fake) = cloud().await;
    assert_eq!(put(&cloud, "/c/x", &[], b"no container").await.status, 404);
    assert_eq!(put(&cloud, "/c", &[("x-container-meta-a", "1")], b"").await.status, 201);
    assert_eq!(put(&cloud, "/c", &[], b"").await.status, 202);
    let made = put(&cloud, "/c/a/b.txt", &[("x-object-meta-k", "v")], b"hello").await;
    assert_eq!(made.status, 201);
    let got = ask(&cloud, "demo", "GET", "/c/a/b.txt", &[]).await;
    assert_eq!((got.status, &got.bytes[..]), (200, &b"hello"[..]));
    assert_eq!(header(&got, "x-object-meta-k"), "v");
    assert_eq!(header(&got, "content-type"), "text/plain");
    assert_eq!(header(&got, "etag"), header(&made, "etag"));
    let part = ask(&cloud, "demo", "GET", "/c/a/b.txt", &[("range", "bytes=1-2")]).await;
    assert_eq!(
        (part.status, &part.bytes[..], header(&part, "content-range")),
        (206, &b"el"[..], "bytes 1-2/5")
    );
    assert_eq!(ask(&cloud, "demo", "GET", "/c/a/b.txt", &[("range", "bytes=9-")]).await.status, 416);
    let head = ask(&cloud, "demo", "HEAD", "/c/a/b.txt", &[]).await;
    assert_eq!((head.status, header(&head, "content-length"), head.bytes.len()), (200, "5", 0));
    let etag = header(&got, "etag").to_owned();
    assert_eq!(ask(&cloud, "demo", "GET", "/c/a/b.txt", &[("if-none-match", &etag)]).await.status, 304);
    assert_eq!(ask(&cloud, "demo", "GET", "/c/a/b.txt", &[("if-match", "other")]).await.status, 412);
    assert_eq!(put(&cloud, "/c/a/b.txt", &[("if-none-match", "*")], b"again").await.status, 412);
    assert_eq!(put(&cloud, "/c/wrong", &[("etag", "0123")], b"hello").await.status, 422);

    let posted = ask(&cloud, "demo", "POST", "/c/a/b.txt", &[("x-object-meta-new", "n")]).await;
    assert_eq!(posted.status, 202);
    let head = ask(&cloud, "demo", "HEAD", "/c/a/b.txt", &[]).await;
    assert_eq!((header(&head, "x-object-meta-k"), header(&head, "x-object-meta-new")), ("", "n"));

    let copied = ask(&cloud, "demo", "COPY", "/c/a/b.txt", &[("destination", "/c/copy")]).await;
    assert_eq!(copied.status, 201);
    assert_eq!(
        fake.with(|held| held.blobs.len()),
        2,
        "a copy shares its bytes; the mismatch is not collected yet"
    );
    let container = ask(&cloud, "demo", "HEAD", "/c", &[]).await;
    assert_eq!((container.status, header(&container, "x-container-object-count")), (204, "2"));
    assert_eq!(header(&container, "x-container-meta-a"), "1");
    assert_eq!(ask(&cloud, "demo", "DELETE", "/c", &[]).await.status, 409);

    // What nobody names is collected, what somebody still names is not.
    assert_eq!(ask(&cloud, "demo", "DELETE", "/c/a/b.txt", &[]).await.status, 204);
    super::garbage::collect(&cloud.app).await.unwrap();
    assert_eq!(fake.with(|held| held.blobs.len()), 1);
    assert_eq!(ask(&cloud, "demo", "GET", "/c/copy", &[]).await.bytes, "hello");
    assert_eq!(ask(&cloud, "demo", "DELETE", "/c/copy", &[]).await.status, 204);
    assert_eq!(ask(&cloud, "demo", "DELETE", "/c/copy", &[]).await.status, 404);
    super::garbage::collect(&cloud.app).await.unwrap();
    assert_eq!(fake.with(|held| held.blobs.len()), 0);
    assert_eq!(ask(&cloud, "demo", "DELETE", "/c", &[]).await.status, 204);
}

#[tokio::test]
async fn listings_page_by_marker_prefix_and_delimiter() {
    let (cloud, _fake) = cloud().await;
    put(&cloud, "/c", &[], b"").await;
    for name in ["a/1", "a/2", "b", "c/x/y", "c/z", "d"] {
        assert_eq!(put(&cloud, &format!("/c/{name}"), &[], b"1").await.status, 201);
    }
    let names = async |query: &str| {
        let answer = ask(&cloud, "demo", "GET", &format!("/c?{query}"), &[("accept", "text/plain")]).await;
        String::from_utf8(answer.bytes.to_vec()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["a/1", "a/2", "b", "c/x/y", "c/z", "d"]);
    assert_eq!(names("limit=2&marker=a/2").await, ["b", "c/x/y"]);
    assert_eq!(names("prefix=c/").await, ["c/x/y", "c/z"]);
    assert_eq!(names("delimiter=/").await, ["a/", "b", "c/", "d"]);
    assert_eq!(names("delimiter=/&limit=2").await, ["a/", "b"]);
    assert_eq!(names("delimiter=/&limit=2&marker=a/").await, ["b", "c/"]);
    assert_eq!(names("delimiter=/&marker=c/").await, ["d"]);
    assert_eq!(names("delimiter=/&prefix=c/").await, ["c/x/", "c/z"]);
    assert_eq!(names("end_marker=c").await, ["a/1", "a/2", "b"]);
    assert_eq!(names("reverse=true&limit=2").await, ["d", "c/z"]);
    assert_eq!(names("reverse=true&delimiter=/").await, ["d", "c/", "b", "a/"]);
    let json = ask(&cloud, "demo", "GET", "/c?format=json&limit=1", &[]).await.json;
    assert_eq!((json[0]["name"].as_str(), json[0]["bytes"].as_i64()), (Some("a/1"), Some(1)));
    assert_eq!(ask(&cloud, "demo", "GET", "/c?limit=10001", &[]).await.status, 412);
    let account = ask(&cloud, "demo", "GET", "?format=json", &[]).await;
    assert_eq!((account.json[0]["name"].as_str(), account.json[0]["count"].as_i64()), (Some("c"), Some(6)));
    assert_eq!(header(&account, "x-account-object-count"), "6");
}

#[tokio::test]
async fn strangers_get_what_the_container_allows() {
    let (cloud, _fake) = cloud().await;
    put(&cloud, "/c", &[], b"").await;
    put(&cloud, "/c/x", &[], b"secret").await;
    assert_eq!(ask(&cloud, "", "GET", "/c/x", &[]).await.status, 401);
    assert_eq!(ask(&cloud, "other", "GET", "/c/x", &[]).await.status, 403);
    assert_eq!(ask(&cloud, "other", "GET", "", &[]).await.status, 403);
    assert_eq!(ask(&cloud, "reader", "GET", "/c/x", &[]).await.status, 200);
    assert_eq!(ask(&cloud, "reader", "DELETE", "/c/x", &[]).await.status, 403);
    assert_eq!(ask(&cloud, "demo", "POST", "/c", &[("x-container-read", ".r:*")]).await.status, 204);
    assert_eq!(ask(&cloud, "", "GET", "/c/x", &[]).await.bytes, "secret");
    assert_eq!(ask(&cloud, "", "GET", "/c", &[]).await.status, 401);
    assert_eq!(ask(&cloud, "", "DELETE", "/c/x", &[]).await.status, 401);
    // The account of the image service is nobody's.
    for token in ["demo", "admin", ""] {
        let answer = cloud.call(token, "GET", "/object-store/v1/.image/data", None).await;
        assert!(answer.status == 401 || answer.status == 403, "{token}: {}", answer.status);
    }
}

#[tokio::test]
async fn what_a_crash_left_in_the_pool_is_found() {
    let (cloud, fake) = cloud().await;
    put(&cloud, "/c", &[], b"").await;
    put(&cloud, "/c/x", &[], b"kept").await;
    let (lost, running) = (wire::ids::BlobId::new(), wire::ids::BlobId::new());
    super::inner::reserve(&cloud.app, running, 0).await.unwrap();
    fake.with(|held| {
        held.blobs.insert(lost, Bytes::from_static(b"lost"));
        held.blobs.insert(running, Bytes::from_static(b"running"));
    });
    super::garbage::scan(&cloud.app).await.unwrap();
    assert_eq!(fake.with(|held| (held.blobs.len(), held.blobs.contains_key(&lost))), (2, false));
    // The upload's process died long ago.
    super::inner::reserve(&cloud.app, running, -24 * 3600).await.unwrap();
    super::garbage::scan(&cloud.app).await.unwrap();
    assert_eq!(fake.with(|held| held.blobs.len()), 1);
    assert_eq!(ask(&cloud, "demo", "GET", "/c/x", &[]).await.bytes, "kept");
}

#[tokio::test]
async fn deleting_wakes_the_collector() {
    let (cloud, fake) = cloud().await;
    cloud.start();
    put(&cloud, "/c", &[], b"").await;
    put(&cloud, "/c/x", &[], b"1").await;
    ask(&cloud, "demo", "DELETE", "/c/x", &[]).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while fake.with(|held| !held.blobs.is_empty()) {
        assert!(Instant::now() < deadline, "the blob is not collected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn quotas_hold_for_accounts_and_containers() {
    let (cloud, fake) = cloud().await;
    put(&cloud, "/c", &[], b"").await;
    let quota = |value: &'static str| [("x-account-meta-quota-bytes", value)];
    assert_eq!(ask(&cloud, "demo", "POST", "", &quota("10")).await.status, 403);
    assert_eq!(ask(&cloud, "admin", "POST", "", &quota("ten")).await.status, 400);
    assert_eq!(ask(&cloud, "admin", "POST", "", &quota("10")).await.status, 204);
    assert_eq!(put(&cloud, "/c/a", &[], b"12345678").await.status, 201);
    let refused = put(&cloud, "/c/b", &[], b"123").await;
    assert_eq!((refused.status, &refused.bytes[..]), (413, &b"Upload exceeds quota."[..]));
    let chunked = [("transfer-encoding", "chunked")];
    let body = Bytes::from_static(b"123");
    assert_eq!(cloud.call_with("demo", "PUT", &at("/c/b"), &chunked, body).await.status, 413);
    let copy = [("destination", "/c/copy")];
    assert_eq!(ask(&cloud, "demo", "COPY", "/c/a", &copy).await.status, 413);
    super::garbage::collect(&cloud.app).await.unwrap();
    assert_eq!(fake.with(|held| held.blobs.len()), 1, "nothing is kept of what was refused");
    let remove = [("x-remove-account-meta-quota-bytes", "x")];
    assert_eq!(ask(&cloud, "demo", "POST", "", &remove).await.status, 403);
    assert_eq!(ask(&cloud, "admin", "POST", "", &remove).await.status, 204);
    assert_eq!(put(&cloud, "/c/b", &[], b"123").await.status, 201);

    let set =
        async |name: &str, value: &str| ask(&cloud, "demo", "POST", "/c", &[(name, value)]).await.status;
    assert_eq!(set("x-container-meta-quota-count", "-1").await, 400);
    assert_eq!(set("x-container-meta-quota-count", "2").await, 204);
    assert_eq!(put(&cloud, "/c/d", &[], b"").await.status, 413);
    assert_eq!(set("x-remove-container-meta-quota-count", "x").await, 204);
    assert_eq!(set("x-container-meta-quota-bytes", "12").await, 204);
    assert_eq!(put(&cloud, "/c/d", &[], b"12").await.status, 413);
    assert_eq!(put(&cloud, "/c/d", &[], b"1").await.status, 201);
    let info = cloud.call("", "GET", "/object-store/info", None).await.json;
    assert!(info["account_quotas"].is_object() && info["container_quotas"].is_object(), "{info}");
}

#[tokio::test]
async fn a_listing_of_containers_has_their_counts() {
    let (cloud, _fake) = cloud().await;
    for container in ["/a", "/b", "/c"] {
        put(&cloud, container, &[], b"").await;
    }
    put(&cloud, "/b/x", &[], b"123").await;
    put(&cloud, "/b/y", &[], b"45").await;
    put(&cloud, "/c/x", &[], b"6").await;
    let json = ask(&cloud, "demo", "GET", "", &[]).await.json;
    let rows = json.as_array().unwrap().iter();
    let rows: Vec<_> =
        rows.map(|row| (row["name"].as_str(), row["count"].as_i64(), row["bytes"].as_i64())).collect();
    let row = |name, count, bytes| (Some(name), Some(count), Some(bytes));
    assert_eq!(rows, [row("a", 0, 0), row("b", 2, 5), row("c", 1, 1)]);
    let json = ask(&cloud, "demo", "GET", "?reverse=true&limit=1&marker=c", &[]).await.json;
    assert_eq!(
        (json[0]["name"].as_str(), json[0]["count"].as_i64(), json.get(1)),
        (Some("b"), Some(2), None)
    );
}

#[tokio::test]
async fn nobody_may_write_by_referrer() {
    let (cloud, _fake) = cloud().await;
    let refused = put(&cloud, "/c", &[("x-container-write", ".r:*")], b"").await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(ask(&cloud, "demo", "HEAD", "/c", &[]).await.status, 404);
    assert_eq!(put(&cloud, "/c", &[("x-container-read", ".ref:*,,.rlistings")], b"").await.status, 201);
    assert_eq!(ask(&cloud, "demo", "POST", "/c", &[("x-container-write", ".referrer:*")]).await.status, 400);
    let shown = ask(&cloud, "demo", "HEAD", "/c", &[]).await;
    assert_eq!(
        (header(&shown, "x-container-read"), header(&shown, "x-container-write")),
        (".r:*,.rlistings", "")
    );
    assert_eq!(ask(&cloud, "", "GET", "/c", &[]).await.status, 200, "everybody may read");
}
