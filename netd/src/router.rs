//! Makes the kernel have one router as it should be.

use crate::config::Config;
use crate::fault::{Fault, Steps};
use crate::filter;
use crate::link::{Batch, Device, Place, ROUTE_PROTOCOL, devices, namespace, routes};
use crate::names;
use crate::network::{Layout, addresses, announce, empty_namespace};
use std::net::{IpAddr, Ipv4Addr};
use wire::Refused;
use wire::ids::{NetworkId, RouterId};
use wire::net::{NetworkSpec, RouterLeg, RouterSpec};

/// Closes the gap between the kernel and the wanted state of one router.
///
/// # Errors
/// The first change that failed; `Unmet` when a network that it needs is not known.
pub fn settle<'a>(
    config: &Config,
    id: RouterId,
    spec: &RouterSpec,
    network: impl Fn(NetworkId) -> Option<&'a NetworkSpec>,
    steps: &Steps,
) -> Result<(), Fault> {
    let mut legs = Vec::new();
    for leg in spec.interfaces.iter().chain(spec.gateway.as_ref().map(|gateway| &gateway.leg)) {
        let Some(network) = network(leg.network) else {
            let message =
                format!("router {id} has a leg into network {}, which is not known here", leg.network);
            return Err(Fault::Unmet(Refused::conflict(message).remedy("ensure the network first")));
        };
        legs.push((leg, network, Layout::of(config, leg.network, network).map_err(Fault::Unmet)?));
    }
    let name = config.instance.router_namespace(id);
    let place = Place::Namespace(name.clone());
    namespace::ensure(&name, steps)?;
    let mut have = devices(&place)?;

    let mut batch = Batch::new(&place);
    for device in have.iter().filter(|device| device.ifname.starts_with('q')) {
        if legs.iter().all(|(leg, _, _)| names::router_leg(leg.port) != device.ifname) {
            batch.add(format!("link del dev {}", device.ifname));
        }
    }
    batch.run(steps)?;
    // Before the first leg is up: nothing of a tenant leaves under its own address.
    filter::apply(&place, &[filter::router::table(spec)], steps)?;

    for (leg, network, layout) in &legs {
        join(&name, leg, network.mtu, layout, &mut have, steps)?;
    }
    let mut fresh = Vec::new();
    let mut batch = Batch::new(&place);
    for (leg, network, _) in &legs {
        let device_name = names::router_leg(leg.port);
        let device = have.iter().find(|device| device.ifname == device_name);
        let wanted = leg_addresses(spec, leg);
        fresh.extend(new_addresses(device, &wanted).map(|address| (device_name.clone(), leg.mac, address)));
        if device.is_none_or(|device| !device.has_mac(leg.mac)) {
            batch.add(format!("link set dev {device_name} address {}", leg.mac));
        }
        if device.is_none_or(|device| device.mtu != u32::from(network.mtu)) {
            batch.add(format!("link set dev {device_name} mtu {}", network.mtu));
        }
        addresses(&mut batch, &device_name, device, &wanted);
        if device.is_none_or(|device| !device.up()) {
            batch.add(format!("link set dev {device_name} up"));
        }
    }
    if have.iter().any(|device| device.ifname == "lo" && !device.up()) {
        batch.add("link set dev lo up");
    }
    batch.run(steps)?;
    settle_routes(&place, spec, steps)?;
    steps.step()?;
    let forward = if spec.admin_up { "1" } else { "0" };
    namespace::within(&place, || std::fs::write("/proc/sys/net/ipv4/ip_forward", forward))
        .map_err(Fault::io("set forwarding"))?;
    for (device, mac, address) in fresh {
        announce(&place, &device, mac, &[address]).map_err(Fault::io(format!("announce {address}")))?;
    }
    Ok(())
}

/// Makes the pair of a leg, unless both of its ends are where they should be.
fn join(
    router: &str,
    leg: &RouterLeg,
    mtu: u16,
    layout: &Layout,
    have: &mut Vec<Device>,
    steps: &Steps,
) -> Result<(), Fault> {
    let (inner, outer) = (names::router_leg(leg.port), names::leg(&layout.prefix, leg.port));
    let there = devices(&layout.place)?;
    if there.iter().all(|device| device.ifname != layout.bridge) {
        let message = format!("network {} is not made yet", leg.network);
        return Err(Fault::Unmet(Refused::unavailable(message).remedy("netd tries again by itself")));
    }
    let mut outer_device = there.iter().find(|device| device.ifname == outer);
    let mut batch = Batch::new(&Place::Root);
    let inner_here = have.iter().any(|device| device.ifname == inner);
    if !inner_here || outer_device.is_none() {
        // A lone end belongs to a pair whose other end is not where it should be.
        let mut clear = Batch::new(&layout.place);
        if outer_device.is_some() {
            clear.add(format!("link del dev {outer}"));
        }
        clear.run(steps)?;
        let mut clear = Batch::new(&Place::Namespace(router.to_owned()));
        if inner_here {
            clear.add(format!("link del dev {inner}"));
        }
        clear.run(steps)?;
        have.retain(|device| device.ifname != inner);
        outer_device = None;
        let home = match &layout.place {
            Place::Root => String::new(),
            Place::Namespace(name) => format!(" netns {name}"),
        };
        batch.add(format!(
            "link add name {inner} address {} mtu {mtu} netns {router} type veth peer name {outer} mtu {mtu}{home}",
            leg.mac
        ));
    }
    batch.run(steps)?;
    let mut batch = Batch::new(&layout.place);
    if outer_device.is_some_and(|device| device.mtu != u32::from(mtu)) {
        batch.add(format!("link set dev {outer} mtu {mtu}"));
    }
    if outer_device.and_then(|device| device.master.as_ref()) != Some(&layout.bridge) {
        batch.add(format!("link set dev {outer} master {}", layout.bridge));
    }
    if outer_device.is_none_or(|device| !device.up()) {
        batch.add(format!("link set dev {outer} up"));
    }
    batch.run(steps)
}

/// A leg's own addresses; on the gateway also the floating ones, for which the router answers ARP.
fn leg_addresses(spec: &RouterSpec, leg: &RouterLeg) -> Vec<String> {
    let own = leg.addresses.iter().filter(|address| address.addr().is_ipv4()).map(ToString::to_string);
    let gateway = spec.gateway.as_ref().is_some_and(|gateway| gateway.leg.port == leg.port);
    let floating = spec.floating.iter().filter(|floating| gateway && floating.floating.is_ipv4());
    own.chain(floating.map(|floating| format!("{}/32", floating.floating))).collect()
}

fn new_addresses(device: Option<&Device>, wanted: &[String]) -> impl Iterator<Item = Ipv4Addr> {
    let have = device.map(Device::v4).unwrap_or_default();
    wanted
        .iter()
        .filter(move |address| !have.contains(address))
        .filter_map(|address| address.split('/').next()?.parse().ok())
}

fn settle_routes(place: &Place, spec: &RouterSpec, steps: &Steps) -> Result<(), Fault> {
    let next_hop = spec.gateway.as_ref().and_then(|gateway| gateway.next_hop);
    let mut wanted: Vec<(String, IpAddr)> =
        next_hop.iter().filter(|hop| hop.is_ipv4()).map(|hop| ("default".to_owned(), *hop)).collect();
    for (range, hop) in spec.routes.iter().filter(|(range, hop)| range.addr().is_ipv4() && hop.is_ipv4()) {
        let range = range.trunc();
        let shown = match (range.prefix_len(), range.max_prefix_len()) {
            (0, _) => "default".to_owned(),
            // `ip` shows a single address without its length.
            (length, most) if length == most => range.addr().to_string(),
            _ => range.to_string(),
        };
        wanted.retain(|(there, _)| *there != shown);
        wanted.push((shown, *hop));
    }
    let have = routes(place, "unicast")?;
    let mut batch = Batch::new(place);
    for route in have.iter().filter(|route| wanted.iter().all(|(range, _)| *range != route.dst)) {
        batch.add(format!("route del {} proto {ROUTE_PROTOCOL}", route.dst));
    }
    for (range, hop) in wanted {
        let same = |route: &crate::link::Route| {
            route.dst == range && route.gateway.as_deref() == Some(hop.to_string().as_str())
        };
        if !have.iter().any(same) {
            batch.add(format!("route replace {range} via {hop} proto {ROUTE_PROTOCOL}"));
        }
    }
    batch.run(steps)
}

/// Takes all away that a router may have.
///
/// # Errors
/// The first change that failed.
pub fn remove(config: &Config, id: RouterId, steps: &Steps) -> Result<(), Fault> {
    empty_namespace(&config.instance.router_namespace(id), steps)
}
