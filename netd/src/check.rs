//! What a wanted state must satisfy before it is kept: everything that would else fail half-way, or that would say
//! something else to `nft` than was meant.

use std::collections::BTreeSet;
use wire::Refused;
use wire::net::{NetworkSpec, PortRole, RouterSpec};

/// Most ports of a network: what a mark can number.
const PORTS: usize = 65_000;

/// Checks a network.
///
/// # Errors
/// What contradicts what.
pub fn network(spec: &NetworkSpec) -> Result<(), Refused> {
    if !(576..=65_000).contains(&spec.mtu) {
        return Err(Refused::invalid(format!("MTU {} is not between 576 and 65000", spec.mtu)));
    }
    if !spec.dns_domain.is_empty() && !dns_name(spec.dns_domain.trim_end_matches('.')) {
        return Err(Refused::invalid("the network's DNS domain is not a host name"));
    }
    if spec.ports.len() > PORTS {
        return Err(Refused::invalid(format!("a network has at most {PORTS} ports")));
    }
    let (mut ids, mut macs, mut responders) = (BTreeSet::new(), BTreeSet::new(), 0);
    for port in &spec.ports {
        if !ids.insert(port.id.short()) {
            return Err(Refused::invalid(format!(
                "port {}: another port's id is the same or begins alike",
                port.id
            )));
        }
        if port.mac.0[0] & 1 != 0 || port.mac.0 == [0; 6] {
            return Err(Refused::invalid(format!(
                "port {}: {} is not the address of one device",
                port.id, port.mac
            )));
        }
        if !macs.insert(port.mac) {
            return Err(Refused::invalid(format!("port {}: {} is there twice", port.id, port.mac)));
        }
        if !port.hostname.is_empty() && !dns_name(&port.hostname) {
            return Err(Refused::invalid(format!("port {}: its host name is not one", port.id)));
        }
        for (subnet, address) in &port.addresses {
            let known = spec.subnets.iter().find(|there| there.id == *subnet);
            if !known.is_some_and(|subnet| subnet.cidr.contains(address)) {
                return Err(Refused::invalid(format!("port {}: {address} is not in its subnet", port.id)));
            }
        }
        match port.role {
            PortRole::Dhcp => responders += 1,
            PortRole::Server { .. } | PortRole::Router => (),
        }
    }
    if responders > 1 {
        return Err(Refused::invalid("a network has at most one DHCP port on a host"));
    }
    Ok(())
}

/// Checks a router.
///
/// # Errors
/// What contradicts what.
pub fn router(spec: &RouterSpec) -> Result<(), Refused> {
    let mut ids = BTreeSet::new();
    for leg in spec.interfaces.iter().chain(spec.gateway.as_ref().map(|gateway| &gateway.leg)) {
        if !ids.insert(leg.port.short()) {
            return Err(Refused::invalid(format!(
                "port {}: another leg's id is the same or begins alike",
                leg.port
            )));
        }
        if leg.mac.0[0] & 1 != 0 || leg.mac.0 == [0; 6] {
            return Err(Refused::invalid(format!(
                "port {}: {} is not the address of one device",
                leg.port, leg.mac
            )));
        }
    }
    let (mut outside, mut inside) = (BTreeSet::new(), BTreeSet::new());
    for floating in &spec.floating {
        if !outside.insert(floating.floating) || !inside.insert(floating.fixed) {
            return Err(Refused::invalid(format!(
                "floating IP {}: one of its addresses is there twice",
                floating.id
            )));
        }
    }
    Ok(())
}

/// Letters, digits and hyphens in labels of at most 63, at most 253 in all.
fn dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..64).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::tests::view;
    use wire::ids::Mac;

    #[test]
    fn contradictions_are_refused() {
        let good = view().0.spec;
        assert!(network(&good).is_ok());
        type Damage = fn(&mut NetworkSpec);
        let broken: [(&str, Damage); 7] = [
            ("MTU", |spec| spec.mtu = 100),
            ("domain", |spec| spec.dns_domain = "a b".into()),
            ("host name", |spec| spec.ports[1].hostname = "x;y".into()),
            ("one device", |spec| spec.ports[1].mac = Mac([1, 0, 0, 0, 0, 0])),
            ("twice", |spec| spec.ports[1].mac = spec.ports[0].mac),
            ("subnet", |spec| spec.ports[1].addresses[0].1 = [10, 9, 0, 1].into()),
            ("at most one", |spec| spec.ports[1].role = PortRole::Dhcp),
        ];
        for (word, damage) in broken {
            let mut spec = good.clone();
            damage(&mut spec);
            let refused = network(&spec).unwrap_err();
            assert!(refused.message.contains(word), "{refused}");
        }
    }
}
