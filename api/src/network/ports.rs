//! Ports.

use super::allocate::{asked, blank_port, fixed_ips, new_mac};
use super::groups::default_group;
use super::input::{Attributes, bad, conflict, ids, invalid, mac, missing, range, text, truth};
use super::interfaces::check_leg;
use super::records::{
    Common, Floating, Group, Network, Port, Record, all, by, delete_port, find, save, save_port,
};
use super::resource::{Resource, admin_only, extend, view_of, visible};
use api_kit::list::Match;
use api_kit::{Caller, Dir, Fault, Filter, ListSpec, SortKey};
use base::store::{Store, StoreError, Tx, Where};
use ipnet::IpNet;
use serde_json::{Value, json};
use wire::ids::Mac;

static PORTS: ListSpec = ListSpec {
    table: "network_ports",
    key: "id",
    filters: &[
        Filter::new("id", "id", Match::Text),
        Filter::new("name", "name", Match::Text),
        Filter::new("description", "description", Match::Text),
        Filter::new("project_id", "project_id", Match::Text),
        Filter::new("tenant_id", "project_id", Match::Text),
        Filter::new("network_id", "network_id", Match::Text),
        Filter::new("mac_address", "mac", Match::Text),
        Filter::new("admin_state_up", "admin_state_up", Match::Truth),
        Filter::new("device_id", "device_id", Match::Text),
        Filter::new("device_owner", "device_owner", Match::Text),
        Filter::new("status", "status", Match::Text),
        Filter::new("binding:host_id", "host", Match::Text),
        Filter::new("revision_number", "revision", Match::Int),
        Filter::new("fixed_ips", "id", Match::Handler),
        Filter::new("security_groups", "id", Match::Handler),
    ],
    sorts: &[
        SortKey { name: "name", column: "name" },
        SortKey { name: "network_id", column: "network_id" },
        SortKey { name: "project_id", column: "project_id" },
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "updated_at", column: "updated_at" },
        SortKey { name: "mac_address", column: "mac" },
        SortKey { name: "device_id", column: "device_id" },
        SortKey { name: "status", column: "status" },
    ],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

impl Resource for Port {
    const ONE: &'static str = "port";
    const MANY: &'static str = "ports";
    const MISSING: &'static str = "PortNotFound";
    const LABEL: &'static str = "Port";
    const LIST: &'static ListSpec = &PORTS;

    fn further(select: &mut Where, query: &api_kit::Query) {
        for text in query.all("fixed_ips") {
            let (key, value) = text.split_once('=').unwrap_or(("ip_address", text));
            let condition = match key {
                "subnet_id" => "id IN (SELECT port_id FROM network_addresses WHERE subnet_id = ?)",
                "ip_address_substr" => {
                    "id IN (SELECT port_id FROM network_addresses WHERE ip LIKE '%' || ? || '%')"
                }
                _ => "id IN (SELECT port_id FROM network_addresses WHERE ip = ?)",
            };
            select.and(condition, [value.into()]);
        }
        for group in query.all("security_groups") {
            select.and("id IN (SELECT port_id FROM network_port_groups WHERE group_id = ?)", [group.into()]);
        }
    }

    async fn prepare(tx: &Tx, project: &str) -> Result<(), Fault> {
        default_group(tx, project).await.map(|_| ())
    }

    async fn views(_: &Store, rows: Vec<Self>, caller: &Caller) -> Result<Vec<Value>, Fault> {
        let view = |row: &Self| {
            let mut view = view_of(row);
            let ips: Vec<Value> = row
                .fixed_ips
                .iter()
                .map(|(subnet, ip)| json!({"subnet_id": subnet, "ip_address": ip}))
                .collect();
            let pairs: Vec<Value> = row
                .allowed_pairs
                .iter()
                .map(|(ip, mac)| json!({"ip_address": shown(ip), "mac_address": mac.unwrap_or(row.mac)}))
                .collect();
            extend(
                &mut view,
                json!({"network_id": row.network_id, "mac_address": row.mac, "admin_state_up": row.admin_state_up,
                    "device_id": row.device_id, "device_owner": row.device_owner, "fixed_ips": ips,
                    "security_groups": row.security_groups, "allowed_address_pairs": pairs, "status": row.status,
                    "port_security_enabled": row.port_security, "binding:vnic_type": "normal"}),
            );
            if caller.is_admin {
                let kind = if row.host.is_empty() { "unbound" } else { "tap" };
                extend(
                    &mut view,
                    json!({"binding:host_id": row.host, "binding:profile": {}, "binding:vif_type": kind,
                        "binding:vif_details": {}}),
                );
            }
            Value::Object(view)
        };
        Ok(rows.iter().map(view).collect())
    }

    async fn create(tx: &Tx, caller: &Caller, project: &str, body: &Attributes) -> Result<Self, Fault> {
        let network: Network = visible(tx, caller, text(body, "network_id").unwrap_or_default()).await?;
        let owns = owns(caller, &network);
        if !owns && !network.shared {
            return Err(
                Fault::forbidden("(rule:create_port) is disallowed by policy").kind("PolicyNotAuthorized")
            );
        }
        let mut port = blank_port(&network, "", "");
        port.common = Common::new(project, "", "");
        port.port_security = network.port_security;
        if let Some(text) = text(body, "mac_address") {
            if !owns {
                admin_only(caller, "create_port:mac_address")?;
            }
            port.mac = mac(text)?;
        }
        if asked(body).is_some() && !owns {
            admin_only(caller, "create_port:fixed_ips")?;
        }
        port.fixed_ips = fixed_ips(tx, &network, asked(body), &[]).await?;
        port.apply(tx, caller, &network, body, "create_port").await?;
        if port.port_security && ids(body, "security_groups").is_none() {
            port.security_groups = vec![default_group(tx, project).await?];
        }
        port.check()?;
        port.store(tx, body.contains_key("mac_address")).await?;
        Ok(port)
    }

    async fn update(mut self, tx: &Tx, caller: &Caller, body: &Attributes) -> Result<Self, Fault> {
        let network = super::networks::network(tx, &self.network_id).await?;
        if let Some(text) = text(body, "mac_address") {
            let new = mac(text)?;
            if new != self.mac {
                admin_only(caller, "update_port:mac_address")?;
                if !self.host.is_empty() {
                    return Err(conflict(
                        "PortBound",
                        format!(
                            "Unable to complete operation on port {}, port is already bound, port type: tap, old_mac {}, new_mac {new}.",
                            self.common.id, self.mac
                        ),
                    ));
                }
                self.mac = new;
            }
        }
        if let Some(asked) = asked(body) {
            if !owns(caller, &network) {
                admin_only(caller, "update_port:fixed_ips")?;
            }
            let before = std::mem::take(&mut self.fixed_ips);
            self.fixed_ips = fixed_ips(tx, &network, Some(asked), &before).await?;
            check_leg(tx, &self, &before).await?;
            for floating in by::<Floating>(tx, "port_id = ?", &self.common.id).await? {
                let kept = self.fixed_ips.iter().any(|(_, ip)| Some(*ip) == floating.fixed_ip);
                if !kept {
                    release(tx, floating).await?;
                }
            }
        }
        self.apply(tx, caller, &network, body, "update_port").await?;
        self.check()?;
        self.common.changed();
        self.store(tx, true).await?;
        Ok(self)
    }

    async fn remove(self, tx: &Tx) -> Result<(), Fault> {
        if matches!(
            self.device_owner.as_str(),
            super::records::INTERFACE | super::records::GATEWAY | super::records::FLOATING
        ) {
            return Err(conflict(
                "ServicePortInUse",
                format!(
                    "Port {} cannot be deleted directly via the port API: has device owner {}.",
                    self.common.id, self.device_owner
                ),
            ));
        }
        forget(tx, &self.common.id).await
    }
}

/// Deletes a port; floating IPs that led to it lead nowhere then.
///
/// # Errors
/// When the store does not answer.
pub async fn forget(tx: &Tx, id: &str) -> Result<(), Fault> {
    for floating in by::<Floating>(tx, "port_id = ?", id).await? {
        release(tx, floating).await?;
    }
    Ok(delete_port(tx, id).await?)
}

async fn release(tx: &Tx, mut floating: Floating) -> Result<(), Fault> {
    (floating.port_id, floating.fixed_ip, floating.router_id) = (None, None, None);
    floating.common.changed();
    Ok(save(tx, &floating).await?)
}

/// Whether the caller speaks for the network, not only for a port on it.
fn owns(caller: &Caller, network: &Network) -> bool {
    caller.is_admin || Some(&network.common.project_id) == caller.project_id.as_ref()
}

fn shown(range: &IpNet) -> String {
    if range.prefix_len() == range.max_prefix_len() { range.addr().to_string() } else { range.to_string() }
}

impl Port {
    async fn apply(
        &mut self,
        tx: &Tx,
        caller: &Caller,
        network: &Network,
        body: &Attributes,
        rule: &str,
    ) -> Result<(), Fault> {
        let owns = owns(caller, network);
        if let Some(name) = text(body, "name") {
            name.clone_into(&mut self.common.name);
        }
        if let Some(description) = text(body, "description") {
            description.clone_into(&mut self.common.description);
        }
        self.admin_state_up = truth(body, "admin_state_up").unwrap_or(self.admin_state_up);
        self.plug(caller, body, rule)?;
        if let Some(host) = text(body, "binding:host_id") {
            admin_only(caller, &format!("{rule}:binding:host_id"))?;
            host.clone_into(&mut self.host);
        }
        if text(body, "binding:vnic_type").is_some_and(|kind| kind != "normal") {
            return Err(invalid("binding:vnic_type", "only 'normal' is available here"));
        }
        if let Some(security) = truth(body, "port_security_enabled").filter(|new| *new != self.port_security)
        {
            if !owns {
                admin_only(caller, &format!("{rule}:port_security_enabled"))?;
            }
            self.port_security = security;
        }
        if let Some(groups) = ids(body, "security_groups") {
            let mut unique = Vec::new();
            for id in groups {
                let group: Option<Group> = find(tx, &id).await?;
                let own = group
                    .filter(|group| caller.is_admin || group.common.project_id == self.common.project_id);
                if own.is_none() {
                    return Err(missing("SecurityGroupNotFound", "Security group", &id));
                }
                if !unique.contains(&id) {
                    unique.push(id);
                }
            }
            self.security_groups = unique;
        }
        if let Some(pairs) = body.get("allowed_address_pairs").and_then(Value::as_array) {
            // Pairs let a guest speak for its neighbours: that is for the network's owner to grant.
            let none = pairs.is_empty() && self.allowed_pairs.is_empty();
            if !owns && !none {
                admin_only(caller, &format!("{rule}:allowed_address_pairs"))?;
            }
            if pairs.len() > 10 {
                return Err(bad(
                    "AllowedAddressPairExhausted",
                    "The number of allowed address pair exceeds the maximum 10.",
                ));
            }
            self.allowed_pairs.clear();
            for pair in pairs {
                let part = |name: &str| pair.get(name).and_then(Value::as_str);
                let ip = part("ip_address").ok_or_else(|| {
                    bad("AllowedAddressPairsMissingIP", "AllowedAddressPair must contain ip_address")
                })?;
                let pair: (IpNet, Option<Mac>) =
                    (range("allowed_address_pairs", ip)?.trunc(), part("mac_address").map(mac).transpose()?);
                if self.allowed_pairs.contains(&pair) {
                    return Err(bad(
                        "DuplicateAddressPairInRequest",
                        format!(
                            "Request contains duplicate address pair: mac_address {} ip_address {ip}.",
                            pair.1.unwrap_or(self.mac)
                        ),
                    ));
                }
                self.allowed_pairs.push(pair);
            }
        }
        Ok(())
    }

    /// Takes `device_id` and `device_owner` of a request. They decide which router or server the port is part of, so
    /// only an administrator may change them on a port of the service's own, or on one that a server has.
    fn plug(&mut self, caller: &Caller, body: &Attributes, rule: &str) -> Result<(), Fault> {
        let device = text(body, "device_id").filter(|device| *device != self.device_id);
        let owner = text(body, "device_owner").filter(|owner| *owner != self.device_owner);
        if owner.is_some_and(|owner| owner.starts_with("network:")) {
            admin_only(caller, &format!("{rule}:device_owner"))?;
        }
        if !caller.is_admin && (device.is_some() || owner.is_some()) {
            let id = &self.common.id;
            if self.device_owner.starts_with("network:") {
                return Err(conflict(
                    "ServicePortInUse",
                    format!(
                        "Port {id} cannot be updated directly via the port API: has device owner {}.",
                        self.device_owner
                    ),
                ));
            }
            if self.request.is_some() || !self.host.is_empty() {
                return Err(conflict(
                    "PortInUse",
                    format!(
                        "Unable to complete operation on port {id} for network {}. Port already has an attached device {}.",
                        self.network_id, self.device_id
                    ),
                ));
            }
        }
        if let Some(device) = device {
            device.clone_into(&mut self.device_id);
        }
        if let Some(owner) = owner {
            owner.clone_into(&mut self.device_owner);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Fault> {
        if !self.port_security && !self.security_groups.is_empty() {
            return Err(conflict(
                "PortSecurityPortHasSecurityGroup",
                "Port has security group associated. Cannot disable port security or IP address until security group is removed.",
            ));
        }
        if !self.port_security && !self.allowed_pairs.is_empty() {
            return Err(conflict(
                "AddressPairAndPortSecurityRequired",
                "Port Security must be enabled in order to have allowed address pairs on a port.",
            ));
        }
        Ok(())
    }

    /// Writes it; a MAC that was not asked for is drawn again when it is taken.
    async fn store(&mut self, tx: &Tx, asked: bool) -> Result<(), Fault> {
        // 2^24 addresses: looking is cheaper than a failed statement, which ends the transaction.
        for _ in 0..16 {
            let mut select = Where::new(Self::SELECT);
            select.and("network_id = ?", [(&self.network_id).into()]);
            select.and("mac = ?", [self.mac.to_string().into()]);
            select.and("id <> ?", [(&self.common.id).into()]);
            if all::<Self>(tx, select).await?.is_empty() {
                break;
            }
            if asked {
                return Err(conflict(
                    "MacAddressInUse",
                    format!(
                        "Unable to complete operation for network {}. The mac address {} is in use.",
                        self.network_id, self.mac
                    ),
                ));
            }
            self.mac = new_mac();
        }
        save_port(tx, self).await.map_err(|error| match error {
            StoreError::Duplicate(_) => {
                conflict("IpAddressAlreadyAllocated", "An address of the port is already allocated.")
            }
            other => other.into(),
        })
    }
}
