//! One operation at a time on each thing in the pool: a repeated call waits for the first and then finds its result.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;
use wire::ids::{BlobId, DiskId, SnapshotId};

/// What can be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    /// A disk.
    Disk(DiskId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A blob and its raw form.
    Blob(BlobId),
}

impl From<DiskId> for Thing {
    fn from(id: DiskId) -> Self {
        Self::Disk(id)
    }
}
impl From<SnapshotId> for Thing {
    fn from(id: SnapshotId) -> Self {
        Self::Snapshot(id)
    }
}
impl From<BlobId> for Thing {
    fn from(id: BlobId) -> Self {
        Self::Blob(id)
    }
}

type Table = Arc<Mutex<HashMap<Thing, Arc<tokio::sync::Mutex<()>>>>>;

/// The locks that are held or waited for.
#[derive(Debug, Default)]
pub struct Locks(Table);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Held {
    thing: Thing,
    table: Table,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits until nothing else works on `thing`.
    pub async fn take(&self, thing: impl Into<Thing>) -> Held {
        let thing = thing.into();
        let lock = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(thing).or_default().clone();
        Held { thing, table: self.0.clone(), guard: Some(lock.lock_owned().await) }
    }

    /// Takes several, in one order for everybody: two calls that want the same two never wait for each other.
    pub async fn take_all(&self, things: impl IntoIterator<Item = Thing>) -> Vec<Held> {
        let mut things: Vec<Thing> = things.into_iter().collect();
        things.sort_unstable();
        things.dedup();
        let mut held = Vec::with_capacity(things.len());
        for thing in things {
            held.push(self.take(thing).await);
        }
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        // Waiters hold clones of the lock: with only the table's left, nobody waits.
        if table.get(&self.thing).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.thing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_at_a_time_and_nothing_is_kept() {
        let locks = Arc::new(Locks::default());
        let id = DiskId::new();
        let first = locks.take(id).await;
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { drop(locks.take(id).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(locks.take(DiskId::new()).await);
        drop(first);
        waiting.await.unwrap();
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
