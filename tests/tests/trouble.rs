//! Bad input and trouble: each gets an error that says what is wrong and what to do, nothing is left half made, and no
//! daemon dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tests::{Client, Instance, finished, root};

fn refused(client: &Client, command: &str, words: &[&str]) {
    let error = client.text(command).expect_err(command).to_lowercase();
    for word in words {
        assert!(error.contains(&word.to_lowercase()), "'{command}' should say '{word}': {error}");
    }
}

fn upload(client: &Client, name: &str, format: &str, file: &Path, words: &[&str]) {
    let command = format!(
        "image create --disk-format {format} --container-format bare --file {} {name}",
        file.display()
    );
    refused(client, &command, words);
    // Nothing usable is left, whatever the name now says.
    if let Ok(shown) = client.json(&format!("image show {name}")) {
        assert_ne!(shown["status"], "active", "{name}");
        client.text(&format!("image delete {name}")).unwrap();
    }
}

fn qemu_img(arguments: &[&str]) {
    finished(Command::new("qemu-img").args(arguments)).unwrap();
}

#[test]
fn what_cannot_start_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let data = format!("/var/lib/ferrostack-taken-{}", std::process::id());
    let mut ferro = Command::new(root().join("ferro"));
    let error = finished(ferro.args(["up", "--data", &data, "--port", &port])).unwrap_err();
    assert!(error.contains(&format!("port {port} is taken")), "{error}");
    assert!(!Path::new(&data).exists(), "nothing was made");

    // An instance keeps its port without being told, and says when it is told another.
    let made = tempfile::tempdir().unwrap();
    std::fs::create_dir(made.path().join("etc")).unwrap();
    std::fs::write(made.path().join("etc/instance"), format!("INSTANCE=0\nPORT={port}\n")).unwrap();
    for (more, word) in
        [(vec![], format!("port {port} is taken")), (vec!["--port", "1"], format!("with port {port}"))]
    {
        let mut ferro = Command::new(root().join("ferro"));
        let error = finished(ferro.args(["up", "--data"]).arg(made.path()).args(more)).unwrap_err();
        assert!(error.contains(&word), "{error}");
    }

    let long = format!("/tmp/{}", "x".repeat(80));
    let error = finished(Command::new(root().join("ferro")).args(["up", "--data", &long])).unwrap_err();
    assert!(error.contains("at most 80"), "{error}");

    // A copy: the checkout may lie where nobody but root may look.
    let readable = made.path().join("ferro");
    std::fs::copy(root().join("ferro"), &readable).unwrap();
    std::fs::set_permissions(made.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut ferro = Command::new("setpriv");
    ferro.args(["--reuid=65534", "--clear-groups", "bash"]).arg(readable).args(["up", "--data", &data]);
    let error = finished(&mut ferro).unwrap_err();
    assert!(error.contains("needs root"), "{error}");

    let mut ferro = Command::new(root().join("ferro"));
    let error = finished(ferro.args(["up", "--port", "99999"])).unwrap_err();
    assert!(error.contains("65535"), "{error}");
}

#[test]
fn an_unreachable_database_is_named() {
    let nowhere = [("FERRO_DATABASE", "postgres://nobody@127.0.0.1:1/none".to_owned())];
    let error = Instance::up_with("nodb", &nowhere).expect_err("there is no database");
    assert!(error.contains("database") && error.contains("does not answer"), "{error}");
}

#[test]
fn bad_requests_are_refused_and_no_daemon_dies() {
    let cloud = Instance::up_with("trouble", &[("FERRO_POOL_SIZE", "1G".to_owned())]).unwrap();
    let daemons = ["api", "hostd", "netd", "blockd"].map(|name| (name, cloud.pid(name).unwrap()));
    let demo = &cloud.demo();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let text = |name: &str| file(name).display().to_string();

    // Wrong password.
    let login = |password: &str| {
        format!(
            r#"{{"auth":{{"identity":{{"methods":["password"],"password":{{"user":{{"name":"admin","domain":{{"name":"Default"}},"password":"{password}"}}}}}}}}}}"#
        )
    };
    let json = ["-H", "Content-Type: application/json"];
    let (status, body) =
        cloud.curl("/identity/v3/auth/tokens", &[json[0], json[1], "-d", &login("wrong")]).unwrap();
    assert_eq!(status, 401, "{body}");
    assert!(body.contains("requires authentication"), "{body}");

    // Images: truncated, mislabelled, with a backing file, too large for the flavor, too large for the pool.
    let mut bytes = Vec::new();
    std::fs::File::open(tests::cache().join("guest/guest.qcow2")).unwrap().read_to_end(&mut bytes).unwrap();
    std::fs::write(file("truncated"), &bytes[..bytes.len() / 3]).unwrap();
    std::fs::write(file("whole"), &bytes).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "/etc/shadow",
        "-F",
        "raw",
        "-u",
        &text("backed"),
        "10M",
    ]);
    upload(demo, "truncated", "qcow2", &file("truncated"), &["truncated"]);
    upload(demo, "mislabelled", "raw", &file("whole"), &["qcow2"]);
    upload(demo, "backed", "qcow2", &file("backed"), &["backing file"]);
    let mut full = std::fs::File::create(file("full")).unwrap();
    let noise: Vec<u8> = (0..1u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for _ in 0..1200 {
        full.write_all(&noise).unwrap();
    }
    upload(demo, "full", "raw", &file("full"), &["full"]);
    std::fs::remove_file(file("full")).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", &text("large"), "3G"]);
    demo.text(&format!(
        "image create --disk-format qcow2 --container-format bare --file {} large",
        text("large")
    ))
    .unwrap();
    refused(demo, "server create --image large --flavor m1.nano --network demo too-large", &["disk"]);

    // Compute: unknown flavor, a name of 10,000 characters, invalid JSON, a body of 1 GiB.
    refused(demo, "server create --image ferro --flavor no-such --network demo x", &["no flavor", "no-such"]);
    refused(
        demo,
        &format!("server create --image ferro --flavor m1.nano --network demo {}", "x".repeat(10_000)),
        &["too long"],
    );
    let token = demo.field("token issue", "id").unwrap();
    let token = format!("X-Auth-Token: {token}");
    let post = |data: &str| {
        cloud
            .curl(
                "/compute/v2.1/servers",
                &["-H", &token, json[0], json[1], "-X", "POST", "--data-binary", data],
            )
            .unwrap()
    };
    let (status, body) = post("{\"server\": ");
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("badRequest"), "{body}");
    std::fs::File::create(file("huge")).unwrap().set_len(1 << 30).unwrap();
    let (status, body) = cloud
        .curl("/compute/v2.1/servers", &["-H", &token, json[0], json[1], "-X", "POST", "-T", &text("huge")])
        .unwrap();
    assert_eq!(status, 413, "{body}");

    // Network: an overlapping subnet.
    demo.text("network create again").unwrap();
    demo.text("subnet create --network again --subnet-range 10.1.0.0/24 one").unwrap();
    refused(demo, "subnet create --network again --subnet-range 10.1.0.128/25 two", &["overlaps"]);
    demo.text("network delete again").unwrap();

    assert_eq!(demo.json("server list").unwrap(), serde_json::json!([]));
    for (name, pid) in daemons {
        assert_eq!(cloud.pid(name).unwrap(), pid);
        let alive = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert_eq!(alive, cloud.data().join("bin").join(name), "{name} is still the same process");
    }
}
