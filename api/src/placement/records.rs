//! SQL of placement: providers, their inventories, and what consumers hold of them.

use base::args;
use base::store::{Migration, Query, Row, Sql, StoreError, Tx, Where};
use std::collections::BTreeMap;

/// Tables of the component `placement`.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE placement_providers (
            uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, generation BIGINT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL)",
        "CREATE TABLE placement_inventories (
            provider TEXT NOT NULL REFERENCES placement_providers (uuid), class TEXT NOT NULL,
            total BIGINT NOT NULL, reserved BIGINT NOT NULL, min_unit BIGINT NOT NULL, max_unit BIGINT NOT NULL,
            step_size BIGINT NOT NULL, ratio DOUBLE PRECISION NOT NULL, PRIMARY KEY (provider, class))",
        "CREATE TABLE placement_consumers (
            uuid TEXT PRIMARY KEY, project_id TEXT NOT NULL, user_id TEXT NOT NULL, created_at TEXT NOT NULL)",
        "CREATE INDEX placement_consumers_project ON placement_consumers (project_id)",
        "CREATE TABLE placement_allocations (
            consumer TEXT NOT NULL REFERENCES placement_consumers (uuid),
            provider TEXT NOT NULL REFERENCES placement_providers (uuid),
            class TEXT NOT NULL, used BIGINT NOT NULL, PRIMARY KEY (consumer, provider, class))",
        "CREATE INDEX placement_allocations_provider ON placement_allocations (provider, class)",
        "CREATE TABLE placement_classes (name TEXT PRIMARY KEY)",
        "CREATE TABLE placement_traits (name TEXT PRIMARY KEY)",
        "CREATE TABLE placement_provider_traits (
            provider TEXT NOT NULL REFERENCES placement_providers (uuid), trait TEXT NOT NULL,
            PRIMARY KEY (provider, trait))",
        "CREATE TABLE placement_provider_aggregates (
            provider TEXT NOT NULL REFERENCES placement_providers (uuid), aggregate TEXT NOT NULL,
            PRIMARY KEY (provider, aggregate))",
    ],
}, Migration {
    version: 2,
    // What a consumer is, as upstream names it: `INSTANCE` for compute's servers, empty when nobody said.
    statements: &["ALTER TABLE placement_consumers ADD COLUMN kind TEXT NOT NULL DEFAULT ''"],
}];

/// A thing that has resources: here always a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its id, a UUID in text.
    pub uuid: String,
    /// Its unique name: the host's.
    pub name: String,
    /// Counts changes of its inventories, traits, aggregates and allocations.
    pub generation: i64,
}

/// How much of one resource class a provider has.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// Physical amount.
    pub total: i64,
    /// Part of `total` that is kept from consumers.
    pub reserved: i64,
    /// Smallest amount of one allocation.
    pub min_unit: i64,
    /// Largest amount of one allocation.
    pub max_unit: i64,
    /// Amounts are multiples of it.
    pub step_size: i64,
    /// Factor of over-commitment.
    pub ratio: f64,
}

/// Amounts by resource class.
pub type Resources = BTreeMap<String, i64>;

fn provider(row: &Row) -> Result<Provider, StoreError> {
    Ok(Provider { uuid: row.text("uuid")?, name: row.text("name")?, generation: row.int("generation")? })
}

/// All providers, or those that match, by name.
///
/// # Errors
/// When the database fails.
pub async fn providers(
    query: &impl Query,
    name: Option<&str>,
    uuid: Option<&str>,
) -> Result<Vec<Provider>, StoreError> {
    let mut select = Where::new("SELECT uuid, name, generation FROM placement_providers");
    if let Some(name) = name {
        select.and("name = ?", [name.into()]);
    }
    if let Some(uuid) = uuid {
        select.and("uuid = ?", [uuid.into()]);
    }
    select.end("ORDER BY name", []);
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(provider).collect()
}

/// One provider by id.
///
/// # Errors
/// When the database fails.
pub async fn provider_by_id(query: &impl Query, uuid: &str) -> Result<Option<Provider>, StoreError> {
    Ok(providers(query, None, Some(uuid)).await?.into_iter().next())
}

/// Makes a provider.
///
/// # Errors
/// `Duplicate` when name or id is taken.
pub async fn insert_provider(tx: &Tx, uuid: &str, name: &str, now: &str) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO placement_providers (uuid, name, generation, created_at, updated_at) VALUES ($1, $2, 0, $3, $3)",
        args![uuid, name, now],
    )
    .await?;
    Ok(())
}

/// Gives a provider another name.
///
/// # Errors
/// `Duplicate` when the name is taken.
pub async fn rename_provider(tx: &Tx, uuid: &str, name: &str, now: &str) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE placement_providers SET name = $2, updated_at = $3 WHERE uuid = $1",
        args![uuid, name, now],
    )
    .await?;
    Ok(())
}

/// Removes a provider with its inventories, traits and aggregates.
///
/// # Errors
/// `Constraint` when consumers hold something of it.
pub async fn delete_provider(tx: &Tx, uuid: &str) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM placement_provider_traits WHERE provider = $1",
        "DELETE FROM placement_provider_aggregates WHERE provider = $1",
        "DELETE FROM placement_inventories WHERE provider = $1",
        "DELETE FROM placement_providers WHERE uuid = $1",
    ] {
        tx.exec(statement, args![uuid]).await?;
    }
    Ok(())
}

/// Counts a change of the provider. Taking the row's lock first is also what makes rivals for its room wait or repeat.
///
/// # Errors
/// When the database fails.
pub async fn bump(tx: &Tx, uuid: &str, now: &str) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE placement_providers SET generation = generation + 1, updated_at = $2 WHERE uuid = $1",
        args![uuid, now],
    )
    .await?;
    Ok(())
}

/// Inventories of one provider, by class.
///
/// # Errors
/// When the database fails.
pub async fn inventories(query: &impl Query, uuid: &str) -> Result<BTreeMap<String, Inventory>, StoreError> {
    let rows = query
        .rows(Sql::from("SELECT class, total, reserved, min_unit, max_unit, step_size, ratio FROM placement_inventories
             WHERE provider = $1"),
            args![uuid],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok((
                row.text("class")?,
                Inventory {
                    total: row.int("total")?,
                    reserved: row.int("reserved")?,
                    min_unit: row.int("min_unit")?,
                    max_unit: row.int("max_unit")?,
                    step_size: row.int("step_size")?,
                    ratio: row.real("ratio")?,
                },
            ))
        })
        .collect()
}

/// Writes one inventory.
///
/// # Errors
/// When the database fails.
pub async fn put_inventory(tx: &Tx, uuid: &str, class: &str, it: &Inventory) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO placement_inventories (provider, class, total, reserved, min_unit, max_unit, step_size, ratio)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (provider, class) DO UPDATE SET total = excluded.total, reserved = excluded.reserved,
         min_unit = excluded.min_unit, max_unit = excluded.max_unit, step_size = excluded.step_size,
         ratio = excluded.ratio",
        args![uuid, class, it.total, it.reserved, it.min_unit, it.max_unit, it.step_size, it.ratio],
    )
    .await?;
    Ok(())
}

/// Removes one inventory; false when there was none.
///
/// # Errors
/// When the database fails.
pub async fn delete_inventory(tx: &Tx, uuid: &str, class: &str) -> Result<bool, StoreError> {
    let gone = tx
        .exec("DELETE FROM placement_inventories WHERE provider = $1 AND class = $2", args![uuid, class])
        .await?;
    Ok(gone > 0)
}

/// What consumers together hold of one provider, by class; classes that nobody uses are missing.
///
/// # Errors
/// When the database fails.
pub async fn usage(query: &impl Query, uuid: &str) -> Result<Resources, StoreError> {
    let rows = query
        .rows(Sql::from("SELECT class, CAST(SUM(used) AS BIGINT) AS used FROM placement_allocations WHERE provider = $1 GROUP BY class"),
            args![uuid],
        )
        .await?;
    rows.iter().map(|row| Ok((row.text("class")?, row.int("used")?))).collect()
}

/// What the consumers of a project (and user) hold, by class.
///
/// # Errors
/// When the database fails.
pub async fn project_usage(
    query: &impl Query,
    project: &str,
    user: Option<&str>,
) -> Result<Resources, StoreError> {
    let mut select = Where::new(
        "SELECT a.class AS class, CAST(SUM(a.used) AS BIGINT) AS used FROM placement_allocations a
         JOIN placement_consumers c ON c.uuid = a.consumer",
    );
    select.and("c.project_id = ?", [project.into()]);
    if let Some(user) = user {
        select.and("c.user_id = ?", [user.into()]);
    }
    select.end("GROUP BY a.class", []);
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(|row| Ok((row.text("class")?, row.int("used")?))).collect()
}

/// What one consumer holds, by provider.
///
/// # Errors
/// When the database fails.
pub async fn of_consumer(
    query: &impl Query,
    consumer: &str,
) -> Result<BTreeMap<String, Resources>, StoreError> {
    let rows = query
        .rows(
            Sql::from("SELECT provider, class, used FROM placement_allocations WHERE consumer = $1"),
            args![consumer],
        )
        .await?;
    group(&rows, "provider")
}

/// What is held of one provider, by consumer.
///
/// # Errors
/// When the database fails.
pub async fn of_provider(query: &impl Query, uuid: &str) -> Result<BTreeMap<String, Resources>, StoreError> {
    let rows = query
        .rows(
            Sql::from("SELECT consumer, class, used FROM placement_allocations WHERE provider = $1"),
            args![uuid],
        )
        .await?;
    group(&rows, "consumer")
}

fn group(rows: &[Row], key: &str) -> Result<BTreeMap<String, Resources>, StoreError> {
    let mut all: BTreeMap<String, Resources> = BTreeMap::new();
    for row in rows {
        all.entry(row.text(key)?).or_default().insert(row.text("class")?, row.int("used")?);
    }
    Ok(all)
}

/// Owner of a consumer as (project, user).
///
/// # Errors
/// When the database fails.
pub async fn consumer(query: &impl Query, uuid: &str) -> Result<Option<(String, String)>, StoreError> {
    let row = query
        .row(Sql::from("SELECT project_id, user_id FROM placement_consumers WHERE uuid = $1"), args![uuid])
        .await?;
    row.map(|row| Ok((row.text("project_id")?, row.text("user_id")?))).transpose()
}

/// Makes or changes a consumer.
///
/// # Errors
/// When the database fails.
pub async fn put_consumer(
    tx: &Tx,
    uuid: &str,
    project: &str,
    user: &str,
    kind: &str,
    now: &str,
) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO placement_consumers (uuid, project_id, user_id, kind, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (uuid) DO UPDATE SET project_id = excluded.project_id, user_id = excluded.user_id,
            kind = CASE WHEN excluded.kind = '' THEN placement_consumers.kind ELSE excluded.kind END",
        args![uuid, project, user, kind, now],
    )
    .await?;
    Ok(())
}

/// The consumers of a kind.
///
/// # Errors
/// When the database fails.
pub async fn of_kind(query: &impl Query, kind: &str) -> Result<Vec<String>, StoreError> {
    let sql = Sql::from("SELECT uuid FROM placement_consumers WHERE kind = $1");
    query.rows(sql, args![kind]).await?.iter().map(|row| row.text("uuid")).collect()
}

/// Writes one allocation.
///
/// # Errors
/// When the database fails.
pub async fn insert_allocation(
    tx: &Tx,
    consumer: &str,
    provider: &str,
    class: &str,
    used: i64,
) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO placement_allocations (consumer, provider, class, used) VALUES ($1, $2, $3, $4)",
        args![consumer, provider, class, used],
    )
    .await?;
    Ok(())
}

/// Removes all that a consumer holds; returns how many rows that were.
///
/// # Errors
/// When the database fails.
pub async fn clear_allocations(tx: &Tx, consumer: &str) -> Result<u64, StoreError> {
    tx.exec("DELETE FROM placement_allocations WHERE consumer = $1", args![consumer]).await
}

/// Removes a consumer that holds nothing.
///
/// # Errors
/// When the database fails.
pub async fn delete_consumer(tx: &Tx, consumer: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM placement_consumers WHERE uuid = $1", args![consumer]).await?;
    Ok(())
}

/// A set of names, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Custom resource classes.
    Classes,
    /// Custom traits.
    Traits,
}

/// All custom names of a kind.
///
/// # Errors
/// When the database fails.
pub async fn names(query: &impl Query, kind: Names) -> Result<Vec<String>, StoreError> {
    let sql = match kind {
        Names::Classes => "SELECT name FROM placement_classes ORDER BY name",
        Names::Traits => "SELECT name FROM placement_traits ORDER BY name",
    };
    query.rows(Sql::from(sql), args![]).await?.iter().map(|row| row.text("name")).collect()
}

/// Adds a custom name; false when it is there.
///
/// # Errors
/// When the database fails.
pub async fn add_name(tx: &Tx, kind: Names, name: &str) -> Result<bool, StoreError> {
    let sql = match kind {
        Names::Classes => "INSERT INTO placement_classes (name) VALUES ($1) ON CONFLICT DO NOTHING",
        Names::Traits => "INSERT INTO placement_traits (name) VALUES ($1) ON CONFLICT DO NOTHING",
    };
    Ok(tx.exec(sql, args![name]).await? > 0)
}

/// Removes a custom name; false when there was none.
///
/// # Errors
/// When the database fails.
pub async fn delete_name(tx: &Tx, kind: Names, name: &str) -> Result<bool, StoreError> {
    let sql = match kind {
        Names::Classes => "DELETE FROM placement_classes WHERE name = $1",
        Names::Traits => "DELETE FROM placement_traits WHERE name = $1",
    };
    Ok(tx.exec(sql, args![name]).await? > 0)
}

/// Whether any provider uses the name.
///
/// # Errors
/// When the database fails.
pub async fn name_in_use(query: &impl Query, kind: Names, name: &str) -> Result<bool, StoreError> {
    let sql = match kind {
        Names::Classes => "SELECT provider FROM placement_inventories WHERE class = $1 LIMIT 1",
        Names::Traits => "SELECT provider FROM placement_provider_traits WHERE trait = $1 LIMIT 1",
    };
    Ok(query.row(Sql::from(sql), args![name]).await?.is_some())
}

/// A provider's labels, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Traits.
    Traits,
    /// Aggregates.
    Aggregates,
}

/// A provider's labels.
///
/// # Errors
/// When the database fails.
pub async fn labels(query: &impl Query, kind: Labels, uuid: &str) -> Result<Vec<String>, StoreError> {
    let sql = match kind {
        Labels::Traits => {
            "SELECT trait AS label FROM placement_provider_traits WHERE provider = $1 ORDER BY trait"
        }
        Labels::Aggregates => {
            "SELECT aggregate AS label FROM placement_provider_aggregates WHERE provider = $1 ORDER BY aggregate"
        }
    };
    query.rows(Sql::from(sql), args![uuid]).await?.iter().map(|row| row.text("label")).collect()
}

/// Replaces a provider's labels.
///
/// # Errors
/// When the database fails.
pub async fn put_labels(tx: &Tx, kind: Labels, uuid: &str, labels: &[String]) -> Result<(), StoreError> {
    let (clear, add) = match kind {
        Labels::Traits => (
            "DELETE FROM placement_provider_traits WHERE provider = $1",
            "INSERT INTO placement_provider_traits (provider, trait) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        ),
        Labels::Aggregates => (
            "DELETE FROM placement_provider_aggregates WHERE provider = $1",
            "INSERT INTO placement_provider_aggregates (provider, aggregate) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        ),
    };
    tx.exec(clear, args![uuid]).await?;
    for label in labels {
        tx.exec(add, args![uuid, label]).await?;
    }
    Ok(())
}
