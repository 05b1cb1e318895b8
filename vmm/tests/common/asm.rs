//! Tiny guests, assembled by hand: 32-bit protected mode without paging (PVH entry), so every address below 4 GiB is at hand.

/// Where guests are loaded and start.
pub const LOAD: u32 = 0x100_0000;
/// Memory that guests use for their data.
pub const DATA: u32 = 0x20_0000;

/// Code under construction.
#[derive(Clone, Default)]
pub struct Asm {
    code: Vec<u8>,
}

impl Asm {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// Address of the next instruction.
    pub fn here(&self) -> u32 {
        LOAD + u32::try_from(self.code.len()).unwrap()
    }

    pub fn mov_eax(self, value: u32) -> Self {
        self.raw(&[0xb8]).raw(&value.to_le_bytes())
    }

    fn mov_edx(self, port: u16) -> Self {
        self.raw(&[0xba]).raw(&u32::from(port).to_le_bytes())
    }

    pub fn out8(self, port: u16, value: u8) -> Self {
        self.mov_edx(port).raw(&[0xb0, value, 0xee])
    }

    pub fn out32(self, port: u16, value: u32) -> Self {
        self.mov_edx(port).mov_eax(value).raw(&[0xef])
    }

    /// A port to `eax`.
    pub fn in32(self, port: u16) -> Self {
        self.mov_edx(port).raw(&[0xed])
    }

    /// A port to `al`.
    pub fn in8(self, port: u16) -> Self {
        self.mov_edx(port).raw(&[0xec])
    }

    /// `al` to the serial port.
    pub fn put_al(self) -> Self {
        self.mov_edx(0x3f8).raw(&[0xee])
    }

    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self = self.out8(0x3f8, byte);
        }
        self
    }

    /// All of `eax`, lowest byte first, to the serial port, with the nibbles as characters from `@` on (`@` = 0, `O` = 15), low nibble first.
    pub fn print_eax(mut self) -> Self {
        self = self.raw(&[0x89, 0xc3]); // mov ebx, eax
        for _ in 0..8 {
            // mov eax, ebx; and al, 15; add al, '@'; out; shr ebx, 4
            self = self.raw(&[0x89, 0xd8, 0x24, 0x0f, 0x04, 0x40]).put_al().raw(&[0xc1, 0xeb, 0x04]);
        }
        self
    }

    pub fn write8(self, address: u32, value: u8) -> Self {
        self.raw(&[0xc6, 0x05]).raw(&address.to_le_bytes()).raw(&[value])
    }

    pub fn write16(self, address: u32, value: u16) -> Self {
        self.raw(&[0x66, 0xc7, 0x05]).raw(&address.to_le_bytes()).raw(&value.to_le_bytes())
    }

    pub fn write32(self, address: u32, value: u32) -> Self {
        self.raw(&[0xc7, 0x05]).raw(&address.to_le_bytes()).raw(&value.to_le_bytes())
    }

    /// Memory to `eax`.
    pub fn read32(self, address: u32) -> Self {
        self.raw(&[0xa1]).raw(&address.to_le_bytes())
    }

    /// 16 bits of memory to `eax`.
    pub fn read16(self, address: u32) -> Self {
        self.mov_eax(0).raw(&[0x66, 0xa1]).raw(&address.to_le_bytes())
    }

    /// Memory to `al`.
    pub fn read8(self, address: u32) -> Self {
        self.raw(&[0xa0]).raw(&address.to_le_bytes())
    }

    /// Runs `check`, which sets `eax`, until `eax & mask` is not zero.
    pub fn until(self, mask: u32, check: impl FnOnce(Self) -> Self) -> Self {
        let start = self.here();
        let asm = check(self).raw(&[0xa9]).raw(&mask.to_le_bytes());
        // jz back to the start
        let next = asm.here() + 6;
        asm.raw(&[0x0f, 0x84]).raw(&start.wrapping_sub(next).to_le_bytes())
    }

    /// Waits until the byte at an address is zero.
    pub fn until_zero(self, address: u32) -> Self {
        let start = self.here();
        let asm = self.read8(address).raw(&[0x84, 0xc0]);
        // jnz back to the start
        let next = asm.here() + 6;
        asm.raw(&[0x0f, 0x85]).raw(&start.wrapping_sub(next).to_le_bytes())
    }

    pub fn jump(self, to: u32) -> Self {
        let next = self.here() + 5;
        self.raw(&[0xe9]).raw(&to.wrapping_sub(next).to_le_bytes())
    }

    /// Powers the machine off.
    pub fn power_off(self) -> Self {
        self.out8(0x600, (5 << 2) | 0x20).stop()
    }

    /// Does nothing for ever.
    pub fn stop(self) -> Self {
        self.raw(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// Configuration space to `eax`, by mechanism 1.
    pub fn pci_read(self, slot: u8, register: u8) -> Self {
        self.out32(0xcf8, config_address(slot, register)).in32(0xcfc)
    }

    /// Writes configuration space by mechanism 1.
    pub fn pci_write(self, slot: u8, register: u8, value: u32) -> Self {
        self.out32(0xcf8, config_address(slot, register)).out32(0xcfc, value)
    }

    /// An ELF file with a PVH note that starts with this code.
    pub fn elf(self) -> Vec<u8> {
        let (headers, note) = (64 + 2 * 56, 20);
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend(u64::from(LOAD).to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 2, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut segment = |kind: u32, offset: u64, address: u64, size: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, address, address, size, size, 4] {
                file.extend(word.to_le_bytes());
            }
        };
        let length = self.code.len() as u64;
        segment(1, headers + note, LOAD.into(), length);
        segment(4, headers, 0, note);
        for word in [4u32, 4, 18] {
            file.extend(word.to_le_bytes());
        }
        file.extend(b"Xen\0");
        file.extend(LOAD.to_le_bytes());
        file.extend(self.code);
        file
    }
}

/// The mechanism 1 address of a register.
pub fn config_address(slot: u8, register: u8) -> u32 {
    0x8000_0000 | (u32::from(slot) << 11) | u32::from(register & 0xfc)
}

/// What [`Asm::print_eax`] prints for a value.
pub fn printed(value: u32) -> String {
    (0..8).map(|nibble| char::from(b'@' + u8::try_from((value >> (4 * nibble)) & 15).unwrap())).collect()
}
