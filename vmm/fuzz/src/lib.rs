//! What the targets of queues share: guest memory filled from the fuzzer's bytes, and turns of an engine over
//! it.

use std::sync::{Arc, LazyLock};

use vm_memory::{Bytes, GuestAddress};
use vmm::virtio::testing::{Counter, Ring, activation, memory};
use vmm::virtio::worker::{Engine, Ready, Turn};
use vmm::virtio::Memory;

/// Bytes of memory at the front that the fuzzer writes: all rings and some buffers.
const WINDOW: usize = 0x4_0000;

static MEMORY: LazyLock<Arc<Memory>> = LazyLock::new(memory);

/// Lays the fuzzer's bytes out as records of (offset, length, content) in the rings' memory, so that small
/// inputs reach every part of it.
fn fill(mut data: &[u8]) {
    let clean = vec![0; WINDOW];
    MEMORY.write_slice(&clean, GuestAddress(0)).expect("the window is in memory");
    while let [a, b, c, len, rest @ ..] = data {
        let at = (usize::from(*a) | usize::from(*b) << 8 | usize::from(*c & 3) << 16) % WINDOW;
        let (content, later) = rest.split_at(usize::from(*len).min(rest.len()));
        let room = WINDOW - at;
        let content = &content[..content.len().min(room)];
        MEMORY.write_slice(content, GuestAddress(at as u64)).expect("the window is in memory");
        data = later;
    }
}

/// Starts `engine` on `queues` rings in fuzzed memory, gives it turns, and stops it.
pub fn run(engine: &mut impl Engine, queues: usize, features: u64, data: &[u8]) {
    fill(data);
    let rings: Vec<Ring> = (0..queues).map(|n| Ring::new(&MEMORY, n as u64 * 0x1_0000, 16)).collect();
    let rings: Vec<&Ring> = rings.iter().collect();
    let interrupt = Arc::new(Counter::default());
    if engine.start(activation(&MEMORY, &rings, &interrupt, features)).is_err() {
        return;
    }
    // A device may be kept busy for as long as the guest likes; orders get through between turns.
    for _ in 0..4 {
        if engine.turn(Ready::ALL) == Turn::Sleep {
            break;
        }
    }
    engine.quiesce();
    engine.turn(Ready::ALL);
    engine.stop();
}
