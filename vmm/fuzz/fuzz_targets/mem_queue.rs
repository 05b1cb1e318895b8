//! A memory device on the upper half of guest memory; the first byte chooses how much is to be plugged in.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm::machine::memory::plugged::{Pluggable, Plugged};
use vmm::virtio::mem::Shared;
use vmm::virtio::mem::engine::MemEngine;
use vmm::virtio::testing::MEMORY;

/// Small ones, so that there are many.
const BLOCK: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((setup, data)) = data.split_first() else { return };
    let length = MEMORY / 2;
    let plugged = Arc::new(Plugged::none(length, BLOCK));
    let area = Pluggable { start: GuestAddress(length as u64), length, plugged: Arc::clone(&plugged) };
    let requested = u64::from(setup & 0x7f) * BLOCK as u64;
    let shared = Shared { area, requested: AtomicU64::new(requested), prefault: setup & 0x80 != 0 };
    vmm_fuzz::run(&mut MemEngine::new(Arc::new(shared)), 1, u64::MAX, data);
    assert!(plugged.bytes() <= requested, "more is plugged in than was asked for");
});
