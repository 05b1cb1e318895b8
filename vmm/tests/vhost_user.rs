//! Devices that other processes work, under tiny guests that drive them.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::driver::{read_sector, start_disk};
use common::{Guest, Plan, kvm, longest};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::machine::{BackendDevice, EndReason};

/// A program that listens at a socket; killed in the end.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(command: &mut Command, socket: &Path) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Self { child, socket: socket.to_owned() }
    }

    /// QEMU's storage daemon with a disk image, where it is installed.
    fn disk(directory: &Path, image: &Path, options: &str) -> Option<Self> {
        let program = Path::new("/usr/bin/qemu-storage-daemon");
        if !program.exists() {
            println!("skipped: there is no qemu-storage-daemon (Debian: qemu-system-common)");
            return None;
        }
        let socket = directory.join("blk.sock");
        let mut command = Command::new(program);
        command.arg("--blockdev").arg(format!("driver=file,node-name=disk,filename={}", image.display()));
        let export = "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path";
        command.arg("--export").arg(format!("{export}={}{options}", socket.display()));
        Some(Self::start(&mut command, &socket))
    }

    fn connect(&self) -> UnixStream {
        let until = Instant::now() + longest();
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < until, "nobody listens: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn disk() -> BackendDevice {
    BackendDevice::Disk { key: "theirs".into() }
}

/// Waits until the first request is done, and prints its status and the first four bytes read.
fn show(asm: Asm) -> Asm {
    asm.until(0xffff_0000, |asm| asm.read32(DATA + 0x2000))
        .read8(DATA + 0x4200)
        .raw(&[0x04, b'0'])
        .put_al()
        .read32(DATA + 0x4000)
        .print_eax()
}

#[test]
fn a_guest_reads_a_disk_of_qemu_s_storage_daemon() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    let mut content = vec![0u8; 1 << 20];
    content[512..518].copy_from_slice(b"sector");
    std::fs::write(&image, &content).unwrap();
    let Some(server) = Server::disk(directory.path(), &image, "") else { return };
    let mut plan = Plan::new(show(read_sector(start_disk(Asm::new()), 1)).power_off().elf());
    plan.backends.push((disk(), server.connect().into()));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    assert_eq!(guest.console(), format!("0{}", printed(u32::from_le_bytes(*b"sect"))));
}
