//! Flavors.

use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx, Where};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A size of server. Servers keep a copy, so a deleted flavor changes nothing for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flavor {
    /// The id that clients use; any text.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Root disk in GiB; 0 means as large as the image.
    pub disk_gb: u32,
    /// Ephemeral disk in GiB.
    pub ephemeral_gb: u32,
    /// Swap disk in MiB.
    pub swap_mb: u32,
    /// Kept for clients; nothing uses it.
    pub rxtx_factor: f64,
    /// Whether every project may use it.
    pub is_public: bool,
    /// Text for people.
    pub description: Option<String>,
    /// Extra specs.
    pub extra_specs: BTreeMap<String, String>,
    /// Projects that may use it when it is not public.
    pub access: BTreeSet<String>,
    /// When it was made.
    pub created_at: String,
}

fn number(row: &Row, name: &str) -> Result<u32, StoreError> {
    u32::try_from(row.int(name)?).map_err(|_| StoreError::Shape(format!("'{name}' is out of range")))
}

fn read(row: &Row) -> Result<Flavor, StoreError> {
    Ok(Flavor {
        id: row.text("id")?,
        name: row.text("name")?,
        vcpus: number(row, "vcpus")?,
        memory_mb: number(row, "memory_mb")?,
        disk_gb: number(row, "disk_gb")?,
        ephemeral_gb: number(row, "ephemeral_gb")?,
        swap_mb: number(row, "swap_mb")?,
        rxtx_factor: row.real("rxtx_factor")?,
        is_public: row.truth("is_public")?,
        description: row.opt_text("description")?,
        extra_specs: row.json("extra_specs")?,
        access: row.json("access")?,
        created_at: row.text("created_at")?,
    })
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Shape(error.to_string()))
}

/// One flavor.
///
/// # Errors
/// When the database fails.
pub async fn get(query: &impl Query, id: &str) -> Result<Option<Flavor>, StoreError> {
    let row = query.row(Sql::from("SELECT * FROM compute_flavors WHERE id = $1"), args![id]).await?;
    row.map(|row| read(&row)).transpose()
}

/// All flavors in the order of their ids. There are few, so what a caller may see is filtered above.
///
/// # Errors
/// When the database fails.
pub async fn all(query: &impl Query) -> Result<Vec<Flavor>, StoreError> {
    let (sql, args) = {
        let mut select = Where::new("SELECT * FROM compute_flavors");
        select.end("ORDER BY id", []);
        select.build()
    };
    query.rows(sql, args).await?.iter().map(read).collect()
}

/// Makes a flavor.
///
/// # Errors
/// `Duplicate` when id or name is taken.
pub async fn insert(tx: &Tx, it: &Flavor) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO compute_flavors (id, name, vcpus, memory_mb, disk_gb, ephemeral_gb, swap_mb, rxtx_factor,
            is_public, description, extra_specs, access, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        args![
            &it.id, &it.name, it.vcpus, it.memory_mb, it.disk_gb, it.ephemeral_gb, it.swap_mb, it.rxtx_factor,
            it.is_public, &it.description, json(&it.extra_specs)?, json(&it.access)?, &it.created_at
        ],
    )
    .await?;
    Ok(())
}

/// Writes what may change of a flavor: description, extra specs, access.
///
/// # Errors
/// When the database fails.
pub async fn update(tx: &Tx, it: &Flavor) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE compute_flavors SET description = $2, extra_specs = $3, access = $4 WHERE id = $1",
        args![&it.id, &it.description, json(&it.extra_specs)?, json(&it.access)?],
    )
    .await?;
    Ok(())
}

/// Removes a flavor; false when there was none.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &Tx, id: &str) -> Result<bool, StoreError> {
    Ok(tx.exec("DELETE FROM compute_flavors WHERE id = $1", args![id]).await? > 0)
}
