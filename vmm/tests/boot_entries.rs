//! `vmm boot-entries` as other processes see it: descriptors in, JSON and two files out, and a sandbox that bites.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use nix::sys::memfd::{MFdFlags, memfd_create};

fn memory_file() -> File {
    let fd: OwnedFd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    File::from(fd)
}

/// Starts the command with `files` as descriptors 100, 101, 102.
fn boot_entries(files: [&File; 3]) -> Output {
    let descriptors: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(["boot-entries", "--disk-fd", "100", "--kernel-fd", "101", "--initrd-fd", "102"]);
    let place = move || {
        for (from, to) in descriptors.iter().zip(100..) {
            // SAFETY: dup2 on open descriptors, between fork and exec; it is async-signal-safe.
            if unsafe { libc::dup2(*from, to) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only calls dup2.
    unsafe { command.pre_exec(place) };
    command.output().unwrap()
}

/// A bare FAT12 file system with an `extlinux.conf` and a kernel, put together by hand.
fn image() -> Vec<u8> {
    let mut disk = vec![0_u8; 64 << 10];
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    // 1 sector per cluster, 1 reserved, 1 table of 1 sector, 16 root entries, 128 sectors.
    put(0, &[0xeb, 0x3c, 0x90]);
    put(11, &[0x00, 0x02, 1, 1, 0, 1, 16, 0, 128, 0, 0xf8, 1, 0]);
    put(510, &[0x55, 0xaa]);
    // Cluster 2: the configuration; 3, 4: the kernel.
    put(512, &[0xf8, 0xff, 0xff, 0xff, 0x4f, 0x00, 0xff, 0x0f, 0x00]);
    let entry = |name: &[u8; 11], cluster: u16, size: u32| {
        let mut slot = [0; 32];
        slot[..11].copy_from_slice(name);
        slot[26..28].copy_from_slice(&cluster.to_le_bytes());
        slot[28..].copy_from_slice(&size.to_le_bytes());
        slot
    };
    let config = b"DEFAULT a\nLABEL a\nKERNEL /LINUX\nAPPEND root=/dev/vda\n";
    put(1024, &entry(b"SYSLINUXCFG", 2, u32::try_from(config.len()).unwrap()));
    put(1056, &entry(b"LINUX      ", 3, 700));
    put(1536, config);
    put(2048 + 0x1fe, b"\x55\xaa\xeb\x6aHdrS");
    disk
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn finds_and_copies() {
    let (mut disk, mut kernel, mut initrd) = (memory_file(), memory_file(), memory_file());
    disk.write_all(&image()).unwrap();
    let output = boot_entries([&disk, &kernel, &initrd]);
    assert!(output.status.success(), "{output:?}");
    let expected = serde_json::json!({"command_line": "root=/dev/vda", "entry": "a", "partition": 0, "has_initrd": false});
    assert_eq!(json(&output), expected);
    // The offsets are shared: what was written can be read at once.
    let mut bytes = Vec::new();
    kernel.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, image()[2048..2748]);
    assert_eq!(initrd.seek(SeekFrom::End(0)).unwrap(), 0);
}

#[test]
fn says_what_is_wrong() {
    let disk = memory_file();
    disk.set_len(1 << 20).unwrap();
    let output = boot_entries([&disk, &memory_file(), &memory_file()]);
    assert_eq!(output.status.code(), Some(1));
    let said = json(&output);
    assert!(said["error"].as_str().unwrap().contains("no boot entry"), "{said}");
    assert!(said["remedy"].as_str().unwrap().contains("kernel_id"), "{said}");
}

#[test]
fn descriptors_that_are_not_open_are_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["boot-entries", "--disk-fd", "777", "--kernel-fd", "778", "--initrd-fd", "779"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(json(&output)["error"].as_str().unwrap().contains("777"), "{output:?}");
}
