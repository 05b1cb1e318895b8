//! The state in which a vCPU starts: MSRs, local APIC, and the registers of the boot protocols.

use super::boot::Entry;
use super::layout::{BOOT_STACK, GDT, PAGE_TABLES, PVH_INFO, ZERO_PAGE};
use crate::virtio::Memory;
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use wire::machine::{CpuModel, Topology};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_TSC: u32 = 0x10;
const MSR_SYSENTER_CS: u32 = 0x174;
const MSR_SYSENTER_ESP: u32 = 0x175;
const MSR_SYSENTER_EIP: u32 = 0x176;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Values of [`MSRS`] that are not zero: fast string operations on; MTRRs on with write-back as default.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_ON_WRITE_BACK: u64 = 0x806;

/// Local APIC register offsets and the boot values of the first two local vectors.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXTINT: u32 = 7 << 8;
const APIC_MODE_MASK: u32 = 7 << 8;

/// A vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// KVM refused a call.
    #[error("KVM refused to {0}: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// KVM took only some MSRs.
    #[error("KVM refused to set MSR {0:#x}")]
    Msr(u32),
    /// Sockets, cores and threads that do not make the number of vCPUs.
    #[error(
        "{sockets} sockets of {cores} cores of {threads} threads do not make {vcpus} vCPUs with APIC ids below 255",
        sockets = .topology.sockets, cores = .topology.cores, threads = .topology.threads
    )]
    Topology {
        /// What was asked for.
        topology: Topology,
        /// The vCPUs.
        vcpus: u32,
    },
    /// A host without what a model promises.
    #[error(
        "this host's processor or KVM is no {model}: it lacks {lack}; choose an older CPU model, or 'host'"
    )]
    Model {
        /// The model.
        model: CpuModel,
        /// What is missing.
        lack: String,
    },
    /// Boot tables do not fit.
    #[error("cannot write boot tables into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> CpuError {
    move |error| CpuError::Kvm(what, error)
}

/// MSRs at boot, as firmware would leave them.
const MSRS: [(u32, u64); 11] = [
    (MSR_SYSENTER_CS, 0),
    (MSR_SYSENTER_ESP, 0),
    (MSR_SYSENTER_EIP, 0),
    (MSR_STAR, 0),
    (MSR_LSTAR, 0),
    (MSR_CSTAR, 0),
    (MSR_SYSCALL_MASK, 0),
    (MSR_KERNEL_GS_BASE, 0),
    (MSR_TSC, 0),
    (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    (MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK),
];

/// Sets MSRs and the local APIC's boot state.
///
/// # Errors
/// What KVM says.
pub fn set_boot_state(vcpu: &VcpuFd) -> Result<(), CpuError> {
    let entries = MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| CpuError::Kvm("take MSRs", kvm_ioctls::Error::new(libc::EINVAL)))?;
    let done = vcpu.set_msrs(&msrs).map_err(kvm("set MSRs"))?;
    if let Some((index, _)) = MSRS.get(done) {
        return Err(CpuError::Msr(*index));
    }
    let mut lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    set_lvt(&mut lapic, APIC_LVT0, APIC_MODE_EXTINT);
    set_lvt(&mut lapic, APIC_LVT1, APIC_MODE_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("set the local APIC"))
}

fn set_lvt(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let mut register = [0u8; 4];
    if let Some(bytes) = lapic.regs.get_mut(offset..offset + 4) {
        for (to, from) in register.iter_mut().zip(bytes.iter()) {
            *to = from.to_ne_bytes()[0];
        }
        let value = (u32::from_le_bytes(register) & !APIC_MODE_MASK) | mode;
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *to = std::ffi::c_char::from_ne_bytes([from]);
        }
    }
}

/// GDT entries: null, code (64 or 32 bit), data, TSS.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS32: u64 = 0x0000_8b00_0000_0067;

fn segment(descriptor: u64, index: u16) -> kvm_segment {
    let bits = |from: u32, mask: u64| (descriptor >> from) & mask;
    let byte = |from: u32, mask: u64| u8::try_from(bits(from, mask)).unwrap_or_default();
    let limit = bits(0, 0xffff) | (bits(48, 0xf) << 16);
    let granular = bits(55, 1) == 1;
    kvm_segment {
        base: bits(16, 0xff_ffff) | (bits(56, 0xff) << 24),
        limit: u32::try_from(if granular { (limit << 12) | 0xfff } else { limit }).unwrap_or(u32::MAX),
        selector: index * 8,
        type_: byte(40, 0xf),
        s: byte(44, 1),
        dpl: byte(45, 3),
        present: byte(47, 1),
        avl: byte(52, 1),
        l: byte(53, 1),
        db: byte(54, 1),
        g: byte(55, 1),
        unusable: 0,
        padding: 0,
    }
}

/// Writes page tables and GDT, and sets the first vCPU's registers for the entry.
///
/// # Errors
/// What KVM says.
pub fn enter(vcpu: &VcpuFd, memory: &Memory, entry: Entry) -> Result<(), CpuError> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let code = if long { CODE64 } else { CODE32 };
    // The boot protocols want CS = 0x10 and DS = 0x18, which Linux' own boot GDT uses.
    let gdt = [0, 0, code, DATA, TSS32];
    for (slot, descriptor) in (0u64..).zip(gdt) {
        memory.write_obj(descriptor, GuestAddress(GDT + slot * 8))?;
    }
    let mut sregs = vcpu.get_sregs().map_err(kvm("read segment registers"))?;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(code, 2);
    let data = segment(DATA, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TSS32, 4);
    let mut regs = kvm_regs { rflags: 2, rsp: BOOT_STACK, rbp: BOOT_STACK, ..kvm_regs::default() };
    match entry {
        Entry::Linux64 { at } => {
            write_page_tables(memory)?;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
            (regs.rip, regs.rsi) = (at, ZERO_PAGE);
        }
        Entry::Pvh { at } => {
            (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
            (regs.rip, regs.rbx) = (at, PVH_INFO);
        }
    }
    vcpu.set_sregs(&sregs).map_err(kvm("set segment registers"))?;
    vcpu.set_regs(&regs).map_err(kvm("set registers"))
}

/// Maps the first GiB onto itself with 2 MiB pages.
fn write_page_tables(memory: &Memory) -> Result<(), CpuError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    memory.write_obj((PAGE_TABLES + 0x1000) | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    memory.write_obj((PAGE_TABLES + 0x2000) | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES + 0x1000))?;
    let mut directory = [0u8; 4096];
    for (page, slot) in (0u64..).zip(directory.chunks_exact_mut(8)) {
        slot.copy_from_slice(&((page << 21) | LARGE | PRESENT_WRITABLE).to_le_bytes());
    }
    Ok(memory.write_slice(&directory, GuestAddress(PAGE_TABLES + 0x2000))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_unpack() {
        let code = segment(CODE64, 2);
        assert_eq!((code.base, code.limit, code.selector), (0, u32::MAX, 0x10));
        assert_eq!((code.type_, code.s, code.l, code.db, code.g, code.present), (0xb, 1, 1, 0, 1, 1));
        let tss = segment(TSS32, 4);
        assert_eq!((tss.limit, tss.type_, tss.s, tss.g), (0x67, 0xb, 0, 0));
    }
}
