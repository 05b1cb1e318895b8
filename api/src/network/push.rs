//! Makes `netd` have what the tables say. The wanted state of each network and router is computed whole from the
//! tables, and numbered anew only when it differs from what was last wanted, so that no rule has to know what a change
//! touches: a security group's member on another network, say.

use super::groups::protocol_number;
use super::records::{
    DHCP, Floating, GATEWAY, INTERFACE, Network, Port, Record, Router, Rule, Subnet, all, by, find,
};
use super::routers::device_ports;
use crate::app::{App, Shared};
use api_kit::Fault;
use base::args;
use base::store::{Query, StoreError, Tx, Where};
use ipnet::IpNet;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use wire::ids::{NetworkId, PortId, RouterId};
use wire::net::{
    Direction, EnsureNetwork, EnsureRouter, FilterRule, FloatingSpec, ForgetNetwork, ForgetRouter,
    ListWanted, NetworkSpec, NetworkState, PortRole, PortSpec, RouterGateway, RouterLeg, RouterSpec,
    SubnetSpec,
};
use wire::{Generation, RefusedKind};

const NETWORK: &str = "network";
const ROUTER: &str = "router";
/// Domain of names that DHCP and DNS hand out.
const DOMAIN: &str = "openstacklocal";

fn id<T: std::str::FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Shape(format!("'{text}' is not a UUID")))
}

/// Numbers a wanted state: the number in force when it is the same, else the next one.
async fn numbered<T: Serialize>(tx: &Tx, kind: &str, id: &str, spec: &T) -> Result<Generation, StoreError> {
    let text = serde_json::to_string(spec).map_err(|error| StoreError::Shape(error.to_string()))?;
    let row = tx
        .row("SELECT generation, spec FROM network_wanted WHERE kind = $1 AND id = $2", args![kind, id])
        .await?;
    let mut generation = 1;
    if let Some(row) = row {
        generation = row.int("generation")?;
        if row.text("spec")? == text {
            return Ok(Generation(u64::try_from(generation).unwrap_or_default()));
        }
        generation += 1;
    }
    tx.exec(
        "INSERT INTO network_wanted (kind, id, generation, spec) VALUES ($1, $2, $3, $4)
         ON CONFLICT (kind, id) DO UPDATE SET generation = excluded.generation, spec = excluded.spec",
        args![kind, id, generation, text],
    )
    .await?;
    Ok(Generation(u64::try_from(generation).unwrap_or_default()))
}

/// The wanted state of a network; `None` when it is gone.
async fn network_spec(tx: &Tx, network_id: &str) -> Result<Option<EnsureNetwork>, StoreError> {
    let Some(network) = find::<Network>(tx, network_id).await? else { return Ok(None) };
    let subnets: Vec<Subnet> = by(tx, "network_id = ?", network_id).await?;
    let ports: Vec<Port> = by(tx, "network_id = ?", network_id).await?;
    let groups: BTreeSet<&String> = ports.iter().flat_map(|port| &port.security_groups).collect();
    let filters = filters(tx, &groups).await?;
    let mut specs = Vec::new();
    for port in &ports {
        let role = match port.device_owner.as_str() {
            DHCP => PortRole::Dhcp,
            INTERFACE | GATEWAY => PortRole::Router,
            // A tap is made for who is bound to a host.
            _ if port.host.is_empty() => continue,
            _ => match port.server() {
                Some(server) => PortRole::Server { server },
                None => continue,
            },
        };
        let server = matches!(role, PortRole::Server { .. });
        let mut rules = Vec::new();
        for rule in port.security_groups.iter().filter_map(|group| filters.get(group)).flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        let addresses = port.fixed_ips.iter().map(|(subnet, ip)| Ok((id(subnet)?, *ip)));
        specs.push(PortSpec {
            id: id(&port.common.id)?,
            mac: port.mac,
            addresses: addresses.collect::<Result<_, StoreError>>()?,
            hostname: port.hostname.clone(),
            role,
            filter: (server && port.port_security).then_some(rules),
            allowed_pairs: port.allowed_pairs.clone(),
            admin_up: port.admin_state_up && network.admin_state_up,
        });
    }
    let subnets = subnets.iter().map(|subnet| {
        Ok(SubnetSpec {
            id: id(&subnet.common.id)?,
            cidr: subnet.cidr,
            gateway: subnet.gateway_ip,
            name_servers: subnet.dns_nameservers.clone(),
            routes: subnet.host_routes.clone(),
            dhcp: subnet.enable_dhcp,
        })
    });
    let spec = NetworkSpec {
        mtu: network.mtu,
        provider: network.provider.clone(),
        dns_domain: DOMAIN.to_owned(),
        subnets: subnets.collect::<Result<_, StoreError>>()?,
        ports: specs,
    };
    let generation = numbered(tx, NETWORK, network_id, &spec).await?;
    Ok(Some(EnsureNetwork { id: id(network_id)?, generation, spec }))
}

/// The flattened rules of groups.
async fn filters(
    tx: &Tx,
    groups: &BTreeSet<&String>,
) -> Result<HashMap<String, Vec<FilterRule>>, StoreError> {
    let mut select = Where::new(Rule::SELECT);
    select.and_in("group_id", groups.iter().map(|group| (*group).into()));
    select.end("ORDER BY created_at, id", []);
    let rules: Vec<Rule> = all(tx, select).await?;
    let mut members: HashMap<String, Vec<IpNet>> = HashMap::new();
    for group in rules.iter().filter_map(|rule| rule.remote_group.as_ref()) {
        if members.contains_key(group) {
            continue;
        }
        let mut select = Where::new(Port::SELECT);
        select.and("id IN (SELECT port_id FROM network_port_groups WHERE group_id = ?)", [group.into()]);
        let ports: Vec<Port> = all(tx, select).await?;
        let own = ports.iter().flat_map(|port| port.fixed_ips.iter().map(|(_, ip)| IpNet::from(*ip)));
        let pairs = ports.iter().flat_map(|port| port.allowed_pairs.iter().map(|(range, _)| *range));
        let mut ranges: Vec<IpNet> = own.chain(pairs).collect();
        ranges.sort();
        ranges.dedup();
        members.insert(group.clone(), ranges);
    }
    let mut out: HashMap<String, Vec<FilterRule>> = HashMap::new();
    for rule in &rules {
        let v6 = rule.ethertype == "IPv6";
        let remote = match (&rule.remote_group, rule.remote_ip) {
            (Some(group), _) => members.get(group).cloned().unwrap_or_default(),
            (None, Some(range)) => vec![range],
            (None, None) => Vec::new(),
        };
        let protocol = rule.protocol.as_deref().and_then(|name| protocol_number(name, v6));
        let icmp = matches!(protocol, Some(1 | 58));
        let ports = match (rule.port_min, rule.port_max) {
            (Some(low), high) => Some((low, if icmp { high } else { high.or(Some(low)) })),
            (None, _) => None,
        };
        out.entry(rule.group_id.clone()).or_default().push(FilterRule {
            direction: if rule.direction == "egress" { Direction::Egress } else { Direction::Ingress },
            v6,
            protocol,
            ports,
            remote,
            remote_only: rule.remote_group.is_some(),
        });
    }
    Ok(out)
}

async fn leg(tx: &Tx, port: &Port) -> Result<Option<RouterLeg>, StoreError> {
    let mut addresses = Vec::new();
    for (subnet, ip) in &port.fixed_ips {
        if let Some(subnet) = find::<Subnet>(tx, subnet).await? {
            addresses.extend(IpNet::new(*ip, subnet.cidr.prefix_len()).ok());
        }
    }
    Ok(Some(RouterLeg {
        port: id(&port.common.id)?,
        network: id(&port.network_id)?,
        mac: port.mac,
        addresses,
    }))
}

/// The wanted state of a router; `None` when it is gone.
async fn router_spec(tx: &Tx, router_id: &str) -> Result<Option<EnsureRouter>, Fault> {
    let Some(router) = find::<Router>(tx, router_id).await? else { return Ok(None) };
    let mut interfaces = Vec::new();
    for port in device_ports(tx, &router, INTERFACE).await? {
        interfaces.extend(leg(tx, &port).await?);
    }
    let mut gateway = None;
    if let Some(way) = &router.gateway
        && let Some(port) = find::<Port>(tx, &way.port_id).await?
        && let Some(leg) = leg(tx, &port).await?
    {
        let mut next_hop = None;
        for (subnet, ip) in port.fixed_ips.iter().filter(|(_, ip)| ip.is_ipv4()) {
            let subnet: Option<Subnet> = find(tx, subnet).await?;
            next_hop = next_hop.or(subnet.and_then(|subnet| subnet.gateway_ip).filter(|hop| hop != ip));
        }
        gateway = Some(RouterGateway { leg, next_hop, snat: way.enable_snat });
    }
    let mut floating = Vec::new();
    for item in by::<Floating>(tx, "router_id = ?", router_id).await? {
        if let Some(fixed) = item.fixed_ip {
            floating.push(FloatingSpec { id: id(&item.common.id)?, floating: item.address, fixed });
        }
    }
    let spec = RouterSpec {
        admin_up: router.admin_state_up,
        interfaces,
        gateway,
        floating,
        routes: router.routes.clone(),
    };
    let generation = numbered(tx, ROUTER, router_id, &spec).await?;
    Ok(Some(EnsureRouter { id: id(router_id)?, generation, spec }))
}

/// Makes one network so, and waits until the kernel has it. `None` when the network is gone. What was committed before the call is in.
///
/// # Errors
/// What `netd` refused.
pub async fn network(app: &App, network_id: &str) -> Result<Option<NetworkState>, Fault> {
    app.network_turns.take(network_id, || push_network(app, network_id)).await
}

async fn push_network(app: &App, network_id: &str) -> Result<Option<NetworkState>, Fault> {
    // Somebody else may push a newer state in between: then that one is asked for.
    for _ in 0..5 {
        let call = app.store.tx(|tx| async move { network_spec(&tx, network_id).await }).await?;
        let Some(call) = call else { return Ok(None) };
        match app.net.call(&call).await {
            Ok(state) => {
                active(app, network_id, &call.spec).await?;
                return Ok(Some(state));
            }
            Err(refused) if refused.kind == RefusedKind::Stale => {
                skip(app, NETWORK, network_id, call.generation).await?
            }
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Fault::unavailable("The network changes faster than it can be made. Try again."))
}

/// Makes one router so.
///
/// # Errors
/// What `netd` refused.
pub async fn router(app: &App, router_id: &str) -> Result<(), Fault> {
    for _ in 0..5 {
        let call = app.store.tx(|tx| async move { router_spec(&tx, router_id).await }).await?;
        let Some(call) = call else { return Ok(()) };
        match app.net.call(&call).await {
            Ok(()) => return Ok(()),
            Err(refused) if refused.kind == RefusedKind::Stale => {
                skip(app, ROUTER, router_id, call.generation).await?
            }
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Fault::unavailable("The router changes faster than it can be made. Try again."))
}

/// `netd` knows a higher number than the tables: they were restored from an older copy. Go past it.
async fn skip(app: &App, kind: &str, id: &str, refused: Generation) -> Result<(), Fault> {
    let wanted = app.net.call(&ListWanted {}).await?;
    let known = if kind == NETWORK {
        wanted.networks.iter().find(|(there, _)| there.to_string() == id).map(|(_, generation)| *generation)
    } else {
        wanted.routers.iter().find(|(there, _)| there.to_string() == id).map(|(_, generation)| *generation)
    };
    let beyond = known.unwrap_or(refused).0.max(refused.0).saturating_add(1);
    let beyond = i64::try_from(beyond).map_err(Fault::internal)?;
    app.store
        .tx(|tx| async move {
            tx.exec(
                "UPDATE network_wanted SET generation = $3 WHERE kind = $1 AND id = $2 AND generation < $3",
                args![kind, id, beyond],
            )
            .await
        })
        .await?;
    Ok(())
}

/// The service's own ports on a network work once it is made.
async fn active(app: &App, network_id: &str, spec: &NetworkSpec) -> Result<(), Fault> {
    if !spec.ports.iter().any(|port| matches!(port.role, PortRole::Dhcp | PortRole::Router)) {
        return Ok(());
    }
    let mut select = Where::new(Port::SELECT);
    select.and("network_id = ?", [network_id.into()]);
    select.and("device_owner LIKE 'network:%'", []);
    select.and("status = 'DOWN'", []);
    let down: Vec<Port> = all(&app.store, select).await?;
    for port in down {
        let port_id = &port.common.id;
        app.store
            .tx(|tx| async move {
                if let Some(mut port) = find::<Port>(&tx, port_id).await? {
                    "ACTIVE".clone_into(&mut port.status);
                    super::records::save(&tx, &port).await?;
                }
                Ok::<_, StoreError>(())
            })
            .await?;
    }
    Ok(())
}

/// Closes the gap between the tables and `netd`.
///
/// # Errors
/// The last trouble; the rest was done.
pub async fn settle(app: Shared) -> Result<(), Fault> {
    let wanted = app.net.call(&ListWanted {}).await?;
    let mut trouble = Ok(());
    let known_networks: BTreeMap<String, Generation> =
        wanted.networks.iter().map(|(id, generation)| (id.to_string(), *generation)).collect();
    let known_routers: BTreeMap<String, Generation> =
        wanted.routers.iter().map(|(id, generation)| (id.to_string(), *generation)).collect();
    let networks = ids(&app, "SELECT id FROM network_networks ORDER BY created_at, id").await?;
    for network_id in &networks {
        let call = app.store.tx(|tx| async move { network_spec(&tx, network_id).await }).await?;
        if call.is_some_and(|call| known_networks.get(network_id) != Some(&call.generation))
            && let Err(fault) = network(&app, network_id).await
        {
            trouble = Err(fault);
        }
    }
    let routers = ids(&app, "SELECT id FROM network_routers ORDER BY created_at, id").await?;
    for router_id in &routers {
        let call = app.store.tx(|tx| async move { router_spec(&tx, router_id).await }).await?;
        if call.is_some_and(|call| known_routers.get(router_id) != Some(&call.generation))
            && let Err(fault) = router(&app, router_id).await
        {
            trouble = Err(fault);
        }
    }
    let unknown_routers: Vec<_> =
        wanted.routers.into_iter().filter(|(id, _)| !routers.contains(&id.to_string())).collect();
    let unknown_networks: Vec<_> =
        wanted.networks.into_iter().filter(|(id, _)| !networks.contains(&id.to_string())).collect();
    if unknown_routers.is_empty() && unknown_networks.is_empty() {
        return trouble;
    }
    // A guest whose tap goes has no network until it is started again, so the wrong database must not get this far.
    crate::cloud::confirmed(&app).await?;
    for (router, generation) in unknown_routers {
        forget(&app, ROUTER, &router.to_string()).await?;
        let call =
            ForgetRouter { id: RouterId(router.0), generation: Generation(generation.0.saturating_add(1)) };
        trouble = trouble.and(app.net.call(&call).await.map_err(Fault::from));
    }
    for (network, generation) in unknown_networks {
        forget(&app, NETWORK, &network.to_string()).await?;
        let call = ForgetNetwork {
            id: NetworkId(network.0),
            generation: Generation(generation.0.saturating_add(1)),
        };
        trouble = trouble.and(app.net.call(&call).await.map_err(Fault::from));
    }
    trouble
}

async fn ids(app: &App, sql: &'static str) -> Result<Vec<String>, Fault> {
    app.store.rows(sql, args![]).await?.iter().map(|row| Ok(row.text("id")?)).collect()
}

async fn forget(app: &App, kind: &str, id: &str) -> Result<(), Fault> {
    let sql = "DELETE FROM network_wanted WHERE kind = $1 AND id = $2";
    app.store.tx(|tx| async move { tx.exec(sql, args![kind, id]).await }).await?;
    Ok(())
}

/// The port's id as the daemons write it.
///
/// # Errors
/// When it is no UUID.
pub fn port_id(port: &Port) -> Result<PortId, Fault> {
    Ok(id(&port.common.id)?)
}

/// The first IPv4 address of a port.
#[must_use]
pub fn first_v4(port: &Port) -> Option<IpAddr> {
    port.fixed_ips.iter().map(|(_, ip)| *ip).find(IpAddr::is_ipv4)
}
