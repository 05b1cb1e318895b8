//! The driver's side of the first disk and of devices like it, for tiny guests.

use super::asm::{Asm, DATA};
use super::{Guest, Plan};
use wire::machine::EndReason;

/// First slot of disks.
pub const DISK_SLOT: u8 = 10;

/// BAR of the first disk, where the machine puts it.
pub const BAR: u32 = 0xc000_0000 + 10 * 0x4000;

/// Brings the first disk up to `DRIVER_OK` with one queue of 8 at fixed places: descriptors, available, used.
pub fn start_disk(asm: Asm) -> Asm {
    start_device(asm, DISK_SLOT, BAR)
}

pub fn start_device(asm: Asm, slot: u8, bar: u32) -> Asm {
    asm.pci_write(slot, 0x04, 6)
        .write8(bar + 0x14, 1)
        .write8(bar + 0x14, 3)
        .write32(bar + 0x08, 1)
        .write32(bar + 0x0c, 1)
        .write8(bar + 0x14, 11)
        .write16(bar + 0x16, 0)
        .write16(bar + 0x18, 8)
        .write32(bar + 0x20, DATA)
        .write32(bar + 0x28, DATA + 0x1000)
        .write32(bar + 0x30, DATA + 0x2000)
        .write16(bar + 0x1a, 0)
        .write16(bar + 0x1c, 1)
        .write8(bar + 0x14, 15)
}

/// Writes descriptor `index`, whose next one is the one after it.
pub fn descriptor(asm: Asm, index: u32, address: u32, length: u32, flags: u32) -> Asm {
    let at = DATA + index * 16;
    asm.write32(at, address).write32(at + 8, length).write32(at + 12, flags | ((index + 1) << 16))
}

/// Offers a read of one sector into `DATA + 0x4000`, with its status byte behind it, and kicks.
pub fn read_sector(asm: Asm, sector: u32) -> Asm {
    let asm = asm.write32(DATA + 0x3000, 0).write32(DATA + 0x3008, sector).write8(DATA + 0x4200, 0xff);
    let asm = descriptor(asm, 0, DATA + 0x3000, 16, 1);
    let asm = descriptor(asm, 1, DATA + 0x4000, 512, 3);
    descriptor(asm, 2, DATA + 0x4200, 1, 2).write32(DATA + 0x1000, 1 << 16).write16(BAR + 0x2000, 0)
}

/// Runs a guest to its end: why, and what it printed.
pub fn end_of(asm: Asm) -> (EndReason, String) {
    let mut guest = Guest::start(Plan::new(asm.elf()));
    let (status, end) = guest.wait_end();
    let end = end.unwrap_or_else(|| panic!("nothing recorded, {status}: {}", guest.log()));
    assert_eq!(status.code(), Some(i32::from(end.reason.exit_code())), "{end:?}");
    (end.reason, guest.console())
}
