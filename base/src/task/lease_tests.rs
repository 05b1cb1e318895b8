//! Who works on a task: one at a time, and until everything is undone.

use super::{Job, Next, Stop, Task, Tasks, Workers, now_ms};
use crate::store::testing::on_both;
use crate::store::{Store, StoreError};
use crate::{CancellationToken, args};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_millis(300);
/// One that a machine with much else to do keeps renewed.
const LONG_LEASE: Duration = Duration::from_millis(1500);

struct World {
    store: Store,
    inside: AtomicUsize,
    begun: AtomicUsize,
    did: Mutex<Vec<String>>,
    refusals: AtomicUsize,
}

impl World {
    fn new(store: &Store) -> Arc<Self> {
        Arc::new(Self {
            store: store.clone(),
            inside: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            did: Mutex::default(),
            refusals: AtomicUsize::new(1),
        })
    }

    fn note(&self, what: &str) {
        self.did.lock().unwrap().push(what.to_owned());
    }
}

/// Whether a step is at work: also over when it is dropped.
struct Inside<'a>(&'a World);

impl<'a> Inside<'a> {
    fn new(world: &'a World) -> Self {
        world.begun.fetch_add(1, Ordering::SeqCst);
        world.inside.fetch_add(1, Ordering::SeqCst);
        Self(world)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    /// Never ends by itself.
    Endless,
    /// Holds a transaction for longer than a renewal waits.
    Writes,
    /// Leads to the next, which fails.
    First,
    Second,
    Third,
}

impl Task for Work {
    const KIND: &'static str = "test.work";
    type Context = World;

    async fn run(&self, world: &World, _: &Job) -> Result<Next<Self>, Stop> {
        let _inside = Inside::new(world);
        match self {
            Self::Endless => std::future::pending().await,
            Self::Writes => {
                world
                    .store
                    .tx(|tx| async move {
                        tx.exec("DELETE FROM tasks WHERE id = 'none'", Vec::new()).await?;
                        tokio::time::sleep(LEASE * 2 / 3).await;
                        Ok::<_, StoreError>(())
                    })
                    .await?;
                world.note("written");
                Ok(Next::Done)
            }
            Self::First => Ok(Next::Step(Self::Second)),
            Self::Second => Ok(Next::Step(Self::Third)),
            Self::Third => Err(Stop::Fail("no room".into())),
        }
    }

    async fn undo(&self, world: &World, _: &Job) -> Result<(), Stop> {
        let name = match self {
            Self::Endless | Self::Writes | Self::First => "first",
            Self::Second => "second",
            Self::Third => "third",
        };
        let refused = matches!(self, Self::Second)
            && world
                .refusals
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok();
        if refused {
            world.note("refused");
            return Err(Stop::Fail("the disk is busy".into()));
        }
        world.note(name);
        Ok(())
    }

    async fn failed(&self, world: &World, _: &Job, why: &str) -> Result<(), Stop> {
        world.note(why);
        Ok(())
    }
}

async fn until(what: &str, test: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn enqueue(store: &Store, tasks: &Tasks, first: &Work) {
    store.tx(|tx| async move { tasks.enqueue(&tx, "thing:1", first).await }).await.unwrap();
}

async fn drained(store: &Store) {
    let end = Instant::now() + Duration::from_secs(20);
    while Tasks::live(store, "thing:1").await.unwrap().is_some() {
        assert!(Instant::now() < end, "the queue does not drain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_step_whose_lease_another_has_is_dropped() {
    on_both(|db| async move {
        let tasks = Tasks::open(db.store.clone()).await.unwrap();
        // Another node, or a later life of the same one.
        for thief in ["other", "node"] {
            let world = World::new(&db.store);
            let end = CancellationToken::new();
            let workers = Workers::new(tasks.clone()).register::<Work>().leasing(LONG_LEASE);
            let running = tokio::spawn(workers.run(world.clone(), "node".into(), 2, end.clone()));
            enqueue(&db.store, &tasks, &Work::Endless).await;
            tasks.wake();
            until("the step begins", || world.inside.load(Ordering::SeqCst) == 1).await;
            db.store
                .tx(|tx| async move {
                    let sql = "UPDATE tasks SET lease_owner = $1, lease_until_ms = $2, lease_number = lease_number + 1
                        WHERE state = 'live'";
                    tx.exec(sql, args![thief, now_ms() + 3_600_000]).await
                })
                .await
                .unwrap();
            until("the step is dropped", || world.inside.load(Ordering::SeqCst) == 0).await;
            assert_eq!(world.begun.load(Ordering::SeqCst), 1, "nobody may begin while the thief has it");
            let task = Tasks::live(&db.store, "thing:1").await.unwrap().unwrap();
            assert_eq!(task.state, "live", "the loser saves nothing");
            end.cancel();
            running.await.unwrap();
            db.store
                .tx(|tx| async move { tx.exec("DELETE FROM tasks", Vec::new()).await })
                .await
                .unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_lease_is_renewed_while_its_step_writes() {
    on_both(|db| async move {
        let tasks = Tasks::open(db.store.clone()).await.unwrap();
        let (world, end) = (World::new(&db.store), CancellationToken::new());
        let workers = Workers::new(tasks.clone()).register::<Work>().leasing(LEASE);
        let running = tokio::spawn(workers.run(world.clone(), "node".into(), 2, end.clone()));
        enqueue(&db.store, &tasks, &Work::Writes).await;
        tasks.wake();
        drained(&db.store).await;
        assert_eq!(*world.did.lock().unwrap(), ["written"]);
        end.cancel();
        running.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_undone_stays_until_it_can_and_nothing_goes_past_it() {
    on_both(|db| async move {
        let tasks = Tasks::open(db.store.clone()).await.unwrap();
        let (world, end) = (World::new(&db.store), CancellationToken::new());
        let workers = Workers::new(tasks.clone()).register::<Work>();
        enqueue(&db.store, &tasks, &Work::First).await;
        let running = tokio::spawn(workers.run(world.clone(), "node".into(), 2, end.clone()));
        drained(&db.store).await;
        assert_eq!(*world.did.lock().unwrap(), ["third", "refused", "second", "first", "no room"]);
        let ended = Tasks::history(&db.store, "thing:1").await.unwrap();
        assert_eq!((ended[0].state.as_str(), ended[0].why.as_deref()), ("failed", Some("no room")));
        end.cancel();
        running.await.unwrap();
    })
    .await;
}
