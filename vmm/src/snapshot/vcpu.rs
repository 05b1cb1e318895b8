//! The state of one processor.
//!
//! The order of calls matters to KVM: asking for the run state may deliver pending INITs and so comes first; events depend on everything
//! else and come last; the local APIC needs its base from the system registers, and a timer's deadline needs the local APIC's mode.

use super::SnapshotError;
use super::file::FileError;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Offset of the timer's local vector in the local APIC, and its mode "TSC deadline".
const APIC_LVT_TIMER: usize = 0x320;
const TIMER_MODE: u32 = 3 << 17;
const TIMER_DEADLINE: u32 = 2 << 17;
/// Bytes of `kvm_xsave`.
const XSAVE: i32 = 4096;
/// Registers that one call takes.
const AT_ONCE: usize = 200;

/// The state of one processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Running, halted, waiting to be started.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, pending interrupt.
    pub sregs: kvm_sregs,
    /// Floating point and vectors: the words of `kvm_xsave`.
    pub xsave: Vec<u32>,
    /// Which of those are on.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// Local APIC.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers, by index.
    pub msrs: Vec<(u32, u64)>,
    /// Exceptions, interrupts and NMIs under way.
    pub events: kvm_vcpu_events,
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> SnapshotError {
    move |source| SnapshotError::Kvm { what, source }
}

/// What must be known of KVM to save processors: asked once for all.
pub struct Saver {
    msrs: Vec<u32>,
    nested: bool,
}

/// Checks that this host's processors have no more vector state than we save.
///
/// # Errors
/// When they have.
pub fn check(system: &Kvm) -> Result<(), SnapshotError> {
    let size = system.check_extension_int(Cap::Xsave2);
    if size > XSAVE {
        return Err(SnapshotError::LargeState(usize::try_from(size).unwrap_or(usize::MAX)));
    }
    Ok(())
}

impl Saver {
    /// Asks KVM.
    ///
    /// # Errors
    /// What it says, or that there is state that cannot be saved.
    pub fn new(system: &Kvm) -> Result<Self, SnapshotError> {
        check(system)?;
        let list = system.get_msr_index_list().map_err(kvm("list its registers"))?;
        let nested = system.check_extension_int(Cap::NestedState) > 0;
        Ok(Self { msrs: list.as_slice().to_vec(), nested })
    }

    /// Saves a processor that does not run and has no half-done instruction.
    ///
    /// # Errors
    /// What KVM says.
    pub fn save(&self, vcpu: &VcpuFd) -> Result<VcpuState, SnapshotError> {
        let mp_state = vcpu.get_mp_state().map_err(kvm("tell a processor's run state"))?;
        if self.nested {
            let mut buffer = KvmNestedStateBuffer::default();
            let state = vcpu.nested_state(&mut buffer).map_err(kvm("tell about nested guests"))?;
            if state.is_some() {
                return Err(SnapshotError::Nested);
            }
        }
        Ok(VcpuState {
            mp_state,
            regs: vcpu.get_regs().map_err(kvm("read registers"))?,
            sregs: vcpu.get_sregs().map_err(kvm("read system registers"))?,
            xsave: vcpu.get_xsave().map_err(kvm("read vector registers"))?.region.to_vec(),
            xcrs: vcpu.get_xcrs().map_err(kvm("read extended control registers"))?,
            debugregs: vcpu.get_debug_regs().map_err(kvm("read debug registers"))?,
            lapic: vcpu.get_lapic().map_err(kvm("read the local APIC"))?,
            msrs: self.read_msrs(vcpu)?,
            events: vcpu.get_vcpu_events().map_err(kvm("read pending events"))?,
        })
    }

    /// Those of the registers that this guest has.
    fn read_msrs(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, SnapshotError> {
        let mut found = Vec::with_capacity(self.msrs.len());
        let mut rest = self.msrs.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(AT_ONCE));
            let entries: Vec<_> = now.iter().map(|index| entry(*index, 0)).collect();
            let mut msrs = wrap(&entries)?;
            let read = vcpu.get_msrs(&mut msrs).map_err(kvm("read model-specific registers"))?;
            found.extend(msrs.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
            // KVM stops at the first that the guest does not have: go on behind it.
            rest = if read < now.len() { rest.get(read + 1..).unwrap_or_default() } else { later };
        }
        Ok(found)
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..kvm_msr_entry::default() }
}

fn wrap(entries: &[kvm_msr_entry]) -> Result<Msrs, SnapshotError> {
    Msrs::from_entries(entries)
        .map_err(|_| kvm("take model-specific registers")(kvm_ioctls::Error::new(libc::ENOMEM)))
}

impl VcpuState {
    /// Gives the state to a processor that has its CPUID and never ran; [`check`] was asked. Its time stamp counter has gone on for `age`.
    ///
    /// # Errors
    /// What KVM says.
    pub fn restore(&self, vcpu: &VcpuFd, age: Duration, tsc_khz: u32) -> Result<(), SnapshotError> {
        vcpu.set_mp_state(self.mp_state).map_err(kvm("set a processor's run state"))?;
        vcpu.set_regs(&self.regs).map_err(kvm("set registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(kvm("set system registers"))?;
        let mut xsave = kvm_xsave::default();
        if self.xsave.len() != xsave.region.len() {
            let text = format!("{} words of vector registers", self.xsave.len());
            return Err(FileError::Damaged(text).into());
        }
        xsave.region.copy_from_slice(&self.xsave);
        // SAFETY: `check` found that KVM reads no more than `kvm_xsave` holds.
        #[allow(unsafe_code)]
        unsafe { vcpu.set_xsave(&xsave) }.map_err(kvm("set vector registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(kvm("set extended control registers"))?;
        vcpu.set_debug_regs(&self.debugregs).map_err(kvm("set debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(kvm("set the local APIC"))?;
        self.write_msrs(vcpu, age, tsc_khz)?;
        vcpu.set_vcpu_events(&self.events).map_err(kvm("set pending events"))
    }

    fn write_msrs(&self, vcpu: &VcpuFd, age: Duration, tsc_khz: u32) -> Result<(), SnapshotError> {
        let gone_on = age.as_micros().saturating_mul(u128::from(tsc_khz)) / 1000;
        let gone_on = u64::try_from(gone_on).unwrap_or(u64::MAX);
        let mut tsc = 0;
        let mut entries = Vec::with_capacity(self.msrs.len());
        let mut deadline = None;
        for (index, value) in &self.msrs {
            match *index {
                MSR_TSC => {
                    tsc = value.wrapping_add(gone_on);
                    entries.push(entry(MSR_TSC, tsc));
                }
                MSR_TSC_DEADLINE => deadline = Some(*value),
                index => entries.push(entry(index, *value)),
            }
        }
        // A deadline of zero in this mode is one that has passed, whose interrupt may not have been seen yet: it passes again.
        if let Some(mut at) = deadline {
            if at == 0 && self.timer_mode() == TIMER_DEADLINE {
                at = tsc;
            }
            entries.push(entry(MSR_TSC_DEADLINE, at));
        }
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(AT_ONCE));
            let done = vcpu.set_msrs(&wrap(now)?).map_err(kvm("set model-specific registers"))?;
            rest = match now.get(done) {
                None => later,
                Some(refused) => {
                    self.may_be_refused(vcpu, refused)?;
                    rest.get(done + 1..).unwrap_or_default()
                }
            };
        }
        Ok(())
    }

    /// A register that KVM does not let be set is no loss when it has that value already.
    fn may_be_refused(&self, vcpu: &VcpuFd, refused: &kvm_msr_entry) -> Result<(), SnapshotError> {
        let mut msrs = wrap(&[entry(refused.index, 0)])?;
        let read = vcpu.get_msrs(&mut msrs).map_err(kvm("read model-specific registers"))?;
        let now = msrs.as_slice().iter().take(read).map(|entry| entry.data).next();
        if now == Some(refused.data) {
            return Ok(());
        }
        Err(SnapshotError::Msr { index: refused.index, value: refused.data })
    }

    fn timer_mode(&self) -> u32 {
        let bytes = self.lapic.regs.get(APIC_LVT_TIMER..APIC_LVT_TIMER + 4).unwrap_or_default();
        let word = bytes.iter().rev().fold(0u32, |word, byte| (word << 8) | u32::from(byte.to_ne_bytes()[0]));
        word & TIMER_MODE
    }
}
