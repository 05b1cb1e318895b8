//! Placement for the other services: in process, the same rules as over HTTP.

use super::records::{self, Inventory, Resources};
use super::rules::{self, Owner, Refusal, Room};
use crate::app::App;
use api_kit::Fault;
use base::store::{Query, Store, StoreError, Tx};
use std::collections::BTreeMap;

/// Memory that stays with the host, in MiB: what nova keeps by default. At most a quarter on small machines.
const RESERVED_MEMORY_MB: i64 = 512;
/// Over-commitment of processors that nova starts with.
const CPU_RATIO: f64 = 4.0;

/// What a host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoom {
    /// Host name: the provider's name.
    pub name: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Pool size in GiB.
    pub disk_gib: u64,
}

fn plain(total: u64, reserved: i64, ratio: f64) -> Inventory {
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    Inventory {
        total,
        reserved: reserved.min(total / 4),
        min_unit: 1,
        max_unit: total.max(1),
        step_size: 1,
        ratio,
    }
}

/// Makes sure that the host is a provider with this inventory. Ratios and reservations that an administrator has set
/// through the API stay. Returns the provider's id.
///
/// # Errors
/// When the database fails.
pub async fn refresh_host(store: &Store, host: &HostRoom) -> Result<String, Refusal> {
    store
        .tx(|tx| async move {
            let found = records::providers(&tx, Some(&host.name), None).await?.into_iter().next();
            let uuid = match found {
                Some(provider) => provider.uuid,
                None => {
                    let uuid = uuid::Uuid::new_v4().to_string();
                    records::insert_provider(&tx, &uuid, &host.name, &api_kit::time::now()).await?;
                    uuid
                }
            };
            let present = records::inventories(&tx, &uuid).await?;
            // Classes that somebody else reports stay theirs.
            let mut wanted = present.clone();
            for (class, fresh) in [
                ("VCPU", plain(host.cpus.into(), 0, CPU_RATIO)),
                ("MEMORY_MB", plain(host.memory_mib, RESERVED_MEMORY_MB, 1.0)),
                ("DISK_GB", plain(host.disk_gib, 0, 1.0)),
            ] {
                let kept = match present.get(class) {
                    Some(old) => Inventory { reserved: old.reserved, ratio: old.ratio, ..fresh },
                    None => fresh,
                };
                wanted.insert(class.to_owned(), kept);
            }
            rules::put_inventories(&tx, &uuid, None, &wanted).await?;
            Ok(uuid)
        })
        .await
}

/// Every provider with its room.
///
/// # Errors
/// When the database fails.
pub async fn rooms(store: &Store) -> Result<Vec<Room>, StoreError> {
    rules::rooms(store).await
}

/// What compute's consumers are called, as upstream calls them.
pub const INSTANCE: &str = "INSTANCE";

/// Claims the resources of one provider for a consumer, in the caller's transaction with the check. Repeating it is
/// harmless.
///
/// # Errors
/// `NoRoom` when they do not fit now.
pub async fn claim_in(
    tx: &Tx,
    consumer: &str,
    owner: Owner<'_>,
    provider: &str,
    resources: &Resources,
) -> Result<(), Refusal> {
    let resources: Resources =
        resources.iter().filter(|(_, n)| **n > 0).map(|(class, n)| (class.clone(), *n)).collect();
    rules::replace(tx, consumer, owner, &BTreeMap::from([(provider.to_owned(), resources)])).await
}

/// [`claim_in`] in a transaction of its own.
///
/// # Errors
/// As there.
pub async fn claim(
    store: &Store,
    consumer: &str,
    owner: Owner<'_>,
    provider: &str,
    resources: &Resources,
) -> Result<(), Refusal> {
    rules::patient(|| store.tx(|tx| async move { claim_in(&tx, consumer, owner, provider, resources).await }))
        .await
}

/// Frees all that a consumer holds. Harmless when it holds nothing.
///
/// # Errors
/// When the database fails.
pub async fn release(store: &Store, consumer: &str) -> Result<(), Refusal> {
    rules::patient(|| store.tx(|tx| async move { release_in(&tx, consumer).await })).await
}

/// [`release`] in the caller's transaction.
///
/// # Errors
/// When the database fails.
pub async fn release_in(tx: &Tx, consumer: &str) -> Result<(), Refusal> {
    rules::replace(tx, consumer, Owner { project: "", user: "", kind: "" }, &BTreeMap::new()).await
}

/// Ids of compute's consumers.
///
/// # Errors
/// When the database fails.
pub async fn instances(query: &impl Query) -> Result<Vec<String>, StoreError> {
    records::of_kind(query, INSTANCE).await
}

/// What a consumer holds: ids of its providers.
///
/// # Errors
/// When the database fails.
pub async fn holds(store: &Store, consumer: &str) -> Result<Vec<String>, StoreError> {
    Ok(records::of_consumer(store, consumer).await?.into_keys().collect())
}

/// Asks the daemons what the host has, and keeps its provider up to date. A daemon that does not answer leaves the
/// provider as it was.
///
/// # Errors
/// When a daemon or the database does not answer.
pub async fn report_host(app: &App) -> Result<(), Fault> {
    let facts = app.host.call(&wire::host::DescribeHost {}).await?;
    let pool = app.block.call(&wire::block::ListPool {}).await?;
    let room = HostRoom {
        name: facts.name,
        cpus: facts.cpus,
        memory_mib: facts.memory.0,
        disk_gib: facts.disk.map_or(pool.total_bytes >> 30, |claimed| claimed.0),
    };
    refresh_host(&app.store, &room).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::rpc::Router;
    use wire::block::{ListPool, Pool};
    use wire::host::{DescribeHost, HostFacts};
    use wire::{GiB, MiB};

    #[tokio::test]
    async fn a_simulated_host_has_the_disk_it_claims_and_a_real_one_its_pool() {
        let cloud = crate::testing::Cloud::new().await;
        cloud.daemon(
            "block",
            Router::new()
                .serve(|_: ListPool| async { Ok(Pool { total_bytes: 64 << 30, ..Pool::default() }) }),
        );
        for (claimed, wanted) in [(None, 64), (Some(GiB(100_000)), 100_000)] {
            let facts = HostFacts {
                name: "h".into(),
                cpus: 4096,
                memory: MiB(16 << 20),
                hypervisor: "simulated".into(),
                reason: "a test".into(),
                cpu_model: "simulated".into(),
                disk: claimed,
            };
            let end = cloud.daemon(
                "host",
                Router::new().serve(move |_: DescribeHost| {
                    let facts = facts.clone();
                    async move { Ok(facts) }
                }),
            );
            report_host(&cloud.app).await.unwrap();
            end.cancel();
            let rooms = rooms(&cloud.app.store).await.unwrap();
            assert_eq!(rooms[0].inventories["DISK_GB"].total, wanted);
            assert_eq!(
                (rooms[0].inventories["VCPU"].total, rooms[0].inventories["MEMORY_MB"].total),
                (4096, 16 << 20)
            );
        }
    }
}
