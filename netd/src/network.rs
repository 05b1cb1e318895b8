//! Makes the kernel have one network as it should be. Order matters: devices are made down, filters come next, and
//! only then are devices joined and set up, so that no frame ever passes unfiltered.

use crate::config::{Config, ProviderMode};
use crate::fault::{Fault, Steps};
use crate::filter::network::{Home, Marks, Responder, tables};
use crate::link::{Batch, Device, Place, devices, namespace, packet, tap};
use crate::{filter, names};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};
use wire::Refused;
use wire::ids::{Mac, NetworkId, PortId};
use wire::net::{NetworkSpec, PortRole, PortSpec};

/// Where guests find the metadata service.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What a network's devices are called and where they are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Where the bridge and the taps are.
    pub place: Place,
    /// The bridge.
    pub bridge: String,
    /// Prefix of taps and legs.
    pub prefix: String,
    /// Where `netd` answers, on the device [`names::BRIDGE`].
    pub responder: Place,
    mode: Option<ProviderMode>,
}

impl Layout {
    /// The layout of a network.
    ///
    /// # Errors
    /// When it names a provider that is not configured.
    pub fn of(config: &Config, id: NetworkId, spec: &NetworkSpec) -> Result<Self, Refused> {
        let responder = Place::Namespace(config.instance.network_namespace(id));
        let Some(label) = &spec.provider else {
            let bridge = names::BRIDGE.to_owned();
            return Ok(Self {
                place: responder.clone(),
                bridge,
                prefix: String::new(),
                responder,
                mode: None,
            });
        };
        let provider = config.provider.iter().find(|provider| provider.name == *label).ok_or_else(|| {
            let label: String = label.chars().take(64).collect();
            Refused::invalid(format!("the physical network '{label}' is not configured on this host"))
                .remedy("add a [[provider]] with that name to netd's configuration")
        })?;
        Ok(Self {
            place: Place::Root,
            bridge: config.instance.root_bridge(id),
            prefix: config.instance.device_prefix(),
            responder,
            mode: Some(provider.mode),
        })
    }
}

/// The port that `netd` answers on, when the network has one.
#[must_use]
pub fn responder_port(spec: &NetworkSpec) -> Option<&PortSpec> {
    spec.ports.iter().find(|port| matches!(port.role, PortRole::Dhcp))
}

/// The port's IPv4 addresses with their subnets' prefix lengths.
#[must_use]
pub fn v4_addresses(spec: &NetworkSpec, port: &PortSpec) -> Vec<String> {
    let lengths = port.addresses.iter().filter_map(|(subnet, address)| {
        let subnet = spec.subnets.iter().find(|there| there.id == *subnet)?;
        address.is_ipv4().then(|| format!("{address}/{}", subnet.cidr.prefix_len()))
    });
    lengths.collect()
}

/// An address of our own for a bridge that no port lends one: a bridge would else change its address with its members.
fn bridge_mac(id: NetworkId) -> Mac {
    let [a, b, c, d, ..] = id.0.into_bytes();
    Mac([0x02, 0xf5, a, b, c, d])
}

/// Closes the gap between the kernel and the wanted state of one network. Returns ports that could not be made.
///
/// # Errors
/// The first change that failed; the network as a whole is then not ready.
pub fn settle(
    config: &Config,
    id: NetworkId,
    spec: &NetworkSpec,
    marks: &mut Marks,
    steps: &Steps,
) -> Result<Vec<(PortId, String)>, Fault> {
    let layout = Layout::of(config, id, spec).map_err(Fault::Unmet)?;
    let responder = responder_port(spec);
    if layout.mode.is_none() || responder.is_some() {
        namespace::ensure(&config.instance.network_namespace(id), steps)?;
    } else {
        remove_responder(config, id, steps)?;
    }
    let have = devices(&layout.place)?;
    let mac = match (layout.mode, responder) {
        (None, Some(port)) => port.mac,
        (None, None) | (Some(_), _) => bridge_mac(id),
    };

    let mut batch = Batch::new(&layout.place);
    make_bridge(&mut batch, &layout, &have, mac, spec.mtu);
    let servers = || spec.ports.iter().filter(|port| matches!(port.role, PortRole::Server { .. }));
    for device in have.iter().filter(|device| is_tap(&layout, device)) {
        if servers().all(|port| names::tap(&layout.prefix, port.id) != device.ifname) {
            batch.add(format!("link del dev {}", device.ifname));
        }
    }
    batch.run(steps)?;

    let mut failed = Vec::new();
    for port in servers() {
        let name = names::tap(&layout.prefix, port.id);
        if have.iter().all(|device| device.ifname != name) {
            steps.step()?;
            if let Err(error) = tap::create(&layout.place, &name) {
                failed.push((port.id, format!("cannot make the tap {name}: {error}")));
            }
        }
    }

    let home = Home {
        table: config.instance.table(id),
        bridge: &layout.bridge,
        prefix: &layout.prefix,
        masquerade: match layout.mode {
            None => None,
            Some(ProviderMode::Host) => Some(config.masquerade),
            Some(ProviderMode::Nic) => Some(false),
        },
        responder: responder
            .map(|port| Responder { port, device: layout.mode.map(|_| config.instance.root_responder(id)) }),
    };
    filter::apply(&layout.place, &tables(spec, &home, marks), steps)?;

    let mut batch = Batch::new(&layout.place);
    for port in servers().filter(|port| failed.iter().all(|(id, _)| *id != port.id)) {
        let name = names::tap(&layout.prefix, port.id);
        let device = have.iter().find(|device| device.ifname == name);
        join(&mut batch, &name, device, &layout.bridge, spec.mtu, port.admin_up);
    }
    if let (Some(ProviderMode::Nic), Some(nic)) = (layout.mode, nic(config, spec)) {
        let Some(device) = have.iter().find(|device| device.ifname == nic) else {
            return Err(Fault::Unmet(
                Refused::unavailable(format!("the machine has no NIC '{nic}'"))
                    .remedy("correct the [[provider]] in netd's configuration"),
            ));
        };
        if device.master.as_ref() != Some(&layout.bridge) {
            batch.add(format!("link set dev {nic} master {}", layout.bridge));
        }
        if !device.up() {
            batch.add(format!("link set dev {nic} up"));
        }
    }
    let bridge = have.iter().find(|device| device.ifname == layout.bridge);
    let wanted = bridge_addresses(&layout, spec, responder);
    addresses(&mut batch, &layout.bridge, bridge, &wanted);
    if bridge.is_none_or(|device| device.mtu != u32::from(spec.mtu)) {
        batch.add(format!("link set dev {} mtu {}", layout.bridge, spec.mtu));
    }
    if bridge.is_none_or(|device| !device.up()) {
        batch.add(format!("link set dev {} up", layout.bridge));
    }
    if layout.mode == Some(ProviderMode::Host) {
        for range in v4_ranges(spec) {
            let metric = config.instance.metric();
            // The bridge's own route is better as long as there is a bridge.
            batch.add(format!(
                "route replace unreachable {range} metric {metric} proto {}",
                crate::link::ROUTE_PROTOCOL
            ));
        }
    }
    batch.run(steps)?;
    if config.masquerade && layout.mode == Some(ProviderMode::Host) {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(Fault::io("switch on forwarding"))?;
    }
    if let (Some(_), Some(port)) = (layout.mode, responder) {
        join_responder(config, id, spec, port, &have, steps)?;
    }
    Ok(failed)
}

fn nic<'a>(config: &'a Config, spec: &NetworkSpec) -> Option<&'a str> {
    let label = spec.provider.as_ref()?;
    config.provider.iter().find(|provider| provider.name == *label)?.nic.as_deref()
}

/// The IPv4 ranges of a network.
pub fn v4_ranges(spec: &NetworkSpec) -> impl Iterator<Item = IpNet> {
    spec.subnets.iter().map(|subnet| subnet.cidr.trunc()).filter(|range| range.addr().is_ipv4())
}

/// Whether a device is a tap of this network. In the root namespace, where networks share the prefix, its bridge tells;
/// one in no bridge is the trace of a crash, to be taken by whoever wants it or by the sweep.
fn is_tap(layout: &Layout, device: &Device) -> bool {
    let named = device
        .ifname
        .strip_prefix(&layout.prefix)
        .is_some_and(|rest| rest.starts_with('t') && rest.len() == 9);
    named && (layout.mode.is_none() || device.master.as_ref() == Some(&layout.bridge))
}

fn make_bridge(batch: &mut Batch, layout: &Layout, have: &[Device], mac: Mac, mtu: u16) {
    let bridge = &layout.bridge;
    const FILTERS: &str = "nf_call_iptables 1 nf_call_ip6tables 1";
    match have.iter().find(|device| device.ifname == *bridge) {
        None => batch.add(format!(
            "link add name {bridge} address {mac} mtu {mtu} type bridge forward_delay 0 mcast_snooping 0 {FILTERS}"
        )),
        Some(device) => {
            if !device.has_mac(mac) {
                batch.add(format!("link set dev {bridge} address {mac}"));
            }
            if !device.calls_filters() {
                batch.add(format!("link set dev {bridge} type bridge {FILTERS}"));
            }
        }
    }
    if layout.mode.is_none() && have.iter().any(|device| device.ifname == "lo" && !device.up()) {
        batch.add("link set dev lo up");
    }
}

/// Puts a device into a bridge, as it should be.
fn join(batch: &mut Batch, name: &str, device: Option<&Device>, bridge: &str, mtu: u16, up: bool) {
    if device.is_none_or(|device| device.mtu != u32::from(mtu)) {
        batch.add(format!("link set dev {name} mtu {mtu}"));
    }
    if device.and_then(|device| device.master.as_deref()) != Some(bridge) {
        batch.add(format!("link set dev {name} master {bridge}"));
    }
    if device.is_none_or(|device| device.up() != up) {
        batch.add(format!("link set dev {name} {}", if up { "up" } else { "down" }));
    }
}

/// Gives a device these IPv4 addresses and no others.
pub fn addresses(batch: &mut Batch, name: &str, device: Option<&Device>, wanted: &[String]) {
    let have = device.map(Device::v4).unwrap_or_default();
    for address in wanted.iter().filter(|address| !have.contains(address)) {
        batch.add(format!("addr add {address} dev {name}"));
    }
    for address in have.iter().filter(|address| !wanted.contains(address)) {
        batch.add(format!("addr del {address} dev {name}"));
    }
}

fn bridge_addresses(layout: &Layout, spec: &NetworkSpec, responder: Option<&PortSpec>) -> Vec<String> {
    match (layout.mode, responder) {
        (None, Some(port)) => responder_addresses(spec, port),
        (None, None) | (Some(ProviderMode::Nic), _) => Vec::new(),
        (Some(ProviderMode::Host), _) => {
            let gateways = spec.subnets.iter().filter_map(|subnet| match subnet.gateway {
                Some(IpAddr::V4(gateway)) => Some(format!("{gateway}/{}", subnet.cidr.prefix_len())),
                Some(IpAddr::V6(_)) | None => None,
            });
            gateways.collect()
        }
    }
}

fn responder_addresses(spec: &NetworkSpec, port: &PortSpec) -> Vec<String> {
    let mut wanted = v4_addresses(spec, port);
    wanted.push(format!("{METADATA}/32"));
    wanted
}

/// On a provider network, the responder is a leg of its own, so that its addresses are not the machine's.
fn join_responder(
    config: &Config,
    id: NetworkId,
    spec: &NetworkSpec,
    port: &PortSpec,
    have: &[Device],
    steps: &Steps,
) -> Result<(), Fault> {
    let (inner, outer) = (config.instance.network_namespace(id), config.instance.root_responder(id));
    let place = Place::Namespace(inner.clone());
    let inside = devices(&place)?;
    let leg = inside.iter().find(|device| device.ifname == names::BRIDGE);
    let mut batch = Batch::new(&Place::Root);
    if leg.is_none() {
        batch.add(format!(
            "link add name {} address {} mtu {} netns {inner} type veth peer name {outer}",
            names::BRIDGE,
            port.mac,
            spec.mtu
        ));
    }
    let there = have.iter().find(|device| device.ifname == outer).filter(|_| leg.is_some());
    join(&mut batch, &outer, there, &config.instance.root_bridge(id), spec.mtu, true);
    batch.run(steps)?;
    let mut batch = Batch::new(&place);
    if leg.is_some_and(|device| !device.has_mac(port.mac)) {
        batch.add(format!("link set dev {} address {}", names::BRIDGE, port.mac));
    }
    addresses(&mut batch, names::BRIDGE, leg, &responder_addresses(spec, port));
    for name in ["lo", names::BRIDGE] {
        if inside.iter().find(|device| device.ifname == name).is_none_or(|device| !device.up()) {
            batch.add(format!("link set dev {name} up"));
        }
    }
    batch.run(steps)
}

fn remove_responder(config: &Config, id: NetworkId, steps: &Steps) -> Result<(), Fault> {
    namespace::remove(&config.instance.network_namespace(id), steps)
}

/// Takes away all that a network may have, whatever it was.
///
/// # Errors
/// The first change that failed.
pub fn remove(config: &Config, id: NetworkId, steps: &Steps) -> Result<(), Fault> {
    let instance = &config.instance;
    let (bridge, outer) = (instance.root_bridge(id), instance.root_responder(id));
    let mut batch = Batch::new(&Place::Root);
    for device in devices(&Place::Root)? {
        let member = device.master.as_ref() == Some(&bridge) && instance.own_device(&device.ifname);
        if member || device.ifname == bridge || device.ifname == outer {
            // One end of a pair takes the other along; a bridge frees its members.
            batch.add(format!("link del dev {}", device.ifname));
        }
    }
    batch.run(steps)?;
    empty_namespace(&instance.network_namespace(id), steps)?;
    let table = instance.table(id);
    filter::remove(&Place::Root, steps, |name| name == table)
}

/// Removes a namespace and, before that, its devices: a guest that still holds a tap would keep the namespace alive.
///
/// # Errors
/// The first change that failed.
pub fn empty_namespace(name: &str, steps: &Steps) -> Result<(), Fault> {
    if namespace::identity(name).is_some() {
        let place = Place::Namespace(name.to_owned());
        let mut batch = Batch::new(&place);
        for device in devices(&place)?.iter().filter(|device| device.ifname != "lo") {
            let known = device.ifname.strip_prefix(['t', 'r', 'q']).is_some_and(|rest| rest.len() == 8);
            if known || device.ifname == names::BRIDGE {
                batch.add(format!("link del dev {}", device.ifname));
            }
        }
        batch.run(steps)?;
    }
    namespace::remove(name, steps)
}

/// Tells neighbours where an address is now.
///
/// # Errors
/// What the kernel says.
pub fn announce(place: &Place, device: &str, mac: Mac, addresses: &[Ipv4Addr]) -> std::io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let sender = packet::FrameSender::open(place, device)?;
    addresses.iter().try_for_each(|address| sender.send(&packet::announcement(mac, *address)))
}
