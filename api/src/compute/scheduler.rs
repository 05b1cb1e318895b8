//! Where a server goes: the host with the most free memory among those that have room and suit its group and hints,
//! claimed in placement.

use super::records::groups::{self, Group, Policy};
use super::records::servers::{self, Server, VolumeRequest};
use crate::placement::inner;
use crate::placement::records::Resources;
use crate::placement::rules::{Owner, Refusal, Room, patient};
use base::store::{Query, Store, StoreError};
use wire::ids::ServerId;

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub enum NoPlace {
    /// No host has room; the text says for each by how much it falls short.
    #[error("No valid host was found. {0}")]
    NoHost(String),
    /// Database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a server takes of its host.
#[must_use]
pub fn resources(server: &Server) -> Resources {
    let flavor = &server.body.flavor;
    let root = if server.body.disks.root.is_some() { i64::from(flavor.disk_gb) } else { 0 };
    let disk = root + i64::from(flavor.ephemeral_gb) + i64::from(flavor.swap_mb.div_ceil(1024));
    [("VCPU", i64::from(flavor.vcpus)), ("MEMORY_MB", i64::from(flavor.memory_mb)), ("DISK_GB", disk)]
        .into_iter()
        .filter(|(_, amount)| *amount > 0)
        .map(|(class, amount)| (class.to_owned(), amount))
        .collect()
}

/// Whether any of these volumes is the boot disk.
#[must_use]
pub fn boots_from_volume(volumes: &[VolumeRequest]) -> bool {
    volumes.iter().any(|volume| volume.boot)
}

/// Hosts on which the servers of these ids are, one entry for each server. Servers of other projects are not seen.
async fn hosts_of(query: &impl Query, project: &str, ids: &[ServerId]) -> Result<Vec<String>, StoreError> {
    let mut select = servers::select();
    select.and("project_id = ?", [project.into()]).and_in("id", ids.iter().map(|id| (*id).into()));
    Ok(servers::find(query, select).await?.into_iter().filter_map(|it| it.host).collect())
}

/// Hosts of the other servers of a group, one entry for each server.
async fn group_hosts(query: &impl Query, server: &Server, group: &Group) -> Result<Vec<String>, StoreError> {
    let members = groups::members(query, [group.id.as_str()]).await?;
    Ok(members.into_iter().filter(|(_, id, _)| *id != server.id).filter_map(|(.., host)| host).collect())
}

async fn group_of(query: &impl Query, server: &Server) -> Result<Option<Group>, StoreError> {
    match &server.group_id {
        Some(id) => groups::get(query, id).await,
        None => Ok(None),
    }
}

/// Why a host is not for this server although it may have room.
async fn unsuitable(query: &impl Query, server: &Server, host: &str) -> Result<Option<String>, StoreError> {
    let hints = &server.body.hints;
    if let Some(wanted) = hints.host.as_deref().filter(|wanted| *wanted != host) {
        return Ok(Some(format!("it is not {wanted}, which was asked for")));
    }
    let here = |hosts: &[String]| hosts.iter().filter(|it| *it == host).count();
    if !hints.same_host.is_empty() && here(&hosts_of(query, &server.project_id, &hints.same_host).await?) == 0
    {
        return Ok(Some("none of the servers of the hint same_host is on it".to_owned()));
    }
    if !hints.different_host.is_empty()
        && here(&hosts_of(query, &server.project_id, &hints.different_host).await?) > 0
    {
        return Ok(Some("a server of the hint different_host is on it".to_owned()));
    }
    let Some(group) = group_of(query, server).await? else { return Ok(None) };
    let others = group_hosts(query, server, &group).await?;
    Ok(match group.policy {
        Policy::Affinity if !others.is_empty() && here(&others) == 0 => {
            Some(format!("the servers of server group {} are on another host", group.name))
        }
        Policy::AntiAffinity if i64::try_from(here(&others)).unwrap_or(i64::MAX) >= group.per_host => {
            let (have, most) = (here(&others), group.per_host);
            Some(format!(
                "it has {have} of the servers of server group {}, which allows {most} on a host",
                group.name
            ))
        }
        Policy::Affinity | Policy::AntiAffinity | Policy::SoftAffinity | Policy::SoftAntiAffinity => None,
    })
}

/// Finds and claims a place, and writes it into the server's row; the host's name. Repeating it gives the same host.
///
/// # Errors
/// When no host has room.
pub async fn place(store: &Store, server: &Server) -> Result<String, NoPlace> {
    let consumer = &server.id.to_string();
    let mut rooms = inner::rooms(store).await?;
    let held = inner::holds(store, consumer).await?;
    if let Some(room) = rooms.iter().find(|room| held.contains(&room.provider.uuid)) {
        return Ok(room.provider.name.clone());
    }
    if rooms.is_empty() {
        return Err(NoPlace::NoHost(
            "No host has reported what it has yet: see that hostd and blockd run, then try again.".to_owned(),
        ));
    }
    let wanted = &resources(server);
    let free = |room: &Room| {
        let capacity = room.inventories.get("MEMORY_MB").map_or(0, |it| it.capacity());
        capacity - room.used.get("MEMORY_MB").copied().unwrap_or(0)
    };
    rooms.sort_by_key(|room| std::cmp::Reverse(free(room)));
    prefer(store, server, &mut rooms).await?;
    let owner = Owner { project: &server.project_id, user: &server.user_id, kind: inner::INSTANCE };
    let mut rejected = Vec::new();
    for room in &rooms {
        let (name, provider) = (&room.provider.name, &room.provider.uuid);
        let short = room.shortages(wanted);
        if !short.is_empty() {
            let short: Vec<String> = short.iter().map(ToString::to_string).collect();
            rejected.push(format!("Host {name}: {}", short.join("; ")));
            continue;
        }
        // What others of its group do meanwhile is seen, or makes this transaction run again.
        let claimed = patient(|| {
            store.tx(|tx| async move {
                if let Some(why) = unsuitable(&tx, server, name).await? {
                    return Ok(Some(why));
                }
                inner::claim_in(&tx, consumer, owner, provider, wanted).await?;
                servers::change(&tx, server.id, |row| row.host = Some(name.clone())).await?;
                Ok::<_, Refusal>(None)
            })
        });
        match claimed.await {
            Ok(None) => return Ok(name.clone()),
            Ok(Some(why)) => rejected.push(format!("Host {name}: {why}")),
            // Somebody was faster.
            Err(Refusal::NoRoom { shortage, .. }) => rejected.push(format!("Host {name}: {shortage}")),
            Err(Refusal::Store(error)) => return Err(error.into()),
            Err(other) => rejected.push(format!("Host {name}: {other}")),
        }
    }
    Err(NoPlace::NoHost(format!(
        "{}. Delete servers that are not needed, choose a smaller flavor, or ask less of the place.",
        rejected.join(". ")
    )))
}

/// Puts those hosts first that a soft policy prefers; the order is otherwise kept.
async fn prefer(query: &impl Query, server: &Server, rooms: &mut [Room]) -> Result<(), StoreError> {
    let Some(group) = group_of(query, server).await? else { return Ok(()) };
    let others = group_hosts(query, server, &group).await?;
    let here = |room: &Room| others.iter().filter(|host| **host == room.provider.name).count();
    match group.policy {
        Policy::SoftAffinity => rooms.sort_by_key(|room| std::cmp::Reverse(here(room))),
        Policy::SoftAntiAffinity => rooms.sort_by_key(here),
        Policy::Affinity | Policy::AntiAffinity => (),
    }
    Ok(())
}
