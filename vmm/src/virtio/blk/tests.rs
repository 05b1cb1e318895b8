//! The whole disk through its queue: a real worker, real files, real guest memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::{Just, Strategy, any, prop};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use wire::machine::{BlockSize, Limit, Limits};

use super::{Blk, BlkConfig};
use crate::backend::file::DiskFile;
use crate::virtio::testing::{
    BUFFERS, Counter, INDIRECT, MEMORY, NEXT, Piece, Ring, WRITE, activation, memory,
};
use crate::virtio::worker::unconfined;
use crate::virtio::{Activation, ActiveQueue, Memory, VirtioDevice, bits};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const TABLE: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x10_000;
const UNTOUCHED: u8 = 0xee;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

struct Lab {
    dir: tempfile::TempDir,
    memory: Arc<Memory>,
    ring: Ring,
    interrupt: Arc<Counter>,
    blk: Blk,
}

#[derive(Clone, Copy)]
struct Setup {
    sectors: u64,
    read_only: bool,
    io_uring: bool,
    direct: bool,
    features: u64,
    queues: u16,
    block_size: BlockSize,
}

const PLAIN: Setup = Setup {
    sectors: 64,
    read_only: false,
    io_uring: true,
    direct: false,
    features: u64::MAX,
    queues: 1,
    block_size: BlockSize::B512,
};

fn open(path: &Path, setup: Setup) -> std::io::Result<File> {
    let flags = if setup.direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().read(true).write(!setup.read_only).custom_flags(flags).open(path)
}

impl Lab {
    fn new(setup: Setup) -> Self {
        Self::try_new(setup).unwrap()
    }

    fn try_new(setup: Setup) -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("disk");
        let content: Vec<u8> =
            (0..setup.sectors * 512).map(|n| (n / 512).to_le_bytes()[0] ^ n.to_le_bytes()[0]).collect();
        std::fs::write(&path, content)?;
        let config = BlkConfig {
            read_only: setup.read_only,
            serial: "vol-0123456789abcdef-too-long".into(),
            io_uring: setup.io_uring,
            queues: setup.queues,
            block_size: setup.block_size,
            limits: Limits::default(),
        };
        let mut blk =
            Blk::new(DiskFile::new(open(&path, setup)?, setup.block_size.bytes())?, &config, unconfined)?;
        let memory = memory();
        let ring = Ring::new(&memory, 0, 16);
        let interrupt = Arc::new(Counter::default());
        let features = blk.features() & setup.features;
        blk.activate(activation(&memory, &[&ring], &interrupt, features)).unwrap();
        Ok(Self { dir, memory, ring, interrupt, blk })
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.dir.path().join("disk")).unwrap()
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk")).unwrap()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn header(&self, kind: u32, sector: u64) {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 4, &[0; 4]);
        self.put(HEADER + 8, &sector.to_le_bytes());
        self.put(STATUS, &[UNTOUCHED]);
    }

    /// Does a request with these data pieces; answers status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        self.header(kind, sector);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(data);
        chain.push((STATUS, 1, true));
        let head = self.ring.add(&chain);
        self.ring.kick();
        // The first request: each later one may be seen before its interrupt.
        self.interrupt.wait();
        let (used, len) = self.ring.wait();
        assert_eq!(used, u32::from(head));
        (self.get(STATUS, 1)[0], len)
    }

    /// Offers whatever was written into the ring and waits for it to be used.
    fn offer(&mut self, head: u16) -> u32 {
        self.ring.offer(head);
        self.ring.kick();
        let (used, len) = self.ring.wait();
        assert_eq!(used, u32::from(head));
        len
    }
}

fn setups() -> Vec<Setup> {
    let sync = Setup { io_uring: false, ..PLAIN };
    let direct = Setup { direct: true, ..PLAIN };
    let direct_sync = Setup { direct: true, ..sync };
    let no_events = Setup { features: !(1 << 29), ..PLAIN };
    let mut setups = vec![PLAIN, sync, no_events];
    let probe = tempfile::NamedTempFile::new().unwrap();
    if open(probe.path(), direct).is_ok() {
        setups.extend([direct, direct_sync]);
    } else {
        println!("this file system has no O_DIRECT: direct access is not tested");
    }
    setups
}

#[test]
fn reads_and_writes() {
    for setup in setups() {
        let mut lab = Lab::new(setup);
        let before = lab.disk();
        assert_eq!(lab.request(0, 3, &[(DATA, 1024, true), (DATA + 0x2000, 512, true)]), (OK, 1537));
        assert_eq!(lab.get(DATA, 1024), before[1536..2560]);
        assert_eq!(lab.get(DATA + 0x2000, 512), before[2560..3072]);
        let fresh = vec![0x5a; 1536];
        lab.put(DATA, &fresh);
        assert_eq!(lab.request(1, 61, &[(DATA, 1536, false)]), (OK, 1));
        assert_eq!(lab.request(4, 0, &[]), (OK, 1));
        assert_eq!(lab.disk()[61 * 512..], fresh);
        assert_eq!(lab.disk()[..61 * 512], before[..61 * 512]);
    }
}

#[test]
fn unaligned_buffers_and_odd_pieces() {
    for setup in setups() {
        let mut lab = Lab::new(setup);
        let before = lab.disk();
        let pieces = [(DATA + 1, 3, true), (DATA + 100, 509, true), (DATA + 1001, 512, true)];
        assert_eq!(lab.request(0, 9, &pieces), (OK, 1025));
        let got = [lab.get(DATA + 1, 3), lab.get(DATA + 100, 509), lab.get(DATA + 1001, 512)].concat();
        assert_eq!(got, before[9 * 512..11 * 512]);
        lab.put(DATA + 7, &[1; 512]);
        assert_eq!(lab.request(1, 0, &[(DATA + 7, 500, false), (DATA + 507, 12, false)]), (OK, 1));
        assert_eq!(lab.disk()[..512], [1; 512]);
    }
}

#[test]
fn a_large_unaligned_transfer_goes_through_the_bounce_buffer_in_portions() {
    for setup in setups() {
        let mut lab = Lab::new(Setup { sectors: 4096, ..setup });
        let before = lab.disk();
        let len = 1_u32 << 20;
        // Crosses from one memory region to the next, too.
        let at = MEMORY as u64 / 2 - 1000;
        assert_eq!(lab.request(0, 1, &[(at, len, true)]), (OK, len + 1));
        let size = usize::try_from(len).unwrap();
        assert!(lab.get(at, size) == before[512..512 + size]);
        assert_eq!(lab.request(1, 2048, &[(at, len, false)]), (OK, 1));
        assert!(lab.disk()[2048 * 512..] == before[512..512 + size]);
    }
}

#[test]
fn layouts_of_any_kind() {
    let mut lab = Lab::new(PLAIN);
    let before = lab.disk();
    // Header in two pieces, status at the end of the data piece.
    lab.header(0, 2);
    let head = lab.ring.add(&[(HEADER, 5, false), (HEADER + 5, 11, false), (DATA, 513, true)]);
    lab.ring.kick();
    assert_eq!(lab.ring.wait(), (u32::from(head), 513));
    assert_eq!(lab.get(DATA, 512), before[1024..1536]);
    assert_eq!(lab.get(DATA + 512, 1), [OK]);
    // Header and data of a write in one piece.
    lab.header(1, 5);
    lab.put(HEADER + 16, &[9; 32]);
    lab.put(DATA, &[8; 480]);
    lab.ring.add(&[(HEADER, 48, false), (DATA, 480, false), (STATUS, 1, true)]);
    lab.ring.kick();
    lab.ring.wait();
    assert_eq!(lab.get(STATUS, 1), [OK]);
    assert_eq!(lab.disk()[5 * 512..6 * 512], [[9; 32].as_slice(), &[8; 480]].concat());
    // All of it through an indirect table.
    lab.header(0, 4);
    let pieces = [(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)];
    lab.ring.add_indirect(TABLE, &pieces);
    lab.ring.kick();
    assert_eq!(lab.ring.wait().1, 513);
    assert_eq!(lab.get(DATA, 512), before[2048..2560]);
}

#[test]
fn identity() {
    let mut lab = Lab::new(PLAIN);
    assert_eq!(lab.request(8, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(lab.get(DATA, 20), b"vol-0123456789abcdef");
    assert_eq!(lab.request(8, 0, &[(DATA, 19, true)]), (IO_ERROR, 1));
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn discard_and_write_zeroes() {
    for setup in setups() {
        let mut lab = Lab::new(Setup { sectors: 256, ..setup });
        lab.file().write_all_at(&[1; 256 * 512], 0).unwrap();
        lab.file().sync_all().unwrap();
        let used_before = lab.file().metadata().unwrap().blocks();
        lab.put(DATA, &[range(16, 64, 0), range(128, 64, 0)].concat());
        assert_eq!(lab.request(11, 0, &[(DATA, 32, false)]), (OK, 1));
        lab.put(DATA, &[range(1, 2, 0), range(3, 1, 1), range(0, 0, 0)].concat());
        assert_eq!(lab.request(13, 0, &[(DATA, 48, false)]), (OK, 1));
        let disk = lab.disk();
        for (sector, content) in disk.chunks(512).enumerate() {
            let zeroed = matches!(sector, 1..=3 | 16..=79 | 128..=191);
            assert!(content.iter().all(|byte| *byte == u8::from(!zeroed)), "sector {sector}");
        }
        let used = lab.file().metadata().unwrap().blocks();
        assert!(used < used_before, "{used} of {used_before} blocks");
    }
}

#[test]
fn bad_requests_are_answered() {
    for setup in [PLAIN, Setup { io_uring: false, ..PLAIN }] {
        let mut lab = Lab::new(setup);
        let before = lab.disk();
        let read = |len: u32| [(DATA, len, true)];
        assert_eq!(lab.request(99, 0, &read(512)).0, UNSUPPORTED);
        assert_eq!(lab.request(0, 64, &read(512)).0, IO_ERROR);
        assert_eq!(lab.request(0, 63, &read(1024)).0, IO_ERROR);
        assert_eq!(lab.request(0, u64::MAX, &read(512)).0, IO_ERROR);
        assert_eq!(lab.request(0, 1 << 55, &read(512)).0, IO_ERROR);
        assert_eq!(lab.request(0, 0, &read(511)).0, IO_ERROR);
        assert_eq!(lab.request(1, 63, &[(DATA, 1024, false)]).0, IO_ERROR);
        assert_eq!(lab.request(1, 0, &[(DATA, 100, false)]).0, IO_ERROR);
        lab.put(DATA, &range(63, 2, 0));
        assert_eq!(lab.request(11, 0, &[(DATA, 16, false)]).0, IO_ERROR);
        assert_eq!(lab.request(11, 0, &[(DATA, 15, false)]).0, IO_ERROR);
        lab.put(DATA, &range(0, 1, 1));
        assert_eq!(lab.request(11, 0, &[(DATA, 16, false)]).0, UNSUPPORTED);
        assert_eq!(lab.disk(), before);
        assert_eq!(lab.request(0, 63, &read(512)), (OK, 513));
    }
}

#[test]
fn broken_chains_are_given_back_and_the_disk_goes_on() {
    let mut lab = Lab::new(PLAIN);
    lab.header(0, 0);
    // Nothing to write a status to.
    lab.ring.raw(0, HEADER, 16, 0, 0);
    assert_eq!(lab.offer(0), 0);
    // A circle.
    lab.ring.raw(0, HEADER, 16, NEXT, 1);
    lab.ring.raw(1, DATA, 512, NEXT | WRITE, 1);
    assert_eq!(lab.offer(0), 0);
    // A next one outside of the table.
    lab.ring.raw(0, HEADER, 16, NEXT, 999);
    assert_eq!(lab.offer(0), 0);
    // A buffer outside of memory, and one that wraps.
    lab.ring.raw(0, HEADER, 16, NEXT, 1);
    lab.ring.raw(1, MEMORY as u64 - 1, 2, NEXT | WRITE, 2);
    lab.ring.raw(2, STATUS, 1, WRITE, 0);
    assert_eq!(lab.offer(0), 0);
    lab.ring.raw(1, u64::MAX, u32::MAX, NEXT | WRITE, 2);
    assert_eq!(lab.offer(0), 0);
    // Readable after writable.
    lab.ring.raw(1, DATA, 512, NEXT | WRITE, 2);
    lab.ring.raw(2, DATA, 512, 0, 0);
    assert_eq!(lab.offer(0), 0);
    // An indirect table in an indirect table, of an odd size, outside of memory.
    lab.ring.descriptor(TABLE, 0, TABLE, 16, INDIRECT, 0);
    lab.ring.raw(0, TABLE, 16, INDIRECT, 0);
    assert_eq!(lab.offer(0), 0);
    lab.ring.raw(0, TABLE, 17, INDIRECT, 0);
    assert_eq!(lab.offer(0), 0);
    lab.ring.raw(0, MEMORY as u64, 1 << 20, INDIRECT, 0);
    assert_eq!(lab.offer(0), 0);
    // A header that is too short, with a status.
    lab.put(STATUS, &[UNTOUCHED]);
    lab.ring.raw(0, HEADER, 15, NEXT, 1);
    lab.ring.raw(1, STATUS, 1, WRITE, 0);
    assert_eq!(lab.offer(0), 1);
    assert_eq!(lab.get(STATUS, 1), [IO_ERROR]);
    assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
}

#[test]
fn a_broken_ring_stops_until_reset() {
    let mut lab = Lab::new(PLAIN);
    // The available index far ahead of the ring.
    lab.memory.write_obj(5000_u16, GuestAddress(0x4002)).unwrap();
    lab.ring.kick();
    lab.blk.pause();
    lab.blk.resume();
    assert_eq!(lab.ring.used(), None);
    lab.blk.reset();
    lab.memory.write_slice(&[0; 0x10000], GuestAddress(0)).unwrap();
    lab.ring = Ring::new(&lab.memory, 0, 16);
    lab.blk.activate(activation(&lab.memory, &[&lab.ring], &lab.interrupt, lab.blk.features())).unwrap();
    assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
}

#[test]
fn read_only_disks() {
    let mut lab = Lab::new(Setup { read_only: true, ..PLAIN });
    assert_ne!(lab.blk.features() & bits(&[5]), 0);
    assert_eq!(lab.blk.features() & bits(&[13, 14]), 0);
    assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(lab.request(1, 0, &[(DATA, 512, false)]).0, IO_ERROR);
    lab.put(DATA, &range(0, 1, 0));
    assert_eq!(lab.request(11, 0, &[(DATA, 16, false)]).0, UNSUPPORTED);
    assert_eq!(lab.request(4, 0, &[]), (OK, 1));
}

#[test]
fn more_requests_than_the_device_takes_at_once() {
    for setup in setups() {
        let mut lab = Lab::new(setup);
        lab.blk.reset();
        lab.ring = Ring::new(&lab.memory, 0, 256);
        lab.blk.activate(activation(&lab.memory, &[&lab.ring], &lab.interrupt, lab.blk.features())).unwrap();
        let before = lab.disk();
        lab.header(0, 0);
        for n in 0..256_u64 {
            let header = TABLE + n * 0x400;
            lab.put(header, &[0; 8]);
            lab.put(header + 8, &(n % 64).to_le_bytes());
            let pieces =
                [(header, 16, false), (DATA + 0x10_0000 + n * 512, 512, true), (header + 0x80, 1, true)];
            lab.ring.add_indirect(header + 0x100, &pieces);
        }
        lab.ring.kick();
        for _ in 0..256 {
            assert_eq!(lab.ring.wait().1, 513);
        }
        for n in 0..256_usize {
            let at = (n % 64) * 512;
            assert_eq!(lab.get(DATA + 0x10_0000 + n as u64 * 512, 512), before[at..at + 512], "request {n}");
        }
    }
}

#[test]
fn pause_holds_requests_and_resume_does_them() {
    let mut lab = Lab::new(PLAIN);
    lab.blk.pause();
    lab.blk.pause();
    lab.header(0, 0);
    lab.ring.add(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    lab.ring.kick();
    assert_eq!(lab.ring.used(), None);
    lab.blk.resume();
    assert_eq!(lab.ring.wait().1, 513);
    lab.blk.reset();
    lab.blk.reset();
    lab.ring.kick();
    assert_eq!(lab.ring.used(), None);
}

#[test]
fn configuration_and_resize() {
    let mut lab = Lab::new(PLAIN);
    let number = |lab: &Lab, at: u64, len: usize| {
        let mut bytes = [0; 8];
        lab.blk.read_config(at, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(
        (number(&lab, 0, 8), number(&lab, 12, 4), number(&lab, 20, 4), number(&lab, 32, 1)),
        (64, 254, 512, 1)
    );
    assert_eq!((number(&lab, 60, 8), number(&lab, u64::MAX, 8), number(&lab, 59, 4)), (0, 0, 0));
    lab.blk.write_config(32, &[0]);
    assert_eq!(number(&lab, 32, 1), 0);
    lab.blk.write_config(32, &[7]);
    lab.blk.write_config(0, &[9; 8]);
    lab.blk.write_config(u64::MAX, &[1]);
    assert_eq!((number(&lab, 0, 8), number(&lab, 32, 1)), (64, 0));
    // Write-through now: durable writes still work.
    assert_eq!(lab.request(1, 0, &[(DATA, 512, false)]), (OK, 1));
    assert_eq!(lab.request(0, 100, &[(DATA, 512, true)]).0, IO_ERROR);
    lab.file().set_len(128 * 512 + 100).unwrap();
    assert_eq!(lab.blk.resize().unwrap(), 128 * 512);
    assert_eq!(lab.interrupt.config.load(Ordering::SeqCst), 1);
    assert_eq!(number(&lab, 0, 8), 128);
    assert_eq!(lab.request(0, 100, &[(DATA, 512, true)]), (OK, 513));
    lab.blk.resize().unwrap();
    assert_eq!(lab.interrupt.config.load(Ordering::SeqCst), 1);
}

#[test]
fn several_queues_work_side_by_side_and_the_driver_may_leave_some_unused() {
    let setup = Setup { queues: 3, ..PLAIN };
    let mut lab = Lab::new(setup);
    assert_ne!(lab.blk.features() & bits(&[12]), 0);
    assert_eq!((Lab::new(PLAIN).blk.features() & bits(&[12]), lab.blk.queue_sizes().len()), (0, 3));
    let mut count = [0; 2];
    lab.blk.read_config(34, &mut count);
    assert_eq!(count, [3, 0]);
    // Of the three, the first and the last are set up.
    lab.blk.reset();
    let mut rings = [Ring::new(&lab.memory, 0, 16), Ring::new(&lab.memory, 0x2_0000, 16)];
    let start = |lab: &mut Lab, rings: &[Ring; 2]| {
        let idle = ActiveQueue { index: 1, queue: Queue::new(16).unwrap(), kick: EventFd::new(0).unwrap() };
        let queues = vec![rings[0].device(0), idle, rings[1].device(2)];
        let (memory, interrupt) = (Arc::clone(&lab.memory), Arc::<Counter>::clone(&lab.interrupt));
        let features = lab.blk.features();
        lab.blk.activate(Activation { memory, queues, interrupt, features }).unwrap();
    };
    start(&mut lab, &rings);
    let before = lab.disk();
    for round in 0..40_u64 {
        for (number, ring) in (0_u64..).zip(&mut rings) {
            let at = TABLE + number * 0x1000;
            lab.put(at, &[0; 8]);
            lab.put(at + 8, &(round % 32 * 2 + number).to_le_bytes());
            ring.add(&[(at, 16, false), (DATA + number * 0x1000, 512, true), (at + 0x80, 1, true)]);
            ring.kick();
        }
        for (number, ring) in (0_u64..).zip(&mut rings) {
            assert_eq!(ring.wait().1, 513);
            let at = usize::try_from(round % 32 * 2 + number).unwrap() * 512;
            assert_eq!(lab.get(DATA + number * 0x1000, 512), before[at..at + 512]);
        }
    }
    let progress = lab.blk.pause();
    let seen: Vec<_> =
        progress.iter().map(|queue| (queue.queue, queue.next_avail, queue.next_used)).collect();
    assert_eq!(seen, [(0, 40, 40), (2, 40, 40)]);
    lab.blk.reset();
    let none = activation(&lab.memory, &[], &lab.interrupt, 0);
    assert!(lab.blk.activate(none).is_err());
}

#[test]
fn large_blocks() {
    let mut lab = Lab::new(Setup { sectors: 67, block_size: BlockSize::B4096, ..PLAIN });
    let mut space = [0; 60];
    lab.blk.read_config(0, &mut space);
    assert_eq!((space[0], &space[20..24], &space[24..28]), (64, &[0, 16, 0, 0][..], &[0, 0, 1, 0][..]));
    let before = lab.disk();
    assert_eq!(lab.request(0, 8, &[(DATA, 4096, true)]), (OK, 4097));
    assert_eq!(lab.get(DATA, 4096), before[4096..8192]);
    assert_eq!(lab.request(1, 56, &[(DATA, 4096, false)]), (OK, 1));
    for (kind, sector, len) in [(0, 0, 512), (0, 1, 4096), (1, 0, 2048), (0, 64, 4096)] {
        assert_eq!(lab.request(kind, sector, &[(DATA, len, kind == 0)]).0, IO_ERROR, "{kind} {sector} {len}");
    }
    lab.put(DATA, &range(8, 1, 0));
    assert_eq!(lab.request(11, 0, &[(DATA, 16, false)]).0, IO_ERROR);
    lab.put(DATA, &range(8, 8, 0));
    assert_eq!(lab.request(11, 0, &[(DATA, 16, false)]).0, OK);
}

#[test]
fn limits_hold_and_change_while_it_works() {
    let mut lab = Lab::new(PLAIN);
    let rate = |per_second, burst| Some(Limit { per_second, burst });
    // Two requests at once, and then one in ten minutes.
    let slow = Limits { bytes: rate(1, 600), operations: None };
    assert!(lab.blk.set_limits([slow; 2]));
    assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
    lab.header(0, 0);
    lab.ring.add(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    lab.ring.kick();
    // It is looked at and held back: after a pause, everything that was let through is done.
    let progress = lab.blk.pause();
    assert_eq!((progress[0].next_avail, progress[0].next_used), (2, 2));
    lab.blk.resume();
    assert_eq!(lab.ring.used(), None);
    assert!(lab.blk.set_limits([Limits::default(); 2]));
    assert_eq!(lab.ring.wait().1, 513);
    // 200 operations a second: of 20, one is saved up and one is on credit, and 18 take 5 ms each.
    assert!(lab.blk.set_limits([Limits { bytes: None, operations: rate(200, 1) }; 2]));
    let start = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
    }
    let took = start.elapsed();
    assert!(took.as_millis() >= 89, "{took:?}");
}

#[test]
fn a_file_that_became_shorter_gives_errors() {
    for setup in [PLAIN, Setup { io_uring: false, ..PLAIN }] {
        let mut lab = Lab::new(setup);
        lab.file().set_len(1000).unwrap();
        assert_eq!(lab.request(0, 0, &[(DATA, 1024, true)]).0, IO_ERROR);
        assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
    }
}

fn hostile_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop::sample::select(vec![
        0,
        HEADER,
        STATUS,
        TABLE,
        DATA,
        MEMORY as u64 - 3,
        MEMORY as u64,
        u64::MAX - 2,
    ]);
    let len = prop::sample::select(vec![0, 1, 15, 16, 17, 512, 513, 4096, 1 << 20, u32::MAX]);
    (address, len, 0..8_u16, prop_oneof_index())
}

fn prop_oneof_index() -> impl Strategy<Value = u16> {
    proptest::prop_oneof![0..16_u16, Just(u16::MAX), Just(16)]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// Whatever stands in the ring: the worker survives, gives every head back at most once per offer, and
    /// serves the next good request.
    #[test]
    fn hostile_rings(table in prop::collection::vec(hostile_descriptor(), 16), indirect in prop::collection::vec(hostile_descriptor(), 8),
                     heads in prop::collection::vec(prop_oneof_index(), 1..16), header in any::<[u8; 3]>(), io_uring in any::<bool>()) {
        let mut lab = Lab::new(Setup { io_uring, ..PLAIN });
        lab.put(HEADER, &[header[0] % 16, 0, 0, 0, 0, 0, 0, 0, header[1] % 80, 0, 0, 0, 0, 0, 0, header[2]]);
        for (index, (address, len, flags, next)) in (0..).zip(&table) {
            lab.ring.raw(index, *address, *len, *flags, *next);
        }
        for (index, (address, len, flags, next)) in (0..).zip(&indirect) {
            lab.ring.descriptor(TABLE, index, *address, *len, *flags, *next);
        }
        for head in &heads {
            lab.ring.offer(*head);
        }
        lab.ring.kick();
        lab.blk.pause();
        lab.blk.resume();
        lab.blk.reset();
        lab.memory.write_slice(&[0; 0x10000], GuestAddress(0)).unwrap();
        lab.ring = Ring::new(&lab.memory, 0, 16);
        lab.blk.activate(activation(&lab.memory, &[&lab.ring], &lab.interrupt, lab.blk.features())).unwrap();
        proptest::prop_assert_eq!(lab.request(0, 0, &[(DATA, 512, true)]), (OK, 513));
    }
}
