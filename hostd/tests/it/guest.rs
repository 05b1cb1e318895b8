//! A guest of a hundred bytes: an ELF with a PVH entry, assembled here.
//!
//! It prints `up\n` to the serial port, then polls what a guest's ACPI driver would be interrupted for: the power button
//! (it powers off), and QEMU's PCI hot-unplug registers (it ejects what it is asked to).

use std::path::{Path, PathBuf};

/// What the guest does once it is up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Listens to the power button and gives devices back.
    Polite,
    /// Spins, deaf.
    Deaf,
    /// Resets the machine by the keyboard controller.
    Resetting,
    /// Powers off by itself.
    PoweringOff,
    /// Prints the letters from a to z, slowly, and then spins.
    Counting,
    /// Listens to the power button of our monitor.
    Obeying,
    /// Starts the watchdog of our monitor and hangs.
    Hanging,
}

const BASE: u64 = 0x10_0000;

/// Writes the guest's kernel file.
pub fn kernel(dir: &Path, manner: Manner) -> PathBuf {
    let path = dir.join(match manner {
        Manner::Polite => "polite.elf",
        Manner::Deaf => "deaf.elf",
        Manner::Resetting => "resetting.elf",
        Manner::PoweringOff => "powering-off.elf",
        Manner::Obeying => "obeying.elf",
        Manner::Hanging => "hanging.elf",
        Manner::Counting => "counting.elf",
    });
    std::fs::write(&path, elf(&code(manner))).unwrap();
    path
}

fn out16(port: u16, value: u16) -> Vec<u8> {
    let ([p, q], [v, w]) = (port.to_le_bytes(), value.to_le_bytes());
    // mov dx, port; mov ax, value; out dx, ax
    vec![0x66, 0xba, p, q, 0x66, 0xb8, v, w, 0x66, 0xef]
}

fn out8(port: u16, value: u8) -> Vec<u8> {
    let [p, q] = port.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al
    vec![0x66, 0xba, p, q, 0xb0, value, 0xee]
}

/// 32-bit protected mode, flat segments, as PVH enters.
fn code(manner: Manner) -> Vec<u8> {
    let mut code: Vec<u8> = b"up\n".iter().flat_map(|byte| out8(0x3f8, *byte)).collect();
    let power_off = out16(0x604, 0x2000);
    match manner {
        Manner::Deaf => code.extend([0xeb, 0xfe]), // jmp $
        Manner::Resetting => {
            code.extend(out8(0x64, 0xfe));
            code.extend([0xeb, 0xfe]);
        }
        Manner::Counting => {
            #[rustfmt::skip]
            let count: [u8; 27] = [
                0xb3, b'a',                         // mov bl, 'a'
                0x66, 0xba, 0xf8, 0x03,             // next: mov dx, 0x3f8
                0x88, 0xd8, 0xee,                   // mov al, bl; out dx, al
                0xb9, 0x40, 0x0d, 0x03, 0x00,       // mov ecx, 200000
                0x49, 0x75, 0xfd,                   // wait: dec ecx; jnz wait
                0xfe, 0xc3,                         // inc bl
                0x80, 0xfb, b'{',                   // cmp bl, 'z' + 1
                0x75, 0xea,                         // jne next
                0xeb, 0xfe, 0x90,                   // jmp $
            ];
            code.extend(count);
        }
        Manner::Hanging => {
            // One period to wait, then the switch.
            code.extend([0x66, 0xba, 0x40, 0x06, 0xb8, 1, 0, 0, 0, 0xef]); // mov dx, 0x640; mov eax, 1; out dx, eax
            code.extend(out8(0x648, 1));
            code.extend([0xeb, 0xfe]);
        }
        Manner::Obeying => {
            #[rustfmt::skip]
            let poll: [u8; 9] = [
                0x66, 0xba, 0x10, 0x06, // poll: mov dx, 0x610 (events)
                0xed, 0xa8, 0x01,       // in eax, dx; test al, 1
                0x74, 0xf7,             // jz poll
            ];
            code.extend(poll);
            code.extend(out8(0x600, (5 << 2) | 0x20));
            code.extend([0xeb, 0xfe]);
        }
        Manner::PoweringOff => {
            code.extend(power_off);
            code.extend([0xeb, 0xfe]);
        }
        Manner::Polite => {
            // Let the button set its status bit: PM1 enable at 0x602.
            code.extend(out16(0x602, 0x100));
            #[rustfmt::skip]
            let poll: [u8; 43] = [
                0x66, 0xba, 0x00, 0x06,       // poll: mov dx, 0x600
                0x66, 0xed,                   // in ax, dx
                0x66, 0xa9, 0x00, 0x01,       // test ax, 0x100
                0x75, 0x1f,                   // jnz off
                0x31, 0xdb,                   // xor ebx, ebx
                0x66, 0xba, 0xd0, 0x0c,       // bus: mov dx, 0xcd0 (bus selector)
                0x89, 0xd8, 0xef,             // mov eax, ebx; out dx, eax
                0x66, 0xba, 0xc4, 0x0c, 0xed, // mov dx, 0xcc4 (slots going down); in eax, dx
                0x85, 0xc0, 0x74, 0x05,       // test eax, eax; jz next
                0x66, 0xba, 0xc8, 0x0c, 0xef, // mov dx, 0xcc8 (eject); out dx, eax
                0x43, 0x83, 0xfb, 0x28,       // next: inc ebx; cmp ebx, 40
                0x72, 0xe5,                   // jb bus
                0xeb, 0xd5,                   // jmp poll
            ];
            code.extend(poll);
            code.extend(power_off); // off:
            code.extend([0xeb, 0xfe]);
        }
    }
    code
}

/// A 64-bit ELF, as Linux is: one segment with headers and code at 1 MiB, and the note with the 32-bit entry.
fn elf(code: &[u8]) -> Vec<u8> {
    const NOTE: u64 = 64 + 2 * 56;
    const ENTRY: u64 = NOTE + 20;
    let entry = BASE + ENTRY;
    let total = ENTRY + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, 2); // executable
    half(&mut file, 62); // x86-64
    word(&mut file, 1); // version
    for value in [entry, 64, 0] {
        file.extend(value.to_le_bytes()); // entry, program headers, section headers
    }
    word(&mut file, 0); // flags
    for value in [64, 56, 2, 0, 0, 0] {
        half(&mut file, value);
    }
    // Type and flags, then offset, virtual and physical address, sizes, alignment.
    for (head, rest) in [
        ([1, 7], [0, BASE, BASE, total, total, 0x1000]),
        ([4, 4], [NOTE, BASE + NOTE, BASE + NOTE, 20, 20, 4]),
    ] {
        for value in head {
            word(&mut file, value);
        }
        for value in rest {
            file.extend(value.to_le_bytes());
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY
    for value in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), u32::try_from(entry).unwrap()] {
        word(&mut file, value);
    }
    file.extend(code);
    file
}
