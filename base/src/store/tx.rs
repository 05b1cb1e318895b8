//! Transactions and queries.

use super::value::{from_postgres, from_sqlite, names};
use super::{Engine, Row, Sql, Store, StoreError, Value};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Postgres, Sqlite};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

/// A future on the heap. The store's futures are boxed because the compiler cannot see that a handler's future is `Send`
/// through opaque futures that are generic over references ("implementation of `Send` is not general enough").
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What reads: the store itself (a statement of its own) or a transaction.
pub trait Query: Send + Sync {
    /// All rows of a `SELECT` (or of a `... RETURNING` inside a transaction).
    fn rows<'a>(&'a self, sql: impl Into<Sql>, args: Vec<Value>) -> Boxed<'a, Result<Vec<Row>, StoreError>>;

    /// The first row, if any.
    fn row<'a>(
        &'a self,
        sql: impl Into<Sql>,
        args: Vec<Value>,
    ) -> Boxed<'a, Result<Option<Row>, StoreError>> {
        let rows = self.rows(sql, args);
        Box::pin(async move { Ok(rows.await?.into_iter().next()) })
    }
}

/// A connection inside a transaction. Dropped in there (its caller went away, perhaps in the middle of a statement), it is
/// closed instead of going back to the pool: the server rolls back, and no late answer or queued `ROLLBACK` reaches the
/// connection's next user. (sqlx's own `Transaction` queues one, which was seen to hit a later transaction.)
enum Open {
    Sqlite(Held<Sqlite>),
    Postgres(Held<Postgres>),
}

struct Held<DB: sqlx::Database> {
    connection: PoolConnection<DB>,
    ended: bool,
}

impl<DB: sqlx::Database> Held<DB> {
    fn new(connection: PoolConnection<DB>) -> Self {
        Self { connection, ended: false }
    }
}

impl<DB: sqlx::Database> Drop for Held<DB> {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

impl Held<Sqlite> {
    async fn end(mut self, word: &'static str) -> Result<(), sqlx::Error> {
        sqlx::query(word).execute(&mut *self.connection).await?;
        self.ended = true;
        Ok(())
    }
}

impl Held<Postgres> {
    async fn end(mut self, word: &'static str) -> Result<(), sqlx::Error> {
        sqlx::query(word).execute(&mut *self.connection).await?;
        self.ended = true;
        Ok(())
    }
}

/// An open transaction: a handle that may be cloned into helper functions. It ends with [`Store::tx`]; dropped without
/// an end (the caller went away) it is rolled back.
#[derive(Clone)]
pub struct Tx {
    open: Arc<Mutex<Option<Open>>>,
    pub(super) retry: Arc<AtomicBool>,
    /// A statement failed. PostgreSQL then turns a `COMMIT` into a silent roll-back and SQLite does not: neither may commit.
    broken: Arc<AtomicBool>,
}

macro_rules! bound {
    ($query:expr, $args:expr) => {{
        let mut query = $query;
        for value in $args {
            query = match value {
                Value::Text(value) => query.bind(value),
                Value::Int(value) => query.bind(value),
                Value::Real(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

macro_rules! collect {
    ($rows:expr, $from:path) => {{
        let rows = $rows;
        match rows.first() {
            None => Ok(Vec::new()),
            Some(first) => {
                let names = names(first);
                rows.iter().map(|row| $from(row, &names)).collect()
            }
        }
    }};
}

impl Tx {
    pub(super) async fn begin(engine: &Engine) -> Result<Self, StoreError> {
        let open = match engine {
            // IMMEDIATE takes the write lock now: a reader that turns writer would have to be repeated.
            Engine::Sqlite { writer, .. } => {
                let mut held = Held::new(writer.acquire().await?);
                sqlx::query("BEGIN IMMEDIATE").execute(&mut *held.connection).await?;
                Open::Sqlite(held)
            }
            Engine::Postgres(pool) => {
                let mut held = Held::new(pool.acquire().await?);
                sqlx::query("BEGIN ISOLATION LEVEL SERIALIZABLE").execute(&mut *held.connection).await?;
                Open::Postgres(held)
            }
        };
        Ok(Self { open: Arc::new(Mutex::new(Some(open))), retry: Arc::default(), broken: Arc::default() })
    }

    /// Serialises schema changes of programs that start at the same time.
    pub(super) async fn lock_schema(&self) -> Result<(), StoreError> {
        if let Some(Open::Postgres(_)) = &*self.open.lock().await {
        } else {
            return Ok(());
        }
        self.rows("SELECT CAST(pg_advisory_xact_lock(4611686018427387) AS TEXT) AS locked", Vec::new())
            .await?;
        Ok(())
    }

    /// Runs a statement that returns no rows.
    ///
    /// # Errors
    /// What the engine says. The transaction is then to be given up.
    pub fn exec<'a>(&'a self, sql: impl Into<Sql>, args: Vec<Value>) -> Boxed<'a, Result<u64, StoreError>> {
        let text = sql.into().0.into_owned();
        Box::pin(async move {
            crate::gate::pass()?;
            let mut open = self.open.lock().await;
            let outcome = match open.as_mut() {
                None => return Err(ended()),
                Some(Open::Sqlite(tx)) => bound!(sqlx::query(AssertSqlSafe(text)), args)
                    .execute(&mut *tx.connection)
                    .await
                    .map(|done| done.rows_affected()),
                Some(Open::Postgres(tx)) => bound!(sqlx::query(AssertSqlSafe(text)), args)
                    .execute(&mut *tx.connection)
                    .await
                    .map(|done| done.rows_affected()),
            };
            outcome.map_err(|error| self.failed(&error))
        })
    }

    pub(super) async fn commit(self) -> Result<(), (StoreError, bool)> {
        if self.broken.load(Ordering::Relaxed) {
            self.rollback().await;
            let why = "a statement of the transaction failed and its body went on; nothing was saved";
            return Err((StoreError::Other(why.to_owned()), false));
        }
        let outcome = match self.open.lock().await.take() {
            None => return Err((ended(), false)),
            Some(Open::Sqlite(tx)) => tx.end("COMMIT").await,
            Some(Open::Postgres(tx)) => tx.end("COMMIT").await,
        };
        outcome.map_err(|error| StoreError::from_sqlx(&error))
    }

    pub(super) async fn rollback(self) {
        // A failed roll-back closes the connection, which rolls back too.
        let _ = match self.open.lock().await.take() {
            None => Ok(()),
            Some(Open::Sqlite(tx)) => tx.end("ROLLBACK").await,
            Some(Open::Postgres(tx)) => tx.end("ROLLBACK").await,
        };
    }

    fn failed(&self, error: &sqlx::Error) -> StoreError {
        let (error, retry) = StoreError::from_sqlx(error);
        self.broken.store(true, Ordering::Relaxed);
        if retry {
            self.retry.store(true, Ordering::Relaxed);
        }
        error
    }
}

/// Behind a shut gate a statement with rows is let through when it is plainly a reading one.
fn may_run(sql: &str) -> Result<(), StoreError> {
    let reads = sql.trim_start().get(..6).is_some_and(|verb| verb.eq_ignore_ascii_case("select"));
    if !reads {
        crate::gate::pass()?;
    }
    Ok(())
}

fn ended() -> StoreError {
    StoreError::Other("the transaction has ended".to_owned())
}

impl Query for Tx {
    fn rows<'a>(&'a self, sql: impl Into<Sql>, args: Vec<Value>) -> Boxed<'a, Result<Vec<Row>, StoreError>> {
        let text = sql.into().0.into_owned();
        Box::pin(async move {
            may_run(&text)?;
            let mut open = self.open.lock().await;
            match open.as_mut() {
                None => Err(ended()),
                Some(Open::Sqlite(tx)) => {
                    let rows =
                        bound!(sqlx::query(AssertSqlSafe(text)), args).fetch_all(&mut *tx.connection).await;
                    collect!(rows.map_err(|error| self.failed(&error))?, from_sqlite)
                }
                Some(Open::Postgres(tx)) => {
                    let rows =
                        bound!(sqlx::query(AssertSqlSafe(text)), args).fetch_all(&mut *tx.connection).await;
                    collect!(rows.map_err(|error| self.failed(&error))?, from_postgres)
                }
            }
        })
    }
}

impl Query for Store {
    fn rows<'a>(&'a self, sql: impl Into<Sql>, args: Vec<Value>) -> Boxed<'a, Result<Vec<Row>, StoreError>> {
        let text = sql.into().0.into_owned();
        Box::pin(async move {
            may_run(&text)?;
            match &self.engine {
                Engine::Sqlite { readers, .. } => {
                    let rows = bound!(sqlx::query(AssertSqlSafe(text)), args).fetch_all(readers).await?;
                    collect!(rows, from_sqlite)
                }
                Engine::Postgres(pool) => {
                    let rows = bound!(sqlx::query(AssertSqlSafe(text)), args).fetch_all(pool).await?;
                    collect!(rows, from_postgres)
                }
            }
        })
    }
}
