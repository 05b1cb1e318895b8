//! Snapshots: a machine's state in one file, its memory in another, and the way back.
//!
//! ```text
//!   running: memory file --pause--> parked: state file, the rest of memory --> running again, or ended
//!
//!   state file, memory file --map, restore--> a new machine, which goes on where the other was
//! ```
//!
//! The memory file is the guest's RAM as it is, holes where it is zero; a restored machine maps it privately, so it starts at once,
//! reads pages when it touches them, and shares with other machines what nobody writes. Several machines may go on from one snapshot:
//! each gets another generation id (see [`crate::machine::generation`]) and a clock that has gone on.
//!
//! A later snapshot of the same machine can hold only what changed: its memory goes over a copy (a reflink, where the file system has
//! them) of the memory file before, so that every memory file is whole and none depends on another. See [`dirty`].
//!
//! State files come from wherever the caller keeps them and are believed no more than a guest is: see [`file`].

pub mod copy;
pub mod dirty;
pub mod file;
pub mod live;
pub mod memory;
pub mod pages;
pub mod vcpu;

use crate::bus::ioapic::IoApicState;
use crate::bus::ports::SerialRegisters;
use crate::bus::power::PowerState;
use crate::bus::processors::ProcessorsState;
use crate::bus::watchdog::WatchdogState;
use crate::machine::layout::MAX_VCPUS;
use crate::machine::memory::{LEAST, MOST};
use crate::machine::slots::Role;
use crate::virtio::RestoreError;
use crate::virtio::transport::VirtioPciState;
use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::MiB;
use wire::machine::Topology;

/// Most CPUID entries and model-specific registers that KVM takes.
const MOST_ENTRIES: usize = 4096;
/// Most slots of the PCI bus.
const MOST_SLOTS: usize = 32;

/// A machine without its memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineState {
    /// RAM.
    pub memory: MiB,
    /// What it can become, with memory that is plugged in.
    #[serde(default)]
    pub max_memory: Option<MiB>,
    /// The processors.
    pub cpus: CpusState,
    /// The clock.
    pub clock: ClockState,
    /// What is wired to ports and pins.
    pub board: BoardState,
    /// Devices by slot.
    pub slots: Vec<SlotState>,
    /// The guest's kernel said that it panicked.
    pub panicked: bool,
}

/// The processors of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpusState {
    /// What CPUID says, before each processor's own numbers are filled in.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// How they are arranged.
    #[serde(default)]
    pub topology: Option<Topology>,
    /// Frequency of the time stamp counter; 0 when KVM did not tell.
    pub tsc_khz: u32,
    /// The processors.
    pub vcpus: Vec<vcpu::VcpuState>,
}

/// The guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds of kvm-clock.
    pub guest_ns: u64,
    /// When it was read: nanoseconds since 1970 by the host's clock.
    pub read_at_ns: u64,
}

/// What is wired to ports and pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardState {
    /// IOAPIC.
    pub ioapic: IoApicState,
    /// Serial port.
    pub serial: SerialRegisters,
    /// ACPI registers.
    pub power: PowerState,
    /// PCI configuration address.
    pub pci_address: u32,
    /// The watchdog, in a machine that has one.
    #[serde(default)]
    pub watchdog: Option<WatchdogState>,
    /// Which processors are plugged in, in a machine that can have more.
    #[serde(default)]
    pub processors: Option<ProcessorsState>,
}

/// A device in its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Which slot.
    pub slot: u8,
    /// What the device is to the outside.
    pub role: Role,
    /// The guest was asked to give it back.
    pub unplugging: bool,
    /// The device.
    pub device: VirtioPciState,
}

/// Why a snapshot was not taken, or a machine not restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state file.
    #[error(transparent)]
    File(#[from] file::FileError),
    /// A file cannot be read or written.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// KVM refused something.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// A register that this host's processor does not take.
    #[error(
        "this host refuses the value {value:#x} of model-specific register {index:#x}; restore on a host with the same kind of processor"
    )]
    Msr {
        /// Which.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// The guest runs guests of its own.
    #[error("the guest runs virtual machines of its own, whose state cannot be saved; stop them first")]
    Nested,
    /// More processor state than fits.
    #[error("the guest uses processor state of {0} bytes, of which only 4096 can be saved")]
    LargeState(usize),
    /// There is nothing that the changes could be told from.
    #[error(
        "the guest's writes were not tracked since the snapshot before; take a whole one with `track`, then the next can hold the changes alone"
    )]
    NotTracked,
    /// It was cancelled.
    #[error("the snapshot was cancelled")]
    Cancelled,
    /// There is a device whose state is somewhere else.
    #[error("there can be no such snapshot with {0}")]
    Unsaved(String),
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// The configuration is of another machine.
    #[error("the snapshot does not fit the configuration: {0}")]
    Other(String),
    /// The host's processor lacks something.
    #[error(
        "this host's processor or KVM lacks what the guest uses ({0}); restore on a host that has it, or give guests a CPU model that all hosts have"
    )]
    Processor(String),
    /// A device.
    #[error("device in PCI slot {slot}: {source}")]
    Device {
        /// Where.
        slot: u8,
        /// Why not.
        source: RestoreError,
    },
}

impl MachineState {
    /// Checks what a machine cannot be made of.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), file::FileError> {
        let wrong = |text: String| Err(file::FileError::Damaged(text));
        if !(LEAST..=MOST).contains(&self.memory) {
            return wrong(format!("{} MiB of memory", self.memory.0));
        }
        let vcpus = self.cpus.vcpus.len();
        if !u32::try_from(vcpus).is_ok_and(|count| (1..=MAX_VCPUS).contains(&count)) {
            return wrong(format!("{vcpus} processors"));
        }
        let msrs = self.cpus.vcpus.iter().map(|vcpu| vcpu.msrs.len()).max().unwrap_or(0);
        if msrs > MOST_ENTRIES || self.cpus.cpuid.len() > kvm_bindings::KVM_MAX_CPUID_ENTRIES {
            return wrong(format!("{msrs} registers and {} CPUID entries", self.cpus.cpuid.len()));
        }
        let mut seen = 0u32;
        for slot in &self.slots {
            let bit = 1u32.checked_shl(slot.slot.into()).unwrap_or(0);
            if bit < 2 || seen & bit != 0 || self.slots.len() >= MOST_SLOTS {
                return wrong(format!("a device in slot {}", slot.slot));
            }
            seen |= bit;
        }
        Ok(())
    }
}

impl ClockState {
    /// Reads the clock of a machine that does not run.
    ///
    /// # Errors
    /// What KVM says.
    pub fn save(vm: &VmFd) -> Result<Self, SnapshotError> {
        let read = vm.get_clock();
        let clock = read.map_err(|source| SnapshotError::Kvm { what: "tell the clock", source })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { guest_ns: clock.clock, read_at_ns: nanos(now) })
    }

    /// How long ago that was by this host's clock; zero when that clock is behind.
    #[must_use]
    pub fn age(&self) -> Duration {
        let then = UNIX_EPOCH + Duration::from_nanos(self.read_at_ns);
        SystemTime::now().duration_since(then).unwrap_or_default()
    }

    /// Sets the clock to what it would be had the machine gone on.
    ///
    /// # Errors
    /// What KVM says.
    pub fn restore(&self, vm: &VmFd, age: Duration) -> Result<(), SnapshotError> {
        let clock = self.guest_ns.saturating_add(nanos(age));
        vm.set_clock(&kvm_clock_data { clock, ..kvm_clock_data::default() })
            .map_err(|source| SnapshotError::Kvm { what: "set the clock", source })
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
