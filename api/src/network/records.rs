//! Rows as the service works with them.

use api_kit::time::now;
use base::args;
use base::store::{Query, StoreError, Tx, Value, Where};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use wire::ids::{Mac, ServerId};

/// What every resource has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// UUID.
    pub id: String,
    /// Owner; empty for what the service made for itself.
    pub project_id: String,
    /// Name; empty when there is none.
    pub name: String,
    /// Description.
    pub description: String,
    /// Counts changes.
    pub revision: i64,
    /// When it was made.
    pub created_at: String,
    /// When it was changed last.
    pub updated_at: String,
}

impl Common {
    /// Of a new resource.
    #[must_use]
    pub fn new(project: &str, name: &str, description: &str) -> Self {
        let now = now();
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            project_id: project.to_owned(),
            name: name.to_owned(),
            description: description.to_owned(),
            revision: 1,
            created_at: now.clone(),
            updated_at: now,
        }
    }

    /// Counts a change.
    pub fn changed(&mut self) {
        self.revision += 1;
        self.updated_at = now();
    }
}

/// A kind of row.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// `SELECT body FROM table`
    const SELECT: &'static str;
    /// Inserts or replaces; the last argument is the body.
    const SAVE: &'static str;
    /// Deletes by id.
    const DELETE: &'static str;
    /// What every resource has.
    fn common(&self) -> &Common;
    /// What every resource has, to be changed.
    fn common_mut(&mut self) -> &mut Common;
    /// Values of the columns before `body`.
    fn columns(&self) -> Vec<Value>;
}

/// Reads one record.
///
/// # Errors
/// When the store does not answer.
pub async fn find<R: Record>(query: &impl Query, id: &str) -> Result<Option<R>, StoreError> {
    let mut select = Where::new(R::SELECT);
    select.and("id = ?", [id.into()]);
    Ok(all::<R>(query, select).await?.into_iter().next())
}

/// Reads the records of a statement that begins with [`Record::SELECT`].
///
/// # Errors
/// When the store does not answer.
pub async fn all<R: Record>(query: &impl Query, select: Where) -> Result<Vec<R>, StoreError> {
    let (sql, args) = select.build();
    query.rows(sql, args).await?.iter().map(|row| row.json("body")).collect()
}

/// Reads the records for which a column has a value.
///
/// # Errors
/// When the store does not answer.
pub async fn by<R: Record>(
    query: &impl Query,
    condition: &'static str,
    value: &str,
) -> Result<Vec<R>, StoreError> {
    let mut select = Where::new(R::SELECT);
    select.and(condition, [value.into()]);
    select.end("ORDER BY created_at, id", []);
    all(query, select).await
}

/// Writes a record.
///
/// # Errors
/// `Duplicate` when a unique index says no.
pub async fn save<R: Record>(tx: &Tx, record: &R) -> Result<(), StoreError> {
    let body = serde_json::to_string(record).map_err(|error| StoreError::Shape(error.to_string()))?;
    let mut args = record.columns();
    args.push(body.into());
    tx.exec(R::SAVE, args).await.map(|_| ())
}

/// Deletes a record.
///
/// # Errors
/// `Constraint` when another refers to it.
pub async fn delete<R: Record>(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec(R::DELETE, args![id]).await.map(|_| ())
}

macro_rules! record {
    ($type:ident, $table:literal, $columns:literal, $numbers:literal, $sets:literal, $this:ident => [$($value:expr),* $(,)?]) => {
        impl Record for $type {
            const SELECT: &'static str = concat!("SELECT body FROM ", $table);
            const SAVE: &'static str = concat!(
                "INSERT INTO ", $table, " (id, project_id, revision, created_at, updated_at, description, ", $columns,
                ", body) VALUES ($1, $2, $3, $4, $5, $6, ", $numbers,
                ") ON CONFLICT (id) DO UPDATE SET project_id = excluded.project_id, revision = excluded.revision, \
                 updated_at = excluded.updated_at, description = excluded.description, ", $sets, ", body = excluded.body"
            );
            const DELETE: &'static str = concat!("DELETE FROM ", $table, " WHERE id = $1");
            fn common(&self) -> &Common {
                &self.common
            }
            fn common_mut(&mut self) -> &mut Common {
                &mut self.common
            }
            fn columns(&self) -> Vec<Value> {
                let $this = self;
                let common = &self.common;
                args![
                    &common.id, &common.project_id, common.revision, &common.created_at, &common.updated_at,
                    &common.description, $($value),*
                ]
            }
        }
    };
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What every resource has.
    pub common: Common,
    /// Whether its ports work.
    pub admin_state_up: bool,
    /// Whether every project may use it.
    pub shared: bool,
    /// Whether routers may have their gateway on it.
    pub external: bool,
    /// MTU in bytes.
    pub mtu: u16,
    /// The physical network that it is, if any.
    pub provider: Option<String>,
    /// Default of its ports.
    pub port_security: bool,
}
record!(Network, "network_networks", "name, admin_state_up, shared, external, mtu, provider", "$7, $8, $9, $10, $11, $12, $13",
    "name = excluded.name, admin_state_up = excluded.admin_state_up, shared = excluded.shared, external = excluded.external, mtu = excluded.mtu, provider = excluded.provider",
    this => [&this.common.name, this.admin_state_up, this.shared, this.external, u32::from(this.mtu), &this.provider]);

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// What every resource has.
    pub common: Common,
    /// Its network.
    pub network_id: String,
    /// Its range.
    pub cidr: IpNet,
    /// Default gateway.
    pub gateway_ip: Option<IpAddr>,
    /// Whether DHCP answers.
    pub enable_dhcp: bool,
    /// First and last addresses that ports get by themselves.
    pub pools: Vec<(IpAddr, IpAddr)>,
    /// Name servers.
    pub dns_nameservers: Vec<IpAddr>,
    /// Routes handed out, as (destination, next hop).
    pub host_routes: Vec<(IpNet, IpAddr)>,
    /// As its network's.
    pub shared: bool,
}
record!(Subnet, "network_subnets", "name, network_id, ip_version, cidr, gateway_ip, enable_dhcp, shared", "$7, $8, $9, $10, $11, $12, $13, $14",
    "name = excluded.name, gateway_ip = excluded.gateway_ip, enable_dhcp = excluded.enable_dhcp, shared = excluded.shared",
    this => [&this.common.name, &this.network_id, this.ip_version(), this.cidr.to_string(), this.gateway_ip.map(|ip| ip.to_string()), this.enable_dhcp, this.shared]);

impl Subnet {
    /// 4 or 6.
    #[must_use]
    pub fn ip_version(&self) -> i64 {
        if self.cidr.addr().is_ipv4() { 4 } else { 6 }
    }
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// What every resource has.
    pub common: Common,
    /// Its network.
    pub network_id: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Whether frames pass.
    pub admin_state_up: bool,
    /// What it is plugged into.
    pub device_id: String,
    /// What kind of thing that is: `compute:nova`, `network:dhcp`.
    pub device_owner: String,
    /// Its addresses, as (subnet, address).
    pub fixed_ips: Vec<(String, IpAddr)>,
    /// Its security groups.
    pub security_groups: Vec<String>,
    /// Further addresses that it may use.
    pub allowed_pairs: Vec<(IpNet, Option<Mac>)>,
    /// Whether it is filtered at all.
    pub port_security: bool,
    /// The host that it is bound to; empty when it is not.
    pub host: String,
    /// `ACTIVE`, `DOWN`, `N/A`.
    pub status: String,
    /// Host name of what is behind it, for DHCP and DNS.
    pub hostname: String,
    /// Which of a server's requests it answers; `None` on ports that nobody allocated.
    pub request: Option<usize>,
    /// Whether it was there before the server that has it.
    pub preexisting: bool,
}
impl Port {
    /// The server that compute has bound it to. `device_id` alone is no proof, since tenants write it; `request` is
    /// compute's only, and while it is there tenants cannot change `device_id`.
    #[must_use]
    pub fn server(&self) -> Option<ServerId> {
        self.request?;
        self.device_id.parse().ok().filter(|_| !self.device_owner.starts_with("network:"))
    }
}

record!(Port, "network_ports", "name, network_id, mac, admin_state_up, device_id, device_owner, status, host", "$7, $8, $9, $10, $11, $12, $13, $14, $15",
    "name = excluded.name, mac = excluded.mac, admin_state_up = excluded.admin_state_up, device_id = excluded.device_id, device_owner = excluded.device_owner, status = excluded.status, host = excluded.host",
    this => [&this.common.name, &this.network_id, this.mac.to_string(), this.admin_state_up, &this.device_id, &this.device_owner, &this.status, &this.host]);

/// Device owner of the service's own DHCP port.
pub const DHCP: &str = "network:dhcp";
/// Device owner of a router's leg into a tenant network.
pub const INTERFACE: &str = "network:router_interface";
/// Device owner of a router's leg into an external network.
pub const GATEWAY: &str = "network:router_gateway";
/// Device owner of the port that holds a floating IP's address.
pub const FLOATING: &str = "network:floatingip";

/// A router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// What every resource has.
    pub common: Common,
    /// Whether it forwards.
    pub admin_state_up: bool,
    /// Its way out.
    pub gateway: Option<Gateway>,
    /// Static routes, as (destination, next hop).
    pub routes: Vec<(IpNet, IpAddr)>,
}
record!(Router, "network_routers", "name, admin_state_up, gateway_network", "$7, $8, $9, $10",
    "name = excluded.name, admin_state_up = excluded.admin_state_up, gateway_network = excluded.gateway_network",
    this => [&this.common.name, this.admin_state_up, this.gateway.as_ref().map(|gateway| gateway.network_id.clone())]);

/// A router's way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// The external network.
    pub network_id: String,
    /// The port on it.
    pub port_id: String,
    /// Whether tenants leave under its address.
    pub enable_snat: bool,
}

/// A floating IP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floating {
    /// What every resource has.
    pub common: Common,
    /// The external network.
    pub network_id: String,
    /// The address outside.
    pub address: IpAddr,
    /// The port that holds the address outside.
    pub own_port: String,
    /// The port that it leads to.
    pub port_id: Option<String>,
    /// The address inside.
    pub fixed_ip: Option<IpAddr>,
    /// The router that translates.
    pub router_id: Option<String>,
}
record!(Floating, "network_floatingips", "floating_network_id, floating_ip, port_id, fixed_ip, router_id, status", "$7, $8, $9, $10, $11, $12, $13",
    "port_id = excluded.port_id, fixed_ip = excluded.fixed_ip, router_id = excluded.router_id, status = excluded.status",
    this => [&this.network_id, this.address.to_string(), &this.port_id, this.fixed_ip.map(|ip| ip.to_string()), &this.router_id, this.status()]);

impl Floating {
    /// `ACTIVE` when it leads somewhere.
    #[must_use]
    pub fn status(&self) -> &'static str {
        if self.router_id.is_some() { "ACTIVE" } else { "DOWN" }
    }
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What every resource has.
    pub common: Common,
}
record!(Group, "network_groups", "name", "$7, $8", "name = excluded.name", this => [&this.common.name]);

/// A rule of a security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What every resource has; the name is empty.
    pub common: Common,
    /// Its group.
    pub group_id: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// `IPv4` or `IPv6`.
    pub ethertype: String,
    /// Name or number.
    pub protocol: Option<String>,
    /// Lowest port, or ICMP type.
    pub port_min: Option<u16>,
    /// Highest port, or ICMP code.
    pub port_max: Option<u16>,
    /// The other side's group.
    pub remote_group: Option<String>,
    /// The other side's range.
    pub remote_ip: Option<IpNet>,
}
record!(Rule, "network_rules", "group_id, direction, ethertype, protocol, port_min, port_max, remote_group, remote_ip", "$7, $8, $9, $10, $11, $12, $13, $14, $15",
    "group_id = excluded.group_id",
    this => [&this.group_id, &this.direction, &this.ethertype, &this.protocol, this.port_min.map(i64::from), this.port_max.map(i64::from), &this.remote_group, this.remote_ip.map(|ip| ip.to_string())]);

/// Writes a port with its addresses and groups.
///
/// # Errors
/// `Duplicate` when an address or the MAC is taken.
pub async fn save_port(tx: &Tx, port: &Port) -> Result<(), StoreError> {
    save(tx, port).await?;
    tx.exec("DELETE FROM network_addresses WHERE port_id = $1", args![&port.common.id]).await?;
    for (subnet, ip) in &port.fixed_ips {
        tx.exec(
            "INSERT INTO network_addresses (subnet_id, ip, port_id) VALUES ($1, $2, $3)",
            args![subnet, ip.to_string(), &port.common.id],
        )
        .await?;
    }
    tx.exec("DELETE FROM network_port_groups WHERE port_id = $1", args![&port.common.id]).await?;
    for group in &port.security_groups {
        tx.exec(
            "INSERT INTO network_port_groups (port_id, group_id) VALUES ($1, $2)",
            args![&port.common.id, group],
        )
        .await?;
    }
    Ok(())
}

/// Deletes a port with its addresses and groups.
///
/// # Errors
/// When the store does not answer.
pub async fn delete_port(tx: &Tx, id: &str) -> Result<(), StoreError> {
    tx.exec("DELETE FROM network_addresses WHERE port_id = $1", args![id]).await?;
    tx.exec("DELETE FROM network_port_groups WHERE port_id = $1", args![id]).await?;
    delete::<Port>(tx, id).await
}
