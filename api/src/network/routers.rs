//! Routers and floating IPs.

use super::allocate::{blank_port, fixed_ips};
use super::input::{Attributes, address, bad, conflict, invalid, missing, routes, text, truth};
use super::networks::{network, overlap};
use super::records::{
    Common, FLOATING, Floating, GATEWAY, Gateway, INTERFACE, Network, Port, Record, Router, Subnet, all, by,
    delete, delete_port, find, save, save_port,
};
use super::resource::{Resource, admin_only, extend, view_of, visible};
use crate::app::App;
use api_kit::list::Match;
use api_kit::{Call, Caller, Dir, Fault, Filter, ListSpec, Outcome, Reply, SortKey, Target};
use base::store::{Query, Store, Tx, Where};
use serde_json::{Value, json};
use std::net::IpAddr;

static ROUTERS: ListSpec = ListSpec {
    table: "network_routers",
    key: "id",
    filters: &[
        Filter::new("id", "id", Match::Text),
        Filter::new("name", "name", Match::Text),
        Filter::new("description", "description", Match::Text),
        Filter::new("project_id", "project_id", Match::Text),
        Filter::new("tenant_id", "project_id", Match::Text),
        Filter::new("admin_state_up", "admin_state_up", Match::Truth),
        Filter::new("status", "'ACTIVE'", Match::Text),
        Filter::new("revision_number", "revision", Match::Int),
    ],
    sorts: &[
        SortKey { name: "name", column: "name" },
        SortKey { name: "project_id", column: "project_id" },
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "updated_at", column: "updated_at" },
    ],
    default_sort: &[("created_at", Dir::Asc)],
    max_limit: 10_000,
    zero_is_all: true,
};

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

/// Ports that are legs of a router, of one kind. What another project's port says of itself does not make it one: legs
/// inside belong to the router's project, those outside to nobody.
///
/// # Errors
/// When the store does not answer.
pub async fn device_ports(query: &impl Query, router: &Router, owner: &str) -> Result<Vec<Port>, Fault> {
    let project = if owner == GATEWAY { "" } else { router.common.project_id.as_str() };
    let mut select = Where::new(Port::SELECT);
    select.and("device_id = ?", [(&router.common.id).into()]);
    select.and("device_owner = ?", [owner.into()]);
    select.and("project_id = ?", [project.into()]);
    select.end("ORDER BY created_at, id", []);
    Ok(all(query, select).await?)
}

impl Resource for Router {
    const ONE: &'static str = "router";
    const MANY: &'static str = "routers";
    const MISSING: &'static str = "RouterNotFound";
    const LABEL: &'static str = "Router";
    const LIST: &'static ListSpec = &ROUTERS;

    async fn views(query: &Store, rows: Vec<Self>, _: &Caller) -> Result<Vec<Value>, Fault> {
        let mut views = Vec::new();
        for row in rows {
            let mut view = view_of(&row);
            let info = match &row.gateway {
                None => Value::Null,
                Some(gateway) => {
                    let port: Option<Port> = find(query, &gateway.port_id).await?;
                    let ips = port.map(|port| port.fixed_ips).unwrap_or_default();
                    let ips: Vec<Value> = ips
                        .iter()
                        .map(|(subnet, ip)| json!({"subnet_id": subnet, "ip_address": ip}))
                        .collect();
                    json!({"network_id": gateway.network_id, "enable_snat": gateway.enable_snat, "external_fixed_ips": ips})
                }
            };
            let routes: Vec<Value> =
                row.routes.iter().map(|(range, hop)| json!({"destination": range, "nexthop": hop})).collect();
            extend(
                &mut view,
                json!({"admin_state_up": row.admin_state_up, "status": "ACTIVE", "external_gateway_info": info,
                    "routes": routes}),
            );
            views.push(Value::Object(view));
        }
        Ok(views)
    }

    async fn create(tx: &Tx, caller: &Caller, project: &str, body: &Attributes) -> Result<Self, Fault> {
        let mut router = Self {
            common: Common::new(project, "", ""),
            admin_state_up: true,
            gateway: None,
            routes: Vec::new(),
        };
        router.apply(tx, caller, body, "create_router").await?;
        save(tx, &router).await?;
        Ok(router)
    }

    async fn update(mut self, tx: &Tx, caller: &Caller, body: &Attributes) -> Result<Self, Fault> {
        self.apply(tx, caller, body, "update_router").await?;
        self.common.changed();
        save(tx, &self).await?;
        Ok(self)
    }

    async fn remove(mut self, tx: &Tx) -> Result<(), Fault> {
        if !device_ports(tx, &self, INTERFACE).await?.is_empty() {
            return Err(conflict("RouterInUse", format!("Router {} still has ports", self.common.id)));
        }
        self.clear_gateway(tx).await?;
        Ok(delete::<Self>(tx, &self.common.id).await?)
    }
}

impl Router {
    async fn apply(&mut self, tx: &Tx, caller: &Caller, body: &Attributes, rule: &str) -> Result<(), Fault> {
        if let Some(name) = text(body, "name") {
            name.clone_into(&mut self.common.name);
        }
        if let Some(description) = text(body, "description") {
            description.clone_into(&mut self.common.description);
        }
        self.admin_state_up = truth(body, "admin_state_up").unwrap_or(self.admin_state_up);
        match body.get("external_gateway_info") {
            None => (),
            Some(Value::Object(info)) if !info.is_empty() => self.set_gateway(tx, caller, info, rule).await?,
            Some(_) => self.clear_gateway(tx).await?,
        }
        if let Some(routes) = routes(body, "routes")? {
            let subnets = self.subnets(tx).await?;
            for (range, hop) in &routes {
                if !subnets.iter().any(|subnet| subnet.cidr.contains(hop)) {
                    return Err(bad(
                        "InvalidRoutes",
                        format!(
                            "Invalid format for routes: {range} via {hop}, the nexthop is not connected with router"
                        ),
                    ));
                }
            }
            if routes.len() > 30 {
                return Err(bad(
                    "RoutesExhausted",
                    format!(
                        "Unable to complete operation for {}. The number of routes exceeds the maximum 30.",
                        self.common.id
                    ),
                ));
            }
            self.routes = routes;
        }
        Ok(())
    }

    /// The subnets that the router has a leg in.
    async fn subnets(&self, query: &impl Query) -> Result<Vec<Subnet>, Fault> {
        let mut ports = device_ports(query, self, INTERFACE).await?;
        ports.extend(device_ports(query, self, GATEWAY).await?);
        let mut subnets = Vec::new();
        for (id, _) in ports.iter().flat_map(|port| &port.fixed_ips) {
            subnets.extend(find::<Subnet>(query, id).await?);
        }
        Ok(subnets)
    }

    async fn set_gateway(
        &mut self,
        tx: &Tx,
        caller: &Caller,
        info: &Attributes,
        rule: &str,
    ) -> Result<(), Fault> {
        let id = text(info, "network_id")
            .ok_or_else(|| invalid("external_gateway_info", "a network_id is needed"))?;
        let asked =
            info.get("external_fixed_ips").and_then(Value::as_array).filter(|asked| !asked.is_empty());
        if asked.is_some() {
            admin_only(caller, &format!("{rule}:external_gateway_info:external_fixed_ips"))?;
        }
        let snat = match truth(info, "enable_snat") {
            Some(snat) => {
                if self.gateway.as_ref().is_none_or(|gateway| gateway.enable_snat != snat) && !snat {
                    admin_only(caller, &format!("{rule}:external_gateway_info:enable_snat"))?;
                }
                snat
            }
            None => self.gateway.as_ref().is_none_or(|gateway| gateway.enable_snat),
        };
        if let Some(gateway) = self.gateway.as_mut().filter(|gateway| gateway.network_id == id)
            && asked.is_none()
        {
            gateway.enable_snat = snat;
            return Ok(());
        }
        let outside: Network = visible(tx, caller, id).await?;
        if !outside.external {
            return Err(bad(
                "BadRequest",
                format!("Bad router request: Network {id} is not an external network."),
            ));
        }
        if let Some(gateway) = self.gateway.as_ref().filter(|gateway| gateway.network_id == id) {
            let mut port: Port = find(tx, &gateway.port_id)
                .await?
                .ok_or_else(|| missing("PortNotFound", "Port", &gateway.port_id))?;
            port.fixed_ips = fixed_ips(tx, &outside, asked, &port.fixed_ips).await?;
            save_port(tx, &port).await?;
        } else {
            self.clear_gateway(tx).await?;
            let mut port = blank_port(&outside, GATEWAY, &self.common.id);
            port.common.project_id = String::new();
            port.fixed_ips = fixed_ips(tx, &outside, asked, &[]).await?;
            if port.fixed_ips.is_empty() {
                return Err(bad(
                    "BadRequest",
                    format!("Bad router request: No IPs available for external network {id}."),
                ));
            }
            self.overlaps(tx, &port.fixed_ips).await?;
            save_port(tx, &port).await?;
            self.gateway =
                Some(Gateway { network_id: id.to_owned(), port_id: port.common.id, enable_snat: snat });
        }
        if let Some(gateway) = &mut self.gateway {
            gateway.enable_snat = snat;
        }
        Ok(())
    }

    async fn clear_gateway(&mut self, tx: &Tx) -> Result<(), Fault> {
        let Some(gateway) = &self.gateway else { return Ok(()) };
        if !by::<Floating>(tx, "router_id = ?", &self.common.id).await?.is_empty() {
            return Err(conflict(
                "RouterExternalGatewayInUseByFloatingIp",
                format!(
                    "Gateway cannot be updated for router {}, since a gateway to external network {} is required by one or more floating IPs.",
                    self.common.id, gateway.network_id
                ),
            ));
        }
        delete_port(tx, &gateway.port_id).await?;
        self.gateway = None;
        Ok(())
    }

    async fn overlaps(&self, tx: &Tx, ips: &[(String, IpAddr)]) -> Result<(), Fault> {
        let there = self.subnets(tx).await?;
        for (id, _) in ips {
            let Some(new) = find::<Subnet>(tx, id).await? else { continue };
            if there.iter().any(|old| old.common.id == new.common.id) {
                return Err(bad(
                    "BadRequest",
                    format!("Bad router request: Router already has a port on subnet {id}."),
                ));
            }
            if let Some(old) = there.iter().find(|old| overlap(&old.cidr, &new.cidr)) {
                return Err(bad(
                    "BadRequest",
                    format!(
                        "Bad router request: Cidr {} of subnet {id} overlaps with cidr {} of subnet {}.",
                        new.cidr, old.cidr, old.common.id
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// A router that the caller may change.
async fn own_router(call: &Call<App>, tx: &Tx) -> Result<Router, Fault> {
    let router: Router = visible(tx, &call.caller, call.path("id")).await?;
    call.enforce(&Target::project(router.common.project_id.clone()))?;
    Ok(router)
}

fn interface_view(router: &Router, port: &Port) -> Value {
    let subnets: Vec<&str> = port.fixed_ips.iter().map(|(subnet, _)| subnet.as_str()).collect();
    json!({"id": router.common.id, "tenant_id": router.common.project_id, "project_id": router.common.project_id,
        "port_id": port.common.id, "network_id": port.network_id, "subnet_id": subnets.first(), "subnet_ids": subnets})
}

/// `PUT /v2.0/routers/{id}/add_router_interface`
pub async fn add_interface(call: Call<App>) -> Outcome {
    let call = &call;
    let view = call.app.store.tx(|tx| async move { attach(call, &tx).await }).await?;
    call.app.wake.network.nudge();
    Ok(Reply::json(200, view))
}

async fn attach(call: &Call<App>, tx: &Tx) -> Result<Value, Fault> {
    let router = own_router(call, tx).await?;
    let asked = |key: &str| call.body.get(key).and_then(Value::as_str);
    let port = match (asked("port_id"), asked("subnet_id")) {
        (Some(_), Some(_)) => {
            return Err(bad("BadRequest", "Bad router request: Cannot specify both subnet-id and port-id."));
        }
        (None, None) => {
            return Err(bad(
                "BadRequest",
                "Bad router request: Either subnet_id or port_id must be specified.",
            ));
        }
        (Some(id), None) => {
            let mut port: Port = visible(tx, &call.caller, id).await?;
            // An administrator sees all ports, but a leg belongs to its router's project.
            if port.common.project_id != router.common.project_id {
                return Err(bad(
                    "BadRequest",
                    format!("Bad router request: Port {id} belongs to another project than the router."),
                ));
            }
            if !port.device_id.is_empty() && port.device_id != router.common.id {
                return Err(conflict(
                    "PortInUse",
                    format!(
                        "Unable to complete operation on port {id} for network {}. Port already has an attached device {}.",
                        port.network_id, port.device_id
                    ),
                ));
            }
            if port.fixed_ips.is_empty() {
                return Err(bad(
                    "BadRequest",
                    "Bad router request: Router port must have at least one fixed IP.",
                ));
            }
            router.overlaps(tx, &port.fixed_ips).await?;
            (port.device_id, port.device_owner) = (router.common.id.clone(), INTERFACE.to_owned());
            // A router carries others' addresses: no filter holds on its legs.
            port.port_security = false;
            port.security_groups.clear();
            port.allowed_pairs.clear();
            port.common.changed();
            port
        }
        (None, Some(id)) => {
            let subnet: Subnet = visible(tx, &call.caller, id).await?;
            return Ok(interface_view(&router, &join(tx, &router, &subnet).await?));
        }
    };
    save_port(tx, &port).await?;
    Ok(interface_view(&router, &port))
}

/// Gives a router the gateway address of a subnet.
///
/// # Errors
/// 400 when the subnet has none or overlaps with another of the router's; 409 when the address is taken.
pub async fn join(tx: &Tx, router: &Router, subnet: &Subnet) -> Result<Port, Fault> {
    let id = &subnet.common.id;
    let gateway = subnet.gateway_ip.ok_or_else(|| {
        bad(
            "BadRequest",
            format!("Bad router request: Subnet {id} must have a gateway IP for a router interface."),
        )
    })?;
    let inside = network(tx, &subnet.network_id).await?;
    let mut port = blank_port(&inside, INTERFACE, &router.common.id);
    port.common.project_id.clone_from(&router.common.project_id);
    router.overlaps(tx, &[(id.clone(), gateway)]).await?;
    let asked = vec![json!({"subnet_id": id, "ip_address": gateway})];
    port.fixed_ips = fixed_ips(tx, &inside, Some(&asked), &[]).await?;
    save_port(tx, &port).await?;
    Ok(port)
}

/// `PUT /v2.0/routers/{id}/remove_router_interface`
pub async fn remove_interface(call: Call<App>) -> Outcome {
    let call = &call;
    let view = call.app.store.tx(|tx| async move { detach(call, &tx).await }).await?;
    call.app.wake.network.nudge();
    Ok(Reply::json(200, view))
}

async fn detach(call: &Call<App>, tx: &Tx) -> Result<Value, Fault> {
    let router = own_router(call, tx).await?;
    let asked = |key: &str| call.body.get(key).and_then(Value::as_str);
    if asked("port_id").is_none() && asked("subnet_id").is_none() {
        return Err(bad("BadRequest", "Bad router request: Either subnet_id or port_id must be specified."));
    }
    let ports = device_ports(tx, &router, INTERFACE).await?;
    let port = ports.into_iter().find(|port| {
        asked("port_id").is_none_or(|id| id == port.common.id)
            && asked("subnet_id").is_none_or(|id| port.fixed_ips.iter().any(|(subnet, _)| subnet == id))
    });
    let Some(port) = port else {
        let (kind, what) = match asked("port_id") {
            Some(id) => (
                "RouterInterfaceNotFound",
                format!("Router {} does not have an interface with id {id}", router.common.id),
            ),
            None => (
                "RouterInterfaceNotFoundForSubnet",
                format!(
                    "Router {} has no interface on subnet {}",
                    router.common.id,
                    asked("subnet_id").unwrap_or_default()
                ),
            ),
        };
        return Err(Fault::not_found(what.chars().take(200).collect::<String>()).kind(kind));
    };
    for floating in by::<Floating>(tx, "router_id = ?", &router.common.id).await? {
        let Some(behind) = floating.port_id.as_deref() else { continue };
        let behind: Option<Port> = find(tx, behind).await?;
        let reached = behind.iter().flat_map(|port| &port.fixed_ips).any(|(subnet, ip)| {
            Some(*ip) == floating.fixed_ip && port.fixed_ips.iter().any(|(leg, _)| leg == subnet)
        });
        if reached {
            let subnet = port.fixed_ips.first().map(|(subnet, _)| subnet.as_str()).unwrap_or_default();
            return Err(conflict(
                "RouterInterfaceInUseByFloatingIP",
                format!(
                    "Router interface for subnet {subnet} on router {} cannot be deleted, as it is required by one or more floating IPs.",
                    router.common.id
                ),
            ));
        }
    }
    let mut by_route = false;
    for (subnet, _) in &port.fixed_ips {
        let subnet: Option<Subnet> = find(tx, subnet).await?;
        let reaches = |hop: &IpAddr| subnet.as_ref().is_some_and(|subnet| subnet.cidr.contains(hop));
        by_route |= router.routes.iter().any(|(_, hop)| reaches(hop));
    }
    if by_route {
        return Err(conflict(
            "RouterInterfaceInUseByRoute",
            format!(
                "A router interface of router {} cannot be deleted, as it is required by one or more routes.",
                router.common.id
            ),
        ));
    }
    delete_port(tx, &port.common.id).await?;
    Ok(interface_view(&router, &port))
}

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
