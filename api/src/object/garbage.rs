//! Collecting blobs that nobody names.
//!
//! Once no row names a blob, none ever will again (a copy starts from a row), so the check before the removal needs no
//! lock. An upload names its blob in `object_uploads` before the first byte is stored, and keeps touching that row.

use super::records::now_us;
use crate::app::App;
use api_kit::Fault;
use base::args;
use base::store::{Query, StoreError};
use std::collections::HashSet;
use wire::block::{ForgetBlob, ListPool};
use wire::ids::BlobId;

/// An upload that was not touched for so long (in microseconds) is over: its process died.
pub(super) const STALE_US: i64 = 10 * 60 * 1_000_000;
/// Blobs per round.
const BATCH: i64 = 500;

/// Removes blobs whose last row went.
///
/// # Errors
/// When the database or the storage daemon does not answer; the next run goes on.
pub async fn collect(app: &App) -> Result<(), Fault> {
    loop {
        let sql = "SELECT blob FROM object_dead ORDER BY blob LIMIT $1";
        let rows = app.store.rows(sql, args![BATCH]).await?;
        for row in &rows {
            let blob: BlobId = row.parse("blob")?;
            let used = app
                .store
                .row("SELECT blob FROM object_objects WHERE blob = $1 LIMIT 1", args![blob])
                .await?
                .is_some();
            if !used {
                app.block.call(&ForgetBlob { id: blob, by: app.cloud.asked() }).await?;
            }
            app.store
                .tx(|tx| async move { tx.exec("DELETE FROM object_dead WHERE blob = $1", args![blob]).await })
                .await?;
        }
        if rows.is_empty() {
            return Ok(());
        }
    }
}

/// Compares the whole pool with the rows: finds what a crash left behind, and ends uploads whose process died.
///
/// # Errors
/// When the database or the storage daemon does not answer; the next run goes on.
pub async fn scan(app: &App) -> Result<(), Fault> {
    // The pool first: a blob that is in it was named in the database before it was written.
    let pool = app.block.call(&ListPool {}).await?;
    let stale = now_us() - STALE_US;
    app.store
        .tx(|tx| async move {
            tx.exec("DELETE FROM object_uploads WHERE touched_us < $1", args![stale]).await?;
            Ok::<_, StoreError>(())
        })
        .await?;
    // One statement, so that an upload that ends meanwhile is seen on one side or the other.
    let rows = app
        .store
        .rows("SELECT blob FROM object_objects UNION SELECT blob FROM object_uploads", args![])
        .await?;
    let named = rows.iter().map(|row| row.text("blob")).collect::<Result<HashSet<_>, _>>()?;
    let lost: Vec<BlobId> =
        pool.blobs.into_iter().filter(|blob| !named.contains(&blob.to_string())).collect();
    let by = app.cloud.unknown(&app.store).await?;
    for blob in lost {
        tracing::info!(%blob, "removing a blob that nobody names");
        app.block.call(&ForgetBlob { id: blob, by }).await?;
    }
    Ok(())
}
