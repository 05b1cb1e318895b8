//! Which volumes servers have.

use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx, Where};
use serde::{Deserialize, Serialize};
use wire::host::DiskSpec;
use wire::ids::ServerId;

/// Where an attachment is on its way.
///
/// ```text
/// reserving -> attaching -> attached -> detaching -> (gone)
///     '-> (gone: the volume was refused, or the request died before its task was written)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The volume service is being asked; no task exists yet.
    Reserving,
    /// A task works on it.
    Attaching,
    /// The server has the volume.
    Attached,
    /// A task works on taking it away.
    Detaching,
}

impl State {
    /// Its name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserving => "reserving",
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        [Self::Reserving, Self::Attaching, Self::Attached, Self::Detaching]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StoreError::Shape(format!("no attachment state '{text}'")))
    }
}

/// A volume of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// Own id: nova's block device mapping.
    pub id: String,
    /// Whose.
    pub server: ServerId,
    /// Which volume.
    pub volume_id: String,
    /// Where it is on its way.
    pub state: State,
    /// Order among the server's disks.
    pub position: i64,
    /// When it was asked for.
    pub created_at: String,
    /// The rest.
    pub body: Body,
}

/// What no statement looks at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// Id of the volume service's attachment, once reserved.
    #[serde(default)]
    pub attachment_id: Option<String>,
    /// Device name as shown to people; guests choose their own.
    #[serde(default)]
    pub device: String,
    /// The user's tag for it.
    #[serde(default)]
    pub tag: Option<String>,
    /// Whether the volume goes with the server.
    #[serde(default)]
    pub delete_on_termination: bool,
    /// Whether the server starts from it.
    #[serde(default)]
    pub boot: bool,
    /// The disk, while the server is meant to have it plugged in.
    #[serde(default)]
    pub disk: Option<DiskSpec>,
}

fn read(row: &Row) -> Result<Attachment, StoreError> {
    Ok(Attachment {
        id: row.text("id")?,
        server: row.text("server_id")?.parse().map_err(|_| StoreError::Shape("bad server id".into()))?,
        volume_id: row.text("volume_id")?,
        state: State::parse(&row.text("state")?)?,
        position: row.int("position")?,
        created_at: row.text("created_at")?,
        body: row.json("body")?,
    })
}

/// The attachments of servers, in the order of their disks.
///
/// # Errors
/// When the database fails.
pub async fn of_servers(query: &impl Query, servers: &[ServerId]) -> Result<Vec<Attachment>, StoreError> {
    let mut select = Where::new("SELECT * FROM compute_attachments");
    select.and_in("server_id", servers.iter().map(|id| (*id).into()));
    select.end("ORDER BY position, id", []);
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(read).collect()
}

/// The attachments of one server, in the order of its disks.
///
/// # Errors
/// When the database fails.
pub async fn of_server(query: &impl Query, server: ServerId) -> Result<Vec<Attachment>, StoreError> {
    of_servers(query, &[server]).await
}

/// One attachment.
///
/// # Errors
/// When the database fails.
pub async fn get(query: &impl Query, id: &str) -> Result<Option<Attachment>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_attachments WHERE id = $1");
    query.row(sql, args![id]).await?.map(|row| read(&row)).transpose()
}

/// The attachment of a volume to a server.
///
/// # Errors
/// When the database fails.
pub async fn of_volume(
    query: &impl Query,
    server: ServerId,
    volume: &str,
) -> Result<Option<Attachment>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_attachments WHERE server_id = $1 AND volume_id = $2");
    query.row(sql, args![server, volume]).await?.map(|row| read(&row)).transpose()
}

/// Attachments whose request died before its task was written: older than `before` and still reserving.
///
/// # Errors
/// When the database fails.
pub async fn forgotten(query: &impl Query, before: &str) -> Result<Vec<Attachment>, StoreError> {
    let sql = Sql::from("SELECT * FROM compute_attachments WHERE state = 'reserving' AND created_at < $1");
    query.rows(sql, args![before]).await?.iter().map(read).collect()
}

/// Writes an attachment, new or changed.
///
/// # Errors
/// `Duplicate` when the server has the volume under another id.
pub async fn put(tx: &Tx, it: &Attachment) -> Result<(), StoreError> {
    let body = serde_json::to_string(&it.body).map_err(|error| StoreError::Shape(error.to_string()))?;
    tx.exec(
        "INSERT INTO compute_attachments (id, server_id, volume_id, state, position, created_at, body)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body",
        args![&it.id, it.server, &it.volume_id, it.state.as_str(), it.position, &it.created_at, body],
    )
    .await?;
    Ok(())
}

/// Removes an attachment. Harmless when there is none.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM compute_attachments WHERE id = $1", args![id]).await?;
    Ok(())
}
