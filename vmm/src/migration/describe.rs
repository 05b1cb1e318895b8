//! What a destination must know before anything moves, and whether it fits.

use crate::machine::cpuid;
use crate::machine::slots::Role;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};
use wire::MiB;

/// A machine that wants to come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// vCPUs.
    pub vcpus: u32,
    /// RAM.
    pub memory: MiB,
    /// What CPUID says.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of the time stamp counter; 0 when it is not known.
    pub tsc_khz: u32,
    /// Devices.
    pub roles: Vec<Role>,
}

/// What the destination has.
#[derive(Debug, Clone)]
pub struct Host {
    /// vCPUs that were configured.
    pub vcpus: u32,
    /// RAM that was configured.
    pub memory: MiB,
    /// What processor and KVM can.
    pub supported: CpuId,
    /// Devices that were configured.
    pub roles: Vec<Role>,
    /// Whether the time stamp counter can run at another frequency than the host's, and the host's.
    pub tsc: Tsc,
}

/// A host's time stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tsc {
    /// Its frequency; 0 when it is not known.
    pub khz: u32,
    /// Whether a guest's may run at another one.
    pub scales: bool,
}

/// By how many millionths two counters may differ and still count as the same.
const SAME_MILLIONTHS: u64 = 250;

impl Description {
    /// Why the machine cannot come here; `None` when it can, as far as can be told before its state is there.
    #[must_use]
    pub fn unfit(&self, host: &Host) -> Option<String> {
        if (self.vcpus, self.memory) != (host.vcpus, host.memory) {
            return Some(format!(
                "the machine has {} vCPUs and {} MiB of memory, and the destination was configured with {} and {}",
                self.vcpus, self.memory.0, host.vcpus, host.memory.0
            ));
        }
        let missing = self.roles.iter().find(|role| !host.roles.contains(role));
        if let Some(role) = missing {
            return Some(format!(
                "the machine has the {role}, and the destination was not configured with it"
            ));
        }
        if let Some(role) = host.roles.iter().find(|role| !self.roles.contains(role)) {
            return Some(format!(
                "the destination was configured with the {role}, which the machine does not have"
            ));
        }
        let Ok(cpuid) = CpuId::from_entries(&self.cpuid) else {
            return Some(format!("the machine has {} CPUID entries, more than KVM takes", self.cpuid.len()));
        };
        if let Some(lack) = cpuid::lacking(&cpuid, &host.supported) {
            return Some(format!(
                "the destination's processor or KVM lacks what the guest uses ({lack}); migrate to a host that has it, or give guests a CPU model that all hosts have"
            ));
        }
        let (theirs, ours) = (u64::from(self.tsc_khz), u64::from(host.tsc.khz));
        if theirs != 0
            && ours != 0
            && !host.tsc.scales
            && theirs.abs_diff(ours) > ours * SAME_MILLIONTHS / 1_000_000
        {
            return Some(format!(
                "the guest's time stamp counter runs at {theirs} kHz, and the destination's processor only has one of {ours} kHz"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_named() {
        let entry = |function, ecx| kvm_cpuid_entry2 { function, ecx, ..kvm_cpuid_entry2::default() };
        let entries = [entry(0, 0), entry(1, 1 << 20)];
        let described = Description {
            vcpus: 2,
            memory: MiB(64),
            cpuid: entries.to_vec(),
            tsc_khz: 3_000_000,
            roles: vec![Role::Rng, Role::Disk { key: "root".into() }],
        };
        let host = Host {
            vcpus: 2,
            memory: MiB(64),
            supported: CpuId::from_entries(&entries).unwrap(),
            roles: described.roles.clone(),
            tsc: Tsc { khz: 3_000_100, scales: false },
        };
        assert_eq!(described.unfit(&host), None);
        let said = |host: Host| described.unfit(&host).unwrap();
        assert!(said(Host { vcpus: 1, ..host.clone() }).contains("2 vCPUs"));
        assert!(
            said(Host { roles: vec![Role::Rng], ..host.clone() })
                .contains("the disk 'root', and the destination")
        );
        let more = vec![Role::Disk { key: "root".into() }, Role::Rng, Role::Balloon];
        assert!(said(Host { roles: more, ..host.clone() }).contains("the balloon, which the machine"));
        let old = CpuId::from_entries(&[entry(0, 0), entry(1, 0)]).unwrap();
        assert!(said(Host { supported: old, ..host.clone() }).contains("SSE4.2"));
        let slow = Tsc { khz: 2_000_000, scales: false };
        assert!(said(Host { tsc: slow, ..host.clone() }).contains("2000000 kHz"));
        assert_eq!(described.unfit(&Host { tsc: Tsc { scales: true, ..slow }, ..host }), None);
    }
}
