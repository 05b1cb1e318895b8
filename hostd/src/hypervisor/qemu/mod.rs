//! QEMU's software emulation, for hosts whose KVM is missing or emulated.
//!
//! QEMU runs as the server's own user without privilege, without network, under its own seccomp filter, and gets
//! monitor, console, disks, taps and kernel as descriptors. Devices sit on hot-pluggable PCIe root ports; port N has
//! descriptor set N, block node `bN` or network backend `nN`, so what belongs together is found again after a restart
//! of `hostd` by asking QEMU alone.
//!
//! A guest that powers off or resets leaves QEMU standing still (`-action`), so its end is never missed.

mod args;
mod machine;
mod qmp;

use super::{Adopted, Hypervisor, Kind, Machine, Plan, Seat, place};
use crate::cgroup::Limits;
use crate::host::find_program;
use crate::process::{self, Launch, Process};
use crate::resources::Resources;
use futures::FutureExt;
use futures::future::BoxFuture;
use machine::QemuMachine;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use wire::Refused;
use wire::host::Firmware;
use wire::ids::PortId;

/// Descriptor set of the console log; disks have the numbers of their root ports.
const CONSOLE_SET: u32 = 1000;
/// Descriptor set of UEFI firmware; that of its variables is the next.
const UEFI_SET: usize = 1001;
/// The balloon's device.
const BALLOON: &str = "balloon";
/// The monitor's socket in the run directory.
const MONITOR: &str = "monitor.sock";

fn port_name(port: usize) -> String {
    format!("p{port}")
}

fn disk_node(port: usize) -> String {
    format!("b{port}")
}

fn nic_node(port: usize) -> String {
    format!("n{port}")
}

fn disk_device(key: &str) -> String {
    format!("disk-{key}")
}

fn nic_device(port: PortId) -> String {
    format!("nic-{port}")
}

/// The hypervisor.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    resources: Resources,
}

impl Qemu {
    /// One that runs this program.
    #[must_use]
    pub fn new(program: PathBuf, resources: Resources) -> Self {
        Self { program, resources }
    }
}

impl Hypervisor for Qemu {
    fn kind(&self) -> Kind {
        Kind::Qemu
    }

    fn start(&self, plan: Plan) -> BoxFuture<'_, Result<Box<dyn Machine>, Refused>> {
        async move {
            let (program, resources) = (self.program.clone(), self.resources.clone());
            let (seat, limited) = (plan.seat.clone(), plan.spec.disks.clone());
            let handle = tokio::runtime::Handle::current();
            let process = tokio::task::spawn_blocking(move || {
                // The process handle registers with the runtime.
                let _inside = handle.enter();
                spawn(&program, &resources, &plan)
            })
            .await
            .map_err(|error| Refused::internal(error.to_string()))??;
            crate::fault::point("spawned");
            let machine = QemuMachine::new(seat, process, self.resources.clone());
            let ready = async {
                machine.connect().await.map_err(Refused::from)?;
                machine.limit(&limited).await
            };
            match ready.await {
                Ok(()) => Ok(Box::new(machine) as Box<dyn Machine>),
                Err(error) => {
                    machine.kill().await;
                    let words = place::last_words(machine.seat());
                    let said = if words.is_empty() { error.to_string() } else { words };
                    Err(Refused::internal(format!("QEMU did not start: {said}")))
                }
            }
        }
        .boxed()
    }

    fn adopt(&self, seat: Seat, pid: Option<i32>) -> BoxFuture<'_, Result<Adopted, Refused>> {
        async move {
            let Some(pid) = pid else { return Ok(Adopted::Gone) };
            let process =
                Process::adopt(pid, &seat.owner, seat.id).map_err(place::trouble("take over QEMU"))?;
            Ok(match process {
                Some(process) => {
                    Adopted::Machine(Box::new(QemuMachine::new(seat, process, self.resources.clone())))
                }
                None => Adopted::Gone,
            })
        }
        .boxed()
    }
}

/// Opens everything and starts the process. All that was opened here is closed on return; QEMU keeps its own.
fn spawn(program: &std::path::Path, resources: &Resources, plan: &Plan) -> Result<Process, Refused> {
    if plan.restore.is_some() {
        return Err(Refused::invalid("QEMU cannot go on from what our own monitor suspended")
            .remedy("run the host with hypervisor = \"vmm\", or reboot the server hard: it starts anew"));
    }
    let program = find_program(program).ok_or_else(|| {
        Refused::unavailable(format!("{} is not installed", program.display()))
            .remedy("install the package qemu-system-x86")
    })?;
    let seat = &plan.seat;
    let log = place::prepare(seat).map_err(place::trouble("prepare the server's directories"))?;
    let console = place::console_to_append(seat).map_err(place::trouble("open the console log"))?;
    let monitor = listen(seat).map_err(place::trouble("make the monitor's socket"))?;
    let disks = plan.spec.disks.iter().map(|disk| resources.disk(disk)).collect::<Result<Vec<File>, _>>()?;
    let (boot, uefi) = match plan.spec.hardware.firmware {
        Firmware::Direct => (Some(resources.boot(&plan.spec, &disks, seat.uid)?), None),
        Firmware::Uefi => (None, Some(resources.uefi(&seat.state)?)),
    };
    let taps =
        plan.spec.nics.iter().map(|nic| resources.tap(nic.port)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let numbers = args::Numbers {
        monitor: monitor.as_raw_fd(),
        console: console.as_raw_fd(),
        kernel: boot.as_ref().map(|boot| boot.kernel.as_raw_fd()),
        uefi: uefi.as_ref().map(|files| files.each_ref().map(AsRawFd::as_raw_fd)),
        initrd: boot.as_ref().and_then(|boot| Some(boot.initrd.as_ref()?.as_raw_fd())),
        disks: disks.iter().map(AsRawFd::as_raw_fd).collect(),
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let mut inherit = vec![numbers.monitor, numbers.console];
    inherit.extend(numbers.kernel.iter().chain(numbers.uefi.iter().flatten()));
    inherit.extend(numbers.initrd.iter().chain(&numbers.disks).chain(&numbers.taps));
    let limits = Limits { vcpus: plan.spec.vcpus, memory: None, tasks: 256 + plan.spec.vcpus };
    let cgroup = place::cgroup(seat, limits);
    process::launch(Launch {
        program: &program,
        arguments: args::arguments(plan, &numbers, boot.as_ref().map_or("", |boot| &boot.command_line)),
        owner: &seat.owner,
        server: seat.id,
        inherit,
        user: Some(seat.uid),
        unconfined: resources.qemu_unconfined,
        log,
        cgroup: cgroup.as_ref(),
    })
    .map_err(place::trouble("run QEMU"))
}

fn listen(seat: &Seat) -> std::io::Result<UnixListener> {
    place::remove_socket(seat, MONITOR)?;
    place::with_short_path(seat, MONITOR, |path| UnixListener::bind(path))
}
