//! Host aggregates: names that an administrator gives to sets of hosts.

use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// An aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aggregate {
    /// Its number.
    pub id: i64,
    /// Its other id.
    pub uuid: String,
    /// Its name, unique.
    pub name: String,
    /// When it was made.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: Option<String>,
    /// The rest.
    pub body: Body,
}

/// What no statement looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Names of its hosts.
    pub hosts: BTreeSet<String>,
    /// Key-value pairs; the zone is `availability_zone` here, as upstream keeps it.
    pub metadata: BTreeMap<String, String>,
}

fn read(row: &Row) -> Result<Aggregate, StoreError> {
    Ok(Aggregate {
        id: row.int("id")?,
        uuid: row.text("uuid")?,
        name: row.text("name")?,
        created_at: row.text("created_at")?,
        updated_at: row.opt_text("updated_at")?,
        body: row.json("body")?,
    })
}

/// All aggregates.
///
/// # Errors
/// When the database fails.
pub async fn all(query: &impl Query) -> Result<Vec<Aggregate>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_aggregates ORDER BY id");
    query.rows(sql, Vec::new()).await?.iter().map(read).collect()
}

/// One aggregate, by its number.
///
/// # Errors
/// When the database fails.
pub async fn get(query: &impl Query, id: i64) -> Result<Option<Aggregate>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_aggregates WHERE id = $1");
    query.row(sql, args![id]).await?.map(|row| read(&row)).transpose()
}

/// The number of a new aggregate: never one that another had.
///
/// # Errors
/// When the database fails.
pub async fn number(tx: &Tx) -> Result<i64, StoreError> {
    let sql = "INSERT INTO compute_counters (name, value) VALUES ('aggregate', 1)
        ON CONFLICT (name) DO UPDATE SET value = compute_counters.value + 1 RETURNING value";
    tx.row(sql, Vec::new()).await?.map_or(Ok(1), |row| row.int("value"))
}

/// Writes an aggregate, new or changed.
///
/// # Errors
/// `Duplicate` when another has its name.
pub async fn put(tx: &Tx, it: &Aggregate) -> Result<(), StoreError> {
    let body = serde_json::to_string(&it.body).map_err(|error| StoreError::Shape(error.to_string()))?;
    tx.exec(
        "INSERT INTO compute_aggregates (id, uuid, name, created_at, updated_at, body)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, updated_at = excluded.updated_at, body = excluded.body",
        args![it.id, &it.uuid, &it.name, &it.created_at, &it.updated_at, body],
    )
    .await?;
    Ok(())
}

/// Removes an aggregate.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &Tx, id: i64) -> Result<(), StoreError> {
    tx.exec("DELETE FROM compute_aggregates WHERE id = $1", args![id]).await?;
    Ok(())
}
