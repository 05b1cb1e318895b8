//! Which cloud this is: an id made with the database, and a count of how far the database has come.
//!
//! The daemons remember both ([`wire::cloud`]). Collectors conclude from the absence of a row, so they show with each call that
//! it is the daemon's own cloud, and not an older copy of its database, that lacks it. The count rises once a minute, after
//! every daemon has confirmed the present one: a copy that was taken earlier is lower than what the daemons have heard, finds
//! no confirmation, and so never catches up.

use crate::app::{App, Reconciler};
use api_kit::Fault;
use base::args;
use base::store::{Migration, Query, Store, StoreError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use wire::Refused;
use wire::cloud::{Attest, Epoch, Ground, Warrant};
use wire::ids::CloudId;

/// The table, of one row.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &["CREATE TABLE cloud_identity (one BIGINT PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL,
        epoch BIGINT NOT NULL)"],
}];

/// Which cloud this is.
#[derive(Debug)]
pub struct Identity {
    /// Its id.
    pub id: CloudId,
    troubles: Mutex<Vec<String>>,
}

impl Identity {
    /// Reads the id, or makes it when the database is new.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open(store: &Store) -> Result<Self, StoreError> {
        let id = store
            .tx(|tx| async move {
                let new = CloudId::new().to_string();
                tx.exec(
                    "INSERT INTO cloud_identity (one, id, epoch) VALUES (1, $1, 1) ON CONFLICT (one) DO NOTHING",
                    args![new],
                )
                .await?;
                let row = tx.row("SELECT id FROM cloud_identity", args![]).await?;
                row.ok_or_else(|| StoreError::Shape("the cloud has no id".to_owned()))?.parse("id")
            })
            .await?;
        Ok(Self { id, troubles: Mutex::default() })
    }

    /// The word for deleting what a row names.
    #[must_use]
    pub fn asked(&self) -> Warrant {
        Warrant { cloud: self.id, ground: Ground::Asked }
    }

    /// The word for deleting what no row names.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unknown(&self, store: &Store) -> Result<Warrant, StoreError> {
        Ok(Warrant { cloud: self.id, ground: Ground::Unknown { epoch: epoch(store).await? } })
    }

    /// What the daemons said against it the last time they were asked.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn epoch(store: &Store) -> Result<Epoch, StoreError> {
    let row = store.row("SELECT epoch FROM cloud_identity", args![]).await?;
    let row = row.ok_or_else(|| StoreError::Shape("the cloud has no id".to_owned()))?;
    Ok(Epoch(u64::try_from(row.int("epoch")?).unwrap_or(0)))
}

/// The reconciler.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    vec![Reconciler {
        name: "cloud-epoch",
        every: Duration::from_secs(60),
        nudge: |wake| &wake.cloud,
        settle: |app| Box::pin(async move { settle(&app).await }),
    }]
}

/// Lets the daemons confirm the present epoch, goes on to the next and tells them that.
///
/// # Errors
/// What a daemon refused, when one does not answer, or the database does not.
pub async fn settle(app: &App) -> Result<(), Fault> {
    let now = epoch(&app.store).await?;
    confirm(app, now).await?;
    let number = |epoch: Epoch| i64::try_from(epoch.0).unwrap_or(i64::MAX);
    let next = Epoch(now.0.saturating_add(1));
    app.store
        .tx(|tx| async move {
            // Another process may have been faster.
            tx.exec("UPDATE cloud_identity SET epoch = $1 WHERE epoch = $2", args![number(next), number(now)])
                .await
        })
        .await?;
    confirm(app, next).await
}

/// Whether what no row names may be deleted from a daemon that does not remember clouds itself: those that do are asked.
///
/// # Errors
/// What one of them refused, when one does not answer, or the database does not.
pub async fn confirmed(app: &App) -> Result<(), Fault> {
    let epoch = epoch(&app.store).await?;
    heard(app, epoch).await.into_iter().next().map_or(Ok(()), |refused| Err(refused.into()))
}

/// What the daemons have against it.
async fn heard(app: &App, epoch: Epoch) -> Vec<Refused> {
    let call = Attest { cloud: app.cloud.id, epoch };
    let (host, block) = futures::join!(app.host.call(&call), app.block.call(&call));
    [host, block].into_iter().filter_map(Result::err).collect()
}

async fn confirm(app: &App, epoch: Epoch) -> Result<(), Fault> {
    let refused = heard(app, epoch).await;
    // One that does not answer is told as a trouble of its own by `status`.
    let troubles = refused.iter().filter(|refused| !refused.kind.transient()).map(ToString::to_string);
    *app.cloud.troubles.lock().unwrap_or_else(PoisonError::into_inner) = troubles.collect();
    refused.into_iter().next().map_or(Ok(()), |refused| Err(refused.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::fake::Fake;
    use crate::testing::Cloud;
    use base::owner::Mark;
    use base::rpc::Router;
    use std::sync::Arc;
    use wire::RefusedKind;

    /// Daemons that remember, as `hostd` and `blockd` do.
    fn daemons(cloud: &Cloud, block: &Fake, host: &Arc<Mutex<Option<Mark>>>) {
        block.serve(cloud);
        let host = host.clone();
        let router = Router::new().serve(move |call: Attest| {
            let mut mark = host.lock().unwrap();
            let outcome = Mark::heard(*mark, call).map(|heard| *mark = Some(heard));
            async move { outcome }
        });
        cloud.daemon("host", router);
    }

    #[tokio::test]
    async fn the_id_stays_and_the_epoch_rises_with_everybodys_consent() {
        let (cloud, block, host) = (Cloud::new().await, Fake::default(), Arc::new(Mutex::new(None)));
        let app = &cloud.app;
        assert_eq!(Identity::open(&app.store).await.unwrap().id, app.cloud.id);
        let before = epoch(&app.store).await.unwrap();
        settle(app).await.unwrap_err();
        assert_eq!(epoch(&app.store).await.unwrap(), before, "no daemon answered");
        daemons(&cloud, &block, &host);
        settle(app).await.unwrap();
        let now = epoch(&app.store).await.unwrap();
        assert_eq!(now.0, before.0 + 1);
        let mark = Some(Mark { cloud: app.cloud.id, epoch: now });
        assert_eq!((*host.lock().unwrap(), block.with(|held| held.mark)), (mark, mark));
        assert_eq!(app.cloud.troubles(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_empty_database_and_an_older_copy_delete_nothing() {
        let (block, host) = (Fake::default(), Arc::new(Mutex::new(None)));
        let first = Cloud::new().await;
        daemons(&first, &block, &host);
        settle(&first.app).await.unwrap();
        let copy = epoch(&first.app.store).await.unwrap();
        settle(&first.app).await.unwrap();
        block.with(|held| held.blobs.insert(wire::ids::BlobId::new(), bytes::Bytes::from_static(b"data")));

        // Another database on the same daemons.
        let empty = Cloud::new().await;
        daemons(&empty, &block, &host);
        let fault = settle(&empty.app).await.unwrap_err();
        assert!(fault.to_string().contains(&first.app.cloud.id.to_string()), "{fault}");
        assert!(!empty.app.cloud.troubles().is_empty());
        crate::object::garbage::scan(&empty.app).await.unwrap_err();
        assert_eq!(block.with(|held| held.blobs.len()), 1);

        // The first one's backup.
        let restore = i64::try_from(copy.0).unwrap();
        let store = &first.app.store;
        store
            .tx(|tx| async move { tx.exec("UPDATE cloud_identity SET epoch = $1", args![restore]).await })
            .await
            .unwrap();
        daemons(&first, &block, &host);
        for _ in 0..3 {
            settle(&first.app).await.unwrap_err();
            crate::object::garbage::scan(&first.app).await.unwrap_err();
        }
        assert_eq!(block.with(|held| held.blobs.len()), 1);
        assert_eq!(epoch(store).await.unwrap(), copy, "it does not catch up by waiting");
        // What its rows name may be deleted.
        let blob = block.with(|held| *held.blobs.keys().next().unwrap());
        store
            .tx(|tx| async move { tx.exec("INSERT INTO object_dead (blob) VALUES ($1)", args![blob]).await })
            .await
            .unwrap();
        crate::object::garbage::collect(&first.app).await.unwrap();
        assert_eq!(block.with(|held| held.blobs.len()), 0);

        let foreign = Attest { cloud: CloudId::new(), epoch: Epoch(1) };
        let refused = first.app.block.call(&foreign).await.unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Forbidden);
    }
}
