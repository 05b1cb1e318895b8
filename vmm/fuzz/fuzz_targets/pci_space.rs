//! The PCI bus with a device of each kind: accesses of every width to configuration space by both mechanisms and to BARs, with the
//! driver thread's work in between. Whatever state a guest gets a device into can be saved and is taken back.
#![no_main]

use std::io::sink;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use vmm::backend::file::DiskFile;
use vmm::bus::msix::Routes;
use vmm::bus::pci::{BAR_SIZE, PciBus, first_base};
use vmm::machine::signals::Signals;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::blk::{Blk, BlkConfig};
use vmm::virtio::console::Console;
use vmm::virtio::rng::Rng;
use vmm::virtio::testing::memory;
use vmm::virtio::transport::{Host, VirtioPci};
use vmm::virtio::vsock::Vsock;
use vmm::virtio::worker::unconfined;
use vmm::virtio::{Snapshot, VirtioDevice};

/// Only KVM turns interrupts and notifications into events; nothing runs in this machine.
static HOST: LazyLock<Host> = LazyLock::new(|| {
    let kvm = kvm_ioctls::Kvm::new().expect("/dev/kvm");
    let vm = Arc::new(kvm.create_vm().expect("a machine"));
    let signals = Arc::new(Signals::new().expect("an event"));
    Host { routes: Arc::new(Routes::new(vm.clone())), vm, memory: memory(), signals }
});

const DEVICES: u8 = 5;

fn device(kind: u8) -> Box<dyn VirtioDevice> {
    match kind {
        0 => {
            let file = nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::empty());
            let file = std::fs::File::from(file.expect("a memory file"));
            file.set_len(1 << 17).expect("room");
            let file = DiskFile::new(file, 512).expect("a file");
            Box::new(
                Blk::new(file, &BlkConfig { queues: 2, ..BlkConfig::default() }, unconfined).expect("a disk"),
            )
        }
        1 => Box::new(Rng::new(unconfined())),
        2 => Box::new(Balloon::new(true, unconfined())),
        3 => Box::new(Console::new(Box::new(sink()), None, unconfined())),
        _ => {
            let name = format!("vmm-fuzz-pci-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).expect("an address");
            let listener = UnixListener::bind_addr(&address).expect("a socket");
            Box::new(Vsock::new(3, listener.into(), unconfined()))
        }
    }
}

/// The next bytes of the input, zeros behind its end.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let (now, later) = data.split_at(N.min(data.len()));
    bytes[..now.len()].copy_from_slice(now);
    *data = later;
    bytes
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let bus = PciBus::default();
    // Of one kind only, or of all: fewer make shorter turns.
    let [kinds] = take(&mut data);
    let kinds: Vec<u8> = (0..DEVICES).filter(|kind| kinds & (1 << kind) != 0).collect();
    let devices: Vec<Arc<Mutex<VirtioPci>>> = (1..)
        .zip(&kinds)
        .map(|(slot, kind)| {
            let device = VirtioPci::new(HOST.clone(), slot, device(*kind)).expect("events");
            let (base, device) = (device.base(), Arc::new(Mutex::new(device)));
            bus.insert(slot, device.clone(), base);
            device
        })
        .collect();
    let mut word = [0; 8];
    while !data.is_empty() {
        let [act, width, a, b, c] = take(&mut data);
        let length = usize::from(width & 15).min(8);
        // Most accesses go where there is a device.
        let slot = if c & 0x80 == 0 { 1 + u64::from(c) % 6 } else { u64::from(c & 31) };
        let place = u64::from(u16::from_le_bytes([a, b]));
        let ecam = (slot << 15) | (place & 0x7fff & if c & 0x40 == 0 { 0xff } else { 0x7fff });
        let bar = u64::from(first_base(slot as u8)) + place % u64::from(BAR_SIZE);
        match act % 8 {
            0 => bus.read_ecam(ecam, &mut word[..length]),
            1 => bus.write_ecam(ecam, &take::<8>(&mut data)[..length]),
            2 => {
                bus.set_address(0x8000_0000 | (slot as u32) << 11 | u32::from(a));
                bus.write_data(u16::from(b & 3), &take::<8>(&mut data)[..length]);
            }
            3 => bus.read_data(u16::from(b & 3), &mut word[..length]),
            4 => bus.read_window(bar, &mut word[..length]),
            5 | 6 => bus.write_window(bar, &take::<8>(&mut data)[..length]),
            _ => {
                for device in &devices {
                    let mut device = device.lock().expect("no device panicked");
                    let _ = device.settle();
                    if width & 0x10 != 0 {
                        device.pause();
                        device.resume();
                    }
                }
            }
        }
    }
    for (kind, shared) in kinds.iter().zip(&devices) {
        let mut shared = shared.lock().expect("no device panicked");
        let _ = shared.settle();
        shared.pause();
        let state = shared.save();
        shared.stop();
        if *kind == 4 {
            // Its twin would want the same socket.
            continue;
        }
        let mut twin = VirtioPci::new(HOST.clone(), 1, device(*kind)).expect("events");
        twin.restore(&state).expect("what a device says of itself is taken back");
        let _ = twin.settle();
    }
});
