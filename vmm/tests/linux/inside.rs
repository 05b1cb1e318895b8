//! What runs inside of a guest: its side of what `guests` checks. Words for the other side begin with `L2: `.

#![allow(unsafe_code)]

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The machine around, on the network interface; ports of the services there.
pub const HOST: &str = "10.9.0.1";
pub const TCP_PORT: u16 = 5201;
pub const UDP_PORT: u16 = 5202;
/// Bytes of a block, and of a record of the power-cut test.
pub const BLOCK: usize = 4096;
/// Records between two flushes.
const BETWEEN_FLUSHES: u64 = 4;

/// A block where direct access wants it.
#[repr(C, align(4096))]
#[derive(Clone)]
pub struct Block(pub [u8; BLOCK]);

fn say(words: &str) {
    // The test harness may be in the middle of a line.
    println!("\nL2: {words}");
}

fn disk(path: &str) -> File {
    File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Numbers that look random, the same for the same seed.
pub struct Numbers(pub u64);

impl Iterator for Numbers {
    type Item = u64;
    fn next(&mut self) -> Option<u64> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some(self.0)
    }
}

/// What a block holds that was written for the `version`th time.
pub fn block(place: u64, version: u64) -> Block {
    let mut content = Block([0; BLOCK]);
    let numbers = Numbers((place << 20 | version << 1 | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for (bytes, number) in content.0.chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    content
}

/// As [`block`], for the record with this number.
pub fn record(number: u64) -> Block {
    block(number, 7)
}

#[test]
#[ignore = "runs inside of a guest"]
fn echoes_a_socket() {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, 52)).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    say("listens");
    let stream = accept(listener.as_raw_fd()).unwrap();
    // SAFETY: the kernel just made this descriptor for us.
    let mut stream = File::from(unsafe { OwnedFd::from_raw_fd(stream) });
    let mut buffer = vec![0; 16384];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return;
        }
        stream.write_all(&buffer[..count]).unwrap();
    }
}

#[test]
#[ignore = "runs inside of a guest"]
fn works_a_disk() {
    const BLOCKS: u64 = 512;
    const WRITES: u64 = 1024;
    // Four queues' worth of writers, each with blocks of its own.
    let threads: Vec<_> = (0..4u64)
        .map(|part| {
            std::thread::spawn(move || {
                let disk = disk("/dev/vda");
                let mut versions = vec![0u64; usize::try_from(BLOCKS).unwrap()];
                for (number, round) in Numbers(part + 1).zip(0..WRITES) {
                    let at = number % BLOCKS;
                    let place = part * BLOCKS + at;
                    let version = &mut versions[usize::try_from(at).unwrap()];
                    *version += 1;
                    disk.write_all_at(&block(place, *version).0, place * BLOCK as u64).unwrap();
                    if round % 128 == 0 {
                        disk.sync_data().unwrap();
                    }
                }
                disk.sync_data().unwrap();
                let mut back = Block([0; BLOCK]);
                for (at, version) in (0u64..).zip(versions) {
                    let place = part * BLOCKS + at;
                    disk.read_exact_at(&mut back.0, place * BLOCK as u64).unwrap();
                    let wanted = if version == 0 { Block([0; BLOCK]) } else { block(place, version) };
                    assert!(back.0 == wanted.0, "block {place} is not of version {version}");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // Long requests, in one go through the page cache and back.
    let disk = File::options().read(true).write(true).open("/dev/vda").unwrap();
    let all: Vec<u8> = (0..4096u64).flat_map(|place| block(place, 9).0).collect();
    disk.write_all_at(&all, 0).unwrap();
    disk.sync_all().unwrap();
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let mut back = vec![0; all.len()];
    disk.read_exact_at(&mut back, 0).unwrap();
    assert!(back == all, "16 MiB read back differ");
    say("disk ok");
}

/// The bytes that both ends send, and their sum.
pub fn stream_of(bytes: usize) -> (Vec<u8>, u64) {
    let data: Vec<u8> = Numbers(3).take(bytes / 8).flat_map(u64::to_le_bytes).collect();
    let sum = sum(&data);
    (data, sum)
}

/// A sum that depends on the order.
pub fn sum(data: &[u8]) -> u64 {
    data.iter().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// Bytes that go each way in [`talks`].
pub const TALK: usize = 8 << 20;

#[test]
#[ignore = "runs inside of a guest"]
fn talks() {
    let (data, wanted) = stream_of(TALK);
    let mut up = TcpStream::connect((HOST, TCP_PORT)).unwrap();
    up.write_all(b"u").unwrap();
    up.write_all(&data).unwrap();
    let mut answer = [0; 8];
    up.read_exact(&mut answer).unwrap();
    assert_eq!(u64::from_le_bytes(answer), wanted, "what was sent arrived changed");
    let mut down = TcpStream::connect((HOST, TCP_PORT)).unwrap();
    down.write_all(b"d").unwrap();
    let mut got = Vec::new();
    down.read_to_end(&mut got).unwrap();
    assert!(got == data, "what was received is not what was sent");
    say("network ok");
}

#[test]
#[ignore = "runs inside of a guest"]
fn writes_with_flushes() {
    static LOOSE: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(|| {
        let disk = disk("/dev/vdb");
        for number in 0.. {
            disk.write_all_at(&record(number).0, number * BLOCK as u64).unwrap();
            LOOSE.store(number + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let disk = disk("/dev/vda");
    for number in 0.. {
        disk.write_all_at(&record(number).0, number * BLOCK as u64).unwrap();
        if (number + 1) % BETWEEN_FLUSHES == 0 {
            let loose = LOOSE.load(Ordering::SeqCst);
            disk.sync_data().unwrap();
            say(&format!("flushed {} loose {loose} written", number + 1));
        }
    }
}

/// Longest that one figure is measured.
const FIGURE: Duration = Duration::from_secs(4);

/// Says a figure's begin and end around what makes it: operations and bytes.
fn figure(name: &str, work: impl FnOnce(Instant) -> (u64, u64)) {
    say(&format!("begin {name} ."));
    std::thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    let (operations, bytes) = work(since + FIGURE);
    let micros = since.elapsed().as_micros();
    say(&format!("end {name} {operations} operations {bytes} bytes {micros} us ."));
    std::thread::sleep(Duration::from_millis(500));
}

/// Reads or writes blocks of `size` until then, by `threads`, at random places or one after another.
fn transfer(until: Instant, threads: u64, size: usize, write: bool, random: bool) -> (u64, u64) {
    let work = move |part: u64| {
        let disk = disk("/dev/vda");
        let mut blocks = vec![Block([0x5a; BLOCK]); size / BLOCK];
        // SAFETY: blocks lie one after another without gaps, and any byte is valid in them; nobody else has them.
        let buffer = unsafe { std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast::<u8>(), size) };
        let room = (256u64 << 20) / size as u64;
        let mut numbers = Numbers(part + 1);
        let mut count = 0u64;
        while Instant::now() < until {
            let place =
                if random { numbers.next().unwrap_or(0) % room } else { (count * threads + part) % room };
            let at = place * size as u64;
            let done = if write { disk.write_all_at(buffer, at) } else { disk.read_exact_at(buffer, at) };
            done.unwrap();
            count += 1;
        }
        count
    };
    let threads: Vec<_> = (0..threads).map(|part| std::thread::spawn(move || work(part))).collect();
    let count: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    (count, count * size as u64)
}

#[test]
#[ignore = "runs inside of a guest"]
fn measures() {
    figure("read-4k", |until| transfer(until, 4, 4096, false, true));
    figure("write-4k", |until| transfer(until, 4, 4096, true, true));
    figure("read-seq", |until| transfer(until, 2, 256 << 10, false, false));
    figure("write-seq", |until| transfer(until, 2, 256 << 10, true, false));
    figure("tcp-out", |until| {
        let mut stream = TcpStream::connect((HOST, TCP_PORT)).unwrap();
        stream.write_all(b"s").unwrap();
        let (chunk, mut bytes) = (vec![0x5a; 128 << 10], 0);
        while Instant::now() < until {
            bytes += stream.write(&chunk).unwrap() as u64;
        }
        (bytes / 1448, bytes)
    });
    figure("tcp-in", |until| {
        let mut stream = TcpStream::connect((HOST, TCP_PORT)).unwrap();
        stream.write_all(b"g").unwrap();
        let (mut chunk, mut bytes) = (vec![0; 128 << 10], 0);
        while Instant::now() < until {
            bytes += stream.read(&mut chunk).unwrap() as u64;
        }
        (bytes / 1448, bytes)
    });
    figure("udp-out", |until| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((HOST, UDP_PORT)).unwrap();
        let mut sent = 0;
        while Instant::now() < until {
            // A full queue says so; that one did not go.
            sent += u64::from(socket.send(&[0; 64]).is_ok());
        }
        (sent, sent * 64)
    });
}
