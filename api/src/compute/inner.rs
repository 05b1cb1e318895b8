//! Compute for the other services, in process.

use super::metadata;
use super::records::flavors::{self, Flavor};
use super::records::{attachments, servers, shape};
use crate::app::{App, Shared};
use crate::bootstrap::Params;
use api_kit::Fault;
use base::store::{Query, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use wire::ids::{DiskId, ServerId};
use wire::metadata::{MetadataReply, ReadMetadata};

/// Answers a guest's metadata request.
pub async fn metadata(app: &App, request: ReadMetadata) -> MetadataReply {
    metadata::read(app, &request).await
}

/// Whether there is such a server.
///
/// # Errors
/// When the database fails.
pub async fn server_exists(app: &App, id: ServerId) -> Result<bool, Fault> {
    Ok(servers::get(&app.store, id).await?.is_some())
}

/// Whether a server has a volume, or compute works on giving it or taking it. In the asker's transaction, so that the
/// answer holds when that commits.
///
/// # Errors
/// When the database fails.
pub async fn uses_volume(query: &impl Query, server: ServerId, volume: &str) -> Result<bool, StoreError> {
    Ok(attachments::of_volume(query, server, volume).await?.is_some())
}

/// The disks that are servers' own, made or yet to be made.
///
/// # Errors
/// When the database fails.
pub async fn disks(query: &impl Query) -> Result<Vec<DiskId>, StoreError> {
    let servers = servers::all(query).await?;
    Ok(servers.iter().flat_map(|server| shape::disks(server).map(|disk| disk.id)).collect())
}

/// (id, name, vCPUs, MiB, GiB) of the flavors that a fresh system has.
const FLAVORS: &[(&str, &str, u32, u32, u32)] = &[
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2_048, 20),
    ("3", "m1.medium", 2, 4_096, 40),
    ("4", "m1.large", 4, 8_192, 80),
    ("5", "m1.xlarge", 8, 16_384, 160),
    ("42", "m1.nano", 1, 128, 1),
    ("84", "m1.micro", 1, 192, 1),
];

/// Makes the first flavors, on a system that has none: what an administrator has deleted stays deleted.
///
/// # Errors
/// When the database fails.
pub async fn bootstrap(app: &Shared, _params: &Params) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            if !flavors::all(&tx).await?.is_empty() {
                return Ok(());
            }
            for (id, name, vcpus, memory_mb, disk_gb) in FLAVORS {
                let flavor = Flavor {
                    id: (*id).to_owned(),
                    name: (*name).to_owned(),
                    vcpus: *vcpus,
                    memory_mb: *memory_mb,
                    disk_gb: *disk_gb,
                    ephemeral_gb: 0,
                    swap_mb: 0,
                    rxtx_factor: 1.0,
                    is_public: true,
                    description: None,
                    extra_specs: BTreeMap::new(),
                    access: BTreeSet::new(),
                    created_at: api_kit::time::now(),
                };
                flavors::insert(&tx, &flavor).await?;
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(())
}
