//! The guest image as its users meet it: booted, configured, logged in to, shut down.

mod machine;

use machine::{Machine, Options};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Far above the four seconds that the image takes on an idle machine, because tests share two cores.
const DEADLINE: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

fn run(program: &str, arguments: &[&str]) {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|fault| panic!("{program}: {fault}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A key pair; gives the private key's path and the public key.
fn key_pair(dir: &Path) -> (PathBuf, String) {
    let key = dir.join("key");
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", &key.display().to_string()]);
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("public key");
    (key, public.trim().to_owned())
}

fn meta_data(id: &str, public_key: &str) -> String {
    serde_json::json!({
        "uuid": id, "hostname": "web-1.novalocal", "name": "web-1", "public_keys": { "mine": format!("{public_key}\n") },
    })
    .to_string()
}

fn config_drive(dir: &Path, meta_data: &str, user_data: &str) -> PathBuf {
    let image = dir.join("config-drive.img");
    std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("write");
    let path = image.display().to_string();
    run("mkfs.vfat", &["-n", "config-2", &path]);
    run("mmd", &["-i", &path, "::openstack", "::openstack/latest"]);
    for (name, content) in [("meta_data.json", meta_data), ("user_data", user_data)] {
        let file = dir.join(name);
        std::fs::write(&file, content).expect("write");
        run("mcopy", &["-i", &path, &file.display().to_string(), &format!("::openstack/latest/{name}")]);
    }
    image
}

#[test]
fn shows_a_login_prompt_with_little_memory() {
    let mut machine =
        Machine::start(&Options { disk_bytes: 0, config_drive: None, metadata: None, memory: 128 });
    let took = machine.wait_console("ferro login:", DEADLINE);
    println!("login prompt after {:.2} s", took.as_secs_f64());
    let console = machine.console();
    assert!(console.contains("Linux version"), "boot messages are on the console");
    assert!(!console.contains("Call Trace"), "{console}");
}

#[test]
fn config_drive_gives_identity_and_the_usual_commands_work() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (key, public) = key_pair(dir.path());
    let script = "#!/bin/sh\necho \"first start of $(hostname) as $(id -u)\"\n";
    let drive = config_drive(dir.path(), &meta_data("5f1c8f3e-0000-4000-8000-000000000001", &public), script);
    let mut machine = Machine::start(&Options {
        disk_bytes: 2 * GIB,
        config_drive: Some(&drive),
        metadata: None,
        memory: 256,
    });
    machine.wait_console("first start of web-1 as 0", DEADLINE);
    machine.wait_console("web-1 login:", DEADLINE);

    // The shell prologue is what OpenStack's test suite puts before each command.
    let shell = |script: &str| {
        machine.ssh_ok(&key, &format!("set -eu -o pipefail; PATH=$PATH:/sbin:/usr/sbin; {script}"))
    };
    assert_eq!(shell("hostname"), "web-1\n");
    assert_eq!(shell("sudo id -u"), "0\n");
    assert!(shell("ip -o addr show dev eth0").contains("169.254.0.15/16"));
    assert!(shell("lsblk -lb --nodeps").contains("vda"));
    assert!(shell("sudo blkid /dev/vda1").contains("ferro-root"));
    // The gateway that QEMU plays answers pings itself.
    shell("ping -c1 -w5 -s56 -M do 169.254.0.2");
    for program in [
        "arping",
        "nc",
        "wget",
        "mkfs.ext3",
        "mkfs.ext4",
        "mkfs.vfat",
        "netstat",
        "md5sum",
        "udhcpc",
        "ssh",
        "fdisk",
    ] {
        shell(&format!("command -v {program}"));
    }
    assert!(shell("cat /var/run/udhcpc.eth0.pid").trim().parse::<u32>().is_ok());
    let size: u64 = shell("df -k / | awk 'END { print $2 }'").trim().parse().expect("a number");
    assert!(size * 1024 > 2 * GIB * 9 / 10, "the root file system grew to the disk: {size} KiB");
    shell("dd if=/dev/zero of=disk bs=1M count=8 && sync && mkfs.ext4 -q disk && sudo modprobe loop");
    shell("sudo mount -o loop disk /mnt && sudo umount /mnt && mkfs.vfat -C fat 1024");
    shell(
        "sudo mount /dev/vdb /mnt && grep -q web-1 /mnt/openstack/latest/meta_data.json && sudo umount /mnt",
    );
    assert!(!machine.ssh(dir.path(), "true").status.success(), "no login without the key");

    machine.power_button(DEADLINE);
    let partition = dir.path().join("partition");
    let disk = machine.dir.path().join("disk.raw").display().to_string();
    run(
        "dd",
        &[
            &format!("if={disk}"),
            &format!("of={}", partition.display()),
            "bs=1M",
            "skip=1",
            "conv=sparse",
            "status=none",
        ],
    );
    run("e2fsck", &["-fn", &partition.display().to_string()]);
}

#[test]
fn metadata_service_gives_identity_and_cloud_config() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (key, public) = key_pair(dir.path());
    let user_data = "#cloud-config\nhostname: named-here\npackages: [x]\nwrite_files:\n- path: /etc/demo\n  permissions: '0640'\n  \
                     content: |\n    one\n    two\nruncmd:\n- echo ran > /run/ran\n- [cp, /etc/demo, \"/run/a copy\"]\n";
    let service = dir.path().join("service");
    let meta = meta_data("5f1c8f3e-0000-4000-8000-000000000002", &public);
    std::fs::write(dir.path().join("meta"), meta).expect("write");
    std::fs::write(dir.path().join("user"), user_data).expect("write");
    let text = format!(
        "#!/bin/sh\ncd {}\nread -r verb path version\nanswer() {{ printf 'HTTP/1.0 %s\\r\\nContent-Length: %s\\r\\n\\r\\n' \"$1\" \
         $(wc -c <$2); cat $2; }}\ncase $path in\n/openstack/latest/meta_data.json) answer '200 OK' meta ;;\n\
         /openstack/latest/user_data) answer '200 OK' user ;;\n*) answer '404 Not Found' /dev/null ;;\nesac\n",
        dir.path().display()
    );
    std::fs::write(&service, text).expect("write");
    std::fs::set_permissions(&service, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let mut machine =
        Machine::start(&Options { disk_bytes: 0, config_drive: None, metadata: Some(&service), memory: 192 });
    machine.wait_console("user-data: ended with status 0", DEADLINE);
    assert!(machine.console().contains("cloud-config: packages is not known to this image"));
    let shown =
        machine.ssh_ok(&key, "hostname; sudo cat /etc/demo '/run/a copy' /run/ran; stat -c %a /etc/demo");
    assert_eq!(shown, "named-here\none\ntwo\none\ntwo\nran\n640\n");
}
