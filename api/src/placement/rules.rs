//! What placement promises: nobody gets more than there is, and a refusal says what was short and by how much.

use super::records::{self, Inventory, Provider, Resources};
use base::store::{Query, Store, StoreError, Tx};
use std::collections::BTreeMap;

/// Resource classes that every deployment has (those that this system's hosts may offer come first).
pub const STANDARD_CLASSES: &[&str] = &[
    "VCPU",
    "MEMORY_MB",
    "DISK_GB",
    "PCI_DEVICE",
    "SRIOV_NET_VF",
    "NUMA_SOCKET",
    "NUMA_CORE",
    "NUMA_THREAD",
    "NUMA_MEMORY_MB",
    "IPV4_ADDRESS",
    "VGPU",
    "VGPU_DISPLAY_HEAD",
    "NET_BW_EGR_KILOBIT_PER_SEC",
    "NET_BW_IGR_KILOBIT_PER_SEC",
    "PCPU",
    "MEM_ENCRYPTION_CONTEXT",
    "FPGA",
    "PGPU",
    "NET_PACKET_RATE_KILOPACKET_PER_SEC",
    "NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC",
    "NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC",
];

/// Why placement did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such provider.
    #[error("No resource provider with uuid {0} found")]
    NoProvider(String),
    /// The generation that the caller knew is not the present one.
    #[error("resource provider generation conflict: the provider is at generation {present}")]
    Generation {
        /// The provider's generation.
        present: i64,
    },
    /// The provider has no inventory of a class.
    #[error("Unable to allocate inventory: No inventory of class {class} on resource provider {provider}")]
    NoInventory {
        /// Which class.
        class: String,
        /// Whose.
        provider: String,
    },
    /// Not enough room.
    #[error("Unable to allocate inventory for resource provider {provider}: {shortage}")]
    NoRoom {
        /// Whose.
        provider: String,
        /// What was short.
        shortage: Shortage,
    },
    /// Something is held that the change would take away.
    #[error("{0}")]
    InUse(String),
    /// Database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was short on one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Resource class.
    pub class: String,
    /// Asked for.
    pub needs: i64,
    /// Left.
    pub free: i64,
    /// Largest single allocation that is allowed, when that is what was exceeded.
    pub max_unit: Option<i64>,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let amount = |n: i64| match self.class.as_str() {
            "VCPU" => format!("{n} vCPUs"),
            "MEMORY_MB" => format!("{n} MB of memory"),
            "DISK_GB" => format!("{n} GB of disk"),
            other => format!("{n} {other}"),
        };
        let short = |n: i64| match self.class.as_str() {
            "MEMORY_MB" => format!("{n} MB"),
            "DISK_GB" => format!("{n} GB"),
            _ => n.to_string(),
        };
        match self.max_unit {
            Some(most) => {
                write!(f, "needs {}, one consumer may have at most {}", amount(self.needs), short(most))
            }
            None => write!(f, "needs {}, {} free", amount(self.needs), short(self.free)),
        }
    }
}

impl Inventory {
    /// What consumers may hold together.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    pub fn capacity(&self) -> i64 {
        let usable = (self.total.saturating_sub(self.reserved)).max(0);
        // Saturating by definition of `as`; fractions of a unit are nobody's.
        (usable as f64 * self.ratio).floor() as i64
    }

    /// Why `amount` more does not fit beside `used`, or `None` when it does.
    #[must_use]
    pub fn shortage(&self, class: &str, used: i64, amount: i64) -> Option<Shortage> {
        let free = self.capacity().saturating_sub(used).max(0);
        let shortage = |max_unit| Shortage { class: class.to_owned(), needs: amount, free, max_unit };
        if amount > self.max_unit || amount < self.min_unit || amount % self.step_size.max(1) != 0 {
            Some(shortage(Some(self.max_unit)))
        } else if amount > free {
            Some(shortage(None))
        } else {
            None
        }
    }
}

/// A provider with its room.
#[derive(Debug, Clone, PartialEq)]
pub struct Room {
    /// Which.
    pub provider: Provider,
    /// What it has.
    pub inventories: BTreeMap<String, Inventory>,
    /// What is held of it.
    pub used: Resources,
}

impl Room {
    /// All that is short for these resources; empty when they fit.
    #[must_use]
    pub fn shortages(&self, resources: &Resources) -> Vec<Shortage> {
        let mut short = Vec::new();
        for (class, amount) in resources.iter().filter(|(_, amount)| **amount > 0) {
            match self.inventories.get(class) {
                None => {
                    short.push(Shortage { class: class.clone(), needs: *amount, free: 0, max_unit: None })
                }
                Some(it) => {
                    short.extend(it.shortage(class, self.used.get(class).copied().unwrap_or(0), *amount));
                }
            }
        }
        short
    }
}

/// Every provider with its room, by name.
///
/// # Errors
/// When the database fails.
pub async fn rooms(query: &impl Query) -> Result<Vec<Room>, StoreError> {
    let mut rooms = Vec::new();
    for provider in records::providers(query, None, None).await? {
        rooms.push(room(query, provider).await?);
    }
    Ok(rooms)
}

/// The room of one provider.
///
/// # Errors
/// When the database fails.
pub async fn room(query: &impl Query, provider: Provider) -> Result<Room, StoreError> {
    let inventories = records::inventories(query, &provider.uuid).await?;
    let used = records::usage(query, &provider.uuid).await?;
    Ok(Room { provider, inventories, used })
}

/// Who holds an allocation.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// Project.
    pub project: &'a str,
    /// User.
    pub user: &'a str,
    /// What the consumer is; empty when nobody said.
    pub kind: &'a str,
}

/// Replaces all that a consumer holds by `wanted` (provider -> resources) in this transaction; an empty `wanted` frees
/// everything. Nothing changes when any part does not fit.
///
/// # Errors
/// Unknown provider, missing inventory, no room, database.
pub async fn replace(
    tx: &Tx,
    consumer: &str,
    owner: Owner<'_>,
    wanted: &BTreeMap<String, Resources>,
) -> Result<(), Refusal> {
    let now = api_kit::time::now();
    let held = records::of_consumer(tx, consumer).await?;
    if &held == wanted && !wanted.is_empty() {
        return Ok(());
    }
    // In one order everywhere, so that two consumers that use the same providers never deadlock.
    let mut touched: Vec<&String> = held.keys().chain(wanted.keys()).collect();
    touched.sort();
    touched.dedup();
    for provider in touched {
        records::bump(tx, provider, &now).await?;
    }
    records::clear_allocations(tx, consumer).await?;
    if wanted.is_empty() {
        records::delete_consumer(tx, consumer).await?;
        return Ok(());
    }
    records::put_consumer(tx, consumer, owner.project, owner.user, owner.kind, &now).await?;
    for (uuid, resources) in wanted {
        let provider =
            records::provider_by_id(tx, uuid).await?.ok_or_else(|| Refusal::NoProvider(uuid.clone()))?;
        let room = room(tx, provider).await?;
        for (class, amount) in resources {
            let inventory = room
                .inventories
                .get(class)
                .ok_or_else(|| Refusal::NoInventory { class: class.clone(), provider: uuid.clone() })?;
            let used = room.used.get(class).copied().unwrap_or(0);
            if let Some(shortage) = inventory.shortage(class, used, *amount) {
                return Err(Refusal::NoRoom { provider: uuid.clone(), shortage });
            }
            records::insert_allocation(tx, consumer, uuid, class, *amount).await?;
        }
    }
    Ok(())
}

/// Runs a transaction again when many compete.
///
/// # Errors
/// What it refuses; contention that does not end.
pub async fn patient<T, F, Fut>(mut run: F) -> Result<T, Refusal>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Refusal>>,
{
    for _ in 0..8 {
        match run().await {
            Err(Refusal::Store(StoreError::Contended)) => (),
            other => return other,
        }
    }
    Err(StoreError::Contended.into())
}

/// [`replace`] in a transaction of its own, patient when many compete.
///
/// # Errors
/// As [`replace`].
pub async fn put(
    store: &Store,
    consumer: &str,
    owner: Owner<'_>,
    wanted: &BTreeMap<String, Resources>,
) -> Result<(), Refusal> {
    patient(|| store.tx(|tx| async move { replace(&tx, consumer, owner, wanted).await })).await
}

/// Replaces the inventories of a provider. `known` is the generation that the caller acted upon; `None` overrides.
/// Nothing is written, and the generation stays, when nothing differs.
///
/// # Errors
/// Unknown provider, stale generation, removal of a class that is in use, database.
pub async fn put_inventories(
    tx: &Tx,
    uuid: &str,
    known: Option<i64>,
    wanted: &BTreeMap<String, Inventory>,
) -> Result<Provider, Refusal> {
    let provider = at_generation(tx, uuid, known).await?;
    let present = records::inventories(tx, uuid).await?;
    if &present == wanted {
        return Ok(provider);
    }
    records::bump(tx, uuid, &api_kit::time::now()).await?;
    let used = records::usage(tx, uuid).await?;
    for class in present.keys().filter(|class| !wanted.contains_key(*class)) {
        if used.contains_key(class) {
            return Err(Refusal::InUse(format!("Inventory for {class} on resource provider {uuid} in use.")));
        }
        records::delete_inventory(tx, uuid, class).await?;
    }
    for (class, inventory) in wanted {
        records::put_inventory(tx, uuid, class, inventory).await?;
    }
    Ok(Provider { generation: provider.generation + 1, ..provider })
}

/// The provider, if it is at the generation that the caller knows.
///
/// # Errors
/// Unknown provider, stale generation, database.
pub async fn at_generation(tx: &Tx, uuid: &str, known: Option<i64>) -> Result<Provider, Refusal> {
    let provider =
        records::provider_by_id(tx, uuid).await?.ok_or_else(|| Refusal::NoProvider(uuid.to_owned()))?;
    match known {
        Some(known) if known != provider.generation => {
            Err(Refusal::Generation { present: provider.generation })
        }
        _ => Ok(provider),
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
