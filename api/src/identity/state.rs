//! What the process remembers of identity: the keys, and the callers of tokens it has seen.
//!
//! Everything remembered belongs to a generation. A change of any row of this service starts a new one after its commit,
//! and what was looked up before is dropped, also when it arrives late. Changes by other processes are noticed by the
//! counter in the database within two seconds.

use super::catalog::Catalog;
use super::keys::Keys;
use super::password::Passwords;
use super::throttle::Throttle;
use crate::app::App;
use crate::config::Config;
use api_kit::{Caller, Fault};
use base::args;
use base::store::{Boxed, Query, Tx};
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// Tokens remembered at most.
const REMEMBERED: usize = 20_000;

/// Keys, remembered callers and catalog.
#[derive(Debug)]
pub struct State {
    keys: RwLock<Arc<Keys>>,
    keys_dir: PathBuf,
    /// Hashes and checks passwords.
    pub passwords: Passwords,
    /// Who failed to log in lately.
    pub throttle: Throttle,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    generation: u64,
    changes: i64,
    callers: HashMap<String, Known>,
    catalog: Option<Arc<Catalog>>,
}

/// A token that was looked up.
#[derive(Debug, Clone)]
pub struct Known {
    /// Who it proves.
    pub caller: Arc<Caller>,
    /// When it ends, microseconds since the epoch.
    pub expires_us: i64,
}

impl State {
    /// Reads the token keys, making the first one when there is none.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn open(config: &Config) -> Result<Self, Fault> {
        let keys_dir = config.state_dir.join("token-keys");
        let keys = Keys::open(&keys_dir).map_err(|error| Fault::unavailable(error.to_string()))?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Self {
            keys: RwLock::new(Arc::new(keys)),
            keys_dir,
            passwords: Passwords::new(cores)?,
            throttle: Throttle::default(),
            memory: Mutex::default(),
        })
    }

    /// The keys of now.
    #[must_use]
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which generation of memory it is: take it before looking something up.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.memory().generation
    }

    /// The caller of a token that was looked up before.
    #[must_use]
    pub fn known(&self, token: &str) -> Option<Known> {
        self.memory().callers.get(token).cloned()
    }

    /// Remembers a token's caller, unless something changed since `generation`.
    pub fn remember(&self, generation: u64, token: &str, known: Known) {
        let mut memory = self.memory();
        if memory.generation != generation {
            return;
        }
        if memory.callers.len() >= REMEMBERED {
            let now = super::caller::now_us();
            memory.callers.retain(|_, known| known.expires_us > now);
            if memory.callers.len() >= REMEMBERED {
                memory.callers.clear();
            }
        }
        memory.callers.insert(token.to_owned(), known);
    }

    /// The remembered catalog.
    #[must_use]
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.memory().catalog.clone()
    }

    /// Remembers the catalog, unless something changed since `generation`.
    pub fn remember_catalog(&self, generation: u64, catalog: &Arc<Catalog>) {
        let mut memory = self.memory();
        if memory.generation == generation {
            memory.catalog = Some(catalog.clone());
        }
    }

    /// Starts a new generation.
    pub fn forget(&self) {
        let mut memory = self.memory();
        memory.generation += 1;
        memory.callers.clear();
        memory.catalog = None;
    }
}

/// Runs a change of identity's rows: one transaction that also counts the change, then a new generation.
///
/// # Errors
/// What the body returned.
pub fn change<'a, T, F, Fut>(app: &'a App, body: F) -> Boxed<'a, Result<T, Fault>>
where
    F: FnMut(Tx) -> Fut + Send + 'a,
    Fut: Future<Output = Result<T, Fault>> + Send + 'a,
    T: Send + 'a,
{
    Box::pin(changing(app, body))
}

async fn changing<'a, T, F, Fut>(app: &'a App, mut body: F) -> Result<T, Fault>
where
    F: FnMut(Tx) -> Fut + Send + 'a,
    Fut: Future<Output = Result<T, Fault>> + Send + 'a,
    T: Send + 'a,
{
    let outcome = app
        .store
        .tx(|tx| {
            let work = body(tx.clone());
            async move {
                let out = work.await?;
                tx.exec("UPDATE identity_changes SET n = n + 1 WHERE one = 1", args![]).await?;
                Ok::<_, Fault>(out)
            }
        })
        .await;
    // Also after a failure: the commit may have happened all the same.
    app.identity.forget();
    outcome
}

/// Forgets what is remembered when the counter moved.
///
/// # Errors
/// When the store does not answer.
pub async fn notice_changes(app: &App) -> Result<(), Fault> {
    let row = app.store.row("SELECT n FROM identity_changes WHERE one = 1", args![]).await?;
    let n = row.map_or(Ok(0), |row| row.int("n"))?;
    let moved = {
        let mut memory = app.identity.memory();
        let moved = memory.changes != n;
        memory.changes = n;
        moved
    };
    if moved {
        app.identity.forget();
    }
    Ok(())
}

/// Turns keys over when it is time, reads those that others made, and forgets old revocations.
///
/// # Errors
/// A sentence with the remedy.
pub async fn turn_keys(app: &App) -> Result<(), Fault> {
    let tokens = &app.config.tokens;
    let (every, life) =
        (Duration::from_secs(tokens.rotate_seconds.into()), Duration::from_secs(tokens.seconds.into()));
    let state = &app.identity;
    let trouble = |error: super::keys::KeyError| Fault::unavailable(error.to_string());
    Keys::rotate(&state.keys_dir, every, life).map_err(trouble)?;
    let keys = Keys::open(&state.keys_dir).map_err(trouble)?;
    *state.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    let now = super::caller::now_us();
    app.store
        .tx(|tx| async move {
            tx.exec("DELETE FROM identity_revocations WHERE expires_us < $1", args![now]).await
        })
        .await?;
    Ok(())
}
