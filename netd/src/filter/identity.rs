//! What makes a source address the proof of who asks for metadata, on every port: also on one without port security, and
//! on one with an allowed address pair, which may otherwise speak under addresses that are not its own.
//!
//! - A packet to the metadata address reaches the responder from the tap, the Ethernet address and a fixed address of one
//!   and the same port, or not at all; so nothing comes through a router either.
//! - An answer leaves to the tap whose address it is for, whatever neighbours made the bridge believe.
//! - Nobody takes a port's address away from it in the responder's neighbour table, nor claims to be the responder.

use super::network::Home;
use super::set;
use crate::names;
use crate::network::METADATA;
use ipnet::Ipv4Net;
use std::net::{IpAddr, Ipv4Addr};
use wire::net::{NetworkSpec, PortRole, PortSpec};

/// The chain for taps without filter. It ends in a verdict.
pub const OPEN: &str = "from_open";

/// The chains of a network; with no responder, nothing but an [`OPEN`] that lets everything pass.
pub fn chains(spec: &NetworkSpec, home: &Home<'_>) -> String {
    let Some(responder) = &home.responder else {
        return format!("chain {OPEN} {{\naccept\n}}\n");
    };
    let (mut senders, mut receivers, mut fixed) = (Vec::new(), Vec::new(), Vec::new());
    for port in spec.ports.iter().filter(|port| matches!(port.role, PortRole::Server { .. })) {
        let tap = names::tap(home.prefix, port.id);
        for address in v4(port) {
            senders.push(format!("\"{tap}\" . {} . {address}", port.mac));
            receivers.push(format!("\"{tap}\" . {address}"));
            fixed.push(address);
        }
    }
    let others = |concatenation: &str, known: &[String]| {
        if known.is_empty() { String::new() } else { format!("{concatenation} != {} ", set(known)) }
    };
    // On a bridge in a namespace that others share, only what passes the responder's own device is looked at.
    let (arriving, to, leaving, from) = match &responder.device {
        None => ("input", String::new(), "postrouting", String::new()),
        Some(device) => {
            ("forward", format!("oifname \"{device}\" "), "forward", format!("iifname \"{device}\" "))
        }
    };

    let own: Vec<Ipv4Net> = v4(responder.port).chain([METADATA]).map(Ipv4Net::from).collect();
    let own = set(own);
    // A tag would hide what is in the frame from the rules, and priority tags are taken off by whoever receives them.
    let mut text = format!("chain {OPEN} {{\nether type {{ 8021q, 8021ad }} drop\n");
    text += &format!("ether saddr {} drop\n", responder.port.mac);
    text += &format!("arp saddr ip {own} drop\nip saddr {own} drop\naccept\n}}\n");

    text += &format!("chain to_responder {{\ntype filter hook {arriving} priority -250; policy accept;\n");
    let spoofed = others("iifname . ether saddr . ip saddr", &senders);
    text += &format!("{to}ip daddr {METADATA} {spoofed}drop\n");
    if !fixed.is_empty() {
        let stolen = others("iifname . arp saddr ether . arp saddr ip", &senders);
        text += &format!("{to}arp saddr ip {} {stolen}drop\n", set(&fixed));
    }
    text +=
        &format!("}}\nchain from_responder {{\ntype filter hook {leaving} priority -250; policy accept;\n");
    let misled = others("oifname . ip daddr", &receivers);
    text + &format!("{from}ip saddr {METADATA} {misled}drop\n}}\n")
}

fn v4(port: &PortSpec) -> impl Iterator<Item = Ipv4Addr> {
    port.addresses.iter().filter_map(|(_, address)| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}
