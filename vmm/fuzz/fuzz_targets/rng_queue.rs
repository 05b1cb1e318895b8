//! The entropy device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::rng::RngEngine;

fuzz_target!(|data: &[u8]| vmm_fuzz::run(&mut RngEngine::new(), 1, u64::MAX, data));
