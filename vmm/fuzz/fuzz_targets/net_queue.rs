//! A network interface on a tap in a namespace of this process; the first byte chooses the features.
#![no_main]

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use nix::sched::{CloneFlags, unshare};
use vmm::backend::tap::Tap;
use vmm::virtio::net::control::Shared;
use vmm::virtio::net::engine::NetEngine;
use wire::machine::Limits;

/// A new tap, down: whatever the guest sends ends there.
fn tap() -> File {
    const TUNSETIFF: u64 = 0x4004_54ca;
    unshare(CloneFlags::CLONE_NEWNET).expect("run as root: a network namespace");
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    // SAFETY: plain bytes; zero is a value of each.
    let mut wanted: libc::ifreq = unsafe { std::mem::zeroed() };
    wanted.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the kernel reads and writes one ifreq.
    assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut wanted) }, 0, "a tap");
    file
}

thread_local! {
    static ENGINE: RefCell<NetEngine> = RefCell::new({
        let tap = Arc::new(Tap::new(tap()).expect("a tap"));
        let shared = Shared::new(vec![Arc::clone(&tap)], [2, 0, 0, 0, 0, 1], [Limits::default(); 2]);
        NetEngine::new(tap, Arc::new(shared))
    });
}

fuzz_target!(|data: &[u8]| {
    let Some((setup, data)) = data.split_first() else { return };
    let features = u64::MAX & !(u64::from(setup & 1) << 15) & !(u64::from(setup & 2) << 28);
    ENGINE.with_borrow_mut(|engine| vmm_fuzz::run(engine, 3, features, data));
});
