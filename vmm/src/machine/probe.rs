//! `vmm probe`: is there hardware virtualisation, really?
//!
//! Some hosts offer the whole KVM API and emulate the guest's kernel code, hundreds of times slower; the API does not say so. So a tiny guest
//! counts, and the time tells.

use super::layout::MAX_VCPUS;
use crate::virtio::Memory;
use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit};
use serde::Serialize;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// Iterations of the guest's loop (two instructions each) in one round.
const ROUND: u32 = 100_000;
/// Rounds of a measurement that is not cut short.
const ROUNDS: u32 = 20;
/// No measurement takes longer than this and a round.
const LONGEST: Duration = Duration::from_millis(500);
/// Slower than this is not hardware. Emulation was measured at 1 iteration in a microsecond; hardware does a thousand, and hardware that is itself
/// emulated (a nested test machine under load) still 40.
const LEAST_PER_MICROSECOND: f64 = 8.0;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// The verdict.
    pub kvm: Verdict,
    /// Why, for people.
    pub reason: String,
    /// Guest instructions per second, when a guest ran.
    pub instructions_per_second: Option<u64>,
    /// Most vCPUs of a machine.
    pub max_vcpus: u32,
}

/// Kind of virtualisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Guests run on the processor.
    Hardware,
    /// The API works, but guest kernel code is emulated: no Linux guest will boot in useful time.
    Emulated,
    /// There is no usable KVM.
    Missing,
}

/// Looks at a KVM device and measures a guest.
#[must_use]
pub fn probe(device: &Path) -> Probe {
    match measure(device) {
        Ok(per_second) => judge(per_second),
        Err(reason) => {
            Probe { kvm: Verdict::Missing, reason, instructions_per_second: None, max_vcpus: MAX_VCPUS }
        }
    }
}

fn judge(iterations_per_microsecond: f64) -> Probe {
    let millions = iterations_per_microsecond * 2.0;
    let (kvm, reason) = if iterations_per_microsecond >= LEAST_PER_MICROSECOND {
        (Verdict::Hardware, format!("a test guest ran {millions:.0} million instructions per second"))
    } else {
        let why = "the host emulates guest kernel code, so Linux guests would take hours to boot";
        (
            Verdict::Emulated,
            format!("a test guest ran only {millions:.1} million instructions per second: {why}"),
        )
    };
    // In range: a rate of instructions is far below 2^53 and not negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let per_second = (millions * 1e6) as u64;
    Probe { kvm, reason, instructions_per_second: Some(per_second), max_vcpus: MAX_VCPUS }
}

/// Iterations per microsecond of a guest that counts, or why there is none.
#[allow(unsafe_code)]
fn measure(device: &Path) -> Result<f64, String> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(device).map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "switch on virtualisation in the firmware and load the kvm-intel or kvm-amd module"
            }
            std::io::ErrorKind::PermissionDenied => "run as root or as a member of the group kvm",
            _ => "see the kernel's log",
        };
        format!("cannot open {}: {error}; {remedy}", device.display())
    })?;
    let raw = std::os::fd::IntoRawFd::into_raw_fd(file);
    // SAFETY: the descriptor is ours and nothing else uses it.
    let kvm = unsafe { Kvm::from_raw_fd(raw) };
    let said = |what: &'static str| move |error: kvm_ioctls::Error| format!("KVM refused to {what}: {error}");
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(format!("{} is no KVM device (API version {version}, not 12)", device.display()));
    }
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).map_err(|error| error.to_string())?;
    let vm = kvm.create_vm().map_err(said("create a virtual machine"))?;
    super::memory::give(&vm, &memory).map_err(|error| error.to_string())?;
    // 16-bit code: dec ecx; jnz -4; hlt; jmp -3.
    let code = [0x66, 0x49, 0x75, 0xfc, 0xf4, 0xeb, 0xfd];
    memory.write_slice(&code, GuestAddress(0x1000)).map_err(|error| error.to_string())?;
    let mut vcpu = vm.create_vcpu(0).map_err(said("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(said("read registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(said("set registers"))?;
    let mut round = || {
        let regs = kvm_regs { rip: 0x1000, rflags: 2, rcx: ROUND.into(), ..kvm_regs::default() };
        vcpu.set_regs(&regs).map_err(said("set registers"))?;
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => Ok(()),
            Ok(other) => Err(format!("a test guest ended in an unexpected way: {other:?}")),
            Err(error) => Err(format!("KVM refused to run a test guest: {error}")),
        }
    };
    // The first round also pays for page tables and translation; of the others the best counts, because a busy host interrupts.
    round()?;
    let (start, mut best) = (Instant::now(), Duration::MAX);
    for _ in 0..ROUNDS {
        let before = Instant::now();
        round()?;
        best = best.min(before.elapsed());
        if start.elapsed() >= LONGEST {
            break;
        }
    }
    Ok(f64::from(ROUND) / (best.as_secs_f64() * 1e6).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_is_missing_with_a_remedy() {
        let probe = probe(Path::new("/nonexistent/kvm"));
        assert_eq!(probe.kvm, Verdict::Missing);
        assert!(probe.reason.contains("load the kvm"), "{}", probe.reason);
        assert_eq!(super::probe(Path::new("/dev/null")).kvm, Verdict::Missing);
    }

    #[test]
    fn the_verdict_follows_the_speed() {
        assert_eq!(judge(1.0).kvm, Verdict::Emulated);
        assert_eq!(judge(1500.0).kvm, Verdict::Hardware);
        assert_eq!(judge(1.0).instructions_per_second, Some(2_000_000));
    }

    #[test]
    fn a_guest_runs_where_there_is_kvm() {
        if !Path::new("/dev/kvm").exists() {
            println!("skipped: there is no /dev/kvm");
            return;
        }
        let probe = probe(Path::new("/dev/kvm"));
        assert_ne!(probe.kvm, Verdict::Missing, "{}", probe.reason);
        assert!(probe.instructions_per_second > Some(10_000));
    }
}
