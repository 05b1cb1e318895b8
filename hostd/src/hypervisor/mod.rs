//! What runs machines: one seam, three ways.
//!
//! | kind | what it is | chosen |
//! |---|---|---|
//! | [`vmm`] | our monitor on KVM | when the probe finds hardware virtualisation |
//! | [`qemu`] | QEMU's software emulation | when it does not |
//! | [`simulated`] | no guest | only by name |
//!
//! A machine is level-triggered: [`Machine::status`] tells how it is, [`Machine::changed`] only that it may have
//! changed. What a hypervisor needs of the world (disks, taps, the guest's kernel) it takes from [`crate::resources`].

mod figures;
mod place;
pub mod qemu;
pub mod simulated;
pub mod vmm;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use wire::host::{DiskSpec, Figures, NicSpec, ServerSpec};
use wire::ids::{PortId, ServerId};
use wire::machine::{EndReason, Limits, MachineEnd, NicLimits};
use wire::{MiB, Refused};

/// The kinds of hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Our monitor on KVM.
    Vmm,
    /// QEMU's software emulation.
    Qemu,
    /// No guest.
    Simulated,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "vmm",
            Self::Qemu => "qemu",
            Self::Simulated => "simulated",
        })
    }
}

/// Where a server lives on this host: what stays the same from start to start of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Which server.
    pub id: ServerId,
    /// State directory of this `hostd`: the mark of its processes.
    pub owner: PathBuf,
    /// The server's directory for what lasts: console log, monitor's log.
    pub state: PathBuf,
    /// The server's directory for sockets.
    pub run: PathBuf,
    /// User and group id of its processes.
    pub uid: u32,
    /// Control group below which its own is.
    pub cgroup_parent: String,
    /// Limit of the console log in bytes.
    pub console_limit: u64,
}

/// A machine to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it lives.
    pub seat: Seat,
    /// What it is made of.
    pub spec: ServerSpec,
    /// Stopped in place before the first guest instruction, or soon after where a hypervisor cannot.
    pub paused: bool,
    /// Goes on from what [`Machine::suspend`] left in this directory, instead of booting.
    pub restore: Option<PathBuf>,
}

/// A way to run machines.
pub trait Hypervisor: Send + Sync {
    /// Which kind it is.
    fn kind(&self) -> Kind;

    /// Starts a machine; answers when it can be controlled. A failure leaves no process.
    fn start(&self, plan: Plan) -> BoxFuture<'_, Result<Box<dyn Machine>, Refused>>;

    /// Takes over a machine that an earlier `hostd` started. `pid` is the process that carries the server's mark.
    fn adopt(&self, seat: Seat, pid: Option<i32>) -> BoxFuture<'_, Result<Adopted, Refused>>;
}

/// What was found of a machine.
pub enum Adopted {
    /// It is there (it may have ended but not been cleaned away: its status tells).
    Machine(Box<dyn Machine>),
    /// It ended, and left word how.
    Ended(End),
    /// Nothing.
    Gone,
}

/// One machine.
pub trait Machine: Send + Sync {
    /// How it is now.
    fn status(&self) -> BoxFuture<'_, Result<Status, Refused>>;

    /// Returns when the status may have changed since this handle's last [`Machine::status`]; may return early.
    fn changed(&self) -> BoxFuture<'_, ()>;

    /// Does one thing to it. Everything is harmless to repeat.
    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), Refused>>;

    /// Stops it in place and writes what it needs to go on into an empty directory, so that it lasts. Afterwards the
    /// machine is only to be killed; after a failure it stands still and may go on.
    /// `memory` is what the guest has.
    fn suspend<'a>(&'a self, into: &'a Path, memory: MiB) -> BoxFuture<'a, Result<(), Refused>>;

    /// What it used, moved and carried.
    fn figures(&self) -> BoxFuture<'_, Result<Figures, Refused>>;

    /// Ends it at once and returns when nothing of it runs any more. Harmless when it has ended.
    fn kill(&self) -> BoxFuture<'_, ()>;

    /// Housekeeping, every few seconds: bounds logs that the hypervisor does not bound by itself.
    fn tend(&self) {}
}

/// Something to do to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Stop it in place.
    Pause,
    /// Let it go on.
    Resume,
    /// Press the ACPI power button.
    PowerButton,
    /// Plug a disk in.
    PlugDisk(DiskSpec),
    /// Ask the guest to give a disk back.
    UnplugDisk(String),
    /// Plug a network interface in.
    PlugNic(NicSpec),
    /// Ask the guest to give a network interface back.
    UnplugNic(PortId),
    /// Tell the guest that the file of a disk has grown to so many bytes.
    ResizeDisk(String, u64),
    /// Change what a disk may move.
    LimitDisk(String, Limits),
    /// Change what a network interface may carry.
    LimitNic(PortId, NicLimits),
}

/// How a machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub life: Life,
    /// Disks plugged in, also those that the guest was asked to give back and has not.
    pub disks: Vec<DiskNow>,
    /// Network interfaces plugged in, likewise.
    pub nics: Vec<PortId>,
    /// The guest's kernel said that it panicked.
    pub panicked: bool,
    /// It stands still because its guest stopped calling the watchdog.
    pub bitten: bool,
}

/// A disk in a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskNow {
    /// Its key.
    pub key: String,
    /// Size in bytes that the guest sees; `None` when the hypervisor does not tell.
    pub bytes: Option<u64>,
}

/// What a machine does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Life {
    /// Executes.
    #[default]
    Running,
    /// Stopped in place.
    Paused,
    /// Has ended.
    Ended(End),
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The kind.
    pub how: How,
    /// More, for people.
    pub detail: String,
}

/// Kinds of end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The guest powered itself off.
    PowerOff,
    /// The guest powered itself off because the power button was pressed.
    PowerButton,
    /// The guest asked for a reset.
    Reset,
    /// The guest faulted while faulting; some guests reset so.
    TripleFault,
    /// The guest's kernel panicked and then reset.
    Panicked,
    /// The guest stopped calling its watchdog.
    Watchdog,
    /// `hostd` asked the monitor to end.
    Stopped,
    /// It never ran: the monitor refused its configuration.
    NotStarted,
    /// The monitor failed or was killed.
    Failed,
}

impl From<&End> for MachineEnd {
    fn from(end: &End) -> Self {
        let reason = match end.how {
            How::PowerOff => EndReason::PowerOff,
            How::PowerButton => EndReason::PowerButton,
            How::Reset => EndReason::Reset,
            How::TripleFault => EndReason::TripleFault,
            How::Panicked => EndReason::Panicked,
            How::Watchdog => EndReason::Watchdog,
            How::Stopped => EndReason::Stopped,
            How::NotStarted => EndReason::NotStarted,
            How::Failed => EndReason::Failed,
        };
        Self { reason, detail: end.detail.clone() }
    }
}
