//! What the guest image holds, as tables: package files, own files, drivers. The programs are those that an OpenStack test
//! suite runs over SSH, and what a person expects on a cloud image.

/// Files taken from one Debian package; patterns as [`crate::tree::Tree::pick`] reads them.
pub struct Take {
    /// Package name.
    pub package: &'static str,
    /// Paths inside it.
    pub files: &'static [&'static str],
}

/// The package whose dependency names the current kernel.
pub const KERNEL: &str = "linux-image-cloud-amd64";
/// One program for most commands, and the only one of the initrd. The static one: it starts twice as fast under emulation.
/// (Its `wget -T` crashes, as does the other's: the scripts use `timeout` instead.)
pub const BUSYBOX: &str = "busybox-static";
/// The shell of users. The static one's prefers its own commands over those of the search path, so `ping` would not be the
/// real one; own scripts, which start with `#!/bin/busybox sh`, gain by just that.
pub const SHELL: &str = "busybox";
/// Label of the root file system.
pub const LABEL: &str = "ferro-root";
/// Who logs in.
pub const USER: &str = "ferro";
/// Size of the disk image. It grows with the server's disk at every start.
pub const DISK_BYTES: u64 = 112 << 20;
/// The uploaded file may be at most this large.
pub const UPLOAD_LIMIT: u64 = 64 << 20;
/// Kernel arguments beside `root=`. No console on a screen: these machines have none. One UART is what they have. The timer
/// check misfires under software emulation on a busy host and then panics; a virtual machine's timer needs no check.
pub const ARGUMENTS: &str = "console=ttyS0,115200 net.ifnames=0 no_timer_check panic=10 8250.nr_uarts=1";

/// Files from packages.
pub const TAKES: &[Take] = &[
    Take {
        package: "libc6",
        files: &[
            "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "lib64/ld-linux-x86-64.so.2",
            "lib/x86_64-linux-gnu/libc.so.6",
            "lib/x86_64-linux-gnu/libm.so.6",
            "lib/x86_64-linux-gnu/libdl.so.2",
            "lib/x86_64-linux-gnu/libpthread.so.0",
            "lib/x86_64-linux-gnu/librt.so.1",
            "lib/x86_64-linux-gnu/libresolv.so.2",
            "lib/x86_64-linux-gnu/libnss_files.so.2",
            "lib/x86_64-linux-gnu/libnss_dns.so.2",
        ],
    },
    Take { package: "libcrypt1", files: &["lib/x86_64-linux-gnu/libcrypt.so.1*"] },
    Take { package: "zlib1g", files: &["lib/x86_64-linux-gnu/libz.so.1*"] },
    Take { package: "libgmp10", files: &["usr/lib/x86_64-linux-gnu/libgmp.so.10*"] },
    Take { package: "libtommath1", files: &["usr/lib/x86_64-linux-gnu/libtommath.so.1*"] },
    Take { package: "libtomcrypt1", files: &["usr/lib/x86_64-linux-gnu/libtomcrypt.so.1*"] },
    Take {
        package: "dropbear-bin",
        files: &["usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/bin/dbclient"],
    },
    Take { package: "openssh-sftp-server", files: &["usr/lib/openssh/sftp-server"] },
    Take {
        package: "e2fsprogs",
        files: &[
            "sbin/mke2fs",
            "sbin/mkfs.ext*",
            "sbin/resize2fs",
            "sbin/e2fsck",
            "sbin/fsck.ext*",
            "etc/mke2fs.conf",
        ],
    },
    Take {
        package: "libext2fs2",
        files: &["lib/x86_64-linux-gnu/libext2fs.so.2*", "lib/x86_64-linux-gnu/libe2p.so.2*"],
    },
    Take { package: "libcom-err2", files: &["lib/x86_64-linux-gnu/libcom_err.so.2*"] },
    Take { package: "libuuid1", files: &["lib/x86_64-linux-gnu/libuuid.so.1*"] },
    Take { package: "libblkid1", files: &["lib/x86_64-linux-gnu/libblkid.so.1*"] },
    Take { package: "libmount1", files: &["lib/x86_64-linux-gnu/libmount.so.1*"] },
    Take { package: "libsmartcols1", files: &["lib/x86_64-linux-gnu/libsmartcols.so.1*"] },
    Take { package: "libudev1", files: &["lib/x86_64-linux-gnu/libudev.so.1*"] },
    Take { package: "libselinux1", files: &["lib/x86_64-linux-gnu/libselinux.so.1"] },
    Take { package: "libpcre2-8-0", files: &["usr/lib/x86_64-linux-gnu/libpcre2-8.so.0*"] },
    Take { package: "util-linux", files: &["bin/lsblk", "sbin/blkid"] },
    Take { package: "dosfstools", files: &["sbin/mkfs.fat", "sbin/mkfs.vfat"] },
    Take {
        package: "sudo",
        files: &["usr/bin/sudo", "usr/libexec/sudo/sudoers.so", "usr/libexec/sudo/libsudo_util.so*"],
    },
    Take { package: "libpam0g", files: &["lib/x86_64-linux-gnu/libpam.so.0*"] },
    Take { package: "libpam-modules", files: &["lib/x86_64-linux-gnu/security/pam_permit.so"] },
    Take { package: "libaudit1", files: &["lib/x86_64-linux-gnu/libaudit.so.1*"] },
    Take { package: "libcap-ng0", files: &["lib/x86_64-linux-gnu/libcap-ng.so.0*"] },
    // Not busybox's: that one neither runs unprivileged nor sets "do not fragment".
    Take { package: "iputils-ping", files: &["bin/ping", "bin/ping4", "bin/ping6"] },
    Take { package: "libcap2", files: &["lib/x86_64-linux-gnu/libcap.so.2*"] },
    Take { package: "libidn2-0", files: &["usr/lib/x86_64-linux-gnu/libidn2.so.0*"] },
    Take { package: "libunistring2", files: &["usr/lib/x86_64-linux-gnu/libunistring.so.2*"] },
    Take { package: "jq", files: &["usr/bin/jq"] },
    Take { package: "libjq1", files: &["usr/lib/x86_64-linux-gnu/libjq.so.1*"] },
    Take { package: "libonig5", files: &["usr/lib/x86_64-linux-gnu/libonig.so.5*"] },
];

/// Drivers that the initrd loads to reach the root disk.
pub const EARLY_DRIVERS: &[&str] = &["virtio_pci", "virtio_blk"];
/// Drivers kept in the root file system beside those.
pub const DRIVERS: &[&str] = &[
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "virtio_scsi",
    "virtio_mmio",
    "sd_mod",
    "sr_mod",
    "button",
    "evdev",
    "vfat",
    "isofs",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "8021q",
    "loop",
];

/// Own files: path, permission bits, content.
pub const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("../../data/guest/inittab")),
    ("etc/acpi/PWRF/00000080", 0o755, include_str!("../../data/guest/power")),
    ("usr/lib/ferro/boot", 0o755, include_str!("../../data/guest/boot")),
    ("usr/lib/ferro/drivers", 0o644, include_str!("../../data/guest/drivers")),
    ("usr/lib/ferro/configure", 0o755, include_str!("../../data/guest/configure")),
    ("usr/lib/ferro/user-data", 0o755, include_str!("../../data/guest/user-data")),
    ("usr/lib/ferro/cloud-config.awk", 0o644, include_str!("../../data/guest/cloud-config.awk")),
    ("usr/lib/ferro/hotplug", 0o755, include_str!("../../data/guest/hotplug")),
    ("usr/lib/ferro/link", 0o755, include_str!("../../data/guest/link")),
    ("usr/lib/ferro/lease", 0o755, include_str!("../../data/guest/lease")),
    ("usr/lib/ferro/ssh", 0o755, include_str!("../../data/guest/ssh")),
    ("usr/lib/ferro/stop", 0o755, include_str!("../../data/guest/stop")),
    // What `mount` tries when no type is given; the kernel then loads the driver.
    ("etc/filesystems", 0o644, "ext4\next3\next2\nvfat\niso9660\n"),
    ("etc/hostname", 0o644, "ferro\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost ferro\n::1 localhost\n"),
    // Passwords are locked; dropbear takes keys only.
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nferro:x:1000:1000:Ferro:/home/ferro:/bin/sh\n",
    ),
    (
        "etc/shadow",
        0o600,
        "root:!:20000:0:99999:7:::\nnobody:!:20000:0:99999:7:::\nferro:!:20000:0:99999:7:::\n",
    ),
    (
        "etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\ndisk:x:6:\nsudo:x:27:ferro\nferro:x:1000:\nnogroup:x:65534:\n",
    ),
    ("etc/shells", 0o644, "/bin/sh\n/bin/ash\n"),
    (
        "etc/profile",
        0o644,
        "export PATH=/usr/local/bin:/usr/bin\n[ \"$(id -u)\" = 0 ] && PS1='\\h:\\w# ' || PS1='\\h:\\w$ '\n",
    ),
    ("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
    (
        "etc/sudoers",
        0o440,
        "Defaults !requiretty, env_reset, secure_path=\"/usr/local/bin:/usr/bin\"\nroot ALL=(ALL) ALL\nferro ALL=(ALL) NOPASSWD: ALL\n",
    ),
    ("etc/sudo.conf", 0o644, "Plugin sudoers_policy sudoers.so\n"),
    (
        "etc/pam.d/sudo",
        0o644,
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    ),
    (
        "etc/pam.d/other",
        0o644,
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    ),
    (
        "etc/issue",
        0o644,
        "Ferrostack guest \\r \\l\nLog in by SSH as ferro with the server's key pair; passwords are locked.\n\n",
    ),
    (
        "etc/os-release",
        0o644,
        "NAME=\"Ferrostack guest\"\nID=ferrostack-guest\nID_LIKE=debian\nPRETTY_NAME=\"Ferrostack guest image\"\n",
    ),
];

/// Empty directories: path, permission bits.
pub const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("mnt", 0o755),
    ("media", 0o755),
    ("root", 0o700),
    ("home/ferro", 0o755),
    ("etc/dropbear", 0o700),
    ("var/log", 0o755),
    ("var/lib/ferro", 0o700),
    ("var/tmp", 0o1777),
];

/// Links: path, target.
pub const LINKS: &[(&str, &str)] = &[
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("etc/resolv.conf", "/run/ferro/resolv.conf"),
    ("etc/mtab", "/proc/self/mounts"),
    ("usr/bin/ssh", "dbclient"),
    ("usr/lib/sftp-server", "openssh/sftp-server"),
    ("init", "usr/bin/init"),
];
