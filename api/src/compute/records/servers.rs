//! Servers: what is wanted of them and what was last seen.

use super::flavors::Flavor;
use super::shape::{Mode, Shape};
use super::usage::{self, Run};
use base::args;
use base::store::{Query, Row, Sql, StoreError, Tx, Where};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use wire::host::{NicSpec, Power, PowerNow};
use wire::ids::{BlobId, DiskId, ServerId};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Its name in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            fn parse(text: &str) -> Result<Self, StoreError> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(StoreError::Shape(format!("'{text}' is no {}", stringify!($name)))),
                }
            }
        }
    };
}

words! {
    /// Where a server is in its life.
    ///
    /// ```text
    /// building --> ready --> deleting --> (gone)
    ///     '-----> failed ------^
    /// ```
    Lifecycle {
        /// Its creation is not finished.
        Building = "building",
        /// It exists.
        Ready = "ready",
        /// Its creation or deletion failed; the fault says why.
        Failed = "failed",
        /// It is going away.
        Deleting = "deleting",
    }
}

words! {
    /// The power state that should be.
    Wanted {
        /// Running.
        On = "on",
        /// Off.
        Off = "off",
        /// Stopped in place.
        Paused = "paused",
        /// Its memory in a file of the host.
        Suspended = "suspended",
    }
}

words! {
    /// The power state that was last seen.
    Seen {
        /// Nothing was seen yet.
        Nothing = "nothing",
        /// Executing.
        Running = "running",
        /// Stopped in place.
        Paused = "paused",
        /// Its memory in a file of the host.
        Suspended = "suspended",
        /// Off.
        Off = "off",
        /// Crashed.
        Crashed = "crashed",
    }
}

impl From<PowerNow> for Seen {
    fn from(now: PowerNow) -> Self {
        match now {
            PowerNow::Running => Self::Running,
            PowerNow::Paused => Self::Paused,
            PowerNow::Suspended => Self::Suspended,
            PowerNow::Off => Self::Off,
            PowerNow::Crashed => Self::Crashed,
        }
    }
}

impl Wanted {
    /// What to ask of the host.
    #[must_use]
    pub fn power(self, grace_secs: u32) -> Power {
        match self {
            Self::On => Power::On,
            Self::Off => Power::Off { grace_secs },
            Self::Paused => Power::Paused,
            Self::Suspended => Power::Suspended,
        }
    }
}

/// A server.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Owner.
    pub project_id: String,
    /// Who made it.
    pub user_id: String,
    /// Display name.
    pub name: String,
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
    /// The power state that should be.
    pub power: Wanted,
    /// The power state that was last seen.
    pub observed: Seen,
    /// Number of the wanted state: rises with every change of what the host should do.
    pub generation: i64,
    /// Reboots asked for so far.
    pub reboots: i64,
    /// Seconds that the guest may take for the latest reboot.
    pub reboot_grace: i64,
    /// Image it was made from; none when it starts from a volume.
    pub image_id: Option<String>,
    /// Name of the key pair.
    pub key_name: Option<String>,
    /// Host it was placed on.
    pub host: Option<String>,
    /// Availability zone that was asked for.
    pub zone: Option<String>,
    /// Whether members may not change it.
    pub locked: bool,
    /// When it was asked for.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: String,
    /// When it first ran.
    pub launched_at: Option<String>,
    /// Whether something of it is put aside, and why.
    pub mode: Mode,
    /// Server group; chosen at creation, and none again when the group is deleted.
    pub group_id: Option<String>,
    /// The rest.
    pub body: Body,
}

/// What no statement looks at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// The flavor as it was at creation.
    pub flavor: Flavor,
    /// The image as it was at creation.
    pub image: Option<Image>,
    /// Text for people.
    pub description: Option<String>,
    /// The user's key-value pairs.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// User data in base 64, as it was given.
    pub user_data: Option<String>,
    /// The key as it was at creation.
    pub key: Option<Key>,
    /// Whether the guest gets a config drive.
    #[serde(default)]
    pub config_drive: bool,
    /// Host name for the guest.
    pub hostname: String,
    /// Names or ids of security groups for ports that are made.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// The networks asked for.
    #[serde(default)]
    pub networks: Vec<NetworkRequest>,
    /// Reservation id.
    pub reservation_id: String,
    /// Index within its reservation.
    #[serde(default)]
    pub launch_index: u32,
    /// 512 random bytes in base 64, the same at every read, for the guest's entropy pool.
    pub random_seed: String,
    /// Disks in the pool that are the server's own.
    pub disks: Disks,
    /// Volumes to make or attach before the first start.
    #[serde(default)]
    pub volumes: Vec<VolumeRequest>,
    /// Kernel and initrd, when the image names some.
    pub kernel: Option<Kernel>,
    /// Interfaces in the order of their slots.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// Why it is locked.
    pub locked_reason: Option<String>,
    /// Whether an administrator locked it.
    #[serde(default)]
    pub locked_by_admin: bool,
    /// Hypervisor that runs it.
    #[serde(default)]
    pub hypervisor: String,
    /// Where it may be placed.
    #[serde(default)]
    pub hints: Hints,
    /// IPv4 address that people are told to use; nothing is configured by it.
    #[serde(default)]
    pub access_ipv4: Option<std::net::Ipv4Addr>,
    /// The same in IPv6.
    #[serde(default)]
    pub access_ipv6: Option<std::net::Ipv6Addr>,
    /// What it was before its resize or rescue.
    #[serde(default)]
    pub aside: Option<Box<Shape>>,
    /// The image that it is while it is shelved.
    #[serde(default)]
    pub shelved: Option<String>,
    /// The plug is pulled at once when it is to be off.
    #[serde(default)]
    pub hasty: bool,
}

/// What a request said about the place, beside its server group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// Only this host.
    #[serde(default)]
    pub host: Option<String>,
    /// Only hosts of these servers.
    #[serde(default)]
    pub same_host: Vec<ServerId>,
    /// No host of these servers.
    #[serde(default)]
    pub different_host: Vec<ServerId>,
}

/// The image of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its bytes are.
    pub blob: BlobId,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Size of the disk it describes, in bytes.
    pub virtual_bytes: u64,
    /// Smallest disk in GiB.
    pub min_disk_gib: u64,
    /// Smallest memory in MiB.
    pub min_ram_mib: u64,
    /// Its properties.
    #[serde(default)]
    pub properties: serde_json::Map<String, serde_json::Value>,
}

/// The key of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Name of the key pair.
    pub name: String,
    /// `ssh`
    pub kind: String,
    /// Public key.
    pub public_key: String,
}

/// One network that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkRequest {
    /// Whatever the project has.
    Auto,
    /// None at all.
    None,
    /// A port on this network.
    Network {
        /// Which.
        id: String,
        /// With this address.
        fixed_ip: Option<IpAddr>,
        /// The user's tag for the device.
        tag: Option<String>,
    },
    /// This port.
    Port {
        /// Which.
        id: String,
        /// The user's tag for the device.
        tag: Option<String>,
    },
}

/// Disks in the pool that are a server's own. Ids are chosen at creation, so that making and removing them may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// Root disk; none when it starts from a volume.
    pub root: Option<Disk>,
    /// Ephemeral disk.
    #[serde(default)]
    pub ephemeral: Option<Disk>,
    /// Swap disk.
    #[serde(default)]
    pub swap: Option<Disk>,
    /// Config drive.
    #[serde(default)]
    pub config: Option<Disk>,
}

/// One disk in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Which.
    pub id: DiskId,
    /// Size; for a config drive what its content needs.
    pub bytes: u64,
    /// Its file, once it exists.
    pub path: Option<PathBuf>,
}

impl Disk {
    /// A disk to be.
    #[must_use]
    pub fn planned(bytes: u64) -> Self {
        Self { id: DiskId::new(), bytes, path: None }
    }
}

impl Disks {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Disk> {
        [&self.root, &self.ephemeral, &self.swap, &self.config].into_iter().filter_map(Option::as_ref)
    }
}

/// A volume that the server is to start with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// Id of the volume, if one is made: chosen at creation, so that making it may repeat.
    pub id: uuid::Uuid,
    /// Where it comes from.
    pub source: VolumeSource,
    /// Size in GiB for one that is made.
    pub size_gib: Option<u64>,
    /// Whether it goes with the server.
    pub delete_on_termination: bool,
    /// Whether the server starts from it.
    pub boot: bool,
    /// The user's tag for the device.
    pub tag: Option<String>,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// It exists.
    Volume(String),
    /// Made from an image.
    Image(String),
    /// Made from a snapshot.
    Snapshot(String),
    /// Made empty.
    Blank,
}

/// Kernel and initrd beside the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Image of the kernel.
    pub kernel_id: String,
    /// Image of the initrd.
    pub ramdisk_id: Option<String>,
    /// Kernel command line.
    pub command_line: String,
    /// Kernel file, once known.
    pub kernel: Option<PathBuf>,
    /// Initrd file, once known.
    pub ramdisk: Option<PathBuf>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// As the host needs it.
    pub spec: NicSpec,
    /// The user's tag for the device.
    pub tag: Option<String>,
}

/// Why a server failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// HTTP-like code.
    pub code: u16,
    /// Cause and remedy.
    pub message: String,
    /// When.
    pub created: String,
}

/// How many servers, cores and MiB a project has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Servers.
    pub instances: i64,
    /// Virtual CPUs.
    pub cores: i64,
    /// Memory in MiB.
    pub ram: i64,
}

fn read(row: &Row) -> Result<Server, StoreError> {
    Ok(Server {
        id: row.parse("id")?,
        project_id: row.text("project_id")?,
        user_id: row.text("user_id")?,
        name: row.text("name")?,
        lifecycle: Lifecycle::parse(&row.text("lifecycle")?)?,
        power: Wanted::parse(&row.text("power")?)?,
        observed: Seen::parse(&row.text("observed")?)?,
        generation: row.int("generation")?,
        reboots: row.int("reboots")?,
        reboot_grace: row.int("reboot_grace")?,
        image_id: row.opt_text("image_id")?,
        key_name: row.opt_text("key_name")?,
        host: row.opt_text("host")?,
        zone: row.opt_text("zone")?,
        locked: row.truth("locked")?,
        created_at: row.text("created_at")?,
        updated_at: row.text("updated_at")?,
        launched_at: row.opt_text("launched_at")?,
        mode: Mode::parse(&row.text("mode")?)?,
        group_id: row.opt_text("group_id")?,
        body: row.json("body")?,
    })
}

/// One server.
///
/// # Errors
/// When the database fails.
pub async fn get(query: &impl Query, id: ServerId) -> Result<Option<Server>, StoreError> {
    let row = query.row(Sql::from("SELECT * FROM compute_servers WHERE id = $1"), args![id]).await?;
    row.map(|row| read(&row)).transpose()
}

/// The servers that a statement started by [`select`] finds.
///
/// # Errors
/// When the database fails.
pub async fn find(query: &impl Query, select: Where) -> Result<Vec<Server>, StoreError> {
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(read).collect()
}

/// Starts a statement for [`find`].
#[must_use]
pub fn select() -> Where {
    Where::new("SELECT * FROM compute_servers")
}

/// Every server.
///
/// # Errors
/// When the database fails.
pub async fn all(query: &impl Query) -> Result<Vec<Server>, StoreError> {
    find(query, select()).await
}

/// Ids and names of the servers that a statement for just these columns finds.
///
/// # Errors
/// When the database fails.
pub async fn names(query: &impl Query, select: Where) -> Result<Vec<(ServerId, String)>, StoreError> {
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(|row| Ok((row.parse("id")?, row.text("name")?))).collect()
}

/// Ids of all servers.
///
/// # Errors
/// When the database fails.
pub async fn ids(query: &impl Query) -> Result<Vec<ServerId>, StoreError> {
    let rows = query.rows(Sql::from("SELECT id FROM compute_servers"), Vec::new()).await?;
    rows.iter().map(|row| row.parse("id")).collect()
}

/// Tags as a column has them: each between commas, which no tag holds, so that one is found without its neighbours.
#[must_use]
pub fn tag_text(tags: &BTreeSet<String>) -> String {
    tags.iter().fold(String::new(), |text, tag| format!("{text},{tag},"))
}

/// Fills the columns of rows that were written before there were such columns, some at a time; how many it were. Their
/// time of change stays.
///
/// # Errors
/// When the database fails.
pub async fn index(tx: &Tx) -> Result<usize, StoreError> {
    let mut select = select();
    select.and("indexed = 0", []).end("ORDER BY id LIMIT ?", [500.into()]);
    let rows = find(tx, select).await?;
    for it in &rows {
        tx.exec(
            "UPDATE compute_servers SET description = $1, hostname = $2, reservation_id = $3, config_drive = $4,
                tags = $5, indexed = 1 WHERE id = $6",
            args![
                &it.body.description, &it.body.hostname, &it.body.reservation_id, it.body.config_drive,
                tag_text(&it.body.tags), it.id
            ],
        )
        .await?;
    }
    Ok(rows.len())
}

/// Writes a server, new or changed, and its time of change.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &Tx, it: &Server) -> Result<(), StoreError> {
    let body = serde_json::to_string(&it.body).map_err(|error| StoreError::Shape(error.to_string()))?;
    tx.exec(
        "INSERT INTO compute_servers (id, project_id, user_id, name, lifecycle, power, observed, generation, reboots,
            reboot_grace, flavor_id, image_id, key_name, host, zone, vcpus, memory_mb, locked, created_at, updated_at,
            launched_at, body, description, hostname, reservation_id, config_drive, tags, group_id, mode, indexed)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
            $23, $24, $25, $26, $27, $28, $29, 1)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, lifecycle = excluded.lifecycle,
            power = excluded.power, observed = excluded.observed, generation = excluded.generation,
            reboots = excluded.reboots, reboot_grace = excluded.reboot_grace, host = excluded.host,
            locked = excluded.locked, updated_at = excluded.updated_at, launched_at = excluded.launched_at,
            body = excluded.body, description = excluded.description, hostname = excluded.hostname,
            reservation_id = excluded.reservation_id, config_drive = excluded.config_drive, tags = excluded.tags,
            mode = excluded.mode, flavor_id = excluded.flavor_id, vcpus = excluded.vcpus,
            memory_mb = excluded.memory_mb, image_id = excluded.image_id, key_name = excluded.key_name, indexed = 1",
        args![
            it.id, &it.project_id, &it.user_id, &it.name, it.lifecycle.as_str(), it.power.as_str(),
            it.observed.as_str(), it.generation, it.reboots, it.reboot_grace, &it.body.flavor.id, &it.image_id,
            &it.key_name, &it.host, &it.zone, it.body.flavor.vcpus, it.body.flavor.memory_mb, it.locked,
            &it.created_at, api_kit::time::now(), &it.launched_at, body, &it.body.description, &it.body.hostname,
            &it.body.reservation_id, it.body.config_drive, tag_text(&it.body.tags), &it.group_id, it.mode.as_str()
        ],
    )
    .await?;
    Ok(())
}

/// Changes a server, if there is one, and returns it as it then is. Nothing is written when nothing changed.
///
/// # Errors
/// When the database fails.
pub async fn change(
    tx: &Tx,
    id: ServerId,
    how: impl FnOnce(&mut Server) + Send,
) -> Result<Option<Server>, StoreError> {
    let Some(mut server) = get(tx, id).await? else { return Ok(None) };
    let before = server.clone();
    how(&mut server);
    if server != before {
        put(tx, &server).await?;
    }
    Ok(Some(server))
}

/// Removes a server with its attachments; what it used stays on record.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &Tx, id: ServerId) -> Result<(), StoreError> {
    if let Some(run) = get(tx, id).await?.as_ref().and_then(Run::of) {
        usage::end(tx, &run, &api_kit::time::now()).await?;
    }
    tx.exec("DELETE FROM compute_attachments WHERE server_id = $1", args![id]).await?;
    tx.exec("DELETE FROM compute_servers WHERE id = $1", args![id]).await?;
    Ok(())
}

/// What a project uses.
///
/// # Errors
/// When the database fails.
pub async fn used(query: &impl Query, project: &str) -> Result<Used, StoreError> {
    let sql = Sql::from(
        "SELECT CAST(COUNT(*) AS BIGINT) AS instances, CAST(COALESCE(SUM(vcpus), 0) AS BIGINT) AS cores,
            CAST(COALESCE(SUM(memory_mb), 0) AS BIGINT) AS ram FROM compute_servers WHERE project_id = $1",
    );
    let Some(row) = query.row(sql, args![project]).await? else { return Ok(Used::default()) };
    Ok(Used { instances: row.int("instances")?, cores: row.int("cores")?, ram: row.int("ram")? })
}
