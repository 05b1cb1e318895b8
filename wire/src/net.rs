//! `api` to `netd`: networks, ports and routers as they should be on one host.

use crate::ids::{FloatingIpId, Mac, NetworkId, PortId, RouterId, ServerId, SubnetId};
use crate::{Call, Generation};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A network as it should be on this host, whole: ports that are not listed are taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureNetwork {
    /// Which network.
    pub id: NetworkId,
    /// Number of this wanted state.
    pub generation: Generation,
    /// How it should be.
    pub spec: NetworkSpec,
}

impl Call for EnsureNetwork {
    const PATH: &'static str = "/v1/ensure-network";
    /// Answers once the kernel has it.
    type Reply = NetworkState;
}

/// A network: one bridge, in a namespace of its own unless it is a provider network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// MTU in bytes of bridge, taps and DHCP option 26.
    pub mtu: u16,
    /// Label of the physical network in `netd`'s configuration, for provider (external) networks.
    pub provider: Option<String>,
    /// Domain for DHCP option 15 and the DNS server.
    pub dns_domain: String,
    /// Subnets.
    pub subnets: Vec<SubnetSpec>,
    /// Ports.
    pub ports: Vec<PortSpec>,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// Which subnet.
    pub id: SubnetId,
    /// Its range.
    pub cidr: IpNet,
    /// Default gateway handed out by DHCP.
    pub gateway: Option<IpAddr>,
    /// Name servers handed out; empty: `netd`'s own, on the DHCP port's address.
    pub name_servers: Vec<IpAddr>,
    /// Host routes handed out, as (destination, next hop).
    pub routes: Vec<(IpNet, IpAddr)>,
    /// Whether DHCP answers on it.
    pub dhcp: bool,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Which port.
    pub id: PortId,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<(SubnetId, IpAddr)>,
    /// Host name for DHCP option 12 and DNS.
    pub hostname: String,
    /// What is behind the port.
    pub role: PortRole,
    /// Rules of its security groups, flattened; `None` when port security is off (no filter, no anti-spoofing).
    pub filter: Option<Vec<FilterRule>>,
    /// Further addresses the port may use, as (range, MAC or its own).
    pub allowed_pairs: Vec<(IpNet, Option<Mac>)>,
    /// Whether frames pass at all.
    pub admin_up: bool,
}

/// What is behind a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum PortRole {
    /// A guest: gets a tap.
    Server {
        /// Whose metadata a request from this port reads.
        server: ServerId,
    },
    /// `netd`'s own DHCP, DNS and metadata responder.
    Dhcp,
    /// A router's leg; the router itself comes by [`EnsureRouter`].
    Router,
}

/// What passes. Everything that no rule names is dropped, replies to tracked connections apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FilterRule {
    /// Seen from the guest.
    pub direction: Direction,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// IP protocol number; `None` is any.
    pub protocol: Option<u8>,
    /// Lowest and highest port, or ICMP (type, code); `None` is any. For ICMP a missing code is `(type, None)`.
    pub ports: Option<(u16, Option<u16>)>,
    /// The other side; empty is anyone.
    pub remote: Vec<IpNet>,
    /// Whether `remote` is meant even when it is empty (a remote group without members matches nobody).
    pub remote_only: bool,
}

/// Direction of a rule, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the guest.
    Ingress,
    /// From the guest.
    Egress,
}

/// A network as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Generation in force.
    pub generation: Generation,
    /// Ports whose device exists and is filtered, so that a guest may use it.
    pub ready: Vec<PortId>,
    /// Ports that could not be made, and why.
    pub failed: Vec<(PortId, String)>,
}

/// A router as it should be, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureRouter {
    /// Which router.
    pub id: RouterId,
    /// Number of this wanted state.
    pub generation: Generation,
    /// How it should be.
    pub spec: RouterSpec,
}

impl Call for EnsureRouter {
    const PATH: &'static str = "/v1/ensure-router";
    type Reply = ();
}

/// A router: a namespace joined to its networks by veth pairs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// Whether it forwards.
    pub admin_up: bool,
    /// Legs into tenant networks.
    pub interfaces: Vec<RouterLeg>,
    /// Leg into the external network.
    pub gateway: Option<RouterGateway>,
    /// Floating IPs, one-to-one NAT.
    pub floating: Vec<FloatingSpec>,
    /// Extra static routes, as (destination, next hop).
    pub routes: Vec<(IpNet, IpAddr)>,
}

/// A leg into a network. The network must have been ensured before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterLeg {
    /// The port that the leg is.
    pub port: PortId,
    /// Which network it reaches.
    pub network: NetworkId,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses with their subnets' prefix lengths.
    pub addresses: Vec<IpNet>,
}

/// The leg into the external network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterGateway {
    /// The leg itself.
    pub leg: RouterLeg,
    /// The external subnet's gateway: the default route.
    pub next_hop: Option<IpAddr>,
    /// Whether tenants' traffic leaves under the gateway's address.
    pub snat: bool,
}

/// A floating IP of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingSpec {
    /// Which floating IP.
    pub id: FloatingIpId,
    /// The address outside.
    pub floating: IpAddr,
    /// The address inside.
    pub fixed: IpAddr,
}

/// Takes a network away with all that was made for it. Harmless when it is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgetNetwork {
    /// Which network.
    pub id: NetworkId,
    /// Number of this wanted state.
    pub generation: Generation,
}

impl Call for ForgetNetwork {
    const PATH: &'static str = "/v1/forget-network";
    type Reply = ();
}

/// Takes a router away. Harmless when it is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgetRouter {
    /// Which router.
    pub id: RouterId,
    /// Number of this wanted state.
    pub generation: Generation,
}

impl Call for ForgetRouter {
    const PATH: &'static str = "/v1/forget-router";
    type Reply = ();
}

/// Lists what this host was asked to have, so that the control plane can find what it forgot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListWanted {}

impl Call for ListWanted {
    const PATH: &'static str = "/v1/list-wanted";
    type Reply = Wanted;
}

/// What `netd` was asked to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Networks with their generations.
    pub networks: Vec<(NetworkId, Generation)>,
    /// Routers with their generations.
    pub routers: Vec<(RouterId, Generation)>,
}
