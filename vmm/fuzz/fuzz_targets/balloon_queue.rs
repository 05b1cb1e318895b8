//! A balloon; the first byte chooses which queues the driver took.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::virtio::balloon::Shared;
use vmm::virtio::balloon::engine::BalloonEngine;

fuzz_target!(|data: &[u8]| {
    let Some((setup, data)) = data.split_first() else { return };
    let shared = Arc::<Shared>::default();
    shared.wanted.store(setup & 4 != 0, std::sync::atomic::Ordering::Release);
    // Bits 1 and 5: statistics and reports.
    let features = u64::MAX & !(u64::from(setup & 1) << 1) & !(u64::from(setup & 2) << 4);
    vmm_fuzz::run(&mut BalloonEngine::new(shared), 4, features, data);
});
