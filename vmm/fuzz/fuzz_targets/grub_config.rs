//! `grub.cfg`, `grubenv` (behind a zero byte), and the other formats of boot entries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::boot_entries::{bls, extlinux, grub};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (config, environment) = text.split_once('\0').unwrap_or((&text, ""));
    let environment = grub::environment(environment);
    if let Ok(statements) = grub::parse::parse(config) {
        let _ = grub::run::run(&statements, &environment, "/boot/grub", &|path| path.len() % 2 == 0);
    }
    let _ = bls::parse("a+3.conf", config, &environment);
    let _ = extlinux::parse(config, "/boot");
});
