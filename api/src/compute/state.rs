//! What users see of a server's state: computed from its life, the task that works on it, and the power last seen.
//! Nothing here is ever stored.

use super::records::servers::{Lifecycle, Seen, Server};
use super::tasks::Act;
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
    /// Off.
    Stopped,
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
            Self::Stopped => "stopped",
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
}

/// The power act of a live task, if it is one.
fn act(task: &TaskView) -> Option<Act> {
    Step::deserialize(&task.step).ok()?.act.filter(|_| task.kind == "compute.power-server")
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
        _ => act(task).map(|act| match act {
            Act::Start => "powering-on",
            Act::Stop => "powering-off",
            Act::RebootSoft => "rebooting",
            Act::RebootHard => "rebooting_hard",
            Act::Pause => "pausing",
            Act::Unpause => "unpausing",
        }),
    }
}

/// The state of a server, given the live task whose subject it is.
#[must_use]
pub fn of(server: &Server, live: Option<&TaskView>) -> State {
    let seen = match server.observed {
        Seen::Running | Seen::Nothing => Vm::Active,
        Seen::Paused => Vm::Paused,
        Seen::Off | Seen::Crashed => Vm::Stopped,
    };
    // While power changes, the state is still the one that it came from: it turns when the work is done, so that
    // whoever waited for it may act at once.
    let before = live.and_then(act).map(|act| match act {
        Act::Start => Vm::Stopped,
        Act::Stop | Act::RebootSoft | Act::RebootHard | Act::Pause => Vm::Active,
        Act::Unpause => Vm::Paused,
    });
    let task = live.and_then(task_state);
    let vm = match server.lifecycle {
        Lifecycle::Building => Vm::Building,
        Lifecycle::Failed => Vm::Error,
        Lifecycle::Deleting if live.is_none() && server.body.fault.is_some() => Vm::Error,
        Lifecycle::Deleting if server.launched_at.is_none() => Vm::Building,
        Lifecycle::Ready | Lifecycle::Deleting => before.unwrap_or(seen),
    };
    let power = match server.observed {
        Seen::Nothing => 0,
        Seen::Running => 1,
        Seen::Paused => 3,
        Seen::Off => 4,
        Seen::Crashed => 6,
    };
    let status = match (vm, task) {
        (Vm::Active, Some("rebooting")) => "REBOOT",
        (Vm::Active, Some("rebooting_hard")) => "HARD_REBOOT",
        (Vm::Building, _) => "BUILD",
        (Vm::Active, _) => "ACTIVE",
        (Vm::Paused, _) => "PAUSED",
        (Vm::Stopped, _) => "SHUTOFF",
        (Vm::Error, _) => "ERROR",
    };
    State { vm, task, power, status }
}
