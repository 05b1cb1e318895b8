//! Quotas: how much of a resource a project may have.
//!
//! A limit is a row of its own only when somebody set it; else the service's default holds. `-1` is no limit. The check
//! runs inside the transaction that adds the resource, so that two requests cannot both take the last one.

use crate::Fault;
use base::args;
use base::store::{Migration, Query, StoreError, Tx};
use std::collections::BTreeMap;

/// The tables, for the component `kit`.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &["CREATE TABLE kit_quotas (
        service TEXT NOT NULL, project_id TEXT NOT NULL, resource TEXT NOT NULL, hard_limit BIGINT NOT NULL,
        PRIMARY KEY (service, project_id, resource))"],
}];

/// A service's resources with their default limits.
pub type Defaults = &'static [(&'static str, i64)];

/// The limits of a project: the defaults with what was set for it.
///
/// # Errors
/// When the store does not answer.
pub async fn limits(
    query: &impl Query,
    service: &str,
    project: &str,
    defaults: Defaults,
) -> Result<BTreeMap<String, i64>, StoreError> {
    let mut out: BTreeMap<String, i64> =
        defaults.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
    let rows = query
        .rows(
            "SELECT resource, hard_limit FROM kit_quotas WHERE service = $1 AND project_id = $2",
            args![service, project],
        )
        .await?;
    for row in rows {
        // A resource that the service no longer has is not shown.
        if let Some(limit) = out.get_mut(&row.text("resource")?) {
            *limit = row.int("hard_limit")?;
        }
    }
    Ok(out)
}

/// Sets limits of a project.
///
/// # Errors
/// When the store does not answer.
pub async fn set(tx: &Tx, service: &str, project: &str, limits: &[(String, i64)]) -> Result<(), StoreError> {
    for (resource, limit) in limits {
        tx.exec(
            "INSERT INTO kit_quotas (service, project_id, resource, hard_limit) VALUES ($1, $2, $3, $4)
             ON CONFLICT (service, project_id, resource) DO UPDATE SET hard_limit = excluded.hard_limit",
            args![service, project, resource, *limit],
        )
        .await?;
    }
    Ok(())
}

/// Takes a project back to the defaults.
///
/// # Errors
/// When the store does not answer.
pub async fn reset(tx: &Tx, service: &str, project: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM kit_quotas WHERE service = $1 AND project_id = $2", args![service, project])
        .await
        .map(|_| ())
}

/// A limit that would be passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// Of which resource.
    pub resource: String,
    /// The limit.
    pub limit: i64,
    /// In use already.
    pub in_use: i64,
    /// Asked for on top.
    pub asked: i64,
}

/// Whether `delta` more of a resource fits, as an answer that the service words itself.
///
/// # Errors
/// When the store does not answer.
pub async fn fits(
    tx: &Tx,
    service: &str,
    project: &str,
    (resource, default): (&str, i64),
    in_use: i64,
    delta: i64,
) -> Result<Result<(), Over>, StoreError> {
    let row = tx
        .row(
            "SELECT hard_limit FROM kit_quotas WHERE service = $1 AND project_id = $2 AND resource = $3",
            args![service, project, resource],
        )
        .await?;
    let limit = row.map_or(Ok(default), |row| row.int("hard_limit"))?;
    if limit < 0 || delta <= 0 || in_use.saturating_add(delta) <= limit {
        return Ok(Ok(()));
    }
    Ok(Err(Over { resource: resource.to_owned(), limit, in_use, asked: delta }))
}

/// Whether `delta` more of a resource fits.
///
/// # Errors
/// 403 in compute's words when it does not; use [`fits`] for other words.
pub async fn check(
    tx: &Tx,
    service: &str,
    project: &str,
    resource: (&str, i64),
    in_use: i64,
    delta: i64,
) -> Result<(), Fault> {
    fits(tx, service, project, resource, in_use, delta).await?.map_err(|over| {
        Fault::over_quota(format!(
            "Quota exceeded for {0}: Requested {1}, but already used {2} of {3} {0}",
            over.resource, over.asked, over.in_use, over.limit
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::store::testing::on_both;

    const DEFAULTS: Defaults = &[("instances", 2), ("cores", -1)];

    #[tokio::test]
    async fn limits_hold_until_they_are_changed() {
        on_both(|db| async move {
            db.store.migrate("kit", MIGRATIONS).await.unwrap();
            let ask = async |in_use: i64| {
                db.store
                    .tx(|tx| async move { check(&tx, "compute", "p", DEFAULTS[0], in_use, 1).await })
                    .await
            };
            ask(1).await.unwrap();
            let fault = ask(2).await.unwrap_err();
            assert_eq!(fault.status.as_u16(), 403);
            assert!(fault.message.contains("instances") && fault.message.contains("2 of 2"), "{fault}");
            let new = [("instances".to_owned(), -1), ("forgotten".to_owned(), 5)];
            let new = &new;
            db.store.tx(|tx| async move { set(&tx, "compute", "p", new).await }).await.unwrap();
            ask(1000).await.unwrap();
            let seen = limits(&db.store, "compute", "p", DEFAULTS).await.unwrap();
            assert_eq!(seen, [("cores".to_owned(), -1), ("instances".to_owned(), -1)].into());
            db.store.tx(|tx| async move { reset(&tx, "compute", "p").await }).await.unwrap();
            ask(2).await.unwrap_err();
        })
        .await;
    }
}
