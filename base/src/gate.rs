//! A gate before everything that changes: while a piece of work runs behind a shut gate, the store takes no statement
//! but `SELECT` and no daemon is called.
//!
//! The API kit runs a handler behind one that opens when the operation's policy was enforced against what the request
//! touches. So a handler that forgot cannot have changed anything by the time that this is noticed. Work that runs
//! outside a gate (task workers, reconcilers, tests) is not held up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

tokio::task_local! {
    static GATE: Gate;
}

/// Open or shut; all clones are the same gate. It never shuts again.
#[derive(Debug, Clone)]
pub struct Gate(Arc<AtomicBool>);

/// The gate was shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "something was to be changed before the operation's policy was enforced; the handler must call enforce first"
)]
pub struct Shut;

impl Gate {
    /// A gate that is open or shut.
    #[must_use]
    pub fn new(open: bool) -> Self {
        Self(Arc::new(AtomicBool::new(open)))
    }

    /// Opens it.
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Runs work behind this gate.
    pub async fn guard<F: Future>(self, work: F) -> F::Output {
        GATE.scope(self, work).await
    }
}

/// Whether the running work may change something: it runs behind no gate or behind an open one.
///
/// # Errors
/// [`Shut`]
pub fn pass() -> Result<(), Shut> {
    match GATE.try_with(Gate::is_open) {
        Ok(false) => Err(Shut),
        Ok(true) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;
    use crate::store::testing::on_both;
    use crate::store::{Query, StoreError};

    #[tokio::test]
    async fn behind_a_shut_gate_only_reading_works() {
        on_both(|db| async move {
            let store = &db.store;
            store
                .tx(|tx| async move { tx.exec("CREATE TABLE t (n BIGINT PRIMARY KEY)", args![]).await })
                .await
                .unwrap();
            let gate = Gate::new(false);
            let work = async {
                let refused =
                    store.tx(|tx| async move { tx.exec("INSERT INTO t (n) VALUES (1)", args![]).await });
                assert!(matches!(refused.await, Err(StoreError::Shut(_))));
                let hidden = store.tx(|tx| async move {
                    tx.rows(" insert INTO t (n) VALUES (2) RETURNING n", args![]).await
                });
                assert!(matches!(hidden.await, Err(StoreError::Shut(_))));
                let read = store.tx(|tx| async move { tx.rows("SELECT n FROM t", args![]).await });
                assert!(read.await.unwrap().is_empty());
                assert!(store.rows("SELECT n FROM t", args![]).await.unwrap().is_empty());
                gate.open();
                store
                    .tx(|tx| async move { tx.exec("INSERT INTO t (n) VALUES (3)", args![]).await })
                    .await
                    .unwrap();
            };
            gate.clone().guard(work).await;
            let rows = store.rows("SELECT n FROM t", args![]).await.unwrap();
            assert_eq!(rows[0].int("n").unwrap(), 3);
            assert_eq!(rows.len(), 1);
        })
        .await;
    }

    #[tokio::test]
    async fn behind_a_shut_gate_no_daemon_is_called() {
        let client = crate::rpc::Client::new("/nonexistent/socket");
        let gate = Gate::new(false);
        let refused = gate.clone().guard(client.call(&wire::Health {})).await.err().unwrap();
        assert!(refused.to_string().contains("policy"), "{refused}");
        gate.open();
        let refused = gate.guard(client.call(&wire::Health {})).await.err().unwrap();
        assert!(refused.to_string().contains("does not answer"), "{refused}");
    }
}
