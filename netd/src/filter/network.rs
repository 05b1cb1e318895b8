//! Rules of a network. Two tables work together:
//!
//! - `bridge`: stateless. A frame from a tap must carry the port's own addresses; then it is marked with the number of
//!   the port that it came from (low 16 bits) and, once the bridge has chosen where it goes, of the port that it goes
//!   to (high 16 bits).
//! - `inet`: stateful, over `br_netfilter`, which shows bridged packets to the filters of IP and to connection
//!   tracking. The marks tell whose rules apply. 0 is a port without filter, a router's leg or `netd` itself.
//!
//! Connection tracking finds who began a conversation; the rules are asked about that direction, for packets of both. A
//! connection that they allow is marked with the number of this very rule set and passes unasked until the rules change;
//! then each is asked about once more, so that what lost its rule ends at once, and everything else goes on.
//!
//! What is always allowed (ARP, DHCP as client, neighbour discovery) is what upstream's security groups always allow.

use super::{Table, identity, set};
use crate::names;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use wire::ids::{Mac, PortId};
use wire::net::{Direction, FilterRule, NetworkSpec, PortRole, PortSpec};

/// Numbers of ports in marks. A number stays with its port while this lives, so that a packet that is under way while
/// tables are replaced is never taken for another port's.
#[derive(Debug, Default)]
pub struct Marks(BTreeMap<PortId, u16>);

impl Marks {
    fn number(&mut self, spec: &NetworkSpec, port: PortId) -> Option<u16> {
        if let Some(number) = self.0.get(&port) {
            return Some(*number);
        }
        self.0.retain(|port, _| spec.ports.iter().any(|there| there.id == *port));
        let next = self.0.values().max().map_or(1, |last| last.checked_add(1).unwrap_or(1));
        let free = |number: &u16| self.0.values().all(|used| used != number);
        let number = (next..=u16::MAX).chain(1..next).find(free)?;
        self.0.insert(port, number);
        Some(number)
    }
}

/// Where a network is, as far as its rules care.
#[derive(Debug, Clone)]
pub struct Home<'a> {
    /// Name of the tables.
    pub table: String,
    /// Device name of the bridge.
    pub bridge: &'a str,
    /// Prefix of taps.
    pub prefix: &'a str,
    /// `Some` when the bridge is in the machine's own namespace: whether its traffic may leave the machine.
    pub masquerade: Option<bool>,
    /// What answers DHCP, DNS and metadata, when there is something.
    pub responder: Option<Responder<'a>>,
}

/// What answers guests of a network.
#[derive(Debug, Clone)]
pub struct Responder<'a> {
    /// Its port.
    pub port: &'a PortSpec,
    /// The device that leads from the bridge to it; `None` when it is the bridge itself.
    pub device: Option<String>,
}

/// The tables of a network.
#[must_use]
pub fn tables(spec: &NetworkSpec, home: &Home<'_>, marks: &mut Marks) -> Vec<Table> {
    let servers = spec.ports.iter().filter(|port| matches!(port.role, PortRole::Server { .. }));
    let mut guarded = Vec::new();
    let mut open = Vec::new();
    for port in servers {
        let number = port.filter.as_ref().and_then(|rules| Some((marks.number(spec, port.id)?, rules)));
        match (number, &port.filter) {
            (Some((number, rules)), _) => guarded.push((port, number, rules)),
            (None, None) => open.push(names::tap(home.prefix, port.id)),
            // More than 65,535 filtered ports: those without a number stay closed.
            (None, Some(_)) => (),
        }
    }
    let bridge =
        Table { family: "bridge", name: home.table.clone(), body: bridge_body(spec, &guarded, &open, home) };
    let inet = Table { family: "inet", name: home.table.clone(), body: inet_body(spec, &guarded, home) };
    vec![bridge, inet]
}

type Guarded<'a> = (&'a PortSpec, u16, &'a Vec<FilterRule>);

fn bridge_body(spec: &NetworkSpec, guarded: &[Guarded<'_>], open: &[String], home: &Home<'_>) -> String {
    let mut body = identity::chains(spec, home);
    for (port, number, _) in guarded {
        body += &anti_spoofing(port, *number);
        let high = u32::from(*number) << 16;
        body += &format!("chain to_{number} {{\nmeta mark set meta mark | {high:#x}\n}}\n");
    }
    let jumps = |verb: &str| {
        let jump = |(port, number, _): &Guarded<'_>| {
            format!("\"{}\" : jump {verb}_{number}", names::tap(home.prefix, port.id))
        };
        guarded.iter().map(jump).collect::<Vec<_>>()
    };
    body += "chain from_ports {\ntype filter hook prerouting priority -300; policy accept;\n";
    let mut verdicts = jumps("from");
    // What it leaves of a frame's freedom, ends in `accept`.
    verdicts.extend(open.iter().map(|tap| format!("\"{tap}\" : jump {}", identity::OPEN)));
    if !verdicts.is_empty() {
        body += &format!("iifname vmap {}\n", set(&verdicts));
    }
    // What comes back from a port's chain carries its mark. A tap that the rules do not know is not connected.
    body += &format!("iifname \"{}t*\" meta mark & 0xffff == 0 drop\n", home.prefix);
    body += "}\nchain to_ports {\ntype filter hook forward priority -200; policy accept;\n";
    if !guarded.is_empty() {
        body += &format!("oifname vmap {}\n", set(jumps("to")));
    }
    body + "}\n"
}

fn anti_spoofing(port: &PortSpec, number: u16) -> String {
    let mut macs = vec![port.mac];
    let mut pairs: Vec<(Mac, IpNet)> =
        port.addresses.iter().map(|(_, address)| (port.mac, IpNet::from(*address))).collect();
    for (range, mac) in &port.allowed_pairs {
        let mac = mac.unwrap_or(port.mac);
        if !macs.contains(&mac) {
            macs.push(mac);
        }
        pairs.push((mac, range.trunc()));
    }
    for mac in &macs {
        pairs.push((*mac, IpNet::from(IpAddr::V6(link_local(*mac)))));
    }
    let mut chain = format!("chain from_{number} {{\nether saddr != {} drop\n", set(&macs));
    chain += "ether type != { arp, ip, ip6 } drop\n";
    // DHCP as a client, before there is an address.
    chain +=
        &format!("ether type ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 meta mark set {number} accept\n");
    chain += "ether type ip udp sport 67 udp dport 68 drop\n";
    chain += "ether type ip6 udp sport 547 udp dport 546 drop\n";
    chain += "icmpv6 type { nd-router-advert, nd-redirect } drop\n";
    for mac in &macs {
        let of = |v4: bool| {
            let mine =
                pairs.iter().filter(move |(owner, range)| owner == mac && range.addr().is_ipv4() == v4);
            let ranges: Vec<IpNet> = mine.map(|(_, range)| *range).collect();
            IpNet::aggregate(&ranges)
        };
        let (v4, v6) = (of(true), of(false));
        let zero = IpNet::from(IpAddr::from([0, 0, 0, 0]));
        let claims = set(v4.iter().chain([&zero]));
        chain += &format!("ether saddr {mac} ether type arp arp saddr ether != {mac} drop\n");
        chain += &format!("ether saddr {mac} ether type arp arp saddr ip != {claims} drop\n");
        if v4.is_empty() {
            chain += &format!("ether saddr {mac} ether type ip drop\n");
        } else {
            chain += &format!("ether saddr {mac} ether type ip ip saddr != {} drop\n", set(&v4));
        }
        let unspecified = IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        chain += &format!(
            "ether saddr {mac} ether type ip6 ip6 saddr != {} drop\n",
            set(v6.iter().chain([&unspecified]))
        );
        let targets: Vec<String> = v6.iter().filter_map(raw_range).collect();
        chain += &format!(
            "ether saddr {mac} icmpv6 type nd-neighbor-advert @th,64,128 != {} drop\n",
            set(&targets)
        );
    }
    // From the unspecified address only what a host says before it has one: solicitations and listener reports.
    chain += "ether type ip6 ip6 saddr :: icmpv6 type != { 131, 132, 133, 135, 143 } drop\n";
    chain += "ether type ip6 ip6 saddr :: meta l4proto != 58 drop\n";
    chain + &format!("meta mark set {number}\nreturn\n}}\n")
}

/// A range as 128-bit numbers, for a comparison of raw payload.
fn raw_range(range: &IpNet) -> Option<String> {
    match range {
        IpNet::V4(_) => None,
        IpNet::V6(range) => {
            let (low, high) = (u128::from(range.network()), u128::from(range.broadcast()));
            Some(if low == high { format!("{low:#034x}") } else { format!("{low:#034x}-{high:#034x}") })
        }
    }
}

/// The link-local address that a host derives from its MAC (modified EUI-64, RFC 4291).
#[must_use]
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
}

fn inet_body(spec: &NetworkSpec, guarded: &[Guarded<'_>], home: &Home<'_>) -> String {
    let bridge = home.bridge;
    let mut body = String::new();
    for (_, number, rules) in guarded {
        body += &format!("chain out_{number} {{\n{}", dhcp(68, 67));
        body += "icmpv6 type { 130, 131, 132, 133, 135, 136, 143 } return\n";
        body += &rules_text(rules, Direction::Egress);
        body += &format!("drop\n}}\nchain in_{number} {{\n{}", dhcp(67, 68));
        body += "icmpv6 type { 130, 131, 132, 134, 135, 136, 143 } return\n";
        body += &rules_text(rules, Direction::Ingress);
        body += "drop\n}\n";
    }
    let (sender, receiver) = ("meta mark & 0xffff", "meta mark & 0xffff0000");
    // Asks the rules of the port that the mark names on this side of the packet.
    let ask = |side: &str, verb: &str| {
        let jump = |(_, number, _): &Guarded<'_>| {
            let value = u32::from(*number) << if side == receiver { 16 } else { 0 };
            format!("{value:#x} : jump {verb}_{number}")
        };
        if guarded.is_empty() {
            return String::new();
        }
        format!("{side} vmap {}\n", set(guarded.iter().map(jump)))
    };
    let allowed = {
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&body, &mut hasher);
        for (port, number, _) in guarded {
            // An address that moved leads to a port whose rules were not asked.
            std::hash::Hash::hash(&(number, &port.addresses), &mut hasher);
        }
        // The upper half, and never 0, which is a connection that was not asked about.
        (std::hash::Hasher::finish(&hasher) >> 32) | 1
    };
    body += "chain replies {\n";
    body += &(ask(sender, "in") + &ask(receiver, "out"));
    body += &format!("ct mark set {allowed:#x} accept\n}}\n");
    body += "chain bridged {\ntype filter hook forward priority 0; policy accept;\n";
    body += &format!("iifname != \"{bridge}\" oifname != \"{bridge}\" return\n");
    if let Some(masquerade) = home.masquerade {
        body += &routed_by_host(bridge, masquerade);
    }
    body += "ct state related accept\nct state invalid drop\n";
    body += &format!("ct state established ct mark {allowed:#x} accept\n");
    body += "ct direction reply goto replies\n";
    body += &(ask(sender, "out") + &ask(receiver, "in"));
    body += &format!("ct mark set {allowed:#x}\n");
    body += "}\nchain replies_to_host {\n";
    body += &ask(sender, "in");
    body += "accept\n}\nchain to_host {\ntype filter hook input priority 0; policy accept;\n";
    body += &format!("iifname != \"{bridge}\" return\n");
    body += "ct state related accept\nct direction reply goto replies_to_host\n";
    body += &ask(sender, "out");
    if home.masquerade.is_none() {
        if home.responder.is_some() {
            body += "udp dport { 53, 67 } accept\ntcp dport 53 accept\n";
            body += "ip daddr 169.254.169.254 tcp dport 80 accept\n";
            body += "icmp type echo-request limit rate 100/second accept\n";
        }
        body += "drop\n";
    }
    body += "}\n";
    if home.masquerade.is_some() {
        body += &from_host(guarded, bridge);
    }
    if home.masquerade == Some(true) {
        body += "chain leaving {\ntype nat hook postrouting priority 100; policy accept;\n";
        for range in spec.subnets.iter().filter_map(|subnet| v4(&subnet.cidr)) {
            body += &format!("ip saddr {range} oifname != \"{bridge}\" masquerade\n");
        }
        body += "}\n";
    }
    body
}

/// DHCP, begun from this port to that one.
fn dhcp(from: u16, to: u16) -> String {
    format!("meta l4proto 17 ct original proto-src {from} ct reply proto-src {to} return\n")
}

fn v4(range: &IpNet) -> Option<Ipv4Net> {
    match range {
        IpNet::V4(range) => Some(*range),
        IpNet::V6(_) => None,
    }
}

/// What the machine may route between a bridge of its own and the rest of the world.
fn routed_by_host(bridge: &str, masquerade: bool) -> String {
    if masquerade {
        return format!("iifname != \"{bridge}\" ct state new drop\n");
    }
    format!("iifname \"{bridge}\" oifname != \"{bridge}\" drop\n")
}

/// Packets from the machine itself to guests on a bridge of its own are not bridged, so they carry no mark.
fn from_host(guarded: &[Guarded<'_>], bridge: &str) -> String {
    let mut chain = "chain from_host {\ntype filter hook output priority 0; policy accept;\n".to_owned();
    chain += &format!("oifname != \"{bridge}\" return\nct state related accept\n");
    for (direction, verb) in [("reply", "out"), ("original", "in")] {
        for family in ["ip", "ip6"] {
            let jumps = guarded.iter().flat_map(|(port, number, _)| {
                let addresses = port.addresses.iter().map(|(_, address)| address);
                let ours = addresses.filter(|address| address.is_ipv4() == (family == "ip"));
                ours.map(move |address| format!("{address} : jump {verb}_{number}"))
            });
            let jumps: Vec<String> = jumps.collect();
            if !jumps.is_empty() {
                chain += &format!("ct direction {direction} {family} daddr vmap {}\n", set(jumps));
            }
        }
    }
    chain + "}\n"
}

fn rules_text(rules: &[FilterRule], direction: Direction) -> String {
    rules.iter().filter(|rule| rule.direction == direction).flat_map(rule_text).collect()
}

/// One rule as one or two of the kernel's; none when it can match nothing. It is about the conversation that a packet
/// belongs to, as it was begun: `original` is who began it, `reply` who answers, address translation undone.
fn rule_text(rule: &FilterRule) -> Vec<String> {
    let mut text = format!("meta nfproto {} ", if rule.v6 { "ipv6" } else { "ipv4" });
    let remote: Vec<IpNet> =
        rule.remote.iter().filter(|range| range.addr().is_ipv6() == rule.v6).map(IpNet::trunc).collect();
    if remote.is_empty() && (rule.remote_only || !rule.remote.is_empty()) {
        return Vec::new();
    }
    // A range of length 0 is anyone, and no element of a set.
    if !remote.is_empty() && remote.iter().all(|range| range.prefix_len() > 0) {
        let side = match rule.direction {
            Direction::Ingress => "original",
            Direction::Egress => "reply",
        };
        let family = if rule.v6 { "ip6" } else { "ip" };
        text += &format!("ct {side} {family} saddr {} ", set(IpNet::aggregate(&remote)));
    }
    let Some(protocol) = rule.protocol else { return vec![text + "return\n"] };
    // ICMP for IPv6 is asked for by either number.
    let icmp = matches!(protocol, 1 | 58);
    let protocol = if icmp && rule.v6 { 58 } else { protocol };
    text += &format!("meta l4proto {protocol} ");
    let Some((low, high)) = rule.ports else { return vec![text + "return\n"] };
    match protocol {
        58 if !rule.v6 => vec![text + "return\n"],
        1 | 58 => {
            let kind = u8::try_from(low);
            let code = high.map(u8::try_from).transpose();
            let (Ok(kind), Ok(code)) = (kind, code) else { return Vec::new() };
            // Where others have a port, connection tracking keeps type and code.
            let low = u16::from_be_bytes([kind, code.unwrap_or(0)]);
            let high = u16::from_be_bytes([kind, code.unwrap_or(u8::MAX)]);
            let mut rules = vec![format!("{text}ct original proto-dst {} return\n", span(low, high))];
            if rule.v6 {
                // Neighbour discovery and the like are not tracked.
                let code = code.map(|code| format!("icmpv6 code {code} ")).unwrap_or_default();
                rules.push(format!("{text}ct state untracked icmpv6 type {kind} {code}return\n"));
            }
            rules
        }
        _ if high.is_some_and(|high| high < low) => Vec::new(),
        6 | 17 => {
            vec![format!("{text}ct reply proto-src {} return\n", span(low, high.unwrap_or(low)))]
        }
        // DCCP, SCTP and UDP-Lite have ports at the same place, but not every kernel tracks them.
        33 | 132 | 136 => {
            let ports = span(low, high.unwrap_or(low));
            vec![
                format!("{text}ct direction original th dport {ports} return\n"),
                format!("{text}ct direction reply th sport {ports} return\n"),
            ]
        }
        _ => vec![text + "return\n"],
    }
}

/// A range as `nft` takes it.
fn span(low: u16, high: u16) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_follows_the_rfc() {
        let mac: Mac = "fa:16:3e:00:0a:ff".parse().unwrap();
        assert_eq!(link_local(mac).to_string(), "fe80::f816:3eff:fe00:aff");
    }

    #[test]
    fn a_remote_group_without_members_matches_nobody() {
        let mut rule = FilterRule {
            direction: Direction::Ingress,
            v6: false,
            protocol: Some(6),
            ports: Some((22, Some(22))),
            remote: vec![],
            remote_only: true,
        };
        assert_eq!(rule_text(&rule), Vec::<String>::new());
        rule.remote = vec!["2001:db8::/64".parse().unwrap()];
        rule.remote_only = false;
        assert_eq!(rule_text(&rule), Vec::<String>::new(), "a range of the other family is not anyone");
        rule.remote = vec!["10.0.0.7/24".parse().unwrap()];
        assert_eq!(
            rule_text(&rule),
            [
                "meta nfproto ipv4 ct original ip saddr { 10.0.0.0/24 } meta l4proto 6 ct reply proto-src 22 return\n"
            ]
        );
    }

    #[test]
    fn numbers_stay_with_their_ports_and_are_not_given_twice() {
        let mut spec = NetworkSpec {
            mtu: 1500,
            provider: None,
            dns_domain: String::new(),
            subnets: vec![],
            ports: vec![],
        };
        let mut marks = Marks::default();
        let port = || PortSpec {
            id: PortId::new(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: vec![],
            hostname: String::new(),
            role: PortRole::Dhcp,
            filter: None,
            allowed_pairs: vec![],
            admin_up: true,
        };
        spec.ports = vec![port(), port(), port()];
        let given: Vec<_> = spec.ports.iter().map(|port| marks.number(&spec, port.id).unwrap()).collect();
        spec.ports.remove(0);
        spec.ports.push(port());
        let again: Vec<_> = spec.ports.iter().map(|port| marks.number(&spec, port.id).unwrap()).collect();
        assert_eq!(given[1..], again[..2]);
        assert!(!given.contains(&again[2]));
    }

    #[test]
    fn connections_to_an_address_that_moved_are_asked_about_again() {
        let port = |last: u8| PortSpec {
            id: PortId::new(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            addresses: vec![(wire::ids::SubnetId::new(), IpAddr::from([10, 0, 0, last]))],
            hostname: String::new(),
            role: PortRole::Server { server: wire::ids::ServerId::new() },
            filter: Some(vec![]),
            allowed_pairs: vec![],
            admin_up: true,
        };
        let mut spec = NetworkSpec {
            mtu: 1500,
            provider: None,
            dns_domain: String::new(),
            subnets: vec![],
            ports: vec![port(1), port(2)],
        };
        let home = Home { table: "t".into(), bridge: "br", prefix: "x", masquerade: None, responder: None };
        let mut marks = Marks::default();
        let mut stateful = |spec: &NetworkSpec| tables(spec, &home, &mut marks).remove(1).body;
        let before = stateful(&spec);
        assert_eq!(stateful(&spec), before, "nothing changed");
        let (one, other) = (spec.ports[0].addresses.clone(), spec.ports[1].addresses.clone());
        (spec.ports[0].addresses, spec.ports[1].addresses) = (other, one);
        assert_ne!(stateful(&spec), before);
    }
}
