//! Networks in the real kernel: addresses, filters, isolation, restarts and crashes.
#![allow(missing_docs, clippy::unwrap_used)]

mod lab;

use base::rpc::{Allow, Router};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use lab::{Lab, Raw, egress, fake_api, ingress, network, ping, udp, udp_payload};
use netd::engine::Engine;
use std::net::Ipv4Addr;
use std::time::Duration;
use wire::RefusedKind;
use wire::ids::Mac;
use wire::metadata::{MetadataReply, ReadMetadata};
use wire::net::{EnsureNetwork, ForgetNetwork, ListWanted, PortRole};
use wire::{Call, Generation};

fn discover(guest: &Raw) -> Message {
    let mut message = Message::default();
    message.set_chaddr(&guest.mac.0).set_xid(99);
    message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    let everyone = (guest.mac, Mac([0xff; 6]));
    let addresses = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let frame = udp(everyone, addresses, (68, 67), &message.to_vec().unwrap());
    let answered = |frame: &[u8]| udp_payload(frame).is_some_and(|p| p.len() >= 300 && p[0] == 2);
    // A daemon that just started answers calls before it answers guests; clients ask again.
    let frames = (0..20).find_map(|_| {
        guest.send(&frame);
        guest.within(Duration::from_millis(500), answered)
    });
    let frames = frames.expect("a DHCP answer");
    Message::decode(&mut Decoder::new(udp_payload(frames.last().unwrap()).unwrap())).unwrap()
}

#[tokio::test]
async fn dhcp_gives_the_address_also_after_a_kill() {
    let mut lab = Lab::new("").await;
    let (id, spec) = network(1, &[egress()]);
    let state = lab.ensure(id, 1, &spec).await;
    assert_eq!((state.ready.as_slice(), state.failed.len()), (&[spec.ports[1].id][..], 0));
    let guest = lab.raw(&spec.ports[1]);
    let offer = discover(&guest);
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 0, 0, 11));
    assert_eq!(offer.opts().get(OptionCode::Hostname), Some(&DhcpOption::Hostname("guest0".into())));
    let busy = lab.open(spec.ports[1].id).unwrap_err();
    assert_eq!(busy.kind, RefusedKind::Conflict, "{busy}");
    lab.kill();
    lab.start().await;
    assert_eq!(lab.client().call(&ListWanted {}).await.unwrap().networks, [(id, Generation(1))]);
    // The tap that the guest holds is the same one.
    assert_eq!(discover(&guest).yiaddr(), Ipv4Addr::new(10, 0, 0, 11));
}

#[tokio::test]
async fn spoofed_frames_are_dropped() {
    let lab = Lab::new("").await;
    let (id, spec) = network(2, &[egress(), ingress(17, 6000)]);
    lab.ensure(id, 1, &spec).await;
    let (a, b) = (lab.raw(&spec.ports[1]), lab.raw(&spec.ports[2]));
    let stranger = Mac([0xfa, 0x16, 0x3e, 9, 9, 9]);
    a.send(&udp((stranger, b.mac), (a.address, b.address), (1, 6000), b"wrong mac"));
    a.send(&udp((a.mac, b.mac), (Ipv4Addr::new(10, 0, 0, 99), b.address), (1, 6000), b"wrong address"));
    a.send(&udp((a.mac, b.mac), (a.address, b.address), (67, 68), b"dhcp server"));
    let arp = |sender: Mac, claimed: Ipv4Addr, target: Ipv4Addr| {
        let mut frame = netd::link::packet::announcement(sender, claimed);
        frame[38..42].copy_from_slice(&target.octets());
        frame
    };
    a.send(&arp(a.mac, Ipv4Addr::new(10, 0, 0, 1), b.address));
    let mut tagged = udp((a.mac, b.mac), (a.address, b.address), (1, 6000), b"tagged");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    a.send(&tagged);
    // In order after all of these:
    a.send(&arp(a.mac, a.address, b.address));
    a.udp(&b, (1, 6000), b"honest");
    let frames = b.until(|frame| udp_payload(frame) == Some(b"honest"));
    let from_a: Vec<_> = frames.iter().filter(|frame| frame[6..12] != spec.ports[0].mac.0).collect();
    assert_eq!(from_a.len(), 2, "{from_a:02x?}");
    assert_eq!(from_a[0][28..32], a.address.octets(), "the honest ARP came");
}

#[tokio::test]
async fn groups_allow_what_they_say_and_replies_pass() {
    let lab = Lab::new("").await;
    let (id, mut spec) = network(2, &[egress(), ingress(17, 6000)]);
    lab.ensure(id, 1, &spec).await;
    let (a, b) = (lab.raw(&spec.ports[1]), lab.raw(&spec.ports[2]));
    a.udp(&b, (4000, 5000), b"closed");
    a.udp(&b, (4000, 6000), b"open");
    assert!(b.payloads_until(b"open").is_empty());
    // A reply needs no rule; the same from another port is no reply.
    b.udp(&a, (6001, 4000), b"unasked");
    b.udp(&a, (6000, 4000), b"reply");
    assert!(a.payloads_until(b"reply").is_empty());

    // Egress rules bind too: without one, nothing leaves; without filter, all passes.
    spec.ports[1].filter = Some(vec![]);
    lab.ensure(id, 2, &spec).await;
    a.udp(&b, (4001, 6000), b"muted");
    spec.ports[1].filter = None;
    spec.ports[2].filter = None;
    lab.ensure(id, 3, &spec).await;
    a.udp(&b, (4002, 5000), b"free");
    assert!(b.payloads_until(b"free").is_empty());
    let stale = EnsureNetwork { id, generation: Generation(2), spec };
    assert_eq!(lab.client().call(&stale).await.unwrap_err().kind, RefusedKind::Stale);
}

/// One rule goes while connections live: its own end in both directions, the others' go on, and nothing comes back by
/// the guest's own freedom to send.
#[tokio::test(flavor = "multi_thread")]
async fn what_lost_its_rule_ends_at_once_and_the_rest_goes_on() {
    use std::io::{Read, Write};
    let mut lab = Lab::new("").await;
    let rules = [egress(), ingress(6, 80), ingress(6, 81), ingress(17, 6000), ingress(17, 6001), ping()];
    let (id, mut spec) = network(4, &rules);
    lab.ensure(id, 1, &spec).await;
    let (client, server) = (lab.guest(&spec.ports[1], "10.0.0.1"), lab.guest(&spec.ports[2], "10.0.0.1"));
    let (asker, answerer) = (lab.raw(&spec.ports[3]), lab.raw(&spec.ports[4]));
    let talk = |port: u16| {
        let listener = server.within(|| std::net::TcpListener::bind(("10.0.0.12", port))).unwrap();
        let near = client.within(|| std::net::TcpStream::connect(("10.0.0.12", port))).unwrap();
        let (far, _) = listener.accept().unwrap();
        for end in [&near, &far] {
            end.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            end.set_nodelay(true).unwrap();
        }
        (near, far)
    };
    let said = |from: &mut std::net::TcpStream, to: &mut std::net::TcpStream| {
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0]).is_ok()
    };
    let ((mut near, mut far), (mut kept, mut kept_far)) = (talk(80), talk(81));
    assert!(said(&mut near, &mut far) && said(&mut far, &mut near));
    asker.udp(&answerer, (4000, 6000), b"to lose");
    asker.udp(&answerer, (4000, 6001), b"to keep");
    asker.send(&lab::echo(&asker, &answerer, 8, 7));
    answerer.until(|frame| lab::echoed(frame) == Some((8, 7)));
    answerer.send(&lab::echo(&answerer, &asker, 0, 7));
    asker.until(|frame| lab::echoed(frame) == Some((0, 7)));

    let left = [egress(), ingress(6, 81), ingress(17, 6001)];
    for port in &mut spec.ports {
        port.filter = Some(left.to_vec());
    }
    lab.ensure(id, 2, &spec).await;
    // The answering side first, as its packets alone could keep a connection open.
    assert!(!said(&mut far, &mut near), "the server still reaches its client");
    assert!(!said(&mut near, &mut far), "the client still reaches its server");
    assert!(said(&mut kept_far, &mut kept) && said(&mut kept, &mut kept_far));
    answerer.udp(&asker, (6000, 4000), b"late reply");
    answerer.send(&lab::echo(&answerer, &asker, 0, 7));
    answerer.udp(&asker, (6001, 4000), b"reply");
    let frames = asker.until(|frame| udp_payload(frame) == Some(b"reply"));
    let lost = |frame: &&Vec<u8>| udp_payload(frame) == Some(b"late reply") || lab::echoed(frame).is_some();
    assert_eq!(frames.iter().filter(lost).count(), 0);
    asker.udp(&answerer, (4000, 6000), b"more");
    asker.send(&lab::echo(&asker, &answerer, 8, 7));
    asker.udp(&answerer, (4000, 6001), b"end");
    let frames = answerer.until(|frame| udp_payload(frame) == Some(b"end"));
    let lost = |frame: &&Vec<u8>| udp_payload(frame) == Some(b"more") || lab::echoed(frame) == Some((8, 7));
    assert_eq!(frames.iter().filter(lost).count(), 0);
    assert!(said(&mut kept_far, &mut kept) && said(&mut kept, &mut kept_far));
}

#[tokio::test]
async fn tenants_with_the_same_addresses_do_not_meet() {
    let lab = Lab::new("").await;
    let (one, first) = network(2, &[egress(), ingress(17, 6000)]);
    let (two, second) = network(2, &[egress(), ingress(17, 6000)]);
    lab.ensure(one, 1, &first).await;
    lab.ensure(two, 1, &second).await;
    let guests = |spec: &wire::net::NetworkSpec| (lab.raw(&spec.ports[1]), lab.raw(&spec.ports[2]));
    let ((a1, b1), (a2, b2)) = (guests(&first), guests(&second));
    a1.udp(&b1, (1, 6000), b"first");
    a2.udp(&b2, (1, 6000), b"second");
    a1.udp(&b1, (1, 6000), b"end");
    a2.udp(&b2, (1, 6000), b"end");
    assert_eq!(b1.payloads_until(b"end"), [b"first".to_vec()]);
    assert_eq!(b2.payloads_until(b"end"), [b"second".to_vec()]);
}

#[tokio::test]
async fn metadata_reaches_the_api_with_the_right_server() {
    let mut lab = Lab::new("").await;
    let (id, spec) = network(2, &[egress()]);
    lab.ensure(id, 1, &spec).await;
    let guest = lab.guest(&spec.ports[2], "10.0.0.1");
    let away = guest.http("/latest/meta-data/").unwrap();
    assert!(away.starts_with("HTTP/1.1 503"), "{away}");
    let api = Router::new().serve(|call: ReadMetadata| async move {
        let body = format!("{} {} {}", call.server, call.port, call.path).into_bytes();
        Ok(MetadataReply { status: 200, content_type: "text/plain".into(), body })
    });
    let serving = base::rpc::listen(
        &lab.dir.path().join("api.sock"),
        0o600,
        api,
        Allow::own(),
        base::CancellationToken::new(),
    );
    tokio::spawn(serving.unwrap());
    let answer =
        tokio::task::spawn_blocking(move || guest.http("/openstack/latest/meta_data.json?x=1").unwrap());
    let answer = answer.await.unwrap();
    let PortRole::Server { server } = spec.ports[2].role else { panic!() };
    let wanted = format!("{server} {} /openstack/latest/meta_data.json", spec.ports[2].id);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&wanted), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_port_or_an_allowed_pair_reads_no_neighbours_metadata() {
    let mut lab = Lab::new("").await;
    let (id, mut spec) = network(4, &[egress()]);
    // Port security is off on the first; the second may use the victim's address; the last only watches.
    spec.ports[1].filter = None;
    spec.ports[2].allowed_pairs = vec![("10.0.0.13/32".parse().unwrap(), None)];
    spec.ports[4].filter = None;
    lab.ensure(id, 1, &spec).await;
    fake_api(&lab);
    let guest = |lab: &mut Lab, number: usize| lab.guest(&spec.ports[number], "10.0.0.1");
    let (open, paired, victim) = (guest(&mut lab, 1), guest(&mut lab, 2), guest(&mut lab, 3));
    let watcher = lab.raw(&spec.ports[4]);
    let server = |number: usize| match spec.ports[number].role {
        PortRole::Server { server } => server.to_string(),
        PortRole::Dhcp | PortRole::Router => unreachable!(),
    };
    let own = |guest: &lab::Guest, number: usize| {
        let answer = guest.http("/x").unwrap();
        assert!(answer.ends_with(&server(number)), "{answer}");
    };
    own(&open, 1);
    own(&paired, 2);

    // Neighbours that claim to be the victim, or the responder, are not believed.
    let claim = |sender: Mac, address: [u8; 4], target: [u8; 4]| {
        let mut frame = netd::link::packet::announcement(sender, address.into());
        frame[38..42].copy_from_slice(&target);
        frame
    };
    own(&victim, 3);
    watcher.send(&claim(watcher.mac, [10, 0, 0, 13], [10, 0, 0, 2]));
    watcher.send(&claim(watcher.mac, [10, 0, 0, 2], [10, 0, 0, 13]));
    own(&victim, 3);

    // The victim's address, then its Ethernet address too: nothing comes back, and nothing is let in for it.
    for (thief, number) in [(&open, 1), (&paired, 2)] {
        let thieves = thief.place.to_string();
        lab::sh(&format!(
            "ip -n {thieves} addr del 10.0.0.{0}/24 dev eth0; ip -n {thieves} addr add 10.0.0.13/24 dev eth0; \
             ip -n {thieves} route add 169.254.169.254/32 via 10.0.0.2",
            10 + number
        ));
        let stolen = thief.http("/x");
        assert!(stolen.is_err(), "{stolen:?}");
    }
    let thieves = open.place.to_string();
    lab::sh(&format!("ip -n {thieves} link set eth0 address {}", spec.ports[3].mac));
    let stolen = open.http("/x");
    assert!(stolen.is_err(), "{stolen:?}");
    // Neither does a priority tag hide the frame from the rules: no answer to this SYN.
    let syn = lab::syn(
        (watcher.mac, spec.ports[0].mac),
        (Ipv4Addr::new(10, 0, 0, 13), Ipv4Addr::new(169, 254, 169, 254)),
        (4321, 80),
    );
    let mut tagged = syn.clone();
    tagged.splice(12..12, [0x81, 0, 0, 0]);
    watcher.send(&tagged);
    // Its own goes through, so the one before has been dealt with.
    let mine = lab::syn(
        (watcher.mac, spec.ports[0].mac),
        (watcher.address, Ipv4Addr::new(169, 254, 169, 254)),
        (4322, 80),
    );
    watcher.send(&claim(watcher.mac, [10, 0, 0, 14], [10, 0, 0, 2]));
    watcher.send(&mine);
    let from_metadata = |frame: &[u8]| frame[12..14] == [8, 0] && frame[26..30] == [169, 254, 169, 254];
    let frames = watcher.until(from_metadata);
    assert_eq!(frames.last().unwrap()[36..38], 4322u16.to_be_bytes(), "{frames:02x?}");
}

/// A question for the addresses (1) or the name (12) of a name.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut text = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        text.push(u8::try_from(label.len()).unwrap());
        text.extend(label.bytes());
    }
    text.push(0);
    text.extend([kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_over_the_wire_and_others_elsewhere() {
    // What answers for the rest of the world: with its own query's number, and an address of its own.
    let upstream = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let more = format!("dns_upstreams = ['{}']\n", upstream.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0u8; 512];
        while let Ok((length, from)) = upstream.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
            let _ = upstream.send_to(&answer, from);
        }
    });
    let mut lab = Lab::new(&more).await;
    let (id, spec) = network(2, &[egress()]);
    lab.ensure(id, 1, &spec).await;
    let guest = lab.guest(&spec.ports[1], "10.0.0.1");
    let ask = |name: &str, kind: u16| {
        guest
            .within(|| {
                let socket = std::net::UdpSocket::bind(("10.0.0.11", 0))?;
                socket.connect(("10.0.0.2", 53))?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send(&query(name, kind))?;
                let mut buffer = [0u8; 512];
                let length = socket.recv(&mut buffer)?;
                Ok(buffer[..length].to_vec())
            })
            .unwrap()
    };
    let neighbour = ask("guest1.cloud.test", 1);
    assert_eq!((&neighbour[..2], neighbour[3] & 15, neighbour[7]), (&[0x12, 0x34][..], 0, 1));
    assert!(neighbour.ends_with(&[0, 4, 10, 0, 0, 12]), "{neighbour:02x?}");
    let backwards = ask("12.0.0.10.in-addr.arpa", 12);
    assert!(backwards.ends_with(b"\x06guest1\x05cloud\x04test\0"), "{backwards:02x?}");
    assert_eq!(ask("nobody.cloud.test", 1)[3] & 15, 3, "there is no such name");
    let outside = ask("www.example.org", 1);
    assert!(outside.ends_with(&[192, 0, 2, 7]), "{outside:02x?}");
    // Without anyone to ask, names outside are refused.
    lab.kill();
    let config = lab.dir.path().join("netd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&more, "")).unwrap();
    lab.start().await;
    // A daemon that just started answers calls before it answers guests.
    let refused = || {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask("www.example.org", 1)));
        answer.is_ok_and(|answer| answer[3] & 15 == 5)
    };
    assert!((0..50).any(|_| refused() || {
        std::thread::sleep(Duration::from_millis(100));
        false
    }));
}

#[tokio::test]
async fn a_forgotten_network_leaves_nothing_even_while_a_guest_holds_its_tap() {
    let lab = Lab::new("").await;
    let (id, spec) = network(1, &[]);
    lab.ensure(id, 1, &spec).await;
    let _held = lab.open(spec.ports[1].id).unwrap();
    assert_eq!(lab.leftovers().len(), 1);
    lab.client().call(&ForgetNetwork { id, generation: Generation(2) }).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    let late = EnsureNetwork { id, generation: Generation(1), spec };
    assert_eq!(lab.client().call(&late).await.unwrap_err().kind, RefusedKind::Stale);
    assert_eq!(lab.client().call(&ListWanted {}).await.unwrap().networks, []);
}

/// Every change of the kernel is counted; the work is stopped before the n-th, for every n, and started anew.
#[tokio::test]
async fn a_crash_after_any_step_settles_by_itself() {
    let lab = Lab::prepare("");
    let (id, spec) = network(2, &[egress()]);
    let call = EnsureNetwork { id, generation: Generation(1), spec };
    let mut stops = 0;
    loop {
        let engine = Engine::open(lab.config()).unwrap();
        engine.steps().stop_after(stops);
        let outcome = engine.ensure_network(call.clone()).await;
        drop(engine);
        let engine = Engine::open(lab.config()).unwrap();
        engine.sweep().await.unwrap();
        for port in &call.spec.ports[1..] {
            engine.open_tap(port.id).unwrap();
        }
        // Settled means that there is nothing left to do.
        engine.steps().stop_after(0);
        engine
            .sweep()
            .await
            .unwrap_or_else(|error| panic!("after {stops} steps there is still work: {error}"));
        if outcome.is_ok() {
            break;
        }
        // And the way back, stopped half-way too.
        let engine = Engine::open(lab.config()).unwrap();
        engine.steps().stop_after(stops % 5);
        let _ = engine.forget_network(ForgetNetwork { id, generation: Generation(2) }).await;
        std::fs::remove_dir_all(lab.dir.path().join("state")).unwrap();
        let engine = Engine::open(lab.config()).unwrap();
        engine.sweep().await.unwrap();
        assert_eq!(lab.leftovers(), Vec::<String>::new(), "after {stops} steps");
        stops += 1;
    }
    assert!(stops > 10, "{} has {stops} steps only", EnsureNetwork::PATH);
    lab.purge();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}
