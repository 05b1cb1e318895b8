//! A whole disk image, from partition table to kernel.
#![no_main]

use std::io::sink;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::boot_entries::find::find;

fuzz_target!(|data: &[u8]| {
    let _ = find(Arc::new(data.to_vec()), &mut sink(), &mut sink());
});
