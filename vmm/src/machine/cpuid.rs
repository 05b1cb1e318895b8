//! What guests read about their processors: abilities by model, and topology.
//!
//! A guest that is to move between hosts must not see more than each of them has. [`CpuModel`] names what all machines of a generation
//! have (the levels of the x86-64 psABI with what any kernel needs); abilities beyond the model are masked, except protections against
//! speculation and supervisor access, which pass when the host has them because taking them away makes guests unsafe.

use super::cpu::CpuError;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use wire::machine::{CpuModel, Topology};

/// CPUID leaf 1 ECX: the local APIC timer understands deadlines.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1 ECX: this is a virtual machine.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1 EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Highest APIC id; the next one means all.
const LAST_APIC_ID: u32 = 254;

fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    numbers.into_iter().fold(0, |set, number| set | 1u32.checked_shl(number).unwrap_or(0))
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> CpuError {
    move |error| CpuError::Kvm(what, error)
}

/// How many bits it takes to number `count` things.
fn width(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

/// Where each vCPU is: the numbers that the guest's kernel reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    topology: Topology,
}

impl Layout {
    /// The layout of so many vCPUs; one socket with a core for each when nothing else is asked for.
    ///
    /// # Errors
    /// When the numbers do not multiply to that many.
    pub fn new(vcpus: u32, topology: Option<Topology>) -> Result<Self, CpuError> {
        let topology = topology.unwrap_or(Topology { sockets: 1, cores: vcpus, threads: 1 });
        let Topology { sockets, cores, threads } = topology;
        let product = sockets.checked_mul(cores).and_then(|product| product.checked_mul(threads));
        let layout = Self { topology };
        if product != Some(vcpus) || vcpus == 0 || layout.apic_id(vcpus - 1) > LAST_APIC_ID {
            return Err(CpuError::Topology { topology, vcpus });
        }
        Ok(layout)
    }

    fn thread_bits(self) -> u32 {
        width(self.topology.threads)
    }

    fn package_bits(self) -> u32 {
        width(self.topology.cores) + self.thread_bits()
    }

    /// vCPUs of a package.
    fn package(self) -> u32 {
        self.topology.cores * self.topology.threads
    }

    /// The APIC id of a vCPU, which is also its number in KVM.
    #[must_use]
    pub fn apic_id(self, index: u32) -> u32 {
        let (socket, rest) = (index / self.package().max(1), index % self.package().max(1));
        let (core, thread) = (rest / self.topology.threads.max(1), rest % self.topology.threads.max(1));
        (socket << self.package_bits()) | (core << self.thread_bits()) | thread
    }
}

/// Abilities that a guest of a model must find, and those that it may find beside them.
#[derive(Clone, Copy)]
struct Abilities {
    /// Leaf, index, and which register (0 for `eax` to 3 for `edx`).
    place: (u32, u32, usize),
    /// From `x86-64-v2`, `v3`, `v4` on.
    levels: [u32; 3],
    /// Whatever the model.
    any: u32,
}

/// What people call the bits that programs use: leaf, index and register, bit, name.
const NAMES: [((u32, u32, usize), u32, &str); 32] = [
    ((1, 0, 2), 0, "SSE3"),
    ((1, 0, 2), 1, "PCLMULQDQ"),
    ((1, 0, 2), 9, "SSSE3"),
    ((1, 0, 2), 12, "FMA"),
    ((1, 0, 2), 13, "CMPXCHG16B"),
    ((1, 0, 2), 17, "PCID"),
    ((1, 0, 2), 19, "SSE4.1"),
    ((1, 0, 2), 20, "SSE4.2"),
    ((1, 0, 2), 21, "x2APIC"),
    ((1, 0, 2), 22, "MOVBE"),
    ((1, 0, 2), 23, "POPCNT"),
    ((1, 0, 2), 25, "AES"),
    ((1, 0, 2), 26, "XSAVE"),
    ((1, 0, 2), 28, "AVX"),
    ((1, 0, 2), 29, "F16C"),
    ((1, 0, 2), 30, "RDRAND"),
    ((7, 0, 1), 0, "FSGSBASE"),
    ((7, 0, 1), 3, "BMI1"),
    ((7, 0, 1), 5, "AVX2"),
    ((7, 0, 1), 7, "SMEP"),
    ((7, 0, 1), 8, "BMI2"),
    ((7, 0, 1), 10, "INVPCID"),
    ((7, 0, 1), 16, "AVX512F"),
    ((7, 0, 1), 17, "AVX512DQ"),
    ((7, 0, 1), 18, "RDSEED"),
    ((7, 0, 1), 19, "ADX"),
    ((7, 0, 1), 20, "SMAP"),
    ((7, 0, 1), 29, "SHA"),
    ((7, 0, 1), 30, "AVX512BW"),
    ((7, 0, 1), 31, "AVX512VL"),
    ((0x8000_0001, 0, 2), 5, "LZCNT"),
    ((0x8000_0001, 0, 3), 26, "1 GiB pages"),
];

fn abilities() -> [Abilities; 12] {
    let at = |leaf, index, register, levels, any| Abilities { place: (leaf, index, register), levels, any };
    [
        // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; PCLMUL, FMA, MOVBE, AES, XSAVE, AVX, F16C, RDRAND. Any: PCID, x2APIC, TSC
        // deadline, OSXSAVE, hypervisor.
        at(
            0x1,
            0,
            2,
            [bits([0, 9, 13, 19, 20, 23]), bits([1, 12, 22, 25, 26, 28, 29, 30]), 0],
            bits([17, 21, 24, 27, 31]),
        ),
        // All that 64-bit processors have had from the beginning.
        at(0x1, 0, 3, [bits([0, 4, 5, 6, 8, 15, 23, 24, 25, 26]), 0, 0], u32::MAX),
        // FSGSBASE, BMI1, AVX2, BMI2; AVX512F, DQ, RDSEED, ADX, CLFLUSHOPT, CLWB, AVX512CD, BW, VL. Any: TSC_ADJUST, SMEP, ERMS, INVPCID,
        // SMAP.
        at(
            0x7,
            0,
            1,
            [0, bits([0, 3, 5, 8]), bits([16, 17, 18, 19, 23, 24, 28, 30, 31])],
            bits([1, 7, 9, 10, 20]),
        ),
        // Any: UMIP.
        at(0x7, 0, 2, [0; 3], bits([2])),
        // Any: MD_CLEAR, IBRS, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
        at(0x7, 0, 3, [0; 3], bits([10, 26, 27, 28, 29, 31])),
        at(0x7, 1, 0, [0; 3], 0),
        at(0x7, 1, 3, [0; 3], 0),
        // LAHF; LZCNT. Any: CMP_LEGACY, CR8, PREFETCHW, topology.
        at(0x8000_0001, 0, 2, [bits([0]), bits([5]), 0], bits([1, 4, 8, 22])),
        // SYSCALL, NX, long mode. Any: what leaf 1 says again on AMD, FXSR_OPT, 1 GiB pages, RDTSCP.
        at(0x8000_0001, 0, 3, [bits([11, 20, 29]), 0, 0], 0x0183_f3ff | bits([25, 26, 27])),
        // The counter's steadiness is the host's and not for guests that move.
        at(0x8000_0007, 0, 3, [0; 3], 0),
        // Any: IBPB, IBRS, STIBP, preferred modes, SSBD.
        at(0x8000_0008, 0, 1, [0; 3], bits([12, 14, 15, 16, 17, 18, 24, 25, 26])),
        // Any: kvm-clock, no I/O delays, steal time, end of interrupt, unhalt, TLB flush, yield, stable clock.
        at(0x4000_0001, 0, 0, [0; 3], bits([0, 1, 3, 5, 6, 7, 9, 11, 13, 24])),
    ]
}

/// State components that `XSAVE` knows from each level on: x87 and SSE, AVX, AVX-512.
const COMPONENTS: [u32; 3] = [0b11, 0b111, 0b1110_0111];
/// Bytes of an `XSAVE` area with those.
const AREAS: [u32; 3] = [576, 832, 2688];
/// `XSAVE` features: XSAVEOPT, XSAVEC, XGETBV with ECX 1; supervisor states are not part of any model.
const XSAVE_FEATURES: u32 = 0b111;

/// The level's number, or `None` for whatever the host has.
fn level(model: CpuModel) -> Option<usize> {
    match model {
        CpuModel::Host => None,
        CpuModel::V2 => Some(0),
        CpuModel::V3 => Some(1),
        CpuModel::V4 => Some(2),
    }
}

fn register(entry: &mut kvm_cpuid_entry2, number: usize) -> &mut u32 {
    match number {
        0 => &mut entry.eax,
        1 => &mut entry.ebx,
        2 => &mut entry.ecx,
        _ => &mut entry.edx,
    }
}

/// Masks what is not of the model.
fn mask(cpuid: &mut [kvm_cpuid_entry2], model: CpuModel) -> Result<(), CpuError> {
    let Some(level) = level(model) else { return Ok(()) };
    for Abilities { place: (leaf, index, number), levels, any } in abilities() {
        let wanted = levels.iter().take(level + 1).fold(0, |set, more| set | more);
        let found = cpuid.iter_mut().find(|entry| entry.function == leaf && entry.index == index);
        let here = match found {
            Some(entry) => {
                let here = register(entry, number);
                *here &= wanted | any;
                *here
            }
            None => 0,
        };
        if wanted & !here != 0 {
            let lack = format!("CPUID leaf {leaf:#x}.{index} {} bits {:#x}", name(number), wanted & !here);
            return Err(CpuError::Model { model, lack });
        }
    }
    let components = COMPONENTS.get(level).copied().unwrap_or_default();
    for entry in cpuid.iter_mut() {
        match (entry.function, entry.index) {
            (0xd, 0) => {
                entry.eax &= components;
                entry.edx = 0;
                // The size for what is enabled follows from what the guest enables, which KVM fills in.
                entry.ecx = entry.ecx.min(AREAS.get(level).copied().unwrap_or_default());
            }
            (0xd, 1) => (entry.eax, entry.ecx, entry.edx) = (entry.eax & XSAVE_FEATURES, 0, 0),
            (0xd, index) if 1u32.checked_shl(index).unwrap_or(0) & components == 0 => clear(entry),
            // Performance counters, SGX, processor trace, AMX, AVX10: not of any model.
            (0xa | 0x12 | 0x14 | 0x1d | 0x1e | 0x24, _) => clear(entry),
            _ => {}
        }
    }
    Ok(())
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

fn name(register: usize) -> &'static str {
    ["EAX", "EBX", "ECX", "EDX"].get(register).copied().unwrap_or_default()
}

/// What guests of a model get from this host's KVM, with what all vCPUs share filled in.
///
/// # Errors
/// What KVM says, or that the host is older than the model.
pub fn shared(system: &Kvm, layout: Layout, model: CpuModel) -> Result<CpuId, CpuError> {
    let mut cpuid =
        system.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(kvm("tell its CPUID"))?;
    let deadline = system.check_extension(Cap::TscDeadlineTimer);
    mask(cpuid.as_mut_slice(), model)?;
    for entry in cpuid.as_mut_slice() {
        if entry.function == 1 {
            entry.ecx |= HYPERVISOR;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        place(entry, layout);
    }
    Ok(cpuid)
}

/// Fills in what an entry says about the topology.
fn place(entry: &mut kvm_cpuid_entry2, layout: Layout) {
    let Topology { sockets: _, cores, threads } = layout.topology;
    let (package, package_bits, thread_bits) =
        (layout.package(), layout.package_bits(), layout.thread_bits());
    // Numbers that share a cache: the last level's are the package's, the others' a core's.
    let sharing = |entry: &kvm_cpuid_entry2| {
        let own = if (entry.eax >> 5) & 7 >= 3 { package_bits } else { thread_bits };
        ((1u32 << own) - 1) << 14
    };
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xff00_ffff) | ((1u32 << package_bits).min(0xff) << 16);
            entry.edx = if package > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Intel's caches, and the cores of a package.
        4 if entry.eax & 0x1f != 0 => {
            let numbers = ((1u32 << width(cores)) - 1) << 26;
            entry.eax = (entry.eax & 0x3fff) | sharing(entry) | numbers;
        }
        // Extended topology: level 0 is threads, level 1 is cores.
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (thread_bits, threads, 1 << 8),
                1 => (package_bits, package, (2 << 8) | 1),
                index => (0, 0, index),
            };
        }
        // AMD: number of threads and width of the package's part of the APIC id.
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (package_bits << 12) | (package - 1),
        // AMD's caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let last = (entry.eax >> 5) & 7 >= 3;
            let share = if last { package } else { threads };
            entry.eax = (entry.eax & !(0xfff << 14)) | ((share - 1) << 14);
        }
        // AMD: threads in a core, one node in a package.
        0x8000_001e => (entry.ebx, entry.ecx) = ((threads - 1) << 8, 0),
        _ => {}
    }
}

/// Gives one vCPU its CPUID. This comes before any MSR is read or written.
///
/// # Errors
/// What KVM says.
pub fn set(vcpu: &VcpuFd, shared: &CpuId, layout: Layout, index: u32) -> Result<(), CpuError> {
    let id = layout.apic_id(index);
    let mut cpuid = shared.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = (entry.ebx & 0x00ff_ffff) | (id << 24),
            0xb | 0x1f => entry.edx = id,
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = (entry.ebx & !0xff) | ((id >> layout.thread_bits()) & 0xff);
                entry.ecx = id >> layout.package_bits();
            }
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid).map_err(kvm("set CPUID"))
}

/// What a guest with this CPUID could use that this host does not have; `None` when it has all of it.
#[must_use]
pub fn lacking(wanted: &CpuId, supported: &CpuId) -> Option<String> {
    let find = |cpuid: &CpuId, leaf: u32, index: u32| {
        let entries = cpuid.as_slice().iter();
        entries.copied().find(|entry| entry.function == leaf && entry.index == index)
    };
    let vendor = |entry: kvm_cpuid_entry2| [entry.ebx, entry.edx, entry.ecx];
    if find(wanted, 0, 0).map(vendor) != find(supported, 0, 0).map(vendor) {
        return Some("a processor of the same vendor".into());
    }
    let components = [((0xd, 0), 0), ((0xd, 0), 3), ((0xd, 1), 0), ((0xd, 1), 2)];
    let places = abilities().map(|abilities| {
        let (leaf, index, number) = abilities.place;
        ((leaf, index), number)
    });
    for ((leaf, index), number) in places.into_iter().chain(components) {
        let read = |cpuid| find(cpuid, leaf, index).map_or(0, |mut entry| *register(&mut entry, number));
        let lack = read(wanted) & !read(supported);
        if lack != 0 {
            let names: Vec<_> = NAMES
                .into_iter()
                .filter(|(place, bit, _)| *place == (leaf, index, number) && lack & (1 << bit) != 0)
                .map(|(_, _, name)| name)
                .collect();
            let known = if names.is_empty() { String::new() } else { format!("{}: ", names.join(", ")) };
            return Some(format!("{known}CPUID leaf {leaf:#x}.{index} {} bits {lack:#x}", name(number)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    /// A host that has everything.
    fn all() -> Vec<kvm_cpuid_entry2> {
        let leaves = [(0, 0), (1, 0), (7, 0), (7, 1), (0xa, 0), (0xd, 0), (0xd, 1), (0xd, 2), (0xd, 6)];
        let more = [(0x1d, 0), (0x4000_0001, 0), (0x8000_0001, 0), (0x8000_0007, 0), (0x8000_0008, 0)];
        leaves.into_iter().chain(more).map(|(leaf, index)| entry(leaf, index, [u32::MAX; 4])).collect()
    }

    #[test]
    fn each_model_has_what_the_ones_before_have_and_the_host_all_of_it() {
        let masked = |model| {
            let mut cpuid = all();
            mask(&mut cpuid, model).unwrap();
            CpuId::from_entries(&cpuid).unwrap()
        };
        let models = [CpuModel::V2, CpuModel::V3, CpuModel::V4, CpuModel::Host].map(masked);
        for pair in models.windows(2) {
            assert_eq!(lacking(&pair[0], &pair[1]), None);
            assert!(lacking(&pair[1], &pair[0]).is_some());
        }
        let leaf = |cpuid: &CpuId, leaf, index| {
            *cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (leaf, index)).unwrap()
        };
        let [v2, v3, v4, _] = &models;
        // AVX is leaf 1 ECX bit 28, AVX2 leaf 7 EBX bit 5, AVX512F bit 16.
        assert_eq!([v2, v3, v4].map(|model| (leaf(model, 1, 0).ecx >> 28) & 1), [0, 1, 1]);
        assert_eq!([v2, v3, v4].map(|model| (leaf(model, 7, 0).ebx >> 5) & 1), [0, 1, 1]);
        assert_eq!([v2, v3, v4].map(|model| (leaf(model, 7, 0).ebx >> 16) & 1), [0, 0, 1]);
        assert_eq!([v2, v3, v4].map(|model| leaf(model, 0xd, 0).ecx), AREAS);
        assert_eq!([v2, v3, v4].map(|model| leaf(model, 0xd, 6).eax), [0, 0, u32::MAX]);
        assert_eq!(leaf(v4, 0x1d, 0).eax, 0);
    }

    #[test]
    fn an_older_host_says_what_it_lacks() {
        let mut cpuid = all();
        for entry in cpuid.iter_mut().filter(|entry| entry.function == 7) {
            entry.ebx &= !(1 << 5);
        }
        assert!(mask(&mut cpuid.clone(), CpuModel::V2).is_ok());
        let said = mask(&mut cpuid, CpuModel::V3).unwrap_err().to_string();
        assert!(said.contains("x86-64-v3") && said.contains("0x7.0 EBX bits 0x20"), "{said}");
        let mut other = all();
        other[0].ebx = 1;
        let [one, two] = [all(), other].map(|cpuid| CpuId::from_entries(&cpuid).unwrap());
        assert!(lacking(&one, &two).unwrap().contains("vendor"));
    }

    #[test]
    fn the_numbers_of_a_layout() {
        let layout = Layout::new(12, Some(Topology { sockets: 2, cores: 3, threads: 2 })).unwrap();
        let ids: Vec<u32> = (0..12).map(|index| layout.apic_id(index)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        let mut leaf = entry(0xb, 1, [0; 4]);
        place(&mut leaf, layout);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (3, 6, 0x201));
        let mut one = entry(1, 0, [0; 4]);
        place(&mut one, layout);
        assert_eq!((one.ebx >> 16, one.edx & HTT), (8, HTT));
        let flat = Layout::new(64, None).unwrap();
        assert_eq!((flat.apic_id(63), flat.package_bits()), (63, 6));
        for wrong in [(0, None), (4, Some(Topology { sockets: 2, cores: 3, threads: 1 }))] {
            let said = Layout::new(wrong.0, wrong.1).unwrap_err().to_string();
            assert!(said.contains("vCPUs"), "{said}");
        }
        let huge = Topology { sockets: u32::MAX, cores: u32::MAX, threads: 2 };
        assert!(Layout::new(2, Some(huge)).is_err());
    }

    proptest! {
        #[test]
        fn every_vcpu_has_an_id_of_its_own(sockets in 1u32..9, cores in 1u32..33, threads in 1u32..9) {
            let vcpus = sockets * cores * threads;
            if let Ok(layout) = Layout::new(vcpus, Some(Topology { sockets, cores, threads })) {
                let ids: BTreeSet<u32> = (0..vcpus).map(|index| layout.apic_id(index)).collect();
                prop_assert_eq!(ids.len(), usize::try_from(vcpus).unwrap());
                prop_assert!(ids.last() <= Some(&LAST_APIC_ID));
                let packages: BTreeSet<u32> = ids.iter().map(|id| id >> layout.package_bits()).collect();
                prop_assert_eq!(packages.len(), usize::try_from(sockets).unwrap());
            } else {
                prop_assert!(vcpus > 64);
            }
        }
    }
}
