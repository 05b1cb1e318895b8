//! What the guest finds in memory when it starts: kernel, initrd, command line and the words of its boot protocol.
//!
//! The kernel file comes from a tenant. Everything read from it is checked against RAM before it is used, and whatever it
//! claims can at worst make the guest itself fail.

use super::layout::{
    ABOVE_4G, ACPI_TABLES, COMMAND_LINE, COMMAND_LINE_MAX, ECAM, ECAM_SIZE, HIGH_RAM, LOW_RAM_END, PVH_INFO,
    PVH_MEMORY_MAP, PVH_MODULES, RESTART, SMBIOS, ZERO_PAGE,
};
use super::memory::{high_size, low_end};
use crate::virtio::Memory;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_ACPI, XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED,
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use std::fs::File;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

/// Distance of the 64-bit entry from the start of a bzImage's protected-mode part.
const BZIMAGE_ENTRY64: u64 = 0x200;
/// `XLF_KERNEL_64`: the bzImage has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Boot loader id "undefined".
const LOADER_UNDEFINED: u8 = 0xff;
/// `e820` and PVH agree on these numbers.
const RAM: u32 = XEN_HVM_MEMMAP_TYPE_RAM;
const RESERVED: u32 = XEN_HVM_MEMMAP_TYPE_RESERVED;
const ACPI: u32 = XEN_HVM_MEMMAP_TYPE_ACPI;

/// What stands in for a BIOS where Linux expects one: on a hardware-reduced ACPI machine without EFI it restarts by jumping there in real mode.
/// `mov al, 0xfe; out 0x64, al; hlt; jmp -3`: the i8042's reset, valid in every processor mode.
const RESTART_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// How the first vCPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit Linux boot protocol: long mode, identity map of the first GiB, RSI = zero page.
    Linux64 {
        /// Guest-physical address.
        at: u64,
    },
    /// PVH: 32-bit protected mode without paging, EBX = start info.
    Pvh {
        /// Guest-physical address.
        at: u64,
    },
}

/// Why the guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("cannot read the {what}: {source}")]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a kernel.
    #[error("the kernel is neither a bzImage nor a 64-bit x86 ELF: its first bytes are {0:02x?}")]
    Unknown(Vec<u8>),
    /// A kernel that we cannot start.
    #[error("the kernel cannot be loaded: {0}")]
    Kernel(String),
    /// No room.
    #[error("the {what} does not fit into the guest's memory of {ram} MiB: give the guest more memory")]
    NoRoom {
        /// Kernel or initrd.
        what: &'static str,
        /// RAM below the hole in MiB.
        ram: u64,
    },
    /// Command line too long.
    #[error("the kernel command line has {0} bytes; at most {most} fit", most = COMMAND_LINE_MAX - 1)]
    CommandLineLong(usize),
    /// Command line not text.
    #[error("the kernel command line has a NUL byte in it")]
    CommandLineNul,
    /// A table does not fit: the memory is smaller than the least.
    #[error("cannot write boot tables into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What was loaded.
struct Kernel {
    entry: Entry,
    /// First address behind everything the kernel uses before it knows its memory map.
    end: u64,
    header: Option<setup_header>,
}

/// Loads kernel, initrd and command line, and writes the boot protocol's tables.
///
/// # Errors
/// [`BootError`]
pub fn load(
    memory: &Memory,
    kernel: &mut File,
    initrd: Option<&File>,
    command_line: &str,
) -> Result<Entry, BootError> {
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(BootError::CommandLineLong(command_line.len()));
    }
    if command_line.bytes().any(|byte| byte == 0) {
        return Err(BootError::CommandLineNul);
    }
    memory.write_slice(command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_slice(&RESTART_CODE, GuestAddress(RESTART))?;
    let loaded = load_kernel(memory, kernel)?;
    let initrd = match initrd {
        Some(file) => Some(load_initrd(memory, file, &loaded)?),
        None => None,
    };
    match loaded.entry {
        Entry::Linux64 { .. } => write_zero_page(memory, loaded.header, initrd, command_line.len())?,
        Entry::Pvh { .. } => write_pvh(memory, initrd)?,
    }
    Ok(loaded.entry)
}

fn load_kernel(memory: &Memory, kernel: &mut File) -> Result<Kernel, BootError> {
    let mut head = [0u8; 0x208];
    let length = read_some(kernel, &mut head).map_err(|source| BootError::Read { what: "kernel", source })?;
    let head = head.get(..length).unwrap_or_default();
    if head.starts_with(b"\x7fELF") {
        // Class 64 bit, little endian, machine x86-64.
        if head.get(4..6) != Some(&[2, 1]) || head.get(18..20) != Some(&[62, 0]) {
            return Err(BootError::Kernel("it is an ELF file, but not for 64-bit x86".into()));
        }
        load_elf(memory, kernel)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        load_bzimage(memory, kernel)
    } else {
        Err(BootError::Unknown(head.iter().copied().take(8).collect()))
    }
}

fn load_elf(memory: &Memory, kernel: &mut File) -> Result<Kernel, BootError> {
    let result = Elf::load(memory, None, kernel, Some(GuestAddress(HIGH_RAM))).map_err(|error| {
        BootError::Kernel(format!("{error}; is the file whole, and the memory large enough?"))
    })?;
    let entry = match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(at) => Entry::Pvh { at: at.0 },
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Entry::Linux64 { at: result.kernel_load.0 }
        }
    };
    Ok(Kernel { entry, end: result.kernel_end, header: None })
}

fn load_bzimage(memory: &Memory, kernel: &mut File) -> Result<Kernel, BootError> {
    let result = BzImage::load(memory, Some(GuestAddress(HIGH_RAM)), kernel, Some(GuestAddress(HIGH_RAM)))
        .map_err(|error| {
            BootError::Kernel(format!("{error}; is the file whole, and the memory large enough?"))
        })?;
    let header = result.setup_header.ok_or_else(|| BootError::Kernel("it has no setup header".into()))?;
    let (version, xloadflags) = (header.version, header.xloadflags);
    if version < 0x020c || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Kernel(format!(
            "it has no 64-bit entry (boot protocol {}.{:02}, needed is 2.12)",
            version >> 8,
            version & 0xff
        )));
    }
    // It decompresses itself to its preferred address or where it was loaded, whichever is higher, and needs `init_size` there.
    let (preferred, init_size) = (header.pref_address, u64::from(header.init_size));
    let end = preferred.max(HIGH_RAM).saturating_add(init_size).max(result.kernel_end);
    if end > low_end(memory) {
        return Err(BootError::NoRoom { what: "kernel", ram: low_end(memory) >> 20 });
    }
    let at = result.kernel_load.0.saturating_add(BZIMAGE_ENTRY64);
    Ok(Kernel { entry: Entry::Linux64 { at }, end, header: Some(header) })
}

/// Puts the initrd as high as it may be, and returns its address and length.
fn load_initrd(memory: &Memory, file: &File, kernel: &Kernel) -> Result<(u32, u32), BootError> {
    let no_room = || BootError::NoRoom { what: "initrd", ram: low_end(memory) >> 20 };
    let length = file.metadata().map_err(|source| BootError::Read { what: "initrd", source })?.len();
    let mut top = low_end(memory);
    if let Some(header) = kernel.header {
        top = top.min(u64::from(header.initrd_addr_max).saturating_add(1));
    }
    let at =
        top.checked_sub(length).map(|at| at & !0xfff).filter(|at| *at >= kernel.end).ok_or_else(no_room)?;
    let (address, size) =
        (u32::try_from(at).map_err(|_| no_room())?, u32::try_from(length).map_err(|_| no_room())?);
    let count = usize::try_from(length).map_err(|_| no_room())?;
    let mut reader = file.try_clone().map_err(|source| BootError::Read { what: "initrd", source })?;
    std::io::Seek::rewind(&mut reader).map_err(|source| BootError::Read { what: "initrd", source })?;
    memory.read_exact_volatile_from(GuestAddress(at), &mut reader, count)?;
    Ok((address, size))
}

/// The memory map: (start, length, type).
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_RAM_END, RAM),
        (ACPI_TABLES, SMBIOS - ACPI_TABLES, ACPI),
        (SMBIOS, HIGH_RAM - SMBIOS, RESERVED),
        (HIGH_RAM, low_end(memory).saturating_sub(HIGH_RAM), RAM),
        (ECAM, ECAM_SIZE, RESERVED),
    ];
    if high_size(memory) > 0 {
        map.push((ABOVE_4G, high_size(memory), RAM));
    }
    map
}

fn write_zero_page(
    memory: &Memory,
    header: Option<setup_header>,
    initrd: Option<(u32, u32)>,
    command_line: usize,
) -> Result<(), BootError> {
    let mut page = boot_params { hdr: header.unwrap_or_default(), ..boot_params::default() };
    if header.is_none() {
        // An ELF brings no header of its own: say what a loader would have found there.
        page.hdr.boot_flag = 0xaa55;
        page.hdr.header = 0x5372_6448;
        page.hdr.version = 0x020f;
        page.hdr.kernel_alignment = 0x100_0000;
    }
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).unwrap_or_default();
    page.hdr.cmdline_size = u32::try_from(command_line).unwrap_or_default();
    if let Some((address, size)) = initrd {
        page.hdr.ramdisk_image = address;
        page.hdr.ramdisk_size = size;
    }
    page.acpi_rsdp_addr = ACPI_TABLES;
    for (slot, (addr, size, type_)) in page.e820_table.iter_mut().zip(memory_map(memory)) {
        *slot = boot_e820_entry { addr, size, r#type: type_ };
        page.e820_entries = page.e820_entries.saturating_add(1);
    }
    Ok(memory.write_obj(page, GuestAddress(ZERO_PAGE))?)
}

fn write_pvh(memory: &Memory, initrd: Option<(u32, u32)>) -> Result<(), BootError> {
    let map = memory_map(memory);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI_TABLES,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or_default(),
        ..hvm_start_info::default()
    };
    if let Some((address, size)) = initrd {
        let module =
            hvm_modlist_entry { paddr: address.into(), size: size.into(), ..hvm_modlist_entry::default() };
        memory.write_obj(module, GuestAddress(PVH_MODULES))?;
        (info.nr_modules, info.modlist_paddr) = (1, PVH_MODULES);
    }
    memory.write_obj(info, GuestAddress(PVH_INFO))?;
    let mut at = PVH_MEMORY_MAP;
    for (addr, size, type_) in map {
        memory.write_obj(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}

/// Reads from the start of a file until the buffer is full or the file ends.
fn read_some(file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::reserve;
    use proptest::prelude::*;
    use std::io::Write;
    use wire::MiB;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A bzImage of one setup sector and some payload.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0u8; 2 * 512 + 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn bzimage_enters_at_its_64_bit_entry_with_initrd_as_high_as_fits() {
        let memory = reserve(MiB(64)).unwrap();
        let entry = load(&memory, &mut file(&bzimage()), Some(&file(&[7; 5000])), "console=ttyS0").unwrap();
        assert_eq!(entry, Entry::Linux64 { at: 0x10_0200 });
        let page: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let (image, size) = (page.hdr.ramdisk_image, page.hdr.ramdisk_size);
        assert_eq!((image, size), ((64 << 20) - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(u64::from(image) + 4999)).unwrap(), 7);
        assert_eq!(page.e820_entries, 5);
        let mut text = [0u8; 14];
        memory.read_slice(&mut text, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
    }

    #[test]
    fn what_does_not_fit_or_is_no_kernel_is_refused_in_words() {
        let memory = reserve(MiB(32)).unwrap();
        let mut big = bzimage();
        big[0x260..0x264].copy_from_slice(&0x4000_0000u32.to_le_bytes());
        let mut old = bzimage();
        old[0x236] = 0;
        let mut elf32 = b"\x7fELF\x01\x01".to_vec();
        elf32.resize(100, 0);
        for (kernel, words) in [
            (big, "more memory"),
            (old, "no 64-bit entry"),
            (elf32, "not for 64-bit x86"),
            (b"#!/bin/sh\n".to_vec(), "neither a bzImage nor"),
            (Vec::new(), "neither a bzImage nor"),
        ] {
            let error = load(&memory, &mut file(&kernel), None, "").unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let huge = tempfile::tempfile().unwrap();
        huge.set_len(1 << 40).unwrap();
        let error = load(&memory, &mut file(&bzimage()), Some(&huge), "").unwrap_err().to_string();
        assert!(error.contains("initrd does not fit"), "{error}");
        let error = load(&memory, &mut file(&bzimage()), None, &"x".repeat(2048)).unwrap_err().to_string();
        assert!(error.contains("2048 bytes; at most 2047"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_hostile_kernel_never_panics(noise in proptest::collection::vec((0usize..0x280, any::<u8>()), 0..40), elf: bool) {
            let memory = reserve(MiB(32)).unwrap();
            let mut image = bzimage();
            if elf {
                image[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
                image[0x36] = 56;
                image[0x38] = 3;
                image[0x20] = 0x40;
            }
            for (at, byte) in noise {
                image[at] = byte;
            }
            let _ = load(&memory, &mut file(&image), None, "");
        }
    }
}
