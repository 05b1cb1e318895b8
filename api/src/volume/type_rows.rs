//! Rows of volume types and of QoS specs. There are few of both, so they are read as a whole.

use super::records::Pairs;
use api_kit::time::now;
use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx};
use serde::Serialize;
use std::collections::BTreeSet;

/// A volume type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub id: String,
    pub name: String,
    pub description: Option<String>,
    pub is_public: bool,
    pub extra_specs: Pairs,
    /// Projects that may use it when it is not public.
    pub access: BTreeSet<String>,
    pub qos_specs_id: Option<String>,
    pub created_at: String,
}

/// QoS specs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qos {
    pub id: String,
    pub name: String,
    /// `front-end`, `back-end` or `both`.
    pub consumer: String,
    pub specs: Pairs,
    pub created_at: String,
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Shape(error.to_string()))
}

fn kind(row: &Row) -> Result<Kind, StoreError> {
    Ok(Kind {
        id: row.text("id")?,
        name: row.text("name")?,
        description: row.opt_text("description")?,
        is_public: row.truth("is_public")?,
        extra_specs: row.json("extra_specs")?,
        access: row.json("access")?,
        qos_specs_id: row.opt_text("qos_specs_id")?,
        created_at: row.text("created_at")?,
    })
}

fn qos(row: &Row) -> Result<Qos, StoreError> {
    Ok(Qos {
        id: row.text("id")?,
        name: row.text("name")?,
        consumer: row.text("consumer")?,
        specs: row.json("specs")?,
        created_at: row.text("created_at")?,
    })
}

pub(super) async fn all(query: &impl Query) -> Result<Vec<Kind>, StoreError> {
    let sql = Sql::from("SELECT * FROM volume_types ORDER BY created_at, id");
    query.rows(sql, Vec::new()).await?.iter().map(kind).collect()
}

pub(super) async fn get(query: &impl Query, id: &str) -> Result<Option<Kind>, StoreError> {
    let row = query.row(Sql::from("SELECT * FROM volume_types WHERE id = $1"), args![id]).await?;
    row.as_ref().map(kind).transpose()
}

pub(super) async fn insert(tx: &Tx, it: &Kind) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO volume_types (id, name, description, is_public, extra_specs, access, qos_specs_id, created_at,
            updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        args![
            &it.id, &it.name, &it.description, it.is_public, json(&it.extra_specs)?, json(&it.access)?,
            &it.qos_specs_id, &it.created_at, &it.created_at
        ],
    )
    .await
    .map(drop)
}

pub(super) async fn update(tx: &Tx, it: &Kind) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE volume_types SET name = $1, description = $2, is_public = $3, extra_specs = $4, access = $5,
            qos_specs_id = $6, updated_at = $7 WHERE id = $8",
        args![
            &it.name,
            &it.description,
            it.is_public,
            json(&it.extra_specs)?,
            json(&it.access)?,
            &it.qos_specs_id,
            now(),
            &it.id
        ],
    )
    .await
    .map(drop)
}

pub(super) async fn delete(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM volume_types WHERE id = $1", args![id]).await.map(drop)
}

/// Whether a volume is of this type.
pub(super) async fn is_used(query: &impl Query, id: &str) -> Result<bool, StoreError> {
    let sql = Sql::from("SELECT id FROM volume_volumes WHERE volume_type_id = $1 LIMIT 1");
    Ok(query.row(sql, args![id]).await?.is_some())
}

pub(super) async fn all_qos(query: &impl Query) -> Result<Vec<Qos>, StoreError> {
    let sql = Sql::from("SELECT * FROM volume_qos ORDER BY created_at DESC, id");
    query.rows(sql, Vec::new()).await?.iter().map(qos).collect()
}

pub(super) async fn get_qos(query: &impl Query, id: &str) -> Result<Option<Qos>, StoreError> {
    let row = query.row(Sql::from("SELECT * FROM volume_qos WHERE id = $1"), args![id]).await?;
    row.as_ref().map(qos).transpose()
}

/// The QoS specs of a volume's type.
pub(super) async fn qos_of(query: &impl Query, type_id: &str) -> Result<Option<Qos>, StoreError> {
    let sql = Sql::from(
        "SELECT volume_qos.* FROM volume_qos JOIN volume_types ON volume_types.qos_specs_id = volume_qos.id
         WHERE volume_types.id = $1",
    );
    query.row(sql, args![type_id]).await?.as_ref().map(qos).transpose()
}

pub(super) async fn insert_qos(tx: &Tx, it: &Qos) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO volume_qos (id, name, consumer, specs, created_at) VALUES ($1, $2, $3, $4, $5)",
        args![&it.id, &it.name, &it.consumer, json(&it.specs)?, &it.created_at],
    )
    .await
    .map(drop)
}

pub(super) async fn update_qos(tx: &Tx, it: &Qos) -> Result<(), StoreError> {
    tx.exec(
        "UPDATE volume_qos SET consumer = $1, specs = $2 WHERE id = $3",
        args![&it.consumer, json(&it.specs)?, &it.id],
    )
    .await
    .map(drop)
}

pub(super) async fn delete_qos(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM volume_qos WHERE id = $1", args![id]).await.map(drop)
}

/// Takes QoS specs from every type that has them.
pub(super) async fn disassociate_all(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("UPDATE volume_types SET qos_specs_id = NULL WHERE qos_specs_id = $1", args![id]).await.map(drop)
}
