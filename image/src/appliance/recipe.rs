//! What the appliance holds, as tables.

/// The package whose dependency names the current kernel: the full one, since a bare machine may hold any controller.
pub const KERNEL: &str = "linux-image-amd64";
/// Boot loader and the stub that makes a kernel an EFI program.
pub const BOOT: &str = "systemd-boot-efi";
/// The initrd's only program.
pub const BUSYBOX: &str = "busybox-static";
/// Debian release of the root file system.
pub const SUITE: &str = "bookworm";
/// Label of the root partition that is written; the second slot comes with updates.
pub const ROOT_SLOT: &str = "ferro-root-a";
/// The image may be at most this large, bytes.
pub const SIZE_LIMIT: u64 = 400 << 20;
/// Size of the partition that firmware reads: room for two kernels.
pub const ESP_BYTES: u64 = 96 << 20;
/// Kernel arguments. A screen and the serial line both show the console; the serial line is the one for logs. The kernel's
/// timer check panics under software emulation on a busy host, and finds nothing on a machine of this century.
pub const ARGUMENTS: &str =
    "console=tty0 console=ttyS0,115200 quiet loglevel=4 no_timer_check panic=10 systemd.show_status=auto";
/// Programs of the product, from the folder of binaries.
pub const BINARIES: &[&str] = &["hostd", "netd", "blockd", "api", "vmm"];

/// Debian packages installed beside the essential ones, with their dependencies.
pub const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "systemd-timesyncd",
    "udev",
    "kmod",
    "fdisk",
    "xfsprogs",
    "dosfstools",
    "iproute2",
    "nftables",
    "procps",
    "ca-certificates",
];

/// Drivers that the initrd may need to reach its disk.
pub const EARLY_DRIVERS: &[&str] = &[
    "squashfs",
    "overlay",
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "ahci",
    "ata_piix",
    "sd_mod",
    "usb_storage",
    "uas",
    "xhci_pci",
    "ehci_pci",
    "ohci_pci",
    "uhci_hcd",
    "mmc_block",
    "sdhci_pci",
    "sdhci_acpi",
    "megaraid_sas",
    "mpt3sas",
    "mptsas",
    "mptspi",
    "hpsa",
    "aacraid",
    "smartpqi",
    "vmd",
    "vmw_pvscsi",
    "hv_storvsc",
];

/// Kernel modules that a server without screen, sound or radio does not need: paths below the module folder.
pub const DROPPED_MODULES: &[&str] = &[
    "kernel/sound",
    "kernel/drivers/gpu",
    "kernel/drivers/media",
    "kernel/drivers/staging",
    "kernel/drivers/iio",
    "kernel/drivers/isdn",
    "kernel/drivers/comedi",
    "kernel/drivers/bluetooth",
    "kernel/drivers/soundwire",
    "kernel/drivers/net/wireless",
    "kernel/drivers/net/can",
    "kernel/drivers/net/hamradio",
    "kernel/drivers/mtd",
    "kernel/drivers/pcmcia",
    "kernel/drivers/leds",
    "kernel/drivers/nfc",
    "kernel/drivers/infiniband",
    "kernel/net/bluetooth",
    "kernel/net/mac80211",
    "kernel/net/wireless",
    "kernel/net/nfc",
    "kernel/net/can",
    "kernel/net/ax25",
    "kernel/net/netrom",
    "kernel/net/rose",
];

/// Files of the base system that nothing here uses.
pub const DROPPED_FILES: &[&str] = &[
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/i18n",
    "usr/share/zoneinfo",
    "usr/share/bash-completion",
    "usr/share/zsh",
    "usr/share/lintian",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/bin/perl",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/udev/hwdb.d",
    "var/cache",
    "var/lib/apt",
];

/// Own files: path, permission bits, content.
pub const FILES: &[(&str, u32, &str)] = &[
    (
        "etc/systemd/system/ferro-prepare.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-prepare.service"),
    ),
    (
        "etc/systemd/system/ferro-blockd.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-blockd.service"),
    ),
    (
        "etc/systemd/system/ferro-netd.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-netd.service"),
    ),
    (
        "etc/systemd/system/ferro-hostd.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-hostd.service"),
    ),
    (
        "etc/systemd/system/ferro-api.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-api.service"),
    ),
    ("etc/ferrostack/api.toml", 0o644, include_str!("../../data/appliance/etc/api.toml")),
    ("etc/ferrostack/hostd.toml", 0o644, include_str!("../../data/appliance/etc/hostd.toml")),
    ("etc/ferrostack/netd.toml", 0o644, include_str!("../../data/appliance/etc/netd.toml")),
    ("etc/ferrostack/blockd.toml", 0o644, include_str!("../../data/appliance/etc/blockd.toml")),
    ("etc/tmpfiles.d/ferrostack.conf", 0o644, include_str!("../../data/appliance/tmpfiles.conf")),
    ("usr/lib/ferrostack/first-steps", 0o755, include_str!("../../data/appliance/first-steps")),
    ("usr/lib/ferrostack/disk", 0o755, include_str!("../../data/appliance/disk")),
    ("usr/lib/ferrostack/console", 0o755, include_str!("../../data/appliance/console")),
    ("usr/lib/ferrostack/repart.d/data.conf", 0o644, include_str!("../../data/appliance/data.repart")),
    (
        "etc/systemd/system/ferro-disk.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-disk.service"),
    ),
    (
        "etc/systemd/system/ferro-console.service",
        0o644,
        include_str!("../../data/appliance/units/ferro-console.service"),
    ),
    ("etc/systemd/network/50-uplink.network", 0o644, include_str!("../../data/appliance/uplink.network")),
    ("etc/systemd/networkd.conf.d/foreign.conf", 0o644, include_str!("../../data/appliance/networkd.conf")),
    // Guests get no virtualisation of their own: less surface, and accelerated interrupts misbehave when nested.
    ("etc/modprobe.d/kvm.conf", 0o644, "options kvm_amd nested=0 avic=0\noptions kvm_intel nested=0\n"),
    // What netd needs and a namespace cannot load on demand.
    (
        "etc/modules-load.d/ferrostack.conf",
        0o644,
        "tun\nveth\nbridge\nbr_netfilter\nnf_tables\nnft_ct\nnft_nat\nvhost_net\n",
    ),
    // Empty, not absent: an identity per start without the rituals of a first boot.
    ("etc/machine-id", 0o444, ""),
    ("etc/.updated", 0o644, ""),
    ("var/.updated", 0o644, ""),
    ("etc/hostname", 0o644, "ferrostack\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 ferrostack\n::1 localhost\n"),
    (
        "etc/fstab",
        0o644,
        "# The root is a read-only image under a volatile layer; ferro-disk.service mounts what lasts.\n",
    ),
    // Logs stay in memory, bounded: a full log must never be what fills the data partition.
    ("etc/systemd/journald.conf.d/volatile.conf", 0o644, "[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\n"),
    (
        "etc/sysctl.d/50-ferrostack.conf",
        0o644,
        "kernel.unprivileged_userns_clone = 0\nkernel.dmesg_restrict = 1\nkernel.kptr_restrict = 2\nfs.protected_fifos = 2\n",
    ),
];

/// Links: path, target.
pub const LINKS: &[(&str, &str)] = &[
    ("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target"),
    ("etc/systemd/system/local-fs.target.wants/ferro-disk.service", "../ferro-disk.service"),
    ("etc/systemd/system/multi-user.target.wants/ferro-console.service", "../ferro-console.service"),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/lib/systemd/system/systemd-networkd.service",
    ),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-resolved.service",
        "/lib/systemd/system/systemd-resolved.service",
    ),
    ("etc/systemd/system/multi-user.target.wants/ferro-blockd.service", "../ferro-blockd.service"),
    ("etc/systemd/system/multi-user.target.wants/ferro-netd.service", "../ferro-netd.service"),
    ("etc/systemd/system/multi-user.target.wants/ferro-hostd.service", "../ferro-hostd.service"),
    ("etc/systemd/system/multi-user.target.wants/ferro-api.service", "../ferro-api.service"),
    ("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"),
    ("etc/localtime", "/usr/share/zoneinfo/UTC"),
    // Nothing to log in to: no password exists, and no prompt suggests one.
    ("etc/systemd/system/getty.target", "/dev/null"),
    ("etc/systemd/system/console-getty.service", "/dev/null"),
    ("etc/systemd/system/serial-getty@.service", "/dev/null"),
    ("etc/systemd/system/getty@.service", "/dev/null"),
    ("etc/systemd/system/apt-daily.timer", "/dev/null"),
    ("etc/systemd/system/apt-daily-upgrade.timer", "/dev/null"),
    ("etc/systemd/system/dpkg-db-backup.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_all.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_reap.service", "/dev/null"),
    ("etc/systemd/system/fstrim.timer", "/dev/null"),
    ("etc/systemd/system/systemd-networkd-wait-online.service", "/dev/null"),
    ("etc/systemd/system/systemd-hwdb-update.service", "/dev/null"),
    ("etc/systemd/system/systemd-binfmt.service", "/dev/null"),
    ("etc/systemd/system/proc-sys-fs-binfmt_misc.automount", "/dev/null"),
    ("etc/systemd/system/sys-kernel-debug.mount", "/dev/null"),
    ("etc/systemd/system/sys-kernel-tracing.mount", "/dev/null"),
    ("etc/systemd/system/modprobe@drm.service", "/dev/null"),
    ("etc/systemd/system/systemd-update-utmp.service", "/dev/null"),
    ("etc/systemd/system/systemd-update-utmp-runlevel.service", "/dev/null"),
];

/// Users of the unprivileged daemons: name, number. Fixed, because files on the data partition carry them across updates; the
/// same numbers as on a development machine.
pub const USERS: &[(&str, u32)] = &[("ferro-api", 64101), ("ferro-block", 64102)];
/// Their group, whose members may use the daemons' sockets.
pub const GROUP: (&str, u32) = ("ferrostack", 64100);
