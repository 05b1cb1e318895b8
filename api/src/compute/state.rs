//! What users see of a server's state: computed from its life, the task that works on it, and the power last seen.
//! Nothing here is ever stored.

use super::records::servers::{Lifecycle, Seen, Server};
use super::records::shape::Mode;
use super::tasks::{Act, What};
use base::task::TaskView;
use serde::Deserialize;

/// Nova's `vm_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vm {
    /// Being created.
    Building,
    /// Runs.
    Active,
    /// Paused.
    Paused,
    /// Its memory in a file of the host.
    Suspended,
    /// Off.
    Stopped,
    /// Resized, and neither confirmed nor reverted.
    Resized,
    /// Runs from another disk.
    Rescued,
    /// Shelved, with nothing on a host.
    Offloaded,
    /// Broken.
    Error,
}

impl Vm {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Resized => "resized",
            Self::Rescued => "rescued",
            Self::Offloaded => "shelved_offloaded",
            Self::Error => "error",
        }
    }
}

/// A server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// `OS-EXT-STS:vm_state`
    pub vm: Vm,
    /// `OS-EXT-STS:task_state`
    pub task: Option<&'static str>,
    /// `OS-EXT-STS:power_state`
    pub power: u8,
    /// `status`
    pub status: &'static str,
}

/// The parts of a saved step that matter here.
#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    step: String,
    act: Option<Act>,
    plan: Option<Head>,
    shelf: Option<Shelved>,
}

/// The part of a shelf that matters here.
#[derive(Clone, Copy, Deserialize)]
struct Shelved {
    ran: bool,
}

/// The parts of a plan that matter here.
#[derive(Clone, Copy, Deserialize)]
struct Head {
    what: What,
    ran: bool,
}

/// The power act of a live task, if it is one.
fn act(task: &TaskView) -> Option<Act> {
    Step::deserialize(&task.step).ok()?.act.filter(|_| task.kind == "compute.power-server")
}

/// What a live task makes of a server, if it does.
fn remade(task: &TaskView) -> Option<Head> {
    Step::deserialize(&task.step).ok()?.plan.filter(|_| task.kind == "compute.remake-server")
}

fn remaking(what: What, step: &str) -> &'static str {
    match (what, step) {
        (What::Rebuild, "halt") => "rebuilding",
        (What::Rebuild, "make") => "rebuild_block_device_mapping",
        (What::Rebuild, _) => "rebuild_spawning",
        (What::Resize, "halt") => "resize_migrating",
        (What::Resize, "make") => "resize_migrated",
        (What::Resize, _) => "resize_finish",
        (What::Revert, _) => "resize_reverting",
        (What::Rescue, _) => "rescuing",
        (What::Unrescue, _) => "unrescuing",
    }
}

/// `OS-EXT-STS:task_state` while this task works on a server.
#[must_use]
pub fn task_state(task: &TaskView) -> Option<&'static str> {
    if task.state != "live" {
        return None;
    }
    let step = Step::deserialize(&task.step).map(|step| step.step).unwrap_or_default();
    match task.kind.as_str() {
        "compute.create-server" => Some(match step.as_str() {
            "place" => "scheduling",
            "network" => "networking",
            "disks" | "volumes" => "block_device_mapping",
            _ => "spawning",
        }),
        "compute.delete-server" => Some("deleting"),
        "compute.snapshot-server" => Some(if step == "copy" { "image_snapshot" } else { "image_uploading" }),
        "compute.remake-server" => remade(task).map(|head| remaking(head.what, &step)),
        "compute.shelve-server" => Some(match step.as_str() {
            "halt" => "shelving",
            "copy" => "shelving_image_pending_upload",
            "fill" => "shelving_image_uploading",
            _ => "shelving_offloading",
        }),
        "compute.unshelve-server" => Some(if step == "place" { "unshelving" } else { "spawning" }),
        "compute.confirm-resize" => Some("resize_confirming"),
        _ => act(task).map(|act| match act {
            Act::Start => "powering-on",
            Act::Stop => "powering-off",
            Act::RebootSoft => "rebooting",
            Act::RebootHard => "rebooting_hard",
            Act::Pause => "pausing",
            Act::Unpause => "unpausing",
            Act::Suspend => "suspending",
            Act::Resume => "resuming",
        }),
    }
}

/// What a server without anything put aside is by its power.
fn powered(observed: Seen) -> Vm {
    match observed {
        Seen::Running | Seen::Nothing => Vm::Active,
        Seen::Paused => Vm::Paused,
        Seen::Suspended => Vm::Suspended,
        Seen::Off | Seen::Crashed => Vm::Stopped,
    }
}

/// The state of a server, given the live task whose subject it is.
#[must_use]
pub fn of(server: &Server, live: Option<&TaskView>) -> State {
    let seen = match (server.mode, server.observed) {
        (Mode::Resized, _) => Vm::Resized,
        (Mode::Rescued, _) => Vm::Rescued,
        (Mode::Offloaded, _) => Vm::Offloaded,
        (Mode::Plain, observed) => powered(observed),
    };
    let remade = live.and_then(remade).map(|head| match (head.what, head.ran) {
        (What::Revert, _) => Vm::Resized,
        (What::Unrescue, _) => Vm::Rescued,
        (What::Rebuild | What::Resize | What::Rescue, true) => Vm::Active,
        (What::Rebuild | What::Resize | What::Rescue, false) => Vm::Stopped,
    });
    // While power changes, the state is still the one that it came from: it turns when the work is done, so that
    // whoever waited for it may act at once.
    let before = live.and_then(act).map(|act| match act {
        Act::Start => Vm::Stopped,
        Act::Stop | Act::RebootSoft | Act::RebootHard | Act::Pause | Act::Suspend => Vm::Active,
        Act::Resume => Vm::Suspended,
        Act::Unpause => Vm::Paused,
    });
    let shelving = live.and_then(|task| match task.kind.as_str() {
        "compute.unshelve-server" => Some(Vm::Offloaded),
        "compute.shelve-server" => {
            let ran = Step::deserialize(&task.step).ok()?.shelf?.ran;
            Some(if ran { Vm::Active } else { Vm::Stopped })
        }
        _ => None,
    });
    let task = live.and_then(task_state);
    let vm = match server.lifecycle {
        Lifecycle::Building => Vm::Building,
        Lifecycle::Failed => Vm::Error,
        Lifecycle::Deleting if live.is_none() && server.body.fault.is_some() => Vm::Error,
        Lifecycle::Deleting if server.launched_at.is_none() => Vm::Building,
        Lifecycle::Ready | Lifecycle::Deleting => before.or(remade).or(shelving).unwrap_or(seen),
    };
    let power = match server.observed {
        Seen::Nothing => 0,
        Seen::Running => 1,
        Seen::Paused => 3,
        // Upstream says the same of a machine that is off and of one whose memory is in a file.
        Seen::Off | Seen::Suspended => 4,
        Seen::Crashed => 6,
    };
    let status = match (vm, task) {
        (Vm::Active, Some("rebooting")) => "REBOOT",
        (Vm::Active, Some("rebooting_hard")) => "HARD_REBOOT",
        (_, Some("rebuilding" | "rebuild_block_device_mapping" | "rebuild_spawning")) => "REBUILD",
        (_, Some("resize_migrating" | "resize_migrated" | "resize_finish")) => "RESIZE",
        (_, Some("resize_reverting")) => "REVERT_RESIZE",
        (_, Some("resize_confirming")) => "VERIFY_RESIZE",
        (Vm::Resized, _) => "VERIFY_RESIZE",
        (Vm::Rescued, _) => "RESCUE",
        (Vm::Offloaded, _) => "SHELVED_OFFLOADED",
        (Vm::Building, _) => "BUILD",
        (Vm::Active, _) => "ACTIVE",
        (Vm::Paused, _) => "PAUSED",
        (Vm::Suspended, _) => "SUSPENDED",
        (Vm::Stopped, _) => "SHUTOFF",
        (Vm::Error, _) => "ERROR",
    };
    State { vm, task, power, status }
}
