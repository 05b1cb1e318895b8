//! The appliance on its own kernel, with real KVM under our monitor: QEMU emulates a processor with virtualisation, the
//! appliance runs on it, guests run inside. Slow but whole: what the development machine's kernel cannot do is tested here.

mod cloud;
mod lab;

use cloud::Cloud;
use lab::Lab;
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);

/// Runs a script (without single quotes) over SSH, once the server there answers, and wants success.
fn over_ssh(lab: &mut Lab, key: &str, address: &str, script: &str, limit: Duration) -> String {
    let lines = [
        "for i in $(seq 100); do".to_owned(),
        format!(
            "timeout 30 dbclient -y -y -i {key} ferro@{address} '{script}; echo \"status $?\"' >/run/out 2>/run/err"
        ),
        // The mark tells what the script said from a connection that failed.
        "grep -q ^status /run/out && break; sleep 1; done".to_owned(),
        "sed '/^status /d' /run/out; grep -qx 'status 0' /run/out && exit 0; cat /run/err".to_owned(),
        "tail -n 40 /var/lib/ferrostack/guests/*/console.log; exit 1".to_owned(),
    ];
    lab.ok(&lines.join("\n"), limit)
}

#[test]
fn a_server_lives_through_restarts_of_every_daemon() {
    lab::with_lab(&[], &lab::guest().join("guest.raw"), server_flow);
}

/// Says how far the flow is and when, for the log of a failed or slow run.
fn step(since: Instant, what: &str) {
    println!("{:>4} s: {what}", since.elapsed().as_secs());
}

fn server_flow(lab: &mut Lab) {
    let since = Instant::now();
    lab.ok(
        "for i in $(seq 200); do [ $(systemctl is-active ferro-{blockd,netd,hostd,api} | grep -cx active) = 4 ] && exit 0; sleep 1; done; \
         journalctl -b --no-pager -u 'ferro-*' | tail -n 60; exit 1",
        LONG,
    );
    step(since, "the daemons are active");
    // The data partition was made, with reflinks; virtualisation is real; there is nothing to log in with.
    let mounts = lab.ok("cat /proc/mounts", SHORT);
    assert!(mounts.lines().any(|line| line.contains(" /var/lib/ferrostack xfs ")), "{mounts}");
    lab.ok(
        "cd /var/lib/ferrostack && dd if=/dev/urandom of=a bs=1M count=4 status=none && cp --reflink=always a b && rm a b",
        SHORT,
    );
    let probe = lab.ok("/usr/lib/ferrostack/vmm probe", SHORT);
    assert!(probe.contains("hardware"), "real virtualisation inside: {probe}");
    lab.ok("! grep -Ev '^[^:]+:[!*]' /etc/shadow && ! pgrep agetty", SHORT);
    let claim = lab.ok("cat /var/lib/ferrostack/db/claim", SHORT);
    let mut cloud = Cloud::log_in(lab.https, &claimed(lab.https, &claim), "ferrostack-demo", LONG);
    step(since, "logged in");

    let public_key = lab.ok(
        "dropbearkey -t ed25519 -f /run/key >/dev/null 2>&1; dropbearkey -y -f /run/key | grep ^ssh-",
        SHORT,
    );
    cloud.post(
        "compute/v2.1/os-keypairs",
        &json!({"keypair": {"name": "k", "public_key": public_key.trim()}}),
    );
    let image = cloud.first("image/v2/images", "/images/0/id");
    let flavor = cloud.find("compute/v2.1/flavors", "flavors", "m1.nano");
    let (network, public) = (
        cloud.find("network/v2.0/networks", "networks", "demo"),
        cloud.find("network/v2.0/networks", "networks", "public"),
    );
    let server = cloud.post(
        "compute/v2.1/servers",
        &json!({"server": {"name": "inner", "imageRef": image, "flavorRef": flavor, "key_name": "k", "networks": [{"uuid": network}]}}),
    );
    let server = server["server"]["id"].as_str().expect("an id").to_owned();
    cloud.wait(&format!("compute/v2.1/servers/{server}"), "/server/status", "ACTIVE", LONG);
    step(since, "the server is active");
    let port = cloud.first(&format!("network/v2.0/ports?device_id={server}"), "/ports/0/id");
    let floating = cloud.post(
        "network/v2.0/floatingips",
        &json!({"floatingip": {"floating_network_id": public, "port_id": port}}),
    );
    let address = floating["floatingip"]["floating_ip_address"].as_str().expect("an address").to_owned();
    assert_eq!(over_ssh(lab, "/run/key", &address, "hostname", LONG).trim(), "inner");
    step(since, "logged in to the server by its floating IP");
    let boot = over_ssh(lab, "/run/key", &address, "cat /proc/sys/kernel/random/boot_id", LONG);

    let project = cloud.project.clone();
    let volume =
        cloud.post(&format!("volume/v3/{project}/volumes"), &json!({"volume": {"size": 1, "name": "v"}}));
    let volume = volume["volume"]["id"].as_str().expect("an id").to_owned();
    let shown = format!("volume/v3/{project}/volumes/{volume}");
    cloud.wait(&shown, "/volume/status", "available", LONG);
    cloud.post(
        &format!("compute/v2.1/servers/{server}/os-volume_attachments"),
        &json!({"volumeAttachment": {"volumeId": volume}}),
    );
    cloud.wait(&shown, "/volume/status", "in-use", LONG);
    over_ssh(
        lab,
        "/run/key",
        &address,
        "sudo mkfs.ext4 -q /dev/vdb && sudo mount /dev/vdb /mnt && echo kept | sudo tee /mnt/f && sync && echo marked >/tmp/marker",
        LONG,
    );

    step(since, "a volume is attached, formatted and written to");
    for daemon in ["api", "netd", "blockd", "hostd"] {
        lab.ok(
            &format!(
                "old=$(systemctl show -P MainPID ferro-{daemon}); systemctl restart ferro-{daemon} && \
                 [ $old != $(systemctl show -P MainPID ferro-{daemon}) ]"
            ),
            LONG,
        );
        cloud.wait(&format!("compute/v2.1/servers/{server}"), "/server/status", "ACTIVE", LONG);
        let now = over_ssh(
            lab,
            "/run/key",
            &address,
            "cat /proc/sys/kernel/random/boot_id /mnt/f /tmp/marker",
            LONG,
        );
        assert!(
            now.starts_with(&boot) && now.contains("kept") && now.contains("marked"),
            "the guest lived through a restart of {daemon}: {now}"
        );
        step(since, &format!("alive after a restart of {daemon}"));
    }

    over_ssh(lab, "/run/key", &address, "sudo umount /mnt", LONG);
    cloud.delete(&format!("compute/v2.1/servers/{server}/os-volume_attachments/{volume}"));
    cloud.wait(&shown, "/volume/status", "available", LONG);
    step(since, "the volume is detached");
    // The check at the end can only mean something when it finds the server now.
    lab.ok("pgrep -f ^ferrostack-guest && ls /run/ferrostack/hostd/servers | grep .", SHORT);
    cloud.delete(&format!("compute/v2.1/servers/{server}"));
    cloud.wait_gone(&format!("compute/v2.1/servers/{server}"), LONG);
    let floating = floating["floatingip"]["id"].as_str().expect("an id");
    cloud.delete(&format!("network/v2.0/floatingips/{floating}"));
    cloud.delete(&shown);
    cloud.wait_gone(&shown, LONG);
    lab.ok(
        "for i in $(seq 100); do
            left=$(pgrep -af ^ferrostack-guest; ls -A /run/ferrostack/hostd/servers /var/lib/ferrostack/guests/servers | grep -v -e ':$' -e '^$')
            [ -z \"$left\" ] && exit 0
            sleep 0.2
        done; echo \"left: $left\"; exit 1",
        SHORT,
    );
    // Restarted by this test only: none of them died by itself.
    let restarts = lab.ok("systemctl show -P NRestarts ferro-{api,netd,blockd,hostd}", SHORT);
    assert_eq!(restarts.split_whitespace().collect::<Vec<_>>(), ["0"; 4], "a daemon died by itself");
    step(since, "nothing is left");
}

/// Fetches `clouds.yaml` as the console tells the operator to, for the code and the fingerprint that it shows.
fn claimed(https: u16, shown: &str) -> String {
    let line = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)).expect("a claim").to_owned();
    let url = format!("https://127.0.0.1:{https}/claim");
    let fetch = |pin: &str, code: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-skf", "--max-time", "60", "--pinnedpubkey", pin, "-d", code, &url]);
        curl.output().expect("curl is installed")
    };
    let (pin, code) = (line("pin="), line("code="));
    assert!(
        !fetch("sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", &code).status.success(),
        "another key"
    );
    assert!(!fetch(&pin, "aaaa-aaaa-aaaa").status.success(), "another code");
    let archive = fetch(&pin, &code);
    assert!(archive.status.success(), "no credentials for the code");
    let mut tar = Command::new("tar");
    let mut tar = tar
        .args(["x", "-O", "clouds.yaml"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tar");
    tar.stdin.take().expect("a pipe").write_all(&archive.stdout).expect("tar reads");
    let clouds = tar.wait_with_output().expect("tar ends");
    let clouds = String::from_utf8(clouds.stdout).expect("text");
    assert!(clouds.contains(&format!("https://127.0.0.1:{https}/identity")), "{clouds}");
    clouds
}
