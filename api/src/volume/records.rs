//! Rows of volumes, snapshots and attachments.

use api_kit::time::now;
use base::args;
use base::store::{Migration, Query, Row, StoreError, Tx, Value, Where};
use std::collections::BTreeMap;

pub(super) const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE volume_volumes (id TEXT PRIMARY KEY, project_id TEXT NOT NULL, user_id TEXT NOT NULL,
            name TEXT, description TEXT, size BIGINT NOT NULL, status TEXT NOT NULL, bootable BIGINT NOT NULL,
            snapshot_id TEXT, source_volid TEXT, metadata TEXT NOT NULL, image_metadata TEXT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL)",
        "CREATE INDEX volume_project ON volume_volumes (project_id, created_at)",
        "CREATE TABLE volume_snapshots (id TEXT PRIMARY KEY, project_id TEXT NOT NULL, user_id TEXT NOT NULL,
            volume_id TEXT NOT NULL, name TEXT, description TEXT, size BIGINT NOT NULL, status TEXT NOT NULL,
            metadata TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL)",
        "CREATE INDEX volume_snapshot_project ON volume_snapshots (project_id, created_at)",
        "CREATE INDEX volume_snapshot_volume ON volume_snapshots (volume_id)",
        "CREATE TABLE volume_attachments (id TEXT PRIMARY KEY, project_id TEXT NOT NULL, volume_id TEXT NOT NULL,
            server_id TEXT NOT NULL, status TEXT NOT NULL, mountpoint TEXT, host TEXT, attached_at TEXT,
            created_at TEXT NOT NULL)",
        // A volume is with one server at a time.
        "CREATE UNIQUE INDEX volume_attachment ON volume_attachments (volume_id)",
        "CREATE INDEX volume_attachment_server ON volume_attachments (server_id)",
    ],
}, Migration {
    version: 2,
    statements: &[
        "CREATE TABLE volume_qos (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, consumer TEXT NOT NULL,
            specs TEXT NOT NULL, created_at TEXT NOT NULL)",
        "CREATE TABLE volume_types (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT,
            is_public BIGINT NOT NULL, extra_specs TEXT NOT NULL, access TEXT NOT NULL, qos_specs_id TEXT,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL)",
        // The type that every volume had before there were others, by the id that it had.
        "INSERT INTO volume_types (id, name, description, is_public, extra_specs, access, created_at, updated_at)
         VALUES ('0f1e5a3c-8d1b-4a52-9c55-6d6f6e74616e', '__DEFAULT__', 'Default Volume Type', 1, '{}', '[]',
            '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z')",
        "ALTER TABLE volume_volumes ADD COLUMN volume_type_id TEXT NOT NULL
            DEFAULT '0f1e5a3c-8d1b-4a52-9c55-6d6f6e74616e'",
        "CREATE INDEX volume_volumes_type ON volume_volumes (volume_type_id)",
    ],
}];

/// Volumes with the names of their types; conditions follow.
pub(super) const VOLUMES: &str = "SELECT volume_volumes.*, (SELECT volume_types.name FROM volume_types
    WHERE volume_types.id = volume_volumes.volume_type_id) AS type_name FROM volume_volumes";

pub(super) type Pairs = BTreeMap<String, String>;

#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub id: String,
    pub project_id: String,
    pub user_id: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub size: i64,
    pub status: String,
    pub bootable: bool,
    pub snapshot_id: Option<String>,
    pub source_volid: Option<String>,
    pub metadata: Pairs,
    pub image_metadata: Pairs,
    pub type_id: String,
    pub type_name: Option<String>,
    pub created_at: String,
    pub updated_at: String,
}

#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub id: String,
    pub project_id: String,
    pub user_id: String,
    pub volume_id: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub size: i64,
    pub status: String,
    pub metadata: Pairs,
    pub created_at: String,
    pub updated_at: String,
}

#[derive(Debug, Clone)]
pub(super) struct Attached {
    pub id: String,
    pub project_id: String,
    pub volume_id: String,
    pub server_id: String,
    pub status: String,
    pub mountpoint: Option<String>,
    pub host: Option<String>,
    pub attached_at: Option<String>,
}

fn volume(row: &Row) -> Result<Volume, StoreError> {
    Ok(Volume {
        id: row.text("id")?,
        project_id: row.text("project_id")?,
        user_id: row.text("user_id")?,
        name: row.opt_text("name")?,
        description: row.opt_text("description")?,
        size: row.int("size")?,
        status: row.text("status")?,
        bootable: row.truth("bootable")?,
        snapshot_id: row.opt_text("snapshot_id")?,
        source_volid: row.opt_text("source_volid")?,
        metadata: row.json("metadata")?,
        image_metadata: row.json("image_metadata")?,
        type_id: row.text("volume_type_id")?,
        type_name: row.opt_text("type_name")?,
        created_at: row.text("created_at")?,
        updated_at: row.text("updated_at")?,
    })
}

fn snapshot(row: &Row) -> Result<Snapshot, StoreError> {
    Ok(Snapshot {
        id: row.text("id")?,
        project_id: row.text("project_id")?,
        user_id: row.text("user_id")?,
        volume_id: row.text("volume_id")?,
        name: row.opt_text("name")?,
        description: row.opt_text("description")?,
        size: row.int("size")?,
        status: row.text("status")?,
        metadata: row.json("metadata")?,
        created_at: row.text("created_at")?,
        updated_at: row.text("updated_at")?,
    })
}

fn attached(row: &Row) -> Result<Attached, StoreError> {
    Ok(Attached {
        id: row.text("id")?,
        project_id: row.text("project_id")?,
        volume_id: row.text("volume_id")?,
        server_id: row.text("server_id")?,
        status: row.text("status")?,
        mountpoint: row.opt_text("mountpoint")?,
        host: row.opt_text("host")?,
        attached_at: row.opt_text("attached_at")?,
    })
}

fn json(pairs: &Pairs) -> String {
    serde_json::to_string(pairs).unwrap_or_else(|_| "{}".to_owned())
}

pub(super) async fn volumes(query: &impl Query, select: Where) -> Result<Vec<Volume>, StoreError> {
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(volume).collect()
}

pub(super) async fn find(query: &impl Query, id: &str) -> Result<Option<Volume>, StoreError> {
    let mut select = Where::new(VOLUMES);
    select.and("id = ?", [id.into()]);
    Ok(volumes(query, select).await?.into_iter().next())
}

pub(super) async fn insert(tx: &Tx, new: &Volume) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO volume_volumes (id, project_id, user_id, name, description, size, status, bootable, snapshot_id,
            source_volid, metadata, image_metadata, created_at, updated_at, volume_type_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        args![
            &new.id,
            &new.project_id,
            &new.user_id,
            &new.name,
            &new.description,
            new.size,
            &new.status,
            new.bootable,
            &new.snapshot_id,
            &new.source_volid,
            json(&new.metadata),
            json(&new.image_metadata),
            &new.created_at,
            &new.updated_at,
            &new.type_id
        ],
    )
    .await
    .map(drop)
}

/// Writes what a client may change.
pub(super) async fn update(tx: &Tx, new: &Volume) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE volume_volumes SET name = $1, description = $2, bootable = $3, metadata = $4, updated_at = $5
         WHERE id = $6",
        args![&new.name, &new.description, new.bootable, json(&new.metadata), now(), &new.id],
    )
    .await
    .map(drop)
}

/// Moves a volume on; whether it was in `from`.
pub(super) async fn advance(tx: &Tx, id: &str, from: &str, to: &str) -> Result<bool, StoreError> {
    let changed = tx
        .exec(
            "UPDATE volume_volumes SET status = $1, updated_at = $2 WHERE id = $3 AND status = $4",
            args![to, now(), id, from],
        )
        .await?;
    Ok(changed > 0)
}

pub(super) async fn set_status(tx: &Tx, id: &str, status: &str) -> Result<(), StoreError> {
    tx.exec("UPDATE volume_volumes SET status = $1, updated_at = $2 WHERE id = $3", args![status, now(), id])
        .await
        .map(drop)
}

pub(super) async fn set_size(tx: &Tx, id: &str, size: i64) -> Result<(), StoreError> {
    tx.exec("UPDATE volume_volumes SET size = $1 WHERE id = $2", args![size, id]).await.map(drop)
}

pub(super) async fn delete(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM volume_attachments WHERE volume_id = $1", args![id]).await?;
    tx.exec("DELETE FROM volume_volumes WHERE id = $1", args![id]).await.map(drop)
}

/// Volumes, gigabytes of volumes and snapshots, and snapshots of a project.
pub(super) async fn usage(query: &impl Query, project: &str) -> Result<(i64, i64, i64), StoreError> {
    let number =
        |row: Option<Row>| row.map_or(Ok((0, 0)), |row| Ok::<_, StoreError>((row.int("n")?, row.int("g")?)));
    let volumes = query
        .row(
            "SELECT CAST(count(*) AS BIGINT) AS n, CAST(COALESCE(sum(size), 0) AS BIGINT) AS g
             FROM volume_volumes WHERE project_id = $1",
            args![project],
        )
        .await?;
    let snapshots = query
        .row(
            "SELECT CAST(count(*) AS BIGINT) AS n, CAST(COALESCE(sum(size), 0) AS BIGINT) AS g
             FROM volume_snapshots WHERE project_id = $1",
            args![project],
        )
        .await?;
    let (volumes, snapshots) = (number(volumes)?, number(snapshots)?);
    Ok((volumes.0, volumes.1 + snapshots.1, snapshots.0))
}

pub(super) async fn snapshots(query: &impl Query, select: Where) -> Result<Vec<Snapshot>, StoreError> {
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(snapshot).collect()
}

pub(super) async fn find_snapshot(query: &impl Query, id: &str) -> Result<Option<Snapshot>, StoreError> {
    let row = query.row("SELECT * FROM volume_snapshots WHERE id = $1", args![id]).await?;
    row.as_ref().map(snapshot).transpose()
}

pub(super) async fn has_snapshots(query: &impl Query, volume: &str) -> Result<bool, StoreError> {
    let sql = "SELECT id FROM volume_snapshots WHERE volume_id = $1 LIMIT 1";
    Ok(query.row(sql, args![volume]).await?.is_some())
}

/// Whether a volume is being made from this snapshot or volume right now.
pub(super) async fn feeds_a_volume(query: &impl Query, source: &str) -> Result<bool, StoreError> {
    let sql =
        "SELECT id FROM volume_volumes WHERE status = 'creating' AND (snapshot_id = $1 OR source_volid = $2)
        LIMIT 1";
    Ok(query.row(sql, args![source, source]).await?.is_some())
}

pub(super) async fn insert_snapshot(tx: &Tx, new: &Snapshot) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO volume_snapshots (id, project_id, user_id, volume_id, name, description, size, status, metadata,
            created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        args![
            &new.id,
            &new.project_id,
            &new.user_id,
            &new.volume_id,
            &new.name,
            &new.description,
            new.size,
            &new.status,
            json(&new.metadata),
            &new.created_at,
            &new.updated_at
        ],
    )
    .await
    .map(drop)
}

pub(super) async fn update_snapshot(tx: &Tx, new: &Snapshot) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE volume_snapshots SET name = $1, description = $2, metadata = $3, updated_at = $4 WHERE id = $5",
        args![&new.name, &new.description, json(&new.metadata), now(), &new.id],
    )
    .await
    .map(drop)
}

pub(super) async fn set_snapshot_status(tx: &Tx, id: &str, status: &str) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE volume_snapshots SET status = $1, updated_at = $2 WHERE id = $3",
        args![status, now(), id],
    )
    .await
    .map(drop)
}

pub(super) async fn delete_snapshot(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM volume_snapshots WHERE id = $1", args![id]).await.map(drop)
}

/// Attachments of these volumes.
pub(super) async fn attachments_of(
    query: &impl Query,
    volumes: impl IntoIterator<Item = String>,
) -> Result<Vec<Attached>, StoreError> {
    let mut select = Where::new("SELECT * FROM volume_attachments");
    select.and_in("volume_id", volumes.into_iter().map(Value::from));
    attachments(query, select).await
}

pub(super) async fn attachments(query: &impl Query, select: Where) -> Result<Vec<Attached>, StoreError> {
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(attached).collect()
}

pub(super) async fn find_attachment(query: &impl Query, id: &str) -> Result<Option<Attached>, StoreError> {
    let row = query.row("SELECT * FROM volume_attachments WHERE id = $1", args![id]).await?;
    row.as_ref().map(attached).transpose()
}

pub(super) async fn insert_attachment(tx: &Tx, new: &Attached) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO volume_attachments (id, project_id, volume_id, server_id, status, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        args![&new.id, &new.project_id, &new.volume_id, &new.server_id, &new.status, now()],
    )
    .await
    .map(drop)
}

pub(super) async fn complete_attachment(
    tx: &Tx,
    id: &str,
    device: &str,
    host: &str,
) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE volume_attachments SET status = 'attached', mountpoint = $1, host = $2,
            attached_at = COALESCE(attached_at, $3) WHERE id = $4",
        args![device, host, now(), id],
    )
    .await
    .map(drop)
}

pub(super) async fn set_attachment_status(tx: &Tx, id: &str, status: &str) -> Result<(), StoreError> {
    tx.exec("UPDATE volume_attachments SET status = $1 WHERE id = $2", args![status, id]).await.map(drop)
}

pub(super) async fn delete_attachment(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM volume_attachments WHERE id = $1", args![id]).await.map(drop)
}
