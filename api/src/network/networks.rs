//! Networks and subnets.

use super::allocate::{from_number, number, settle_dhcp};
use super::input::{
    Attributes, address, addresses, bad, conflict, invalid, missing, range, routes, text, truth,
};
use super::records::{Common, DHCP, Network, Port, Record, Subnet, all, by, delete, delete_port, find, save};
use super::resource::{Resource, admin_only, extend, view_of, visible};
use api_kit::list::Match;
use api_kit::{Caller, Dir, Fault, Filter, ListSpec, SortKey};
use base::args;
use base::store::{Store, StoreError, Tx, Where};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

/// MTU of tenant networks: what fits through every tunnel of a usual underlay.
pub const MTU: u16 = 1442;

const fn filter(name: &'static str, column: &'static str, how: Match) -> Filter {
    Filter::new(name, column, how)
}

const fn key(name: &'static str) -> SortKey {
    SortKey { name, column: name }
}

static NETWORKS: ListSpec = ListSpec {
    table: "network_networks",
    key: "id",
    filters: &[
        filter("id", "id", Match::Text),
        filter("name", "name", Match::Text),
        filter("description", "description", Match::Text),
        filter("project_id", "project_id", Match::Text),
        filter("tenant_id", "project_id", Match::Text),
        filter("admin_state_up", "admin_state_up", Match::Truth),
        filter("shared", "shared", Match::Truth),
        filter("router:external", "external", Match::Truth),
        filter("mtu", "mtu", Match::Int),
        filter("provider:physical_network", "provider", Match::Text),
        filter("revision_number", "revision", Match::Int),
        filter("status", "'ACTIVE'", Match::Text),
    ],
    sorts: &[key("name"), key("project_id"), key("created_at"), key("updated_at"), key("admin_state_up")],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

impl Resource for Network {
    const ONE: &'static str = "network";
    const MANY: &'static str = "networks";
    const MISSING: &'static str = "NetworkNotFound";
    const LABEL: &'static str = "Network";
    const LIST: &'static ListSpec = &NETWORKS;

    fn public(&self) -> bool {
        self.shared || self.external
    }

    fn narrow(select: &mut Where, project: &str) {
        select.and("(project_id = ? OR shared = 1 OR external = 1)", [project.into()]);
    }

    async fn views(query: &Store, rows: Vec<Self>, caller: &Caller) -> Result<Vec<Value>, Fault> {
        let mut select = Where::new(Subnet::SELECT);
        select.and_in("network_id", rows.iter().map(|row| (&row.common.id).into()));
        select.end("ORDER BY created_at, id", []);
        let subnets: Vec<Subnet> = all(query, select).await?;
        let view = |row: &Self| {
            let mut view = view_of(row);
            let mine = subnets.iter().filter(|subnet| subnet.network_id == row.common.id);
            let ids: Vec<&str> = mine.map(|subnet| subnet.common.id.as_str()).collect();
            extend(
                &mut view,
                json!({"admin_state_up": row.admin_state_up, "status": "ACTIVE", "shared": row.shared,
                    "router:external": row.external, "mtu": row.mtu, "subnets": ids,
                    "port_security_enabled": row.port_security}),
            );
            if caller.is_admin {
                let kind = if row.provider.is_some() { "flat" } else { "local" };
                extend(
                    &mut view,
                    json!({"provider:network_type": kind, "provider:physical_network": row.provider,
                        "provider:segmentation_id": null}),
                );
            }
            Value::Object(view)
        };
        Ok(rows.iter().map(view).collect())
    }

    async fn create(tx: &Tx, caller: &Caller, project: &str, body: &Attributes) -> Result<Self, Fault> {
        let mut network = Self {
            common: Common::new(
                project,
                text(body, "name").unwrap_or_default(),
                text(body, "description").unwrap_or_default(),
            ),
            admin_state_up: true,
            shared: false,
            external: false,
            mtu: MTU,
            provider: None,
            port_security: true,
        };
        let physical = text(body, "provider:physical_network");
        match (text(body, "provider:network_type"), physical) {
            (None, None) => (),
            (Some("local"), None) => admin_only(caller, "create_network:provider:network_type")?,
            (Some("flat") | None, Some(label)) => {
                admin_only(caller, "create_network:provider:physical_network")?;
                network.provider = Some(label.to_owned());
                network.mtu = 1500;
            }
            (Some("flat"), None) => {
                return Err(invalid("provider:physical_network", "a flat network needs one"));
            }
            (Some(other), _) => {
                return Err(invalid(
                    "provider:network_type",
                    format!("'{other}' networks are not available here; use 'local' or 'flat'"),
                ));
            }
        }
        network.apply(caller, body, "create_network")?;
        save(tx, &network).await.map_err(|error| match error {
            StoreError::Duplicate(_) => conflict(
                "FlatNetworkInUse",
                format!(
                    "Unable to create the flat network. Physical network {} is in use.",
                    network.provider.as_deref().unwrap_or_default()
                ),
            ),
            other => other.into(),
        })?;
        Ok(network)
    }

    async fn update(mut self, tx: &Tx, caller: &Caller, body: &Attributes) -> Result<Self, Fault> {
        let was = (self.shared, self.external);
        self.apply(caller, body, "update_network")?;
        let mut subnets: Vec<Subnet> = by(tx, "network_id = ?", &self.common.id).await?;
        if was.0 && !self.shared {
            let mut select = Where::new(Port::SELECT);
            select.and("network_id = ?", [(&self.common.id).into()]);
            select.and("project_id <> ?", [(&self.common.project_id).into()]);
            select.and("device_owner NOT LIKE 'network:%'", []);
            if !all::<Port>(tx, select).await?.is_empty() {
                return Err(conflict(
                    "InvalidSharedSetting",
                    format!(
                        "Unable to reconfigure sharing settings for network {}. Multiple tenants are using it.",
                        self.common.name
                    ),
                ));
            }
        }
        if was.1 && !self.external {
            let mut select = Where::new(super::records::Router::SELECT);
            select.and("gateway_network = ?", [(&self.common.id).into()]);
            if !all::<super::records::Router>(tx, select).await?.is_empty() {
                return Err(conflict(
                    "ExternalNetworkInUse",
                    format!(
                        "External network {} cannot be updated to be made non-external, since it has existing gateway ports.",
                        self.common.id
                    ),
                ));
            }
        }
        for subnet in subnets.iter_mut().filter(|subnet| subnet.shared != self.shared) {
            subnet.shared = self.shared;
            save(tx, subnet).await?;
        }
        self.common.changed();
        save(tx, &self).await?;
        Ok(self)
    }

    async fn remove(self, tx: &Tx) -> Result<(), Fault> {
        let id = &self.common.id;
        let ports: Vec<Port> = by(tx, "network_id = ?", id).await?;
        let rows =
            tx.rows("SELECT id FROM network_floatingips WHERE floating_network_id = $1", args![id]).await?;
        if ports.iter().any(|port| port.device_owner != DHCP) || !rows.is_empty() {
            return Err(conflict(
                "NetworkInUse",
                format!(
                    "Unable to complete operation on network {id}. There are one or more ports still in use on the network."
                ),
            ));
        }
        for port in ports {
            delete_port(tx, &port.common.id).await?;
        }
        tx.exec("DELETE FROM network_subnets WHERE network_id = $1", args![id]).await?;
        Ok(delete::<Self>(tx, id).await?)
    }
}

use base::store::Query as _;

impl Network {
    fn apply(&mut self, caller: &Caller, body: &Attributes, rule: &str) -> Result<(), Fault> {
        if let Some(name) = text(body, "name") {
            name.clone_into(&mut self.common.name);
        }
        if let Some(description) = text(body, "description") {
            description.clone_into(&mut self.common.description);
        }
        self.admin_state_up = truth(body, "admin_state_up").unwrap_or(self.admin_state_up);
        self.port_security = truth(body, "port_security_enabled").unwrap_or(self.port_security);
        if let Some(shared) = truth(body, "shared").filter(|shared| *shared != self.shared) {
            admin_only(caller, &format!("{rule}:shared"))?;
            self.shared = shared;
        }
        if let Some(external) = truth(body, "router:external").filter(|external| *external != self.external) {
            admin_only(caller, &format!("{rule}:router:external"))?;
            self.external = external;
        }
        if let Some(mtu) = body.get("mtu").and_then(Value::as_u64) {
            let allowed = if self.provider.is_some() { 1500 } else { 9000 };
            self.mtu = u16::try_from(mtu)
                .ok()
                .filter(|mtu| (576..=allowed).contains(mtu))
                .ok_or_else(|| invalid("mtu", format!("'{mtu}' is not between 576 and {allowed}")))?;
        }
        Ok(())
    }
}

static SUBNETS: ListSpec = ListSpec {
    table: "network_subnets",
    key: "id",
    filters: &[
        filter("id", "id", Match::Text),
        filter("name", "name", Match::Text),
        filter("description", "description", Match::Text),
        filter("project_id", "project_id", Match::Text),
        filter("tenant_id", "project_id", Match::Text),
        filter("network_id", "network_id", Match::Text),
        filter("ip_version", "ip_version", Match::Int),
        filter("cidr", "cidr", Match::Text),
        filter("gateway_ip", "gateway_ip", Match::Text),
        filter("enable_dhcp", "enable_dhcp", Match::Truth),
        filter("shared", "shared", Match::Truth),
        filter("revision_number", "revision", Match::Int),
    ],
    sorts: &[
        key("name"),
        key("project_id"),
        key("network_id"),
        key("cidr"),
        key("created_at"),
        key("updated_at"),
    ],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

impl Resource for Subnet {
    const ONE: &'static str = "subnet";
    const MANY: &'static str = "subnets";
    const MISSING: &'static str = "SubnetNotFound";
    const LABEL: &'static str = "Subnet";
    const LIST: &'static ListSpec = &SUBNETS;

    fn public(&self) -> bool {
        self.shared
    }

    fn narrow(select: &mut Where, project: &str) {
        select.and("(project_id = ? OR shared = 1)", [project.into()]);
    }

    async fn views(_: &Store, rows: Vec<Self>, _: &Caller) -> Result<Vec<Value>, Fault> {
        let view = |row: &Self| {
            let mut view = view_of(row);
            let pools: Vec<Value> =
                row.pools.iter().map(|(start, end)| json!({"start": start, "end": end})).collect();
            let routes: Vec<Value> = row
                .host_routes
                .iter()
                .map(|(destination, hop)| json!({"destination": destination, "nexthop": hop}))
                .collect();
            extend(
                &mut view,
                json!({"network_id": row.network_id, "ip_version": row.ip_version(), "cidr": row.cidr,
                    "gateway_ip": row.gateway_ip, "enable_dhcp": row.enable_dhcp, "allocation_pools": pools,
                    "dns_nameservers": row.dns_nameservers, "host_routes": routes,
                    "ipv6_address_mode": null, "ipv6_ra_mode": null}),
            );
            Value::Object(view)
        };
        Ok(rows.iter().map(view).collect())
    }

    async fn create(tx: &Tx, caller: &Caller, project: &str, body: &Attributes) -> Result<Self, Fault> {
        let network_id = text(body, "network_id").unwrap_or_default();
        let network: Network = visible(tx, caller, network_id).await?;
        if !caller.is_admin && Some(&network.common.project_id) != caller.project_id.as_ref() {
            return Err(missing("NetworkNotFound", "Network", network_id));
        }
        let cidr = range("cidr", text(body, "cidr").ok_or_else(|| invalid("cidr", "it is needed"))?)?.trunc();
        let version = body.get("ip_version").and_then(Value::as_i64).unwrap_or(4);
        if (version == 4) != cidr.addr().is_ipv4() {
            return Err(bad(
                "InvalidInput",
                format!("Invalid input for operation: '{cidr}' is not of IP version {version}."),
            ));
        }
        let others: Vec<Self> = by(tx, "network_id = ?", network_id).await?;
        if let Some(other) = others.iter().find(|other| overlap(&other.cidr, &cidr)) {
            return Err(bad(
                "InvalidInput",
                format!(
                    "Invalid input for operation: Requested subnet with cidr: {cidr} for network: {network_id} overlaps with another subnet (ID: {}, CIDR: {}).",
                    other.common.id, other.cidr
                ),
            ));
        }
        let dhcp = truth(body, "enable_dhcp").unwrap_or(version == 4);
        if version == 6 && dhcp {
            return Err(invalid(
                "enable_dhcp",
                "DHCP and router advertisements are not available for IPv6; make the subnet with enable_dhcp false",
            ));
        }
        if cidr.prefix_len() == cidr.max_prefix_len() && dhcp {
            return Err(invalid("cidr", "a subnet with DHCP needs room for more than one address"));
        }
        let gateway = match body.get("gateway_ip") {
            None => first_host(&cidr),
            Some(Value::String(ip)) => Some(address("gateway_ip", ip)?),
            Some(_) => None,
        };
        let mut subnet = Self {
            common: Common::new(
                project,
                text(body, "name").unwrap_or_default(),
                text(body, "description").unwrap_or_default(),
            ),
            network_id: network_id.to_owned(),
            cidr,
            gateway_ip: gateway,
            enable_dhcp: dhcp,
            pools: Vec::new(),
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            shared: network.shared,
        };
        subnet.pools = match pools(body, &cidr)? {
            Some(pools) => pools,
            None => default_pools(&cidr, gateway),
        };
        subnet.apply(body)?;
        save(tx, &subnet).await?;
        settle_dhcp(tx, network_id).await?;
        Ok(subnet)
    }

    async fn update(mut self, tx: &Tx, _: &Caller, body: &Attributes) -> Result<Self, Fault> {
        if let Some(gateway) = body.get("gateway_ip") {
            let new = gateway.as_str().map(|ip| address("gateway_ip", ip)).transpose()?;
            let row = match self.gateway_ip.filter(|_| new != self.gateway_ip) {
                None => None,
                Some(old) => {
                    tx.row(
                        "SELECT port_id FROM network_addresses WHERE subnet_id = $1 AND ip = $2",
                        args![&self.common.id, old.to_string()],
                    )
                    .await?
                }
            };
            if let Some(row) = row {
                return Err(conflict(
                    "GatewayIpInUse",
                    format!(
                        "Current gateway ip {} already in use by port {}. Unable to update.",
                        self.gateway_ip.map(|ip| ip.to_string()).unwrap_or_default(),
                        row.text("port_id")?
                    ),
                ));
            }
            self.gateway_ip = new;
        }
        if let Some(pools) = pools(body, &self.cidr)? {
            self.pools = pools;
        }
        if let Some(dhcp) = truth(body, "enable_dhcp") {
            if dhcp && self.ip_version() == 6 {
                return Err(invalid("enable_dhcp", "DHCP is not available for IPv6"));
            }
            self.enable_dhcp = dhcp;
        }
        self.apply(body)?;
        self.common.changed();
        save(tx, &self).await?;
        settle_dhcp(tx, &self.network_id).await?;
        Ok(self)
    }

    async fn remove(mut self, tx: &Tx) -> Result<(), Fault> {
        let rows = tx
            .rows(
                "SELECT p.device_owner AS owner FROM network_addresses a JOIN network_ports p ON p.id = a.port_id
                 WHERE a.subnet_id = $1",
                args![&self.common.id],
            )
            .await?;
        for row in rows {
            if row.text("owner")? != DHCP {
                return Err(conflict(
                    "SubnetInUse",
                    format!(
                        "Unable to complete operation on subnet {}: One or more ports have an IP allocation from this subnet.",
                        self.common.id
                    ),
                ));
            }
        }
        self.enable_dhcp = false;
        save(tx, &self).await?;
        settle_dhcp(tx, &self.network_id).await?;
        Ok(delete::<Self>(tx, &self.common.id).await?)
    }
}

impl Subnet {
    fn apply(&mut self, body: &Attributes) -> Result<(), Fault> {
        if let Some(name) = text(body, "name") {
            name.clone_into(&mut self.common.name);
        }
        if let Some(description) = text(body, "description") {
            description.clone_into(&mut self.common.description);
        }
        if let Some(names) = addresses(body, "dns_nameservers")? {
            if names.len() > 5 {
                return Err(bad(
                    "DNSNameServersExhausted",
                    format!(
                        "Unable to complete operation for {}. The number of DNS nameservers exceeds the limit 5.",
                        self.common.id
                    ),
                ));
            }
            self.dns_nameservers = names;
        }
        if let Some(routes) = routes(body, "host_routes")? {
            if routes.len() > 20 {
                return Err(bad(
                    "HostRoutesExhausted",
                    format!(
                        "Unable to complete operation for {}. The number of host routes exceeds the limit 20.",
                        self.common.id
                    ),
                ));
            }
            self.host_routes = routes;
        }
        if let Some(gateway) = self.gateway_ip {
            if gateway.is_ipv4() != self.cidr.addr().is_ipv4() {
                return Err(invalid("gateway_ip", format!("'{gateway}' is not of the subnet's IP version")));
            }
            let edge = gateway.is_ipv4()
                && self.cidr.prefix_len() < 31
                && (gateway == self.cidr.network() || gateway == self.cidr.broadcast());
            if !self.cidr.contains(&gateway) || edge {
                return Err(bad(
                    "InvalidInput",
                    "Invalid input for operation: Gateway is not valid on subnet.",
                ));
            }
            let inside =
                |(low, high): &&(IpAddr, IpAddr)| (number(*low)..=number(*high)).contains(&number(gateway));
            if let Some((low, high)) = self.pools.iter().find(inside) {
                return Err(conflict(
                    "GatewayConflictWithAllocationPools",
                    format!("Gateway ip {gateway} conflicts with allocation pool {low}-{high}."),
                ));
            }
        }
        Ok(())
    }
}

/// Whether two ranges share an address.
#[must_use]
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn first_host(cidr: &IpNet) -> Option<IpAddr> {
    let first = if cidr.prefix_len() + 1 >= cidr.max_prefix_len() { 0 } else { 1 };
    from_number(number(cidr.network()).checked_add(first)?, cidr.network())
}

/// First and last address that hosts may have.
fn hosts(cidr: &IpNet) -> (u128, u128) {
    let (low, high) = (number(cidr.network()), number(cidr.broadcast()));
    if cidr.prefix_len() + 1 >= cidr.max_prefix_len() {
        (low, high)
    } else {
        (low + 1, if cidr.addr().is_ipv4() { high - 1 } else { high })
    }
}

/// The whole range but for the gateway.
fn default_pools(cidr: &IpNet, gateway: Option<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
    let (low, high) = hosts(cidr);
    let at = |value: u128| from_number(value, cidr.addr());
    let mut spans = Vec::new();
    match gateway.map(number).filter(|gateway| (low..=high).contains(gateway)) {
        None => spans.push((low, high)),
        Some(gateway) => {
            if gateway > low {
                spans.push((low, gateway - 1));
            }
            if gateway < high {
                spans.push((gateway + 1, high));
            }
        }
    }
    spans.into_iter().filter_map(|(low, high)| Some((at(low)?, at(high)?))).collect()
}

fn pools(body: &Attributes, cidr: &IpNet) -> Result<Option<Vec<(IpAddr, IpAddr)>>, Fault> {
    let Some(list) = body.get("allocation_pools").and_then(Value::as_array) else { return Ok(None) };
    let (low, high) = hosts(cidr);
    let mut out: Vec<(IpAddr, IpAddr)> = Vec::new();
    for item in list {
        let part = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let (start, end) =
            (address("allocation_pools", part("start"))?, address("allocation_pools", part("end"))?);
        if start.is_ipv4() != cidr.addr().is_ipv4()
            || end.is_ipv4() != start.is_ipv4()
            || number(start) > number(end)
        {
            return Err(bad(
                "InvalidAllocationPool",
                format!("The allocation pool {start}-{end} is not valid."),
            ));
        }
        if number(start) < low || number(end) > high {
            return Err(bad(
                "OutOfBoundsAllocationPool",
                format!("The allocation pool {start}-{end} spans beyond the subnet cidr {cidr}."),
            ));
        }
        let crosses = |(a, b): &&(IpAddr, IpAddr)| number(*a) <= number(end) && number(start) <= number(*b);
        if let Some((a, b)) = out.iter().find(crosses) {
            return Err(conflict(
                "OverlappingAllocationPools",
                format!("Found overlapping allocation pools: {a}-{b}, {start}-{end} for subnet {cidr}."),
            ));
        }
        out.push((start, end));
    }
    Ok(Some(out))
}

/// The network of a row that refers to it.
///
/// # Errors
/// 404 when it is gone.
pub async fn network(query: &impl base::store::Query, id: &str) -> Result<Network, Fault> {
    find(query, id).await?.ok_or_else(|| missing("NetworkNotFound", "Network", id))
}
