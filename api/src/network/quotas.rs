//! Limits of what a project may have. Upstream's defaults, and upstream's 409 when one is passed.

use super::input::conflict;
use super::resource::Resource;
use crate::app::App;
use api_kit::quota::{self, Defaults};
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::args;
use base::store::{Query, Tx};
use serde_json::{Map, Value, json};

/// The resources with upstream's limits.
pub const DEFAULTS: Defaults = &[
    ("network", 100),
    ("subnet", 100),
    ("port", 500),
    ("router", 10),
    ("floatingip", 50),
    ("security_group", 10),
    ("security_group_rule", 100),
];

const SERVICE: &str = "network";

async fn in_use(query: &impl Query, resource: &str, project: &str) -> Result<i64, Fault> {
    let sql = match resource {
        "network" => "SELECT count(*) AS n FROM network_networks WHERE project_id = $1",
        "subnet" => "SELECT count(*) AS n FROM network_subnets WHERE project_id = $1",
        "port" => "SELECT count(*) AS n FROM network_ports WHERE project_id = $1",
        "router" => "SELECT count(*) AS n FROM network_routers WHERE project_id = $1",
        "floatingip" => "SELECT count(*) AS n FROM network_floatingips WHERE project_id = $1",
        "security_group" => "SELECT count(*) AS n FROM network_groups WHERE project_id = $1",
        _ => "SELECT count(*) AS n FROM network_rules WHERE project_id = $1",
    };
    query.row(sql, args![project]).await?.map_or(Ok(0), |row| Ok(row.int("n")?))
}

/// Whether one more of a resource fits.
///
/// # Errors
/// 409 `OverQuota` when it does not.
pub async fn check<R: Resource>(tx: &Tx, project: &str) -> Result<(), Fault> {
    let Some(limit) = DEFAULTS.iter().find(|(name, _)| *name == R::ONE) else { return Ok(()) };
    let used = in_use(tx, limit.0, project).await?;
    quota::fits(tx, SERVICE, project, *limit, used, 1).await?.map_err(|over| {
        conflict("OverQuota", format!("Quota exceeded for resources: ['{}'].", over.resource))
    })
}

fn readable(call: &Call<App>) -> Result<String, Fault> {
    let project = call.path("project_id").to_owned();
    call.enforce(&Target::project(&project))?;
    Ok(project)
}

/// `GET /v2.0/quotas`: projects that have limits of their own.
pub async fn list(call: Call<App>) -> Outcome {
    call.enforce(&Target::new())?;
    let rows = call
        .app
        .store
        .rows(
            "SELECT DISTINCT project_id FROM kit_quotas WHERE service = $1 ORDER BY project_id",
            args![SERVICE],
        )
        .await?;
    let mut quotas = Vec::new();
    for row in rows {
        let project = row.text("project_id")?;
        let mut limits = json!(quota::limits(&call.app.store, SERVICE, &project, DEFAULTS).await?);
        limits["project_id"] = project.clone().into();
        limits["tenant_id"] = project.into();
        quotas.push(limits);
    }
    Ok(Reply::json(200, json!({"quotas": quotas})))
}

/// `GET /v2.0/quotas/{project_id}`
pub async fn show(call: Call<App>) -> Outcome {
    let project = readable(&call)?;
    let limits = quota::limits(&call.app.store, SERVICE, &project, DEFAULTS).await?;
    Ok(Reply::json(200, json!({"quota": limits})))
}

/// `GET /v2.0/quotas/{project_id}/default`
pub async fn defaults(call: Call<App>) -> Outcome {
    readable(&call)?;
    let limits: Map<String, Value> =
        DEFAULTS.iter().map(|(name, limit)| ((*name).to_owned(), (*limit).into())).collect();
    Ok(Reply::json(200, json!({"quota": limits})))
}

/// `GET /v2.0/quotas/{project_id}/details`
pub async fn details(call: Call<App>) -> Outcome {
    let project = readable(&call)?;
    let mut out = Map::new();
    for (name, limit) in quota::limits(&call.app.store, SERVICE, &project, DEFAULTS).await? {
        let used = in_use(&call.app.store, &name, &project).await?;
        out.insert(name, json!({"limit": limit, "used": used, "reserved": 0}));
    }
    Ok(Reply::json(200, json!({"quota": out})))
}

/// `PUT /v2.0/quotas/{project_id}`
pub async fn update(call: Call<App>) -> Outcome {
    let project = &readable(&call)?;
    let mut new = Vec::new();
    for (name, value) in call.inner("quota").as_object().into_iter().flatten() {
        if let (true, Some(limit)) = (DEFAULTS.iter().any(|(known, _)| known == name), value.as_i64()) {
            new.push((name.clone(), limit));
        }
    }
    let new = &new;
    call.app.store.tx(|tx| async move { quota::set(&tx, SERVICE, project, new).await }).await?;
    let limits = quota::limits(&call.app.store, SERVICE, project, DEFAULTS).await?;
    Ok(Reply::json(200, json!({"quota": limits})))
}

/// `DELETE /v2.0/quotas/{project_id}`
pub async fn reset(call: Call<App>) -> Outcome {
    let project = &readable(&call)?;
    call.app.store.tx(|tx| async move { quota::reset(&tx, SERVICE, project).await }).await?;
    Ok(Reply::empty(204))
}
