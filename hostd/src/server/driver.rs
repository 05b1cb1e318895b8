//! The task that owns one server: looks, asks the plan, does one step, and again.

use super::plan::{self, Act, Asked, Device, Now, Stop, View};
use super::record::{Down, Record, Run, discard, suspended};
use super::wanted::Wanted;
use crate::hypervisor::{Adopted, Control, End, How, Hypervisor, Kind, Life, Machine, Plan, Seat};
use crate::{cgroup, durable, fault, process};
use base::CancellationToken;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use wire::host::{Boot, Figures, Observed, Power};
use wire::machine::MachineEnd;
use wire::{Generation, Refused, RefusedKind};

/// How often logs that the hypervisor does not bound are trimmed.
const TEND: Duration = Duration::from_secs(3);
/// How late a guest may follow the power button and still be taken to have followed it.
const LATE: Duration = Duration::from_secs(10);
/// A start that lasted longer than this is no part of a reset loop.
const QUICK: Duration = Duration::from_secs(20);

/// The hypervisors of this host, and which of them runs new machines.
#[derive(Clone)]
pub struct Fleet {
    /// All that this host may have machines of.
    pub all: Vec<Arc<dyn Hypervisor>>,
    /// The kind for new machines.
    pub chosen: Kind,
}

impl Fleet {
    fn of(&self, kind: Kind) -> Result<Arc<dyn Hypervisor>, Refused> {
        self.all
            .iter()
            .find(|hypervisor| hypervisor.kind() == kind)
            .cloned()
            .ok_or_else(|| Refused::internal(format!("this host has no hypervisor '{kind}'")))
    }
}

/// A request for the machine's figures.
pub type Ask = oneshot::Sender<Result<Figures, Refused>>;

/// The owner of one server.
pub struct Driver {
    seat: Seat,
    fleet: Fleet,
    wanted: watch::Receiver<Wanted>,
    observed: watch::Sender<Observed>,
    asks: mpsc::Receiver<Ask>,
    unplug_within: Duration,
    record: Record,
    machine: Option<Box<dyn Machine>>,
    kind: Kind,
    now: Now,
    stop: Option<Stop>,
    asked: BTreeMap<Device, Asked>,
    failed: Option<Generation>,
    started: Option<(Instant, Generation)>,
    quick_resets: usize,
    not_before: Option<Instant>,
    published: bool,
}

/// What a driver starts from.
pub struct Start {
    /// Where the server lives.
    pub seat: Seat,
    /// The hypervisors.
    pub fleet: Fleet,
    /// What should be.
    pub wanted: watch::Receiver<Wanted>,
    /// Where to tell what is.
    pub observed: watch::Sender<Observed>,
    /// Requests for figures.
    pub asks: mpsc::Receiver<Ask>,
    /// How long a guest may take to give a device back.
    pub unplug_within: Duration,
    /// Processes that carry this server's mark, the parent first.
    pub pids: Vec<i32>,
}

/// What is told of a server that nobody has looked at yet.
#[must_use]
pub fn unseen(id: wire::ids::ServerId, wanted: &Wanted, kind: Kind) -> Observed {
    Observed {
        id,
        wanted: wanted.generation,
        settled: Generation(0),
        power: wire::host::PowerNow::Off,
        reboots: 0,
        disks: Vec::new(),
        nics: Vec::new(),
        fault: None,
        hypervisor: kind.to_string(),
        panicked: false,
        last_end: None,
    }
}

/// Drives a server until it is forgotten (true) or the daemon ends (false).
pub async fn drive(start: Start, shutdown: CancellationToken) -> bool {
    let Start { seat, fleet, wanted, observed, asks, unplug_within, pids } = start;
    let kind = fleet.chosen;
    let mut driver = Driver {
        record: Record::new(process::boot_id()),
        seat,
        fleet,
        wanted,
        observed,
        asks,
        unplug_within,
        machine: None,
        kind,
        now: Now::Down(Down::Off),
        stop: None,
        asked: BTreeMap::new(),
        failed: None,
        started: None,
        quick_resets: 0,
        not_before: None,
        published: false,
    };
    while let Err(error) = driver.take_over(&pids).await {
        tracing::error!(server = %driver.seat.id, %error, "cannot take the server over, trying again");
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(Duration::from_secs(5)) => (),
        }
    }
    loop {
        driver.look().await;
        let (act, generation) = driver.decide();
        driver.publish();
        match act {
            Act::Remove => match driver.remove().await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::error!(server = %driver.seat.id, %error, "cannot remove the server, trying again");
                    if driver.wait(Some(Instant::now() + Duration::from_secs(2)), &shutdown).await {
                        return false;
                    }
                }
            },
            Act::Wait(until) => {
                if driver.wait(until, &shutdown).await {
                    return false;
                }
            }
            act => {
                if let Err(refused) = driver.act(act).await {
                    driver.fail(generation, &refused.to_string());
                }
            }
        }
    }
}

impl Driver {
    /// Finds out, at the start of the daemon, what became of the machine meanwhile.
    async fn take_over(&mut self, pids: &[i32]) -> Result<(), Refused> {
        self.failed = None;
        let here = process::boot_id();
        let Some(record) = Record::read(&self.seat).map_err(|error| self.disk_trouble(&error))? else {
            self.kill_strays(pids).await;
            return self.keep();
        };
        let same_boot = record.boot == here;
        self.record = Record { boot: here, ..record };
        let wanted = self.wanted.borrow().clone();
        if wanted.forget {
            self.kill_strays(pids).await;
            return Ok(());
        }
        match self.record.run.clone() {
            Run::Down(down) => {
                self.kill_strays(pids).await;
                // What could not be started may be startable now: whatever was missing may be back.
                let again = down == Down::Off && self.record.fault.is_some() && wants_to_run(&wanted);
                self.now = Now::Down(if again { Down::Restart } else { down });
            }
            // Nothing of the guest has run yet, whatever became of the machine: it goes on from what was suspended.
            Run::Starting { held: true, .. } if suspended(&self.seat).exists() => {
                self.kill_strays(pids).await;
                self.now = Now::Down(Down::Suspended);
            }
            // A boot of the host ended it; it is as if the guest had been reset.
            Run::Starting { .. } | Run::Up { .. } if !same_boot => {
                self.now = Now::Down(self.restart(&wanted))
            }
            Run::Starting { kind, reboots, held: _ } => {
                self.adopt(kind, pids, &wanted, true).await?;
                if self.machine.is_some() {
                    self.record.reboots = self.record.reboots.max(reboots);
                    self.record.run = Run::Up { kind };
                }
            }
            Run::Up { kind } => self.adopt(kind, pids, &wanted, false).await?,
        }
        if let Now::Down(down) = &self.now
            && self.machine.is_none()
        {
            self.record.run = Run::Down(down.clone());
        }
        self.keep()?;
        if self.now != Now::Down(Down::Suspended) {
            // Left by a suspension that was cut short, or by a machine that went on from it.
            let removed = discard(&self.seat)
                .and_then(|()| durable::remove_dir(&suspended(&self.seat).with_extension("new")));
            removed.map_err(|error| self.disk_trouble(&error))?;
        }
        Ok(())
    }

    async fn adopt(
        &mut self,
        kind: Kind,
        pids: &[i32],
        wanted: &Wanted,
        starting: bool,
    ) -> Result<(), Refused> {
        let hypervisor = self.fleet.of(kind)?;
        self.kind = kind;
        let down = match hypervisor.adopt(self.seat.clone(), pids.first().copied()).await? {
            Adopted::Machine(machine) => {
                tracing::info!(server = %self.seat.id, %kind, "took over a running machine");
                self.machine = Some(machine);
                self.now = Now::Mute;
                return Ok(());
            }
            Adopted::Ended(end) => {
                self.record.ended = Some(MachineEnd::from(&end));
                plan::after_end(&end, wanted, false, 0)
            }
            Adopted::Gone if starting => self.restart(wanted),
            Adopted::Gone => {
                let detail =
                    "it was killed while hostd was away; see the host's log for the reason".to_owned();
                plan::after_end(&End { how: How::Failed, detail }, wanted, false, 0)
            }
        };
        self.kill_strays(pids).await;
        self.now = Now::Down(down);
        Ok(())
    }

    fn restart(&self, wanted: &Wanted) -> Down {
        if wants_to_run(wanted) { Down::Restart } else { Down::Off }
    }

    async fn kill_strays(&self, pids: &[i32]) {
        if !pids.is_empty() {
            process::sweep(&self.seat.owner, self.seat.id).await;
        }
    }

    /// Reads the machine's state; notes its end.
    async fn look(&mut self) {
        let Some(machine) = &self.machine else { return };
        match machine.status().await {
            Ok(status) => match status.life.clone() {
                Life::Ended(end) => self.note_end(end).await,
                Life::Running | Life::Paused => {
                    self.asked.retain(|device, _| match device {
                        Device::Disk(key) => status.disks.iter().any(|disk| disk.key == *key),
                        Device::Nic(port) => status.nics.contains(port),
                    });
                    self.now = Now::Up(status);
                }
            },
            Err(refused) => {
                tracing::warn!(server = %self.seat.id, %refused, "the machine does not answer");
                self.now = Now::Mute;
            }
        }
    }

    async fn note_end(&mut self, end: End) {
        let wanted = self.wanted.borrow().clone();
        let quick = self.started.is_some_and(|(at, _)| at.elapsed() < QUICK);
        if self.started.is_some_and(|(_, generation)| generation == wanted.generation) {
            // It was started as wanted; that it ended before anyone looked again is not for want of that.
            self.record.settled = self.record.settled.max(wanted.generation);
        }
        let stopping = self.stop.is_some_and(|stop| Instant::now() < stop.until + LATE);
        self.quick_resets = match end.how {
            How::Reset | How::TripleFault | How::Panicked if quick && !stopping => self.quick_resets + 1,
            How::Reset
            | How::TripleFault
            | How::Panicked
            | How::PowerOff
            | How::PowerButton
            | How::Watchdog
            | How::Stopped
            | How::NotStarted
            | How::Failed => 0,
        };
        self.record.ended = Some(MachineEnd::from(&end));
        let down = plan::after_end(&end, &wanted, stopping, self.quick_resets);
        tracing::info!(server = %self.seat.id, ?end, ?down, "the machine ended");
        self.not_before = Some(Instant::now() + plan::restart_delay(self.quick_resets));
        self.go_down(down).await;
    }

    /// Makes it last that there is no machine, and makes it so. The record comes first: a machine that is found beside
    /// a record that says `Down` is one that was being killed.
    async fn go_down(&mut self, down: Down) {
        self.record.run = Run::Down(down.clone());
        if let Err(refused) = self.keep() {
            tracing::error!(server = %self.seat.id, %refused, "going on without a record");
        }
        fault::point("recorded the end");
        if let Some(machine) = self.machine.take() {
            machine.kill().await;
        }
        fault::point("killed the machine");
        if down != Down::Suspended
            && let Err(error) = discard(&self.seat)
        {
            tracing::warn!(server = %self.seat.id, %error, "cannot remove what was suspended");
        }
        self.now = Now::Down(down);
        self.stop = None;
        self.asked.clear();
    }

    fn decide(&mut self) -> (Act, Generation) {
        let wanted = self.wanted.borrow_and_update().clone();
        let ending = !wants_to_run(&wanted) || wanted.reboots.count > self.record.reboots;
        if !ending && self.stop.is_some_and(|stop| Instant::now() >= stop.until + LATE) {
            // The press was for an older wish, and the guest ignored it: a later press gets patience of its own.
            self.stop = None;
        }
        let sizes = self.sizes(&wanted);
        let view = View {
            wanted: &wanted,
            now: &self.now,
            settled: self.record.settled,
            failed: self.failed,
            reboots: self.record.reboots,
            stop: self.stop,
            asked: &self.asked,
            plugged: &self.record.plugged,
            carried: &self.record.carried,
            sizes: &sizes,
            not_before: self.not_before,
            unplug_within: self.unplug_within,
        };
        (plan::next(&view, Instant::now()), wanted.generation)
    }

    /// File sizes, which matter once for each generation: a grown volume comes as one.
    fn sizes(&self, wanted: &Wanted) -> BTreeMap<String, u64> {
        if self.record.settled >= wanted.generation || !matches!(self.now, Now::Up(_)) {
            return BTreeMap::new();
        }
        let size = |path: &std::path::Path| std::fs::metadata(path).ok().map(|facts| facts.len());
        let disks = wanted.spec.disks.iter();
        disks.filter_map(|disk| Some((disk.key.clone(), size(&disk.path)?))).collect()
    }

    async fn act(&mut self, act: Act) -> Result<(), Refused> {
        match act {
            Act::Start => self.start().await,
            Act::Press(until) => {
                self.control(Control::PowerButton).await?;
                self.stop = Some(Stop { until, last: Instant::now() });
                Ok(())
            }
            Act::Kill { restart } => {
                self.quick_resets = 0;
                self.not_before = None;
                self.go_down(if restart { Down::Restart } else { Down::Off }).await;
                Ok(())
            }
            Act::Control(control) => self.control(control).await,
            Act::Suspend => self.suspend().await,
            Act::Settle => {
                let generation = self.wanted.borrow().generation;
                self.record.settled = generation;
                self.record.fault = None;
                self.failed = None;
                self.keep()?;
                fault::point("settled");
                Ok(())
            }
            Act::Fail(why) => Err(Refused::new(RefusedKind::Conflict, why)),
            Act::Remove | Act::Wait(_) => Ok(()),
        }
    }

    async fn start(&mut self) -> Result<(), Refused> {
        let wanted = self.wanted.borrow().clone();
        let kind = self.fleet.chosen;
        let hypervisor = self.fleet.of(kind)?;
        self.kind = kind;
        let kept = suspended(&self.seat);
        // A reboot is a wish for a fresh start.
        let goes_on = self.now == Now::Down(Down::Suspended) && wanted.reboots.count <= self.record.reboots;
        if !goes_on {
            discard(&self.seat).map_err(|error| self.disk_trouble(&error))?;
        }
        // Words of an earlier machine must not be taken for the new one's.
        durable::remove_dir(&self.seat.run).map_err(|error| self.disk_trouble(&error))?;
        self.record.run = Run::Starting { kind, reboots: wanted.reboots.count, held: goes_on };
        self.record.plugged = wanted.spec.disks.iter().map(|disk| (disk.key.clone(), disk.clone())).collect();
        self.record.carried = wanted.spec.nics.iter().map(|nic| (nic.port, nic.limits)).collect();
        self.keep()?;
        fault::point("about to start");
        std::fs::create_dir_all(&self.seat.run).map_err(|error| self.disk_trouble(&error))?;
        let boots_disk = wanted.spec.boot == Boot::Disk;
        tracing::info!(server = %self.seat.id, %kind, boots_disk, "starting");
        let plan = Plan {
            seat: self.seat.clone(),
            spec: wanted.spec.clone(),
            // One that goes on does so when what it goes on from is given up: the plan lets it go on then.
            paused: goes_on || wanted.power == Power::Paused,
            restore: goes_on.then(|| kept.clone()),
        };
        let started = hypervisor.start(plan).await;
        fault::point("started");
        let machine = match started {
            Ok(machine) => machine,
            Err(refused) => {
                self.stay_down(goes_on);
                return Err(refused);
            }
        };
        self.record.reboots = wanted.reboots.count;
        self.record.run = Run::Up { kind };
        self.record.fault = None;
        let kept = self.keep();
        if let Err(refused) = kept.as_ref()
            && goes_on
        {
            // Without a record that it is up, its guest may not run.
            machine.kill().await;
            self.stay_down(goes_on);
            return Err(refused.clone());
        }
        self.machine = Some(machine);
        self.started = Some((Instant::now(), wanted.generation));
        self.stop = None;
        self.asked.clear();
        self.now = Now::Mute;
        self.failed = None;
        kept?;
        fault::point("up");
        // The machine has its own hold on the memory.
        discard(&self.seat).map_err(|error| self.disk_trouble(&error))
    }

    /// There is no machine after all; what was suspended is still there, for another try.
    fn stay_down(&mut self, goes_on: bool) {
        let down = if goes_on { Down::Suspended } else { Down::Off };
        self.now = Now::Down(down.clone());
        self.record.run = Run::Down(down);
    }

    /// Writes the machine's memory into a file, and ends it. The file gets its name when it is whole; until the record
    /// says so, it is not what the server is.
    async fn suspend(&mut self) -> Result<(), Refused> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let (kept, new) = (suspended(&self.seat), suspended(&self.seat).with_extension("new"));
        let begun = durable::remove_dir(&new)
            .and_then(|()| durable::remove_dir(&kept))
            .and_then(|()| std::fs::create_dir(&new));
        begun.map_err(|error| self.disk_trouble(&error))?;
        fault::point("about to suspend");
        let memory = self.wanted.borrow().spec.memory;
        let mut wish = self.wanted.clone();
        let written = tokio::select! {
            written = machine.suspend(&new, memory) => written,
            // It is killed over it: nobody wants its memory.
            Ok(_) = wish.wait_for(|wanted| wanted.forget) => return Ok(()),
        };
        if let Err(refused) = written {
            let _ = durable::remove_dir(&new);
            // It is to be what it was.
            machine.control(Control::Resume).await?;
            return Err(refused);
        }
        fault::point("wrote the memory");
        let named = std::fs::rename(&new, &kept).and_then(|()| durable::sync_parent(&kept));
        named.map_err(|error| self.disk_trouble(&error))?;
        fault::point("named the memory");
        // Unlike any other end, this one must be known before the machine is killed: its memory would be lost.
        let before = std::mem::replace(&mut self.record.run, Run::Down(Down::Suspended));
        if let Err(refused) = self.record.write(&self.seat).map_err(|error| self.disk_trouble(&error)) {
            self.record.run = before;
            machine.control(Control::Resume).await?;
            return Err(refused);
        }
        self.go_down(Down::Suspended).await;
        Ok(())
    }

    async fn control(&mut self, control: Control) -> Result<(), Refused> {
        match &control {
            Control::PlugDisk(disk) => {
                self.record.plugged.insert(disk.key.clone(), disk.clone());
                self.keep()?;
            }
            Control::PlugNic(nic) => {
                self.record.carried.insert(nic.port, nic.limits);
                self.keep()?;
            }
            Control::UnplugDisk(key) => self.note_asked(Device::Disk(key.clone())),
            Control::UnplugNic(port) => self.note_asked(Device::Nic(*port)),
            Control::Pause
            | Control::Resume
            | Control::PowerButton
            | Control::ResizeDisk(..)
            | Control::LimitDisk(..)
            | Control::LimitNic(..) => (),
        }
        let Some(machine) = &self.machine else { return Ok(()) };
        fault::point("about to control");
        let outcome = machine.control(control.clone()).await;
        fault::point("controlled");
        outcome?;
        self.note_limits(&control)
    }

    /// Limits are written down once they are set, so that what was cut short is done again.
    fn note_limits(&mut self, control: &Control) -> Result<(), Refused> {
        match control {
            Control::LimitDisk(key, limits) => {
                if let Some(disk) = self.record.plugged.get_mut(key) {
                    disk.limits = *limits;
                }
                self.keep()
            }
            Control::LimitNic(port, limits) => {
                self.record.carried.insert(*port, *limits);
                self.keep()
            }
            Control::Pause
            | Control::Resume
            | Control::PowerButton
            | Control::PlugDisk(_)
            | Control::UnplugDisk(_)
            | Control::PlugNic(_)
            | Control::UnplugNic(_)
            | Control::ResizeDisk(..) => Ok(()),
        }
    }

    /// Adds to figures what the wish says: memory and addresses.
    fn complete(&self, mut figures: Figures) -> Figures {
        let wanted = self.wanted.borrow();
        figures.memory.given = wanted.spec.memory;
        for nic in &mut figures.nics {
            let own = wanted.spec.nics.iter().find(|wanted| wanted.port == nic.port);
            nic.mac = nic.mac.or(own.map(|own| own.mac));
        }
        figures
    }

    /// Answers one request for figures.
    async fn answer(&self, ask: Ask) {
        let figures = match &self.machine {
            Some(machine) => machine.figures().await.map(|figures| self.complete(figures)),
            None => Err(Refused::conflict(format!("server {} has no running machine", self.seat.id))),
        };
        // Who asked may have given up.
        let _ = ask.send(figures);
    }

    fn note_asked(&mut self, device: Device) {
        let now = Instant::now();
        self.asked
            .entry(device)
            .and_modify(|asked| asked.last = now)
            .or_insert(Asked { first: now, last: now });
    }

    /// Settles a generation as failed. It is not tried again; a newer one, or a restart of the daemon, is.
    fn fail(&mut self, generation: Generation, why: &str) {
        tracing::warn!(server = %self.seat.id, generation = generation.0, why, "could not settle");
        self.failed = Some(generation);
        self.record.settled = self.record.settled.max(generation);
        self.record.fault = Some(why.to_owned());
        if let Err(refused) = self.keep() {
            tracing::error!(server = %self.seat.id, %refused, "going on without a record");
        }
    }

    fn publish(&mut self) {
        // The first look is news even when it shows what was supposed.
        let first = !std::mem::replace(&mut self.published, true);
        let wanted = self.wanted.borrow().generation;
        let (disks, nics) = match &self.now {
            Now::Up(status) => {
                (status.disks.iter().map(|disk| disk.key.clone()).collect(), status.nics.clone())
            }
            Now::Mute => {
                let before = self.observed.borrow();
                (before.disks.clone(), before.nics.clone())
            }
            Now::Down(_) => (Vec::new(), Vec::new()),
        };
        let crash = match &self.now {
            Now::Down(Down::Crashed { fault }) => Some(fault.clone()),
            Now::Down(Down::Off | Down::Guest | Down::Suspended | Down::Restart) | Now::Up(_) | Now::Mute => {
                None
            }
        };
        let new = Observed {
            id: self.seat.id,
            wanted,
            settled: self.record.settled,
            power: plan::power_now(&self.now),
            reboots: self.record.reboots,
            disks,
            nics,
            fault: crash.or_else(|| self.record.fault.clone()),
            hypervisor: self.kind.to_string(),
            panicked: matches!(&self.now, Now::Up(status) if status.panicked),
            last_end: self.record.ended.clone(),
        };
        self.observed.send_if_modified(|old| {
            let differs = first || *old != new;
            *old = new;
            differs
        });
    }

    /// Waits for a reason to look again; true when the daemon ends.
    async fn wait(&mut self, until: Option<Instant>, shutdown: &CancellationToken) -> bool {
        let mut tend = Instant::now() + TEND;
        loop {
            let wake = until.map_or(tend, |until| until.min(tend));
            let changed = async {
                match &self.machine {
                    Some(machine) => machine.changed().await,
                    None => std::future::pending().await,
                }
            };
            let timer = async {
                match (&self.machine, until) {
                    (None, None) => std::future::pending().await,
                    (None, Some(until)) => tokio::time::sleep_until(until.into()).await,
                    (Some(_), _) => tokio::time::sleep_until(wake.into()).await,
                }
            };
            let asked = tokio::select! {
                () = shutdown.cancelled() => return true,
                outcome = self.wanted.changed() => return outcome.is_err(),
                () = changed => return false,
                () = timer => None,
                ask = next_ask(&mut self.asks) => Some(ask),
            };
            if let Some(ask) = asked {
                self.answer(ask).await;
            }
            let now = Instant::now();
            if now >= tend {
                // However often it is asked meanwhile.
                tend = now + TEND;
                if let Some(machine) = &self.machine {
                    machine.tend();
                }
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return false;
            }
        }
    }

    /// Takes away every trace; `wanted.json` goes last, so that a `hostd` that is killed on the way goes on with this.
    async fn remove(&mut self) -> Result<(), Refused> {
        process::sweep(&self.seat.owner, self.seat.id).await;
        fault::point("swept");
        let (seat, wanted) = (self.seat.clone(), crate::server::registry::wanted_path(&self.seat));
        let removal = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            cgroup::remove(&seat.cgroup_parent, seat.id)?;
            durable::remove_dir(&seat.run)?;
            fault::point("removed the run directory");
            for entry in std::fs::read_dir(&seat.state)? {
                let path = entry?.path();
                if path.is_dir() {
                    durable::remove_dir(&path)?;
                } else if path != wanted {
                    durable::remove_file(&path)?;
                }
            }
            fault::point("removed all but the wish");
            durable::remove_file(&wanted)?;
            fault::point("removed the wish");
            durable::remove_dir(&seat.state)?;
            durable::sync_parent(&seat.state)
        });
        match removal.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.disk_trouble(&error)),
            Err(error) => Err(Refused::internal(error.to_string())),
        }
    }

    fn keep(&self) -> Result<(), Refused> {
        self.record.write(&self.seat).map_err(|error| self.disk_trouble(&error))
    }

    fn disk_trouble(&self, error: &std::io::Error) -> Refused {
        let message = format!("cannot keep the state of server {}: {error}", self.seat.id);
        match error.kind() {
            std::io::ErrorKind::StorageFull => Refused::no_space(message)
                .remedy("free some space on the file system of hostd's state directory"),
            _ => Refused::internal(message),
        }
    }
}

async fn next_ask(asks: &mut mpsc::Receiver<Ask>) -> Ask {
    match asks.recv().await {
        Some(ask) => ask,
        None => std::future::pending().await,
    }
}

fn wants_to_run(wanted: &Wanted) -> bool {
    !wanted.forget && !matches!(wanted.power, Power::Off { .. })
}
