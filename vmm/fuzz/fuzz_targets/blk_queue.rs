//! A disk on a small file in memory; the first byte chooses how it is set up.
#![no_main]

use std::fs::File;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm::backend::file::{DiskFile, FileQueue};
use vmm::virtio::blk::Shared;
use wire::machine::{BlockSize, Limits};
use vmm::virtio::blk::engine::{BlkEngine, DEPTH};

const SECTORS: u64 = 256;

fuzz_target!(|data: &[u8]| {
    let Some((setup, data)) = data.split_first() else { return };
    let file = File::from(memfd_create(c"disk", MFdFlags::empty()).expect("a memory file"));
    file.set_len(SECTORS * 512).expect("room");
    let block_size = if setup & 16 == 0 { BlockSize::B512 } else { BlockSize::B4096 };
    let shared = Arc::new(Shared::new(SECTORS * 512, block_size, Limits::default()));
    shared.set_write_back(setup & 1 != 0);
    let queue = FileQueue::new(DiskFile::new(file, block_size.bytes()).expect("a file"), DEPTH, setup & 2 != 0);
    let mut engine = BlkEngine::new(queue, shared, [b'x'; 20], setup & 4 != 0);
    let features = if setup & 8 == 0 { u64::MAX } else { !(1 << 29) };
    vmm_fuzz::run(&mut engine, 1, features, data);
});
