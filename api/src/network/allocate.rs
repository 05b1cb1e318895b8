//! Addresses: which are free, which a request may have.

use super::input::{Attributes, address, bad, conflict, invalid, missing};
use super::records::{DHCP, Network, Port, Subnet, by, find, save_port};
use api_kit::Fault;
use base::args;
use base::store::{Query, Tx};
use serde_json::Value;
use std::collections::HashSet;
use std::net::IpAddr;
use wire::ids::Mac;

/// Longest search for a free address; a subnet with more in use is as good as full.
const SEARCH: u128 = 1 << 20;

/// An address as a number of its own version.
#[must_use]
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The other way round, of the version of `like`; `None` past its end.
#[must_use]
pub fn from_number(number: u128, like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => u32::try_from(number).ok().map(|number| IpAddr::V4(number.into())),
        IpAddr::V6(_) => Some(IpAddr::V6(number.into())),
    }
}

/// Addresses of a subnet that ports have.
///
/// # Errors
/// When the store does not answer.
pub async fn used(query: &impl Query, subnet: &str) -> Result<HashSet<IpAddr>, Fault> {
    let rows = query.rows("SELECT ip FROM network_addresses WHERE subnet_id = $1", args![subnet]).await?;
    rows.iter().map(|row| Ok(row.parse("ip")?)).collect()
}

/// The first free address of a subnet's pools.
async fn free(tx: &Tx, subnet: &Subnet) -> Result<Option<IpAddr>, Fault> {
    let used = used(tx, &subnet.common.id).await?;
    for (first, last) in &subnet.pools {
        let (low, high) = (number(*first), number(*last));
        for candidate in low..=high.min(low.saturating_add(SEARCH)) {
            let Some(ip) = from_number(candidate, *first) else { break };
            if !used.contains(&ip) && subnet.gateway_ip != Some(ip) {
                return Ok(Some(ip));
            }
        }
    }
    Ok(None)
}

fn exhausted(network: &str) -> Fault {
    conflict("IpAddressGenerationFailure", format!("No more IP addresses available on network {network}."))
}

/// The addresses of a port: those that were asked for, or one of each IP version that the network has.
///
/// # Errors
/// 400 and 409 in the words of upstream.
pub async fn fixed_ips(
    tx: &Tx,
    network: &Network,
    asked: Option<&Vec<Value>>,
    keep: &[(String, IpAddr)],
) -> Result<Vec<(String, IpAddr)>, Fault> {
    let network_id = &network.common.id;
    let subnets: Vec<Subnet> = by(tx, "network_id = ?", network_id).await?;
    let mut out: Vec<(String, IpAddr)> = Vec::new();
    let Some(asked) = asked else {
        for version in [4, 6] {
            let mut full = false;
            for subnet in subnets.iter().filter(|subnet| subnet.ip_version() == version) {
                full = true;
                if let Some(ip) = free(tx, subnet).await? {
                    out.push((subnet.common.id.clone(), ip));
                    full = false;
                    break;
                }
            }
            if full {
                return Err(exhausted(network_id));
            }
        }
        return Ok(out);
    };
    for item in asked {
        let part = |name: &str| item.get(name).and_then(Value::as_str);
        let subnet = match part("subnet_id") {
            None => None,
            Some(id) => {
                let known = subnets.iter().find(|subnet| subnet.common.id == id);
                if known.is_none() && find::<Subnet>(tx, id).await?.is_some() {
                    let message = format!(
                        "Failed to create port on network {network_id}, because fixed_ips included invalid subnet {id}."
                    );
                    return Err(bad("InvalidIpForNetwork", message));
                }
                Some(known.ok_or_else(|| missing("SubnetNotFound", "Subnet", id))?)
            }
        };
        let chosen = match (part("ip_address"), subnet) {
            (Some(text), subnet) => {
                let ip = address("fixed_ips", text)?;
                let inside = |subnet: &&Subnet| subnet.cidr.contains(&ip);
                let subnet = subnet.or_else(|| subnets.iter().find(inside)).filter(inside).ok_or_else(|| {
                    bad("InvalidIpForSubnet", format!("IP address {ip} is not a valid IP for any of the subnets on the specified network."))
                })?;
                let edge = ip.is_ipv4()
                    && subnet.cidr.prefix_len() < 31
                    && (ip == subnet.cidr.network() || ip == subnet.cidr.broadcast());
                if edge {
                    return Err(bad(
                        "InvalidIpForSubnet",
                        format!("IP address {ip} is not a valid IP for the specified subnet."),
                    ));
                }
                let own = keep.iter().any(|(_, there)| *there == ip);
                if !own && used(tx, &subnet.common.id).await?.contains(&ip) {
                    let message = format!("IP address {ip} already allocated in subnet {}", subnet.common.id);
                    return Err(conflict("IpAddressAlreadyAllocated", message));
                }
                (subnet.common.id.clone(), ip)
            }
            (None, Some(subnet)) => {
                let kept = keep.iter().find(|(id, _)| *id == subnet.common.id);
                match kept {
                    Some(kept) => kept.clone(),
                    None => (
                        subnet.common.id.clone(),
                        free(tx, subnet).await?.ok_or_else(|| exhausted(network_id))?,
                    ),
                }
            }
            (None, None) => return Err(invalid("fixed_ips", "a subnet_id or an ip_address is needed")),
        };
        if out.contains(&chosen) {
            return Err(invalid("fixed_ips", format!("Duplicate IP address '{}'", chosen.1)));
        }
        out.push(chosen);
    }
    Ok(out)
}

/// A new Ethernet address under upstream's prefix.
#[must_use]
pub fn new_mac() -> Mac {
    let [a, b, c, ..] = uuid::Uuid::new_v4().into_bytes();
    Mac([0xfa, 0x16, 0x3e, a, b, c])
}

/// Makes the network's DHCP port have an address on each subnet with DHCP; takes it away when there is none.
///
/// # Errors
/// 409 when a subnet has no address left.
pub async fn settle_dhcp(tx: &Tx, network_id: &str) -> Result<(), Fault> {
    let subnets: Vec<Subnet> = by(tx, "network_id = ?", network_id).await?;
    let ports: Vec<Port> = by(tx, "network_id = ?", network_id).await?;
    let old = ports.into_iter().find(|port| port.device_owner == DHCP);
    let mut addresses = Vec::new();
    for subnet in subnets.iter().filter(|subnet| subnet.enable_dhcp && subnet.ip_version() == 4) {
        let kept =
            old.iter().flat_map(|port| &port.fixed_ips).find(|(id, _)| *id == subnet.common.id).cloned();
        addresses.push(match kept {
            Some(kept) => kept,
            None => {
                let ip = free(tx, subnet).await?.ok_or_else(|| exhausted(network_id))?;
                (subnet.common.id.clone(), ip)
            }
        });
    }
    match old {
        Some(old) if addresses.is_empty() => super::records::delete_port(tx, &old.common.id).await?,
        Some(old) if old.fixed_ips == addresses => (),
        Some(mut old) => {
            old.fixed_ips = addresses;
            old.common.changed();
            save_port(tx, &old).await?;
        }
        None if addresses.is_empty() => (),
        None => {
            let Some(network) = find::<Network>(tx, network_id).await? else { return Ok(()) };
            let mut port = blank_port(&network, DHCP, &format!("dhcp-{network_id}"));
            port.fixed_ips = addresses;
            save_port(tx, &port).await?;
        }
    }
    Ok(())
}

/// A port of the service's own: no project's filter holds on it.
#[must_use]
pub fn blank_port(network: &Network, owner: &str, device: &str) -> Port {
    Port {
        common: super::records::Common::new(&network.common.project_id, "", ""),
        network_id: network.common.id.clone(),
        mac: new_mac(),
        admin_state_up: true,
        device_id: device.to_owned(),
        device_owner: owner.to_owned(),
        fixed_ips: Vec::new(),
        security_groups: Vec::new(),
        allowed_pairs: Vec::new(),
        port_security: false,
        host: String::new(),
        status: if owner == FLOATING_OWNER { "N/A" } else { "DOWN" }.to_owned(),
        hostname: String::new(),
        request: None,
        preexisting: false,
    }
}

const FLOATING_OWNER: &str = super::records::FLOATING;

/// `fixed_ips` of a request.
#[must_use]
pub fn asked(body: &Attributes) -> Option<&Vec<Value>> {
    body.get("fixed_ips").and_then(Value::as_array)
}
