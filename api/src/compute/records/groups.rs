//! Server groups. Membership is a column of servers.

use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx, Where};
use wire::ids::ServerId;

/// What a group asks of its servers' hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// All on one host.
    Affinity,
    /// At most so many on one host.
    AntiAffinity,
    /// On one host if that goes.
    SoftAffinity,
    /// On different hosts if that goes.
    SoftAntiAffinity,
}

impl Policy {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::SoftAffinity => "soft-affinity",
            Self::SoftAntiAffinity => "soft-anti-affinity",
        }
    }

    /// The policy of a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Affinity, Self::AntiAffinity, Self::SoftAffinity, Self::SoftAntiAffinity]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

/// A server group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub id: String,
    /// Owner.
    pub project_id: String,
    /// Who made it.
    pub user_id: String,
    /// Display name.
    pub name: String,
    /// What it asks.
    pub policy: Policy,
    /// Most of its servers on one host, for anti-affinity.
    pub per_host: i64,
    /// When it was made.
    pub created_at: String,
}

fn read(row: &Row) -> Result<Group, StoreError> {
    let policy = row.text("policy")?;
    Ok(Group {
        id: row.text("id")?,
        project_id: row.text("project_id")?,
        user_id: row.text("user_id")?,
        name: row.text("name")?,
        policy: Policy::parse(&policy).ok_or_else(|| StoreError::Shape(format!("no policy '{policy}'")))?,
        per_host: row.int("per_host")?,
        created_at: row.text("created_at")?,
    })
}

/// One group.
///
/// # Errors
/// When the database fails.
pub async fn get(query: &impl Query, id: &str) -> Result<Option<Group>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_groups WHERE id = $1");
    query.row(sql, args![id]).await?.map(|row| read(&row)).transpose()
}

/// The groups of a project, or of all, the oldest first; `offset` and `limit` as upstream pages them.
///
/// # Errors
/// When the database fails.
pub async fn list(
    query: &impl Query,
    project: Option<&str>,
    offset: i64,
    limit: i64,
) -> Result<Vec<Group>, StoreError> {
    let mut select = Where::new("SELECT * FROM compute_groups");
    if let Some(project) = project {
        select.and("project_id = ?", [project.into()]);
    }
    select.end("ORDER BY created_at, id LIMIT ? OFFSET ?", [limit.into(), offset.into()]);
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(read).collect()
}

/// How many groups a project has.
///
/// # Errors
/// When the database fails.
pub async fn count(query: &impl Query, project: &str) -> Result<i64, StoreError> {
    let sql = Sql::from("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM compute_groups WHERE project_id = $1");
    query.row(sql, args![project]).await?.map_or(Ok(0), |row| row.int("n"))
}

/// Writes a new group.
///
/// # Errors
/// When the database fails.
pub async fn insert(tx: &Tx, it: &Group) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO compute_groups (id, project_id, user_id, name, policy, per_host, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        args![&it.id, &it.project_id, &it.user_id, &it.name, it.policy.as_str(), it.per_host, &it.created_at],
    )
    .await?;
    Ok(())
}

/// Removes a group; its servers stay and are in none then.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("UPDATE compute_servers SET group_id = NULL WHERE group_id = $1", args![id]).await?;
    tx.exec("DELETE FROM compute_groups WHERE id = $1", args![id]).await?;
    Ok(())
}

/// The servers of groups, the oldest first: group, server, the host that it is placed on.
///
/// # Errors
/// When the database fails.
pub async fn members(
    query: &impl Query,
    groups: impl IntoIterator<Item = &str>,
) -> Result<Vec<(String, ServerId, Option<String>)>, StoreError> {
    let mut select = Where::new("SELECT id, group_id, host FROM compute_servers");
    select.and_in("group_id", groups.into_iter().map(Into::into));
    select.end("ORDER BY created_at, id", []);
    let (sql, args) = select.build();
    let rows = query.rows(sql, args).await?;
    rows.iter().map(|row| Ok((row.text("group_id")?, row.parse("id")?, row.opt_text("host")?))).collect()
}
