//! What runs in the machine around: Linux guests of the monitor, driven as `hostd` does it.

#![allow(unsafe_code)]

use crate::common::{self, Guest, Plan, file};
use crate::inside::{BLOCK, Block, TALK, TCP_PORT, UDP_PORT, record, stream_of, sum};
use crate::outer::{INITRD, KERNEL};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wire::MiB;
use wire::ids::{Mac, PortId};
use wire::machine::{
    BalloonConfig, BlockSize, EndReason, Limits, MachineCall, MachineReply, NicLimits, NumaNode,
};

/// A guest that does what `mode` says in its first program.
fn linux(mode: &str, memory: u64, vcpus: u32) -> Plan {
    let mut plan = Plan::new(std::fs::read(KERNEL).unwrap());
    plan.initrd = Some(std::fs::read(INITRD).unwrap());
    plan.command_line = command_line(mode);
    plan.memory = MiB(memory);
    plan.vcpus = vcpus;
    plan
}

/// The timer check misfires under emulation on a busy host.
fn command_line(mode: &str) -> String {
    format!("console=ttyS0 quiet no_timer_check panic=-1 net.ifnames=0 8250.nr_uarts=1 l2={mode}")
}

/// A tap that leads to this machine, as the guests' scripts expect it.
fn uplink() -> OwnedFd {
    let tap = common::tap(Some("up0".into()));
    let up = Command::new("ifconfig").args(["up0", "10.9.0.1", "netmask", "255.255.255.0", "up"]).status();
    assert!(up.unwrap().success());
    tap
}

fn nic(tap: OwnedFd) -> (PortId, OwnedFd, Mac) {
    (PortId::new(), tap, Mac([2, 0, 0, 0, 0, 1]))
}

/// Presses the power button until the guest has gone: one that has not loaded its driver yet loses a press.
fn power_off(guest: &mut Guest) {
    let until = Instant::now() + common::longest();
    while guest.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the guest does not power off");
        let _ = vmm::control::send(guest.connect().as_fd(), br#"{"call":"power_button"}"#, None);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerButton);
    assert!(guest.console().contains("L2: power button"));
}

#[test]
#[ignore = "runs in the machine around"]
fn linux_boots_and_takes_disks_in_and_out() {
    let mut plan = linux("plug", 192, 2);
    let root = file(&vec![0; 8 << 20]);
    plan.disks.push(("root".into(), root.try_clone().unwrap(), false));
    plan.nics.push(nic(uplink()));
    let mut guest = Guest::start(plan);
    guest.wait_console("L2: ready");
    assert!(guest.console().contains(" 0% packet loss"));
    let status = guest.wait_status(|status| status.disks.iter().all(|disk| disk.driver_ok));
    assert_eq!(status.disks.len(), 1);

    guest.done(&MachineCall::Pause);
    guest.done(&MachineCall::Resume);

    let volume = file(&vec![0; 4 << 20]);
    for round in 0..2 {
        let plug = MachineCall::PlugDisk {
            key: "volume".into(),
            read_only: false,
            serial: "volume-serial".into(),
            block_size: BlockSize::default(),
            limits: Limits::default(),
        };
        assert_eq!(guest.call_with(&plug, Some(volume.as_fd())), MachineReply::Done);
        guest.wait_status(|status| status.disks.len() == 2 && status.disks.iter().all(|disk| disk.driver_ok));
        guest.wait_console_times("L2: disk vdb 8192 serial volume-serial", round + 1);
        guest.done(&MachineCall::UnplugDisk { key: "volume".into() });
        guest.wait_status(|status| status.disks.len() == 1);
        guest.wait_console_times("L2: blocks vda \r\n", round + 2);
    }

    guest.wait_console("L2: interfaces eth0 \r\n");
    let (port, second) = (PortId::new(), common::tap(None));
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    let plug = MachineCall::PlugNic { port, mac, mtu: 1400, limits: NicLimits::default() };
    assert_eq!(guest.call_with(&plug, Some(second.as_fd())), MachineReply::Done);
    guest.wait_console("L2: interfaces eth0 eth1 \r\n");
    guest.done(&MachineCall::UnplugNic { port });
    guest.wait_status(|status| status.nics.len() == 1);
    guest.wait_console_times("L2: interfaces eth0 \r\n", 2);

    root.set_len(16 << 20).unwrap();
    guest.done(&MachineCall::ResizeDisk { key: "root".into() });
    guest.wait_console("L2: vda size 32768");

    power_off(&mut guest);
}

#[test]
#[ignore = "runs in the machine around"]
fn linux_drives_every_device() {
    let mut plan = linux("devices", 192, 2);
    plan.disks.push(("root".into(), file(&vec![0; 8 << 20]), false));
    plan.nics.push(nic(common::tap(None)));
    plan.balloon = Some(BalloonConfig { target: MiB(0), deflate_on_oom: true });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    plan.vsock = Some((7, UnixListener::bind(&path).unwrap().into()));
    let log = file(&[]);
    plan.virtio_console = Some([log.try_clone().unwrap(), file(&[])]);
    let mut guest = Guest::start(plan);
    guest.wait_console("L2: queues 2");
    guest.wait_console("L2: address 02:00:00:00:00:77");
    guest.wait_console("L2: mtu 1450");
    assert!(!guest.console().contains("L2: no offloads"));
    guest.wait_console("L2: printed");
    let mut words = [0; 9];
    log.read_exact_at(&mut words, 0).unwrap();
    assert_eq!(&words, b"L2: words");

    guest.wait_console("L2: listens");
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 52\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line}");
    let sent: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stream.write_all(&copy).map(|()| stream));
    let mut back = vec![0; sent.len()];
    reader.read_exact(&mut back).unwrap();
    assert!(back == sent);
    writer.join().unwrap().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the guest closes when it has read all");

    let balloon = |guest: &Guest| match guest.call(&MachineCall::BalloonStatus) {
        MachineReply::Balloon(status) => status,
        other => panic!("{other:?}"),
    };
    let reported = balloon(&guest).given_back;
    guest.done(&MachineCall::Balloon { target: MiB(64) });
    guest.wait_console("L2: freed");
    let until = Instant::now() + common::longest();
    while balloon(&guest).actual < 64 << 20 || balloon(&guest).statistics.total.is_none() {
        assert!(Instant::now() < until, "{:?}", balloon(&guest));
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = balloon(&guest);
    assert!(status.given_back >= 64 << 20, "{status:?}");
    println!("free pages reported before: {} MiB; now {status:?}", reported >> 20);

    let (_, end) = guest.wait_end();
    assert_eq!(end.unwrap().reason, EndReason::Watchdog, "{}", guest.console());
}

/// The last `tick` that a guest told, and when that was by its clock, in seconds since 1970.
fn last_tick(guest: &Guest) -> (u64, u64) {
    let console = guest.console();
    let line = console.lines().rfind(|line| line.starts_with("L2: tick ") && line.contains(" at ")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    (words[2].parse().unwrap(), words[4].parse().unwrap_or(0))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
#[ignore = "runs in the machine around"]
fn linux_goes_on_from_a_snapshot() {
    let root = file(&vec![0; 8 << 20]);
    let plan = |restore| {
        let mut plan = linux("tick", 128, 2);
        plan.disks.push(("root".into(), root.try_clone().unwrap(), false));
        plan.restore = restore;
        plan
    };
    let mut guest = Guest::start(plan(None));
    guest.wait_console("L2: tick 5 ");
    let (files, taken) = guest.snapshot();
    println!("\nfigure snapshot stood {} us, {} MiB", taken.stood_us, taken.memory_bytes >> 20);
    let (before, _) = last_tick(&guest);
    guest.done(&MachineCall::Stop);
    guest.wait_end();
    // Long enough for a clock that stood still to be found out.
    std::thread::sleep(Duration::from_secs(8));
    let mut guest = Guest::start(plan(Some(files)));
    guest.wait_console(&format!("L2: tick {} ", before + 8));
    let (_, time) = last_tick(&guest);
    assert!(time.abs_diff(now()) <= 5, "the guest's clock says {time}, the host's {}", now());
    let console = guest.console();
    assert!(!console.contains("L2: the disk has") && !console.contains("L2: init"), "{console}");
    guest.done(&MachineCall::Stop);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
#[ignore = "runs in the machine around"]
fn linux_loads_a_disk_and_a_network_interface() {
    let mut plan = linux("load", 192, 2);
    let root = file(&[]);
    root.set_len(64 << 20).unwrap();
    plan.disks.push(("root".into(), root, false));
    plan.nics.push(nic(uplink()));
    let listener = TcpListener::bind(("0.0.0.0", TCP_PORT)).unwrap();
    let server = std::thread::spawn(move || {
        let (data, wanted) = stream_of(TALK);
        for wish in [b'u', b'd'] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(asked[0], wish);
            if wish == b'u' {
                let mut got = vec![0; TALK];
                stream.read_exact(&mut got).unwrap();
                assert_eq!(sum(&got), wanted);
                stream.write_all(&sum(&got).to_le_bytes()).unwrap();
            } else {
                stream.write_all(&data).unwrap();
            }
        }
    });
    let mut guest = Guest::start(plan);
    guest.wait_console("L2: disk ok");
    guest.wait_console("L2: network ok");
    server.join().unwrap();
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::PowerOff);
}

/// Memory of the host that a machine takes, in MiB.
fn resident(guest: &Guest) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", guest.machine_pid())).unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 256
}

#[test]
#[ignore = "runs in the machine around"]
fn linux_grows_and_shrinks() {
    let mut plan = linux("grow", 256, 1);
    (plan.max_memory, plan.max_vcpus) = (Some(MiB(256 + 512)), Some(3));
    let node = |memory, vcpus: &[u32]| NumaNode {
        memory: MiB(memory),
        vcpus: vcpus.to_vec(),
        host_node: None,
        distances: Vec::new(),
    };
    plan.numa = vec![node(160, &[0, 2]), node(96, &[1])];
    let mut guest = Guest::start(plan);
    guest.wait_console("L2: nodes 0-1");
    guest.wait_console("L2: cpus 0 .");
    let grown = |guest: &Guest, target: u64| {
        guest.done(&MachineCall::ResizeMemory { target: MiB(target) });
        let until = Instant::now() + common::longest();
        loop {
            let MachineReply::Memory(memory) = guest.call(&MachineCall::MemoryStatus) else {
                panic!("no memory")
            };
            if memory.actual == target << 20 {
                break;
            }
            assert!(Instant::now() < until, "{memory:?}\n{}", guest.console());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    guest.done(&MachineCall::PlugVcpus { count: 3 });
    guest.wait_console("L2: cpus 0-2 .");
    guest.wait_console("L2: second node: 1 .");
    grown(&guest, 256 + 256);
    guest.wait_console("L2: filled 200");
    let full = resident(&guest);
    guest.done(&MachineCall::PlugVcpus { count: 1 });
    guest.wait_status(|status| status.vcpus == 1);
    guest.wait_console_times("L2: cpus 0 .", 2);
    grown(&guest, 256);
    let empty = resident(&guest);
    println!("\nfigure resident {full} MiB with more memory, {empty} MiB without");
    assert!(full > 250 && empty + 80 < full, "{full} MiB before, {empty} MiB after");
    guest.done(&MachineCall::Stop);
    assert_eq!(guest.wait_end().1.unwrap().reason, EndReason::Stopped);
}

#[test]
#[ignore = "runs in the machine around"]
fn linux_reboots_again_and_again() {
    let rounds: u32 = std::env::var("VMM_TEST_REBOOTS").unwrap().parse().unwrap();
    for round in 0..rounds {
        let mut guest = Guest::start(linux("reboot", 96, 1));
        let (_, end) = guest.wait_end();
        let end = end.unwrap();
        assert_eq!(end.reason, EndReason::Reset, "round {round}: {}", end.detail);
        assert!(guest.console().contains("L2: up"), "round {round}: {}", guest.console());
    }
}

#[test]
#[ignore = "runs in the machine around"]
fn eight_guests_at_once() {
    let mut guests: Vec<Guest> = (0..8).map(|_| Guest::start(linux("wait", 96, 1))).collect();
    for guest in &mut guests {
        guest.wait_console("L2: ready");
    }
    for guest in &mut guests {
        guest.status();
    }
    for guest in &mut guests {
        power_off(guest);
    }
}

/// Two disks of files that need their host to remember them.
fn power_cut_disks() -> [File; 2] {
    ["flushed", "loose"].map(|name| {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(format!("/disk/{name}"));
        let file = file.unwrap();
        file.set_len(256 << 20).unwrap();
        file
    })
}

#[test]
#[ignore = "runs in the machine around"]
fn writes_until_the_power_is_cut() {
    let mut plan = linux("write", 128, 2);
    let [flushed, loose] = power_cut_disks();
    // That there are such files is not what is looked at later.
    nix::unistd::sync();
    plan.disks.push(("flushed".into(), flushed, false));
    plan.disks.push(("loose".into(), loose, false));
    let guest = Guest::start(plan);
    let mut console = File::options().write(true).open("/dev/console").unwrap();
    let mut told = 0;
    let until = Instant::now() + common::longest();
    while Instant::now() < until {
        let said = guest.console();
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("L2: flushed ") && line.ends_with(" written"))
            .collect();
        for line in &lines[told..] {
            let line = line.replace("L2: flushed", "acknowledged");
            console.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        told = lines.len();
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the power was not cut: {}", guest.console());
}

#[test]
#[ignore = "runs in the machine around"]
fn looks_at_what_is_left() {
    let left = power_cut_disks().map(|file| {
        let mut back = Block([0; BLOCK]);
        (0u64..)
            .take_while(|number| {
                file.read_exact_at(&mut back.0, number * BLOCK as u64).unwrap();
                back.0 == record(*number).0
            })
            .count()
    });
    println!("\nfigure records {} {}", left[0], left[1]);
}

/// One run of a monitor with a guest that measures, and what it found out: names and numbers. Only until its first program runs, if `boot`.
fn measured(monitor: &str, command: &mut Command, boot: bool) {
    // Of all machines there are: this one.
    let count = |of: &str| -> u64 {
        std::fs::read_to_string(format!("/sys/kernel/debug/kvm/{of}")).unwrap().trim().parse().unwrap()
    };
    let exits = || count("exits");
    let since = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut before = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["L2:", "init"] => {
                let micros = since.elapsed().as_micros();
                let [all, ports, memory] = ["exits", "io_exits", "mmio_exits"].map(count);
                println!("\nfigure {monitor} boot {micros} us {all} exits {ports} ports {memory} memory");
                if boot {
                    break;
                }
            }
            ["L2:", "begin", ..] => before = exits(),
            ["L2:", "end", name, operations, _, bytes, _, us, ..] => {
                let exits = exits() - before;
                println!("\nfigure {monitor} {name} {operations} {bytes} {us} {exits}");
                if name == "udp-out" {
                    break;
                }
            }
            _ => {}
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// This monitor and, where there is one, Firecracker, turn by turn.
#[test]
#[ignore = "runs in the machine around"]
fn monitors_are_measured() {
    // Stays while nobody has it open.
    nix::ioctl_write_int_bad!(set_persistent, 0x4004_54cb);
    let tap = uplink();
    // SAFETY: takes a number.
    unsafe { set_persistent(tap.as_raw_fd(), 1) }.unwrap();
    drop(tap);
    assert!(Command::new("ifconfig").args(["up0", "up"]).status().unwrap().success());
    std::thread::spawn(|| {
        let listener = TcpListener::bind(("0.0.0.0", TCP_PORT)).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut asked, mut chunk) = ([0], vec![0x5a; 128 << 10]);
            if stream.read_exact(&mut asked).is_ok() {
                match asked[0] {
                    b's' => while stream.read(&mut chunk).is_ok_and(|count| count > 0) {},
                    _ => while stream.write_all(&chunk).is_ok() {},
                }
            }
        }
    });
    let socket = UdpSocket::bind(("0.0.0.0", UDP_PORT)).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while socket.recv(&mut packet).is_ok() {}
    });
    File::create("/tmp/disk").unwrap().write_all(&vec![7; 256 << 20]).unwrap();
    let line = command_line("bench");
    let config = format!(
        r#"{{"boot-source": {{"kernel_image_path": "/guest/vmlinux", "initrd_path": "{INITRD}", "boot_args": "{line}"}},
            "drives": [{{"drive_id": "d", "path_on_host": "/tmp/disk", "is_root_device": false, "is_read_only": false}}],
            "network-interfaces": [{{"iface_id": "n", "host_dev_name": "up0", "guest_mac": "02:00:00:00:00:01"}}],
            "machine-config": {{"vcpu_count": 2, "mem_size_mib": 192}}}}"#
    );
    std::fs::write("/tmp/firecracker.json", config).unwrap();
    let rounds: u32 = std::env::var("VMM_TEST_ROUNDS").unwrap().parse().unwrap();
    let there = File::open("/bin/firecracker").is_ok();
    // Boots alone are short: four to each round of everything. Who comes first changes.
    for turn in 0..rounds * 5 {
        let boot = turn % 5 != 0;
        let mut ours = Command::new(env!("CARGO_BIN_EXE_vmm"));
        // Both the same file: unpacking a kernel under emulation takes as long as starting it.
        ours.args(["run", "--kernel", "/guest/vmlinux", "--initrd", INITRD, "--append", &line]);
        ours.args(["--mem", "192", "--cpus", "2", "--disk", "/tmp/disk", "--tap", "up0"]);
        let mut firecracker = Command::new("/bin/firecracker");
        firecracker.args(["--no-api", "--level", "Error", "--config-file", "/tmp/firecracker.json"]);
        let mut both = [("ours", ours), ("firecracker", firecracker)];
        if turn % 2 == 1 {
            both.reverse();
        }
        for (monitor, command) in &mut both {
            if there || *monitor == "ours" {
                // Who waits for this outside should see that something happens.
                let mut console = File::options().write(true).open("/dev/console").unwrap();
                writeln!(console, "turn {turn} of {monitor}").unwrap();
                measured(monitor, command, boot);
            }
        }
    }
}
