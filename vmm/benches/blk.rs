//! The disk's request path, from the guest's ring to the file and back, without a guest: what the monitor
//! adds to the host's own I/O.
//!
//! `cargo bench -p vmm --features testing`. The file lies in the page cache, so the figures are the path's
//! own cost: one request at a time (its latency, two thread switches included) and 32 at once (batched
//! submission).

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vm_memory::{Bytes, GuestAddress};
use vmm::backend::file::DiskFile;
use vmm::virtio::VirtioDevice;
use vmm::virtio::blk::{Blk, BlkConfig};
use vmm::virtio::testing::{BUFFERS, Counter, Ring, activation, memory};
use vmm::virtio::worker::unconfined;

/// Bytes of each request's data.
const BLOCK: u32 = 4096;
const REQUESTS: u64 = 32;

fn request_path(criterion: &mut Criterion) {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(64 << 20).expect("room");
    for (name, io_uring) in [("io_uring", true), ("plain", false)] {
        let config = BlkConfig { serial: "bench".into(), io_uring, ..BlkConfig::default() };
        let disk = DiskFile::new(file.try_clone().expect("a descriptor"), 512).expect("a file");
        let mut blk = Blk::new(disk, &config, unconfined).expect("a disk");
        let memory = memory();
        let mut ring = Ring::new(&memory, 0, 256);
        let interrupt = Arc::new(Counter::default());
        blk.activate(activation(&memory, &[&ring], &interrupt, blk.features())).expect("a working disk");
        for (kind, verb) in [("read", 0_u32), ("write", 1)] {
            for n in 0..REQUESTS {
                let header = BUFFERS + n * 0x2000;
                memory.write_obj(verb, GuestAddress(header)).expect("in memory");
                memory.write_obj(n * 8, GuestAddress(header + 8)).expect("in memory");
            }
            let mut group = criterion.benchmark_group(format!("blk/{name}/{kind}"));
            for depth in [1, REQUESTS] {
                group.throughput(Throughput::Bytes(depth * u64::from(BLOCK)));
                group.bench_function(format!("{depth}x4k"), |bencher| {
                    bencher.iter(|| {
                        for n in 0..depth {
                            let header = BUFFERS + n * 0x2000;
                            let data = (header + 0x1000, BLOCK, verb == 0);
                            ring.add(&[(header, 16, false), data, (header + 16, 1, true)]);
                        }
                        ring.kick();
                        for _ in 0..depth {
                            black_box(ring.wait());
                        }
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, request_path);
criterion_main!(benches);
