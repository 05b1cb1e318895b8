//! Where a server goes: the host with the most free memory among those that have room, claimed in placement.

use super::records::servers::{Server, VolumeRequest};
use crate::placement::inner;
use crate::placement::records::Resources;
use crate::placement::rules::{Owner, Refusal};
use base::store::{Store, StoreError};

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

/// Finds and claims a place; the host's name. Repeating it gives the same host.
///
/// # Errors
/// When no host has room.
pub async fn place(store: &Store, server: &Server) -> Result<String, NoPlace> {
    let consumer = server.id.to_string();
    let mut rooms = inner::rooms(store).await?;
    let held = inner::holds(store, &consumer).await?;
    if let Some(room) = rooms.iter().find(|room| held.contains(&room.provider.uuid)) {
        return Ok(room.provider.name.clone());
    }
    if rooms.is_empty() {
        return Err(NoPlace::NoHost(
            "No host has reported what it has yet: see that hostd and blockd run, then try again.".to_owned(),
        ));
    }
    let wanted = resources(server);
    let free = |room: &crate::placement::rules::Room| {
        let capacity = room.inventories.get("MEMORY_MB").map_or(0, |it| it.capacity());
        capacity - room.used.get("MEMORY_MB").copied().unwrap_or(0)
    };
    rooms.sort_by_key(|room| std::cmp::Reverse(free(room)));
    let owner = Owner { project: &server.project_id, user: &server.user_id };
    let mut rejected = Vec::new();
    for room in rooms {
        let name = &room.provider.name;
        let short = room.shortages(&wanted);
        if !short.is_empty() {
            let short: Vec<String> = short.iter().map(ToString::to_string).collect();
            rejected.push(format!("Host {name}: {}", short.join("; ")));
            continue;
        }
        match inner::claim(store, &consumer, owner, &room.provider.uuid, &wanted).await {
            Ok(()) => return Ok(name.clone()),
            // Somebody was faster.
            Err(Refusal::NoRoom { shortage, .. }) => rejected.push(format!("Host {name}: {shortage}")),
            Err(Refusal::Store(error)) => return Err(error.into()),
            Err(other) => rejected.push(format!("Host {name}: {other}")),
        }
    }
    Err(NoPlace::NoHost(format!(
        "{}. Delete servers that are not needed, or choose a smaller flavor.",
        rejected.join(". ")
    )))
}
