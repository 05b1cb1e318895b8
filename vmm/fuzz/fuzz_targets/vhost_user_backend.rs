//! A back end of a vhost-user device that answers with the fuzzer's bytes; the first byte chooses the kind of device.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vmm::virtio::Memory;
use vmm::virtio::vhost_user::kind::Kind;
use vmm::virtio::vhost_user::testing::{converse, shared_memory};

static MEMORY: LazyLock<Arc<Memory>> = LazyLock::new(shared_memory);

fuzz_target!(|data: &[u8]| {
    let Some((kind, script)) = data.split_first() else { return };
    let kind = match kind % 3 {
        0 => Kind::Disk { queues: 4 },
        1 => Kind::Nic { mac: [2; 6], mtu: 1500 },
        _ => Kind::Files { tag: "share".into() },
    };
    let _ = converse(&kind, &MEMORY, script);
});
