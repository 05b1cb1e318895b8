//! Where everything is in the guest's address spaces.
//!
//! The low addresses are those that other monitors use too, so that kernels meet nothing unusual; RAM has a hole from 3 to 4
//! GiB for the PCI window, ECAM and the interrupt controllers.

/// GDT of the boot state.
pub const GDT: u64 = 0x500;
/// PVH start info.
pub const PVH_INFO: u64 = 0x6000;
/// PVH module list (the initrd), behind the start info.
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6080;
/// Linux zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the stack at entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// First of three pages: PML4, PDPT, PD that map the first GiB onto itself.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x20000;
/// Longest command line with its NUL: Linux' own limit on x86.
pub const COMMAND_LINE_MAX: usize = 2048;
/// End of the low memory that the guest may use.
pub const LOW_RAM_END: u64 = 0x9fc00;
/// ACPI tables, RSDP first (where a scan of the BIOS area finds it).
pub const ACPI_TABLES: u64 = 0xe0000;
/// SMBIOS entry point and tables (where a scan of the BIOS area finds it).
pub const SMBIOS: u64 = 0xf0000;
/// The 16 bytes of the machine's generation id, in a reserved page that has nothing else.
pub const GENERATION: u64 = 0xf_e000;
/// Where a processor in real mode goes to restart the machine (`FFFF:0000`).
pub const RESTART: u64 = 0xf_fff0;
/// Where kernels go, and the end of the BIOS area.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Start of the hole in RAM, and of the window for PCI memory BARs.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Size of that window.
pub const PCI_WINDOW_SIZE: u64 = 0x2000_0000;
/// PCI configuration space of segment 0, bus 0.
pub const ECAM: u64 = 0xe000_0000;
/// One bus.
pub const ECAM_SIZE: u64 = 0x10_0000;
/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Size of the IOAPIC's registers.
pub const IOAPIC_SIZE: u64 = 0x20;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM wants on Intel processors.
pub const TSS: usize = 0xfffb_d000;
/// Where RAM goes on after the hole.
pub const ABOVE_4G: u64 = 0x1_0000_0000;

/// pvpanic's port.
pub const PANIC_PORT: u16 = 0x505;
/// First serial port.
pub const COM1: u16 = 0x3f8;
/// Its interrupt: an IOAPIC pin.
pub const COM1_IRQ: u32 = 4;
/// i8042 data and command ports.
pub const I8042_DATA: u16 = 0x60;
/// i8042 command port.
pub const I8042_COMMAND: u16 = 0x64;
/// PCI configuration address (mechanism 1).
pub const PCI_ADDRESS: u16 = 0xcf8;
/// ACPI reset register, inside the PCI address port's range but one byte wide.
pub const RESET_PORT: u16 = 0xcf9;
/// PCI configuration data (mechanism 1).
pub const PCI_DATA: u16 = 0xcfc;
/// ACPI sleep control; the registers that the DSDT uses follow.
pub const ACPI_PORTS: u16 = 0x600;
/// Number of those ports.
pub const ACPI_PORTS_LEN: u16 = 0x20;
/// The ports of the processors' registers.
pub const PROCESSOR_PORTS: u16 = 0x620;
/// Number of those ports.
pub const PROCESSOR_PORTS_LEN: u16 = 0x20;
/// The watchdog's ports.
pub const WATCHDOG_PORTS: u16 = 0x640;
/// Number of those ports.
pub const WATCHDOG_PORTS_LEN: u16 = 0x10;
/// Interrupt of the generic event device: an IOAPIC pin.
pub const GED_IRQ: u32 = 5;
/// Pins of the IOAPIC; the interrupt numbers of MSI-X vectors start here.
pub const IOAPIC_PINS: u32 = 24;

/// Most vCPUs.
pub const MAX_VCPUS: u32 = 64;
