//! How many images, and bytes of them, a project may have. The names are those of Glance's registered limits.

use crate::app::App;
use crate::config::ImageLimits;
use api_kit::{Call, Fault, Outcome, Reply};
use base::args;
use base::store::{Query, StoreError};
use serde_json::json;

/// What a project has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Images.
    count: i64,
    /// Images whose data is on its way.
    uploading: i64,
    /// Bytes of the others.
    bytes: i64,
}

async fn usage(query: &impl Query, project: &str) -> Result<Usage, StoreError> {
    let sql = "SELECT CAST(count(*) AS BIGINT) AS n,
        CAST(COALESCE(sum(CASE WHEN status = 'saving' THEN 1 ELSE 0 END), 0) AS BIGINT) AS u,
        CAST(COALESCE(sum(size), 0) AS BIGINT) AS b FROM image_images WHERE owner = $1";
    let row = query.row(sql, args![project]).await?;
    let row = row.ok_or_else(|| StoreError::Shape("an aggregate has no row".to_owned()))?;
    Ok(Usage { count: row.int("n")?, uploading: row.int("u")?, bytes: row.int("b")? })
}

/// Rounded up: a part of a MiB takes room too.
fn mib(bytes: i64) -> i64 {
    bytes.saturating_add((1 << 20) - 1) >> 20
}

fn fits(project: &str, resource: &str, limit: i64, usage: i64, delta: i64) -> Result<(), Fault> {
    if limit < 0 || usage.saturating_add(delta) <= limit {
        return Ok(());
    }
    Err(Fault::too_large(format!(
        "Project {project} is over a limit for [Resource {resource} is over limit of {limit} due to current usage {usage} and delta {delta}]"
    )))
}

/// Refuses one image more, in the transaction that makes it.
///
/// # Errors
/// 413
pub(super) async fn one_more(query: &impl Query, limits: &ImageLimits, project: &str) -> Result<(), Fault> {
    let now = usage(query, project).await?;
    fits(project, "image_count_total", limits.image_count_total, now.count, 1)
}

/// Refuses one upload more, in the transaction that begins it; tells how many bytes it may have.
///
/// # Errors
/// 413, also when `announced` bytes do not fit.
pub(super) async fn upload(
    query: &impl Query,
    limits: &ImageLimits,
    project: &str,
    announced: Option<u64>,
) -> Result<u64, Fault> {
    let now = usage(query, project).await?;
    fits(project, "image_count_uploading", limits.image_count_uploading, now.uploading, 1)?;
    let announced = i64::try_from(announced.unwrap_or(0)).unwrap_or(i64::MAX);
    size(limits, project, now, announced)?;
    if limits.image_size_total < 0 {
        return Ok(u64::MAX);
    }
    let room = limits.image_size_total.saturating_mul(1 << 20).saturating_sub(now.bytes);
    Ok(u64::try_from(room).unwrap_or(0))
}

/// Refuses an image's bytes, in the transaction that makes it active.
///
/// # Errors
/// 413
pub(super) async fn stored(
    query: &impl Query,
    limits: &ImageLimits,
    project: &str,
    bytes: i64,
) -> Result<(), Fault> {
    size(limits, project, usage(query, project).await?, bytes)
}

fn size(limits: &ImageLimits, project: &str, now: Usage, more: i64) -> Result<(), Fault> {
    let (used, after) = (mib(now.bytes), mib(now.bytes.saturating_add(more)));
    fits(project, "image_size_total", limits.image_size_total, used, after - used)
}

/// `GET /v2/info/usage`
pub(super) async fn show(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    let project = call.caller.project_id.clone().unwrap_or_default();
    let now = usage(&call.app.store, &project).await?;
    let limits = &call.app.config.images;
    let line = |limit: i64, usage: i64| json!({"limit": limit, "usage": usage});
    Ok(Reply::json(
        200,
        json!({"usage": {
            "image_size_total": line(limits.image_size_total, mib(now.bytes)),
            "image_count_total": line(limits.image_count_total, now.count),
            "image_count_uploading": line(limits.image_count_uploading, now.uploading),
        }}),
    ))
}
