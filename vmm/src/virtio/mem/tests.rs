//! Real memory, plugged in and out by requests as a driver and as an attacker makes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::{any, prop};
use vm_memory::{Bytes, GuestAddress};
use wire::MiB;
use wire::machine::{MemoryBacking, MemoryStatus};

use super::{Mem, MemState};
use crate::machine::memory::{PLUG_BLOCK, Ram};
use crate::virtio::testing::{BUFFERS, Counter, Ring, activation};
use crate::virtio::worker::unconfined;
use crate::virtio::{DeviceState, Memory, VirtioDevice};

const BASE: MiB = MiB(64);
/// Blocks of the area.
const BLOCKS: usize = 64;
/// Where the area starts.
const AREA: u64 = 8 << 30;
const BLOCK: u64 = PLUG_BLOCK as u64;
/// The types of answers.
const ACK: [u16; 2] = [0, 0];
const NACK: [u16; 2] = [1, 0];
const ERROR: [u16; 2] = [3, 0];

struct Lab {
    memory: Arc<Memory>,
    ring: Ring,
    interrupt: Arc<Counter>,
    device: Mem,
}

impl Lab {
    fn new(shared: bool, prefault: bool) -> Self {
        let backing = MemoryBacking { shared, prefault, ..MemoryBacking::default() };
        let ram = Ram { most: Some(MiB(192)), ..Ram::new(BASE, backing) };
        let memory = Arc::new(ram.reserve().unwrap());
        let area = ram.pluggable(&memory).unwrap();
        assert_eq!((area.start.0, area.plugged.blocks()), (AREA, BLOCKS));
        let ring = Ring::new(&memory, 0, 16);
        let interrupt = Arc::new(Counter::default());
        let mut device = Mem::new(area, BASE.bytes().unwrap(), prefault, unconfined());
        device.activate(activation(&memory, &[&ring], &interrupt, device.features())).unwrap();
        Self { memory, ring, interrupt, device }
    }

    /// Makes a request and answers with type and state.
    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> [u16; 2] {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&blocks.to_le_bytes());
        self.memory.write_slice(&request, GuestAddress(BUFFERS)).unwrap();
        self.memory.write_slice(&[0xff; 10], GuestAddress(BUFFERS + 64)).unwrap();
        self.ring.add(&[(BUFFERS, 24, false), (BUFFERS + 64, 10, true)]);
        self.ring.kick();
        assert_eq!(self.ring.wait().1, 10);
        let word = |at: u64| self.memory.read_obj::<u16>(GuestAddress(BUFFERS + 64 + at)).unwrap();
        [word(0), word(8)]
    }

    fn config(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(word * 8, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Bytes of the area that take memory of the host.
    fn resident(&self) -> u64 {
        use vm_memory::GuestMemoryBackend;
        let region = self.memory.iter().last().unwrap();
        crate::machine::memory::backing::resident(region) as u64
    }
}

fn at(block: u64) -> u64 {
    AREA + block * BLOCK
}

#[test]
fn memory_is_plugged_in_and_goes_back_to_the_host() {
    for shared in [false, true] {
        let mut lab = Lab::new(shared, false);
        assert_eq!(
            [0, 2, 3, 4, 5, 6].map(|word| lab.config(word)),
            [BLOCK, AREA, 128 << 20, 128 << 20, 0, 0]
        );
        assert_eq!(lab.ask(0, at(0), 1), NACK, "nothing is wanted");
        assert!(lab.device.set_plugged(8 * BLOCK));
        assert_eq!((lab.interrupt.config.load(Ordering::SeqCst), lab.config(6)), (1, 8 * BLOCK));
        assert_eq!(lab.ask(0, at(0), 6), ACK);
        assert_eq!(lab.ask(0, at(6), 3), NACK, "one too many");
        assert_eq!(lab.ask(0, at(5), 2), ERROR, "one is plugged in");
        assert_eq!(lab.ask(0, at(62), 2), ACK);
        assert_eq!(lab.config(5), 8 * BLOCK);
        let status = lab.device.plugged().unwrap();
        let (least, most) = (64 << 20, 192 << 20);
        assert_eq!(
            status,
            MemoryStatus { target: least + 8 * BLOCK, actual: least + 8 * BLOCK, least, most }
        );
        assert_eq!(
            [(0, 6), (5, 2), (6, 1), (61, 2)].map(|(from, count)| lab.ask(3, at(from), count)),
            [[0, 0], [0, 2], [0, 1], [0, 2]]
        );
        for block in [0, 1, 62] {
            lab.memory.write_slice(&vec![7; 1 << 20], GuestAddress(at(block))).unwrap();
        }
        let used = lab.resident();
        assert!(used >= 3 << 20, "{used}");
        assert_eq!(lab.ask(1, at(1), 1), ACK);
        assert_eq!(lab.memory.read_obj::<u8>(GuestAddress(at(1))).unwrap(), 0);
        assert_eq!(lab.memory.read_obj::<u8>(GuestAddress(at(0))).unwrap(), 7);
        assert_eq!(lab.ask(1, at(0), 2), ERROR, "one is out already");
        assert_eq!(lab.ask(2, 0, 0), ACK);
        assert_eq!((lab.config(5), lab.resident()), (0, 0), "shared: {shared}");
    }
}

#[test]
fn memory_is_there_when_it_is_plugged_in_if_that_was_asked_for() {
    let mut lab = Lab::new(false, true);
    assert_eq!(lab.resident(), 0);
    lab.device.set_plugged(4 * BLOCK);
    assert_eq!(lab.ask(0, at(3), 2), ACK);
    assert_eq!(lab.resident(), 2 * BLOCK);
}

#[test]
fn requests_that_make_no_sense_are_errors() {
    let mut lab = Lab::new(false, false);
    lab.device.set_plugged(u64::MAX);
    assert_eq!(lab.config(6), 128 << 20, "no more than there is");
    for (kind, address, blocks) in [
        (0, at(0), 0),
        (0, at(0) + 4096, 1),
        (0, AREA - BLOCK, 1),
        (0, at(63), 2),
        (0, at(0), u16::MAX),
        (0, u64::MAX - 1, 1),
        (0, 0, 1),
        (1, at(0), 1),
        (3, at(64), 1),
        (4, at(0), 1),
        (u16::MAX, at(0), 1),
    ] {
        assert_eq!(lab.ask(kind, address, blocks), ERROR, "{kind} {address:#x} {blocks}");
    }
    assert_eq!(lab.config(5), 0);
    // A request that is cut short, and one whose answer has no place: neither is done.
    lab.ring.add(&[(BUFFERS, 23, false), (BUFFERS + 64, 10, true)]);
    lab.ring.add(&[(BUFFERS, 24, false), (BUFFERS + 64, 9, true)]);
    lab.ring.kick();
    assert_eq!((lab.ring.wait().1, lab.ring.wait().1), (10, 9));
    assert_eq!(lab.config(5), 0);
}

#[test]
fn what_is_plugged_in_outlives_a_reset_and_a_snapshot() {
    let mut lab = Lab::new(false, false);
    lab.device.set_plugged(10 * BLOCK);
    assert_eq!(lab.ask(0, at(2), 3), ACK);
    assert_eq!(lab.ask(0, at(60), 4), ACK);
    lab.device.pause();
    let state = lab.device.save();
    let expected = MemState { requested: 10 * BLOCK, plugged: vec![(2, 3), (60, 4)] };
    assert_eq!(state, DeviceState::Mem(expected.clone()));
    lab.device.reset();
    assert_eq!(lab.config(5), 7 * BLOCK);
    let mut other = Lab::new(false, false);
    other.device.restore(&state).unwrap();
    assert_eq!((other.config(5), other.config(6)), (7 * BLOCK, 10 * BLOCK));
    for wrong in [
        MemState { requested: u64::MAX, ..expected.clone() },
        MemState { plugged: vec![(60, 5)], ..expected.clone() },
        MemState { plugged: vec![(2, 3), (4, 1)], ..expected.clone() },
        MemState { plugged: vec![(usize::MAX, 2)], ..expected.clone() },
        MemState { plugged: vec![(1, 0)], ..expected },
    ] {
        Lab::new(false, false)
            .device
            .restore(&DeviceState::Mem(wrong.clone()))
            .expect_err(&format!("{wrong:?}"));
    }
    assert!(other.device.restore(&DeviceState::Rng).is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(16))]
    #[test]
    fn never_more_than_is_wanted(
        wanted in 0u64..70,
        requests in prop::collection::vec((0u16..4, 0u64..70, 0u16..9, any::<bool>()), 1..40),
    ) {
        let mut lab = Lab::new(false, false);
        lab.device.set_plugged(wanted * BLOCK);
        let mut model = [false; BLOCKS];
        for (kind, first, count, odd) in requests {
            let from = usize::try_from(first).unwrap();
            let fits = count > 0 && !odd && from + usize::from(count) <= BLOCKS;
            let own = from..(from + usize::from(count)).min(BLOCKS).max(from.min(BLOCKS));
            let plugged = model.get(own.clone()).unwrap_or_default().iter().filter(|is| **is).count();
            let all = model.iter().filter(|is| **is).count() + usize::from(count);
            let expected = match kind {
                2 => ACK,
                _ if !fits => ERROR,
                0 if plugged > 0 => ERROR,
                0 if all as u64 > wanted.min(BLOCKS as u64) => NACK,
                0 => ACK,
                1 if plugged == usize::from(count) => ACK,
                1 => ERROR,
                _ if plugged == usize::from(count) => [0, 0],
                _ => [0, if plugged == 0 { 1 } else { 2 }],
            };
            proptest::prop_assert_eq!(lab.ask(kind, at(first) + u64::from(odd), count), expected);
            match (kind, expected) {
                (0, ACK) => model[own].fill(true),
                (1, ACK) => model[own].fill(false),
                (2, _) => model.fill(false),
                _ => {}
            }
            let bytes = model.iter().filter(|is| **is).count() as u64 * BLOCK;
            proptest::prop_assert_eq!(lab.config(5), bytes);
        }
    }
}
