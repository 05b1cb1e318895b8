//! Provider networks in the real kernel: a NIC in the bridge, and the machine itself as the way out.
#![allow(missing_docs, clippy::unwrap_used)]

mod lab;

use lab::{Lab, egress, fake_api, fetch, ingress, network, provided, range_of_our_own, sh};
use std::net::Ipv4Addr;
use wire::Generation;
use wire::net::{ForgetNetwork, PortRole};

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_joins_guests_to_the_wire_outside() {
    let nic = format!("fn{}", std::process::id());
    let mut lab = Lab::new(&format!("[[provider]]\nname = 'wire'\nmode = 'nic'\nnic = '{nic}'\n")).await;
    let range @ [a, b, c] = range_of_our_own(4);
    let at = |last: u8| Ipv4Addr::new(a, b, c, last);
    let (id, mut spec) = network(2, &[egress(), ingress(6, 80)]);
    provided(&mut spec, "wire", range);
    let call = wire::net::EnsureNetwork { id, generation: Generation(1), spec: spec.clone() };
    let early = lab.client().call(&call).await.unwrap_err();
    assert!(early.message.contains(&nic), "{early}");

    let outside = lab.outside(&nic, &format!("{}/24", at(9)));
    lab.ensure(id, 2, &spec).await;
    fake_api(&lab);
    let guest = lab.guest(&spec.ports[1], &at(1).to_string());
    guest.serve(80, "guest");
    guest.serve(81, "closed");
    outside.serve(7, "outside");
    // Both ways over the NIC, as far as the group allows; the machine itself has no address there.
    assert_eq!(guest.fetch((at(9), 7)).unwrap(), format!("outside {}", at(11)));
    assert_eq!(outside.fetch((at(11), 80)).unwrap(), format!("guest {}", at(9)));
    outside.fetch((at(11), 81)).unwrap_err();
    let own = sh(&format!("ip -4 -o addr show | grep -c '{a}.{b}.{c}\\.' || true"));
    assert_eq!(own.trim(), "0");

    // Guests read their metadata; nobody outside does, neither as himself nor under a guest's address.
    let PortRole::Server { server } = spec.ports[1].role else { panic!() };
    let answer = guest.http("/x").unwrap();
    assert!(answer.ends_with(&server.to_string()), "{answer}");
    let there = outside.place.to_string();
    sh(&format!("ip -n {there} route add 169.254.169.254/32 via {}", at(2)));
    outside.http("/x").unwrap_err();
    sh(&format!(
        "ip -n {there} addr del {}/24 dev eth0; ip -n {there} addr add {}/24 dev eth0; \
        ip -n {there} route replace 169.254.169.254/32 via {}",
        at(9),
        at(12),
        at(2)
    ));
    outside.http("/x").unwrap_err();

    // The NIC stays when the network goes.
    lab.client().call(&ForgetNetwork { id, generation: Generation(3) }).await.unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    assert!(!sh(&format!("ip -o link show dev {nic}")).contains("master"));
}

/// Puts back what a test changes for the whole machine.
struct Forwarding(String);

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = std::fs::write(FORWARDING, &self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_leave_the_machine_under_its_address_when_the_operator_says_so() {
    let _forwarding = Forwarding(std::fs::read_to_string(FORWARDING).unwrap());
    let mut lab = Lab::new("masquerade = true\n[[provider]]\nname = 'public'\nmode = 'host'\n").await;
    let (inner @ [a, b, c], [d, e, f]) = (range_of_our_own(6), range_of_our_own(9));
    let (id, mut spec) = network(1, &[egress(), ingress(6, 80)]);
    provided(&mut spec, "public", inner);
    lab.ensure(id, 1, &spec).await;
    let (near, far) = (Ipv4Addr::new(d, e, f, 1), Ipv4Addr::new(d, e, f, 9));
    let wire = format!("fm{}", std::process::id());
    let outside = lab.outside(&wire, &format!("{far}/24"));
    sh(&format!("ip addr add {near}/24 dev {wire}"));
    outside.serve(7, "outside");
    let (machine, address) = (Ipv4Addr::new(a, b, c, 1), Ipv4Addr::new(a, b, c, 11));
    let guest = lab.guest(&spec.ports[1], &machine.to_string());
    guest.serve(80, "guest");
    // Outside knows no way to the guest: it answers to the machine.
    assert_eq!(guest.fetch((far, 7)).unwrap(), format!("outside {near}"));
    assert_eq!(fetch((address, 80)).unwrap(), format!("guest {machine}"));
    // Knowing one does not let it in, though the group would.
    sh(&format!("ip -n {} route add {a}.{b}.{c}.0/24 via {near}", outside.place));
    outside.fetch((address, 80)).unwrap_err();

    // Without the word, nothing leaves, even though outside could answer now.
    lab.kill();
    let config = lab.dir.path().join("netd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("masquerade = true", "masquerade = false")).unwrap();
    lab.start().await;
    lab.ensure(id, 2, &spec).await;
    guest.fetch((far, 7)).unwrap_err();
    assert_eq!(fetch((address, 80)).unwrap(), format!("guest {machine}"));
}
