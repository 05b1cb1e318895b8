//! Rules of a router: one-to-one NAT for floating IPs, source NAT for the rest, and no way in from outside but through
//! a floating IP, as long as it leads there. The mark 1 stands for "came in through the gateway": after routing, that is no longer visible.

use super::{Table, set};
use crate::names;
use std::net::{IpAddr, Ipv4Addr};
use wire::net::RouterSpec;

/// The table of a router.
#[must_use]
pub fn table(spec: &RouterSpec) -> Table {
    let mut body = String::new();
    if let Some(gateway) = &spec.gateway {
        let device = names::router_leg(gateway.leg.port);
        let own = gateway.leg.addresses.iter().find_map(|address| match address.addr() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let pairs: Vec<(Ipv4Addr, Ipv4Addr)> = spec
            .floating
            .iter()
            .filter_map(|floating| match (floating.floating, floating.fixed) {
                (IpAddr::V4(outside), IpAddr::V4(inside)) => Some((outside, inside)),
                (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => None,
            })
            .collect();
        body += "chain arriving {\ntype nat hook prerouting priority -100; policy accept;\n";
        if !pairs.is_empty() {
            let map = set(pairs.iter().map(|(outside, inside)| format!("{outside} : {inside}")));
            body += &format!("dnat to ip daddr map {map}\n");
        }
        body += "}\nchain from_outside {\ntype filter hook prerouting priority -150; policy accept;\n";
        body += &format!("iifname \"{device}\" meta mark set 1\n");
        body += "}\nchain leaving {\ntype nat hook postrouting priority 100; policy accept;\n";
        if !pairs.is_empty() {
            let map = set(pairs.iter().map(|(outside, inside)| format!("{inside} : {outside}")));
            // A guest behind a floating IP that calls another floating IP of this router is seen under its own.
            body += &format!("oifname \"{device}\" snat to ip saddr map {map}\n");
            body += &format!("meta mark != 1 ct status dnat snat to ip saddr map {map}\n");
        }
        if let (Some(own), true) = (own, gateway.snat) {
            body += &format!("oifname \"{device}\" ip saddr != {own} snat to {own}\n");
            // Without this the reply of a neighbour would take the short way past the router.
            body += &format!("meta mark != 1 ct status dnat snat to {own}\n");
        }
        body += "}\nchain passing {\ntype filter hook forward priority 0; policy accept;\n";
        body += &outdated(own, &pairs);
        body += "ct state established,related accept\nct state invalid drop\n";
        body += "ct status dnat accept\n";
        if gateway.snat {
            body += &format!("iifname \"{device}\" drop\n");
        }
        body += "}\n";
    }
    Table { family: "ip", name: "router".to_owned(), body }
}

/// What ends connections whose floating IP was taken away or leads elsewhere now: the kernel goes on to translate them as
/// it did when they began.
fn outdated(own: Option<Ipv4Addr>, pairs: &[(Ipv4Addr, Ipv4Addr)]) -> String {
    let not_among = |what: &str, known: Vec<String>| {
        if known.is_empty() { String::new() } else { format!("{what} != {} ", set(known)) }
    };
    let inwards = pairs.iter().map(|(outside, inside)| format!("{outside} . {inside}")).collect();
    let mut outwards: Vec<String> =
        pairs.iter().map(|(outside, inside)| format!("{inside} . {outside}")).collect();
    outwards.sort();
    let elsewhere = own.map(|own| format!("ct reply ip daddr != {own} ")).unwrap_or_default();
    format!(
        "ct status dnat {}drop\nct status snat {elsewhere}{}drop\n",
        not_among("ct original ip daddr . ct reply ip saddr", inwards),
        not_among("ct original ip saddr . ct reply ip daddr", outwards)
    )
}
