//! Durable tasks: long work is a row, not a future.
//!
//! A task is an enum of steps, each variant carrying exactly what it and the later ones need. The row is written in the
//! transaction that changes the resource ([`Tasks::enqueue`]); a worker leases it, runs a step (which is idempotent), and
//! saves the next step in one transaction. Recovery is an expired lease, nothing special.
//!
//! ```text
//!            enqueue                    Next::Done
//!   (none) ----------> live(step 1..n) -----------> done
//!                        |  Stop::Fail, too many retries, superseded
//!                        v
//!                     undoing(entered steps, backwards) --> failed()  --> failed
//! ```
//!
//! A partial unique index allows one live task per subject: whoever finds the subject busy gets
//! [`StoreError::Duplicate`], never a race.

mod worker;

pub use worker::{Crash, CrashPoint, Workers};

use crate::args;
use crate::reconcile::Nudge;
use crate::store::{Migration, Query, Row, Store, StoreError, Tx, Where};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::time::Duration;

/// A kind of long work: an enum of its steps.
pub trait Task: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name in the database, `service.verb-noun`. Never changed once released.
    const KIND: &'static str;
    /// What steps work with.
    type Context: Send + Sync + 'static;

    /// Does this step. It may run again after a crash, so it is idempotent.
    fn run(
        &self,
        context: &Self::Context,
        job: &Job,
    ) -> impl Future<Output = Result<Next<Self>, Stop>> + Send;

    /// Takes back what this step did or half did. Runs backwards over all steps that were entered, also repeatedly.
    ///
    /// Whatever it answers but `Ok`, it is tried again, for ever and with growing pauses: earlier steps are not undone
    /// before it, and the subject stays busy. What is gone anyway is `Ok`.
    fn undo(&self, context: &Self::Context, job: &Job) -> impl Future<Output = Result<(), Stop>> + Send;

    /// The last act after everything was undone: stores the fault for the user to see. Idempotent.
    fn failed(
        &self,
        context: &Self::Context,
        job: &Job,
        why: &str,
    ) -> impl Future<Output = Result<(), Stop>> + Send;
}

/// What comes after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// This step.
    Step(T),
    /// Nothing: the task is done.
    Done,
    /// The same step again, not sooner than this.
    Wait(Duration),
}

/// Why a step stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Something that may pass: the step is repeated with growing pauses, [`ATTEMPTS`] times, then it fails.
    #[error("{0}")]
    Retry(String),
    /// No use to go on: what was done is undone. The text is shown to the user: cause and remedy. Of an undo it means
    /// only that somebody should look: it is tried again all the same.
    #[error("{0}")]
    Fail(String),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Retry(error.to_string())
    }
}

impl From<wire::Refused> for Stop {
    fn from(refused: wire::Refused) -> Self {
        if refused.kind.transient() {
            Self::Retry(refused.to_string())
        } else {
            Self::Fail(refused.to_string())
        }
    }
}

/// How often a step is tried before a transient trouble becomes a failure.
pub const ATTEMPTS: i64 = 8;

/// The task that a step runs for.
#[derive(Debug, Clone)]
pub struct Job {
    /// Id of the task.
    pub id: String,
    /// What it is about, `kind:id`.
    pub subject: String,
    /// The request that asked for it.
    pub request_id: String,
    /// Tries of this step so far that ended in [`Stop::Retry`].
    pub attempts: i64,
    /// When it was asked for, milliseconds since the epoch.
    pub created_ms: i64,
}

/// A task as shown to people.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    /// Id of the task.
    pub id: String,
    /// [`Task::KIND`].
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// The step it is at, as serialised.
    pub step: serde_json::Value,
    /// `live`, `undoing`, `done` or `failed`.
    pub state: String,
    /// The last trouble, if any.
    pub why: Option<String>,
    /// The request that asked for it.
    pub request_id: String,
    /// When it was asked for, milliseconds since the epoch.
    pub created_ms: i64,
    /// When it last moved, milliseconds since the epoch.
    pub updated_ms: i64,
}

/// Tables of this module; migrate them as component `task`.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        statements: &[
            "CREATE TABLE tasks (
            id TEXT PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, request_id TEXT NOT NULL,
            state TEXT NOT NULL, step TEXT NOT NULL, entered TEXT NOT NULL, why TEXT,
            attempts BIGINT NOT NULL, due_ms BIGINT NOT NULL,
            lease_owner TEXT, lease_until_ms BIGINT NOT NULL,
            superseded BIGINT NOT NULL, next_kind TEXT, next_step TEXT, next_request_id TEXT,
            created_ms BIGINT NOT NULL, updated_ms BIGINT NOT NULL)",
            "CREATE UNIQUE INDEX tasks_live ON tasks (subject) WHERE state IN ('live', 'undoing')",
            "CREATE INDEX tasks_due ON tasks (due_ms) WHERE state IN ('live', 'undoing')",
            "CREATE INDEX tasks_subject ON tasks (subject, created_ms)",
        ],
    },
    Migration {
        version: 2,
        statements: &["ALTER TABLE tasks ADD COLUMN lease_number BIGINT NOT NULL DEFAULT 0"],
    },
];

/// The queue of tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    store: Store,
    nudge: Nudge,
}

impl Tasks {
    /// The queue in this store, whose tables are brought up to date.
    ///
    /// # Errors
    /// When the migration fails.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        store.migrate("task", MIGRATIONS).await?;
        Ok(Self { store, nudge: Nudge::default() })
    }

    /// Adds a task in the caller's transaction. Call [`Tasks::wake`] after the commit so that it starts at once.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when a task of this subject is live: the subject is busy.
    pub async fn enqueue<T: Task>(&self, tx: &Tx, subject: &str, first: &T) -> Result<String, StoreError> {
        insert(tx, T::KIND, subject, &encode(first)?, &request_id()).await
    }

    /// Adds a task that stands above a live one of the same subject (a delete during a create): the live one is undone at
    /// its next step, then this one runs. Asked twice, the first asking stays.
    ///
    /// # Errors
    /// What the store says.
    pub async fn supersede<T: Task>(&self, tx: &Tx, subject: &str, first: &T) -> Result<(), StoreError> {
        let changed = tx
            .exec(
                "UPDATE tasks SET superseded = 1, due_ms = $1,
                    next_kind = COALESCE(next_kind, $2), next_step = COALESCE(next_step, $3),
                    next_request_id = COALESCE(next_request_id, $4)
                 WHERE subject = $5 AND state IN ('live', 'undoing')",
                args![now_ms(), T::KIND, encode(first)?, request_id(), subject],
            )
            .await?;
        if changed == 0 {
            self.enqueue(tx, subject, first).await?;
        }
        Ok(())
    }

    /// Starts due tasks now.
    pub fn wake(&self) {
        self.nudge.nudge();
    }

    /// The live task of a subject.
    ///
    /// # Errors
    /// What the store says.
    pub async fn live(query: &impl Query, subject: &str) -> Result<Option<TaskView>, StoreError> {
        let sql = "SELECT * FROM tasks WHERE subject = $1 AND state IN ('live', 'undoing')";
        query.row(sql, args![subject]).await?.map(|row| view(&row)).transpose()
    }

    /// The live tasks of many subjects.
    ///
    /// # Errors
    /// What the store says.
    pub async fn live_of(query: &impl Query, subjects: &[String]) -> Result<Vec<TaskView>, StoreError> {
        let mut select = Where::new("SELECT * FROM tasks");
        select.and("state IN ('live', 'undoing')", []).and_in("subject", subjects.iter().map(Into::into));
        let (sql, args) = select.build();
        query.rows(sql, args).await?.iter().map(view).collect()
    }

    /// The live tasks whose subject begins so: a plain text without `%` and `_`.
    ///
    /// # Errors
    /// What the store says.
    pub async fn live_below(query: &impl Query, prefix: &str) -> Result<Vec<TaskView>, StoreError> {
        let sql = "SELECT * FROM tasks WHERE state IN ('live', 'undoing') AND subject LIKE $1";
        query.rows(sql, args![format!("{prefix}%")]).await?.iter().map(view).collect()
    }

    /// The steps of all tasks that are not over, entered ones too, as JSON: what they name is in use.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn live_steps(query: &impl Query) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT step, entered, next_step FROM tasks WHERE state IN ('live', 'undoing')";
        let rows = query.rows(sql, args![]).await?;
        let all = |row: &Row| {
            let next = row.opt_text("next_step")?.unwrap_or_default();
            Ok(format!("{} {} {next}", row.text("step")?, row.text("entered")?))
        };
        rows.iter().map(all).collect()
    }

    /// All tasks of a subject, the newest first, at most 200.
    ///
    /// # Errors
    /// What the store says.
    pub async fn history(query: &impl Query, subject: &str) -> Result<Vec<TaskView>, StoreError> {
        let sql = "SELECT * FROM tasks WHERE subject = $1 ORDER BY created_ms DESC, id DESC LIMIT 200";
        query.rows(sql, args![subject]).await?.iter().map(view).collect()
    }

    /// Forgets tasks that ended before this time.
    ///
    /// # Errors
    /// What the store says.
    pub async fn forget_ended(&self, before_ms: i64) -> Result<u64, StoreError> {
        self.store
            .tx(|tx| async move {
                let sql = "DELETE FROM tasks WHERE state IN ('done', 'failed') AND updated_ms < $1";
                tx.exec(sql, args![before_ms]).await
            })
            .await
    }
}

fn encode<T: Task>(step: &T) -> Result<String, StoreError> {
    serde_json::to_string(step).map_err(|error| StoreError::Shape(error.to_string()))
}

fn request_id() -> String {
    crate::log::request_id().unwrap_or_else(crate::log::new_request_id)
}

async fn insert(
    tx: &Tx,
    kind: &str,
    subject: &str,
    step: &str,
    request_id: &str,
) -> Result<String, StoreError> {
    let id = uuid::Uuid::now_v7().hyphenated().to_string();
    let now = now_ms();
    tx.exec(
        "INSERT INTO tasks (id, kind, subject, request_id, state, step, entered, attempts, due_ms, lease_until_ms,
            superseded, created_ms, updated_ms)
         VALUES ($1, $2, $3, $4, 'live', $5, '[]', 0, $6, 0, 0, $7, $8)",
        args![&*id, kind, subject, request_id, step, now, now, now],
    )
    .await?;
    Ok(id)
}

fn view(row: &Row) -> Result<TaskView, StoreError> {
    Ok(TaskView {
        id: row.text("id")?,
        kind: row.text("kind")?,
        subject: row.text("subject")?,
        step: row.json("step")?,
        state: row.text("state")?,
        why: row.opt_text("why")?,
        request_id: row.text("request_id")?,
        created_ms: row.int("created_ms")?,
        updated_ms: row.int("updated_ms")?,
    })
}

/// Milliseconds since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod tests;
