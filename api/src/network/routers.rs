//! Routers.

use super::allocate::{blank_port, fixed_ips};
use super::input::{Attributes, bad, conflict, invalid, missing, routes, text, truth};
use super::networks::overlap;
use super::records::{
    Common, Floating, GATEWAY, Gateway, INTERFACE, Network, Port, Record, Router, Subnet, all, by, delete,
    delete_port, find, save, save_port,
};
use super::resource::{Resource, admin_only, extend, view_of, visible};
use api_kit::list::Match;
use api_kit::{Caller, Dir, Fault, Filter, ListSpec, SortKey};
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
            let subnets = self.subnets(tx, None).await?;
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

    /// The subnets that the router has a leg in, `but` for this port.
    async fn subnets(&self, query: &impl Query, but: Option<&str>) -> Result<Vec<Subnet>, Fault> {
        let mut ports = device_ports(query, self, INTERFACE).await?;
        ports.extend(device_ports(query, self, GATEWAY).await?);
        ports.retain(|port| but != Some(port.common.id.as_str()));
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
            self.overlaps(tx, &port.fixed_ips, Some(&port.common.id)).await?;
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
            self.overlaps(tx, &port.fixed_ips, None).await?;
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

    /// Refuses addresses for a leg whose subnets meet those of the router's others; `leg` is the one they are for.
    ///
    /// # Errors
    /// 400 in the words of upstream.
    pub async fn overlaps(&self, tx: &Tx, ips: &[(String, IpAddr)], leg: Option<&str>) -> Result<(), Fault> {
        let there = self.subnets(tx, leg).await?;
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
