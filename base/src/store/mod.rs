//! The control plane's store: SQLite embedded by default, PostgreSQL when several nodes share it, one SQL text for both.
//!
//! The common subset: `$1` placeholders; columns of `TEXT`, `BIGINT`, `DOUBLE PRECISION` and `BYTEA`; truth as
//! `BIGINT` 0 or 1; times as RFC 3339 text or epoch numbers; JSON as `TEXT`; `CAST(sum(x) AS BIGINT)`;
//! `ON CONFLICT`, partial indexes and `RETURNING` work on both.
//!
//! Writes happen in [`Store::tx`] only, which repeats the body when the engine could not serialise it.

mod sql;
mod tx;
mod value;

pub use sql::{Sql, Where};
pub use tx::{Boxed, Query, Tx};
pub use value::{Row, Value};

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Values of a statement's placeholders, in order: `args![id, 3, Some("text")]`.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::Value::from($value)),*] };
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A unique, partial-unique or primary-key index said no.
    #[error("already there: {0}")]
    Duplicate(String),
    /// A foreign key or check said no.
    #[error("the database refused: {0}")]
    Constraint(String),
    /// The engine cannot be reached or has no connection free.
    #[error("the database does not answer: {0}; see that it runs and that the configured URL is right")]
    Unavailable(String),
    /// The engine could not serialise the transaction, ten times in a row.
    #[error("too many changes at once; try again")]
    Contended,
    /// The database was written by a newer version.
    #[error(
        "the database is at version {found} of '{component}', this program knows {known}; install the newer program"
    )]
    Newer {
        /// Whose tables.
        component: String,
        /// Version in the database.
        found: i64,
        /// Newest version known.
        known: i64,
    },
    /// A row did not have the shape that the code expects.
    #[error("unexpected row: {0}")]
    Shape(String),
    /// A statement that changes something came too early.
    #[error(transparent)]
    Shut(#[from] crate::gate::Shut),
    /// Anything else.
    #[error("database error: {0}")]
    Other(String),
}

impl StoreError {
    fn from_sqlx(error: &sqlx::Error) -> (Self, bool) {
        match error {
            sqlx::Error::Database(db) => {
                let code = db.code().unwrap_or_default().into_owned();
                // PostgreSQL: serialization failure, deadlock. SQLite: BUSY and LOCKED with their extended codes.
                let retry = matches!(code.as_str(), "40001" | "40P01" | "5" | "6" | "261" | "517" | "262");
                let message = db.message().to_owned();
                let known = if db.is_unique_violation() {
                    Self::Duplicate(message)
                } else if db.is_foreign_key_violation() || db.is_check_violation() {
                    Self::Constraint(message)
                } else if code.starts_with("57P") || code.starts_with("08") || code == "53300" {
                    Self::Unavailable(message)
                } else {
                    Self::Other(format!("{message} ({code})"))
                };
                (known, retry)
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Tls(_) => (Self::Unavailable(error.to_string()), false),
            other => (Self::Other(other.to_string()), false),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::from_sqlx(&error).0
    }
}

/// One forward-only step of a component's tables. Never edited once released; statements run in one transaction.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3, ... without gaps.
    pub version: i64,
    /// The statements.
    pub statements: &'static [&'static str],
}

#[derive(Debug, Clone)]
enum Engine {
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    Postgres(PgPool),
}

/// A database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    engine: Engine,
}

impl Store {
    /// Opens `sqlite:///absolute/path` (made when missing) or `postgres://user:password@host/name`.
    ///
    /// # Errors
    /// When the URL is of neither kind or the engine does not answer within ten seconds.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        if let Some(path) = url.strip_prefix("sqlite://") {
            Self::open_sqlite(Path::new(path)).await
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            // A lock that is held for longer than this is held by a client that hangs: fail and try again.
            let limits = [("lock_timeout", "10s"), ("idle_in_transaction_session_timeout", "30s")];
            let options = PgConnectOptions::from_str(url)?.options(limits).application_name("ferrostack");
            let pool = PgPoolOptions::new()
                .max_connections(16)
                .acquire_timeout(Duration::from_secs(10))
                .connect_with(options)
                .await?;
            Ok(Self { engine: Engine::Postgres(pool) })
        } else {
            Err(StoreError::Other("a database URL starts with sqlite:// or postgres://".to_owned()))
        }
    }

    async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Full: what was acknowledged survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .pragma("cache_size", "-4096")
            // A whole page of a list at once: with fewer, its two threads wake each other every few rows.
            .row_buffer_size(1024)
            .statement_cache_capacity(256);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options.clone())
            .await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { engine: Engine::Sqlite { writer, readers } })
    }

    /// `sqlite` or `postgresql`.
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        match self.engine {
            Engine::Sqlite { .. } => "sqlite",
            Engine::Postgres(_) => "postgresql",
        }
    }

    /// Brings the tables of `component` to its newest version.
    ///
    /// # Errors
    /// When a statement fails (the whole step is then undone) or the database is newer than the program.
    pub async fn migrate(&self, component: &str, steps: &'static [Migration]) -> Result<(), StoreError> {
        self.tx(|tx| async move {
            tx.lock_schema().await?;
            tx.exec(
                "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version BIGINT NOT NULL)",
                args![],
            )
            .await
        })
        .await?;
        for step in steps {
            self.tx(|tx| async move {
                tx.lock_schema().await?;
                let found = version(&tx, component).await?;
                if found >= step.version {
                    return Ok(());
                }
                for statement in step.statements {
                    tx.exec(*statement, args![]).await?;
                }
                tx.exec(
                    "INSERT INTO schema_version (component, version) VALUES ($1, $2)
                     ON CONFLICT (component) DO UPDATE SET version = excluded.version",
                    args![component, step.version],
                )
                .await?;
                Ok::<_, StoreError>(())
            })
            .await?;
        }
        let known = steps.last().map_or(0, |step| step.version);
        let found = version(self, component).await?;
        if found > known {
            return Err(StoreError::Newer { component: component.to_owned(), found, known });
        }
        Ok(())
    }

    /// Runs `body` in one serialisable transaction, which ends with its result: `Ok` commits, `Err` rolls back.
    /// The body is run again when the engine could not serialise it, so it must not do anything but database work.
    ///
    /// # Errors
    /// What the body returned, or that the commit failed.
    pub fn tx<'a, T, E, F, Fut>(&'a self, body: F) -> Boxed<'a, Result<T, E>>
    where
        F: FnMut(Tx) -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        T: Send + 'a,
        E: From<StoreError> + Send + 'a,
    {
        Box::pin(self.tx_loop(body))
    }

    async fn tx_loop<T, E, F, Fut>(&self, mut body: F) -> Result<T, E>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<StoreError>,
    {
        for attempt in 0..10u32 {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(2 << attempt.min(6))).await;
            }
            let tx = Tx::begin(&self.engine).await?;
            let outcome = body(tx.clone()).await;
            let retry = tx.retry.load(Ordering::Relaxed);
            match outcome {
                Ok(value) => match tx.commit().await {
                    Ok(()) => return Ok(value),
                    Err((_, true)) => (),
                    Err((error, false)) => return Err(error.into()),
                },
                Err(error) => {
                    tx.rollback().await;
                    if !retry {
                        return Err(error);
                    }
                }
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Closes all connections.
    pub async fn close(&self) {
        match &self.engine {
            Engine::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Engine::Postgres(pool) => pool.close().await,
        }
    }
}

async fn version(query: &impl Query, component: &str) -> Result<i64, StoreError> {
    let row = query.row("SELECT version FROM schema_version WHERE component = $1", args![component]).await?;
    row.map_or(Ok(0), |row| row.int("version"))
}

#[cfg(any(test, feature = "test-engines"))]
pub mod testing;
#[cfg(test)]
mod tests;
