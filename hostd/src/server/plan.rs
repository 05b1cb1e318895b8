//! What to do next about one server: a pure function of what is wanted and what is, asked again after every step.
//!
//! ```text
//!              Start                      guest or host ends it
//!   Down(Off) --------> Up(Running) ---------------------------------> Down(Guest | Crashed | Restart)
//!       ^                 |    ^  Press, then Kill after the grace         |
//!       |   Kill (wanted  |    | Resume / Pause                            | Restart starts by itself,
//!       +------- Off) ----+    +--> Up(Paused)                             | the others at the next generation
//! ```
//!
//! A guest that shuts itself down while `On` is wanted stays down ([`Down::Guest`]): its owner did that. Any newer
//! generation with [`Power::On`], and any higher count of reboots, starts it again.

use super::record::Down;
use super::wanted::Wanted;
use crate::hypervisor::{Control, DiskNow, End, How, Life, Status};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wire::Generation;
use wire::host::{Bite, DiskSpec, NicSpec, Power, PowerNow};
use wire::ids::PortId;
use wire::machine::NicLimits;

/// How often a guest that does not follow is asked again, to power off or to give a device back: one that is still
/// booting hears nothing.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// All that the decision depends on.
#[derive(Debug)]
pub struct View<'a> {
    /// What should be.
    pub wanted: &'a Wanted,
    /// What is.
    pub now: &'a Now,
    /// Latest generation that was reached or failed.
    pub settled: Generation,
    /// The generation that failed and is not tried again.
    pub failed: Option<Generation>,
    /// Reboots done of those asked for.
    pub reboots: u64,
    /// A power button press whose effect is awaited.
    pub stop: Option<Stop>,
    /// Devices that the guest was asked to give back.
    pub asked: &'a BTreeMap<Device, Asked>,
    /// What is known of the plugged disks, to see that one's file was exchanged.
    pub plugged: &'a BTreeMap<String, DiskSpec>,
    /// Limits of the plugged network interfaces, as they were set; what is not there has none.
    pub carried: &'a BTreeMap<PortId, NicLimits>,
    /// Sizes of the wanted disks' files in bytes, where known.
    pub sizes: &'a BTreeMap<String, u64>,
    /// A restart is not tried before this.
    pub not_before: Option<Instant>,
    /// How long a guest may take to give a device back.
    pub unplug_within: Duration,
}

/// What a machine is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Now {
    /// There is none.
    Down(Down),
    /// There is one, and this is its status (never [`Life::Ended`]).
    Up(Status),
    /// There is one, but it does not answer.
    Mute,
}

/// A power button press whose effect is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// When patience ends.
    pub until: Instant,
    /// When the button was last pressed.
    pub last: Instant,
}

/// A device in a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// A disk by its key.
    Disk(String),
    /// A network interface by its port.
    Nic(PortId),
}

/// A device that the guest was asked to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// When first.
    pub first: Instant,
    /// When last.
    pub last: Instant,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Start the machine.
    Start,
    /// Press the power button and wait until then.
    Press(Instant),
    /// Pull the plug; the machine is to be started again when this is set.
    Kill {
        /// Start it again after that.
        restart: bool,
    },
    /// Do this to the machine.
    Control(Control),
    /// Write its memory into a file, and end it.
    Suspend,
    /// The wanted state is reached.
    Settle,
    /// The wanted state cannot be reached, for this reason.
    Fail(String),
    /// Remove all traces of the server.
    Remove,
    /// Nothing, until something changes or until then.
    Wait(Option<Instant>),
}

/// Decides the next step.
#[must_use]
pub fn next(view: &View<'_>, now: Instant) -> Act {
    if view.wanted.forget {
        return match view.now {
            Now::Down(_) => Act::Remove,
            Now::Up(_) | Now::Mute => Act::Kill { restart: false },
        };
    }
    match view.wanted.power {
        Power::Off { grace_secs } => match view.now {
            // Its memory is not wanted any longer.
            Now::Down(Down::Suspended) => Act::Kill { restart: false },
            Now::Down(_) => rest(view),
            Now::Mute => Act::Kill { restart: false },
            Now::Up(status) => end_softly(view, status, grace_secs, false, now),
        },
        Power::On | Power::Paused | Power::Suspended => match view.now {
            Now::Down(Down::Suspended) if view.wanted.power == Power::Suspended && !rebooting(view) => {
                rest(view)
            }
            // There is nothing to suspend of a machine that is off.
            Now::Down(Down::Off | Down::Guest | Down::Crashed { .. })
                if view.wanted.power == Power::Suspended && !rebooting(view) =>
            {
                rest(view)
            }
            Now::Down(down) => when_down(view, down, now),
            Now::Mute => Act::Wait(Some(now + Duration::from_secs(2))),
            Now::Up(status) if rebooting(view) => {
                end_softly(view, status, view.wanted.reboots.grace_secs, true, now)
            }
            Now::Up(status) => when_up(view, status, now),
        },
    }
}

fn rebooting(view: &View<'_>) -> bool {
    view.wanted.reboots.count > view.reboots
}

fn end_softly(view: &View<'_>, status: &Status, grace_secs: u32, restart: bool, now: Instant) -> Act {
    if grace_secs == 0 {
        return Act::Kill { restart };
    }
    match view.stop {
        Some(stop) if now >= stop.until => Act::Kill { restart },
        Some(stop) if now >= stop.last + ASK_AGAIN => Act::Press(stop.until),
        Some(stop) => Act::Wait(Some(stop.until.min(stop.last + ASK_AGAIN))),
        // A machine that is stopped in place cannot hear the button.
        None if status.life == Life::Paused => Act::Control(Control::Resume),
        None => Act::Press(now + Duration::from_secs(u64::from(grace_secs))),
    }
}

fn when_down(view: &View<'_>, down: &Down, now: Instant) -> Act {
    let asked = view.settled < view.wanted.generation || view.wanted.reboots.count > view.reboots;
    let tried = view.failed == Some(view.wanted.generation);
    match down {
        Down::Restart => match view.not_before {
            Some(at) if at > now => Act::Wait(Some(at)),
            Some(_) | None => Act::Start,
        },
        Down::Off | Down::Guest | Down::Suspended | Down::Crashed { .. } if asked && !tried => Act::Start,
        Down::Off | Down::Guest | Down::Suspended | Down::Crashed { .. } => rest(view),
    }
}

fn rest(view: &View<'_>) -> Act {
    if view.settled < view.wanted.generation && view.failed != Some(view.wanted.generation) {
        Act::Settle
    } else {
        Act::Wait(None)
    }
}

fn when_up(view: &View<'_>, status: &Status, now: Instant) -> Act {
    let wants_pause = view.wanted.power == Power::Paused;
    if view.wanted.power == Power::On && status.life == Life::Paused {
        if status.bitten && view.settled >= view.wanted.generation {
            // Its watchdog stopped it, as was asked for: it goes on when its owner says so.
            return Act::Wait(None);
        }
        return Act::Control(Control::Resume);
    }
    if view.failed == Some(view.wanted.generation) {
        return Act::Wait(None);
    }
    if let Some(act) = devices(view, status, now) {
        return act;
    }
    if view.wanted.power == Power::Suspended {
        return Act::Suspend;
    }
    if wants_pause && status.life == Life::Running {
        return Act::Control(Control::Pause);
    }
    rest(view)
}

/// The next difference of devices: what must go first, then what must come, in the order of the specification.
fn devices(view: &View<'_>, status: &Status, now: Instant) -> Option<Act> {
    let spec = &view.wanted.spec;
    let unwanted_disks = status
        .disks
        .iter()
        .filter(|disk| !spec.disks.iter().any(|wanted| is_same(wanted, disk, view)))
        .map(|disk| Device::Disk(disk.key.clone()));
    let unwanted_nics = status
        .nics
        .iter()
        .filter(|port| !spec.nics.iter().any(|wanted| wanted.port == **port))
        .map(|port| Device::Nic(*port));
    let mut again: Option<Instant> = None;
    for device in unwanted_disks.chain(unwanted_nics) {
        match view.asked.get(&device) {
            None => return Some(Act::Control(give_back(&device))),
            Some(asked) if now >= asked.first + view.unplug_within => {
                return Some(Act::Fail(kept(&device, view, status)));
            }
            Some(asked) if now >= asked.last + ASK_AGAIN => return Some(Act::Control(give_back(&device))),
            Some(asked) => {
                let at = (asked.last + ASK_AGAIN).min(asked.first + view.unplug_within);
                again = Some(again.map_or(at, |other| other.min(at)));
            }
        }
    }
    if let Some(at) = again {
        return Some(Act::Wait(Some(at)));
    }
    let missing_disk = |disk: &&DiskSpec| !status.disks.iter().any(|now| now.key == disk.key);
    let missing_nic = |nic: &&NicSpec| !status.nics.contains(&nic.port);
    if let Some(disk) = spec.disks.iter().find(missing_disk) {
        return Some(Act::Control(Control::PlugDisk(disk.clone())));
    }
    if let Some(nic) = spec.nics.iter().find(missing_nic) {
        return Some(Act::Control(Control::PlugNic(nic.clone())));
    }
    if let Some(act) = limits(view, status) {
        return Some(act);
    }
    if view.settled < view.wanted.generation {
        return status.disks.iter().find_map(|disk| {
            let bytes = *view.sizes.get(&disk.key)?;
            (bytes > disk.bytes?).then(|| Act::Control(Control::ResizeDisk(disk.key.clone(), bytes)))
        });
    }
    None
}

/// The next device whose limits are not those that are wanted.
fn limits(view: &View<'_>, status: &Status) -> Option<Act> {
    let spec = &view.wanted.spec;
    let disk = spec.disks.iter().find(|disk| {
        let plugged = view.plugged.get(&disk.key);
        plugged.is_some_and(|plugged| plugged.limits != disk.limits)
            && status.disks.iter().any(|now| now.key == disk.key)
    });
    if let Some(disk) = disk {
        return Some(Act::Control(Control::LimitDisk(disk.key.clone(), disk.limits)));
    }
    let nic = spec.nics.iter().find(|nic| {
        let carried = view.carried.get(&nic.port).copied().unwrap_or_default();
        carried != nic.limits && status.nics.contains(&nic.port)
    });
    nic.map(|nic| Act::Control(Control::LimitNic(nic.port, nic.limits)))
}

/// Whether the disk that is plugged in is the wanted one; its limits can change in place.
fn is_same(wanted: &DiskSpec, now: &DiskNow, view: &View<'_>) -> bool {
    let same = |plugged: &DiskSpec| DiskSpec { limits: wanted.limits, ..plugged.clone() } == *wanted;
    wanted.key == now.key && view.plugged.get(&now.key).is_none_or(same)
}

fn give_back(device: &Device) -> Control {
    match device {
        Device::Disk(key) => Control::UnplugDisk(key.clone()),
        Device::Nic(port) => Control::UnplugNic(*port),
    }
}

fn kept(device: &Device, view: &View<'_>, status: &Status) -> String {
    let name = match device {
        Device::Disk(key) => format!("disk {key}"),
        Device::Nic(port) => format!("the interface of port {port}"),
    };
    let hint = if status.life == Life::Paused {
        "the server is paused: resume it first"
    } else {
        "see whether the guest has finished booting and supports PCI hot-plug; stopping the server detaches it for certain"
    };
    format!("the guest did not give back {name} within {} s; {hint}", view.unplug_within.as_secs())
}

/// What a machine's end means.
#[must_use]
pub fn after_end(end: &End, wanted: &Wanted, stopping: bool, resets_in_a_row: usize) -> Down {
    if wanted.forget || matches!(wanted.power, Power::Off { .. }) {
        return Down::Off;
    }
    let crashed = |how: &str| Down::Crashed {
        fault: if end.detail.is_empty() { how.to_owned() } else { format!("{how}: {}", end.detail) },
    };
    match end.how {
        // The button was pressed on our behalf, for a reboot or for a power-off that is not wanted any more.
        How::PowerOff | How::PowerButton | How::Stopped if stopping => Down::Restart,
        How::PowerOff | How::PowerButton => Down::Guest,
        How::Reset => Down::Restart,
        // A guest that hangs is not started anew where its owner wants it off.
        How::Watchdog if wanted.spec.hardware.watchdog == Some(Bite::PowerOff) => Down::Guest,
        How::Watchdog => Down::Restart,
        How::TripleFault | How::Panicked if resets_in_a_row < TRIPLE_FAULTS => Down::Restart,
        How::Panicked => {
            crashed("the guest's kernel keeps panicking soon after its start; its console log says why")
        }
        How::TripleFault => crashed("the guest's CPU keeps triple-faulting soon after its start"),
        How::Stopped => crashed("the machine was stopped by somebody else"),
        How::NotStarted => crashed("the machine monitor refused to start"),
        How::Failed => crashed("the machine monitor ended unexpectedly"),
    }
}

/// Quick triple faults in a row before a guest counts as crashed.
pub const TRIPLE_FAULTS: usize = 5;

/// How long the next start waits after `resets` quick resets in a row, so that a guest that resets in a loop does not
/// keep the host busy.
#[must_use]
pub fn restart_delay(resets: usize) -> Duration {
    match u32::try_from(resets).unwrap_or(u32::MAX) {
        0..3 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 3).min(5)),
    }
}

/// The power that is shown.
#[must_use]
pub fn power_now(now: &Now) -> PowerNow {
    match now {
        Now::Up(status) => match status.life {
            Life::Running => PowerNow::Running,
            Life::Paused => PowerNow::Paused,
            Life::Ended(_) => PowerNow::Off,
        },
        Now::Mute => PowerNow::Running,
        // A guest in the middle of its restart is up for its user.
        Now::Down(Down::Restart) => PowerNow::Running,
        Now::Down(Down::Off | Down::Guest) => PowerNow::Off,
        Now::Down(Down::Suspended) => PowerNow::Suspended,
        Now::Down(Down::Crashed { .. }) => PowerNow::Crashed,
    }
}
