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
pub mod connector;
pub mod cpu;
pub mod cpuid;
pub mod devices;
pub mod driver;
pub mod generation;
pub mod incoming;
pub mod job;
pub mod layout;
pub mod memory;
pub mod probe;
pub mod serve;
pub mod signals;
pub mod slots;
pub mod smbios;
pub mod transfer;
pub mod vcpu;

use crate::bus::Bus;
use crate::bus::ioapic::IoApic;
use crate::bus::msix::Routes;
use crate::bus::pci::PciBus;
use crate::bus::ports::{Console, Ports};
use crate::bus::power::Power;
use crate::bus::processors::Processors;
use crate::bus::watchdog::Watchdog;
use crate::migration::describe::Description;
use crate::snapshot::dirty::Log;
use crate::snapshot::{self, BoardState, ClockState, CpusState, MachineState, SlotState, SnapshotError};
use crate::virtio::Memory;
use crate::virtio::transport::Host;
use cpuid::Layout;
use kvm_bindings::{CpuId, KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use layout::{IOAPIC_PINS, MAX_VCPUS, TSS};
use memory::Ram;
use memory::plugged::Pluggable;
use signals::Signals;
use slots::Slots;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;
use vcpu::Vcpus;
use wire::MiB;
use wire::ids::ServerId;
use wire::machine::{CpuModel, EndReason, Identity, MachineEnd, Topology, WatchdogAction};

/// What a machine is built from, apart from its devices.
pub struct Setup {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// How many there can be; `None` for those at the start. A machine that goes on from a snapshot has those that it had.
    pub max_vcpus: Option<u32>,
    /// What the guest finds of the host's processor. A machine that goes on from a snapshot keeps what it had.
    pub cpu_model: CpuModel,
    /// How the vCPUs are arranged; likewise.
    pub topology: Option<Topology>,
    /// RAM.
    pub memory: Ram,
    /// How it begins.
    pub origin: Origin,
    /// Where the serial port's output goes.
    pub console: Console,
    /// The server's id.
    pub id: ServerId,
    /// SMBIOS strings.
    pub identity: Identity,
    /// Whether there is a watchdog; a machine from a snapshot has one when it had.
    pub watchdog: bool,
    /// What happens when it bites.
    pub watchdog_action: WatchdogAction,
}

/// How a machine begins.
pub enum Origin {
    /// By booting a kernel.
    Boot {
        /// Kernel file.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// Kernel command line.
        command_line: String,
    },
    /// By going on from a snapshot.
    Snapshot {
        /// Its state.
        state: Box<MachineState>,
        /// Its memory.
        memory: Source,
        /// Track what the guest writes from the start.
        track: bool,
        /// Whether it is still the machine that it was.
        life: Life,
    },
}

impl Origin {
    /// Devices of a machine that goes on.
    #[must_use]
    pub fn slots(&self) -> Option<Vec<SlotState>> {
        match self {
            Self::Boot { .. } => None,
            Self::Snapshot { state, .. } => Some(state.slots.clone()),
        }
    }
}

/// Where a machine that goes on has its memory.
pub enum Source {
    /// In a file.
    File(File),
    /// It is there already.
    Ready(Memory),
}

/// What a machine that goes on is to itself.
#[derive(Debug, Clone, Copy)]
pub enum Life {
    /// Perhaps one of several that go on from one snapshot: it is told so, and its clock has gone on by the hosts' clocks.
    Another,
    /// The same machine, in another place.
    Same {
        /// Since when it stands still.
        stopped: Instant,
    },
}

/// The KVM API version, the same since Linux 2.6.22.
const KVM_API: i32 = 12;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Wrong number of vCPUs.
    #[error("{0} vCPUs asked for: a machine has 1 to {max}", max = MAX_VCPUS)]
    Vcpus(u32),
    /// Wrong number of most vCPUs.
    #[error("a machine that starts with {vcpus} vCPUs can have {vcpus} to {max} of them, not {most}", max = MAX_VCPUS)]
    MaxVcpus {
        /// At the start.
        vcpus: u32,
        /// Asked for as the most.
        most: u32,
    },
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
    /// A snapshot.
    #[error("cannot restore the machine: {0}")]
    Snapshot(#[from] SnapshotError),
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
    kept: Kept,
}

/// What is only needed for a snapshot.
struct Kept {
    system: Kvm,
    vm: Arc<VmFd>,
    memory: Arc<Memory>,
    size: MiB,
    most: Option<MiB>,
    cpuid: CpuId,
    tsc_khz: u32,
    topology: Option<Topology>,
    /// What was written since the last snapshot, while that is tracked.
    log: Option<Log>,
}

/// A machine whose vCPU threads do not exist yet: the last moment to give up privileges.
pub struct Built {
    vcpus: Vec<VcpuFd>,
    slots: Slots,
    bus: Arc<Bus>,
    signals: Arc<Signals>,
    kept: Kept,
    pluggable: Option<Pluggable>,
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
    let all = setup.max_vcpus.unwrap_or(setup.vcpus);
    if !(setup.vcpus..=MAX_VCPUS).contains(&all) {
        return Err(BuildError::MaxVcpus { vcpus: setup.vcpus, most: all });
    }
    let version = setup.kvm.get_api_version();
    if version != KVM_API {
        return Err(BuildError::NoKvm(version));
    }
    let memory = Arc::new(match &mut setup.origin {
        Origin::Boot { .. } => setup.memory.reserve()?,
        Origin::Snapshot { state, memory, .. } => {
            check_fits(all, &setup.memory, state)?;
            match memory {
                Source::Ready(memory) => std::mem::take(memory),
                Source::File(file) if setup.memory.is_plain() => {
                    snapshot::memory::map(file, &setup.memory.ranges()?)?
                }
                Source::File(file) => {
                    // Private pages of a file are none of the kinds that can be asked for.
                    let own = setup.memory.reserve()?;
                    snapshot::memory::read(file, &own)?;
                    own
                }
            }
        }
    });
    let pluggable = setup.memory.pluggable(&memory);
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
    let serial = match &setup.origin {
        Origin::Boot { .. } => None,
        Origin::Snapshot { state, .. } => Some(&state.board.serial),
    };
    let watchdog = match &setup.origin {
        Origin::Boot { .. } => setup.watchdog,
        Origin::Snapshot { state, .. } => state.board.watchdog.is_some(),
    };
    let mut ports =
        Ports::new(setup.console, serial, ioapic.clone(), power.clone(), pci.clone(), signals.clone());
    ports.watchdog = watchdog.then(|| Watchdog::new(signals.clone(), setup.watchdog_action));
    let pluggable_vcpus = match &setup.origin {
        Origin::Boot { .. } => all > setup.vcpus,
        Origin::Snapshot { state, .. } => state.board.processors.is_some(),
    };
    ports.processors =
        pluggable_vcpus.then(|| Processors::new(first(setup.vcpus), power.clone(), signals.clone()));
    let bus = Arc::new(Bus { ports, pci: pci.clone(), ioapic });

    let (mut log, mut another) = (None, true);
    let topology = match &setup.origin {
        Origin::Boot { .. } => setup.topology,
        Origin::Snapshot { state, .. } => state.cpus.topology,
    };
    let layout = Layout::new(all, topology)?;
    let (vcpus, cpuid) = match setup.origin {
        Origin::Boot { mut kernel, initrd, command_line } => {
            let entry = boot::load(&memory, &mut kernel, initrd.as_ref(), &command_line)?;
            let board = acpi::Board { layout, vcpus: setup.vcpus, all, watchdog: setup.watchdog };
            acpi::write(&memory, &board, setup.memory.nodes.as_ref())?;
            smbios::write(&memory, setup.id, &setup.identity)?;
            let cpuid = cpuid::shared(&setup.kvm, layout, setup.cpu_model)?;
            let mut vcpus = Vec::new();
            for index in 0..all {
                let vcpu = new_vcpu(&vm, &cpuid, layout, index)?;
                cpu::set_boot_state(&vcpu)?;
                if index == 0 {
                    cpu::enter(&vcpu, &memory, entry)?;
                }
                vcpus.push(vcpu);
            }
            (vcpus, cpuid)
        }
        Origin::Snapshot { state, memory: _, track, life } => {
            if track {
                log = Some(Log::start(&vm, &memory)?);
            }
            another = matches!(life, Life::Another);
            restore(&setup.kvm, &vm, &bus, layout, &state, life)?
        }
    };
    if another {
        generation::write(&memory)?;
    }
    let routes = Arc::new(Routes::new(vm.clone()));
    let kept = Kept {
        system: setup.kvm,
        vm: vm.clone(),
        memory: memory.clone(),
        size: setup.memory.size,
        most: setup.memory.most,
        cpuid,
        tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0),
        topology,
        log,
    };
    let host = Host { vm, routes, memory, signals: signals.clone() };
    Ok(Built { vcpus, slots: Slots::new(host, pci, power), bus, signals, kept, pluggable })
}

/// The bits of the first vCPUs.
fn first(count: u32) -> u64 {
    u64::MAX.checked_shr(u64::BITS.saturating_sub(count)).unwrap_or(0)
}

fn new_vcpu(vm: &VmFd, cpuid: &CpuId, layout: Layout, index: u32) -> Result<VcpuFd, BuildError> {
    let vcpu = vm.create_vcpu(layout.apic_id(index).into()).map_err(kvm("create a vCPU"))?;
    cpuid::set(&vcpu, cpuid, layout, index)?;
    Ok(vcpu)
}

/// A snapshot's machine has the size that it had.
fn check_fits(all: u32, ram: &Ram, state: &MachineState) -> Result<(), SnapshotError> {
    let vcpus = u32::try_from(state.cpus.vcpus.len()).unwrap_or(u32::MAX);
    if (vcpus, state.memory) != (all, ram.size) {
        return Err(SnapshotError::Other(format!(
            "it is of a machine with {vcpus} vCPUs and {} MiB of memory, not {all} and {}",
            state.memory.0, ram.size.0
        )));
    }
    if state.max_memory != ram.most {
        let words =
            |most: Option<MiB>| most.map_or("no more".into(), |most| format!("at most {} MiB", most.0));
        return Err(SnapshotError::Other(format!(
            "its machine can have {} of memory, and this one {}",
            words(state.max_memory),
            words(ram.most)
        )));
    }
    Ok(())
}

/// Makes processors and board what they were when the snapshot was taken, and tells the guest when it is another machine.
fn restore(
    system: &Kvm,
    vm: &VmFd,
    bus: &Bus,
    layout: Layout,
    state: &MachineState,
    life: Life,
) -> Result<(Vec<VcpuFd>, CpuId), BuildError> {
    snapshot::vcpu::check(system)?;
    let cpuid = CpuId::from_entries(&state.cpus.cpuid)
        .map_err(|_| SnapshotError::Other("it has more CPUID entries than KVM takes".into()))?;
    let supported = cpuid::shared(system, layout, CpuModel::Host)?;
    if let Some(lack) = cpuid::lacking(&cpuid, &supported) {
        return Err(SnapshotError::Processor(lack).into());
    }
    let age = match life {
        Life::Another => state.clock.age(),
        // By this host's clock alone: that of the other may be wrong.
        Life::Same { stopped } => stopped.elapsed(),
    };
    let mut vcpus = Vec::with_capacity(state.cpus.vcpus.len());
    for (index, saved) in (0..).zip(&state.cpus.vcpus) {
        let vcpu = new_vcpu(vm, &cpuid, layout, index)?;
        let khz = state.cpus.tsc_khz;
        if khz != 0 && vcpu.get_tsc_khz().is_ok_and(|here| here != khz) {
            // The guest has measured the other frequency.
            vcpu.set_tsc_khz(khz).map_err(kvm("run the time stamp counter at the snapshot's frequency"))?;
        }
        vcpus.push(vcpu);
        if let Some(vcpu) = vcpus.last() {
            saved.restore(vcpu, age, khz)?;
        }
    }
    state.clock.restore(vm, age)?;
    let board = &state.board;
    bus.pci.set_address(board.pci_address);
    bus.ports.power.restore(&board.power);
    if let (Some(watchdog), Some(saved)) = (&bus.ports.watchdog, &board.watchdog) {
        watchdog.restore(saved);
    }
    if let (Some(processors), Some(saved)) = (&bus.ports.processors, &board.processors) {
        processors.restore(saved);
    }
    bus.ioapic.restore(&board.ioapic);
    match life {
        Life::Another => bus.ports.power.new_generation(),
        Life::Same { .. } => {}
    }
    if state.panicked {
        bus.ports.signals().panic();
    }
    Ok((vcpus, cpuid))
}

impl Built {
    /// Devices by slot.
    pub fn slots(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Memory that can be plugged in and out.
    #[must_use]
    pub fn pluggable(&self) -> Option<Pluggable> {
        self.pluggable.clone()
    }

    /// Starts the vCPU threads, each confined by `confine`; the machine is paused.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self, confine: fn() -> std::io::Result<()>) -> Result<Machine, BuildError> {
        let absent = self.bus.ports.processors.as_ref().map_or(0, |processors| !processors.there());
        let vcpus = Vcpus::start(self.vcpus, absent, &self.bus, &self.signals, confine)
            .map_err(|source| BuildError::Host { what: "start a vCPU thread", source })?;
        let Self { slots, bus, signals, kept, .. } = self;
        Ok(Machine { vcpus, slots, bus, signals, running: false, kept })
    }
}

impl Machine {
    /// Number of vCPUs that there can be.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus.count()
    }

    /// Number of vCPUs that are plugged in.
    #[must_use]
    pub fn plugged_vcpus(&self) -> u32 {
        let processors = self.bus.ports.processors.as_ref();
        processors.map_or(self.vcpus(), |processors| processors.there().count_ones())
    }

    /// Plugs vCPUs in until there are so many, or asks the guest for those above. Answers whether this machine can.
    pub fn plug_vcpus(&self, count: u32) -> bool {
        let Some(processors) = &self.bus.ports.processors else { return false };
        processors.want(count);
        let there = processors.there();
        let bit = |index: u32| 1u64.checked_shl(index).unwrap_or(0);
        let have = there.count_ones();
        let missing = count.saturating_sub(have).try_into().unwrap_or(usize::MAX);
        let absent = (0..self.vcpus()).filter(|index| there & bit(*index) == 0);
        let new = absent.take(missing).fold(0, |set, index| set | bit(index));
        if new != 0 {
            self.vcpus.set_absent(!(there | new));
            processors.come(new);
        }
        let too_many = have.saturating_sub(count).try_into().unwrap_or(usize::MAX);
        let present = (1..self.vcpus()).rev().filter(|index| there & bit(*index) != 0);
        let back = present.take(too_many).fold(0, |set, index| set | bit(index));
        processors.ask_back(back);
        true
    }

    /// The guest ejected vCPUs: they do nothing more, unless they are wanted again by now.
    pub fn settle_vcpus(&self) {
        let Some(processors) = &self.bus.ports.processors else { return };
        let there = processors.there();
        self.vcpus.set_absent(!there);
        if there.count_ones() < processors.wanted() {
            self.plug_vcpus(processors.wanted());
        }
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
            if let Some(watchdog) = &self.bus.ports.watchdog {
                watchdog.resume();
            }
            self.vcpus.resume();
            self.running = true;
        }
    }

    /// Stops vCPUs and devices; nothing touches guest memory when it returns. Harmless when paused.
    pub fn pause(&mut self) {
        if self.running {
            self.vcpus.pause();
            if let Some(watchdog) = &self.bus.ports.watchdog {
                watchdog.pause();
            }
            self.slots.pause();
            self.running = false;
        }
    }

    /// What a transfer's thread needs of the machine, the log included: [`Machine::keep_log`] brings it back.
    pub fn lend(&mut self) -> (Arc<VmFd>, Arc<Memory>, Option<Log>) {
        (self.kept.vm.clone(), self.kept.memory.clone(), self.kept.log.take())
    }

    /// Keeps the log of what the guest writes for the next snapshot.
    pub fn keep_log(&mut self, log: Option<Log>) {
        self.kept.log = log;
    }

    /// What another monitor must know before the machine can go there.
    #[must_use]
    pub fn describe(&self) -> Description {
        Description {
            vcpus: self.vcpus(),
            memory: self.kept.size,
            cpuid: self.kept.cpuid.as_slice().to_vec(),
            tsc_khz: self.kept.tsc_khz,
            roles: self.slots.roles(),
        }
    }

    /// Whether memory can be plugged in.
    #[must_use]
    pub fn can_grow(&self) -> bool {
        self.kept.most.is_some()
    }

    /// Takes so many percent of its time from the guest; to be called again and again.
    pub fn slow_down(&self, percent: u8) {
        self.vcpus.slow_down(percent);
    }

    /// The state of the machine, which is paused by this and stays so.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn save(&mut self) -> Result<MachineState, SnapshotError> {
        self.pause();
        // What the guest asked for before it stopped: ejected devices are gone, others are started by the restored machine or ours.
        let (devices, ejected) = self.signals.take();
        // The driver still has to hear of an end that came with them.
        self.signals.wake();
        let _ = self.slots.settle(devices);
        self.slots.eject(ejected);
        if self.signals.ended() {
            return Err(SnapshotError::Ended);
        }
        if let Some(why) = self.slots.unsaved(false) {
            return Err(SnapshotError::Unsaved(why));
        }
        let saver = snapshot::vcpu::Saver::new(&self.kept.system)?;
        let vcpus = self.vcpus.parked().map(|vcpu| saver.save(&vcpu)).collect::<Result<_, _>>()?;
        Ok(MachineState {
            memory: self.kept.size,
            max_memory: self.kept.most,
            cpus: CpusState {
                cpuid: self.kept.cpuid.as_slice().to_vec(),
                topology: self.kept.topology,
                tsc_khz: self.kept.tsc_khz,
                vcpus,
            },
            clock: ClockState::save(&self.kept.vm)?,
            board: BoardState {
                ioapic: self.bus.ioapic.save(),
                serial: self.bus.ports.save_serial(),
                power: self.bus.ports.power.save(),
                pci_address: self.bus.pci.address(),
                watchdog: self.bus.ports.watchdog.as_ref().map(Watchdog::save),
                processors: self.bus.ports.processors.as_ref().map(Processors::save),
            },
            slots: self.slots.save(),
            panicked: self.signals.panicked(),
        })
    }

    /// When the watchdog bites, unless the guest calls before.
    #[must_use]
    pub fn watchdog_deadline(&self) -> Option<Instant> {
        self.bus.ports.watchdog.as_ref()?.deadline()
    }

    /// What happens when it does.
    #[must_use]
    pub fn watchdog_action(&self) -> WatchdogAction {
        self.bus.ports.watchdog.as_ref().map_or(WatchdogAction::End, Watchdog::action)
    }

    /// Lets the watchdog wait anew.
    pub fn rewind_watchdog(&self) {
        if let Some(watchdog) = &self.bus.ports.watchdog {
            watchdog.rewind();
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
