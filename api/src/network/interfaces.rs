//! A router's legs into its networks.

use super::allocate::{blank_port, fixed_ips};
use super::input::{bad, conflict};
use super::networks::network;
use super::records::{Floating, GATEWAY, INTERFACE, Port, Router, Subnet, by, delete_port, find, save_port};
use super::resource::visible;
use super::routers::device_ports;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::store::Tx;
use serde_json::{Value, json};
use std::net::IpAddr;

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
            router.overlaps(tx, &port.fixed_ips, None).await?;
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
            // Being shared lets others have ports on it, not be its gateway.
            let own = Some(&subnet.common.project_id) == call.caller.project_id.as_ref();
            if !own && !call.caller.is_admin {
                return Err(bad(
                    "BadRequest",
                    format!(
                        "Bad router request: Cannot add interface to router because subnet {id} is not owned by project making the request."
                    ),
                ));
            }
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
    router.overlaps(tx, &[(id.clone(), gateway)], None).await?;
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
    needed(tx, &router, &port.fixed_ips).await?;
    delete_port(tx, &port.common.id).await?;
    Ok(interface_view(&router, &port))
}

/// Refuses to take a router's leg from these subnets while a floating IP or a route goes through it.
async fn needed(tx: &Tx, router: &Router, gone: &[(String, IpAddr)]) -> Result<(), Fault> {
    for floating in by::<Floating>(tx, "router_id = ?", &router.common.id).await? {
        let Some(behind) = floating.port_id.as_deref() else { continue };
        let behind: Option<Port> = find(tx, behind).await?;
        let reached = behind
            .iter()
            .flat_map(|port| &port.fixed_ips)
            .any(|(subnet, ip)| Some(*ip) == floating.fixed_ip && gone.iter().any(|(leg, _)| leg == subnet));
        if reached {
            let subnet = gone.first().map(|(subnet, _)| subnet.as_str()).unwrap_or_default();
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
    for (subnet, _) in gone {
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
    Ok(())
}

/// Checks new addresses of a port that may be a router's leg, which had those `before`: what attaching and detaching it
/// would refuse, changing it must refuse too.
///
/// # Errors
/// 400 when the router's subnets would overlap or the leg would have no address, 409 when a subnet is still needed.
pub async fn check_leg(tx: &Tx, port: &Port, before: &[(String, IpAddr)]) -> Result<(), Fault> {
    if ![INTERFACE, GATEWAY].contains(&port.device_owner.as_str()) {
        return Ok(());
    }
    let Some(router) = find::<Router>(tx, &port.device_id).await? else { return Ok(()) };
    if port.fixed_ips.is_empty() {
        return Err(bad("BadRequest", "Bad router request: Router port must have at least one fixed IP."));
    }
    router.overlaps(tx, &port.fixed_ips, Some(&port.common.id)).await?;
    let stays = |subnet: &String| port.fixed_ips.iter().any(|(there, _)| there == subnet);
    let gone: Vec<_> = before.iter().filter(|(subnet, _)| !stays(subnet)).cloned().collect();
    needed(tx, &router, &gone).await
}
