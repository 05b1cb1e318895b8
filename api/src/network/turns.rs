//! Takes turns: of those who want the same thing done at the same time, one does it and the others share the outcome.
//!
//! The work is a function of the tables, so whoever asked before it began is served by it, and a hundred ports that come at
//! once are not a hundred passes over their network.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Mutex as AsyncMutex;

/// Turns by key.
#[derive(Debug)]
pub struct Turns<T>(Mutex<HashMap<String, Weak<Turn<T>>>>);

#[derive(Debug)]
struct Turn<T> {
    /// How many have asked.
    asked: AtomicU64,
    done: AsyncMutex<Option<Done<T>>>,
}

/// What the last one to work found.
#[derive(Debug)]
struct Done<T> {
    /// Those who had asked when it began.
    serves: u64,
    outcome: T,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Turns<T> {
    /// The outcome of `work` that began after this call: this caller's, or that of another who waited with it. A failure is not
    /// shared: each who waits tries by itself.
    ///
    /// # Errors
    /// What `work` says.
    pub async fn take<E, F: Future<Output = Result<T, E>>>(
        &self,
        key: &str,
        work: impl FnOnce() -> F,
    ) -> Result<T, E> {
        let turn = self.turn(key);
        let ticket = turn.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut done = turn.done.lock().await;
        if let Some(last) = done.as_ref().filter(|last| last.serves >= ticket) {
            return Ok(last.outcome.clone());
        }
        let serves = turn.asked.load(Ordering::SeqCst);
        let outcome = work().await?;
        *done = Some(Done { serves, outcome: outcome.clone() });
        Ok(outcome)
    }

    fn turn(&self, key: &str) -> Arc<Turn<T>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn { asked: AtomicU64::new(0), done: AsyncMutex::new(None) });
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn those_who_wait_together_are_served_by_one_piece_of_work_that_began_after_they_asked() {
        let turns: Arc<Turns<u32>> = Arc::default();
        let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (turns, runs, gate) = (turns.clone(), runs.clone(), gate.clone());
            tokio::spawn(async move {
                let work = || async move {
                    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.acquire().await.map_err(|_| "closed")?.forget();
                    Ok::<_, &str>(run)
                };
                turns.take("net", work).await
            })
        };
        let first = ask();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // They come while the first works on what it read before.
        let others = [ask(), ask(), ask()];
        let asked = || turns.turn("net").asked.load(Ordering::SeqCst);
        while asked() < 4 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Ok(1));
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(2));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        assert!(turns.0.lock().unwrap().values().all(|turn| turn.strong_count() == 0));
    }

    #[tokio::test]
    async fn a_failure_and_an_abandoned_turn_are_nobody_elses() {
        let turns: Arc<Turns<u32>> = Arc::default();
        let stuck = {
            let turns = turns.clone();
            tokio::spawn(async move { turns.take("net", std::future::pending::<Result<u32, ()>>).await })
        };
        tokio::task::yield_now().await;
        let (bad, good) =
            (turns.take("net", || async { Err("no") }), turns.take("net", || async { Ok::<_, &str>(7) }));
        let both = async { tokio::join!(bad, good) };
        stuck.abort();
        assert_eq!(both.await, (Err("no"), Ok(7)));
    }
}
