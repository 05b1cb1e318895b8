//! All servers of the host: takes requests, keeps what is wanted, starts the drivers.

use super::driver::{self, Ask, Fleet, Start};
use super::wanted::{Decision, Wanted, decide};
use crate::config::Config;
use crate::hypervisor::Seat;
use crate::{cgroup, console, durable, fault, process};
use base::CancellationToken;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;
use wire::host::{EnsureServer, Figures, Observed, WatchServer};
use wire::ids::ServerId;
use wire::{Generation, Refused};

/// Longest wait of one call.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// How long a caller of `ForgetServer` waits before it is told to ask again: callers give up after a minute.
const FORGET_WAIT: Duration = Duration::from_secs(50);
/// How long a request for figures waits for a driver that is busy.
const FIGURES_WAIT: Duration = Duration::from_secs(20);
/// Requests for figures of one server that wait at a time.
const ASKS: usize = 8;

/// The servers of this host.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    config: Config,
    owner: PathBuf,
    fleet: Fleet,
    book: Mutex<Book>,
    drivers: TaskTracker,
    shutdown: CancellationToken,
}

/// What is looked up without waiting.
#[derive(Default)]
struct Book {
    desks: BTreeMap<ServerId, Desk>,
    observed: BTreeMap<ServerId, watch::Receiver<Observed>>,
    asks: BTreeMap<ServerId, mpsc::Sender<Ask>>,
    uids: BTreeMap<ServerId, u32>,
}

/// Where requests about one server are taken, one at a time.
type Desk = Arc<tokio::sync::Mutex<Option<Seated>>>;

/// A server that has a driver.
struct Seated {
    wanted: watch::Sender<Wanted>,
    observed: watch::Receiver<Observed>,
}

/// The file that says what is wanted of a server.
#[must_use]
pub fn wanted_path(seat: &Seat) -> PathBuf {
    seat.state.join("wanted.json")
}

/// Where a server lives.
#[must_use]
pub fn seat(config: &Config, owner: &Path, id: ServerId, uid: u32) -> Seat {
    Seat {
        id,
        owner: owner.to_owned(),
        state: owner.join("servers").join(id.to_string()),
        run: config.run_dir.join("servers").join(id.to_string()),
        uid,
        cgroup_parent: config.cgroup_parent.clone(),
        console_limit: config.console_kib.saturating_mul(1024),
    }
}

impl Registry {
    /// Reads the servers of the state directory, takes their machines over, and ends machines of servers that are not
    /// known any more.
    ///
    /// # Errors
    /// When the directories cannot be used.
    pub async fn open(config: Config, fleet: Fleet, shutdown: CancellationToken) -> io::Result<Self> {
        let owner = make_dirs(&config)?;
        let mut found = process::find(&owner);
        let registry = Self(Arc::new(Inner {
            config,
            owner,
            fleet,
            book: Mutex::default(),
            drivers: TaskTracker::new(),
            shutdown,
        }));
        for id in known(&registry.0.owner)? {
            let pids = found.remove(&id).unwrap_or_default();
            registry.restore(id, pids).await?;
        }
        registry.first_look().await;
        for id in found.into_keys() {
            tracing::warn!(server = %id, "ending a machine of a server that is not known");
            process::sweep(&registry.0.owner, id).await;
            registry.0.remove_leftovers(id)?;
        }
        Ok(registry)
    }

    async fn restore(&self, id: ServerId, mut pids: Vec<i32>) -> io::Result<()> {
        let seat = self.0.seat(id, 0);
        let Some(wanted) = durable::read::<Wanted>(&wanted_path(&seat))? else {
            // The end of a removal, or the beginning of a server that nobody was promised.
            process::sweep(&self.0.owner, id).await;
            return self.0.remove_leftovers(id);
        };
        pids.retain(|pid| process::runs_as(*pid, wanted.uid));
        let mut place = self.locked(id).await;
        *place = Some(self.0.hire(id, wanted, pids, self.clone()));
        Ok(())
    }

    /// Lets the drivers look once before the first caller asks, so that a restart of the daemon does not make running
    /// servers look off. One that hangs holds up nobody for long.
    async fn first_look(&self) {
        let seen: Vec<_> = self.0.book().observed.values().cloned().collect();
        let looks = seen.into_iter().map(|mut observed| async move { observed.changed().await.is_ok() });
        let _ = tokio::time::timeout(Duration::from_secs(10), futures::future::join_all(looks)).await;
    }

    async fn locked(&self, id: ServerId) -> OwnedMutexGuard<Option<Seated>> {
        let desk = self.0.book().desks.entry(id).or_default().clone();
        desk.lock_owned().await
    }

    fn watching(&self, id: ServerId) -> Option<watch::Receiver<Observed>> {
        self.0.book().observed.get(&id).cloned()
    }

    /// Takes a wanted state and waits, as asked, until it is settled.
    ///
    /// # Errors
    /// `Stale`, `Conflict` or `Invalid`; `NoSpace` when the state cannot be kept.
    pub async fn ensure(&self, call: EnsureServer) -> Result<Observed, Refused> {
        let observed = {
            let mut place = self.locked(call.id).await;
            let current = place.as_ref().map(|seated| seated.wanted.borrow().clone());
            let uid = match &current {
                Some(current) => Ok(current.uid),
                None => self.0.take_uid(call.id),
            };
            let accepted = match uid.and_then(|uid| decide(current.as_ref(), &call, uid)) {
                Ok(Decision::Same) => Ok(()),
                Ok(Decision::Accept(wanted)) => match self.0.keep(call.id, (*wanted).clone()).await {
                    Ok(()) => {
                        fault::point("kept the wish");
                        match place.as_ref() {
                            Some(seated) => drop(seated.wanted.send_replace(*wanted)),
                            None => *place = Some(self.0.hire(call.id, *wanted, Vec::new(), self.clone())),
                        }
                        Ok(())
                    }
                    Err(refused) => Err(refused),
                },
                Err(refused) => Err(refused),
            };
            match (accepted, place.as_ref().map(|seated| seated.observed.clone())) {
                (Ok(()), Some(observed)) => observed,
                (Ok(()), None) => return Err(Refused::internal("the server has no driver")),
                (Err(refused), _) => {
                    self.leave(call.id, place);
                    return Err(refused);
                }
            }
        };
        Ok(settled(observed, call.generation, call.wait_ms).await)
    }

    /// Drops a desk that holds nothing, so that refused requests leave nothing behind.
    fn leave(&self, id: ServerId, place: OwnedMutexGuard<Option<Seated>>) {
        let mut book = self.0.book();
        let shared = Arc::strong_count(OwnedMutexGuard::mutex(&place)) > 2;
        // Somebody who waits for this very desk (beside the book's and our own hold) may put a server there yet.
        if place.is_none() && !shared {
            book.desks.remove(&id);
            book.uids.remove(&id);
        }
    }

    /// Ends a server and returns when nothing of it is left. That the caller may say so was checked before.
    ///
    /// # Errors
    /// `Unavailable` when that takes long: ask again. `NoSpace` when the wish cannot be kept.
    pub async fn forget(&self, id: ServerId) -> Result<(), Refused> {
        let mut observed = {
            let place = self.locked(id).await;
            let Some(seated) = place.as_ref() else {
                self.leave(id, place);
                return Ok(());
            };
            let wanted = Wanted { forget: true, ..seated.wanted.borrow().clone() };
            // Once kept, its file may be gone at any moment.
            if *seated.wanted.borrow() != wanted {
                self.0.keep(id, wanted.clone()).await?;
                fault::point("kept the wish to forget");
                seated.wanted.send_replace(wanted);
            }
            seated.observed.clone()
        };
        // The driver drops its end once all is removed.
        let gone = async { while observed.changed().await.is_ok() {} };
        let in_time = tokio::time::timeout(FORGET_WAIT, gone).await.is_ok();
        // Its end may also be the daemon's.
        if in_time && self.watching(id).is_none() {
            return Ok(());
        }
        Err(Refused::unavailable(format!("server {} is still being removed", id)).remedy("ask again"))
    }

    /// Tells how a server is, once it settled a generation or the wait is over.
    ///
    /// # Errors
    /// `Missing`
    pub async fn watch(&self, call: WatchServer) -> Result<Observed, Refused> {
        let observed = self.watching(call.id).ok_or_else(|| missing(call.id))?;
        Ok(settled(observed, call.settled, call.wait_ms).await)
    }

    /// Tells how all servers are.
    #[must_use]
    pub fn list(&self) -> Vec<Observed> {
        self.0.book().observed.values().map(|observed| observed.borrow().clone()).collect()
    }

    /// Reads the figures of a server's machine.
    ///
    /// # Errors
    /// `Missing`, `Conflict` when there is no machine, `Unavailable` when it does not answer.
    pub async fn figures(&self, id: ServerId) -> Result<Figures, Refused> {
        let asks = self.0.book().asks.get(&id).cloned().ok_or_else(|| missing(id))?;
        let (ask, answer) = oneshot::channel();
        let asked = async {
            // A driver that ended had its server forgotten.
            asks.send(ask).await.map_err(|_| missing(id))?;
            answer.await.map_err(|_| missing(id))?
        };
        let busy =
            |_| Refused::unavailable(format!("server {id} is busy and gave no figures")).remedy("ask again");
        tokio::time::timeout(FIGURES_WAIT, asked).await.map_err(busy)?
    }

    /// Reads the end of a server's console log.
    ///
    /// # Errors
    /// `Missing`, or what the file system says.
    pub async fn read_console(&self, id: ServerId, lines: Option<u32>) -> Result<String, Refused> {
        if self.watching(id).is_none() {
            return Err(missing(id));
        }
        let seat = self.0.seat(id, 0);
        tokio::task::spawn_blocking(move || console::tail(&seat.state, lines, seat.console_limit))
            .await
            .map_err(|error| Refused::internal(error.to_string()))?
            .map_err(|error| {
                Refused::internal(format!("cannot read the console log of server {id}: {error}"))
            })
    }

    /// Waits until every driver has ended, after the shutdown.
    pub async fn join(&self) {
        self.0.drivers.close();
        self.0.drivers.wait().await;
    }

    fn retire(&self, id: ServerId) {
        let mut book = self.0.book();
        book.desks.remove(&id);
        book.observed.remove(&id);
        book.asks.remove(&id);
        book.uids.remove(&id);
    }
}

impl Inner {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seat(&self, id: ServerId, uid: u32) -> Seat {
        seat(&self.config, &self.owner, id, uid)
    }

    async fn keep(&self, id: ServerId, wanted: Wanted) -> Result<(), Refused> {
        let seat = self.seat(id, wanted.uid);
        let outcome = tokio::task::spawn_blocking(move || -> io::Result<()> {
            if !seat.state.exists() {
                std::fs::create_dir_all(&seat.state)?;
                durable::sync_parent(&seat.state)?;
            }
            durable::write(&wanted_path(&seat), &wanted)
        });
        let trouble = |error: io::Error| {
            let message = format!("cannot keep what is wanted of server {id}: {error}");
            match error.kind() {
                io::ErrorKind::StorageFull => Refused::no_space(message)
                    .remedy("free some space on the file system of hostd's state directory"),
                _ => Refused::internal(message),
            }
        };
        outcome.await.map_err(|error| Refused::internal(error.to_string()))?.map_err(trouble)
    }

    fn hire(&self, id: ServerId, wanted: Wanted, pids: Vec<i32>, registry: Registry) -> Seated {
        let seat = self.seat(id, wanted.uid);
        self.book().uids.insert(id, wanted.uid);
        let (tell, observed) = watch::channel(driver::unseen(id, &wanted, self.fleet.chosen));
        let (wish, wanted) = watch::channel(wanted);
        let (ask, asks) = mpsc::channel(ASKS);
        self.book().asks.insert(id, ask);
        let start = Start {
            seat,
            fleet: self.fleet.clone(),
            wanted,
            observed: tell.clone(),
            asks,
            unplug_within: Duration::from_secs(self.config.unplug_secs),
            pids,
        };
        let shutdown = self.shutdown.clone();
        self.drivers.spawn(async move {
            if driver::drive(start, shutdown).await {
                registry.retire(id);
            }
            drop(tell);
        });
        self.book().observed.insert(id, observed.clone());
        Seated { wanted: wish, observed }
    }

    /// The lowest user id of the range that no server has. Servers keep theirs, so two never share anything.
    fn take_uid(&self, id: ServerId) -> Result<u32, Refused> {
        let mut book = self.book();
        let used: BTreeSet<u32> = book.uids.values().copied().collect();
        let mut range = self.config.guest_uid_first
            ..self.config.guest_uid_first.saturating_add(self.config.guest_uid_count);
        let all = range.len();
        let uid = range.find(|uid| !used.contains(uid)).ok_or_else(|| {
            Refused::no_space(format!("no user id is left for server {id}: all {all} are taken"))
                .remedy("raise guest_uid_count in hostd's configuration")
        })?;
        book.uids.insert(id, uid);
        Ok(uid)
    }

    fn remove_leftovers(&self, id: ServerId) -> io::Result<()> {
        let seat = self.seat(id, 0);
        cgroup::remove(&seat.cgroup_parent, id)?;
        durable::remove_dir(&seat.run)?;
        durable::remove_dir(&seat.state)
    }
}

async fn settled(mut observed: watch::Receiver<Observed>, generation: Generation, wait_ms: u64) -> Observed {
    let limit = Duration::from_millis(wait_ms).min(WAIT_MAX);
    let reached = async {
        // An error means that the server was forgotten meanwhile: the latest is told, as after the wait.
        let _ = observed.wait_for(|now| now.settled >= generation).await;
    };
    let _ = tokio::time::timeout(limit, reached).await;
    observed.borrow().clone()
}

fn missing(id: ServerId) -> Refused {
    Refused::missing(format!("server {id} is not known on this host"))
}

/// Makes the directories; returns the state directory by its one true name, which marks processes.
///
/// # Errors
/// What the file system says.
pub fn make_dirs(config: &Config) -> io::Result<PathBuf> {
    for dir in [&config.run_dir, &config.state_dir] {
        std::fs::create_dir_all(dir.join("servers"))?;
    }
    config.state_dir.canonicalize()
}

/// The servers that the state directory knows.
///
/// # Errors
/// What the file system says.
pub fn known(state_dir: &Path) -> io::Result<Vec<ServerId>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(state_dir.join("servers"))? {
        if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            ids.push(id);
        }
    }
    Ok(ids)
}
