//! What other services ask of this one, in process. All of it may be repeated: tasks repeat their steps.

pub use super::first_steps::bootstrap;

use super::allocate::{blank_port, fixed_ips};
use super::groups::default_group;
use super::input::{bad, conflict, missing};
use super::networks::network as network_of;
use super::ports::forget;
use super::push;
use super::records::{Common, Floating, Group, Network, Port, Record, Subnet, all, find, save, save_port};
use crate::app::App;
use api_kit::{Caller, Fault};
use base::store::{Query, StoreError, Tx, Where};
use serde_json::json;
use std::collections::HashMap;
use std::net::IpAddr;
use wire::ids::{Mac, PortId, ServerId};

/// Device owner of servers' ports.
const OWNER: &str = "compute:nova";

/// One network interface that a server is to have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetRequest {
    /// On the project's only network.
    Auto,
    /// None at all.
    None,
    /// A new port on a network.
    Network {
        /// Which.
        network_id: String,
        /// Its address; `None`: any.
        fixed_ip: Option<IpAddr>,
    },
    /// A port that exists.
    Port {
        /// Which.
        port_id: String,
    },
}

/// A server's network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPort {
    /// The port.
    pub port: PortId,
    /// Its network.
    pub network_id: String,
    /// That network's name.
    pub network_name: String,
    /// Ethernet address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u16,
    /// Addresses, as (address, subnet).
    pub addresses: Vec<(IpAddr, String)>,
    /// Whether it was there before the server and stays after it.
    pub preexisting: bool,
    /// Floating IPs that lead to it, as (outside, inside).
    pub floating: Vec<(IpAddr, IpAddr)>,
    /// Ids of its security groups.
    pub security_groups: Vec<String>,
    /// `ACTIVE` or `DOWN`.
    pub status: String,
}

/// Networks on which a project's servers get ports when they name none.
async fn usable(query: &impl Query, project: &str) -> Result<Vec<Network>, StoreError> {
    let mut select = Where::new(Network::SELECT);
    select.and("(project_id = ? OR shared = 1)", [project.into()]);
    select.and("external = 0", []);
    select.end("ORDER BY created_at, id", []);
    all(query, select).await
}

/// What to make of [`NetRequest::Auto`]: the only network, none when there is none, 409 when there are several.
async fn automatic(query: &impl Query, project: &str) -> Result<Option<Network>, Fault> {
    let mut networks = usable(query, project).await?;
    if networks.len() > 1 {
        return Err(conflict(
            "NetworkAmbiguous",
            "Multiple possible networks found, use a Network ID to be more specific.",
        ));
    }
    Ok(networks.pop())
}

async fn usable_network(query: &impl Query, project: &str, admin: bool, id: &str) -> Result<Network, Fault> {
    let network: Option<Network> = find(query, id).await?;
    let fits = |network: &Network| admin || network.shared || network.common.project_id == project;
    network.filter(fits).ok_or_else(|| {
        let id: String = id.chars().take(64).collect();
        bad("NetworkNotFound", format!("Network {id} could not be found."))
    })
}

async fn claimable(
    query: &impl Query,
    project: &str,
    admin: bool,
    id: &str,
    server: Option<&str>,
) -> Result<Port, Fault> {
    let port: Option<Port> = find(query, id).await?;
    let port = port.filter(|port| admin || port.common.project_id == project).ok_or_else(|| {
        let id: String = id.chars().take(64).collect();
        bad("PortNotFound", format!("Port id {id} could not be found."))
    })?;
    if port.device_owner.starts_with("network:")
        || !(port.device_id.is_empty() || Some(port.device_id.as_str()) == server)
    {
        return Err(conflict("PortInUse", format!("Port {id} is still in use.")));
    }
    if port.fixed_ips.is_empty() {
        return Err(bad("PortRequiresFixedIP", format!("Port {id} requires a FixedIP in order to be used.")));
    }
    Ok(port)
}

/// Finds faults of requests before a server is promised.
///
/// # Errors
/// 400 and 409 in the words of compute.
pub async fn check_requests(app: &App, caller: &Caller, requests: &[NetRequest]) -> Result<(), Fault> {
    let project = caller.project_id.as_deref().unwrap_or_default();
    for request in requests {
        match request {
            NetRequest::None => (),
            NetRequest::Auto => {
                automatic(&app.store, project).await?;
            }
            NetRequest::Network { network_id, fixed_ip } => {
                let network = usable_network(&app.store, project, caller.is_admin, network_id).await?;
                let subnets: Vec<Subnet> =
                    super::records::by(&app.store, "network_id = ?", &network.common.id).await?;
                if subnets.is_empty() {
                    return Err(bad(
                        "NetworkRequiresSubnet",
                        format!("Network {network_id} requires a subnet in order to boot instances on."),
                    ));
                }
                let Some(ip) = fixed_ip else { continue };
                let Some(subnet) = subnets.iter().find(|subnet| subnet.cidr.contains(ip)) else {
                    return Err(bad(
                        "FixedIpNotValid",
                        format!("Fixed IP {ip} is not a valid ip address for network {network_id}."),
                    ));
                };
                if super::allocate::used(&app.store, &subnet.common.id).await?.contains(ip) {
                    return Err(bad(
                        "FixedIpAlreadyInUse",
                        format!("Fixed IP address {ip} is already in use on instance."),
                    ));
                }
            }
            NetRequest::Port { port_id } => {
                claimable(&app.store, project, caller.is_admin, port_id, None).await?;
            }
        }
    }
    Ok(())
}

/// Ids of a project's security groups by their names or ids; the default group when none is named.
///
/// # Errors
/// 400 naming the group that is not there, or whose name is there twice.
pub async fn security_groups(app: &App, project: &str, names: &[String]) -> Result<Vec<String>, Fault> {
    app.store.tx(|tx| async move { groups(&tx, project, names).await }).await
}

async fn groups(tx: &Tx, project: &str, names: &[String]) -> Result<Vec<String>, Fault> {
    let default = default_group(tx, project).await?;
    let mut out = Vec::new();
    for name in names {
        let mut select = Where::new(Group::SELECT);
        select.and("project_id = ?", [project.into()]);
        select.and("(id = ? OR name = ?)", [name.into(), name.into()]);
        let found: Vec<Group> = all(tx, select).await?;
        let id = match found.as_slice() {
            [group] => group.common.id.clone(),
            [] => {
                let name: String = name.chars().take(64).collect();
                return Err(bad("SecurityGroupNotFound", format!("Security group {name} not found.")));
            }
            [..] => {
                return Err(conflict(
                    "NoUniqueMatch",
                    format!(
                        "Multiple security groups found matching '{name}'. Use an ID to be more specific."
                    ),
                ));
            }
        };
        if !out.contains(&id) {
            out.push(id);
        }
    }
    if out.is_empty() {
        out.push(default);
    }
    Ok(out)
}

/// Makes or claims the ports of a server, once for each request.
///
/// # Errors
/// 400 and 409 in the words of compute and network.
pub async fn allocate(
    app: &App,
    project_id: &str,
    server: ServerId,
    requests: &[NetRequest],
    security_groups: &[String],
    hostname: &str,
    host: &str,
) -> Result<Vec<ServerPort>, Fault> {
    let device = &server.to_string();
    app.store
        .tx(|tx| async move {
            let groups = groups(&tx, project_id, security_groups).await?;
            for (index, request) in requests.iter().enumerate() {
                take(&tx, project_id, device, (index, request), &groups, hostname, host).await?;
            }
            Ok::<_, Fault>(())
        })
        .await?;
    app.wake.network.nudge();
    Ok(of_servers(app, &[server]).await?.remove(&server).unwrap_or_default())
}

/// One request of a server. What was done for it before is left as it is.
async fn take(
    tx: &Tx,
    project: &str,
    device: &str,
    (index, request): (usize, &NetRequest),
    groups: &[String],
    hostname: &str,
    host: &str,
) -> Result<Option<String>, Fault> {
    let have = ports_of(tx, device).await?;
    if let Some(port) = have.iter().find(|port| port.request == Some(index)) {
        return Ok(Some(port.common.id.clone()));
    }
    let (network, ip) = match request {
        NetRequest::None => return Ok(None),
        NetRequest::Auto => match automatic(tx, project).await? {
            Some(network) => (network, None),
            None => return Ok(None),
        },
        NetRequest::Network { network_id, fixed_ip } => (network_of(tx, network_id).await?, *fixed_ip),
        NetRequest::Port { port_id } => {
            let mut port = claimable(tx, project, true, port_id, Some(device)).await?;
            bind(&mut port, device, index, hostname, host);
            port.preexisting = true;
            port.common.changed();
            save_port(tx, &port).await?;
            return Ok(Some(port.common.id));
        }
    };
    super::quotas::check::<Port>(tx, project).await?;
    let mut port = blank_port(&network, OWNER, device);
    port.common = Common::new(project, "", "");
    bind(&mut port, device, index, hostname, host);
    port.port_security = network.port_security;
    if port.port_security {
        port.security_groups = groups.to_vec();
    }
    let asked = ip.map(|ip| vec![json!({"ip_address": ip})]);
    port.fixed_ips = fixed_ips(tx, &network, asked.as_ref(), &[]).await?;
    if port.fixed_ips.is_empty() {
        return Err(bad(
            "NetworkRequiresSubnet",
            format!("Network {} requires a subnet in order to boot instances on.", network.common.id),
        ));
    }
    save_port(tx, &port).await?;
    Ok(Some(port.common.id))
}

fn bind(port: &mut Port, device: &str, index: usize, hostname: &str, host: &str) {
    device.clone_into(&mut port.device_id);
    OWNER.clone_into(&mut port.device_owner);
    host.clone_into(&mut port.host);
    port.hostname = label(hostname);
    port.request = Some(index);
}

/// A host name from a server's name: letters, digits and hyphens, at most 63.
fn label(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = name.chars().filter(|c| !c.is_whitespace() || *c == ' ').map(plain).take(63).collect();
    text.trim_matches('-').to_owned()
}

async fn ports_of(query: &impl Query, device: &str) -> Result<Vec<Port>, StoreError> {
    let mut select = Where::new(Port::SELECT);
    select.and("device_id = ?", [device.into()]);
    let mut ports: Vec<Port> = all(query, select).await?;
    ports.retain(|port| port.server().is_some());
    ports.sort_by_key(|port| port.request);
    Ok(ports)
}

/// Waits until a port's tap exists and is filtered on its host. The port is ACTIVE then.
///
/// # Errors
/// 404 when the port is gone; what `netd` refused.
pub async fn wire(app: &App, port: PortId) -> Result<(), Fault> {
    let id = &port.to_string();
    let gone = || missing("PortNotFound", "Port", id);
    let row: Port = find(&app.store, id).await?.ok_or_else(gone)?;
    let state = push::network(app, &row.network_id).await?.ok_or_else(gone)?;
    if let Some((_, why)) = state.failed.iter().find(|(failed, _)| *failed == port) {
        return Err(Fault::unavailable(format!("Port {id} could not be plugged in: {why}.")));
    }
    if !state.ready.contains(&port) {
        return Err(conflict(
            "PortBindingFailed",
            format!("Binding failed for port {id}: it is not bound to this host."),
        ));
    }
    set_status(app, id, "ACTIVE").await
}

async fn set_status(app: &App, id: &str, status: &str) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            if let Some(mut port) = find::<Port>(&tx, id).await?.filter(|port| port.status != status) {
                status.clone_into(&mut port.status);
                port.common.changed();
                save(&tx, &port).await?;
            }
            Ok::<_, Fault>(())
        })
        .await
}

async fn let_go(tx: &Tx, mut port: Port) -> Result<(), Fault> {
    if !port.preexisting {
        return forget(tx, &port.common.id).await;
    }
    port.device_id.clear();
    port.device_owner.clear();
    port.host.clear();
    port.hostname.clear();
    "DOWN".clone_into(&mut port.status);
    (port.request, port.preexisting) = (None, false);
    port.common.changed();
    Ok(save_port(tx, &port).await?)
}

/// Lets go of all ports of a server: those made for it are deleted. Harmless when there are none.
///
/// # Errors
/// When the store does not answer.
pub async fn release(app: &App, server: ServerId) -> Result<(), Fault> {
    app.store.tx(|tx| async move { release_in(&tx, server).await }).await?;
    app.wake.network.nudge();
    Ok(())
}

/// [`release`] in the caller's transaction; how many ports it were. Nudge [`crate::app::Wake::network`] after the commit.
///
/// # Errors
/// When the store does not answer.
pub async fn release_in(tx: &Tx, server: ServerId) -> Result<usize, Fault> {
    let ports = ports_of(tx, &server.to_string()).await?;
    let count = ports.len();
    for port in ports {
        let_go(tx, port).await?;
    }
    Ok(count)
}

/// The servers that have ports.
///
/// # Errors
/// When the store does not answer.
pub async fn servers_with_ports(query: &impl Query) -> Result<Vec<ServerId>, StoreError> {
    let mut select = Where::new(Port::SELECT);
    select.and("device_owner = ?", [OWNER.into()]);
    let ports: Vec<Port> = all(query, select).await?;
    let servers: std::collections::BTreeSet<ServerId> = ports.iter().filter_map(Port::server).collect();
    Ok(servers.into_iter().collect())
}

/// Adds one interface to a server, in the transaction that writes the work on it: either both are there or neither. Nudge
/// [`crate::app::Wake::network`] after the commit.
///
/// # Errors
/// As [`allocate`].
pub async fn attach_one(
    tx: &Tx,
    project_id: &str,
    server: ServerId,
    request: &NetRequest,
    security_groups: &[String],
    hostname: &str,
    host: &str,
) -> Result<Option<ServerPort>, Fault> {
    let device = &server.to_string();
    let groups = groups(tx, project_id, security_groups).await?;
    // Requests are numbered by server; the ones of its creation are below those that have a port.
    let number =
        ports_of(tx, device).await?.iter().filter_map(|port| port.request).max().map_or(0, |last| last + 1);
    let id = take(tx, project_id, device, (number, request), &groups, hostname, host).await?;
    let ports = read_ports(tx, &[server]).await?.remove(&server).unwrap_or_default();
    Ok(ports.into_iter().find(|port| Some(port.port.to_string()) == id))
}

/// Takes one interface from a server. Harmless when it has none such.
///
/// # Errors
/// When the store does not answer.
pub async fn detach_one(app: &App, server: ServerId, port: PortId) -> Result<(), Fault> {
    let (device, id) = (&server.to_string(), &port.to_string());
    app.store
        .tx(|tx| async move {
            let mine = ports_of(&tx, device).await?.into_iter().find(|port| port.common.id == *id);
            match mine {
                Some(port) => let_go(&tx, port).await,
                None => Ok(()),
            }
        })
        .await?;
    app.wake.network.nudge();
    Ok(())
}

/// Sets a port's status when its server was stopped or started.
///
/// # Errors
/// When the store does not answer.
pub async fn set_up(app: &App, server: ServerId, up: bool) -> Result<(), Fault> {
    for port in ports_of(&app.store, &server.to_string()).await? {
        set_status(app, &port.common.id, if up { "ACTIVE" } else { "DOWN" }).await?;
    }
    Ok(())
}

/// Adds a security group to, or takes it from, all ports of a server.
///
/// # Errors
/// 400 when the project has no such group.
pub async fn change_group(
    app: &App,
    project: &str,
    server: ServerId,
    name: &str,
    add: bool,
) -> Result<(), Fault> {
    let (device, names) = (&server.to_string(), &[name.to_owned()]);
    app.store
        .tx(|tx| async move {
            let group = groups(&tx, project, names).await?.remove(0);
            for mut port in ports_of(&tx, device).await?.into_iter().filter(|port| port.port_security) {
                port.security_groups.retain(|there| *there != group);
                if add {
                    port.security_groups.push(group.clone());
                }
                port.common.changed();
                save_port(&tx, &port).await?;
            }
            Ok::<_, Fault>(())
        })
        .await?;
    app.wake.network.nudge();
    Ok(())
}

/// The interfaces of servers, in the order of their requests.
///
/// # Errors
/// When the store does not answer.
pub async fn of_servers(
    app: &App,
    servers: &[ServerId],
) -> Result<HashMap<ServerId, Vec<ServerPort>>, Fault> {
    read_ports(&app.store, servers).await
}

async fn read_ports(
    query: &impl Query,
    servers: &[ServerId],
) -> Result<HashMap<ServerId, Vec<ServerPort>>, Fault> {
    let mut select = Where::new(Port::SELECT);
    select.and_in("device_id", servers.iter().map(|server| (*server).into()));
    let mut ports: Vec<Port> = all(query, select).await?;
    ports.sort_by_key(|port| port.request);
    let mut select = Where::new(Network::SELECT);
    select.and_in("id", ports.iter().map(|port| (&port.network_id).into()));
    let networks: Vec<Network> = all(query, select).await?;
    let mut select = Where::new(Floating::SELECT);
    select.and_in("port_id", ports.iter().map(|port| (&port.common.id).into()));
    let floating: Vec<Floating> = all(query, select).await?;
    let mut out: HashMap<ServerId, Vec<ServerPort>> = HashMap::new();
    for port in ports {
        let (Some(server), Some(network)) =
            (port.server(), networks.iter().find(|network| network.common.id == port.network_id))
        else {
            continue;
        };
        let mine = floating.iter().filter(|item| item.port_id.as_ref() == Some(&port.common.id));
        out.entry(server).or_default().push(ServerPort {
            port: push::port_id(&port)?,
            network_id: port.network_id.clone(),
            network_name: network.common.name.clone(),
            mac: port.mac,
            mtu: network.mtu,
            addresses: port.fixed_ips.iter().map(|(subnet, ip)| (*ip, subnet.clone())).collect(),
            preexisting: port.preexisting,
            floating: mine.filter_map(|item| Some((item.address, item.fixed_ip?))).collect(),
            security_groups: port.security_groups.clone(),
            status: port.status.clone(),
        });
    }
    Ok(out)
}

/// Subnets by their ids, for compute's network data: (id, range, gateway, name servers, routes).
///
/// # Errors
/// When the store does not answer.
pub async fn subnets(app: &App, ids: &[String]) -> Result<Vec<SubnetInfo>, Fault> {
    let mut select = Where::new(Subnet::SELECT);
    select.and_in("id", ids.iter().map(Into::into));
    let subnets: Vec<Subnet> = all(&app.store, select).await?;
    Ok(subnets
        .into_iter()
        .map(|subnet| SubnetInfo {
            id: subnet.common.id,
            cidr: subnet.cidr,
            gateway: subnet.gateway_ip,
            dns: subnet.dns_nameservers,
            dhcp: subnet.enable_dhcp,
        })
        .collect())
}

/// What a guest must know of a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetInfo {
    /// Which.
    pub id: String,
    /// Its range.
    pub cidr: ipnet::IpNet,
    /// Its default gateway.
    pub gateway: Option<IpAddr>,
    /// Its name servers.
    pub dns: Vec<IpAddr>,
    /// Whether DHCP answers on it.
    pub dhcp: bool,
}
