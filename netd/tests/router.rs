//! Routers in the real kernel: floating IPs from the machine itself, source NAT, and what must not pass.
#![allow(missing_docs, clippy::unwrap_used)]

mod lab;

use lab::{DEADLINE, Lab, egress, fetch, ingress, network, range_of_our_own};
use netd::engine::Engine;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use wire::ids::{FloatingIpId, Mac, NetworkId, PortId, RouterId, SubnetId};
use wire::net::{
    EnsureNetwork, EnsureRouter, FloatingSpec, ForgetNetwork, ForgetRouter, NetworkSpec, PortRole, PortSpec,
    RouterGateway, RouterLeg, RouterSpec, SubnetSpec,
};
use wire::{Generation, RefusedKind};

struct World {
    public: NetworkId,
    public_spec: NetworkSpec,
    router: RouterId,
    spec: RouterSpec,
    range: [u8; 3],
}

impl World {
    fn at(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.range;
        Ipv4Addr::new(a, b, c, last)
    }
}

/// An external network on this machine, and a router between it and `inside`, whose guest 0 has a floating IP.
fn world(number: u8, inside: (NetworkId, &mut NetworkSpec)) -> World {
    let range = range_of_our_own(number);
    let [a, b, c] = range;
    let outside = SubnetId::new();
    let leg = |network: NetworkId, last: u8, address: String| RouterLeg {
        port: PortId::new(),
        network,
        mac: Mac([0xfa, 0x16, 0x3e, 1, number, last]),
        addresses: vec![address.parse().unwrap()],
    };
    let public = NetworkId::new();
    let gateway = leg(public, 1, format!("{a}.{b}.{c}.10/24"));
    let inner = leg(inside.0, 2, "10.0.0.1/24".to_owned());
    let port = |leg: &RouterLeg, subnet: SubnetId| PortSpec {
        id: leg.port,
        mac: leg.mac,
        addresses: vec![(subnet, leg.addresses[0].addr())],
        hostname: String::new(),
        role: PortRole::Router,
        filter: None,
        allowed_pairs: vec![],
        admin_up: true,
    };
    let subnet = inside.1.subnets[0].id;
    inside.1.ports.push(port(&inner, subnet));
    let public_spec = NetworkSpec {
        mtu: 1400,
        provider: Some("public".to_owned()),
        dns_domain: String::new(),
        subnets: vec![SubnetSpec {
            id: outside,
            cidr: format!("{a}.{b}.{c}.0/24").parse().unwrap(),
            gateway: Some(Ipv4Addr::new(a, b, c, 1).into()),
            name_servers: vec![],
            routes: vec![],
            dhcp: false,
        }],
        ports: vec![port(&gateway, outside)],
    };
    let spec = RouterSpec {
        admin_up: true,
        interfaces: vec![inner],
        gateway: Some(RouterGateway {
            leg: gateway,
            next_hop: Some(Ipv4Addr::new(a, b, c, 1).into()),
            snat: true,
        }),
        floating: vec![FloatingSpec {
            id: FloatingIpId::new(),
            floating: Ipv4Addr::new(a, b, c, 20).into(),
            fixed: Ipv4Addr::new(10, 0, 0, 11).into(),
        }],
        routes: vec![],
    };
    World { public, public_spec, router: RouterId::new(), spec, range }
}

const PROVIDER: &str = "[[provider]]\nname = 'public'\nmode = 'host'\n";

#[tokio::test]
async fn floating_ips_work_both_ways_and_nothing_else_gets_in() {
    let mut lab = Lab::new(PROVIDER).await;
    let (id, mut spec) = network(2, &[egress(), ingress(6, 80), ingress(6, 82)]);
    let mut world = world(1, (id, &mut spec));
    let router = |world: &World, generation: u64| EnsureRouter {
        id: world.router,
        generation: Generation(generation),
        spec: world.spec.clone(),
    };
    let early = lab.client().call(&router(&world, 1)).await.unwrap_err();
    assert_eq!(early.kind, RefusedKind::Conflict, "{early}");
    lab.ensure(id, 1, &spec).await;
    lab.ensure(world.public, 1, &world.public_spec).await;
    lab.client().call(&router(&world, 1)).await.unwrap();

    let (one, two) = (lab.guest(&spec.ports[1], "10.0.0.1"), lab.guest(&spec.ports[2], "10.0.0.1"));
    one.serve(80, "one");
    one.serve(81, "closed");
    two.serve(80, "two");
    let host = world.at(1);
    // The machine reaches the guest, and the guest sees the machine.
    assert_eq!(fetch((world.at(20), 80)).unwrap(), format!("one {host}"));
    fetch((world.at(20), 81)).unwrap_err();
    // A neighbour reaches it by its floating IP too.
    assert_eq!(two.fetch((world.at(20), 80)).unwrap(), format!("one {}", world.at(10)));

    // Guests leave under their floating IP or the router's.
    let listener = std::net::TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
    assert_eq!(one.fetch((host, port)).unwrap(), world.at(20).to_string());
    assert_eq!(two.fetch((host, port)).unwrap(), world.at(10).to_string());

    // Nobody outside gets to a fixed address, even by a route through the gateway.
    lab::sh(&format!("ip route add 10.0.0.12/32 via {} ", world.at(10)));
    let direct = fetch((Ipv4Addr::new(10, 0, 0, 12), 80));
    lab::sh("ip route del 10.0.0.12/32");
    direct.unwrap_err();

    // What runs goes on without the daemon, and the daemon finds it as it was.
    lab.kill();
    assert_eq!(fetch((world.at(20), 80)).unwrap(), format!("one {host}"));
    lab.start().await;
    assert_eq!(fetch((world.at(20), 80)).unwrap(), format!("one {host}"));

    // The address moves to the other guest; what was connected through it is not, any more, in either direction.
    let held = one.within(|| std::net::TcpListener::bind(("10.0.0.11", 82))).unwrap();
    let mut caller = std::net::TcpStream::connect((world.at(20), 82)).unwrap();
    let (mut called, _) = held.accept().unwrap();
    for end in [&caller, &called] {
        end.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    called.write_all(b"x").unwrap();
    caller.read_exact(&mut [0]).unwrap();
    world.spec.floating[0].fixed = Ipv4Addr::new(10, 0, 0, 12).into();
    lab.client().call(&router(&world, 2)).await.unwrap();
    assert_eq!(fetch((world.at(20), 80)).unwrap(), format!("two {host}"));
    called.write_all(b"x").unwrap();
    caller.read_exact(&mut [0]).unwrap_err();
    caller.write_all(b"x").unwrap();
    called.read_exact(&mut [0]).unwrap_err();

    lab.client().call(&ForgetRouter { id: world.router, generation: Generation(3) }).await.unwrap();
    fetch((world.at(20), 80)).unwrap_err();
    lab.client().call(&ForgetNetwork { id, generation: Generation(2) }).await.unwrap();
    lab.client().call(&ForgetNetwork { id: world.public, generation: Generation(2) }).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_router_that_was_stopped_after_any_step_settles_and_purge_leaves_nothing() {
    let lab = Lab::prepare(PROVIDER);
    let (id, mut spec) = network(1, &[egress()]);
    let world = world(2, (id, &mut spec));
    let calls = (
        EnsureNetwork { id, generation: Generation(1), spec },
        EnsureNetwork { id: world.public, generation: Generation(1), spec: world.public_spec.clone() },
        EnsureRouter { id: world.router, generation: Generation(1), spec: world.spec.clone() },
    );
    let (begin, mut stops) = (Instant::now(), 0);
    loop {
        let engine = Engine::open(lab.config()).unwrap();
        engine.ensure_network(calls.0.clone()).await.unwrap();
        engine.steps().stop_after(stops);
        let done = engine.ensure_network(calls.1.clone()).await.is_ok()
            && engine.ensure_router(calls.2.clone()).await.is_ok();
        drop(engine);
        let engine = Engine::open(lab.config()).unwrap();
        engine.ensure_network(calls.1.clone()).await.unwrap();
        engine.ensure_router(calls.2.clone()).await.unwrap();
        engine.sweep().await.unwrap();
        if done {
            break;
        }
        lab.purge();
        assert_eq!(lab.leftovers(), Vec::<String>::new(), "after {stops} steps");
        stops += 1;
        assert!(begin.elapsed() < DEADLINE, "too slow at {stops}");
    }
    assert!(stops > 15, "{stops}");
}
