//! DHCPv4: a port's fixed address for the port's Ethernet address, and nothing else. There is no lease store: the
//! wanted state is the lease, so a restart loses nothing.

use crate::link::packet::udp;
use crate::network::METADATA;
use crate::responder::View;
use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use wire::ids::Mac;
use wire::net::{PortRole, PortSpec, SubnetSpec};

/// Seconds that a guest may keep its address without asking again. Upstream's default.
pub const LEASE: u32 = 86_400;

/// What the server makes of a packet: a frame to send, if any.
#[must_use]
pub fn answer(view: &View, packet: &[u8]) -> Option<Vec<u8>> {
    // The codec slices by the packet's own length of the hardware address, which may be past its field.
    if packet.get(2).is_none_or(|length| *length != 6) {
        return None;
    }
    let request = Message::decode(&mut Decoder::new(packet)).ok()?;
    if request.opcode() != Opcode::BootRequest
        || request.htype() != HType::Eth
        || !request.giaddr().is_unspecified()
    {
        return None;
    }
    let mac = Mac(request.chaddr().try_into().ok()?);
    let port = view.spec.ports.iter().find(|port| port.mac == mac && !matches!(port.role, PortRole::Dhcp))?;
    let (subnet, address) = lease(view, port)?;
    let server = server_address(view, subnet)?;
    let asked_server = match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(asked)) => Some(*asked),
        Some(_) | None => None,
    };
    if asked_server.is_some_and(|asked| asked != server) {
        return None;
    }
    let asked_address = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(asked)) => Some(*asked),
        Some(_) | None if !request.ciaddr().is_unspecified() => Some(request.ciaddr()),
        Some(_) | None => None,
    };
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if asked_address.is_some_and(|asked| asked != address) => MessageType::Nak,
        MessageType::Request | MessageType::Inform => MessageType::Ack,
        // There is no lease to give back, and a declined address is still the port's only one.
        _ => return None,
    };
    let inform = request.opts().has_msg_type(MessageType::Inform);
    let reply = reply(view, &request, port, subnet, (address, server), kind, inform);
    let mut payload = Vec::with_capacity(548);
    reply.encode(&mut Encoder::new(&mut payload)).ok()?;
    // Old clients throw away what is shorter than a BOOTP packet.
    payload.resize(payload.len().max(300), 0);
    let (to_mac, to) = if kind == MessageType::Nak {
        (Mac([0xff; 6]), Ipv4Addr::BROADCAST)
    } else if !request.ciaddr().is_unspecified() {
        (mac, request.ciaddr())
    } else if request.flags().broadcast() {
        (Mac([0xff; 6]), Ipv4Addr::BROADCAST)
    } else {
        (mac, address)
    };
    udp((view.port.mac, to_mac), SocketAddrV4::new(server, 67), SocketAddrV4::new(to, 68), &payload)
}

/// The port's first IPv4 address on a subnet with DHCP.
fn lease<'a>(view: &'a View, port: &PortSpec) -> Option<(&'a SubnetSpec, Ipv4Addr)> {
    port.addresses.iter().find_map(|(subnet, address)| {
        let IpAddr::V4(address) = address else { return None };
        let subnet = view.spec.subnets.iter().find(|there| there.id == *subnet && there.dhcp)?;
        Some((subnet, *address))
    })
}

fn server_address(view: &View, subnet: &SubnetSpec) -> Option<Ipv4Addr> {
    view.port.addresses.iter().find_map(|(id, address)| match address {
        IpAddr::V4(address) if *id == subnet.id => Some(*address),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    })
}

fn reply(
    view: &View,
    request: &Message,
    port: &PortSpec,
    subnet: &SubnetSpec,
    (address, server): (Ipv4Addr, Ipv4Addr),
    kind: MessageType,
    inform: bool,
) -> Message {
    let mut reply = Message::default();
    reply
        .set_opcode(Opcode::BootReply)
        .set_xid(request.xid())
        .set_flags(if kind == MessageType::Nak { Flags::default().set_broadcast() } else { request.flags() })
        .set_chaddr(request.chaddr());
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(server));
    if let Some(client) = request.opts().get(OptionCode::ClientIdentifier) {
        options.insert(client.clone());
    }
    if kind == MessageType::Nak {
        return reply;
    }
    if !inform {
        options.insert(DhcpOption::AddressLeaseTime(LEASE));
        options.insert(DhcpOption::Renewal(LEASE / 2));
        options.insert(DhcpOption::Rebinding(LEASE / 8 * 7));
    }
    let IpNet::V4(range) = subnet.cidr else { return reply };
    options.insert(DhcpOption::SubnetMask(range.netmask()));
    options.insert(DhcpOption::BroadcastAddr(range.broadcast()));
    options.insert(DhcpOption::InterfaceMtu(view.spec.mtu));
    let gateway = subnet.gateway.and_then(v4);
    if let Some(gateway) = gateway {
        options.insert(DhcpOption::Router(vec![gateway]));
    }
    let names: Vec<Ipv4Addr> = subnet.name_servers.iter().copied().filter_map(v4).collect();
    options.insert(DhcpOption::DomainNameServer(if names.is_empty() { vec![server] } else { names }));
    if !port.hostname.is_empty() {
        options.insert(DhcpOption::Hostname(port.hostname.clone()));
    }
    let domain = view.spec.dns_domain.trim_end_matches('.');
    if !domain.is_empty() {
        options.insert(DhcpOption::DomainName(domain.to_owned()));
    }
    options.insert(DhcpOption::ClasslessStaticRoute(static_routes(subnet, gateway, server)));
    if !inform {
        reply.set_yiaddr(address);
    } else {
        reply.set_ciaddr(request.ciaddr());
    }
    reply.set_siaddr(server);
    reply
}

/// A client that takes option 121 ignores option 3, so that the default route is said here again (RFC 3442).
fn static_routes(
    subnet: &SubnetSpec,
    gateway: Option<Ipv4Addr>,
    server: Ipv4Addr,
) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let mut routes = vec![(Ipv4Net::from(METADATA), server)];
    for (range, hop) in &subnet.routes {
        if let (IpNet::V4(range), IpAddr::V4(hop)) = (range, hop) {
            routes.push((range.trunc(), *hop));
        }
    }
    let given = routes.iter().any(|(range, _)| range.prefix_len() == 0);
    if let (Some(gateway), false) = (gateway, given) {
        routes.push((Ipv4Net::default(), gateway));
    }
    routes
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::tests::view;
    use proptest::prelude::*;

    fn request(mac: [u8; 6], kind: MessageType, asked: Option<Ipv4Addr>) -> Vec<u8> {
        let mut message = Message::default();
        message.set_chaddr(&mac).set_xid(7);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(asked) = asked {
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(asked));
        }
        message.to_vec().unwrap()
    }

    fn read(frame: &[u8]) -> Message {
        Message::decode(&mut Decoder::new(&frame[42..])).unwrap()
    }

    #[test]
    fn a_port_gets_its_address_and_only_that() {
        let (view, guest) = view();
        let fixed = Ipv4Addr::new(10, 0, 0, 5);
        let offer = read(&answer(&view, &request(guest.0, MessageType::Discover, None)).unwrap());
        assert_eq!((offer.yiaddr(), offer.opts().msg_type()), (fixed, Some(MessageType::Offer)));
        assert_eq!(offer.opts().get(OptionCode::InterfaceMtu), Some(&DhcpOption::InterfaceMtu(1442)));
        assert_eq!(
            offer.opts().get(OptionCode::ClasslessStaticRoute),
            Some(&DhcpOption::ClasslessStaticRoute(vec![
                (Ipv4Net::from(METADATA), Ipv4Addr::new(10, 0, 0, 2)),
                (Ipv4Net::default(), Ipv4Addr::new(10, 0, 0, 1)),
            ]))
        );
        let ack = read(&answer(&view, &request(guest.0, MessageType::Request, Some(fixed))).unwrap());
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        let other = Some(Ipv4Addr::new(10, 0, 0, 6));
        let nak = read(&answer(&view, &request(guest.0, MessageType::Request, other)).unwrap());
        assert_eq!((nak.yiaddr(), nak.opts().msg_type()), (Ipv4Addr::UNSPECIFIED, Some(MessageType::Nak)));
        assert!(answer(&view, &request([2, 9, 9, 9, 9, 9], MessageType::Discover, None)).is_none());
        assert!(answer(&view, &request(guest.0, MessageType::Release, None)).is_none());
    }

    proptest! {
        #[test]
        fn no_packet_harms(bytes in proptest::collection::vec(any::<u8>(), 0..600), length: u8) {
            let (view, guest) = view();
            let _ = answer(&view, &bytes);
            let mut packet = request(guest.0, MessageType::Discover, None);
            packet[2] = length;
            let keep = packet.len().min(236 + bytes.len() % 16);
            packet.truncate(keep.max(240));
            packet.extend_from_slice(&bytes);
            let _ = answer(&view, &packet);
        }
    }
}
