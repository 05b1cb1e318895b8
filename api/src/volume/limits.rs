//! Quotas.

use super::records;
use super::rules::cut_text;
use crate::app::App;
use api_kit::quota::{self, Over};
use api_kit::{Call, Fault, Outcome, Reply};
use base::store::Tx;
use serde_json::{Map, Value, json};

/// Resources and their default limits, as upstream's. What cannot be had (backups, groups) has a limit of none.
pub(super) const DEFAULTS: quota::Defaults = &[
    ("volumes", 10),
    ("snapshots", 10),
    ("gigabytes", 1000),
    ("backups", 0),
    ("backup_gigabytes", 0),
    ("groups", 0),
    ("per_volume_gigabytes", -1),
];

/// What is about to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A volume of so many gigabytes.
    Volume,
    /// A snapshot of so many gigabytes.
    Snapshot,
    /// So many gigabytes at an existing volume.
    Growth,
}

fn default(resource: &str) -> i64 {
    DEFAULTS.iter().find(|(name, _)| *name == resource).map_or(-1, |(_, limit)| *limit)
}

/// Refuses what would pass the project's quota. In the transaction that adds the thing.
pub(super) async fn take(tx: &Tx, project: &str, kind: Kind, gib: i64) -> Result<(), Fault> {
    let (volumes, gigabytes, snapshots) = records::usage(tx, project).await?;
    let fits = async |resource: &'static str, used: i64, more: i64| {
        quota::fits(tx, "volume", project, (resource, default(resource)), used, more).await
    };
    let count = match kind {
        Kind::Volume => fits("volumes", volumes, 1).await?,
        Kind::Snapshot => fits("snapshots", snapshots, 1).await?,
        Kind::Growth => Ok(()),
    };
    count.map_err(|over| {
        let (class, what) = if kind == Kind::Snapshot {
            ("SnapshotLimitExceeded", "snapshots")
        } else {
            ("VolumeLimitExceeded", "volumes")
        };
        Fault::too_large(format!(
            "{class}: Maximum number of {what} allowed ({}) exceeded for quota '{}'.",
            over.limit, over.resource
        ))
    })?;
    let size = fits("gigabytes", gigabytes, gib).await?;
    size.map_err(|Over { limit, in_use, asked, .. }| {
        Fault::too_large(format!(
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested {asked}G, quota is {limit}G and {in_use}G has been consumed."
        ))
    })
}

async fn used(call: &Call<App>, project: &str) -> Result<Map<String, Value>, Fault> {
    let (volumes, gigabytes, snapshots) = records::usage(&call.app.store, project).await?;
    let limits = quota::limits(&call.app.store, "volume", project, DEFAULTS).await?;
    let in_use = |name: &str| match name {
        "volumes" => volumes,
        "gigabytes" => gigabytes,
        "snapshots" => snapshots,
        _ => 0,
    };
    let set = limits.into_iter().map(|(name, limit)| {
        let row = json!({"limit": limit, "in_use": in_use(&name), "reserved": 0});
        (name, row)
    });
    Ok(set.collect())
}

fn quota_set(project: &str, limits: Map<String, Value>) -> Reply {
    let mut shown = limits;
    shown.insert("id".to_owned(), json!(project));
    Reply::json(200, json!({"quota_set": shown}))
}

fn check_target(call: &Call<App>, project: &str) -> Result<(), Fault> {
    call.enforce(&api_kit::Target::project(project))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let project = call.path("target").to_owned();
    check_target(&call, &project)?;
    let usage = call.query.truth("usage")?.unwrap_or(false);
    let limits = used(&call, &project).await?;
    if usage {
        return Ok(quota_set(&project, limits));
    }
    let plain = limits.into_iter().map(|(name, row)| (name, row["limit"].clone()));
    Ok(quota_set(&project, plain.collect()))
}

pub(super) async fn defaults(call: Call<App>) -> Outcome {
    let project = call.path("target").to_owned();
    check_target(&call, &project)?;
    let plain = DEFAULTS.iter().map(|(name, limit)| ((*name).to_owned(), json!(limit)));
    Ok(quota_set(&project, plain.collect()))
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let project = call.path("target").to_owned();
    check_target(&call, &project)?;
    let mut new: Vec<(String, i64)> = Vec::new();
    for (name, value) in call.inner("quota_set").as_object().into_iter().flatten() {
        if name == "tenant_id" || name == "id" {
            continue;
        }
        if DEFAULTS.iter().all(|(known, _)| known != name) {
            return Err(Fault::bad_request(format!(
                "Invalid input received: Bad key(s) in quota set: {}",
                cut_text(name)
            )));
        }
        let limit = value.as_i64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
        let limit = limit.filter(|limit| *limit >= -1).ok_or_else(|| {
            Fault::bad_request(format!(
                "Invalid input received: the quota of {name} must be an integer of at least -1"
            ))
        })?;
        new.push((name.clone(), limit));
    }
    let (target, limits) = (&project, &new);
    call.app.store.tx(|tx| async move { quota::set(&tx, "volume", target, limits).await }).await?;
    let limits = quota::limits(&call.app.store, "volume", &project, DEFAULTS).await?;
    Ok(Reply::json(200, json!({"quota_set": limits})))
}

pub(super) async fn reset(call: Call<App>) -> Outcome {
    let project = call.path("target").to_owned();
    check_target(&call, &project)?;
    let target = &project;
    call.app.store.tx(|tx| async move { quota::reset(&tx, "volume", target).await }).await?;
    Ok(Reply::empty(200))
}

pub(super) async fn absolute(call: Call<App>) -> Outcome {
    let project = call.project_id()?.to_owned();
    let all = used(&call, &project).await?;
    let of = |name: &str, field: &str| all.get(name).map_or(json!(0), |row| row[field].clone());
    Ok(Reply::json(
        200,
        json!({"limits": {"rate": [], "absolute": {
            "maxTotalVolumes": of("volumes", "limit"), "totalVolumesUsed": of("volumes", "in_use"),
            "maxTotalSnapshots": of("snapshots", "limit"), "totalSnapshotsUsed": of("snapshots", "in_use"),
            "maxTotalVolumeGigabytes": of("gigabytes", "limit"), "totalGigabytesUsed": of("gigabytes", "in_use"),
            "maxTotalBackups": of("backups", "limit"), "totalBackupsUsed": of("backups", "in_use"),
            "maxTotalBackupGigabytes": of("backup_gigabytes", "limit"),
            "totalBackupGigabytesUsed": of("backup_gigabytes", "in_use"),
        }}}),
    ))
}
