//! The service over a store, with a `netd` that keeps generations as the real one does.

use super::inner::{self, NetRequest};
use super::records::{Port, find, save_port};
use crate::testing::{Answer, Cloud, DEMO_PROJECT, OTHER_PROJECT};
use base::rpc::Router;
use base::store::testing::on_both;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use wire::cloud::Attest;
use wire::ids::{NetworkId, PortId, RouterId, ServerId};
use wire::net::{
    Direction, EnsureNetwork, EnsureRouter, ForgetNetwork, ForgetRouter, ListWanted, NetworkSpec,
    NetworkState, PortRole, RouterSpec, Wanted,
};
use wire::{Generation, Refused, RefusedKind};

#[derive(Clone, Default)]
struct Kernel {
    networks: Arc<Mutex<BTreeMap<NetworkId, (Generation, NetworkSpec)>>>,
    routers: Arc<Mutex<BTreeMap<RouterId, (Generation, RouterSpec)>>>,
}

fn newer<K: Ord, S: PartialEq>(
    map: &mut BTreeMap<K, (Generation, S)>,
    id: K,
    new: (Generation, S),
) -> Result<(), Refused> {
    match map.get(&id) {
        Some(old) if new.0 < old.0 => Err(Refused::new(RefusedKind::Stale, "old")),
        Some(old) if new.0 == old.0 && new.1 != old.1 => {
            Err(Refused::conflict("the same number for something else"))
        }
        Some(_) | None => {
            map.insert(id, new);
            Ok(())
        }
    }
}

impl Kernel {
    fn router(&self) -> Router {
        let (a, b, c, d, e) = (self.clone(), self.clone(), self.clone(), self.clone(), self.clone());
        Router::new()
            .serve(move |call: EnsureNetwork| {
                let server = |port: &&wire::net::PortSpec| matches!(port.role, PortRole::Server { .. });
                let ready = call.spec.ports.iter().filter(server).map(|port| port.id).collect();
                let outcome = newer(&mut a.networks.lock().unwrap(), call.id, (call.generation, call.spec));
                let state = NetworkState { generation: call.generation, ready, failed: vec![] };
                async move { outcome.map(|()| state) }
            })
            .serve(move |call: EnsureRouter| {
                let known = b.networks.lock().unwrap();
                let legs =
                    call.spec.interfaces.iter().chain(call.spec.gateway.as_ref().map(|gateway| &gateway.leg));
                let all = legs.into_iter().all(|leg| {
                    let ports =
                        known.get(&leg.network).map(|(_, spec)| spec.ports.as_slice()).unwrap_or_default();
                    ports.iter().any(|port| port.id == leg.port)
                });
                let outcome = if all {
                    newer(&mut b.routers.lock().unwrap(), call.id, (call.generation, call.spec))
                } else {
                    Err(Refused::conflict("a leg into a network that does not know it"))
                };
                async move { outcome }
            })
            .serve(move |call: ForgetNetwork| {
                c.networks.lock().unwrap().remove(&call.id);
                async move { Ok(()) }
            })
            .serve(move |call: ForgetRouter| {
                d.routers.lock().unwrap().remove(&call.id);
                async move { Ok(()) }
            })
            .serve(move |_: ListWanted| {
                let networks = e.networks.lock().unwrap().iter().map(|(id, (n, _))| (*id, *n)).collect();
                let routers = e.routers.lock().unwrap().iter().map(|(id, (n, _))| (*id, *n)).collect();
                async move { Ok(Wanted { networks, routers }) }
            })
    }
}

/// Daemons that remember another cloud for as long as they are told to.
fn attesting(cloud: &Cloud) -> Arc<AtomicBool> {
    let foreign = Arc::new(AtomicBool::new(true));
    for daemon in ["host", "block"] {
        let foreign = foreign.clone();
        let answer = move |_: Attest| {
            let refused = Refused::new(RefusedKind::Forbidden, "this belongs to another cloud");
            let outcome = if foreign.load(Ordering::SeqCst) { Err(refused) } else { Ok(()) };
            async move { outcome }
        };
        cloud.daemon(daemon, Router::new().serve(answer));
    }
    foreign
}

async fn ok(cloud: &Cloud, token: &str, method: &str, path: &str, body: Option<Value>) -> Value {
    let answer = cloud.call(token, method, &format!("/network/v2.0/{path}"), body).await;
    assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.json);
    answer.json
}

async fn refused(cloud: &Cloud, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
    let answer: Answer = cloud.call(token, method, &format!("/network/v2.0/{path}"), body).await;
    let kind = answer.json["NeutronError"]["type"].as_str().unwrap_or_default().to_owned();
    assert!(answer.status >= 400, "{method} {path}: {} {}", answer.status, answer.json);
    (answer.status, kind)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// `(network, subnet)` of a project, with this range.
async fn net(cloud: &Cloud, token: &str, name: &str, cidr: &str) -> (String, String) {
    let network = ok(cloud, token, "POST", "networks", Some(json!({"network": {"name": name}}))).await;
    let network = text(&network["network"]["id"]);
    let body = json!({"subnet": {"network_id": network, "cidr": cidr, "ip_version": 4}});
    let subnet = ok(cloud, token, "POST", "subnets", Some(body)).await;
    (network, text(&subnet["subnet"]["id"]))
}

async fn public(cloud: &Cloud) -> String {
    let body = json!({"network": {"name": "public", "router:external": true, "provider:network_type": "flat",
        "provider:physical_network": "public"}});
    let id = text(&ok(cloud, "admin", "POST", "networks", Some(body)).await["network"]["id"]);
    let body = json!({"subnet": {"network_id": id, "cidr": "203.0.113.0/24", "ip_version": 4, "enable_dhcp": false}});
    ok(cloud, "admin", "POST", "subnets", Some(body)).await;
    id
}

#[tokio::test]
async fn a_server_is_wired_reached_and_let_go() {
    on_both(|store| async move {
        let cloud = Cloud::on(store).await;
        let kernel = Kernel::default();
        cloud.daemon("net", kernel.router());
        let public = public(&cloud).await;
        let (network, subnet) = net(&cloud, "demo", "one", "10.0.0.0/24").await;
        let body = json!({"router": {"name": "r", "external_gateway_info": {"network_id": public}}});
        let router = ok(&cloud, "demo", "POST", "routers", Some(body)).await;
        let router = text(&router["router"]["id"]);
        let path = format!("routers/{router}/add_router_interface");
        ok(&cloud, "demo", "PUT", &path, Some(json!({"subnet_id": subnet}))).await;
        let again = refused(&cloud, "demo", "PUT", &path, Some(json!({"subnet_id": subnet}))).await;
        assert_eq!(again, (400, "BadRequest".to_owned()));

        let server = ServerId::new();
        let take = async || {
            inner::allocate(&cloud.app, DEMO_PROJECT, server, &[NetRequest::Auto], &[], "My server", "host-1")
                .await
                .unwrap()
        };
        let ports = take().await;
        assert_eq!(take().await, ports, "a repeated step makes no second port");
        assert_eq!(ports.len(), 1);
        assert_eq!(ports[0].network_name, "one");
        inner::wire(&cloud.app, ports[0].port).await.unwrap();
        let id = ports[0].port.to_string();
        let port = ok(&cloud, "demo", "GET", &format!("ports/{id}"), None).await;
        assert_eq!(port["port"]["status"], "ACTIVE");
        {
            let networks = kernel.networks.lock().unwrap();
            let spec = &networks.values().next().unwrap().1;
            let guest = spec.ports.iter().find(|port| port.role == PortRole::Server { server }).unwrap();
            assert_eq!(guest.hostname, "my-server");
            let ingress: Vec<_> = guest
                .filter
                .as_ref()
                .unwrap()
                .iter()
                .filter(|rule| rule.direction == Direction::Ingress)
                .collect();
            assert!(ingress.iter().all(|rule| rule.remote_only && rule.remote.len() == 1), "{ingress:?}");
            assert!(spec.ports.iter().any(|port| port.role == PortRole::Dhcp));
        }

        let body = json!({"floatingip": {"floating_network_id": public, "port_id": id}});
        let floating = ok(&cloud, "demo", "POST", "floatingips", Some(body)).await["floatingip"].clone();
        assert_eq!((&floating["status"], &floating["router_id"]), (&json!("ACTIVE"), &json!(router)));
        super::push::settle(cloud.app.clone()).await.unwrap();
        {
            let routers = kernel.routers.lock().unwrap();
            let spec = &routers.values().next().unwrap().1;
            assert_eq!(spec.floating[0].floating.to_string(), floating["floating_ip_address"]);
            assert_eq!(spec.gateway.as_ref().unwrap().next_hop.unwrap().to_string(), "203.0.113.1");
        }
        let shown = inner::of_servers(&cloud.app, &[server]).await.unwrap();
        assert_eq!(shown[&server][0].floating.len(), 1);

        // What is in use stays.
        let path = |many: &str, id: &str| format!("{many}/{id}");
        for (many, id, kind) in [
            ("networks", &network, "NetworkInUse"),
            ("subnets", &subnet, "SubnetInUse"),
            ("routers", &router, "RouterInUse"),
        ] {
            assert_eq!(
                refused(&cloud, "demo", "DELETE", &path(many, id), None).await,
                (409, kind.to_owned())
            );
        }
        let off = Some(json!({"router": {"external_gateway_info": null}}));
        assert_eq!(refused(&cloud, "demo", "PUT", &path("routers", &router), off).await.0, 409);

        inner::release(&cloud.app, server).await.unwrap();
        inner::release(&cloud.app, server).await.unwrap();
        let left = ok(&cloud, "demo", "GET", "floatingips", None).await;
        assert_eq!(left["floatingips"][0]["status"], "DOWN");
        ok(&cloud, "demo", "DELETE", &path("floatingips", &text(&floating["id"])), None).await;
        let leave = format!("routers/{router}/remove_router_interface");
        ok(&cloud, "demo", "PUT", &leave, Some(json!({"subnet_id": subnet}))).await;
        ok(&cloud, "demo", "DELETE", &path("routers", &router), None).await;
        ok(&cloud, "demo", "DELETE", &path("networks", &network), None).await;
        ok(&cloud, "admin", "DELETE", &path("networks", &public), None).await;
        // Nothing is taken away for a database that the daemons which remember theirs do not know.
        let foreign = attesting(&cloud);
        let fault = super::push::settle(cloud.app.clone()).await.unwrap_err();
        assert!(fault.to_string().contains("another cloud"), "{fault}");
        assert_eq!((kernel.networks.lock().unwrap().len(), kernel.routers.lock().unwrap().len()), (2, 1));
        foreign.store(false, Ordering::SeqCst);
        super::push::settle(cloud.app.clone()).await.unwrap();
        assert!(kernel.networks.lock().unwrap().is_empty() && kernel.routers.lock().unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_port_of_a_users_own_is_claimed_and_given_back() {
    let cloud = Cloud::new().await;
    cloud.daemon("net", Kernel::default().router());
    let (network, _) = net(&cloud, "demo", "one", "10.0.0.0/24").await;
    let body = json!({"port": {"network_id": network, "fixed_ips": [{"ip_address": "10.0.0.77"}]}});
    let id = text(&ok(&cloud, "demo", "POST", "ports", Some(body)).await["port"]["id"]);
    let server = ServerId::new();
    let request = [NetRequest::Port { port_id: id.clone() }];
    let ports =
        inner::allocate(&cloud.app, DEMO_PROJECT, server, &request, &[], "a", "host-1").await.unwrap();
    assert!(ports[0].preexisting && ports[0].addresses[0].0.to_string() == "10.0.0.77");
    let other = inner::allocate(&cloud.app, DEMO_PROJECT, ServerId::new(), &request, &[], "b", "host-1")
        .await
        .unwrap_err();
    assert_eq!(other.status.as_u16(), 409);
    inner::release(&cloud.app, server).await.unwrap();
    let port = ok(&cloud, "demo", "GET", &format!("ports/{id}"), None).await;
    assert_eq!((&port["port"]["device_id"], &port["port"]["status"]), (&json!(""), &json!("DOWN")));
    let gone = inner::wire(&cloud.app, PortId::new()).await.unwrap_err();
    assert_eq!(gone.status.as_u16(), 404);
}

#[tokio::test]
async fn others_do_not_see_and_cannot_change() {
    let cloud = Cloud::new().await;
    let (network, subnet) = net(&cloud, "demo", "mine", "10.0.0.0/24").await;
    let path = format!("networks/{network}");
    assert_eq!(refused(&cloud, "other", "GET", &path, None).await, (404, "NetworkNotFound".to_owned()));
    assert_eq!(refused(&cloud, "other", "DELETE", &path, None).await.0, 404);
    let rename = Some(json!({"network": {"name": "x"}}));
    assert_eq!(refused(&cloud, "reader", "PUT", &path, rename.clone()).await.0, 403);
    assert_eq!(ok(&cloud, "other", "GET", "networks", None).await["networks"], json!([]));
    let share = Some(json!({"network": {"shared": true}}));
    assert_eq!(
        refused(&cloud, "demo", "PUT", &path, share.clone()).await,
        (403, "PolicyNotAuthorized".to_owned())
    );
    ok(&cloud, "admin", "PUT", &path, share).await;
    // Shared: seen and used, not changed.
    assert_eq!(ok(&cloud, "other", "GET", "subnets", None).await["subnets"][0]["id"], json!(subnet));
    assert_eq!(refused(&cloud, "other", "PUT", &path, rename).await.0, 403);
    let port = Some(json!({"port": {"network_id": network}}));
    let port = ok(&cloud, "other", "POST", "ports", port).await["port"].clone();
    assert_eq!(port["project_id"], OTHER_PROJECT);
    assert!(port.get("binding:host_id").is_none());
    let unshare = Some(json!({"network": {"shared": false}}));
    assert_eq!(
        refused(&cloud, "admin", "PUT", &path, unshare).await,
        (409, "InvalidSharedSetting".to_owned())
    );
    let foreign = Some(json!({"network": {"name": "x", "project_id": OTHER_PROJECT}}));
    assert_eq!(refused(&cloud, "demo", "POST", "networks", foreign).await.0, 403);
}

/// A tenant's own ports with another tenant's ids in them: nothing of the other's changes.
#[tokio::test]
async fn own_ports_do_not_become_part_of_others() {
    let cloud = Cloud::new().await;
    let kernel = Kernel::default();
    cloud.daemon("net", kernel.router());
    // The victim: a router with a leg, a server, and a network that is shared with all.
    let (shared, subnet) = net(&cloud, "demo", "a", "10.0.0.0/24").await;
    let share = Some(json!({"network": {"shared": true}}));
    ok(&cloud, "admin", "PUT", &format!("networks/{shared}"), share).await;
    let router = async |token: &str, subnet: &str| {
        let made = ok(&cloud, token, "POST", "routers", Some(json!({"router": {"name": "r"}}))).await;
        let id = text(&made["router"]["id"]);
        let path = format!("routers/{id}/add_router_interface");
        let leg = ok(&cloud, token, "PUT", &path, Some(json!({"subnet_id": subnet}))).await;
        (id, text(&leg["port_id"]))
    };
    let (victim, _) = router("demo", &subnet).await;
    let request = [NetRequest::Network { network_id: shared.clone(), fixed_ip: None }];
    let server = ServerId::new();
    let theirs =
        inner::allocate(&cloud.app, DEMO_PROJECT, server, &request, &[], "a", "host-1").await.unwrap();
    // The attacker: a router's leg, a server's port, a free port on its own network, one on the shared one.
    let (inside, own_subnet) = net(&cloud, "other", "b", "10.1.0.0/24").await;
    let (_, leg) = router("other", &own_subnet).await;
    let request = [NetRequest::Network { network_id: inside.clone(), fixed_ip: None }];
    let mine = ServerId::new();
    let bound = inner::allocate(&cloud.app, OTHER_PROJECT, mine, &request, &[], "b", "host-1").await.unwrap();
    let bound = bound[0].port.to_string();
    let port = async |network: &str| {
        let body = json!({"port": {"network_id": network}});
        text(&ok(&cloud, "other", "POST", "ports", Some(body)).await["port"]["id"])
    };
    let (free, guest) = (port(&inside).await, port(&shared).await);
    let foreign = theirs[0].port.to_string();
    let pairs = json!([{"ip_address": "10.0.0.1"}]);
    for (method, id, body, status, kind) in [
        ("PUT", &leg, json!({"device_id": victim}), 409, "ServicePortInUse"),
        ("PUT", &leg, json!({"device_owner": "compute:nova"}), 409, "ServicePortInUse"),
        ("PUT", &leg, json!({"device_owner": "network:dhcp"}), 403, "PolicyNotAuthorized"),
        (
            "PUT",
            &free,
            json!({"device_owner": "network:router_interface", "device_id": victim}),
            403,
            "PolicyNotAuthorized",
        ),
        ("PUT", &bound, json!({"device_id": server}), 409, "PortInUse"),
        ("PUT", &bound, json!({"device_id": ""}), 409, "PortInUse"),
        ("PUT", &bound, json!({"device_owner": ""}), 409, "PortInUse"),
        ("PUT", &guest, json!({"allowed_address_pairs": pairs}), 403, "PolicyNotAuthorized"),
        ("PUT", &guest, json!({"fixed_ips": [{"ip_address": "10.0.0.200"}]}), 403, "PolicyNotAuthorized"),
        ("PUT", &guest, json!({"fixed_ips": [{"subnet_id": subnet}]}), 403, "PolicyNotAuthorized"),
        ("PUT", &free, json!({"binding:host_id": "host-1"}), 403, "PolicyNotAuthorized"),
        ("PUT", &foreign, json!({"device_id": mine}), 404, "PortNotFound"),
        (
            "POST",
            &shared,
            json!({"network_id": shared, "allowed_address_pairs": pairs}),
            403,
            "PolicyNotAuthorized",
        ),
        (
            "POST",
            &shared,
            json!({"network_id": shared, "fixed_ips": [{"ip_address": "10.0.0.200"}]}),
            403,
            "PolicyNotAuthorized",
        ),
        (
            "POST",
            &inside,
            json!({"network_id": inside, "device_id": victim, "device_owner": "network:router_interface"}),
            403,
            "PolicyNotAuthorized",
        ),
    ] {
        let path = if method == "PUT" { format!("ports/{id}") } else { "ports".to_owned() };
        let got = refused(&cloud, "other", method, &path, Some(json!({"port": body}))).await;
        assert_eq!(got, (status, kind.to_owned()), "{method} {body}");
    }
    // What stays allowed: the same words again, names, pairs on one's own network, a free port's device.
    for (id, body) in [
        (&bound, json!({"device_id": mine, "device_owner": "compute:nova", "name": "n"})),
        (&guest, json!({"allowed_address_pairs": [], "name": "n"})),
        (&free, json!({"allowed_address_pairs": pairs, "fixed_ips": [{"ip_address": "10.1.0.50"}]})),
        (&free, json!({"device_id": server, "device_owner": "compute:nova"})),
    ] {
        ok(&cloud, "other", "PUT", &format!("ports/{id}"), Some(json!({"port": body}))).await;
    }
    // That device is only a word. Not even an administrator's host makes it the server's.
    let host = Some(json!({"port": {"binding:host_id": "host-1"}}));
    ok(&cloud, "admin", "PUT", &format!("ports/{free}"), host).await;
    let all = inner::of_servers(&cloud.app, &[server, mine]).await.unwrap();
    assert_eq!(all[&server].iter().map(|port| port.port).collect::<Vec<_>>(), [theirs[0].port]);
    assert_eq!(all[&mine].len(), 1);
    // A leg that names the victim's router, as an older release let tenants make.
    let id = &leg;
    let router_id = &victim;
    let moved = cloud.app.store.tx(|tx| async move {
        let mut port: Port = find(&tx, id).await?.unwrap();
        port.device_id.clone_from(router_id);
        save_port(&tx, &port).await
    });
    moved.await.unwrap();
    super::push::settle(cloud.app.clone()).await.unwrap();
    {
        let routers = kernel.routers.lock().unwrap();
        let legs = |id: &str| routers[&id.parse().unwrap()].1.interfaces.len();
        assert_eq!(legs(&victim), 1, "only its own leg");
        let networks = kernel.networks.lock().unwrap();
        let ports = networks.values().flat_map(|(_, spec)| &spec.ports);
        let guests: Vec<String> = ports
            .filter(|port| matches!(port.role, PortRole::Server { .. }))
            .map(|port| port.id.to_string())
            .collect();
        assert_eq!(guests.len(), 2, "{guests:?}");
        assert!(guests.contains(&foreign) && guests.contains(&bound), "{guests:?}");
    }
    // The victim's release takes its own port and leaves the one that only names it.
    inner::release(&cloud.app, server).await.unwrap();
    let left = ok(&cloud, "other", "GET", &format!("ports/{free}"), None).await;
    assert_eq!(left["port"]["device_id"], json!(server));
    assert_eq!(refused(&cloud, "demo", "GET", &format!("ports/{foreign}"), None).await.0, 404);
}

/// A network that is shared gives its guests' ports away, not its gateway.
#[tokio::test]
async fn a_shared_networks_gateway_is_not_for_others_to_take() {
    let cloud = Cloud::new().await;
    let (shared, subnet) = net(&cloud, "demo", "a", "10.0.0.0/24").await;
    let share = Some(json!({"network": {"shared": true}}));
    ok(&cloud, "admin", "PUT", &format!("networks/{shared}"), share).await;
    let router = async |token: &str| {
        let made = ok(&cloud, token, "POST", "routers", Some(json!({"router": {"name": "r"}}))).await;
        format!("routers/{}/add_router_interface", text(&made["router"]["id"]))
    };
    let (theirs, own) = (router("other").await, router("demo").await);
    let by_subnet = Some(json!({"subnet_id": subnet}));
    let got = refused(&cloud, "other", "PUT", &theirs, by_subnet.clone()).await;
    assert_eq!(got, (400, "BadRequest".to_owned()));
    // A port of their own on it may be a leg: its address is not one that they chose.
    let port = Some(json!({"port": {"network_id": shared}}));
    let port = ok(&cloud, "other", "POST", "ports", port).await["port"].clone();
    assert_ne!(port["fixed_ips"][0]["ip_address"], "10.0.0.1");
    ok(&cloud, "other", "PUT", &theirs, Some(json!({"port_id": port["id"]}))).await;
    let leg = ok(&cloud, "demo", "PUT", &own, by_subnet).await;
    let leg = ok(&cloud, "demo", "GET", &format!("ports/{}", text(&leg["port_id"])), None).await;
    assert_eq!(leg["port"]["fixed_ips"][0]["ip_address"], "10.0.0.1");
}

/// What attaching and detaching a leg refuses, changing its addresses refuses too.
#[tokio::test]
async fn a_legs_new_addresses_are_checked_as_a_new_legs() {
    let cloud = Cloud::new().await;
    let (first, one) = net(&cloud, "demo", "a", "10.0.0.0/24").await;
    let (_, two) = net(&cloud, "demo", "b", "10.1.0.0/24").await;
    let (outside, _) = net(&cloud, "demo", "c", "10.2.0.0/24").await;
    let sub = async |network: &str, cidr: &str| {
        let body =
            json!({"subnet": {"network_id": network, "cidr": cidr, "ip_version": 4, "enable_dhcp": false}});
        text(&ok(&cloud, "demo", "POST", "subnets", Some(body)).await["subnet"]["id"])
    };
    // On the first network, but it meets the second's range.
    let (meets, apart) = (sub(&first, "10.1.0.128/25").await, sub(&first, "10.3.0.0/24").await);
    let made = ok(&cloud, "demo", "POST", "routers", Some(json!({"router": {"name": "r"}}))).await;
    let router = format!("routers/{}", text(&made["router"]["id"]));
    let attach = format!("{router}/add_router_interface");
    let leg = ok(&cloud, "demo", "PUT", &attach, Some(json!({"subnet_id": one}))).await;
    ok(&cloud, "demo", "PUT", &attach, Some(json!({"subnet_id": two}))).await;
    let leg = format!("ports/{}", text(&leg["port_id"]));
    let to = |ips: Value| Some(json!({"port": {"fixed_ips": ips}}));
    for ips in [
        json!([]),
        json!([{"subnet_id": meets}]),
        json!([{"subnet_id": one, "ip_address": "10.0.0.1"}, {"subnet_id": meets}]),
    ] {
        let got = refused(&cloud, "demo", "PUT", &leg, to(ips.clone())).await;
        assert_eq!(got, (400, "BadRequest".to_owned()), "{ips}");
    }
    // Within its own subnets and to one that meets no other, it may move.
    let moved = json!([{"subnet_id": one, "ip_address": "10.0.0.200"}, {"subnet_id": apart}]);
    ok(&cloud, "demo", "PUT", &leg, to(moved)).await;
    // Not away from where a route goes, though.
    let routes = json!([{"destination": "10.9.0.0/16", "nexthop": "10.3.0.7"}]);
    ok(&cloud, "demo", "PUT", &router, Some(json!({"router": {"routes": routes}}))).await;
    let back = json!([{"subnet_id": one}]);
    let got = refused(&cloud, "demo", "PUT", &leg, to(back.clone())).await;
    assert_eq!(got, (409, "RouterInterfaceInUseByRoute".to_owned()));
    ok(&cloud, "demo", "PUT", &router, Some(json!({"router": {"routes": []}}))).await;
    ok(&cloud, "demo", "PUT", &leg, to(back)).await;
    // A port that is nobody's leg has none of these duties.
    let free = ok(&cloud, "demo", "POST", "ports", Some(json!({"port": {"network_id": outside}}))).await;
    ok(&cloud, "demo", "PUT", &format!("ports/{}", text(&free["port"]["id"])), to(json!([]))).await;
}

#[tokio::test]
async fn contradictions_are_refused_in_upstreams_words() {
    let cloud = Cloud::new().await;
    let (network, subnet) = net(&cloud, "demo", "one", "10.0.0.0/29").await;
    let sub = |more: Value| {
        let mut body = json!({"network_id": network, "cidr": "10.1.0.0/24", "ip_version": 4});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("subnets", json!({"subnet": body}))
    };
    let port = |more: Value| ("ports", json!({"port": {"network_id": network, "fixed_ips": [more]}}));
    let group = ok(&cloud, "demo", "GET", "security-groups", None).await["security_groups"][0]["id"].clone();
    let rule = |more: Value| {
        let mut body = json!({"security_group_id": group, "direction": "ingress"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("security-group-rules", json!({"security_group_rule": body}))
    };
    let long = "n".repeat(10_000);
    for ((path, body), status, kind) in [
        (("networks", json!({"network": {"name": long}})), 400, "HTTPBadRequest"),
        (("networks", json!({"network": {"name": "x", "nonsense": 1}})), 400, "HTTPBadRequest"),
        (("networks", json!({"network": {"mtu": 9}})), 400, "HTTPBadRequest"),
        (("networks", json!({"network": {"router:external": true}})), 403, "PolicyNotAuthorized"),
        (sub(json!({"cidr": "10.0.0.0/24"})), 400, "InvalidInput"),
        (sub(json!({"cidr": "10.0.0.300/24"})), 400, "HTTPBadRequest"),
        (sub(json!({"ip_version": 6})), 400, "InvalidInput"),
        (sub(json!({"gateway_ip": "10.2.0.1"})), 400, "InvalidInput"),
        (
            sub(json!({"allocation_pools": [{"start": "10.1.0.9", "end": "10.1.1.9"}]})),
            400,
            "OutOfBoundsAllocationPool",
        ),
        (
            sub(json!({"allocation_pools": [{"start": "10.1.0.1", "end": "10.1.0.9"}]})),
            409,
            "GatewayConflictWithAllocationPools",
        ),
        (port(json!({"ip_address": "10.0.0.2"})), 409, "IpAddressAlreadyAllocated"),
        (port(json!({"ip_address": "10.9.0.2"})), 400, "InvalidIpForSubnet"),
        (port(json!({"ip_address": "10.0.0.7"})), 400, "InvalidIpForSubnet"),
        (("ports", json!({"port": {"network_id": uuid::Uuid::nil()}})), 404, "NetworkNotFound"),
        (
            ("routers", json!({"router": {"external_gateway_info": {"network_id": network}}})),
            400,
            "BadRequest",
        ),
        (("floatingips", json!({"floatingip": {"floating_network_id": network}})), 400, "BadRequest"),
        (
            ("security-groups", json!({"security_group": {"name": "default"}})),
            409,
            "SecurityGroupDefaultAlreadyExists",
        ),
        (
            rule(json!({"protocol": "tcp", "port_range_min": 9, "port_range_max": 2})),
            400,
            "SecurityGroupInvalidPortRange",
        ),
        (rule(json!({"protocol": "nope"})), 400, "SecurityGroupRuleInvalidProtocol"),
        (rule(json!({"remote_ip_prefix": "2001:db8::/32"})), 400, "SecurityGroupRuleParameterConflict"),
        (rule(json!({"remote_group_id": group})), 409, "SecurityGroupRuleExists"),
    ] {
        let got = refused(&cloud, "demo", "POST", path, Some(body.clone())).await;
        assert_eq!(got, (status, kind.to_owned()), "{path} {body}");
    }
    // Three addresses are left beside gateway, DHCP and the edges; two ports in one request that need four are none.
    let many = json!({"ports": [{"network_id": network}, {"network_id": network}, {"network_id": network}, {"network_id": network}, {"network_id": network}]});
    let got = refused(&cloud, "demo", "POST", "ports", Some(many)).await;
    assert_eq!(got, (409, "IpAddressGenerationFailure".to_owned()));
    let made = json!({"ports": [{"network_id": network, "name": "a"}, {"network_id": network, "name": "b"}]});
    assert_eq!(ok(&cloud, "demo", "POST", "ports", Some(made)).await["ports"].as_array().unwrap().len(), 2);
    let listed = ok(&cloud, "demo", "GET", "ports?name=b&fields=id&fields=name", None).await;
    assert_eq!(listed["ports"][0].as_object().unwrap().len(), 2);
    let page =
        ok(&cloud, "demo", "GET", "ports?limit=1&sort_key=name&sort_dir=desc&device_owner=", None).await;
    assert_eq!((&page["ports"][0]["name"], &page["ports_links"][0]["rel"]), (&json!("b"), &json!("next")));
    let by_ip = ok(&cloud, "demo", "GET", &format!("ports?fixed_ips=subnet_id={subnet}"), None).await;
    assert_eq!(by_ip["ports"].as_array().unwrap().len(), 3, "two of the user's and the DHCP port");
    ok(&cloud, "admin", "PUT", &format!("quotas/{DEMO_PROJECT}"), Some(json!({"quota": {"network": 1}})))
        .await;
    let more = Some(json!({"network": {"name": "two"}}));
    assert_eq!(refused(&cloud, "demo", "POST", "networks", more).await, (409, "OverQuota".to_owned()));
}

#[tokio::test]
async fn first_steps_are_made_once_and_discovery_is_open() {
    let cloud = Cloud::new().await;
    for _ in 0..2 {
        inner::bootstrap(&cloud.app, &cloud.params()).await.unwrap();
    }
    let networks = ok(&cloud, "admin", "GET", "networks?sort_key=name", None).await;
    let names: Vec<&str> =
        networks["networks"].as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["demo", "public"]);
    let ports = ok(&cloud, "admin", "GET", "ports", None).await;
    let mut owners: Vec<&str> =
        ports["ports"].as_array().unwrap().iter().map(|p| p["device_owner"].as_str().unwrap()).collect();
    owners.sort_unstable();
    assert_eq!(owners, ["network:dhcp", "network:router_gateway", "network:router_interface"]);
    let rules = ok(&cloud, "demo", "GET", "security-group-rules?protocol=tcp&port_range_min=22", None).await;
    assert_eq!(rules["security_group_rules"].as_array().unwrap().len(), 1);
    assert_eq!(cloud.call("", "GET", "/network/", None).await.json["versions"][0]["id"], "v2.0");
    assert_eq!(cloud.call("", "GET", "/network/v2.0/networks", None).await.status, 401);
    let extension = ok(&cloud, "demo", "GET", "extensions/router", None).await;
    assert_eq!(extension["extension"]["alias"], "router");
}
