//! Key pairs: only their public halves are ever stored.

use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx, Where};

/// A user's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keypair {
    /// Whose.
    pub user_id: String,
    /// Unique name among the user's.
    pub name: String,
    /// `ssh`
    pub kind: String,
    /// MD5 of the public key, colon-separated.
    pub fingerprint: String,
    /// In OpenSSH's one-line form.
    pub public_key: String,
    /// When it was made.
    pub created_at: String,
}

fn read(row: &Row) -> Result<Keypair, StoreError> {
    Ok(Keypair {
        user_id: row.text("user_id")?,
        name: row.text("name")?,
        kind: row.text("kind")?,
        fingerprint: row.text("fingerprint")?,
        public_key: row.text("public_key")?,
        created_at: row.text("created_at")?,
    })
}

/// One key pair.
///
/// # Errors
/// When the database fails.
pub async fn get(query: &impl Query, user: &str, name: &str) -> Result<Option<Keypair>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_keypairs WHERE user_id = $1 AND name = $2");
    query.row(sql, args![user, name]).await?.map(|row| read(&row)).transpose()
}

/// A user's key pairs after `marker`, by name.
///
/// # Errors
/// When the database fails.
pub async fn list(
    query: &impl Query,
    user: &str,
    marker: Option<&str>,
    limit: i64,
) -> Result<Vec<Keypair>, StoreError> {
    let mut select = Where::new("SELECT * FROM compute_keypairs");
    select.and("user_id = ?", [user.into()]);
    if let Some(marker) = marker {
        select.and("name > ?", [marker.into()]);
    }
    select.end("ORDER BY name LIMIT ?", [limit.into()]);
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(read).collect()
}

/// How many key pairs a user has.
///
/// # Errors
/// When the database fails.
pub async fn count(query: &impl Query, user: &str) -> Result<i64, StoreError> {
    let sql = Sql::from("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM compute_keypairs WHERE user_id = $1");
    query.row(sql, args![user]).await?.map_or(Ok(0), |row| row.int("n"))
}

/// Adds a key pair.
///
/// # Errors
/// `Duplicate` when the user has one of that name.
pub async fn insert(tx: &Tx, it: &Keypair) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO compute_keypairs (user_id, name, kind, fingerprint, public_key, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        args![&it.user_id, &it.name, &it.kind, &it.fingerprint, &it.public_key, &it.created_at],
    )
    .await?;
    Ok(())
}

/// Removes a key pair; false when there was none.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &Tx, user: &str, name: &str) -> Result<bool, StoreError> {
    let sql = "DELETE FROM compute_keypairs WHERE user_id = $1 AND name = $2";
    Ok(tx.exec(sql, args![user, name]).await? > 0)
}
