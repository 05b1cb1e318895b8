use super::*;
use crate::machine::memory::Ram;
use std::os::unix::fs::{FileExt, MetadataExt};
use vm_memory::{Bytes, GuestMemoryRegion};
use wire::MiB;

const HIGH: u64 = (4 << 30) + (5 << 20);

fn ram(size: u64, backing: MemoryBacking) -> Result<Memory, MemoryError> {
    Ram::new(MiB(size), backing).reserve()
}

#[test]
fn shared_memory_is_one_file_that_others_can_map_and_nobody_can_cut() {
    let memory = ram(3 * 1024 + 64, MemoryBacking { shared: true, ..MemoryBacking::default() }).unwrap();
    memory.write_obj(7u64, GuestAddress(0x1234)).unwrap();
    memory.write_obj(8u64, GuestAddress(HIGH)).unwrap();
    let of: Vec<_> = memory.iter().map(|region| region.file_offset().unwrap()).collect();
    assert_eq!((of[0].start(), of[1].start()), (0, 3 << 30));
    for (of, at, value) in [(of[0], 0x1234, 7u64), (of[1], HIGH - (4 << 30), 8)] {
        let mut word = [0; 8];
        of.file().read_exact_at(&mut word, of.start() + at).unwrap();
        assert_eq!(u64::from_le_bytes(word), value);
    }
    let facts = of[0].file().metadata().unwrap();
    assert!(facts.blocks() * 512 <= 16 << 20, "{} blocks", facts.blocks());
    assert!(of[0].file().set_len(4096).is_err() && of[0].file().set_len(1 << 40).is_err());
}

#[test]
fn memory_goes_back_whichever_way_it_came() {
    for shared in [false, true] {
        let memory = ram(64, MemoryBacking { shared, ..MemoryBacking::default() }).unwrap();
        memory.write_slice(&vec![1; 1 << 20], GuestAddress(8 << 20)).unwrap();
        let region = memory.iter().next().unwrap();
        let before = resident(region);
        let at = region.as_ptr().expose_provenance() + (8 << 20);
        // SAFETY: it is memory of the region, which nobody uses.
        let given = unsafe { Return::of(&memory).give(at + 1, (1 << 20) - 1) };
        assert_eq!(given, (1 << 20) - 4096, "shared: {shared}");
        assert!(resident(region) <= before - (1 << 20) + 4096, "shared: {shared}");
        assert_eq!(memory.read_obj::<u8>(GuestAddress((8 << 20) + 4096)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(8 << 20)).unwrap(), 1);
        if let Some(of) = region.file_offset() {
            assert!(of.file().metadata().unwrap().blocks() * 512 < 1 << 20);
        }
    }
}

#[test]
fn memory_is_there_before_the_guest_when_that_is_asked_for() {
    for shared in [false, true] {
        let memory = ram(32, MemoryBacking { shared, prefault: true, ..MemoryBacking::default() }).unwrap();
        assert_eq!(resident(memory.iter().next().unwrap()), 32 << 20);
        let memory = ram(32, MemoryBacking { shared, ..MemoryBacking::default() }).unwrap();
        assert_eq!(resident(memory.iter().next().unwrap()), 0);
    }
}

#[test]
fn transparent_huge_pages_lie_where_they_fit_or_are_refused_in_words() {
    let backing = MemoryBacking { pages: Pages::Transparent, ..MemoryBacking::default() };
    let host = HostPages::look(&backing);
    match ram(64, backing) {
        Ok(memory) => {
            let region = memory.iter().next().unwrap();
            assert_eq!(region.as_ptr().addr() % HUGE, 0);
            memory.write_obj(1u8, GuestAddress(HUGE as u64)).unwrap();
        }
        Err(error) => {
            assert!(matches!(error, MemoryError::Transparent(_)), "{error}");
            assert!(host.transparent.is_none_or(|words| words.contains("[never]")));
        }
    }
    let off = HostPages { transparent: Some("always madvise [never]".into()), huge: None };
    let error = map(&[(GuestAddress(0), HUGE)], &backing, &off).unwrap_err().to_string();
    assert!(error.contains("write madvise into /sys/kernel/mm/transparent_hugepage/enabled"), "{error}");
}

#[test]
fn huge_pages_are_refused_with_what_the_host_has_and_how_it_gets_more() {
    for shared in [false, true] {
        let backing = MemoryBacking { shared, pages: Pages::Huge1G, prefault: false };
        let error = ram(64, backing).unwrap_err().to_string();
        assert!(error.contains("a multiple of that"), "{error}");
        // More than any host that runs these tests has set aside.
        let error = ram(1 << 20, backing).unwrap_err().to_string();
        let known = error.contains("1024 pages of 1024 MiB are needed")
            && error.contains("hugepages-1048576kB/nr_hugepages")
            && error.contains("hugepagesz=1G hugepages=1024");
        assert!(known || error.contains("has no pages of 1024 MiB"), "{error}");
    }
}

/// Sets huge pages aside on the host; as before when dropped.
struct SetAside {
    before: u64,
    /// Held by one test run at a time.
    _lock: nix::fcntl::Flock<File>,
}

const SWITCH: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

impl SetAside {
    fn more(pages: u64) -> Option<Self> {
        let lock =
            nix::fcntl::Flock::lock(File::open(SWITCH).ok()?, nix::fcntl::FlockArg::LockExclusive).ok()?;
        let before: u64 = std::fs::read_to_string(SWITCH).ok()?.trim().parse().ok()?;
        let set = Self { before, _lock: lock };
        std::fs::write(SWITCH, (before + pages).to_string()).ok()?;
        let now: u64 = std::fs::read_to_string(SWITCH).ok()?.trim().parse().ok()?;
        (now == before + pages).then_some(set)
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        let _ = std::fs::write(SWITCH, self.before.to_string());
    }
}

#[test]
fn huge_pages_that_the_host_has_are_used_and_come_back() {
    let Some(_set) = SetAside::more(32) else {
        println!("skipped: this host gives no huge pages");
        return;
    };
    for shared in [false, true] {
        let memory = ram(32, MemoryBacking { shared, pages: Pages::Huge2M, prefault: true }).unwrap();
        let region = memory.iter().next().unwrap();
        assert_eq!(region.as_ptr().addr() % HUGE, 0);
        memory.write_obj(1u8, GuestAddress((4 << 20) + 5)).unwrap();
        let how = Return::of(&memory);
        let at = region.as_ptr().expose_provenance() + (4 << 20);
        // SAFETY: it is memory of the region, which nobody uses.
        let given = unsafe { [how.give(at, 4096), how.give(at, HUGE)] };
        assert_eq!(given, [0, HUGE as u64], "shared: {shared}");
        assert_eq!(memory.read_obj::<u8>(GuestAddress((4 << 20) + 5)).unwrap(), 0);
    }
}

#[test]
fn a_tebibyte_costs_nothing_until_it_is_touched() {
    for shared in [false, true] {
        let memory = ram(1 << 20, MemoryBacking { shared, ..MemoryBacking::default() }).unwrap();
        let end = (1 << 40) + (1 << 30) - 8;
        memory.write_obj(5u64, GuestAddress(end)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(end)).unwrap(), 5);
        assert!(memory.write_obj(5u64, GuestAddress(end + 8)).is_err());
        if let Some(of) = memory.iter().nth(1).and_then(GuestMemoryRegion::file_offset) {
            assert!(of.file().metadata().unwrap().blocks() * 512 <= 4 << 20);
        }
    }
}

#[test]
fn pieces_cover_a_length_once() {
    for (length, most) in [(1, 1), (HUGE, 4), (5 * HUGE + 4096, 2), (64 * HUGE, 8), (7 * HUGE, 3)] {
        let pieces = pieces(length, HUGE, most);
        assert!(pieces.len() <= most && !pieces.is_empty());
        let mut at = 0;
        for (from, length) in &pieces {
            assert_eq!((*from, from % HUGE), (at, 0));
            at += length;
        }
        assert_eq!(at, length);
    }
}
