//! The appliance on its own kernel, with real KVM under our monitor: QEMU emulates a processor with virtualisation, the
//! appliance runs on it, guests run inside. Slow but whole: what the development machine's kernel cannot do is tested here.

mod lab;

use lab::Lab;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);

#[test]
fn the_appliance_runs_guests_on_real_kvm() {
    let out = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    image::guest::build(&out, &out.join("packages")).expect("the guest image builds");
    let (kernel, initrd) = (out.join("guest.vmlinuz"), out.join("guest.initrd"));
    let mut lab = Lab::start(&[("guest.vmlinuz", &kernel), ("guest.initrd", &initrd)]);

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
}
