//! Images made by the usual tools, whole and broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use proptest::prelude::{any, prop};

use super::find::find;
use super::{Found, Trouble};

/// Runs a tool of a Debian package; the test command installs it.
fn tool(name: &str, arguments: &[&str]) {
    let done = Command::new(name)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Files that go into a file system.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn link(self, path: &str, target: &str) -> Self {
        std::os::unix::fs::symlink(target, self.root().join(path)).unwrap();
        self
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn ext4(&self, mib: u32, options: &[&str]) -> Vec<u8> {
        let image = self.dir.path().join("ext4");
        let size = format!("{mib}M");
        let root = self.root();
        let mut arguments = vec!["-q", "-F", "-d", text(&root)];
        arguments.extend(options);
        arguments.extend([text(&image), &size]);
        tool("mkfs.ext4", &arguments);
        fs::read(image).unwrap()
    }

    /// An XFS file system, of less than the size that people should use.
    fn xfs(&self, mib: u64, options: &[&str]) -> Vec<u8> {
        fn list(directory: &Path, into: &mut String) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                let kind = fs::symlink_metadata(&path).unwrap().file_type();
                if kind.is_dir() {
                    into.push_str(&format!("{name} d--755 0 0\n"));
                    list(&path, into);
                    into.push_str("$\n");
                } else if kind.is_symlink() {
                    into.push_str(&format!("{name} l--777 0 0 {}\n", text(&fs::read_link(&path).unwrap())));
                } else {
                    into.push_str(&format!("{name} ---644 0 0 {}\n", text(&path)));
                }
            }
        }
        let mut tree = "/dev/null\n0 0\nd--755 0 0\n".to_owned();
        list(&self.root(), &mut tree);
        tree.push_str("$\n");
        let prototype = self.dir.path().join("prototype");
        fs::write(&prototype, tree).unwrap();
        let image = self.dir.path().join("xfs");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let done = Command::new("mkfs.xfs")
            .args(["-q", "-p", text(&prototype)])
            .args(options)
            .arg(&image)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([("TEST_DIR", "x"), ("TEST_DEV", "x"), ("QA_CHECK_FS", "x")])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::read(image).unwrap()
    }

    fn fat(&self, bits: &str, mib: u64) -> Vec<u8> {
        let image = self.dir.path().join("fat");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        tool("mkfs.vfat", &["-F", bits, text(&image)]);
        for entry in fs::read_dir(self.root()).unwrap() {
            let path = entry.unwrap().path();
            tool("mcopy", &["-s", "-i", text(&image), text(&path), "::"]);
        }
        fs::read(image).unwrap()
    }
}

/// A disk with a partition table (`gpt` or `dos`) and a partition for each file system, at every 1 MiB
/// boundary.
fn disk(table: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    let mut script = format!("label: {table}\n");
    let mut at = 1 << 20;
    for part in parts {
        script.push_str(&format!("start={}, size={}\n", at / 512, part.len() / 512));
        at += part.len().next_multiple_of(1 << 20);
    }
    fs::File::create(&image).unwrap().set_len(at as u64 + (1 << 20)).unwrap();
    let script_file = dir.path().join("script");
    fs::write(&script_file, script).unwrap();
    let command = format!("sfdisk -q {} < {}", text(&image), text(&script_file));
    tool("sh", &["-c", &command]);
    let mut bytes = fs::read(&image).unwrap();
    let mut at = 1 << 20;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len().next_multiple_of(1 << 20);
    }
    bytes
}

/// Something that looks like a bzImage of this many bytes.
fn kernel(size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size).map(|n| n.to_le_bytes()[0]).collect();
    bytes[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x6aHdrS");
    bytes
}

struct Booted {
    found: Found,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

fn boot(image: Vec<u8>) -> Result<Booted, Trouble> {
    let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
    let found = find(Arc::new(image), &mut kernel, &mut initrd)?;
    Ok(Booted { found, kernel, initrd })
}

fn refusal(image: Vec<u8>) -> String {
    match boot(image) {
        Ok(booted) => panic!("booted {:?}", booted.found),
        Err(trouble) => trouble.to_string(),
    }
}

const GRUB_CFG: &[u8] = b"set default=0\nmenuentry 'Debian GNU/Linux' {\n\tlinux /boot/vmlinuz-6.1 root=UUID=1 ro console=ttyS0\n\
                          \tinitrd /boot/initrd.img-6.1\n}\n";

fn debian() -> Tree {
    Tree::new()
        .file("boot/vmlinuz-6.1", &kernel(300_001))
        .file("boot/initrd.img-6.1", &[7; 70_000])
        .file("boot/grub/grub.cfg", GRUB_CFG)
}

#[test]
fn debian_cloud_layout() {
    // p1 is the root file system, the others the ESP and a BIOS boot partition, as in genericcloud images.
    let esp = Tree::new().file(
        "EFI/debian/grub.cfg",
        b"search.fs_uuid 1 root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n",
    );
    let image = disk("gpt", &[debian().ext4(24, &[]), esp.fat("16", 16), vec![0; 1 << 20]]);
    let booted = boot(image).unwrap();
    assert_eq!(
        booted.found,
        Found {
            command_line: "root=UUID=1 ro console=ttyS0".into(),
            entry: "Debian GNU/Linux".into(),
            partition: 1,
            has_initrd: true
        }
    );
    assert_eq!(booted.kernel, kernel(300_001));
    assert_eq!(booted.initrd, [7; 70_000]);
}

#[test]
fn a_damaged_primary_gpt_leaves_the_backup() {
    let mut image = disk("gpt", &[debian().ext4(24, &[])]);
    image[512..1024].fill(0xff);
    assert_eq!(boot(image).unwrap().found.partition, 1);
}

#[test]
fn separate_boot_partition_with_bls_entries_and_several_initrds() {
    let tree = Tree::new()
        .file("vmlinuz-6.8", &kernel(5000))
        .file("a.img", b"12345")
        .file("b.img", b"678")
        .file("loader/entries/m-6.7.conf", b"title Old\nversion 6.7\nlinux /vmlinuz-6.7\n")
        .file(
            "loader/entries/m-6.8.conf",
            b"title Fedora\nversion 6.8\nlinux /vmlinuz-6.8\ninitrd /a.img\ninitrd /b.img\noptions $kernelopts quiet\n",
        )
        .file("grub2/grubenv", b"# GRUB Environment Block\nkernelopts=root=UUID=9 ro\n#####");
    let booted = boot(disk("dos", &[vec![0; 1 << 20], tree.ext4(16, &["-O", "^has_journal"])])).unwrap();
    assert_eq!(booted.found.command_line, "root=UUID=9 ro quiet");
    assert_eq!((booted.found.partition, booted.found.entry.as_str()), (2, "Fedora"));
    assert_eq!(booted.initrd, b"12345\x00\x00\x00678");
}

#[test]
fn fat_of_every_width_with_long_names() {
    for (bits, mib) in [("12", 4), ("16", 16), ("32", 40)] {
        let tree = Tree::new()
            .file("0123456789abcdef0123456789abcdef/6.1/linux", &kernel(150_000))
            .file("loader/loader.conf", b"timeout 3\ndefault *-6.1.conf\n")
            .file(
                "loader/entries/0123456789abcdef0123456789abcdef-6.1.conf",
                b"title  Debian\nlinux /0123456789ABCDEF0123456789abcdef/6.1/linux\noptions root=/dev/vda2\n",
            );
        let booted = boot(tree.fat(bits, mib)).unwrap();
        assert_eq!(booted.kernel, kernel(150_000), "FAT{bits}");
        assert!(!booted.found.has_initrd);
        assert_eq!((booted.found.partition, booted.found.command_line.as_str()), (0, "root=/dev/vda2"));
    }
}

#[test]
fn bare_ext2_with_extlinux_and_symbolic_links() {
    let tree = Tree::new()
        .file("boot/vmlinuz-virt", &kernel(9000))
        .file(
            "boot/extlinux.conf",
            b"DEFAULT v\nLABEL v\n LINUX vmlinuz\n APPEND root=/dev/vda modules=ext4\n",
        )
        .link("boot/vmlinuz", "vmlinuz-virt");
    let booted = boot(tree.ext4(16, &["-t", "ext2"])).unwrap();
    assert_eq!(booted.kernel, kernel(9000));
    assert_eq!(booted.found.entry, "v");
}

#[test]
fn an_entry_whose_files_are_gone_gives_way_to_the_next() {
    let tree = Tree::new().file("boot/vmlinuz-2", &kernel(2000)).file(
        "boot/grub/grub.cfg",
        b"menuentry A {\n linux /boot/vmlinuz-1\n}\nmenuentry B {\n linux /boot/vmlinuz-2 x\n}\n",
    );
    assert_eq!(boot(tree.ext4(16, &[])).unwrap().found.entry, "B");
}

#[test]
fn xfs_of_both_versions_with_directories_of_every_form() {
    let mut tree = Tree::new()
        .file("boot/vmlinuz-5.14", &kernel(3_000_000))
        .file("boot/initrd-5.14", &[8; 5000])
        .file(
            "boot/grub2/grub.cfg",
            b"menuentry A {\n linux /boot/kernel root=/dev/vda1\n initrd /boot/up/../initrd-5.14\n}\n",
        )
        .file("boot/sub/x", b"")
        .link("boot/kernel", "sub/../vmlinuz-5.14")
        .link("boot/up", "/boot/sub");
    // Beyond what fits into an inode, a block, and the first blocks of a directory.
    for n in 0..1500 {
        tree = tree.file(&format!("boot/entry-with-a-longer-name-{n}"), b"");
    }
    for options in [
        &["-m", "crc=1"][..],
        &["-m", "crc=0"],
        &["-b", "size=1024"],
        &["-m", "crc=1", "-n", "size=16384", "-i", "size=1024"],
    ] {
        let booted = boot(tree.xfs(64, options)).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert!(booted.kernel == kernel(3_000_000), "{options:?}");
        assert_eq!((booted.initrd, booted.found.command_line.as_str()), (vec![8; 5000], "root=/dev/vda1"));
    }
    let image = tree.xfs(64, &[]);
    let fs = super::xfs::Xfs::new(super::disk::Window::whole(Arc::new(image))).unwrap();
    let mut names = super::fs::BootFs::list(&fs, "/boot/grub2/..").unwrap();
    names.retain(|name| !name.starts_with("entry-"));
    names.sort();
    assert_eq!(names, ["grub2", "initrd-5.14", "kernel", "sub", "up", "vmlinuz-5.14"]);
    assert_eq!(super::fs::BootFs::list(&fs, "/boot").unwrap().len(), 1506);
    for missing in ["/boot/none", "/boot/kernel/x", "/boot/sub"] {
        assert!(super::fs::BootFs::open(&fs, missing).is_err(), "{missing}");
    }
}

/// A file in many pieces, whose extents take a tree: written by the kernel, as nothing else makes one.
#[test]
fn xfs_files_in_many_pieces() {
    let tree = Tree::new().file("boot/extlinux.conf", b"label a\nkernel /boot/k\n");
    let image = tree.dir.path().join("xfs");
    fs::write(&image, tree.xfs(64, &["-b", "size=1024"])).unwrap();
    let mount = tree.dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-o", "loop", text(&image), text(&mount)]).output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        println!("skipped: this kernel does not mount XFS");
        return;
    }
    let expected = kernel(400 * 2048);
    let write = || -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(mount.join("boot/k"))?;
        let other = fs::File::create(mount.join("boot/other"))?;
        // Every second block now, and the rest later, each on the disk before the next.
        for half in 0..2 {
            for n in (half..800).step_by(2) {
                file.write_all_at(&expected[n * 1024..(n + 1) * 1024], n as u64 * 1024)?;
                other.write_all_at(&[1; 1024], n as u64 * 2048)?;
                if n % 16 < 2 {
                    file.sync_data()?;
                }
            }
        }
        file.sync_all()
    };
    let written = write();
    tool("umount", &[text(&mount)]);
    written.unwrap();
    let image = fs::read(&image).unwrap();
    assert!(image.windows(4).any(|bytes| bytes == b"BMA3"), "the file's extents did not need a tree");
    assert!(boot(image).unwrap().kernel == expected);
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut btrfs = vec![0; 1 << 20];
    btrfs[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
    let mut luks = vec![0; 1 << 20];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    let mut lvm = vec![0; 1 << 20];
    lvm[512..520].copy_from_slice(b"LABELONE");
    let said = refusal(disk("gpt", &[xfs, btrfs, luks, lvm]));
    for name in ["partition 1 is XFS", "partition 2 is btrfs", "partition 3 is LUKS", "partition 4 is LVM"] {
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn wrong_kernels_and_limits_are_refused() {
    let with = |kernel: &[u8], options: &str| {
        let config = format!("label a\nkernel /k\nappend {options}\n");
        Tree::new().file("k", kernel).file("extlinux.conf", config.as_bytes()).ext4(16, &[])
    };
    assert!(refusal(with(b"MZ\0\0", "x")).contains("EFI program"));
    assert!(refusal(with(b"hello", "x")).contains("neither"));
    assert!(refusal(with(&kernel(2000), &"x".repeat(2048))).contains("2048 bytes"));
    assert!(refusal(with(&kernel(2000), "a\u{7}b")).contains("control characters"));
}

#[test]
fn a_kernel_beyond_the_limit_is_refused_before_it_is_copied() {
    let tree = Tree::new().file("k", &kernel(2000)).file("extlinux.conf", b"label a\nkernel /k\n");
    let file = fs::OpenOptions::new().write(true).open(tree.root().join("k")).unwrap();
    file.set_len((128 << 20) + 1).unwrap();
    assert!(refusal(tree.ext4(160, &[])).contains("larger than 128 MiB"));
}

#[test]
fn nothing_bootable() {
    assert!(refusal(vec![0; 1 << 20]).contains("partition 0 holds nothing known"));
    assert!(refusal(Vec::new()).contains("no boot entry"));
    let said = refusal(Tree::new().file("EFI/Linux/debian+3.efi", b"MZ").fat("16", 16));
    assert!(said.contains("partition 0 holds unified kernel images"), "{said}");
    let said = refusal(Tree::new().file("etc/hostname", b"x").ext4(16, &[]));
    assert!(said.contains("partition 0 is ext2/3/4"), "{said}");
}

/// An image and the places in it that are not zero: damage to the rest would mostly hit nothing.
struct Target {
    image: Vec<u8>,
    used: Vec<usize>,
}

impl Target {
    fn new(image: Vec<u8>) -> Self {
        let used = image.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
        Self { image, used }
    }

    /// Damages the image and expects an answer, whatever it is.
    fn survives(&self, hits: &[(usize, u8)], cut: usize) {
        let mut broken = self.image.clone();
        for (at, value) in hits {
            broken[self.used[at % self.used.len()]] = *value;
        }
        broken.truncate(broken.len() - cut);
        let _ = boot(broken);
    }
}

fn small() -> Tree {
    let tree = Tree::new().file("boot/vmlinuz-6.1", &kernel(3000)).file("boot/initrd.img-6.1", b"7");
    tree.file("boot/grub/grub.cfg", GRUB_CFG)
}

/// Without checksums, damage reaches further into the reader.
static EXT4: LazyLock<Target> =
    LazyLock::new(|| Target::new(small().ext4(1, &["-b", "1024", "-O", "^metadata_csum,^has_journal"])));
static FAT: LazyLock<Target> = LazyLock::new(|| Target::new(small().fat("12", 1)));
static XFS: LazyLock<Target> = LazyLock::new(|| Target::new(small().xfs(16, &["-m", "crc=0"])));

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_ext4_never_panics(hits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..60), cut in prop::sample::select(vec![0, 0, 1000, 900_000])) {
        EXT4.survives(&hits, cut);
    }

    #[test]
    fn damaged_xfs_never_panics(hits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..60), cut in prop::sample::select(vec![0, 0, 1000, 900_000])) {
        XFS.survives(&hits, cut);
    }

    #[test]
    fn damaged_fat_never_panics(hits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..60), cut in prop::sample::select(vec![0, 0, 1000, 900_000])) {
        FAT.survives(&hits, cut);
    }
}

#[test]
fn the_images_that_are_damaged_boot_when_whole() {
    for target in [&EXT4, &FAT, &XFS] {
        assert!(boot(target.image.clone()).is_ok());
    }
}
