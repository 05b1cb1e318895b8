//! Machines without guests, for figures of the control plane and for tests of the driver.
//!
//! A machine is a file, so it outlives `hostd` as a process would. Its guest boots at once, shuts down when the button
//! is pressed and gives devices back when asked, unless a test says otherwise.

use super::{Adopted, Control, DiskNow, End, How, Hypervisor, Kind, Life, Machine, Plan, Seat, Status};
use crate::durable;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use wire::host::{DiskFigures, Figures, MemoryFigures, NicFigures};
use wire::ids::{PortId, ServerId};
use wire::machine::{Limits, NicLimits};
use wire::{GiB, MiB, Refused};

/// Logical CPUs of a simulated host.
pub const CPUS: u32 = 4096;
/// Memory of a simulated host.
pub const MEMORY: MiB = MiB(16 << 20);
/// Disk room of a simulated host.
pub const DISK: GiB = GiB(1 << 20);

/// The machines.
#[derive(Debug, Default)]
pub struct Simulated {
    deaf: Arc<Mutex<BTreeSet<ServerId>>>,
    live: Mutex<BTreeMap<ServerId, watch::Sender<Guest>>>,
    starts: Mutex<BTreeMap<ServerId, u64>>,
}

/// A machine as its file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Guest {
    paused: bool,
    disks: Vec<String>,
    nics: Vec<PortId>,
    #[serde(default)]
    disk_limits: BTreeMap<String, Limits>,
    #[serde(default)]
    nic_limits: BTreeMap<PortId, NicLimits>,
    #[serde(default)]
    memory: MiB,
    #[serde(default)]
    vcpus: u32,
    /// When its guest booted, in nanoseconds since 1970: what its memory remembers.
    #[serde(default)]
    booted_ns: u64,
    end: Option<End>,
    gone: bool,
}

impl Simulated {
    /// No machine yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a guest ignore the power button and requests to give devices back, or listen again.
    pub fn make_deaf(&self, id: ServerId, deaf: bool) {
        let mut all = self.deaf.lock().unwrap_or_else(PoisonError::into_inner);
        if deaf {
            all.insert(id);
        } else {
            all.remove(&id);
        }
    }

    /// Lets a machine end as its guest would.
    pub fn end(&self, id: ServerId, how: How, detail: &str) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = live.get(&id) {
            guest.send_modify(|guest| guest.end = Some(End { how, detail: detail.into() }));
        }
    }

    /// How often a machine was started.
    #[must_use]
    pub fn starts(&self, id: ServerId) -> u64 {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied().unwrap_or_default()
    }

    fn machine(&self, seat: &Seat, guest: Guest) -> Box<dyn Machine> {
        let (state, seen) = watch::channel(guest);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(seat.id, state.clone());
        Box::new(Puppet {
            id: seat.id,
            path: path(seat),
            state,
            seen: Mutex::new(seen),
            deaf: self.deaf.clone(),
        })
    }
}

fn path(seat: &Seat) -> PathBuf {
    seat.run.join("simulated.json")
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lost(error: std::io::Error) -> Refused {
    Refused::internal(format!("cannot keep the simulated machine's file: {error}"))
}

impl Hypervisor for Simulated {
    fn kind(&self) -> Kind {
        Kind::Simulated
    }

    fn start(&self, plan: Plan) -> BoxFuture<'_, Result<Box<dyn Machine>, Refused>> {
        async move {
            *self.starts.lock().unwrap_or_else(PoisonError::into_inner).entry(plan.seat.id).or_default() += 1;
            let booted_ns = match &plan.restore {
                Some(from) => {
                    let kept: Option<Guest> = durable::read(&from.join("state")).map_err(lost)?;
                    kept.ok_or_else(|| Refused::internal("there is nothing to go on from"))?.booted_ns
                }
                None => now_ns(),
            };
            let guest = Guest {
                paused: plan.paused,
                disks: plan.spec.disks.iter().map(|disk| disk.key.clone()).collect(),
                nics: plan.spec.nics.iter().map(|nic| nic.port).collect(),
                disk_limits: plan.spec.disks.iter().map(|disk| (disk.key.clone(), disk.limits)).collect(),
                nic_limits: plan.spec.nics.iter().map(|nic| (nic.port, nic.limits)).collect(),
                memory: plan.spec.memory,
                vcpus: plan.spec.vcpus,
                booted_ns,
                end: None,
                gone: false,
            };
            durable::write(&path(&plan.seat), &guest).map_err(lost)?;
            Ok(self.machine(&plan.seat, guest))
        }
        .boxed()
    }

    fn adopt(&self, seat: Seat, _pid: Option<i32>) -> BoxFuture<'_, Result<Adopted, Refused>> {
        async move {
            Ok(match durable::read::<Guest>(&path(&seat)).map_err(lost)? {
                Some(guest) => Adopted::Machine(self.machine(&seat, guest)),
                None => Adopted::Gone,
            })
        }
        .boxed()
    }
}

struct Puppet {
    id: ServerId,
    path: PathBuf,
    state: watch::Sender<Guest>,
    seen: Mutex<watch::Receiver<Guest>>,
    deaf: Arc<Mutex<BTreeSet<ServerId>>>,
}

impl Puppet {
    fn apply(&self, control: Control) -> Result<(), Refused> {
        let deaf = self.deaf.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.id);
        let mut guest = self.state.borrow().clone();
        match control {
            Control::Pause => guest.paused = true,
            Control::Resume => guest.paused = false,
            Control::PowerButton if !deaf && !guest.paused => {
                guest.end = Some(End { how: How::PowerOff, detail: String::new() });
            }
            Control::PlugDisk(disk) if !guest.disks.contains(&disk.key) => guest.disks.push(disk.key),
            Control::UnplugDisk(key) if !deaf => guest.disks.retain(|other| *other != key),
            Control::PlugNic(nic) if !guest.nics.contains(&nic.port) => guest.nics.push(nic.port),
            Control::UnplugNic(port) if !deaf => guest.nics.retain(|other| *other != port),
            Control::PowerButton
            | Control::PlugDisk(_)
            | Control::UnplugDisk(_)
            | Control::PlugNic(_)
            | Control::UnplugNic(_)
            | Control::ResizeDisk(..) => (),
            Control::LimitDisk(key, limits) => drop(guest.disk_limits.insert(key, limits)),
            Control::LimitNic(port, limits) => drop(guest.nic_limits.insert(port, limits)),
        }
        durable::write(&self.path, &guest).map_err(lost)?;
        self.state.send_replace(guest);
        Ok(())
    }
}

impl Machine for Puppet {
    fn status(&self) -> BoxFuture<'_, Result<Status, Refused>> {
        let guest = self.seen.lock().unwrap_or_else(PoisonError::into_inner).borrow_and_update().clone();
        let life = match guest.end {
            Some(end) => Life::Ended(end),
            None if guest.paused => Life::Paused,
            None => Life::Running,
        };
        let disks = guest.disks.into_iter().map(|key| DiskNow { key, bytes: None }).collect();
        futures::future::ready(Ok(Status { life, disks, nics: guest.nics, panicked: false, bitten: false }))
            .boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            if seen.changed().await.is_err() {
                std::future::pending().await
            }
        }
        .boxed()
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), Refused>> {
        futures::future::ready(self.apply(control)).boxed()
    }

    fn suspend<'a>(&'a self, into: &'a Path, _memory: MiB) -> BoxFuture<'a, Result<(), Refused>> {
        let kept = self.apply(Control::Pause).and_then(|()| {
            let guest = self.state.borrow().clone();
            durable::write(&into.join("state"), &guest).map_err(lost)
        });
        futures::future::ready(kept).boxed()
    }

    /// Nothing runs, so nothing was used; what is not known is left out.
    fn figures(&self) -> BoxFuture<'_, Result<Figures, Refused>> {
        let guest = self.state.borrow().clone();
        let figures = Figures {
            hypervisor: Kind::Simulated.to_string(),
            uptime_secs: None,
            cpus_ns: (0..guest.vcpus).map(|_| 0).collect(),
            memory: MemoryFigures { given: guest.memory, ..MemoryFigures::default() },
            disks: guest.disks.into_iter().map(|key| DiskFigures { key, counts: None }).collect(),
            nics: guest.nics.into_iter().map(|port| NicFigures { port, mac: None, counts: None }).collect(),
        };
        futures::future::ready(Ok(figures)).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        self.state.send_modify(|guest| guest.gone = true);
        if let Err(error) = durable::remove_file(&self.path) {
            tracing::error!(server = %self.id, %error, "cannot remove a simulated machine");
        }
        futures::future::ready(()).boxed()
    }
}
