//! Rows of accounts, containers, objects, and of blobs on their way in and out.
//!
//! Names are bytes: both engines then compare them alike, which listings and prefixes rely on.

use base::args;
use base::store::{Migration, Query, Row, StoreError, Tx, Value};
use std::collections::BTreeMap;
use wire::ids::BlobId;

pub(super) const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE object_accounts (account TEXT PRIMARY KEY, created_us BIGINT NOT NULL, meta TEXT NOT NULL)",
        "CREATE TABLE object_containers (account TEXT NOT NULL, name BYTEA NOT NULL, created_us BIGINT NOT NULL,
            updated_us BIGINT NOT NULL, meta TEXT NOT NULL, PRIMARY KEY (account, name))",
        "CREATE TABLE object_objects (account TEXT NOT NULL, container BYTEA NOT NULL, name BYTEA NOT NULL,
            blob TEXT NOT NULL, bytes BIGINT NOT NULL, etag TEXT NOT NULL, content_type TEXT NOT NULL,
            updated_us BIGINT NOT NULL, meta TEXT NOT NULL, PRIMARY KEY (account, container, name),
            FOREIGN KEY (account, container) REFERENCES object_containers (account, name))",
        "CREATE INDEX object_blobs ON object_objects (blob)",
        // Blobs that are being written: the collector leaves them alone while they are touched.
        "CREATE TABLE object_uploads (blob TEXT PRIMARY KEY, touched_us BIGINT NOT NULL)",
        // Blobs whose last row may have gone.
        "CREATE TABLE object_dead (blob TEXT PRIMARY KEY)",
    ],
}];

/// Metadata: header names in lower case and their values.
pub(crate) type Meta = BTreeMap<String, String>;

/// Microseconds since the epoch.
pub(crate) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

pub(super) struct Container {
    pub created_us: i64,
    pub meta: Meta,
}

#[derive(Debug, Clone)]
pub(super) struct Object {
    pub name: String,
    pub blob: BlobId,
    pub bytes: u64,
    pub etag: String,
    pub content_type: String,
    pub updated_us: i64,
    pub meta: Meta,
}

fn text(row: &Row, column: &str) -> Result<String, StoreError> {
    String::from_utf8(row.bytes(column)?).map_err(|error| StoreError::Shape(error.to_string()))
}

fn object(row: &Row) -> Result<Object, StoreError> {
    Ok(Object {
        name: text(row, "name")?,
        blob: row.parse("blob")?,
        bytes: u64::try_from(row.int("bytes")?).unwrap_or(0),
        etag: row.text("etag")?,
        content_type: row.text("content_type")?,
        updated_us: row.int("updated_us")?,
        meta: row.json("meta")?,
    })
}

fn bytes(name: &str) -> Value {
    Value::Bytes(Some(name.as_bytes().to_vec()))
}

fn json(meta: &Meta) -> String {
    serde_json::to_string(meta).unwrap_or_else(|_| "{}".to_owned())
}

pub(super) async fn account_meta(query: &impl Query, account: &str) -> Result<(i64, Meta), StoreError> {
    let row =
        query.row("SELECT created_us, meta FROM object_accounts WHERE account = $1", args![account]).await?;
    row.map_or_else(|| Ok((0, Meta::new())), |row| Ok((row.int("created_us")?, row.json("meta")?)))
}

pub(super) async fn set_account_meta(tx: &Tx, account: &str, meta: &Meta) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO object_accounts (account, created_us, meta) VALUES ($1, $2, $3)
         ON CONFLICT (account) DO UPDATE SET meta = excluded.meta",
        args![account, now_us(), json(meta)],
    )
    .await
    .map(drop)
}

/// Containers, objects and bytes of an account.
pub(super) async fn account_usage(query: &impl Query, account: &str) -> Result<(i64, i64, i64), StoreError> {
    let containers = query
        .row("SELECT CAST(count(*) AS BIGINT) AS n FROM object_containers WHERE account = $1", args![account])
        .await?;
    let objects = query
        .row(
            "SELECT CAST(count(*) AS BIGINT) AS n, CAST(COALESCE(sum(bytes), 0) AS BIGINT) AS b
             FROM object_objects WHERE account = $1",
            args![account],
        )
        .await?;
    let number = |row: &Option<Row>, column: &str| row.as_ref().map_or(Ok(0), |row| row.int(column));
    Ok((number(&containers, "n")?, number(&objects, "n")?, number(&objects, "b")?))
}

pub(super) async fn container(
    query: &impl Query,
    account: &str,
    name: &str,
) -> Result<Option<Container>, StoreError> {
    let row = query
        .row(
            "SELECT created_us, meta FROM object_containers WHERE account = $1 AND name = $2",
            args![account, bytes(name)],
        )
        .await?;
    row.map(|row| Ok(Container { created_us: row.int("created_us")?, meta: row.json("meta")? })).transpose()
}

/// Objects and bytes of a container.
pub(super) async fn usage(
    query: &impl Query,
    account: &str,
    container: &str,
) -> Result<(i64, i64), StoreError> {
    let row = query
        .row(
            "SELECT CAST(count(*) AS BIGINT) AS n, CAST(COALESCE(sum(bytes), 0) AS BIGINT) AS b
             FROM object_objects WHERE account = $1 AND container = $2",
            args![account, bytes(container)],
        )
        .await?;
    row.map_or(Ok((0, 0)), |row| Ok((row.int("n")?, row.int("b")?)))
}

pub(super) async fn put_container(tx: &Tx, account: &str, name: &str, meta: &Meta) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO object_containers (account, name, created_us, updated_us, meta) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (account, name) DO UPDATE SET meta = excluded.meta, updated_us = excluded.updated_us",
        args![account, bytes(name), now_us(), now_us(), json(meta)],
    )
    .await
    .map(drop)
}

pub(super) async fn delete_container(tx: &Tx, account: &str, name: &str) -> Result<u64, StoreError> {
    tx.exec("DELETE FROM object_containers WHERE account = $1 AND name = $2", args![account, bytes(name)])
        .await
}

/// A slice of a listing: names from `from` (exclusive unless `inclusive`) up to `end` (exclusive), in `reverse` from the
/// upper end.
pub(super) struct Slice<'a> {
    pub from: &'a [u8],
    pub inclusive: bool,
    pub end: Option<&'a [u8]>,
    pub reverse: bool,
    pub limit: i64,
}

fn bound(slice: &Slice<'_>, mut args: Vec<Value>) -> Vec<Value> {
    args.push(Value::Bytes(Some(slice.from.to_vec())));
    args.push(Value::Bytes(Some(slice.end.unwrap_or(&[0xff; 4]).to_vec())));
    args.push(slice.limit.into());
    args
}

pub(super) async fn list_objects(
    query: &impl Query,
    account: &str,
    container: &str,
    slice: &Slice<'_>,
) -> Result<Vec<Object>, StoreError> {
    let sql = match (slice.inclusive, slice.reverse) {
        (false, false) => {
            "SELECT * FROM object_objects WHERE account = $1 AND container = $2 AND name > $3 AND name < $4
             ORDER BY name LIMIT $5"
        }
        (true, false) => {
            "SELECT * FROM object_objects WHERE account = $1 AND container = $2 AND name >= $3 AND name < $4
             ORDER BY name LIMIT $5"
        }
        (false, true) => {
            "SELECT * FROM object_objects WHERE account = $1 AND container = $2 AND name > $3 AND name < $4
             ORDER BY name DESC LIMIT $5"
        }
        (true, true) => {
            "SELECT * FROM object_objects WHERE account = $1 AND container = $2 AND name >= $3 AND name < $4
             ORDER BY name DESC LIMIT $5"
        }
    };
    let rows = query.rows(sql, bound(slice, args![account, bytes(container)])).await?;
    rows.iter().map(object).collect()
}

/// A container of a listing.
pub(super) struct Held {
    pub name: String,
    pub updated_us: i64,
    pub objects: i64,
    pub bytes: i64,
}

macro_rules! held {
    ($bounds:literal, $order:literal) => {
        concat!(
            "SELECT c.name, c.updated_us, CAST(count(o.name) AS BIGINT) AS n,
                CAST(COALESCE(sum(o.bytes), 0) AS BIGINT) AS b
             FROM (SELECT name, updated_us FROM object_containers WHERE account = $1 AND ",
            $bounds,
            " ORDER BY name ",
            $order,
            " LIMIT $4) c
             LEFT JOIN object_objects o ON o.account = $1 AND o.container = c.name
             GROUP BY c.name, c.updated_us ORDER BY c.name ",
            $order
        )
    };
}

/// Containers of an account with what is in them.
pub(super) async fn list_containers(
    query: &impl Query,
    account: &str,
    slice: &Slice<'_>,
) -> Result<Vec<Held>, StoreError> {
    let sql = match (slice.inclusive, slice.reverse) {
        (false, false) => held!("name > $2 AND name < $3", "ASC"),
        (true, false) => held!("name >= $2 AND name < $3", "ASC"),
        (false, true) => held!("name > $2 AND name < $3", "DESC"),
        (true, true) => held!("name >= $2 AND name < $3", "DESC"),
    };
    let rows = query.rows(sql, bound(slice, args![account])).await?;
    let held = |row: &Row| {
        Ok(Held {
            name: text(row, "name")?,
            updated_us: row.int("updated_us")?,
            objects: row.int("n")?,
            bytes: row.int("b")?,
        })
    };
    rows.iter().map(held).collect()
}

pub(super) async fn find(
    query: &impl Query,
    account: &str,
    container: &str,
    name: &str,
) -> Result<Option<Object>, StoreError> {
    let row = query
        .row(
            "SELECT * FROM object_objects WHERE account = $1 AND container = $2 AND name = $3",
            args![account, bytes(container), bytes(name)],
        )
        .await?;
    row.as_ref().map(object).transpose()
}

/// Puts an object's row in place of the former one, whose blob is then free.
pub(super) async fn put(tx: &Tx, account: &str, container: &str, new: &Object) -> Result<(), StoreError> {
    remove(tx, account, container, &new.name).await?;
    let size = i64::try_from(new.bytes).unwrap_or(i64::MAX);
    tx.exec(
        "INSERT INTO object_objects (account, container, name, blob, bytes, etag, content_type, updated_us, meta)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        args![
            account,
            bytes(container),
            bytes(&new.name),
            new.blob,
            size,
            &new.etag,
            &new.content_type,
            new.updated_us,
            json(&new.meta)
        ],
    )
    .await?;
    tx.exec("DELETE FROM object_dead WHERE blob = $1", args![new.blob]).await.map(drop)
}

pub(super) async fn set_meta(
    tx: &Tx,
    account: &str,
    container: &str,
    name: &str,
    content_type: &str,
    meta: &Meta,
) -> Result<u64, StoreError> {
    tx.exec(
        "UPDATE object_objects SET meta = $1, content_type = $2, updated_us = $3
         WHERE account = $4 AND container = $5 AND name = $6",
        args![json(meta), content_type, now_us(), account, bytes(container), bytes(name)],
    )
    .await
}

/// Removes an object's row and marks its blob for the collector; whether it was there.
pub(super) async fn remove(tx: &Tx, account: &str, container: &str, name: &str) -> Result<bool, StoreError> {
    let Some(old) = find(tx, account, container, name).await? else { return Ok(false) };
    tx.exec(
        "DELETE FROM object_objects WHERE account = $1 AND container = $2 AND name = $3",
        args![account, bytes(container), bytes(name)],
    )
    .await?;
    mark_dead(tx, old.blob).await?;
    Ok(true)
}

pub(super) async fn mark_dead(tx: &Tx, blob: BlobId) -> Result<(), StoreError> {
    tx.exec("DELETE FROM object_uploads WHERE blob = $1", args![blob]).await?;
    tx.exec("INSERT INTO object_dead (blob) VALUES ($1) ON CONFLICT (blob) DO NOTHING", args![blob])
        .await
        .map(drop)
}

/// Says that a blob is being written until a while after `at`.
pub(super) async fn touch_upload(tx: &Tx, blob: BlobId, at: i64) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO object_uploads (blob, touched_us) VALUES ($1, $2)
         ON CONFLICT (blob) DO UPDATE SET touched_us = excluded.touched_us",
        args![blob, at],
    )
    .await
    .map(drop)
}

/// The same for a blob that is still reserved: one whose reservation ran out stays without.
pub(super) async fn keep_upload(tx: &Tx, blob: BlobId, at: i64) -> Result<(), StoreError> {
    tx.exec("UPDATE object_uploads SET touched_us = $1 WHERE blob = $2", args![at, blob]).await.map(drop)
}

/// The blob is written and gets a row; `false` when its reservation ran out, and with it the collector's patience.
pub(super) async fn end_upload(tx: &Tx, blob: BlobId) -> Result<bool, StoreError> {
    Ok(tx.exec("DELETE FROM object_uploads WHERE blob = $1", args![blob]).await? > 0)
}
