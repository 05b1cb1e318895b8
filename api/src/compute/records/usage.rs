//! How long servers ran: those that exist tell it themselves, those that are gone left a row.

use super::servers::Server;
use base::args;
use base::store::{Query, Row, StoreError, Tx, Where};

/// What a server used, from its first start on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which server.
    pub server_id: String,
    /// Whose.
    pub project_id: String,
    /// Display name, the last one.
    pub name: String,
    /// Name of its flavor.
    pub flavor: String,
    /// Virtual CPUs.
    pub vcpus: i64,
    /// Memory in MiB.
    pub memory_mb: i64,
    /// Disks of the flavor in GiB.
    pub local_gb: i64,
    /// When it first ran.
    pub started_at: String,
    /// When it was deleted; none while it exists.
    pub ended_at: Option<String>,
}

impl Run {
    /// The run of a server that exists; none before its first start.
    #[must_use]
    pub fn of(server: &Server) -> Option<Self> {
        let flavor = &server.body.flavor;
        Some(Self {
            server_id: server.id.to_string(),
            project_id: server.project_id.clone(),
            name: server.name.clone(),
            flavor: flavor.name.clone(),
            vcpus: flavor.vcpus.into(),
            memory_mb: flavor.memory_mb.into(),
            local_gb: i64::from(flavor.disk_gb) + i64::from(flavor.ephemeral_gb),
            started_at: server.launched_at.clone()?,
            ended_at: None,
        })
    }
}

fn read(row: &Row) -> Result<Run, StoreError> {
    Ok(Run {
        server_id: row.text("server_id")?,
        project_id: row.text("project_id")?,
        name: row.text("name")?,
        flavor: row.text("flavor")?,
        vcpus: row.int("vcpus")?,
        memory_mb: row.int("memory_mb")?,
        local_gb: row.int("local_gb")?,
        started_at: row.text("started_at")?,
        ended_at: Some(row.text("ended_at")?),
    })
}

/// Writes the run of a server that goes now. Harmless to repeat.
///
/// # Errors
/// When the database fails.
pub async fn end(tx: &Tx, run: &Run, ended_at: &str) -> Result<(), StoreError> {
    tx.exec(
        "INSERT INTO compute_usage (server_id, project_id, name, flavor, vcpus, memory_mb, local_gb, started_at, ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (server_id) DO NOTHING",
        args![
            &run.server_id, &run.project_id, &run.name, &run.flavor, run.vcpus, run.memory_mb, run.local_gb,
            &run.started_at, ended_at
        ],
    )
    .await?;
    Ok(())
}

/// The runs that ended after `from` and began before `to`.
///
/// # Errors
/// When the database fails.
pub async fn ended(
    query: &impl Query,
    project: Option<&str>,
    from: &str,
    to: &str,
) -> Result<Vec<Run>, StoreError> {
    let mut select = Where::new("SELECT * FROM compute_usage");
    if let Some(project) = project {
        select.and("project_id = ?", [project.into()]);
    }
    select.and("ended_at > ?", [from.into()]).and("started_at < ?", [to.into()]);
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(read).collect()
}

/// Forgets the runs that ended before this time.
///
/// # Errors
/// When the database fails.
pub async fn forget(tx: &Tx, before: &str) -> Result<u64, StoreError> {
    tx.exec("DELETE FROM compute_usage WHERE ended_at < $1", args![before]).await
}
