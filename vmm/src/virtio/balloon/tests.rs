//! Real memory, asked of the kernel whether it is still there.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::{any, prop};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use wire::machine::BalloonStatistics;

use super::{Balloon, DEFLATE_ON_OOM, REPORTING, STATISTICS};
use crate::virtio::testing::{BUFFERS, Counter, MEMORY, Ring, activation, memory};
use crate::virtio::worker::unconfined;
use crate::virtio::{DeviceState, Memory, VirtioDevice, bits};

/// Pages that the tests give back; the memory's two regions meet in the middle of them.
const FIRST: u64 = ((MEMORY as u64 / 2) >> 12) - 8;
const COUNT: u64 = 16;

struct Lab {
    memory: Arc<Memory>,
    rings: Vec<Ring>,
    interrupt: Arc<Counter>,
    balloon: Balloon,
}

impl Lab {
    fn new(features: u64, queues: u64) -> Self {
        let memory = memory();
        let rings: Vec<Ring> = (0..queues).map(|n| Ring::new(&memory, n * 0x1_0000, 16)).collect();
        let interrupt = Arc::new(Counter::default());
        let mut balloon = Balloon::new(true, unconfined());
        let features = balloon.features() & features;
        balloon
            .activate(activation(&memory, &rings.iter().collect::<Vec<_>>(), &interrupt, features))
            .unwrap();
        for page in FIRST..FIRST + COUNT {
            memory.write_slice(&[7; 4096], GuestAddress(page << 12)).unwrap();
        }
        Self { memory, rings, interrupt, balloon }
    }

    /// Pages of the tests' that take memory of the host.
    fn resident(&self) -> usize {
        (FIRST..FIRST + COUNT).filter(|page| resident(&self.memory, *page)).count()
    }

    fn put(&self, words: &[u32]) -> u32 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
        u32::try_from(bytes.len()).unwrap()
    }

    fn inflate(&mut self, pages: &[u64]) {
        let len = self.put(&pages.iter().map(|page| u32::try_from(*page).unwrap()).collect::<Vec<_>>());
        self.rings[0].add(&[(BUFFERS, len, false)]);
        self.rings[0].kick();
        assert_eq!(self.rings[0].wait().1, 0);
    }
}

fn resident(memory: &Memory, page: u64) -> bool {
    let address = memory.get_host_address(GuestAddress(page << 12)).unwrap();
    let mut there = 0_u8;
    // SAFETY: the page is mapped, and one page gives one byte.
    assert_eq!(unsafe { libc::mincore(address.cast(), 4096, &raw mut there) }, 0);
    there & 1 != 0
}

#[test]
fn memory_goes_back_to_the_host_and_comes_again_as_zeros() {
    let mut lab = Lab::new(u64::MAX, 4);
    assert_eq!(lab.resident(), 16);
    // Upwards over the boundary of the regions, downwards as Linux lists them, one by itself, one twice.
    lab.inflate(&[FIRST + 6, FIRST + 7, FIRST + 8, FIRST + 9]);
    assert_eq!(lab.resident(), 12);
    lab.inflate(&[FIRST + 3, FIRST + 2, FIRST + 1, FIRST + 15, FIRST + 15]);
    assert_eq!(lab.resident(), 8);
    assert_eq!(lab.balloon.balloon().unwrap().given_back, 9 << 12);
    // What does not exist is left alone, and so is the rest.
    lab.inflate(&[MEMORY as u64 >> 12, u64::from(u32::MAX), FIRST]);
    assert_eq!(lab.resident(), 7);
    lab.rings[1].add(&[(BUFFERS, 4, false)]);
    lab.rings[1].kick();
    lab.rings[1].wait();
    let mut page = [1; 4096];
    lab.memory.read_slice(&mut page, GuestAddress((FIRST + 2) << 12)).unwrap();
    assert_eq!(page, [0; 4096]);
    lab.memory.read_slice(&mut page, GuestAddress((FIRST + 4) << 12)).unwrap();
    assert_eq!(page, [7; 4096]);
}

#[test]
fn reported_pages_go_back_whole_ones_only() {
    let mut lab = Lab::new(u64::MAX, 4);
    let at = |page: u64| (FIRST + page) << 12;
    lab.rings[3].add(&[(at(0), 8192, true), (at(4) + 1, 3 << 12, true), (at(9), 4095, true)]);
    lab.rings[3].kick();
    lab.rings[3].wait();
    assert_eq!(lab.resident(), 12, "two and two");
}

#[test]
fn a_driver_without_statistics_reports_on_the_third_queue() {
    let mut lab = Lab::new(!bits(&[STATISTICS]), 3);
    lab.rings[2].add(&[(FIRST << 12, 4096, true)]);
    lab.rings[2].kick();
    lab.rings[2].wait();
    assert_eq!(lab.resident(), 15);
    let mut plain = Lab::new(!bits(&[STATISTICS, REPORTING]), 2);
    plain.inflate(&[FIRST]);
    assert_eq!(plain.resident(), 15);
    assert_eq!(plain.balloon.features() & bits(&[DEFLATE_ON_OOM]), bits(&[DEFLATE_ON_OOM]));
    assert_eq!(Balloon::new(false, unconfined()).features() & bits(&[DEFLATE_ON_OOM]), 0);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut lab = Lab::new(u64::MAX, 4);
    let say = |lab: &Lab, values: &[(u16, u64)]| {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        lab.memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
        u32::try_from(bytes.len()).unwrap()
    };
    let len = say(&lab, &[(4, 1000), (5, 2000), (99, 1), (6, 1500)]);
    lab.rings[2].add(&[(BUFFERS, len, false)]);
    lab.rings[2].kick();
    let wait = |lab: &mut Lab, updates: u64| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let statistics = lab.balloon.balloon().unwrap().statistics;
            if statistics.updates >= updates {
                return statistics;
            }
            assert!(Instant::now() < deadline, "no statistics");
            std::thread::yield_now();
        }
    };
    let first = wait(&mut lab, 1);
    let expected = BalloonStatistics {
        free: Some(1000),
        total: Some(2000),
        available: Some(1500),
        updates: 1,
        ..Default::default()
    };
    assert_eq!(first, expected);
    // Asking gave the buffer back; the driver fills it again. A pause puts it back into the ring, which is read once more.
    lab.rings[2].wait();
    let len = say(&lab, &[(4, 900)]);
    let progress = lab.balloon.pause();
    assert_eq!((progress[2].next_avail, progress[2].next_used), (1, 1));
    lab.rings[2].add(&[(BUFFERS, len, false)]);
    lab.balloon.resume();
    assert_eq!(wait(&mut lab, 2).free, Some(900));
}

#[test]
fn the_target_is_told_and_kept() {
    let mut lab = Lab::new(u64::MAX, 4);
    assert!(lab.balloon.set_balloon(64 << 20));
    assert!(lab.balloon.set_balloon(64 << 20));
    assert_eq!(lab.interrupt.config.load(Ordering::SeqCst), 1);
    let mut space = [0; 12];
    lab.balloon.read_config(0, &mut space);
    assert_eq!(space[..4], 16384_u32.to_le_bytes());
    lab.balloon.write_config(4, &100_u32.to_le_bytes());
    lab.balloon.write_config(0, &[9; 4]);
    lab.balloon.write_config(5, &[9; 4]);
    let status = lab.balloon.balloon().unwrap();
    assert_eq!((status.target, status.actual), (64 << 20, 409_600));
    let saved = lab.balloon.save();
    let mut copy = Balloon::new(true, unconfined());
    copy.restore(&saved).unwrap();
    assert_eq!(copy.save(), saved);
    assert!(copy.restore(&DeviceState::Rng).is_err());
    lab.balloon.reset();
    assert_eq!(lab.balloon.balloon().unwrap().actual, 0);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

    /// Whatever is listed or reported: only pages inside of memory go, and the device goes on.
    #[test]
    fn hostile_lists(pages in prop::collection::vec(any::<u32>(), 0..64), pieces in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 1..6)) {
        let mut lab = Lab::new(u64::MAX, 4);
        let len = lab.put(&pages);
        lab.rings[0].add(&[(BUFFERS, len.max(1), false)]);
        lab.rings[0].kick();
        lab.rings[0].wait();
        for ring in [1, 3] {
            lab.rings[ring].add(&pieces);
            lab.rings[ring].kick();
            lab.rings[ring].wait();
        }
        lab.inflate(&[FIRST]);
        proptest::prop_assert!(!resident(&lab.memory, FIRST));
    }
}
