//! What a request to create servers says about their place: zone, host, server group, hints.

use super::create::text;
use super::quota;
use crate::app::App;
use crate::compute::metadata::ZONE;
use crate::compute::records::groups;
use crate::compute::records::servers::{Hints, Server};
use crate::compute::records::shape::Shape;
use crate::compute::scheduler;
use crate::placement;
use crate::placement::records::Resources;
use crate::placement::rules::{Owner, Refusal};
use api_kit::{Call, Fault, Target};
use base::store::Tx;
use base::task::Stop;
use serde_json::Value;
use wire::ids::ServerId;

async fn is_host(app: &App, name: &str) -> Result<bool, Fault> {
    Ok(placement::inner::rooms(&app.store).await?.iter().any(|room| room.provider.name == name))
}

/// The zone, and the host of `zone:host` (or `zone:host:node`), which only administrators may name.
///
/// # Errors
/// 400 for a zone that does not exist, 403.
pub async fn zone(call: &Call<App>, project: &str) -> Result<(Option<String>, Option<String>), Fault> {
    let Some(asked) = text(call.inner("server"), "availability_zone").filter(|zone| !zone.is_empty()) else {
        return Ok((None, None));
    };
    let no = || Fault::bad_request("The requested availability zone is not available");
    let parts: Vec<&str> = asked.split(':').collect();
    let (zone, host) = match parts.as_slice() {
        [zone] => (*zone, ""),
        [zone, host] => (*zone, *host),
        [zone, "", node] => (*zone, *node),
        [zone, host, node] if node.is_empty() || node == host => (*zone, *host),
        [..] => return Err(no()),
    };
    if !zone.is_empty() && zone != ZONE {
        return Err(no());
    }
    if host.is_empty() {
        return Ok((Some(ZONE.to_owned()), None));
    }
    call.enforce_rule("os_compute_api:servers:create:forced_host", &Target::project(project))?;
    if !is_host(&call.app, host).await? {
        return Err(no());
    }
    Ok((Some(ZONE.to_owned()), Some(host.to_owned())))
}

/// The host that `host` or `hypervisor_hostname` names; of one host both are the same.
///
/// # Errors
/// 403 for all but administrators, 400 for a host that does not exist, or for two.
pub async fn destination(call: &Call<App>, project: &str) -> Result<Option<String>, Fault> {
    let body = call.inner("server");
    let asked: Vec<&str> =
        ["host", "hypervisor_hostname"].into_iter().filter_map(|name| text(body, name)).collect();
    let Some(first) = asked.first() else { return Ok(None) };
    call.enforce_rule("compute:servers:create:requested_destination", &Target::project(project))?;
    if text(body, "availability_zone").is_some_and(|zone| zone.contains(':')) {
        return Err(Fault::bad_request(
            "Only one of availability_zone with a host and host or hypervisor_hostname can be specified.",
        ));
    }
    for name in &asked {
        if *name != *first || !is_host(&call.app, name).await? {
            let name: String = name.chars().take(64).collect();
            return Err(Fault::bad_request(format!("Compute host {name} could not be found.")));
        }
    }
    Ok(Some((*first).to_owned()))
}

/// Most servers that one hint names: each server made keeps them all.
const NAMED: usize = 100;

/// The server group and the other hints.
///
/// # Errors
/// 400 for hints that this scheduler does not follow, and for values that are no ids.
pub fn hints(call: &Call<App>) -> Result<(Option<String>, Hints), Fault> {
    let (mut group, mut hints) = (None, Hints::default());
    let given = ["os:scheduler_hints", "OS-SCH-HNT:scheduler_hints"];
    for (name, value) in given.into_iter().filter_map(|key| call.body.get(key)?.as_object()).flatten() {
        let servers = || -> Result<Vec<ServerId>, Fault> {
            let all = match value {
                Value::Array(list) => list.as_slice(),
                other => std::slice::from_ref(other),
            };
            if all.len() > NAMED {
                return Err(Fault::bad_request(format!(
                    "The scheduler hint '{name}' names {} servers: at most {NAMED} can be named.",
                    all.len()
                )));
            }
            all.iter()
                .map(|id| id.as_str().and_then(|id| id.parse().ok()).ok_or_else(|| no_id(name, id)))
                .collect()
        };
        match name.as_str() {
            "group" => {
                let id = value.as_str().and_then(|id| uuid::Uuid::parse_str(id).ok());
                group = Some(id.ok_or_else(|| no_id(name, value))?.hyphenated().to_string());
            }
            "same_host" => hints.same_host = servers()?,
            "different_host" => hints.different_host = servers()?,
            // Upstream hands these to filters that an operator may have; without them they would mean nothing.
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(Fault::bad_request(format!(
                    "The scheduler hint '{other}' is not supported here: use group, same_host or different_host."
                )));
            }
        }
    }
    Ok((group, hints))
}

fn no_id(name: &str, value: &Value) -> Fault {
    let value: String = value.to_string().chars().take(64).collect();
    Fault::bad_request(format!(
        "Invalid input for field/attribute {name}. Value: {value}. It is not a 'uuid'"
    ))
}

/// Holds, on the server's host, room for whatever of these shapes is largest.
///
/// # Errors
/// When there is none.
pub async fn hold(app: &App, server: &Server, shapes: &[&Shape]) -> Result<(), Stop> {
    let mut most = Resources::new();
    for shape in shapes {
        let mut as_if = server.clone();
        shape.put(&mut as_if);
        for (class, amount) in scheduler::resources(&as_if) {
            let known = most.entry(class).or_default();
            *known = amount.max(*known);
        }
    }
    let consumer = server.id.to_string();
    let held = placement::inner::holds(&app.store, &consumer).await?;
    // A server that holds nothing was never placed, or its host is gone: there is nothing to change.
    let Some(provider) = held.first() else { return Ok(()) };
    let owner =
        Owner { project: &server.project_id, user: &server.user_id, kind: placement::inner::INSTANCE };
    match placement::inner::claim(&app.store, &consumer, owner, provider, &most).await {
        Ok(()) => Ok(()),
        Err(Refusal::NoRoom { shortage, .. }) => Err(Stop::Fail(format!(
            "No valid host was found. Host {}: {shortage}. Delete servers that are not needed, or choose a smaller flavor.",
            server.host.as_deref().unwrap_or_default()
        ))),
        Err(other) => Err(Stop::Retry(other.to_string())),
    }
}

/// Whether the group is the project's and has room for so many more.
///
/// # Errors
/// 400 for a group that does not exist, 403 over quota.
pub async fn check_group(tx: &Tx, project: &str, group: Option<&str>, more: i64) -> Result<(), Fault> {
    let Some(id) = group else { return Ok(()) };
    let found = groups::get(tx, id).await?.filter(|group| group.project_id == project);
    let group =
        found.ok_or_else(|| Fault::bad_request(format!("Instance group {id} could not be found.")))?;
    let have = groups::members(tx, [group.id.as_str()]).await?.len();
    let have = i64::try_from(have).unwrap_or(i64::MAX);
    api_kit::quota::fits(tx, "compute", project, quota("server_group_members"), have, more)
        .await?
        .map_err(|_| Fault::over_quota("Quota exceeded, too many servers in group"))
}
