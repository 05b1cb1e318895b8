//! A virtio console whose input never ends.
#![no_main]

use std::fs::File;
use std::io::sink;

use libfuzzer_sys::fuzz_target;
use vmm::virtio::console::ConsoleEngine;

fuzz_target!(|data: &[u8]| {
    let zeros = File::open("/dev/zero").expect("/dev/zero");
    let mut engine = ConsoleEngine::new(Box::new(sink()), Some(zeros.into())).expect("an engine");
    vmm_fuzz::run(&mut engine, 2, u64::MAX, data);
});
