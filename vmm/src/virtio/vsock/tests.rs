//! The guest's side by hand, the host's by real sockets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::{any, prop};
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER, Header, NO_RECEIVE, NO_SEND, Op, STREAM};
use super::{HOST, Vsock};
use crate::virtio::testing::{BUFFERS, Counter, Ring, activation, memory};
use crate::virtio::worker::unconfined;
use crate::virtio::{DeviceState, Memory, VirtioDevice};

const GUEST: u32 = 7;
const PORT: u32 = 52;
const SEND: u64 = BUFFERS;
const RECEIVE: u64 = BUFFERS + 0x10_0000;

struct Lab {
    memory: Arc<Memory>,
    rings: [Ring; 3],
    device: Vsock,
    path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let device = Vsock::new(GUEST, UnixListener::bind(&path).unwrap().into(), unconfined());
        let memory = memory();
        let rings = [0_u64, 1, 2].map(|n| Ring::new(&memory, n * 0x1_0000, 16));
        let mut lab = Self { memory, rings, device, path, _directory: directory };
        lab.start();
        lab
    }

    fn start(&mut self) {
        let rings = [&self.rings[0], &self.rings[1], &self.rings[2]];
        let features = self.device.features();
        let interrupt = Arc::new(Counter::default());
        self.device.activate(activation(&self.memory, &rings, &interrupt, features)).unwrap();
    }

    /// A program of the host's that wants to talk to a port.
    fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        stream
    }

    /// The next packet for the guest, in a buffer of two pieces.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        self.rings[0].add(&[(RECEIVE, 50, true), (RECEIVE + 50, 5000, true)]);
        self.rings[0].kick();
        let (_, used) = self.rings[0].wait();
        let mut bytes = vec![0; usize::try_from(used).unwrap()];
        self.memory.read_slice(&mut bytes, GuestAddress(RECEIVE)).unwrap();
        let data = bytes.split_off(HEADER);
        (Header::read(&bytes.try_into().unwrap()), data)
    }

    fn say(&mut self, header: &Header, data: &[u8]) {
        self.memory.write_slice(&header.write(), GuestAddress(SEND)).unwrap();
        self.memory.write_slice(data, GuestAddress(SEND + 44)).unwrap();
        self.rings[1].add(&[(SEND, u32::try_from(data.len()).unwrap() + 44, false)]);
        self.rings[1].kick();
        self.rings[1].wait();
    }

    /// Opens a connection; answers the host's stream and what the guest puts into its headers.
    fn open(&mut self, room: u32) -> (UnixStream, Header) {
        let mut stream = self.connect();
        let (request, _) = self.packet();
        assert_eq!((request.op, request.from, request.to), (Some(Op::Request), HOST, u64::from(GUEST)));
        assert_eq!((request.to_port, request.kind), (PORT, STREAM));
        let answer = Header {
            from: GUEST.into(),
            to: HOST,
            from_port: PORT,
            to_port: request.from_port,
            op: Some(Op::Response),
            room,
            passed: 0,
            ..request
        };
        self.say(&answer, &[]);
        let expected = format!("OK {}\n", request.from_port);
        let mut line = vec![0; expected.len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, expected.as_bytes());
        (stream, answer)
    }
}

#[test]
fn a_stream_from_the_first_line_to_the_last_byte() {
    let mut lab = Lab::new();
    let (mut stream, own) = lab.open(100);
    stream.write_all(&[7; 150]).unwrap();
    // No more than the guest has room for, until it says that there is more.
    let (data, bytes) = lab.packet();
    assert_eq!((data.op, data.len, bytes), (Some(Op::Data), 100, vec![7; 100]));
    lab.say(&Header { op: Some(Op::CreditRequest), ..own }, &[]);
    let (credit, _) = lab.packet();
    assert_eq!((credit.op, credit.room, credit.passed), (Some(Op::CreditUpdate), 64 << 10, 0));
    lab.say(&Header { op: Some(Op::CreditUpdate), passed: 100, ..own }, &[]);
    assert_eq!(lab.packet().1, vec![7; 50]);
    lab.say(&Header { op: Some(Op::Data), len: 5, passed: 150, ..own }, b"hello");
    let mut word = [0; 5];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    // The host's program has said all, and the guest then too.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (end, _) = lab.packet();
    assert_eq!((end.op, end.flags, end.passed), (Some(Op::Shutdown), NO_SEND, 5));
    let own = Header { passed: 150, ..own };
    lab.say(&Header { op: Some(Op::Data), len: 3, ..own }, b"bye");
    lab.say(&Header { op: Some(Op::Shutdown), flags: NO_RECEIVE | NO_SEND, len: 0, ..own }, &[]);
    let (reset, _) = lab.packet();
    assert_eq!((reset.op, reset.from_port), (Some(Op::Reset), own.to_port));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
}

#[test]
fn large_amounts_flow_both_ways_past_slow_readers() {
    let mut lab = Lab::new();
    let (mut stream, own) = lab.open(1 << 20);
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let copy = sent.clone();
    let mut writer = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let (header, data) = lab.packet();
        assert_eq!(header.op, Some(Op::Data));
        got.extend(data);
    }
    writer.join().unwrap();
    assert!(got == sent);
    // 16 packets of 4096 bytes fill the room that the guest was promised, whoever reads them.
    let own = Header { op: Some(Op::Data), room: 1 << 20, passed: 200_000, ..own };
    let mut back = Vec::new();
    for part in sent.chunks(4096).take(16) {
        lab.say(&Header { len: 4096, ..own }, part);
        back.extend_from_slice(part);
    }
    let mut read = vec![0; back.len()];
    stream.read_exact(&mut read).unwrap();
    assert!(read == back);
}

#[test]
fn a_program_that_goes_away_and_a_guest_that_refuses() {
    let mut lab = Lab::new();
    let (stream, own) = lab.open(1000);
    drop(stream);
    let (end, _) = lab.packet();
    assert_eq!((end.op, end.flags), (Some(Op::Shutdown), NO_SEND | NO_RECEIVE));
    lab.say(&Header { op: Some(Op::Reset), ..own }, &[]);
    let mut refused = lab.connect();
    let (request, _) = lab.packet();
    lab.say(&Header { to_port: request.from_port, op: Some(Op::Reset), ..own }, &[]);
    assert_eq!(refused.read(&mut [0; 9]).unwrap(), 0);
    for words in ["CONNECT\n", "CONNECT x\n", "GET / HTTP/1.1\n", "CONNECT 99999999999\n", &"x".repeat(100)] {
        let mut stream = UnixStream::connect(&lab.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(words.as_bytes());
        // Closed with or without a reset, as bytes were left or not.
        assert!(!stream.read(&mut [0; 9]).is_ok_and(|count| count > 0), "{words}");
    }
    // One more line is understood after all of these.
    lab.open(10);
}

#[test]
fn strange_packets_are_refused_and_floods_end_the_connection() {
    let mut lab = Lab::new();
    let nobody = Header {
        from: GUEST.into(),
        to: HOST,
        from_port: 9,
        to_port: 1024,
        len: 0,
        kind: STREAM,
        op: Some(Op::Request),
        flags: 0,
        room: 0,
        passed: 0,
    };
    // A connection that the guest begins, data for nobody, another type of socket.
    for header in [nobody, Header { op: Some(Op::Data), ..nobody }, Header { kind: 2, ..nobody }] {
        lab.say(&header, &[]);
        let (reset, _) = lab.packet();
        assert_eq!((reset.op, reset.from_port, reset.to_port), (Some(Op::Reset), 1024, 9));
    }
    // Somebody else's address, to somebody else, a reset: no answer. A packet that is cut, too.
    for header in
        [Header { from: 8, ..nobody }, Header { to: 1, ..nobody }, Header { op: Some(Op::Reset), ..nobody }]
    {
        lab.say(&header, &[]);
    }
    let (stream, own) = lab.open(1000);
    let data = vec![1; 60_000];
    lab.say(&Header { op: Some(Op::Data), len: 70_000, ..own }, &data);
    let (reset, _) = lab.packet();
    assert_eq!((reset.op, reset.from_port), (Some(Op::Reset), own.to_port));
    drop(stream);
}

#[test]
fn after_a_snapshot_the_driver_hears_that_connections_are_gone() {
    let mut lab = Lab::new();
    let (_stream, _) = lab.open(1000);
    let progress = lab.device.pause();
    assert_eq!(progress.len(), 3);
    let saved = lab.device.save();
    lab.device.reset();
    lab.device.restore(&saved).unwrap();
    assert!(lab.device.restore(&DeviceState::Rng).is_err());
    lab.memory.write_slice(&[0; 0x3_0000], GuestAddress(0)).unwrap();
    lab.rings = [0_u64, 1, 2].map(|n| Ring::new(&lab.memory, n * 0x1_0000, 16));
    lab.start();
    lab.rings[2].add(&[(RECEIVE, 8, true)]);
    lab.rings[2].kick();
    assert_eq!(lab.rings[2].wait(), (0, 4));
    let mut space = [0; 8];
    lab.device.read_config(0, &mut space);
    assert_eq!(space, u64::from(GUEST).to_le_bytes());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

    /// Whatever the guest says of open and other connections: the device goes on.
    #[test]
    fn hostile_packets(packets in prop::collection::vec((0..9_u16, any::<bool>(), any::<[u32; 4]>(), 0..200_usize), 0..40)) {
        let mut lab = Lab::new();
        let (_stream, own) = lab.open(1000);
        for (op, mine, [flags, room, passed, len], bytes) in packets {
            let mut raw = Header { flags, room, passed, len, ..own }.write();
            raw[30..32].copy_from_slice(&op.to_le_bytes());
            if !mine {
                raw[20..24].copy_from_slice(&len.to_le_bytes());
            }
            let mut header = Header::read(&raw);
            header.len = if len % 2 == 0 { u32::try_from(bytes).unwrap() } else { len };
            lab.say(&header, &vec![3; bytes]);
        }
        lab.device.pause();
        lab.device.resume();
        lab.device.reset();
        lab.memory.write_slice(&[0; 0x3_0000], GuestAddress(0)).unwrap();
        lab.rings = [0_u64, 1, 2].map(|n| Ring::new(&lab.memory, n * 0x1_0000, 16));
        lab.start();
        lab.open(1000);
    }
}
