use super::{Crash, CrashPoint, Job, Next, Stop, Task, Tasks, Workers};
use crate::CancellationToken;
use crate::store::testing::{TestStore, on_both};
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A world that steps change: a set of things that exist, and what the user sees in the end.
#[derive(Default)]
struct World {
    things: Mutex<BTreeSet<&'static str>>,
    shown: Mutex<Vec<String>>,
    fail_at_plug: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Build {
    Claim,
    Disk { claimed: u32 },
    Plug { claimed: u32 },
}

impl Task for Build {
    const KIND: &'static str = "test.build";
    type Context = World;

    async fn run(&self, world: &World, job: &Job) -> Result<Next<Self>, Stop> {
        let mut things = world.things.lock().unwrap();
        match self {
            Self::Claim => {
                things.insert("claim");
                Ok(Next::Step(Self::Disk { claimed: 7 }))
            }
            Self::Disk { claimed } => {
                if job.attempts == 0 {
                    return Err(Stop::Retry("the disk is slow".into()));
                }
                things.insert("disk");
                Ok(Next::Step(Self::Plug { claimed: *claimed }))
            }
            Self::Plug { .. } if world.fail_at_plug => {
                things.insert("plug");
                Err(Stop::Fail("no slot is free".into()))
            }
            Self::Plug { claimed } => {
                assert_eq!(*claimed, 7);
                things.insert("plug");
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, world: &World, _: &Job) -> Result<(), Stop> {
        let thing = match self {
            Self::Claim => "claim",
            Self::Disk { .. } => "disk",
            Self::Plug { .. } => "plug",
        };
        world.things.lock().unwrap().remove(thing);
        Ok(())
    }

    async fn failed(&self, world: &World, _: &Job, why: &str) -> Result<(), Stop> {
        let mut shown = world.shown.lock().unwrap();
        if shown.is_empty() {
            shown.push(why.to_owned());
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Remove;

impl Task for Remove {
    const KIND: &'static str = "test.remove";
    type Context = World;
    async fn run(&self, world: &World, _: &Job) -> Result<Next<Self>, Stop> {
        world.things.lock().unwrap().clear();
        world.shown.lock().unwrap().push("removed".into());
        Ok(Next::Done)
    }
    async fn undo(&self, _: &World, _: &Job) -> Result<(), Stop> {
        Ok(())
    }
    async fn failed(&self, _: &World, _: &Job, _: &str) -> Result<(), Stop> {
        Ok(())
    }
}

async fn add(store: &Store, tasks: &Tasks) -> Result<String, StoreError> {
    store.tx(|tx| async move { tasks.enqueue(&tx, "server:1", &Build::Claim).await }).await
}

/// Works until no task is live, or until the crash.
async fn work(db: &TestStore, tasks: &Tasks, world: &Arc<World>, crash: Option<Arc<Crash>>) {
    let end = CancellationToken::new();
    let mut workers = Workers::new(tasks.clone()).register::<Build>().register::<Remove>();
    let crash = crash.unwrap_or_default();
    workers = workers.crashing(crash.clone());
    let running = workers.run(world.clone(), "node".into(), 2, end.clone());
    let idle = async {
        while Tasks::live(&db.store, "server:1").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        end.cancel();
    };
    let both = async {
        tokio::select! { ((), ()) = async { tokio::join!(running, idle) } => (), () = crash.happened() => () }
    };
    tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .unwrap_or_else(|_| panic!("the queue does not drain"));
}

#[tokio::test]
async fn a_task_survives_a_crash_at_every_point_of_every_step() {
    on_both(|db| async move {
        let tasks = Tasks::open(db.store.clone()).await.unwrap();
        for fail_at_plug in [false, true] {
            // As many steps as there are: the loop ends with the first point that is never reached.
            for number in 0.. {
                let mut died = false;
                for point in
                    [CrashPoint::Before(number), CrashPoint::Between(number), CrashPoint::After(number)]
                {
                    let world = Arc::new(World { fail_at_plug, ..World::default() });
                    add(&db.store, &tasks).await.unwrap();
                    let crash = Crash::at(point);
                    work(&db, &tasks, &world, Some(crash.clone())).await;
                    died |= crash.died();
                    work(&db, &tasks, &world, None).await;
                    let things: Vec<_> = world.things.lock().unwrap().iter().copied().collect();
                    let shown = world.shown.lock().unwrap().clone();
                    if fail_at_plug {
                        assert!(things.is_empty(), "{point:?}: {things:?}");
                        assert_eq!(shown, ["no slot is free"], "{point:?}");
                    } else {
                        assert_eq!(things, ["claim", "disk", "plug"], "{point:?}");
                        assert!(shown.is_empty());
                    }
                }
                if !died {
                    assert!(number >= 4, "only {number} steps were run");
                    break;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_busy_subject_is_refused_and_a_delete_supersedes() {
    on_both(|db| async move {
        let tasks = &Tasks::open(db.store.clone()).await.unwrap();
        add(&db.store, tasks).await.unwrap();
        assert!(matches!(add(&db.store, tasks).await, Err(StoreError::Duplicate(_))));
        for _ in 0..2 {
            db.store.tx(|tx| async move { tasks.supersede(&tx, "server:1", &Remove).await }).await.unwrap();
        }
        let world = Arc::new(World::default());
        work(&db, tasks, &world, None).await;
        assert_eq!(*world.shown.lock().unwrap(), ["it was superseded by a later request", "removed"]);
        let states: Vec<_> =
            Tasks::history(&db.store, "server:1").await.unwrap().into_iter().map(|t| t.state).collect();
        assert_eq!(states, ["done", "failed"]);
        assert_eq!(tasks.forget_ended(super::now_ms() + 1).await.unwrap(), 2);
    })
    .await;
}
