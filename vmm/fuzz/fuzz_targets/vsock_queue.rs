//! A socket device with programs of the host's that want to talk to the guest and send it something at once.
#![no_main]

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::virtio::vsock::engine::VsockEngine;

fuzz_target!(|data: &[u8]| {
    let name = format!("vmm-fuzz-vsock-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    let streams = [&b"CONNECT 1\nwords"[..], b"CONNECT 2\n", b"CONN"].map(|words| {
        let mut stream = UnixStream::connect_addr(&address).expect("a connection");
        stream.write_all(words).expect("room for a few bytes");
        stream
    });
    let mut engine = VsockEngine::new(3, listener.into(), Arc::default()).expect("a poll");
    vmm_fuzz::run(&mut engine, 3, u64::MAX, data);
    drop(streams);
});
