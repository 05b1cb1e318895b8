//! What comes over the stream of a migration, up to the machine's state.
#![no_main]

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use libfuzzer_sys::fuzz_target;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use vmm::machine::memory::Ram;
use vmm::machine::slots::Role;
use vmm::migration::describe::{Description, Host, Tsc};
use vmm::migration::frame::Stream;
use vmm::migration::receive::receive;
use wire::MiB;
use wire::machine::MemoryBacking;

const GREETING: &[u8] = b"FERROMIG\x01\0\0\0\0\0\0\0";

/// Takes a machine in whose source says this.
fn take(said: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    // It all fits into the socket's buffer.
    let _ = (&theirs).write_all(said);
    let _ = theirs.shutdown(Shutdown::Write);
    let (Ok(stream), Ok(supported)) =
        (Stream::new(ours.into()), CpuId::from_entries(&[kvm_cpuid_entry2::default()]))
    else {
        return;
    };
    let tsc = Tsc { khz: 0, scales: false };
    let host = Host { vcpus: 1, memory: MiB(32), supported, roles: vec![Role::Rng], tsc };
    let ram = Ram::new(MiB(32), MemoryBacking::default());
    if let Ok(received) = receive(stream, &host, &mut || Ok(ram.reserve()?), &mut |_| Ok(())) {
        received.state.check().expect("a state that came can be restored");
    }
}

fuzz_target!(|data: &[u8]| {
    take(data);
    // Behind a machine that fits, so that its memory is reached.
    let (cpuid, roles) = (vec![kvm_cpuid_entry2::default()], vec![Role::Rng]);
    let described = Description { vcpus: 1, memory: MiB(32), cpuid, tsc_khz: 0, roles };
    let Ok(body) = serde_json::to_vec(&described) else { return };
    let length = u32::try_from(body.len()).unwrap_or(0).to_le_bytes();
    let describe = [&1u32.to_le_bytes()[..], &length, &[0; 16], &body].concat();
    take(&[GREETING, &describe, data].concat());
});
