//! Rows of images, their free properties, tags and members.

use api_kit::time::now;
use base::args;
use base::store::{Migration, Query, Row, StoreError, Tx, Value, Where};
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(super) const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE image_images (id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT, status TEXT NOT NULL,
            visibility TEXT NOT NULL, disk_format TEXT, container_format TEXT, size BIGINT, virtual_size BIGINT,
            checksum TEXT, hash_value TEXT, blob TEXT, min_disk BIGINT NOT NULL, min_ram BIGINT NOT NULL,
            protected BIGINT NOT NULL, os_hidden BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL)",
        "CREATE INDEX image_owner ON image_images (owner, created_at)",
        "CREATE INDEX image_visibility ON image_images (visibility, created_at)",
        "CREATE TABLE image_properties (image_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
            PRIMARY KEY (image_id, name))",
        "CREATE TABLE image_tags (image_id TEXT NOT NULL, tag TEXT NOT NULL, PRIMARY KEY (image_id, tag))",
        "CREATE TABLE image_members (image_id TEXT NOT NULL, member TEXT NOT NULL, status TEXT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, PRIMARY KEY (image_id, member))",
        "CREATE INDEX image_members_of ON image_members (member)",
    ],
}];

/// An image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Image {
    pub id: String,
    pub owner: String,
    pub name: Option<String>,
    pub status: String,
    pub visibility: String,
    pub disk_format: Option<String>,
    pub container_format: Option<String>,
    pub size: Option<i64>,
    pub virtual_size: Option<i64>,
    pub checksum: Option<String>,
    pub hash_value: Option<String>,
    pub blob: Option<String>,
    pub min_disk: i64,
    pub min_ram: i64,
    pub protected: bool,
    pub os_hidden: bool,
    pub created_at: String,
    pub updated_at: String,
    pub properties: BTreeMap<String, String>,
    pub tags: BTreeSet<String>,
}

/// A project that an image is shared with.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub member: String,
    pub status: String,
    pub created_at: String,
    pub updated_at: String,
}

fn image(row: &Row) -> Result<Image, StoreError> {
    Ok(Image {
        id: row.text("id")?,
        owner: row.text("owner")?,
        name: row.opt_text("name")?,
        status: row.text("status")?,
        visibility: row.text("visibility")?,
        disk_format: row.opt_text("disk_format")?,
        container_format: row.opt_text("container_format")?,
        size: row.opt_int("size")?,
        virtual_size: row.opt_int("virtual_size")?,
        checksum: row.opt_text("checksum")?,
        hash_value: row.opt_text("hash_value")?,
        blob: row.opt_text("blob")?,
        min_disk: row.int("min_disk")?,
        min_ram: row.int("min_ram")?,
        protected: row.truth("protected")?,
        os_hidden: row.truth("os_hidden")?,
        created_at: row.text("created_at")?,
        updated_at: row.text("updated_at")?,
        properties: BTreeMap::new(),
        tags: BTreeSet::new(),
    })
}

/// Runs a statement that selects whole rows of `image_images`, and adds what lies in other tables.
pub(super) async fn select(query: &impl Query, select: Where) -> Result<Vec<Image>, StoreError> {
    let (sql, args) = select.build();
    let mut images: Vec<Image> = query.rows(sql, args).await?.iter().map(image).collect::<Result<_, _>>()?;
    let places: HashMap<String, usize> =
        images.iter().enumerate().map(|(place, image)| (image.id.clone(), place)).collect();
    let ids = || places.keys().map(|id| Value::from(id.as_str())).collect::<Vec<_>>();
    let mut properties = Where::new("SELECT image_id, name, value FROM image_properties");
    properties.and_in("image_id", ids());
    let (sql, args) = properties.build();
    for row in query.rows(sql, args).await? {
        if let Some(image) = places.get(&row.text("image_id")?).and_then(|place| images.get_mut(*place)) {
            image.properties.insert(row.text("name")?, row.text("value")?);
        }
    }
    let mut tags = Where::new("SELECT image_id, tag FROM image_tags");
    tags.and_in("image_id", ids());
    let (sql, args) = tags.build();
    for row in query.rows(sql, args).await? {
        if let Some(image) = places.get(&row.text("image_id")?).and_then(|place| images.get_mut(*place)) {
            image.tags.insert(row.text("tag")?);
        }
    }
    Ok(images)
}

pub(super) async fn find(query: &impl Query, id: &str) -> Result<Option<Image>, StoreError> {
    let mut one = Where::new("SELECT * FROM image_images");
    one.and("id = ?", [id.into()]);
    Ok(select(query, one).await?.into_iter().next())
}

pub(super) async fn insert(tx: &Tx, image: &Image) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO image_images (id, owner, name, status, visibility, disk_format, container_format, min_disk,
            min_ram, protected, os_hidden, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        args![
            &image.id,
            &image.owner,
            &image.name,
            &image.status,
            &image.visibility,
            &image.disk_format,
            &image.container_format,
            image.min_disk,
            image.min_ram,
            image.protected,
            image.os_hidden,
            &image.created_at,
            &image.updated_at
        ],
    )
    .await?;
    put_details(tx, image).await
}

/// Writes what a client may change.
pub(super) async fn update(tx: &Tx, image: &Image) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE image_images SET name = $1, visibility = $2, disk_format = $3, container_format = $4, min_disk = $5,
            min_ram = $6, protected = $7, os_hidden = $8, owner = $9, updated_at = $10 WHERE id = $11",
        args![
            &image.name,
            &image.visibility,
            &image.disk_format,
            &image.container_format,
            image.min_disk,
            image.min_ram,
            image.protected,
            image.os_hidden,
            &image.owner,
            &image.updated_at,
            &image.id
        ],
    )
    .await?;
    tx.exec("DELETE FROM image_properties WHERE image_id = $1", args![&image.id]).await?;
    tx.exec("DELETE FROM image_tags WHERE image_id = $1", args![&image.id]).await?;
    put_details(tx, image).await
}

async fn put_details(tx: &Tx, image: &Image) -> Result<(), StoreError> {
    for (name, value) in &image.properties {
        tx.exec(
            "INSERT INTO image_properties (image_id, name, value) VALUES ($1, $2, $3)",
            args![&image.id, name, value],
        )
        .await?;
    }
    for tag in &image.tags {
        tx.exec("INSERT INTO image_tags (image_id, tag) VALUES ($1, $2)", args![&image.id, tag]).await?;
    }
    Ok(())
}

pub(super) async fn delete(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM image_properties WHERE image_id = $1", args![id]).await?;
    tx.exec("DELETE FROM image_tags WHERE image_id = $1", args![id]).await?;
    tx.exec("DELETE FROM image_members WHERE image_id = $1", args![id]).await?;
    tx.exec("DELETE FROM image_images WHERE id = $1", args![id]).await.map(drop)
}

/// Moves an image from one status to another and names the blob that is being written; whether it was in the first.
pub(super) async fn advance(
    tx: &Tx,
    id: &str,
    (from, to): (&str, &str),
    blob: Option<String>,
) -> Result<bool, StoreError> {
    let changed = tx
        .exec(
            "UPDATE image_images SET status = $1, blob = $2, updated_at = $3 WHERE id = $4 AND status = $5",
            args![to, blob, now(), id, from],
        )
        .await?;
    Ok(changed > 0)
}

/// What an upload brought.
pub(super) struct Filled<'a> {
    pub size: i64,
    pub virtual_size: i64,
    pub checksum: &'a str,
    pub hash_value: &'a str,
}

/// Makes a saving image active.
pub(super) async fn fill(tx: &Tx, id: &str, blob: &str, filled: &Filled<'_>) -> Result<bool, StoreError> {
    let changed = tx
        .exec(
            "UPDATE image_images SET status = 'active', size = $1, virtual_size = $2, checksum = $3, hash_value = $4,
                updated_at = $5 WHERE id = $6 AND status = 'saving' AND blob = $7",
            args![
                filled.size,
                filled.virtual_size,
                filled.checksum,
                filled.hash_value,
                now(),
                id,
                blob
            ],
        )
        .await?;
    Ok(changed > 0)
}

pub(super) async fn is_member(query: &impl Query, id: &str, project: &str) -> Result<bool, StoreError> {
    let sql = "SELECT member FROM image_members WHERE image_id = $1 AND member = $2";
    Ok(query.row(sql, args![id, project]).await?.is_some())
}

fn member(row: &Row) -> Result<Member, StoreError> {
    Ok(Member {
        member: row.text("member")?,
        status: row.text("status")?,
        created_at: row.text("created_at")?,
        updated_at: row.text("updated_at")?,
    })
}

pub(super) async fn members(query: &impl Query, id: &str) -> Result<Vec<Member>, StoreError> {
    let sql = "SELECT * FROM image_members WHERE image_id = $1 ORDER BY member";
    query.rows(sql, args![id]).await?.iter().map(member).collect()
}

pub(super) async fn add_member(tx: &Tx, id: &str, project: &str) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO image_members (image_id, member, status, created_at, updated_at)
         VALUES ($1, $2, 'pending', $3, $4)",
        args![id, project, now(), now()],
    )
    .await
    .map(drop)
}

pub(super) async fn set_member(tx: &Tx, id: &str, project: &str, status: &str) -> Result<u64, StoreError> {
    tx.exec(
        "UPDATE image_members SET status = $1, updated_at = $2 WHERE image_id = $3 AND member = $4",
        args![status, now(), id, project],
    )
    .await
}

pub(super) async fn drop_member(tx: &Tx, id: &str, project: &str) -> Result<u64, StoreError> {
    tx.exec("DELETE FROM image_members WHERE image_id = $1 AND member = $2", args![id, project]).await
}
