//! Devices that other processes work, under tiny guests that drive them.

#![allow(clippy::unwrap_used)]

mod common;

use common::asm::{Asm, DATA, printed};
use common::backend::{self, Behaviour, Device};
use common::driver::{BAR, descriptor, read_sector, start_device, start_disk};
use common::{Guest, Plan, kvm, longest};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::ids::{Mac, PortId};
use wire::machine::{BackendDevice, BackendState, EndReason, MachineCall, MachineReply};

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

/// A disk in this process: its thread, and the other end of its connection.
fn our_disk(
    disk: &Arc<Mutex<Vec<u8>>>,
    dies_after: Option<u32>,
    tracks: bool,
) -> (JoinHandle<()>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let how = Behaviour { device: Device::Disk(disk.clone()), dies_after, tracks };
    (backend::start(ours, how), theirs)
}

fn connect(guest: &Guest, device: &BackendDevice, line: &UnixStream) {
    let call = MachineCall::ConnectBackend { device: device.name() };
    assert_eq!(guest.call_with(&call, Some(line.as_fd())), MachineReply::Done);
}

fn wait_state(guest: &Guest, state: BackendState) {
    guest.wait_status(|status| status.backends.iter().all(|backend| backend.state == state));
}

const HEADERS: u32 = DATA + 0x3000;
const BUFFERS: u32 = DATA + 0x4000;

/// Keeps two writes of a growing number under way, to sectors 1 and 2, `rounds` times; then prints both statuses.
fn writer(rounds: u32) -> Asm {
    let mut asm = start_disk(Asm::new());
    for (chain, sector) in [(0, 1), (1, 2)] {
        let (header, buffer) = (HEADERS + 16 * chain, BUFFERS + 0x400 * chain);
        asm = asm.write32(header, 1).write32(header + 8, sector).write8(buffer + 0x200, 0xff);
        asm = descriptor(asm, 3 * chain, header, 16, 1);
        asm = descriptor(asm, 3 * chain + 1, buffer, 512, 1);
        asm = descriptor(asm, 3 * chain + 2, buffer + 0x200, 1, 2);
    }
    for slot in 0..4 {
        asm = asm.write32(DATA + 0x1004 + 4 * slot, 3 << 16);
    }
    write_on(asm, rounds)
}

/// Likewise, once more.
fn write_on(mut asm: Asm, rounds: u32) -> Asm {
    // xor esi, esi
    asm = asm.raw(&[0x31, 0xf6]);
    let start = asm.here();
    // inc dword [buffer], of both; add word [available index], 2
    for buffer in [BUFFERS, BUFFERS + 0x400] {
        asm = asm.raw(&[0xff, 0x05]).raw(&buffer.to_le_bytes());
    }
    asm = asm.raw(&[0x66, 0x83, 0x05]).raw(&(DATA + 0x1002).to_le_bytes()).raw(&[2]);
    asm = asm.write16(BAR + 0x2000, 0);
    // mov ax, [available index]; cmp ax, [used index]; jne back
    asm = asm.raw(&[0x66, 0xa1]).raw(&(DATA + 0x1002).to_le_bytes());
    asm = asm.raw(&[0x66, 0x3b, 0x05]).raw(&(DATA + 0x2002).to_le_bytes()).raw(&[0x75, 0xf1]);
    // inc esi; cmp esi, rounds; jb start
    asm = asm.raw(&[0x46, 0x81, 0xfe]).raw(&rounds.to_le_bytes());
    let next = asm.here() + 6;
    asm = asm.raw(&[0x0f, 0x82]).raw(&start.wrapping_sub(next).to_le_bytes());
    for buffer in [BUFFERS, BUFFERS + 0x400] {
        asm = asm.read8(buffer + 0x200).raw(&[0x04, b'0']).put_al();
    }
    asm
}

/// The numbers in sectors 1 and 2.
fn numbers(disk: &[u8]) -> [u32; 2] {
    [512, 1024].map(|at| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap()))
}

#[test]
fn a_back_end_that_dies_under_load_is_replaced_and_nothing_is_lost() {
    if !kvm() {
        return;
    }
    const ROUNDS: u32 = 400;
    let disk = Arc::new(Mutex::new(vec![0u8; 8 * 512]));
    let device = self::disk();
    let mut plan = Plan::new(writer(ROUNDS).power_off().elf());
    let (mut thread, line) = our_disk(&disk, Some(51), true);
    plan.backends.push((device.clone(), line.into()));
    let mut guest = Guest::start(plan);
    for deaths in [Some(1), Some(2), Some(100), Some(33), None] {
        // It has worked and is dead, and the monitor has seen it.
        thread.join().unwrap();
        wait_state(&guest, BackendState::Lost);
        let (next, line) = our_disk(&disk, deaths, true);
        connect(&guest, &device, &line);
        thread = next;
    }
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    assert_eq!(guest.console(), "00");
    assert_eq!(numbers(&disk.lock().unwrap()), [ROUNDS; 2]);
}

#[test]
fn without_a_record_of_what_was_under_way_a_disk_stands_still_and_says_so() {
    if !kvm() {
        return;
    }
    let disk = Arc::new(Mutex::new(vec![0u8; 8 * 512]));
    let device = self::disk();
    let mut plan = Plan::new(writer(400).power_off().elf());
    plan.backends.push((device.clone(), our_disk(&disk, Some(51), false).1.into()));
    let guest = Guest::start(plan);
    wait_state(&guest, BackendState::Lost);
    connect(&guest, &device, &our_disk(&disk, None, false).1);
    wait_state(&guest, BackendState::Stuck);
    assert!(guest.log().contains("what was under way is not known"), "{}", guest.log());
    guest.done(&MachineCall::Stop);
}

/// Writes 1 to sectors 1 and 2, says so, waits for the power button, and then reads sector 1 and prints its first word.
fn late_reader() -> Asm {
    let asm = writer(1).print(" ").until(1, |asm| asm.in32(0x610));
    // The first chain again, reading this time: its data piece is the device's to write.
    let asm = asm.write32(DATA + 0x3000, 0).write32(DATA + 0x4000, 0).write8(DATA + 0x4200, 0xff);
    let asm = descriptor(asm, 1, DATA + 0x4000, 512, 3);
    let asm = asm.write32(DATA + 0x1008, 0).write16(DATA + 0x1002, 3).write16(BAR + 0x2000, 0);
    let asm = asm.until(1, |asm| asm.read32(DATA + 0x2000).raw(&[0xc1, 0xe8, 16]));
    asm.read8(DATA + 0x4200).raw(&[0x04, b'0']).put_al().read32(DATA + 0x4000).print_eax()
}

#[test]
fn a_storage_daemon_that_is_killed_while_idle_is_replaced() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![7u8; 1 << 20]).unwrap();
    let Some(first) = Server::disk(directory.path(), &image, ",writable=on") else { return };
    let device = self::disk();
    let mut plan = Plan::new(late_reader().power_off().elf());
    plan.backends.push((device.clone(), first.connect().into()));
    let mut guest = Guest::start(plan);
    guest.wait_console("00 ");
    drop(first);
    wait_state(&guest, BackendState::Lost);
    std::fs::remove_file(directory.path().join("blk.sock")).unwrap();
    let second = Server::disk(directory.path(), &image, ",writable=on").unwrap();
    connect(&guest, &device, &second.connect());
    wait_state(&guest, BackendState::Connected);
    guest.done(&MachineCall::PowerButton);
    assert!(guest.wait_end().1.is_some(), "{}", guest.log());
    assert_eq!(guest.console(), format!("00 0{}", printed(1)));
    assert_eq!(numbers(&std::fs::read(&image).unwrap()), [1, 1]);
}

#[test]
fn a_snapshot_goes_on_with_another_back_end_of_the_same_disk() {
    if !kvm() {
        return;
    }
    let disk = Arc::new(Mutex::new(vec![0u8; 8 * 512]));
    let plan = || {
        let mut plan = Plan::new(late_reader().power_off().elf());
        plan.backends.push((self::disk(), our_disk(&disk, None, true).1.into()));
        plan
    };
    let mut first = Guest::start(plan());
    first.wait_console("00 ");
    // What the other process writes is not tracked.
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let refused = first.call_with_all(&MachineCall::Snapshot { track: true, changes: false }, &files);
    assert!(matches!(&refused, MachineReply::Refused(why) if why.to_string().contains("not tracked")));
    let (files, _) = first.snapshot();
    // It goes on, too.
    let mut second = Guest::start(Plan { restore: Some(files), ..plan() });
    for guest in [&mut first, &mut second] {
        guest.done(&MachineCall::PowerButton);
        assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerButton, "{}", guest.log());
    }
    assert_eq!(first.console(), format!("00 0{}", printed(1)));
    assert_eq!(second.console(), format!("0{}", printed(1)));
}

#[test]
fn devices_of_back_ends_are_plugged_in_where_memory_is_shared() {
    if !kvm() {
        return;
    }
    let disk = Arc::new(Mutex::new(vec![0u8; 8 * 512]));
    let device = self::disk();
    let plug = |guest: &Guest| {
        let call = MachineCall::PlugBackend { device: device.clone() };
        guest.call_with(&call, Some(our_disk(&disk, None, true).1.as_fd()))
    };
    // Says what was inserted (bits of slots), ejects all that it is asked for.
    let asm = || Asm::new().print("ready").until(u32::MAX, |asm| asm.in32(0x620)).print("seen").stop();
    let mut private = Guest::start(Plan::new(asm().elf()));
    private.wait_console("ready");
    let refused = plug(&private);
    assert!(
        matches!(&refused, MachineReply::Refused(why) if why.to_string().contains("with shared memory")),
        "{refused:?}"
    );
    let mut plan = Plan::new(asm().elf());
    plan.memory_backing.shared = true;
    let mut guest = Guest::start(plan);
    guest.wait_console("ready");
    assert_eq!(plug(&guest), MachineReply::Done);
    assert_eq!(plug(&guest), MachineReply::Done);
    let status = guest.status();
    assert_eq!((status.disks.len(), status.disks[0].bytes), (1, 8 * 512));
    assert_eq!(status.backends[0].state, BackendState::Connected);
    // A socket of which nothing comes is refused in time.
    let (_silent, line) = UnixStream::pair().unwrap();
    let call = MachineCall::PlugBackend { device: BackendDevice::Files { tag: "x".into() } };
    assert!(matches!(guest.call_with(&call, Some(line.as_fd())), MachineReply::Refused(_)));
    guest.done(&MachineCall::Stop);
}

#[test]
fn by_hand_too_and_the_back_end_may_come_back() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![7u8; 1 << 20]).unwrap();
    let socket = directory.path().join("blk.sock");
    let kernel = directory.path().join("kernel");
    // After the first byte from the serial port it writes on.
    let asm = write_on(writer(1).until(1, |asm| asm.in8(0x3fd)), 1).power_off();
    std::fs::write(&kernel, asm.elf()).unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.arg("run").arg("--kernel").arg(&kernel).arg("--vhost-user-blk").arg(&socket);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let refused = command().output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("blk.sock") && text.contains("start it first"), "{text}");
    let Some(first) = Server::disk(directory.path(), &image, ",writable=on") else { return };
    drop(first.connect());
    let mut machine = command().spawn().unwrap();
    let mut said = [0u8; 2];
    machine.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!((&said, numbers(&std::fs::read(&image).unwrap())), (b"00", [1, 1]));
    drop(first);
    let mut log = BufReader::new(machine.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(line.contains("lost its back end"), "{line}");
    // What the guest asks for meanwhile waits.
    machine.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    std::fs::remove_file(&socket).unwrap();
    let _second = Server::disk(directory.path(), &image, ",writable=on").unwrap();
    let ended = machine.wait().unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(ended.code(), Some(0), "{text}");
    assert_eq!(numbers(&std::fs::read(&image).unwrap()), [2, 2], "{text}");
}

#[test]
fn packets_come_back_from_a_network_in_another_process() {
    if !kvm() {
        return;
    }
    const NIC: u32 = 0xc000_0000 + 2 * 0x4000;
    const SENT: u32 = DATA + 0x1_4000;
    // The queue from the guest, then the one to it and DRIVER_OK.
    let mut asm = Asm::new().pci_write(2, 0x04, 6).write16(NIC + 0x16, 1).write16(NIC + 0x18, 8);
    for (register, address) in [(0x20, 0x1_0000), (0x28, 0x1_1000), (0x30, 0x1_2000)] {
        asm = asm.write32(NIC + register, DATA + address);
    }
    asm = start_device(asm.write16(NIC + 0x1c, 1), 2, NIC);
    // A buffer of 256 bytes, then a packet of 12 bytes of header and 60 of its own.
    asm = asm.write32(DATA, DATA + 0x4000).write32(DATA + 8, 256).write32(DATA + 12, 2);
    asm = asm.write32(DATA + 0x1000, 1 << 16).write16(NIC + 0x2000, 0);
    asm = asm.write32(SENT + 12, u32::from_le_bytes(*b"ping"));
    asm = asm.write32(DATA + 0x1_0000, SENT).write32(DATA + 0x1_0008, 72).write32(DATA + 0x1_000c, 0);
    asm = asm.write32(DATA + 0x1_1000, 1 << 16).write16(NIC + 0x2004, 1);
    asm = asm.until(0xffff_0000, |asm| asm.read32(DATA + 0x2000));
    asm = asm.read32(DATA + 0x2008).print_eax().read32(DATA + 0x400c).print_eax();
    // Address and status, MTU.
    for offset in [0x200, 0x204, 0x208] {
        asm = asm.read32(NIC + offset).print_eax();
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    backend::start(ours, Behaviour { device: Device::Echo, dies_after: None, tracks: false });
    let mut plan = Plan::new(asm.power_off().elf());
    let device = BackendDevice::Nic { port: PortId::new(), mac: Mac([2, 0, 0, 0, 0, 9]), mtu: 1450 };
    plan.backends.push((device, theirs.into()));
    let mut guest = Guest::start(plan);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff, "{}", guest.log());
    let words = [72, u32::from_le_bytes(*b"ping"), 2, 0x0001_0900, 1 | (1450 << 16)];
    assert_eq!(guest.console(), words.map(printed).concat());
}

#[test]
fn a_guest_finds_a_file_in_a_directory_of_the_host() {
    let program = Path::new("/usr/lib/qemu/virtiofsd");
    if !kvm() {
        return;
    }
    if !program.exists() {
        println!("skipped: there is no {} (Debian 12: qemu-system-common)", program.display());
        return;
    }
    const FILES: u32 = 0xc000_0000 + 27 * 0x4000;
    const IN: u32 = DATA + 0x3000;
    const OUT: u32 = DATA + 0x4000;
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), vec![0; 12345]).unwrap();
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("fs.sock");
    let mut command = Command::new(program);
    command.arg(format!("--socket-path={}", socket.display()));
    command.arg("-o").arg(format!("source={}", shared.path().display())).stderr(Stdio::null());
    let server = Server::start(&mut command, &socket);
    let device = BackendDevice::Files { tag: "share".into() };
    // The queue of requests, the second one; then the first and DRIVER_OK.
    let mut asm = Asm::new().pci_write(27, 0x04, 6).write16(FILES + 0x16, 1).write16(FILES + 0x18, 8);
    for (register, address) in [(0x20, 0x1_0000), (0x28, 0x1_1000), (0x30, 0x1_2000)] {
        asm = asm.write32(FILES + register, DATA + address);
    }
    asm = start_device(asm.write16(FILES + 0x1c, 1), 27, FILES);
    // FUSE_INIT of version 7.31, then FUSE_LOOKUP of "file" in the root.
    let requests: [(u32, u32, &[u32]); 2] =
        [(26, 0, &[7, 31, 0, 0]), (1, 1, &[u32::from_le_bytes(*b"file"), 0])];
    for (count, (operation, node, body)) in (1u32..).zip(requests) {
        let length = 40 + if operation == 1 { 5 } else { 16 };
        asm = asm.write32(IN, length).write32(IN + 4, operation).write32(IN + 8, count);
        asm = asm.write32(IN + 16, node);
        for (at, word) in (0u32..).zip(body) {
            asm = asm.write32(IN + 40 + 4 * at, *word);
        }
        let table = DATA + 0x1_0000;
        asm = asm.write32(table, IN).write32(table + 8, length).write32(table + 12, 1 | (1 << 16));
        asm = asm.write32(table + 16, OUT).write32(table + 24, 256).write32(table + 28, 2);
        asm = asm.write16(DATA + 0x1_1004 + 2 * (count - 1), 0);
        asm = asm.write16(DATA + 0x1_1002, u16::try_from(count).unwrap()).write16(FILES + 0x2004, 1);
        asm = asm.until(count, |asm| asm.read32(DATA + 0x1_2000).raw(&[0xc1, 0xe8, 16]));
        // The error.
        asm = asm.read32(OUT + 4).print_eax();
    }
    // Size of the file; the tag.
    asm = asm.read32(OUT + 64).print_eax().read32(FILES + 0x200).print_eax();
    let mut plan = Plan::new(asm.print("done").stop().elf());
    plan.backends.push((device, server.connect().into()));
    let mut guest = Guest::start(plan);
    guest.wait_console("done");
    let words = [0, 0, 12345, u32::from_le_bytes(*b"shar")];
    assert_eq!(guest.console(), format!("{}done", words.map(printed).concat()));
    // Its server's memory of open files is not ours to save.
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let refused = guest.call_with_all(&MachineCall::Snapshot { track: false, changes: false }, &files);
    let MachineReply::Refused(refused) = refused else { panic!("a snapshot: {refused:?}") };
    assert!(refused.to_string().contains("shared directory 'share'"), "{refused}");
    guest.done(&MachineCall::Stop);
}
