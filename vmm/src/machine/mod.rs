//! The machine: RAM, vCPUs, buses, and the order in which KVM is told about them.
//!
//! Life of a machine, all of it on the driver thread:
//!
//! ```text
//!            build              resume            pause
//!   (fds) ----------> paused <----------> running        ends: power-off, reset, triple fault, stop, failure
//! ```

pub mod acpi;
pub mod boot;
pub mod by_hand;
pub mod cpu;
pub mod devices;
pub mod driver;
pub mod generation;
pub mod layout;
pub mod memory;
pub mod probe;
pub mod serve;
pub mod signals;
pub mod slots;
pub mod smbios;
pub mod vcpu;

use crate::bus::Bus;
use crate::bus::ioapic::IoApic;
use crate::bus::msix::Routes;
use crate::bus::pci::PciBus;
use crate::bus::ports::{Console, Ports};
use crate::bus::power::Power;
use crate::virtio::transport::Host;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd};
use layout::{IOAPIC_PINS, MAX_VCPUS, TSS};
use signals::Signals;
use slots::Slots;
use std::fs::File;
use std::sync::Arc;
use vcpu::Vcpus;
use wire::MiB;
use wire::ids::ServerId;
use wire::machine::{EndReason, Identity, MachineEnd};

/// What a machine is built from, apart from its devices.
pub struct Setup {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// RAM.
    pub memory: MiB,
    /// Kernel file.
    pub kernel: File,
    /// Initial RAM disk.
    pub initrd: Option<File>,
    /// Kernel command line.
    pub command_line: String,
    /// Where the serial port's output goes.
    pub console: Console,
    /// The server's id.
    pub id: ServerId,
    /// SMBIOS strings.
    pub identity: Identity,
}

/// The KVM API version, the same since Linux 2.6.22.
const KVM_API: i32 = 12;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Wrong number of vCPUs.
    #[error("{0} vCPUs asked for: a machine has 1 to {max}", max = MAX_VCPUS)]
    Vcpus(u32),
    /// The descriptor is something else.
    #[error("this is no KVM device that we know: its API version is {0}, not {KVM_API}")]
    NoKvm(i32),
    /// KVM refused something.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// The host refused something else.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// vCPU state.
    #[error(transparent)]
    Cpu(#[from] cpu::CpuError),
    /// Tables.
    #[error("cannot write ACPI and SMBIOS tables into guest memory: {0}")]
    Tables(#[from] vm_memory::GuestMemoryError),
    /// A device.
    #[error(transparent)]
    Device(#[from] slots::PlugError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { what, source }
}

/// A machine.
pub struct Machine {
    // Field order is drop order: vCPUs stop before devices, devices before memory.
    vcpus: Vcpus,
    /// Devices by slot.
    pub slots: Slots,
    bus: Arc<Bus>,
    signals: Arc<Signals>,
    running: bool,
}

/// A machine whose vCPU threads do not exist yet: the last moment to give up privileges.
pub struct Built {
    vcpus: Vec<VcpuFd>,
    slots: Slots,
    bus: Arc<Bus>,
    signals: Arc<Signals>,
}

/// Builds a machine without devices.
///
/// The order of KVM calls matters for wall time: RAM comes before the interrupt controllers, and those are split.
///
/// # Errors
/// [`BuildError`]
pub fn build(mut setup: Setup) -> Result<Built, BuildError> {
    if !(1..=MAX_VCPUS).contains(&setup.vcpus) {
        return Err(BuildError::Vcpus(setup.vcpus));
    }
    let version = setup.kvm.get_api_version();
    if version != KVM_API {
        return Err(BuildError::NoKvm(version));
    }
    let memory = Arc::new(memory::reserve(setup.memory)?);
    let vm = Arc::new(setup.kvm.create_vm().map_err(kvm("create a virtual machine"))?);
    vm.set_tss_address(TSS).map_err(kvm("set the TSS address"))?;
    memory::give(&vm, &memory)?;
    let split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [u64::from(IOAPIC_PINS), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&split).map_err(kvm("split the interrupt controllers"))?;

    let host = |what| move |source| BuildError::Host { what, source };
    let signals = Arc::new(Signals::new().map_err(host("make an event"))?);
    let ioapic = Arc::new(IoApic::new(vm.clone()));
    let power = Arc::new(Power::new(ioapic.clone(), signals.clone()));
    let pci = Arc::new(PciBus::default());
    let ports = Ports::new(setup.console, ioapic.clone(), power.clone(), pci.clone(), signals.clone());
    let bus = Arc::new(Bus { ports, pci: pci.clone(), ioapic });

    let entry = boot::load(&memory, &mut setup.kernel, setup.initrd.as_ref(), &setup.command_line)?;
    acpi::write(&memory, setup.vcpus)?;
    smbios::write(&memory, setup.id, &setup.identity)?;
    generation::write(&memory)?;

    let cpuid = cpu::supported(&setup.kvm, setup.vcpus)?;
    let mut vcpus = Vec::new();
    for index in 0..setup.vcpus {
        let vcpu = vm.create_vcpu(index.into()).map_err(kvm("create a vCPU"))?;
        cpu::set_cpuid(&vcpu, &cpuid, index)?;
        cpu::set_boot_state(&vcpu)?;
        if index == 0 {
            cpu::enter(&vcpu, &memory, entry)?;
        }
        vcpus.push(vcpu);
    }
    let routes = Arc::new(Routes::new(vm.clone()));
    let host = Host { vm, routes, memory, signals: signals.clone() };
    Ok(Built { vcpus, slots: Slots::new(host, pci, power), bus, signals })
}

impl Built {
    /// Devices by slot.
    pub fn slots(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Starts the vCPU threads, each confined by `confine`; the machine is paused.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self, confine: fn() -> std::io::Result<()>) -> Result<Machine, BuildError> {
        let vcpus = Vcpus::start(self.vcpus, &self.bus, &self.signals, confine)
            .map_err(|source| BuildError::Host { what: "start a vCPU thread", source })?;
        Ok(Machine { vcpus, slots: self.slots, bus: self.bus, signals: self.signals, running: false })
    }
}

impl Machine {
    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus.count()
    }

    /// Whether vCPUs run.
    #[must_use]
    pub fn running(&self) -> bool {
        self.running
    }

    /// Lets devices and vCPUs go on. Harmless when running.
    pub fn resume(&mut self) {
        if !self.running {
            self.slots.resume();
            self.vcpus.resume();
            self.running = true;
        }
    }

    /// Stops vCPUs and devices; nothing touches guest memory when it returns. Harmless when paused.
    pub fn pause(&mut self) {
        if self.running {
            self.vcpus.pause();
            self.slots.pause();
            self.running = false;
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.bus.ports.power.press();
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn take_end(&self) -> Option<MachineEnd> {
        let mut end = self.signals.take_end()?;
        if self.signals.panicked() && matches!(end.reason, EndReason::Reset | EndReason::TripleFault) {
            end = MachineEnd {
                reason: EndReason::Panicked,
                detail: "the guest's kernel panicked and reset".into(),
            };
        }
        Some(end)
    }

    /// Marks that vCPUs leave for the driver.
    #[must_use]
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Gives bytes to the serial port; returns how many it took.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.bus.ports.input(bytes)
    }

    /// Flushes the console.
    pub fn flush_console(&self) {
        self.bus.ports.flush();
    }
}
