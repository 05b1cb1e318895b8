//! Floating IPs.

use super::allocate::{blank_port, fixed_ips};
use super::input::{Attributes, address, bad, conflict, text};
use super::records::{
    Common, FLOATING, Floating, INTERFACE, Network, Port, Record, Router, all, by, delete, delete_port, find,
    save, save_port,
};
use super::resource::{Resource, admin_only, extend, view_of, visible};
use api_kit::list::Match;
use api_kit::{Caller, Dir, Fault, Filter, ListSpec, SortKey};
use base::store::{Store, Tx, Where};
use serde_json::{Value, json};

static FLOATINGS: ListSpec = ListSpec {
    table: "network_floatingips",
    key: "id",
    filters: &[
        Filter::new("id", "id", Match::Text),
        Filter::new("description", "description", Match::Text),
        Filter::new("project_id", "project_id", Match::Text),
        Filter::new("tenant_id", "project_id", Match::Text),
        Filter::new("floating_network_id", "floating_network_id", Match::Text),
        Filter::new("floating_ip_address", "floating_ip", Match::Text),
        Filter::new("fixed_ip_address", "fixed_ip", Match::Text),
        Filter::new("port_id", "port_id", Match::Text),
        Filter::new("router_id", "router_id", Match::Text),
        Filter::new("status", "status", Match::Text),
        Filter::new("revision_number", "revision", Match::Int),
    ],
    sorts: &[
        SortKey { name: "floating_ip_address", column: "floating_ip" },
        SortKey { name: "floating_network_id", column: "floating_network_id" },
        SortKey { name: "project_id", column: "project_id" },
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "status", column: "status" },
    ],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

impl Resource for Floating {
    const ONE: &'static str = "floatingip";
    const MANY: &'static str = "floatingips";
    const MISSING: &'static str = "FloatingIPNotFound";
    const LABEL: &'static str = "Floating IP";
    const LIST: &'static ListSpec = &FLOATINGS;

    async fn views(query: &Store, rows: Vec<Self>, _: &Caller) -> Result<Vec<Value>, Fault> {
        let mut select = Where::new(Port::SELECT);
        select.and_in("id", rows.iter().filter_map(|row| row.port_id.as_ref()).map(Into::into));
        let ports: Vec<Port> = all(query, select).await?;
        let view = |row: &Self| {
            let mut view = view_of(row);
            view.remove("name");
            let port = ports.iter().find(|port| Some(&port.common.id) == row.port_id.as_ref());
            let details = port.map(|port| {
                json!({"name": port.common.name, "network_id": port.network_id, "mac_address": port.mac,
                    "admin_state_up": port.admin_state_up, "status": port.status, "device_id": port.device_id,
                    "device_owner": port.device_owner})
            });
            extend(
                &mut view,
                json!({"floating_network_id": row.network_id, "floating_ip_address": row.address, "port_id": row.port_id,
                    "fixed_ip_address": row.fixed_ip, "router_id": row.router_id, "status": row.status(),
                    "port_details": details}),
            );
            Value::Object(view)
        };
        Ok(rows.iter().map(view).collect())
    }

    async fn create(tx: &Tx, caller: &Caller, project: &str, body: &Attributes) -> Result<Self, Fault> {
        let outside: Network =
            visible(tx, caller, text(body, "floating_network_id").unwrap_or_default()).await?;
        let id = &outside.common.id;
        if !outside.external {
            return Err(bad(
                "BadRequest",
                format!("Bad floatingip request: Network {id} is not a valid external network."),
            ));
        }
        let mut item = serde_json::Map::new();
        if let Some(ip) = text(body, "floating_ip_address") {
            admin_only(caller, "create_floatingip:floating_ip_address")?;
            item.insert("ip_address".into(), ip.into());
        }
        if let Some(subnet) = text(body, "subnet_id") {
            item.insert("subnet_id".into(), subnet.into());
        }
        let asked = vec![Value::Object(item)];
        let asked =
            if asked[0].as_object().is_some_and(|item| item.is_empty()) { None } else { Some(&asked) };
        let mut port = blank_port(&outside, FLOATING, "");
        port.common.project_id = String::new();
        port.fixed_ips = fixed_ips(tx, &outside, asked, &[]).await?;
        port.fixed_ips.retain(|(_, ip)| ip.is_ipv4());
        port.fixed_ips.truncate(1);
        let Some((_, address)) = port.fixed_ips.first().cloned() else {
            return Err(bad(
                "BadRequest",
                format!("Bad floatingip request: Network {id} does not contain any IPv4 subnet."),
            ));
        };
        let mut floating = Self {
            common: Common::new(project, "", text(body, "description").unwrap_or_default()),
            network_id: id.clone(),
            address,
            own_port: port.common.id.clone(),
            port_id: None,
            fixed_ip: None,
            router_id: None,
        };
        port.device_id.clone_from(&floating.common.id);
        save_port(tx, &port).await?;
        floating.associate(tx, caller, body).await?;
        save(tx, &floating).await?;
        Ok(floating)
    }

    async fn update(mut self, tx: &Tx, caller: &Caller, body: &Attributes) -> Result<Self, Fault> {
        if let Some(description) = text(body, "description") {
            description.clone_into(&mut self.common.description);
        }
        if body.contains_key("port_id") || body.contains_key("fixed_ip_address") {
            self.associate(tx, caller, body).await?;
        }
        self.common.changed();
        save(tx, &self).await?;
        Ok(self)
    }

    async fn remove(self, tx: &Tx) -> Result<(), Fault> {
        delete_port(tx, &self.own_port).await?;
        Ok(delete::<Self>(tx, &self.common.id).await?)
    }
}

impl Floating {
    async fn associate(&mut self, tx: &Tx, caller: &Caller, body: &Attributes) -> Result<(), Fault> {
        let Some(id) = text(body, "port_id") else {
            if body.contains_key("fixed_ip_address") && text(body, "fixed_ip_address").is_some() {
                return Err(bad(
                    "BadRequest",
                    "Bad floatingip request: fixed_ip_address cannot be specified without a port_id.",
                ));
            }
            (self.port_id, self.fixed_ip, self.router_id) = (None, None, None);
            return Ok(());
        };
        let port: Port = visible(tx, caller, id).await?;
        let asked =
            text(body, "fixed_ip_address").map(|text| address("fixed_ip_address", text)).transpose()?;
        let mut fixed =
            port.fixed_ips.iter().filter(|(_, ip)| ip.is_ipv4() && asked.is_none_or(|asked| asked == *ip));
        let Some((subnet, ip)) = fixed.next() else {
            let message = match asked {
                Some(asked) => format!("Bad floatingip request: Port {id} does not have fixed ip {asked}."),
                None => format!(
                    "Bad floatingip request: Cannot add floating IP to port {id} that has no fixed IPv4 addresses."
                ),
            };
            return Err(bad("BadRequest", message));
        };
        let taken = by::<Self>(tx, "port_id = ?", id).await?;
        if taken.iter().any(|there| there.fixed_ip == Some(*ip) && there.common.id != self.common.id) {
            return Err(conflict(
                "FloatingIPPortAlreadyAssociated",
                format!(
                    "Cannot associate floating IP {} ({}) with port {id} using fixed IP {ip}, as that fixed IP already has a floating IP on external network {}.",
                    self.address, self.common.id, self.network_id
                ),
            ));
        }
        self.router_id = Some(self.router(tx, subnet).await?.ok_or_else(|| {
            Fault::not_found(format!(
                "External network {} is not reachable from subnet {subnet}.  Therefore, cannot associate Port {id} with a Floating IP.",
                self.network_id
            ))
            .kind("ExternalGatewayForFloatingIPNotFound")
        })?);
        (self.port_id, self.fixed_ip) = (Some(id.to_owned()), Some(*ip));
        Ok(())
    }

    /// The router between a subnet and the external network.
    async fn router(&self, tx: &Tx, subnet: &str) -> Result<Option<String>, Fault> {
        let mut select = Where::new(Port::SELECT);
        select.and("device_owner = ?", [INTERFACE.into()]);
        select.and("id IN (SELECT port_id FROM network_addresses WHERE subnet_id = ?)", [subnet.into()]);
        for leg in all::<Port>(tx, select).await? {
            let router: Option<Router> = find(tx, &leg.device_id).await?;
            let fits = |router: &Router| {
                router.common.project_id == leg.common.project_id
                    && router.gateway.as_ref().is_some_and(|gateway| gateway.network_id == self.network_id)
            };
            if let Some(router) = router.filter(fits) {
                return Ok(Some(router.common.id));
            }
        }
        Ok(None)
    }
}
