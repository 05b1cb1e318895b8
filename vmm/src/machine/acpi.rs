//! ACPI tables: what the guest's kernel learns about its machine.
//!
//! The hardware-reduced profile: no PM timer, no SCI, no PIC, no CMOS clock. Events (power button, PCI hot-plug, another generation id) come through a generic event
//! device, sleep and reset through the FADT's registers, slots through the methods of the PCI root.

mod numa;

use super::cpuid::Layout;
use super::layout::{
    ACPI_PORTS, ACPI_PORTS_LEN, ACPI_TABLES, COM1, COM1_IRQ, ECAM, GED_IRQ, GENERATION, IOAPIC, LAPIC,
    PANIC_PORT, PCI_ADDRESS, PCI_WINDOW, PCI_WINDOW_SIZE, PROCESSOR_PORTS, PROCESSOR_PORTS_LEN, RESET_PORT,
    SMBIOS, WATCHDOG_PORTS,
};
use super::memory::nodes::Nodes;
use crate::bus::pci::SLOTS;
use crate::bus::power::{
    ASKED_BACK, EJECT, EVENT_GENERATION, EVENT_PCI, EVENT_POWER, EVENT_PROCESSORS, EVENTS, INSERTED, S5,
};
use crate::bus::processors::{ASKED_BACK as CPUS_ASKED_BACK, CAME, EJECT as CPUS_EJECT, THERE};
use crate::bus::watchdog;
use crate::virtio::Memory;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, BufferData, Device, EISAName, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Method, MethodCall, Name, Notify,
    OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Return, Scope, Store, Zero,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const OEM: [u8; 6] = *b"FERRO ";
const TABLE: [u8; 8] = *b"FERROVMM";
const REVISION: u32 = 1;
/// FADT IA-PC boot flags: no VGA, no CMOS clock.
const NO_VGA_NO_CMOS: u16 = (1 << 2) | (1 << 5);
/// Value that the reset register wants.
const RESET_VALUE: u8 = 6;
/// Notification values.
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
const NOTIFY_BUTTON: u8 = 0x80;
const NOTIFY_GENERATION: u8 = 0x80;
/// `_STA` of what is there: present, enabled, shown, working.
const STATUS_THERE: u8 = 15;

/// What the tables are about.
#[derive(Debug, Clone, Copy)]
pub struct Board {
    /// How the vCPUs are arranged.
    pub layout: Layout,
    /// vCPUs at the start.
    pub vcpus: u32,
    /// vCPUs that there can be.
    pub all: u32,
    /// Whether there is a watchdog.
    pub watchdog: bool,
}

/// Writes all tables.
///
/// # Errors
/// When they do not fit below the SMBIOS area or guest memory is too small.
pub fn write(memory: &Memory, board: &Board, nodes: Option<&Nodes>) -> Result<(), GuestMemoryError> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&definition_blocks(board));

    let mut at = ACPI_TABLES + 0x40;
    let mut place = |bytes: &[u8]| {
        let address = at;
        at = (at + bytes.len() as u64).next_multiple_of(16);
        if at > SMBIOS {
            return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(at)));
        }
        memory.write_slice(bytes, GuestAddress(address))?;
        Ok(address)
    };
    let dsdt = place(dsdt.as_slice())?;
    let fadt = place(&bytes(&fadt(dsdt)))?;
    let madt = place(&bytes(&madt(board)))?;
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM, 0, 0, 0);
    let mcfg = place(&bytes(&mcfg))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    if board.watchdog {
        xsdt.add_entry(place(wdat().as_slice())?);
    }
    if let Some(nodes) = nodes {
        xsdt.add_entry(place(numa::srat(board, nodes).as_slice())?);
        xsdt.add_entry(place(numa::slit(nodes).as_slice())?);
    }
    let xsdt = place(&bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(ACPI_TABLES))
}

/// The watchdog action table: which register to access, and how, for each thing that can be done with the watchdog.
fn wdat() -> Sdt {
    const ENABLED: u8 = 1;
    /// Kinds of accesses: does it read this value; read a number; write this value; write a number.
    const IS: u8 = 0;
    const READ: u8 = 1;
    const PUT: u8 = 2;
    const WRITE: u8 = 3;
    // Action, kind of access, offset, width in bytes, value.
    let entries: [(u8, u8, u16, u8, u32); 8] = [
        (1, PUT, watchdog::ALIVE, 1, 1),
        (4, READ, watchdog::LEFT, 4, 0),
        (5, READ, watchdog::COUNTDOWN, 4, 0),
        (6, WRITE, watchdog::COUNTDOWN, 4, 0),
        (8, IS, watchdog::RUNNING, 1, 1),
        (9, PUT, watchdog::RUNNING, 1, 1),
        (10, IS, watchdog::RUNNING, 1, 0),
        (11, PUT, watchdog::RUNNING, 1, 0),
    ];
    let mut table = Sdt::new(*b"WDAT", 36, 1, OEM, TABLE, REVISION);
    let period = u32::try_from(watchdog::PERIOD.as_millis()).unwrap_or(100);
    // Length of what follows up to the entries; no PCI device, which Linux knows by a segment (16 bits) of 0xff.
    table.append_slice(&32u32.to_le_bytes());
    table.append_slice(&[0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0]);
    for number in [period, watchdog::MOST, 1] {
        table.append_slice(&number.to_le_bytes());
    }
    table.append_slice(&[ENABLED, 0, 0, 0]);
    table.append_slice(&u32::try_from(entries.len()).unwrap_or(0).to_le_bytes());
    for (action, kind, offset, width, value) in entries {
        // Address space 1 is I/O ports; access width 1 is a byte, 3 a double word.
        let access = if width == 1 { 1 } else { 3 };
        table.append_slice(&[action, kind, 0, 0, 1, width * 8, 0, access]);
        table.append_slice(&u64::from(WATCHDOG_PORTS + offset).to_le_bytes());
        table.append_slice(&value.to_le_bytes());
        table.append_slice(&if width == 1 { 1u32 } else { u32::MAX }.to_le_bytes());
    }
    table
}

struct Bytes8(Vec<u8>);
impl AmlSink for Bytes8 {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
    fn vec(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes8(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

fn port(address: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(ACPI_PORTS);
    fadt.sleep_status_reg = port(ACPI_PORTS + 1);
    fadt.finalize()
}

fn madt(board: &Board) -> impl Aml {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LAPIC));
    for index in 0..u8::try_from(board.all).unwrap_or(u8::MAX) {
        let there = u32::from(index) < board.vcpus;
        madt.add_structure(local_apic(
            board,
            index,
            if there { EnabledStatus::Enabled } else { EnabledStatus::DisabledOnlineCapable },
        ));
    }
    madt.add_structure(IoApic::new(0, u32::try_from(IOAPIC).unwrap_or_default(), 0));
    madt
}

fn local_apic(board: &Board, index: u8, status: EnabledStatus) -> ProcessorLocalApic {
    let apic_id = u8::try_from(board.layout.apic_id(index.into())).unwrap_or(u8::MAX);
    ProcessorLocalApic::new(index, apic_id, status)
}

/// The processors of a machine that can have more of them, and the method that tells which came and which are asked back. Each says
/// whether it is there, its entry for the MADT, and how it is ejected.
fn processors(board: &Board) -> Raw {
    let region =
        OpRegion::new("CPUR".into(), OpRegionSpace::SystemIO, &PROCESSOR_PORTS, &PROCESSOR_PORTS_LEN);
    // The fields are neighbours, in the order of their offsets.
    const _: () = assert!(THERE == 0 && CAME == 8 && CPUS_ASKED_BACK == 16 && CPUS_EJECT == 24);
    let names: [[u8; 4]; 8] =
        [*b"THR0", *b"THR1", *b"CAM0", *b"CAM1", *b"ASK0", *b"ASK1", *b"EJC0", *b"EJC1"];
    let fields = Field::new(
        "CPUR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        names.map(|name| FieldEntry::Named(name, 32)).into(),
    );
    let mut children = vec![
        Raw(bytes(&Name::new("_HID".into(), &"ACPI0010"))),
        Raw(bytes(&Name::new("_UID".into(), &"processors"))),
        Raw(bytes(&region)),
        Raw(bytes(&fields)),
    ];
    let mut scan = Vec::new();
    for half in ["0", "1"] {
        scan.extend(bytes(&Store::new(&Local(0), &Path::new(&format!("CAM{half}")))));
        scan.extend(bytes(&Store::new(&Local(1), &Path::new(&format!("ASK{half}")))));
        let numbers = if half == "0" { 0..32u8 } else { 32..64 };
        for index in numbers.filter(|index| u32::from(*index) < board.all) {
            let bit = 1u32 << (index % 32);
            let name = Path::new(&format!("C{index:03}"));
            let there = Path::new(&format!("THR{half}"));
            let there = Raw(bytes(&Method::new(
                "_STA".into(),
                0,
                true,
                vec![
                    &If::new(&And::new(&Zero {}, &there, &bit), vec![&Return::new(&STATUS_THERE)]),
                    &Return::new(&Zero {}),
                ],
            )));
            let entry = bytes(&local_apic(board, index, EnabledStatus::Enabled));
            let entry = Raw(bytes(&Name::new("_MAT".into(), &BufferData::new(entry))));
            let eject = Path::new(&format!("EJC{half}"));
            let eject = Raw(bytes(&Method::new("_EJ0".into(), 1, true, vec![&Store::new(&eject, &bit)])));
            let (hid, uid) = (Name::new("_HID".into(), &"ACPI0007"), Name::new("_UID".into(), &index));
            let mut parts: Vec<&dyn Aml> = vec![&hid, &uid, &there, &entry];
            // The first one stays.
            if index > 0 {
                parts.push(&eject);
            }
            children.push(Raw(bytes(&Device::new(Path::new(&format!("C{index:03}")), parts))));
            for (local, value) in [(Local(0), NOTIFY_DEVICE_CHECK), (Local(1), NOTIFY_EJECT_REQUEST)] {
                let notify = Notify::new(&name, &value);
                scan.extend(bytes(&If::new(&And::new(&Zero {}, &local, &bit), vec![&notify])));
            }
        }
    }
    children.push(Raw(bytes(&Method::new("SCAN".into(), 0, true, vec![&Raw(scan)]))));
    let children = children.iter().map(|child| child as &dyn Aml).collect();
    Raw(bytes(&Scope::new("_SB_".into(), vec![&Device::new("CPUS".into(), children)])))
}

/// `S01` and so on.
fn slot_name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

/// The contents of the DSDT.
fn definition_blocks(board: &Board) -> Vec<u8> {
    let mut out = Vec::new();
    let generation_at = u32::try_from(GENERATION).unwrap_or_default();
    out.extend(bytes(&Name::new("_S5_".into(), &Package::new(vec![&S5, &S5, &Zero {}, &Zero {}]))));
    out.extend(bytes(&Scope::new(
        "_SB_".into(),
        vec![
            &Device::new("PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))]),
            &Device::new(
                "COM1".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                    &Name::new("_UID".into(), &Zero {}),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![
                            &Interrupt::new(true, true, false, false, COM1_IRQ),
                            &IO::new(COM1, COM1, 1, 8),
                        ]),
                    ),
                ],
            ),
            // The names that Linux' and Windows' drivers look for.
            &Device::new(
                "PANC".into(),
                vec![
                    &Name::new("_HID".into(), &"QEMU0001"),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![&IO::new(PANIC_PORT, PANIC_PORT, 1, 1)]),
                    ),
                ],
            ),
            &Device::new(
                "VGEN".into(),
                vec![
                    &Name::new("_HID".into(), &"FERR0001"),
                    &Name::new("_CID".into(), &"VM_Gen_Counter"),
                    &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                    &Name::new("ADDR".into(), &Package::new(vec![&generation_at, &Zero {}])),
                ],
            ),
        ],
    )));
    out.extend(bytes(&PciRoot));
    let pluggable = board.all > board.vcpus;
    if pluggable {
        out.extend(processors(board).0);
    }
    out.extend(bytes(&Scope::new("_SB_".into(), vec![&event_device(pluggable)])));
    out
}

/// The generic event device.
fn event_device(processors: bool) -> impl Aml {
    let resources = ResourceTemplate::new(vec![&INTERRUPT]);
    let scan = MethodCall::new("\\_SB_.CPUS.SCAN".into(), vec![]);
    let scan = bytes(&If::new(&And::new(&Zero {}, &Local(0), &EVENT_PROCESSORS), vec![&scan]));
    let scan = Raw(if processors { scan } else { Vec::new() });
    Raw(bytes(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &Zero {}),
            &Name::new("_CRS".into(), &resources),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("\\_SB_.PCI0.EVTS")),
                    &If::new(
                        &And::new(&Zero {}, &Local(0), &EVENT_POWER),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &NOTIFY_BUTTON)],
                    ),
                    &If::new(
                        &And::new(&Zero {}, &Local(0), &EVENT_PCI),
                        vec![&MethodCall::new("\\_SB_.PCI0.SCAN".into(), vec![])],
                    ),
                    &If::new(
                        &And::new(&Zero {}, &Local(0), &EVENT_GENERATION),
                        vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &NOTIFY_GENERATION)],
                    ),
                    &scan,
                ],
            ),
        ],
    )))
}

/// The interrupt of the event device, as a resource.
const INTERRUPT: GedInterrupt = GedInterrupt;
struct GedInterrupt;
impl Aml for GedInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Interrupt::new(true, true, false, false, GED_IRQ).to_aml_bytes(sink);
    }
}

/// AML that is made already.
struct Raw(Vec<u8>);
impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The PCI root with its registers, slots and the method that tells which of them changed.
struct PciRoot;
impl Aml for PciRoot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let window = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
        let resources = Raw(bytes(&Name::new(
            "_CRS".into(),
            &ResourceTemplate::new(vec![
                &AddressSpace::new_bus_number(0u16, 0u16),
                &IO::new(PCI_ADDRESS, PCI_ADDRESS, 1, 8),
                &AddressSpace::new_memory(
                    AddressSpaceCacheable::NotCacheable,
                    true,
                    window(PCI_WINDOW),
                    window(PCI_WINDOW + PCI_WINDOW_SIZE - 1),
                    None,
                ),
            ]),
        )));
        let region =
            Raw(bytes(&OpRegion::new("REGS".into(), OpRegionSpace::SystemIO, &ACPI_PORTS, &ACPI_PORTS_LEN)));
        // The fields are neighbours, in the order of their offsets.
        debug_assert_eq!([INSERTED, ASKED_BACK, EJECT], [EVENTS + 4, EVENTS + 8, EVENTS + 12]);
        let fields = Field::new(
            "REGS".into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            vec![
                FieldEntry::Reserved(usize::from(EVENTS) * 8),
                FieldEntry::Named(*b"EVTS", 32),
                FieldEntry::Named(*b"INSR", 32),
                FieldEntry::Named(*b"ASKB", 32),
                FieldEntry::Named(*b"EJCT", 32),
            ],
        );
        let slots: Vec<Raw> = (1..SLOTS).map(slot_device).collect();
        let scan = scan_method();
        let (hid, cid) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
        let heads = [
            Raw(bytes(&Name::new("_HID".into(), &hid))),
            Raw(bytes(&Name::new("_CID".into(), &cid))),
            Raw(bytes(&Name::new("_SEG".into(), &Zero {}))),
            Raw(bytes(&Name::new("_BBN".into(), &Zero {}))),
            Raw(bytes(&Name::new("_UID".into(), &Zero {}))),
        ];
        let mut children: Vec<&dyn Aml> = heads.iter().map(|head| head as &dyn Aml).collect();
        children.extend([&resources as &dyn Aml, &region, &fields]);
        children.extend(slots.iter().map(|slot| slot as &dyn Aml));
        children.push(&scan);
        Scope::new("_SB_".into(), vec![&Device::new("PCI0".into(), children)]).to_aml_bytes(sink);
    }
}

/// A slot: its address, its number, and how it is ejected.
fn slot_device(slot: u8) -> Raw {
    let bit = 1u32 << slot;
    Raw(bytes(&Device::new(
        Path::new(&slot_name(slot)),
        vec![
            &Name::new("_ADR".into(), &(u32::from(slot) << 16)),
            &Name::new("_SUN".into(), &slot),
            &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&Path::new("EJCT"), &bit)]),
        ],
    )))
}

/// Tells the kernel which slots got a device and which are asked back.
fn scan_method() -> Raw {
    let mut body = Vec::new();
    body.extend(bytes(&Store::new(&Local(0), &Path::new("INSR"))));
    body.extend(bytes(&Store::new(&Local(1), &Path::new("ASKB"))));
    for slot in 1..SLOTS {
        let (bit, name) = (1u32 << slot, Path::new(&slot_name(slot)));
        for (local, value) in [(Local(0), NOTIFY_DEVICE_CHECK), (Local(1), NOTIFY_EJECT_REQUEST)] {
            let notify = Notify::new(&name, &value);
            body.extend(bytes(&If::new(&And::new(&Zero {}, &local, &bit), vec![&notify])));
        }
    }
    Raw(bytes(&Method::new("SCAN".into(), 0, true, vec![&Raw(body)])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::reserve;
    use wire::MiB;
    use wire::machine::NumaNode;

    fn board(vcpus: u32, all: u32) -> Board {
        Board { layout: Layout::new(all, None).unwrap(), vcpus, all, watchdog: true }
    }

    fn numa_node(memory: u64, vcpus: std::ops::Range<u32>) -> NumaNode {
        NumaNode { memory: MiB(memory), vcpus: vcpus.collect(), host_node: None, distances: Vec::new() }
    }

    fn table(memory: &Memory, at: u64) -> (Vec<u8>, [u8; 4]) {
        let length: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let signature = bytes[..4].try_into().unwrap();
        (bytes, signature)
    }

    #[test]
    fn tables_are_linked_and_sum_to_zero() {
        let memory = reserve(MiB(64)).unwrap();
        let nodes = [numa_node(40, 0..60), numa_node(24, 60..64)];
        let nodes = Nodes::new(&nodes, MiB(64), MiB(1), 64).unwrap();
        write(&memory, &board(1, 64), nodes.as_ref()).unwrap();
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let mut rsdp = [0u8; 36];
        memory.read_slice(&mut rsdp, GuestAddress(ACPI_TABLES)).unwrap();
        assert_eq!((&rsdp[..8], sum(&rsdp), sum(&rsdp[..20])), (&b"RSD PTR "[..], 0, 0));
        let (xsdt, signature) = table(&memory, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        assert_eq!((&signature, sum(&xsdt)), (b"XSDT", 0));
        let mut found = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let (bytes, signature) = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&bytes), 0, "{signature:?}");
            if &signature == b"FACP" {
                let (dsdt, signature) =
                    table(&memory, u64::from_le_bytes(bytes[140..148].try_into().unwrap()));
                assert_eq!((&signature, sum(&dsdt)), (b"DSDT", 0));
            }
            if &signature == b"WDAT" {
                assert_eq!(bytes.len(), 68 + 8 * 24);
                assert_eq!(
                    bytes[36..68],
                    [
                        [32, 0, 0, 0],
                        [255, 0, 255, 255],
                        [255, 0, 0, 0],
                        [100, 0, 0, 0],
                        [255, 255, 0, 0],
                        [1, 0, 0, 0],
                        [1, 0, 0, 0],
                        [8, 0, 0, 0]
                    ]
                    .concat()
                );
                // The last one: to stop, write 0 as a byte to its switch.
                let last = [11, 2, 0, 0, 1, 8, 0, 1, 0x48, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
                assert_eq!(bytes[68 + 7 * 24..], last);
            }
            if &signature == b"SRAT" {
                assert_eq!(bytes.len(), 48 + 64 * 16 + 2 * 40);
                // The last processor, with the second node; the second node's memory.
                assert_eq!(
                    bytes[48 + 2 * 40 + 63 * 16..],
                    [0, 16, 1, 63, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
                );
                let second = &bytes[48 + 40..][..40];
                assert_eq!(second[..6], [1, 40, 1, 0, 0, 0]);
                assert_eq!(second[8..16], (40u64 << 20).to_le_bytes());
                assert_eq!(second[16..24], (24u64 << 20).to_le_bytes());
                assert_eq!(second[28..32], [1, 0, 0, 0]);
            }
            if &signature == b"SLIT" {
                assert_eq!(bytes[36..], [2, 0, 0, 0, 0, 0, 0, 0, 10, 20, 20, 10]);
            }
            found.push(signature);
        }
        assert_eq!(found, [*b"FACP", *b"APIC", *b"MCFG", *b"WDAT", *b"SRAT", *b"SLIT"]);
    }

    /// The ACPI reference compiler must be able to take the DSDT apart; it runs where it is installed.
    #[test]
    fn the_reference_disassembler_takes_the_dsdt() {
        if std::process::Command::new("iasl").arg("-v").output().is_err() {
            println!("skipped: iasl is not installed (package acpica-tools)");
            return;
        }
        let plain = disassembled(&board(2, 2));
        assert!(
            plain.contains("Method (_EVT, 1, Serialized)") && plain.contains("Notify (S1F, 0x03)"),
            "{plain}"
        );
        assert!(!plain.contains("ACPI0007"), "{plain}");
        let more = disassembled(&board(1, 64));
        assert!(more.contains("CPUS.SCAN ()") && more.contains("Notify (C063, One)"), "{more}");
        assert!(more.contains("EJC1 = 0x80000000") && more.matches("_EJ0").count() == 31 + 63, "{more}");
    }

    /// The DSDT in the reference compiler's words.
    fn disassembled(board: &Board) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
        dsdt.append_slice(&definition_blocks(board));
        let file = dir.path().join("dsdt.aml");
        std::fs::write(&file, dsdt.as_slice()).unwrap();
        let output = std::process::Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let text = std::fs::read_to_string(dir.path().join("dsdt.dsl")).unwrap_or_default();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let again = std::process::Command::new("iasl").arg(dir.path().join("dsdt.dsl")).output().unwrap();
        let said = String::from_utf8_lossy(&again.stdout).into_owned();
        assert!(said.contains(" 0 Errors"), "{said}\n{text}");
        text
    }
}
