//! A real tap in a network namespace of the test's own thread; a packet socket plays the rest of the network.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use proptest::prelude::{any, prop};
use proptest::strategy::Strategy;
use vm_memory::{Bytes, GuestAddress};
use wire::machine::{Limit, Limits};

use super::{Net, NetConfig, NetState};
use crate::backend::tap::{Tap, TapError};
use crate::virtio::testing::{BUFFERS, Counter, INDIRECT, MEMORY, NEXT, Ring, WRITE, activation, memory};
use crate::virtio::worker::unconfined;
use crate::virtio::{DeviceState, Memory, VirtioDevice};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const MRG_RXBUF: u64 = 1 << 15;
const SEND: u64 = BUFFERS;
const RECEIVE: u64 = BUFFERS + 0x10_0000;

/// Runs a test in a thread with a new network namespace, which is gone when the thread and its descriptors
/// are.
fn in_namespace(test: fn()) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Or the kernel speaks first on every new interface.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        test();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: plain bytes; zero is a value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

fn open_tap(flags: i32) -> File {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut wanted = request("tap0");
    wanted.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut wanted) });
    file
}

fn socket() -> OwnedFd {
    let all = i32::from(3_u16.to_be());
    // SAFETY: takes numbers, answers a descriptor.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all) });
    // SAFETY: just made, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The host's end of the wire: sends to and hears from the tap's interface.
struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// Brings the interface up with this MTU; with `headers`, packets carry the 10 byte virtio header.
    fn new(mtu: i32, headers: bool) -> Self {
        let socket = socket();
        let mut mtu_request = request("tap0");
        mtu_request.ifr_ifru.ifru_mtu = mtu;
        let mut up = request("tap0");
        up.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap();
        let mut index = request("tap0");
        let fd = socket.as_raw_fd();
        // SAFETY: the kernel reads or writes one ifreq each.
        unsafe {
            check(libc::ioctl(fd, libc::SIOCSIFMTU, &raw mut mtu_request));
            check(libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut up));
            check(libc::ioctl(fd, libc::SIOCGIFINDEX, &raw mut index));
        }
        // SAFETY: plain bytes; zero is a value of each.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = 3_u16.to_be();
        // SAFETY: SIOCGIFINDEX filled it in.
        address.sll_ifindex = unsafe { index.ifr_ifru.ifru_ifindex };
        let size = u32::try_from(size_of_val(&address)).unwrap();
        let one = 1_i32;
        // SAFETY: the kernel reads one address and, below, one number.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), size) });
        if headers {
            const PACKET_VNET_HDR: i32 = 15;
            // SAFETY: as above.
            check(unsafe {
                libc::setsockopt(fd, libc::SOL_PACKET, PACKET_VNET_HDR, (&raw const one).cast(), 4)
            });
        }
        let wait = libc::timeval { tv_sec: 10, tv_usec: 0 };
        let size = u32::try_from(size_of_val(&wait)).unwrap();
        // SAFETY: the kernel reads one timeval.
        check(unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const wait).cast(), size)
        });
        Self { socket }
    }

    fn send(&self, packet: &[u8]) {
        // SAFETY: the kernel reads `packet.len()` bytes.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(packet.len()), "{}", io::Error::last_os_error());
    }

    /// The next packet that the guest sent.
    fn receive(&self) -> Vec<u8> {
        let mut packet = vec![0; 70_000];
        // SAFETY: the kernel writes at most `packet.len()` bytes.
        let got = unsafe { libc::recv(self.socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        let got =
            usize::try_from(got).unwrap_or_else(|_| panic!("no packet: {}", io::Error::last_os_error()));
        packet.truncate(got);
        packet
    }
}

struct Lab {
    memory: Arc<Memory>,
    receive: Ring,
    send: Ring,
    control: Ring,
    interrupt: Arc<Counter>,
    net: Net,
}

const CONFIG: NetConfig = NetConfig { mac: MAC, mtu: 1450 };

const TAP: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

impl Lab {
    fn new(features: u64) -> Self {
        let tap = Tap::new(open_tap(TAP)).unwrap();
        let mut net = Net::new(vec![tap], CONFIG, [Limits::default(); 2], unconfined);
        let memory = memory();
        let (receive, send) = (Ring::new(&memory, 0, 64), Ring::new(&memory, 0x1_0000, 64));
        let control = Ring::new(&memory, 0x2_0000, 16);
        let interrupt = Arc::new(Counter::default());
        let features = net.features() & features;
        net.activate(activation(&memory, &[&receive, &send, &control], &interrupt, features)).unwrap();
        Self { memory, receive, send, control, interrupt, net }
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Gives a command on the control queue; answers whether it was done.
    fn command(&mut self, class: u8, kind: u8, words: &[u8]) -> bool {
        command(&self.memory, &mut self.control, &[&[class, kind], words].concat())
    }

    /// Sends a packet with its header in one buffer, and waits until the device has given it back.
    fn transmit(&mut self, header: [u8; 12], packet: &[u8]) {
        self.memory.write_slice(&header, GuestAddress(SEND)).unwrap();
        self.memory.write_slice(packet, GuestAddress(SEND + 12)).unwrap();
        self.send.add(&[(SEND, u32::try_from(packet.len() + 12).unwrap(), false)]);
        self.send.kick();
        assert_eq!(self.send.wait().1, 0);
    }
}

fn command(memory: &Arc<Memory>, control: &mut Ring, words: &[u8]) -> bool {
    const AT: u64 = BUFFERS + 0x20_0000;
    memory.write_slice(words, GuestAddress(AT)).unwrap();
    memory.write_slice(&[9], GuestAddress(AT + 0x100)).unwrap();
    control.add(&[(AT, u32::try_from(words.len()).unwrap(), false), (AT + 0x100, 1, true)]);
    control.kick();
    assert_eq!(control.wait().1, 1);
    let answer: u8 = memory.read_obj(GuestAddress(AT + 0x100)).unwrap();
    assert!(answer < 2, "{answer}");
    answer == 0
}

/// An Ethernet frame of an experimental type; `first` tells packets apart.
fn frame(first: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    for (n, byte) in frame[14..].iter_mut().enumerate() {
        *byte = n.to_le_bytes()[0] ^ first;
    }
    frame
}

#[test]
fn packets_to_the_network() {
    in_namespace(|| {
        for features in [u64::MAX, !(1 << 29)] {
            let mut lab = Lab::new(features);
            let wire = Wire::new(1500, false);
            lab.transmit([0; 12], &frame(1, 60));
            assert_eq!(wire.receive(), frame(1, 60));
            // Header and packet in pieces, through an indirect table.
            let packet = frame(2, 1400);
            lab.memory.write_slice(&packet, GuestAddress(SEND + 12)).unwrap();
            let pieces = [(SEND, 5, false), (SEND + 5, 20, false), (SEND + 25, 1387, false)];
            lab.send.add_indirect(SEND + 0x8000, &pieces);
            lab.send.kick();
            assert_eq!(lab.send.wait().1, 0);
            assert_eq!(wire.receive(), packet);
        }
    });
}

#[test]
fn a_checksum_that_the_guest_leaves_out_is_filled_in() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, true);
        // Offload towards the wire stays an offload: the header says what is left to do.
        let mut header = [0; 12];
        header[0] = 1;
        header[6] = 20;
        header[8] = 2;
        lab.transmit(header, &frame(3, 100));
        let got = wire.receive();
        assert_eq!((got[0] & 1, &got[6..10]), (1, &[20, 0, 2, 0][..]));
        assert_eq!(got[10..], frame(3, 100));
    });
}

/// A TCP over IPv4 packet of `len` bytes with its header's checksum left out.
fn tcp(len: usize) -> Vec<u8> {
    let mut packet = frame(0, len);
    packet[12..14].copy_from_slice(&[0x08, 0]);
    packet[14..34].fill(0);
    packet[14] = 0x45;
    packet[16..18].copy_from_slice(&u16::try_from(len - 14).unwrap().to_be_bytes());
    packet[22] = 64;
    packet[23] = 6;
    packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[34..54].fill(0);
    packet[46] = 0x50;
    packet
}

/// The header of such a packet: checksum at 34 + 16, segments of 1400 bytes.
const TSO: [u8; 12] = [1, 1, 54, 0, 0x78, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn unsegmented_packets_in_both_directions() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, true);
        let packet = tcp(30_000);
        lab.transmit(TSO, &packet);
        let got = wire.receive();
        assert_eq!(&got[..10], &TSO[..10]);
        assert_eq!(got[10..], packet);
        // Back: 30,000 bytes come whole, over several buffers that are given back together.
        for n in 0..20_u64 {
            lab.receive.add(&[(RECEIVE + n * 4096, 2048, true)]);
        }
        lab.receive.kick();
        wire.send(&[&TSO[..10], &packet].concat());
        let mut got = Vec::new();
        let (head, len) = lab.receive.wait();
        assert_eq!((head, len), (0, 2048));
        let first = lab.get(RECEIVE, 2048);
        assert_eq!(&first[..2], &[1, 1]);
        let buffers = u16::from_le_bytes([first[10], first[11]]);
        assert_eq!(buffers, 15);
        got.extend_from_slice(&first[12..]);
        for n in 1..u64::from(buffers) {
            // All of them are there at once.
            let (head, len) = lab.receive.used().unwrap();
            assert_eq!(u64::from(head), n);
            got.extend(lab.get(RECEIVE + n * 4096, usize::try_from(len).unwrap()));
        }
        assert_eq!(got, packet);
        assert_eq!(lab.receive.used(), None);
    });
}

#[test]
fn packets_from_the_network() {
    in_namespace(|| {
        for features in [u64::MAX, !MRG_RXBUF, !(1 << 29)] {
            let mut lab = Lab::new(features);
            let wire = Wire::new(1500, false);
            // Packets wait while the driver has no buffers.
            wire.send(&frame(7, 60));
            wire.send(&frame(8, 1500));
            assert_eq!(lab.receive.used(), None);
            lab.receive.add(&[(RECEIVE, 12, true), (RECEIVE + 0x1000, 2000, true)]);
            lab.receive.add(&[(RECEIVE + 0x2000, 2000, true)]);
            lab.receive.kick();
            lab.interrupt.wait();
            assert_eq!(lab.receive.wait(), (0, 72));
            assert_eq!(lab.get(RECEIVE + 10, 2), [1, 0]);
            assert_eq!(lab.get(RECEIVE + 0x1000, 60), frame(7, 60));
            assert_eq!(lab.receive.wait(), (2, 1512));
            assert_eq!(lab.get(RECEIVE + 0x2000 + 12, 1500), frame(8, 1500));
            // And buffers wait while there are no packets.
            lab.receive.add(&[(RECEIVE, 2000, true)]);
            lab.receive.kick();
            wire.send(&frame(9, 61));
            assert_eq!(lab.receive.wait(), (3, 73));
        }
    });
}

#[test]
fn a_packet_beyond_the_buffers_is_dropped_whole() {
    in_namespace(|| {
        for features in [u64::MAX, !MRG_RXBUF] {
            let mut lab = Lab::new(features);
            let wire = Wire::new(9000, false);
            lab.receive.add(&[(RECEIVE, 1000, true)]);
            lab.receive.kick();
            wire.send(&frame(1, 5000));
            wire.send(&frame(2, 500));
            assert_eq!(lab.receive.wait(), (0, 512));
            assert_eq!(lab.get(RECEIVE + 12, 500), frame(2, 500));
        }
    });
}

#[test]
fn malformed_packets_are_dropped_and_the_rest_goes_on() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, false);
        lab.transmit([0; 12], &frame(0, 14)[..13]);
        lab.transmit([0, 77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame(0, 60));
        lab.transmit([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], &frame(0, 60));
        // Too short for a header, writable, too long, outside of memory, circle, nested table.
        let pieces: [(u64, u32, u16, u16); 6] = [
            (SEND, 11, 0, 0),
            (SEND, 100, WRITE, 0),
            (SEND, 80_000, 0, 0),
            (MEMORY as u64 - 1, 100, 0, 0),
            (SEND, 100, NEXT, 0),
            (SEND, 100, INDIRECT, 0),
        ];
        for (address, len, flags, next) in pieces {
            lab.send.raw(0, address, len, flags, next);
            lab.send.offer(0);
            lab.send.kick();
            assert_eq!(lab.send.wait().1, 0);
        }
        lab.transmit([0; 12], &frame(5, 60));
        assert_eq!(wire.receive(), frame(5, 60));
    });
}

#[test]
fn bad_receive_buffers_stop_the_queue_until_reset() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, false);
        lab.receive.add(&[(RECEIVE, 2000, false)]);
        lab.receive.kick();
        wire.send(&frame(1, 60));
        lab.net.pause();
        lab.net.resume();
        assert_eq!(lab.receive.used(), None);
        // Sending goes on.
        lab.transmit([0; 12], &frame(2, 60));
        lab.net.reset();
        lab.memory.write_slice(&[0; 0x2_0000], GuestAddress(0)).unwrap();
        (lab.receive, lab.send) = (Ring::new(&lab.memory, 0, 64), Ring::new(&lab.memory, 0x1_0000, 64));
        let features = lab.net.features();
        lab.net
            .activate(activation(&lab.memory, &[&lab.receive, &lab.send], &lab.interrupt, features))
            .unwrap();
        lab.receive.add(&[(RECEIVE, 2000, true)]);
        lab.receive.kick();
        // The first packet may have been lost with the broken queue, or have waited.
        wire.send(&frame(3, 70));
        let (_, len) = lab.receive.wait();
        assert!(len == 72 || len == 82, "{len}");
    });
}

#[test]
fn pause_keeps_buffers_in_the_ring() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, false);
        for n in 0..3_u64 {
            lab.receive.add(&[(RECEIVE + n * 0x1000, 2000, true)]);
        }
        lab.receive.kick();
        lab.net.pause();
        wire.send(&frame(1, 60));
        lab.net.resume();
        assert_eq!(lab.receive.wait(), (0, 72));
        lab.net.pause();
        lab.net.resume();
        wire.send(&frame(2, 61));
        assert_eq!(lab.receive.wait(), (1, 73));
    });
}

#[test]
fn the_control_queue_does_what_was_negotiated_and_no_more() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        assert!(lab.command(0, 0, &[1]) && lab.command(0, 1, &[0]));
        assert!(lab.command(1, 0, &[0; 8]));
        assert!(lab.command(1, 1, &[2, 0, 0, 0, 0, 9]));
        let mut mac = [0; 6];
        lab.net.read_config(0, &mut mac);
        assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
        // Checksums only, then more than was negotiated.
        assert!(lab.command(5, 0, &2_u64.to_le_bytes()));
        assert!(!lab.command(5, 0, &(1_u64 << 20).to_le_bytes()));
        // There is one pair only, and commands of odd lengths and classes.
        assert!(!lab.command(4, 0, &[1, 0]));
        for words in [&[][..], &[0], &[9, 9, 9]] {
            assert!(!lab.command(2, 0, words) && !lab.command(5, 0, words) && !lab.command(0, 9, words));
        }
        let saved = lab.net.save();
        lab.net.reset();
        lab.net.read_config(0, &mut mac);
        assert_eq!(mac, MAC);
        drop(lab);
        let tap = Tap::new(open_tap(TAP)).unwrap();
        let mut copy = Net::new(vec![tap], CONFIG, [Limits::default(); 2], unconfined);
        copy.restore(&saved).unwrap();
        let DeviceState::Net(state) = copy.save() else { panic!("{saved:?}") };
        assert_eq!((state.mac, state.offloads), ([2, 0, 0, 0, 0, 9], Some(2)));
        let mut status = [0];
        copy.read_config(6, &mut status);
        assert_eq!(status, [3], "the link is up, and the driver is to announce itself");
        assert!(copy.restore(&DeviceState::Rng).is_err());
        assert!(copy.restore(&DeviceState::Net(NetState { pairs: 2, ..state })).is_err());
    });
}

const MULTI_QUEUE: i32 = libc::IFF_MULTI_QUEUE;

#[test]
fn several_pairs_carry_packets_once_the_driver_says_so() {
    in_namespace(|| {
        let taps = (0..2).map(|_| Tap::new(open_tap(TAP | MULTI_QUEUE)).unwrap()).collect();
        let mut net = Net::new(taps, CONFIG, [Limits::default(); 2], unconfined);
        assert_eq!(net.queue_sizes().len(), 5);
        let memory = memory();
        let mut rings: Vec<Ring> = (0..5).map(|n| Ring::new(&memory, n * 0x1_0000, 16)).collect();
        let interrupt = Arc::new(Counter::default());
        let all: Vec<&Ring> = rings.iter().collect();
        net.activate(activation(&memory, &all, &interrupt, net.features())).unwrap();
        let wire = Wire::new(1500, false);
        let send = |ring: &mut Ring, first: u8| {
            let at = SEND + u64::from(first) * 0x1000;
            memory.write_slice(&[0; 12], GuestAddress(at)).unwrap();
            memory.write_slice(&frame(first, 60), GuestAddress(at + 12)).unwrap();
            ring.add(&[(at, 72, false)]);
            ring.kick();
            assert_eq!(ring.wait().1, 0);
        };
        let mut control = rings.pop().unwrap();
        for pairs in [0_u16, 3, u16::MAX] {
            assert!(!command(&memory, &mut control, &[&[4, 0][..], &pairs.to_le_bytes()].concat()));
        }
        assert!(command(&memory, &mut control, &[4, 0, 2, 0]));
        send(&mut rings[1], 1);
        assert_eq!(wire.receive()[14], 1);
        send(&mut rings[3], 2);
        assert_eq!(wire.receive()[14], 2);
        for (index, ring) in [0, 2].into_iter().enumerate() {
            rings[ring].add(&[(RECEIVE + 0x1000 * index as u64, 2000, true)]);
            rings[ring].kick();
        }
        // The kernel chooses where it goes; one of both hears it.
        wire.send(&frame(3, 61));
        let deadline = Instant::now() + Duration::from_secs(10);
        while rings[0].used().is_none() && rings[2].used().is_none() {
            assert!(Instant::now() < deadline, "neither queue got the packet");
            std::thread::yield_now();
        }
        assert!(command(&memory, &mut control, &[4, 0, 1, 0]));
        let DeviceState::Net(state) = net.save() else { panic!("another kind") };
        assert_eq!(state.pairs, 1);
        // From now on everything comes to the first pair, whatever flow it is of.
        for first in 0..8 {
            rings[0].add(&[(RECEIVE, 2000, true)]);
            rings[0].kick();
            wire.send(&frame(first, 62));
            while rings[0].used().is_none() {
                assert!(Instant::now() < deadline, "the first pair does not get all packets");
                std::thread::yield_now();
            }
        }
        net.reset();
    });
}

#[test]
fn limits_hold_packets_back_in_both_directions() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, false);
        let slow = Limits { bytes: None, operations: Some(Limit { per_second: 1, burst: 1 }) };
        let slower = Limits { bytes: Some(Limit { per_second: 1, burst: 1 }), operations: None };
        assert!(lab.net.set_limits([slow, slower]));
        for n in 0..3_u64 {
            lab.receive.add(&[(RECEIVE + n * 0x1000, 2000, true)]);
        }
        lab.receive.kick();
        let start = Instant::now();
        // The first takes what was saved up, the second goes into debt, the third waits until it is paid.
        for first in 0..3 {
            wire.send(&frame(first, 60));
        }
        for _ in 0..3 {
            lab.receive.wait();
        }
        assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
        lab.transmit([0; 12], &frame(7, 60));
        lab.send.add(&[(SEND, 72, false)]);
        lab.send.kick();
        let progress = lab.net.pause();
        assert_eq!(
            (progress[1].queue, progress[1].next_avail),
            (1, 1),
            "the second packet is left in the ring"
        );
        lab.net.resume();
        assert!(lab.net.set_limits([Limits::default(); 2]));
        lab.send.wait();
        let own = |packet: &[u8]| packet[14] == 7;
        assert!(own(&wire.receive()) && own(&wire.receive()));
    });
}

#[test]
fn a_tap_that_goes_away_is_quiet() {
    in_namespace(|| {
        let mut lab = Lab::new(u64::MAX);
        let wire = Wire::new(1500, false);
        lab.receive.add(&[(RECEIVE, 2000, true)]);
        lab.receive.kick();
        // Deleting the interface takes the tap away from under its descriptor.
        let deleted = std::process::Command::new("ip")
            .args(["link", "del", "tap0"])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
        assert!(deleted.unwrap().success());
        drop(wire);
        lab.transmit([0; 12], &frame(1, 60));
        let before = cpu_time();
        let deadline = Instant::now() + Duration::from_millis(100);
        while Instant::now() < deadline {
            lab.net.pause();
            lab.net.resume();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(cpu_time() - before < Duration::from_millis(60), "the worker spins");
    });
}

fn cpu_time() -> Duration {
    // SAFETY: plain numbers; zero is a value of each.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage.
    check(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) });
    let time = |value: libc::timeval| {
        Duration::from_micros(u64::try_from(value.tv_sec * 1_000_000 + value.tv_usec).unwrap())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
fn configuration() {
    in_namespace(|| {
        let lab = Lab::new(u64::MAX);
        let mut space = [0xff; 16];
        lab.net.read_config(0, &mut space);
        assert_eq!(space[..6], MAC);
        assert_eq!(space[6..], [1, 0, 1, 0, 0xaa, 5, 0, 0, 0, 0]);
        lab.net.read_config(u64::MAX, &mut space);
        assert_eq!(space, [0; 16]);
    });
}

#[test]
fn descriptors_that_are_no_such_tap_are_refused() {
    in_namespace(|| {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(Tap::new(null), Err(TapError::Setup { .. })));
        let bare = open_tap(libc::IFF_TAP | libc::IFF_NO_PI);
        assert!(matches!(Tap::new(bare), Err(TapError::Flags { .. })));
    });
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop::sample::select(vec![
        0,
        SEND,
        RECEIVE,
        SEND + 0x8000,
        MEMORY as u64 - 3,
        MEMORY as u64,
        u64::MAX - 2,
    ]);
    let len = prop::sample::select(vec![0, 1, 11, 12, 13, 26, 100, 4096, 70_000, u32::MAX]);
    (address, len, 0..8_u16, 0..66_u16)
}

/// Whatever stands in the rings and headers, the worker survives and serves the next driver.
fn survive(descriptors: &[(u64, u32, u16, u16)], heads: &[u16], header: [u8; 12]) {
    let mut lab = Lab::new(u64::MAX);
    let wire = Wire::new(1500, false);
    lab.memory.write_slice(&header, GuestAddress(SEND)).unwrap();
    for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
        lab.send.raw(index, *address, *len, *flags, *next);
        lab.receive.raw(index, *address, *len, *flags, *next);
        lab.send.descriptor(SEND + 0x8000, index, *address, *len, *flags, *next);
    }
    for head in heads {
        lab.send.offer(*head);
        lab.receive.offer(*head);
    }
    lab.send.kick();
    lab.receive.kick();
    wire.send(&frame(0, 200));
    lab.net.pause();
    lab.net.resume();
    lab.net.reset();
    lab.memory.write_slice(&[0; 0x2_0000], GuestAddress(0)).unwrap();
    (lab.receive, lab.send) = (Ring::new(&lab.memory, 0, 64), Ring::new(&lab.memory, 0x1_0000, 64));
    let features = lab.net.features();
    lab.net.activate(activation(&lab.memory, &[&lab.receive, &lab.send], &lab.interrupt, features)).unwrap();
    lab.transmit([0; 12], &frame(5, 60));
}

#[test]
fn hostile_rings() {
    in_namespace(|| {
        let mut runner =
            proptest::test_runner::TestRunner::new(proptest::prelude::ProptestConfig::with_cases(24));
        let descriptors = prop::collection::vec(descriptor(), 16);
        let heads = prop::collection::vec(proptest::prop_oneof![0..16_u16, any::<u16>()], 1..40);
        let cases = (descriptors, heads, any::<[u8; 12]>());
        runner
            .run(&cases, |(descriptors, heads, header)| {
                survive(&descriptors, &heads, header);
                Ok(())
            })
            .unwrap();
    });
}
