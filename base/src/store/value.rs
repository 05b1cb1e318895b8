//! Values and rows, the same for both engines.

use super::StoreError;
use serde::de::DeserializeOwned;
use sqlx::{Column, Row as _, TypeInfo, ValueRef};
use std::sync::Arc;

/// A value of a placeholder or column. `None` is SQL's NULL of that type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `TEXT`
    Text(Option<String>),
    /// `BIGINT`
    Int(Option<i64>),
    /// `DOUBLE PRECISION`
    Real(Option<f64>),
    /// `BYTEA`
    Bytes(Option<Vec<u8>>),
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}
impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}
impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}
impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}
impl From<&Option<String>> for Value {
    fn from(value: &Option<String>) -> Self {
        Self::Text(value.clone())
    }
}
impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}
impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(Some(value.into()))
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(Some(value.into()))
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(Some(value.into()))
    }
}
impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(Some(value))
    }
}
impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}
impl From<uuid::Uuid> for Value {
    fn from(value: uuid::Uuid) -> Self {
        Self::Text(Some(value.hyphenated().to_string()))
    }
}
impl From<&serde_json::Value> for Value {
    fn from(value: &serde_json::Value) -> Self {
        Self::Text(Some(value.to_string()))
    }
}
macro_rules! from_ids {
    ($($name:ident),*) => {$(
        impl From<wire::ids::$name> for Value {
            fn from(id: wire::ids::$name) -> Self {
                Self::Text(Some(id.to_string()))
            }
        }
    )*};
}
from_ids!(ServerId, PortId, NetworkId, SubnetId, RouterId, FloatingIpId, DiskId, SnapshotId, BlobId);

/// A row of a result.
#[derive(Debug, Clone)]
pub struct Row {
    names: Arc<[String]>,
    values: Vec<Value>,
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// When the result has no such column.
    pub fn value(&self, name: &str) -> Result<&Value, StoreError> {
        let index = self.names.iter().position(|column| column == name);
        index
            .and_then(|index| self.values.get(index))
            .ok_or_else(|| StoreError::Shape(format!("no column '{name}'")))
    }

    /// A text column that is not NULL.
    ///
    /// # Errors
    /// When it is missing, NULL or of another type.
    pub fn text(&self, name: &str) -> Result<String, StoreError> {
        self.opt_text(name)?.ok_or_else(|| StoreError::Shape(format!("'{name}' is NULL")))
    }

    /// A text column.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn opt_text(&self, name: &str) -> Result<Option<String>, StoreError> {
        match self.value(name)? {
            Value::Text(text) => Ok(text.clone()),
            other if other.is_null() => Ok(None),
            other => Err(StoreError::Shape(format!("'{name}' is not text: {other:?}"))),
        }
    }

    /// An integer column that is not NULL.
    ///
    /// # Errors
    /// When it is missing, NULL or of another type.
    pub fn int(&self, name: &str) -> Result<i64, StoreError> {
        self.opt_int(name)?.ok_or_else(|| StoreError::Shape(format!("'{name}' is NULL")))
    }

    /// An integer column.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn opt_int(&self, name: &str) -> Result<Option<i64>, StoreError> {
        match self.value(name)? {
            Value::Int(number) => Ok(*number),
            other if other.is_null() => Ok(None),
            other => Err(StoreError::Shape(format!("'{name}' is not an integer: {other:?}"))),
        }
    }

    /// A truth column (0 or 1).
    ///
    /// # Errors
    /// When it is missing, NULL or of another type.
    pub fn truth(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.int(name)? != 0)
    }

    /// A floating-point column that is not NULL.
    ///
    /// # Errors
    /// When it is missing, NULL or of another type.
    #[allow(clippy::cast_precision_loss)]
    pub fn real(&self, name: &str) -> Result<f64, StoreError> {
        match self.value(name)? {
            Value::Real(Some(number)) => Ok(*number),
            // SQLite keeps whole numbers as integers in a REAL-affine expression's result.
            Value::Int(Some(number)) => Ok(*number as f64),
            other => Err(StoreError::Shape(format!("'{name}' is not a number: {other:?}"))),
        }
    }

    /// A bytes column that is not NULL.
    ///
    /// # Errors
    /// When it is missing, NULL or of another type.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        match self.value(name)? {
            Value::Bytes(Some(bytes)) => Ok(bytes.clone()),
            other => Err(StoreError::Shape(format!("'{name}' is not bytes: {other:?}"))),
        }
    }

    /// A JSON text column, decoded.
    ///
    /// # Errors
    /// When it is missing, NULL or does not decode.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(name)?)
            .map_err(|error| StoreError::Shape(format!("'{name}': {error}")))
    }

    /// A text column, parsed (ids, addresses).
    ///
    /// # Errors
    /// When it is missing, NULL or does not parse.
    pub fn parse<T>(&self, name: &str) -> Result<T, StoreError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        self.text(name)?.parse().map_err(|error| StoreError::Shape(format!("'{name}': {error}")))
    }
}

impl Value {
    fn is_null(&self) -> bool {
        match self {
            Self::Text(value) => value.is_none(),
            Self::Int(value) => value.is_none(),
            Self::Real(value) => value.is_none(),
            Self::Bytes(value) => value.is_none(),
        }
    }
}

pub(super) fn names<R: sqlx::Row>(row: &R) -> Arc<[String]> {
    row.columns().iter().map(|column| column.name().to_owned()).collect()
}

pub(super) fn from_sqlite(row: &sqlx::sqlite::SqliteRow, names: &Arc<[String]>) -> Result<Row, StoreError> {
    let mut values = Vec::with_capacity(names.len());
    for index in 0..names.len() {
        let raw = row.try_get_raw(index)?;
        let (null, kind) = (raw.is_null(), raw.type_info().name().to_owned());
        values.push(match kind.as_str() {
            _ if null => Value::Text(None),
            "INTEGER" | "INT" | "BIGINT" | "BOOLEAN" => Value::Int(Some(row.try_get_unchecked(index)?)),
            "REAL" => Value::Real(Some(row.try_get_unchecked(index)?)),
            "BLOB" => Value::Bytes(Some(row.try_get_unchecked(index)?)),
            _ => Value::Text(Some(row.try_get_unchecked(index)?)),
        });
    }
    Ok(Row { names: names.clone(), values })
}

pub(super) fn from_postgres(row: &sqlx::postgres::PgRow, names: &Arc<[String]>) -> Result<Row, StoreError> {
    let mut values = Vec::with_capacity(names.len());
    for index in 0..names.len() {
        let kind = row.column(index).type_info().name().to_owned();
        values.push(match kind.as_str() {
            "INT8" => Value::Int(row.try_get(index)?),
            "INT4" => Value::Int(row.try_get::<Option<i32>, _>(index)?.map(i64::from)),
            "BOOL" => Value::Int(row.try_get::<Option<bool>, _>(index)?.map(i64::from)),
            "FLOAT8" => Value::Real(row.try_get(index)?),
            "BYTEA" => Value::Bytes(row.try_get(index)?),
            "TEXT" | "VARCHAR" | "UNKNOWN" | "NAME" => Value::Text(row.try_get(index)?),
            other => {
                return Err(StoreError::Shape(format!("a column of type {other}; cast it in the statement")));
            }
        });
    }
    Ok(Row { names: names.clone(), values })
}
