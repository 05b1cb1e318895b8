//! The appliance on its own kernel, with real KVM under our monitor: QEMU emulates a processor with virtualisation, the
//! appliance runs on it, guests run inside. Slow but whole: what the development machine's kernel cannot do is tested here.

mod cloud;
mod lab;

use cloud::Cloud;
use lab::Lab;
use serde_json::json;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);

/// A guest by hand: key, config drive, a tap with a DHCP server on it, and our monitor.
const START_GUEST: &str = r#"
set -e
cd /var/lib/ferrostack && mkdir -p by-hand && cd by-hand
cp --sparse=always /dev/disk/by-id/virtio-second disk.raw
truncate -s 512M disk.raw
dropbearkey -t ed25519 -f key >/dev/null
public=$(dropbearkey -y -f key | grep ^ssh-)
truncate -s 1M drive.raw
mkfs.vfat -n config-2 drive.raw >/dev/null
mkdir -p drive && mount -o loop drive.raw drive
mkdir -p drive/openstack/latest
echo "{\"uuid\": \"nested-1\", \"hostname\": \"inner\", \"public_keys\": {\"k\": \"$public\"}}" >drive/openstack/latest/meta_data.json
umount drive
ip tuntap add dev inner mode tap vnet_hdr
ip addr add 10.99.0.1/24 dev inner
ip link set inner up
printf 'start 10.99.0.10\nend 10.99.0.10\ninterface inner\nlease_file /run/leases\npidfile /run/udhcpd.pid\noption subnet 255.255.255.0\noption mtu 1450\n' >/run/udhcpd.conf
touch /run/leases
busybox udhcpd -S /run/udhcpd.conf
setsid /usr/lib/ferrostack/vmm run --kernel /usr/lib/test/guest.vmlinuz --initrd /usr/lib/test/guest.initrd \
    --append "$(cat /usr/lib/test/command-line)" --mem 256 --disk disk.raw --disk drive.raw --tap inner >console 2>&1 </dev/null &
echo $! >pid
for i in $(seq 180); do
    grep -q "inner login:" console && exit 0
    kill -0 $(cat pid) || break
    sleep 0.5
done
tail -n 60 console
exit 1
"#;

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
fn the_appliance_runs_guests_on_real_kvm() {
    let out = lab::guest();
    let (kernel, initrd) = (out.join("guest.vmlinuz"), out.join("guest.initrd"));
    let command_line = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("command-line");
    std::fs::write(&command_line, image::guest::command_line()).expect("write");
    let seen: &[(&str, &std::path::Path)] =
        &[("guest.vmlinuz", &kernel), ("guest.initrd", &initrd), ("command-line", &command_line)];
    let mut lab = Lab::start(seen, &out.join("guest.raw"));

    // The data partition was made, with reflinks, and mounted; the root is read-only below.
    let mounts = lab.ok("systemctl start ferro-prepare.service && cat /proc/mounts", LONG);
    assert!(mounts.lines().any(|line| line.contains(" /var/lib/ferrostack xfs ")), "{mounts}");
    lab.ok(
        "cd /var/lib/ferrostack && dd if=/dev/urandom of=a bs=1M count=4 status=none && cp --reflink=always a b && rm a b",
        SHORT,
    );

    let probe = lab.ok("/usr/lib/ferrostack/vmm probe", SHORT);
    assert!(probe.contains("hardware"), "real virtualisation inside: {probe}");
    // Nothing to log in with: every password is locked and no getty runs.
    lab.ok("! grep -Ev '^[^:]+:[!*]' /etc/shadow && ! pgrep agetty", SHORT);

    // A Linux guest under our own monitor: boots, gets its address by DHCP, its key from a config drive, and is logged in to.
    lab.ok(START_GUEST, LONG);
    let (key, address) = ("/var/lib/ferrostack/by-hand/key", "10.99.0.10");
    let script = "hostname; id -un; ip -o addr show eth0; cat /sys/class/net/eth0/mtu; df -k /";
    let shown = over_ssh(&mut lab, key, address, script, LONG);
    for expected in ["inner", "ferro", "10.99.0.10/24", "1450"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let log = over_ssh(&mut lab, key, address, "sudo dmesg | grep -i hypervisor", SHORT);
    assert!(log.contains("KVM"), "the guest knows that it runs on KVM: {log}");
    // What it writes and syncs is on its disk; powering off ends the monitor.
    over_ssh(&mut lab, key, address, "echo kept | sudo tee /kept && sync", SHORT);
    over_ssh(&mut lab, key, address, "sudo poweroff", SHORT);
    lab.ok("for i in $(seq 100); do kill -0 $(cat /var/lib/ferrostack/by-hand/pid) || exit 0; sleep 0.3; done; exit 1", SHORT);
    lab.ok(
        "cd /var/lib/ferrostack/by-hand && modprobe loop && mkdir -p root && mount -o loop,offset=1048576 disk.raw root && grep kept root/kept; \
         status=$?; umount root; exit $status",
        SHORT,
    );
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
    let clouds = lab.ok("cat /var/lib/ferrostack/db/clouds.yaml", SHORT);
    let mut cloud = Cloud::log_in(lab.https, &clouds, "ferrostack-demo", LONG);
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
    lab.ok("pgrep -f ^ferrostack-guest && ls /run/ferrostack/servers | grep .", SHORT);
    cloud.delete(&format!("compute/v2.1/servers/{server}"));
    cloud.wait_gone(&format!("compute/v2.1/servers/{server}"), LONG);
    let floating = floating["floatingip"]["id"].as_str().expect("an id");
    cloud.delete(&format!("network/v2.0/floatingips/{floating}"));
    cloud.delete(&shown);
    cloud.wait_gone(&shown, LONG);
    lab.ok(
        "for i in $(seq 100); do
            left=$(pgrep -af ^ferrostack-guest; ls -A /run/ferrostack/servers /var/lib/ferrostack/guests/servers | grep -v -e ':$' -e '^$')
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
