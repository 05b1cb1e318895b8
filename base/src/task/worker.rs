//! Workers: lease a due task, run its step, save what comes next.

use super::{ATTEMPTS, Job, Next, Stop, Task, Tasks, insert, now_ms};
use crate::store::{Query, Row, StoreError};
use crate::{CancellationToken, args};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// How long a lease holds without being renewed. It is renewed three times as often.
const LEASE: Duration = Duration::from_secs(30);
/// How often due tasks are looked for when nobody nudges.
const POLL: Duration = Duration::from_secs(2);

/// Where, counted over all steps that the worker runs, a test makes it die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// The step was not begun.
    Before(usize),
    /// The step did its work, but nothing was saved.
    Between(usize),
    /// The step's outcome was saved.
    After(usize),
}

/// A death of the worker, for crash tests.
#[derive(Debug, Default)]
pub struct Crash {
    point: Option<CrashPoint>,
    steps: AtomicUsize,
    happened: CancellationToken,
}

impl Crash {
    /// Dies at this point.
    #[must_use]
    pub fn at(point: CrashPoint) -> Arc<Self> {
        Arc::new(Self { point: Some(point), ..Self::default() })
    }

    /// Resolves when the worker died.
    pub async fn happened(&self) {
        self.happened.cancelled().await;
    }

    /// Whether the worker died.
    #[must_use]
    pub fn died(&self) -> bool {
        self.happened.is_cancelled()
    }

    async fn check(&self, here: impl Fn(usize) -> CrashPoint, step: usize) {
        if self.point == Some(here(step)) {
            self.happened.cancel();
        }
        if self.happened.is_cancelled() {
            // Dead code runs no further; the worker's end drops it.
            std::future::pending::<()>().await;
        }
    }
}

/// A step's outcome with its type erased.
enum Outcome {
    Step(String),
    Done,
    Wait(Duration),
    Stopped(Stop),
}

trait Handler<C>: Send + Sync {
    fn run<'a>(&'a self, step: &'a str, context: &'a C, job: &'a Job) -> BoxFuture<'a, Outcome>;
    fn undo<'a>(&'a self, step: &'a str, context: &'a C, job: &'a Job) -> BoxFuture<'a, Result<(), Stop>>;
    fn failed<'a>(
        &'a self,
        step: &'a str,
        context: &'a C,
        job: &'a Job,
        why: &'a str,
    ) -> BoxFuture<'a, Result<(), Stop>>;
}

struct Typed<T>(PhantomData<fn() -> T>);

fn decode<T: Task>(step: &str) -> Result<T, Stop> {
    serde_json::from_str(step)
        .map_err(|error| Stop::Fail(format!("the saved step of {} cannot be read: {error}", T::KIND)))
}

impl<T: Task> Handler<T::Context> for Typed<T> {
    fn run<'a>(&'a self, step: &'a str, context: &'a T::Context, job: &'a Job) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let next = match decode::<T>(step) {
                Ok(step) => step.run(context, job).await,
                Err(stop) => Err(stop),
            };
            match next {
                Ok(Next::Step(next)) => match serde_json::to_string(&next) {
                    Ok(text) => Outcome::Step(text),
                    Err(error) => Outcome::Stopped(Stop::Fail(error.to_string())),
                },
                Ok(Next::Done) => Outcome::Done,
                Ok(Next::Wait(pause)) => Outcome::Wait(pause),
                Err(stop) => Outcome::Stopped(stop),
            }
        })
    }

    fn undo<'a>(
        &'a self,
        step: &'a str,
        context: &'a T::Context,
        job: &'a Job,
    ) -> BoxFuture<'a, Result<(), Stop>> {
        Box::pin(async move { decode::<T>(step)?.undo(context, job).await })
    }

    fn failed<'a>(
        &'a self,
        step: &'a str,
        context: &'a T::Context,
        job: &'a Job,
        why: &'a str,
    ) -> BoxFuture<'a, Result<(), Stop>> {
        Box::pin(async move { decode::<T>(step)?.failed(context, job, why).await })
    }
}

/// The kinds of tasks that this process works on.
pub struct Workers<C> {
    tasks: Tasks,
    handlers: HashMap<&'static str, Arc<dyn Handler<C>>>,
    crash: Arc<Crash>,
    lease: Duration,
}

struct Lease {
    /// Rises with each leasing of the task: tells this lease from a later one, also of the same owner.
    number: i64,
    until_ms: i64,
    job: Job,
    kind: String,
    state: State,
    step: String,
    entered: Vec<String>,
    why: Option<String>,
    superseded: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    Undoing,
}

impl<C: Send + Sync + 'static> Workers<C> {
    /// Works on nothing yet.
    #[must_use]
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks, handlers: HashMap::new(), crash: Arc::default(), lease: LEASE }
    }

    /// Works on `T` too.
    #[must_use]
    pub fn register<T: Task<Context = C>>(mut self) -> Self {
        self.handlers.insert(T::KIND, Arc::new(Typed::<T>(PhantomData)));
        self
    }

    /// Leases for so long instead of half a minute: a test waits for its end.
    #[must_use]
    pub fn leasing(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Dies where the test says.
    #[must_use]
    pub fn crashing(mut self, crash: Arc<Crash>) -> Self {
        self.crash = crash;
        self
    }

    /// Works on due tasks, `width` at a time, until cancelled. Steps that run then are dropped: the next start repeats them.
    ///
    /// `owner` names this process's place (the node), of which there is one: leases that its former life left behind are
    /// taken over at once.
    pub async fn run(self, context: Arc<C>, owner: String, width: usize, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let end = CancellationToken::new();
        let room = Arc::new(Semaphore::new(width));
        let running = TaskTracker::new();
        let work = async {
            while let Err(error) = this.release_leases(&owner).await {
                tracing::warn!(%error, "cannot read the task queue");
                tokio::time::sleep(POLL).await;
            }
            loop {
                let Ok(permit) = room.clone().acquire_owned().await else { return };
                match this.lease(&owner).await {
                    Ok(Some(lease)) => {
                        let (this, context, owner, end) =
                            (this.clone(), context.clone(), owner.clone(), end.clone());
                        running.spawn(async move {
                            let request_id = lease.job.request_id.clone();
                            tokio::select! {
                                () = end.cancelled() => (),
                                () = crate::log::with_request_id(request_id, this.work(lease, &context, &owner)) => (),
                            }
                            drop(permit);
                            // Room again: perhaps for the task's successor.
                            this.tasks.wake();
                        });
                    }
                    Ok(None) => {
                        drop(permit);
                        let pause = this.pause().await;
                        tokio::select! { () = this.tasks.nudge.woken() => (), () = tokio::time::sleep(pause) => () }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot lease a task");
                        drop(permit);
                        tokio::time::sleep(POLL).await;
                    }
                }
            }
        };
        tokio::select! {
            () = work => (),
            () = shutdown.cancelled() => (),
            () = this.crash.happened() => (),
        }
        end.cancel();
        running.close();
        running.wait().await;
    }

    async fn release_leases(&self, owner: &str) -> Result<(), StoreError> {
        self.tasks
            .store
            .tx(|tx| async move {
                let sql = "UPDATE tasks SET lease_until_ms = 0 WHERE lease_owner = $1 AND state IN ('live', 'undoing')";
                tx.exec(sql, args![owner]).await
            })
            .await
            .map(|_| ())
    }

    /// How long until the next task is due, at most [`POLL`].
    async fn pause(&self) -> Duration {
        let sql =
            "SELECT MIN(due_ms) AS due_ms FROM tasks WHERE state IN ('live', 'undoing') AND due_ms > $1";
        let row = self.tasks.store.row(sql, args![now_ms()]).await;
        let due = row.ok().flatten().and_then(|row| row.opt_int("due_ms").ok().flatten());
        let wait =
            due.map_or(POLL, |due| Duration::from_millis(u64::try_from(due - now_ms()).unwrap_or(0) + 1));
        wait.min(POLL)
    }

    async fn lease(&self, owner: &str) -> Result<Option<Lease>, StoreError> {
        const DUE: &str = "SELECT id FROM tasks WHERE state IN ('live', 'undoing') AND due_ms <= $1
            AND lease_until_ms <= $2 ORDER BY due_ms, id LIMIT 1";
        // A plain read first: an idle worker takes no write lock.
        if self.tasks.store.row(DUE, args![now_ms(), now_ms()]).await?.is_none() {
            return Ok(None);
        }
        let row = self
            .tasks
            .store
            .tx(|tx| async move {
                let now = now_ms();
                let Some(found) = tx.row(DUE, args![now, now]).await? else { return Ok(None) };
                let sql =
                    "UPDATE tasks SET lease_owner = $1, lease_until_ms = $2, lease_number = lease_number + 1
                    WHERE id = $3 RETURNING *";
                tx.row(sql, args![owner, now + self.lease_ms(), found.text("id")?]).await
            })
            .await?;
        row.map(|row| read(&row)).transpose()
    }

    /// Runs a leased task until it ends, waits, or is lost to another worker.
    async fn work(&self, mut lease: Lease, context: &C, owner: &str) {
        let Some(handler) = self.handlers.get(lease.kind.as_str()).cloned() else {
            tracing::error!(
                kind = lease.kind,
                "no worker knows this kind of task; install the version that wrote it"
            );
            let _ = self.save(&lease, owner, Save::Again { pause_ms: 60_000, why: None }).await;
            return;
        };
        loop {
            let number = self.crash.steps.fetch_add(1, Ordering::Relaxed);
            self.crash.check(CrashPoint::Before, number).await;
            // Both are polled all the time: a step that holds a transaction must be able to end it while the renewal waits.
            let save = tokio::select! {
                save = self.act(&*handler, &lease, context) => save,
                () = self.keep(&lease, owner) => {
                    // Another worker does this step now; it is idempotent, but never meant to run beside itself.
                    tracing::warn!(task = lease.job.id, kind = lease.kind, "a lease was lost; the step is dropped");
                    return;
                }
            };
            self.crash.check(CrashPoint::Between, number).await;
            match self.save(&lease, owner, save).await {
                Ok(Some(next)) => lease = next,
                Ok(None) => {
                    self.crash.check(CrashPoint::After, number).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, task = lease.job.id, "cannot save a task's step; it will be repeated");
                    return;
                }
            }
            self.crash.check(CrashPoint::After, number).await;
        }
    }

    /// Does what the task's state asks for next and says what to save.
    async fn act(&self, handler: &dyn Handler<C>, lease: &Lease, context: &C) -> Save {
        let job = &lease.job;
        if lease.state == State::Undoing {
            let why = lease.why.as_deref().unwrap_or("unknown");
            let outcome = match lease.entered.last() {
                Some(step) => handler.undo(step, context, job).await,
                None => handler.failed(&lease.step, context, job, why).await,
            };
            return match outcome {
                Ok(()) if lease.entered.is_empty() => Save::Failed,
                Ok(()) => Save::Undone,
                Err(Stop::Retry(trouble)) => {
                    tracing::warn!(task = job.id, kind = lease.kind, trouble, "cannot undo yet");
                    Save::Again { pause_ms: backoff_ms(job.attempts), why: None }
                }
                // Only the report to the user is lost.
                Err(Stop::Fail(trouble)) if lease.entered.is_empty() => {
                    tracing::error!(
                        task = job.id,
                        kind = lease.kind,
                        trouble,
                        "cannot store why a task failed"
                    );
                    Save::Failed
                }
                // Never past it: what is left would be nobody's, and earlier steps count on later ones being undone.
                Err(Stop::Fail(trouble)) => {
                    tracing::error!(
                        task = job.id,
                        kind = lease.kind,
                        trouble,
                        "a step cannot be undone; it stays and is tried again"
                    );
                    Save::Again { pause_ms: backoff_ms(job.attempts).saturating_mul(10), why: None }
                }
            };
        }
        if lease.superseded {
            return Save::Undo("it was superseded by a later request".to_owned());
        }
        // What is entered is undone, so it is on record before it begins.
        if lease.entered.last() != Some(&lease.step) {
            return Save::Enter;
        }
        match handler.run(&lease.step, context, job).await {
            Outcome::Step(next) => Save::Step(next),
            Outcome::Done => Save::Done,
            Outcome::Wait(pause) => {
                Save::Wait { pause_ms: i64::try_from(pause.as_millis()).unwrap_or(i64::MAX) }
            }
            Outcome::Stopped(Stop::Retry(why)) if job.attempts + 1 < ATTEMPTS => {
                tracing::warn!(
                    task = job.id,
                    kind = lease.kind,
                    why,
                    attempt = job.attempts + 1,
                    "a step will be tried again"
                );
                Save::Again { pause_ms: backoff_ms(job.attempts), why: Some(why) }
            }
            Outcome::Stopped(Stop::Retry(why) | Stop::Fail(why)) => {
                tracing::warn!(task = job.id, kind = lease.kind, why, "a task fails and is undone");
                Save::Undo(why)
            }
        }
    }

    fn lease_ms(&self) -> i64 {
        i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX)
    }

    /// Renews a lease again and again; returns when it is lost.
    async fn keep(&self, lease: &Lease, owner: &str) {
        let mut until = lease.until_ms;
        loop {
            tokio::time::sleep(self.lease / 3).await;
            match self.renew(lease, owner).await {
                Ok(Some(renewed)) => until = renewed,
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, task = lease.job.id, "cannot renew a lease"),
            }
            // Whoever cannot renew must stop before the others may begin.
            if now_ms() >= until - self.lease_ms() / 3 {
                return;
            }
        }
    }

    /// Until when the lease holds now; `None` when it is another's.
    async fn renew(&self, lease: &Lease, owner: &str) -> Result<Option<i64>, StoreError> {
        let until = now_ms() + self.lease_ms();
        let changed = self
            .tasks
            .store
            .tx(|tx| async move {
                let sql = "UPDATE tasks SET lease_until_ms = $1 WHERE id = $2 AND lease_owner = $3 AND lease_number = $4
                    AND state IN ('live', 'undoing')";
                tx.exec(sql, args![until, &*lease.job.id, owner, lease.number]).await
            })
            .await?;
        Ok((changed > 0).then_some(until))
    }

    /// Saves an outcome in one transaction and returns the task as it goes on, or `None` when this worker is done with it.
    async fn save(&self, lease: &Lease, owner: &str, save: Save) -> Result<Option<Lease>, StoreError> {
        let save = &save;
        let row = self
            .tasks
            .store
            .tx(|tx| async move {
                let now = now_ms();
                // Numbered: a new life of the same owner may have leased it since.
                let sql = "SELECT * FROM tasks WHERE id = $1 AND lease_owner = $2 AND lease_number = $3
                    AND state IN ('live', 'undoing')";
                let Some(row) = tx.row(sql, args![&*lease.job.id, owner, lease.number]).await? else { return Ok(None) };
                let change = save.change(lease);
                let until = if change.keeps { now + self.lease_ms() } else { 0 };
                let sql = "UPDATE tasks SET state = $1, step = $2, entered = $3, why = $4, attempts = $5, due_ms = $6,
                        lease_until_ms = $7, updated_ms = $8 WHERE id = $9 RETURNING *";
                let entered = serde_json::to_string(&change.entered).map_err(|e| StoreError::Shape(e.to_string()))?;
                // A request to supersede makes a waiting task due at once.
                let pause = if row.truth("superseded")? && change.state == "live" { 0 } else { change.pause_ms };
                let values = args![
                    change.state, change.step, entered, change.why, change.attempts, now.saturating_add(pause),
                    until, now, &*lease.job.id
                ];
                let saved = tx.row(sql, values).await?;
                let ended = matches!(change.state, "done" | "failed");
                if let (true, Some(kind), Some(step)) = (ended, row.opt_text("next_kind")?, row.opt_text("next_step")?) {
                    let request_id = row.opt_text("next_request_id")?.unwrap_or_default();
                    insert(&tx, &kind, &lease.job.subject, &step, &request_id).await?;
                }
                Ok::<_, StoreError>(if change.keeps { saved } else { None })
            })
            .await?;
        row.map(|row| read(&row)).transpose()
    }
}

/// What to save of a step.
enum Save {
    /// The step is about to begin.
    Enter,
    Step(String),
    Done,
    Wait {
        pause_ms: i64,
    },
    Again {
        pause_ms: i64,
        why: Option<String>,
    },
    Undo(String),
    Undone,
    Failed,
}

struct Change {
    state: &'static str,
    step: String,
    entered: Vec<String>,
    why: Option<String>,
    attempts: i64,
    pause_ms: i64,
    keeps: bool,
}

impl Save {
    fn change(&self, lease: &Lease) -> Change {
        let same = Change {
            state: match lease.state {
                State::Live => "live",
                State::Undoing => "undoing",
            },
            step: lease.step.clone(),
            entered: lease.entered.clone(),
            why: lease.why.clone(),
            attempts: 0,
            pause_ms: 0,
            keeps: true,
        };
        let shorter = || lease.entered.split_last().map(|(_, rest)| rest.to_vec()).unwrap_or_default();
        match self {
            Self::Enter => {
                let mut entered = lease.entered.clone();
                entered.push(lease.step.clone());
                Change { entered, attempts: lease.job.attempts, ..same }
            }
            // The next step is entered in the same breath: one transaction a step.
            Self::Step(next) => {
                let mut entered = lease.entered.clone();
                entered.push(next.clone());
                Change { step: next.clone(), entered, why: None, ..same }
            }
            Self::Done => Change { state: "done", why: None, keeps: false, ..same },
            Self::Wait { pause_ms } => Change { pause_ms: *pause_ms, keeps: false, ..same },
            Self::Again { pause_ms, why } => Change {
                why: why.clone().or_else(|| lease.why.clone()),
                attempts: lease.job.attempts + 1,
                pause_ms: *pause_ms,
                keeps: false,
                ..same
            },
            Self::Undo(why) => Change { state: "undoing", why: Some(why.clone()), ..same },
            Self::Undone => Change { entered: shorter(), ..same },
            Self::Failed => Change { state: "failed", keeps: false, ..same },
        }
    }
}

/// 0.1 s, doubling, at most 30 s.
fn backoff_ms(attempts: i64) -> i64 {
    100i64.checked_shl(u32::try_from(attempts.clamp(0, 9)).unwrap_or(9)).unwrap_or(30_000).min(30_000)
}

fn entered(row: &Row) -> Result<Vec<String>, StoreError> {
    row.json("entered")
}

fn read(row: &Row) -> Result<Lease, StoreError> {
    Ok(Lease {
        number: row.int("lease_number")?,
        until_ms: row.int("lease_until_ms")?,
        job: Job {
            id: row.text("id")?,
            subject: row.text("subject")?,
            request_id: row.text("request_id")?,
            attempts: row.int("attempts")?,
            created_ms: row.int("created_ms")?,
        },
        kind: row.text("kind")?,
        state: if row.text("state")? == "undoing" { State::Undoing } else { State::Live },
        step: row.text("step")?,
        entered: entered(row)?,
        why: row.opt_text("why")?,
        superseded: row.truth("superseded")?,
    })
}
