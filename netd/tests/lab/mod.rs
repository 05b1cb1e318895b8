//! A `netd` of its own for each test, and guests behind its taps.
#![allow(dead_code)]

use base::rpc::Client;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use wire::fd::{FdReply, FdRequest};
use wire::ids::{Mac, NetworkId, PortId, ServerId, SubnetId};
use wire::net::{Direction, EnsureNetwork, FilterRule, NetworkSpec, PortRole, PortSpec, SubnetSpec};
use wire::{Generation, Health};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// One instance of the daemon; everything of it is gone after the test, however that ends.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub instance: String,
    child: Option<Child>,
    namespaces: Vec<String>,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Lab {
    pub fn prepare(more: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::SeqCst);
        let instance = format!("t{}x{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let config = format!(
            "state_dir = '{path}/state'\nrun_dir = '{path}/run'\ninstance = '{instance}'\napi_socket = '{path}/api.sock'\n{more}"
        );
        std::fs::write(dir.path().join("netd.toml"), config).unwrap();
        Self { dir, instance, child: None, namespaces: Vec::new() }
    }

    pub async fn new(more: &str) -> Self {
        let mut lab = Self::prepare(more);
        lab.start().await;
        lab
    }

    pub fn config(&self) -> netd::config::Config {
        base::config::load(&self.dir.path().join("netd.toml")).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(self.dir.path().join("run/netd.sock"))
    }

    pub async fn start(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_netd"))
            .arg("--config")
            .arg(self.dir.path().join("netd.toml"))
            .env("RUST_LOG", "warn")
            .spawn()
            .unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while self.client().call(&Health {}).await.is_err() {
            assert!(begin.elapsed() < DEADLINE, "netd does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
        }
    }

    pub fn purge(&self) {
        let output = Command::new(env!("CARGO_BIN_EXE_netd"))
            .arg("--config")
            .arg(self.dir.path().join("netd.toml"))
            .arg("--purge")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub async fn ensure(
        &self,
        id: NetworkId,
        generation: u64,
        spec: &NetworkSpec,
    ) -> wire::net::NetworkState {
        let call = EnsureNetwork { id, generation: Generation(generation), spec: spec.clone() };
        self.client().call(&call).await.unwrap()
    }

    pub fn open(&self, port: PortId) -> Result<OwnedFd, wire::Refused> {
        let socket = base::fdpass::connect(&self.dir.path().join("run/netd.fd.sock")).unwrap();
        let request = serde_json::to_vec(&FdRequest::Tap { port }).unwrap();
        base::fdpass::send(socket.as_fd(), &request, &[]).unwrap();
        let (bytes, mut fds) = base::fdpass::receive(socket.as_fd()).unwrap();
        match serde_json::from_slice(&bytes).unwrap() {
            FdReply::Here => Ok(fds.remove(0)),
            FdReply::Refused(refused) => Err(refused),
        }
    }

    pub fn raw(&self, port: &PortSpec) -> Raw {
        let raw = Raw { fd: self.open(port.id).unwrap(), mac: port.mac, address: v4(port) };
        self.wait_for_carrier(port);
        raw
    }

    /// A namespace that stands for a guest: its only device is joined to the port's tap.
    pub fn guest(&mut self, port: &PortSpec, gateway: &str) -> Guest {
        let namespace = format!("g{}-{}", self.instance, port.id.short());
        sh(&format!("ip netns add {namespace}"));
        self.namespaces.push(namespace.clone());
        let [a, b, c, _] = v4(port).octets();
        let responder = Ipv4Addr::new(a, b, c, 2);
        let place = netd::link::Place::Namespace(namespace.clone());
        netd::link::tap::create(&place, "eth0").unwrap();
        let inner = netd::link::tap::open(&place, "eth0").unwrap();
        sh(&format!(
            "ip -n {namespace} link set lo up; ip -n {namespace} link set eth0 address {} mtu 1400 up; \
             ip -n {namespace} addr add {}/24 dev eth0; ip -n {namespace} route add default via {gateway}; \
             ip -n {namespace} route add 169.254.169.254/32 via {responder}",
            port.mac,
            v4(port)
        ));
        let outer = self.raw(port).fd;
        std::thread::spawn(move || pump(&inner, &outer));
        Guest { place }
    }

    /// A namespace that stands for a machine outside, joined to this one by a pair of devices; `near` is the end here.
    pub fn outside(&mut self, near: &str, address: &str) -> Guest {
        let namespace = format!("o{}", self.instance);
        sh(&format!(
            "ip netns add {namespace}; ip link add {near} type veth peer name eth0 netns {namespace}; \
             ip link set {near} up; ip -n {namespace} link set lo up; ip -n {namespace} link set eth0 up; \
             ip -n {namespace} addr add {address} dev eth0"
        ));
        self.namespaces.push(namespace.clone());
        Guest { place: netd::link::Place::Namespace(namespace) }
    }

    /// The kernel takes up to a second until a bridge forwards for a tap that was just opened.
    fn wait_for_carrier(&self, port: &PortSpec) {
        let (begin, tap) = (Instant::now(), netd::names::tap("", port.id));
        let namespaces = netd::link::namespace::list().unwrap();
        let own = |name: &&String| name.starts_with(&format!("fs-{}-n-", self.instance));
        let in_root = netd::names::tap(&self.config().instance.device_prefix(), port.id);
        let state = |words: &[&str], tap: &str| {
            let mut command = Command::new("bridge");
            let output = command.args(words).args(["link", "show", "dev", tap]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        loop {
            let states = namespaces.iter().filter(own).map(|name| state(&["-n", name], &tap));
            let mut states = states.chain([state(&[], &in_root)]);
            if states.any(|state| state.contains("state forwarding")) {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "{tap} is not forwarded for");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Names of everything that carries this instance's name.
    pub fn leftovers(&self) -> Vec<String> {
        let instance = self.config().instance;
        let mut left: Vec<String> = netd::link::namespace::list()
            .unwrap()
            .into_iter()
            .filter(|name| instance.own_namespace(name).is_some())
            .collect();
        let devices = netd::link::devices(&netd::link::Place::Root).unwrap();
        left.extend(devices.into_iter().map(|d| d.ifname).filter(|name| instance.own_device(name)));
        let routes = netd::link::routes(&netd::link::Place::Root, "unreachable").unwrap();
        left.extend(routes.into_iter().filter(|r| r.metric == Some(instance.metric())).map(|r| r.dst));
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        let tables = String::from_utf8(tables.stdout).unwrap();
        left.extend(
            tables.lines().filter(|l| l.contains(&format!("fs_{}_", self.instance))).map(str::to_owned),
        );
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
        let _ = Command::new(env!("CARGO_BIN_EXE_netd"))
            .arg("--config")
            .arg(self.dir.path().join("netd.toml"))
            .arg("--purge")
            .status();
    }
}

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Carries frames between two taps until one of them is gone.
fn pump(a: &OwnedFd, b: &OwnedFd) {
    let mut buffer = vec![0u8; 70_000];
    loop {
        let mut fds = [PollFd::new(a.as_fd(), PollFlags::POLLIN), PollFd::new(b.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (ready, from, to) in [(ready[0], a, b), (ready[1], b, a)] {
            if ready {
                let Ok(length) = nix::unistd::read(from, &mut buffer) else { return };
                let _ = nix::unistd::write(to, &buffer[..length]);
            }
        }
    }
}

pub struct Guest {
    pub place: netd::link::Place,
}

impl Guest {
    pub fn within<T: Send>(&self, work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
        netd::link::namespace::within(&self.place, work)
    }

    /// Answers each connection on a port with a word and the address that it came from.
    pub fn serve(&self, port: u16, word: &'static str) {
        use std::io::Write;
        let listener = self.within(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = stream.write_all(format!("{word} {}", from.ip()).as_bytes());
            }
        });
    }

    pub fn fetch(&self, to: (Ipv4Addr, u16)) -> std::io::Result<String> {
        self.within(|| fetch(to))
    }

    pub fn http(&self, path: &str) -> std::io::Result<String> {
        use std::io::{Read, Write};
        self.within(|| {
            let mut stream = connect((Ipv4Addr::new(169, 254, 169, 254), 80))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }
}

fn connect(to: (Ipv4Addr, u16)) -> std::io::Result<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect_timeout(&to.into(), Duration::from_secs(3))?;
    // Who is connected is answered, however busy the machine is.
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

pub fn fetch(to: (Ipv4Addr, u16)) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    connect(to)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A guest without a system: frames in, frames out.
pub struct Raw {
    pub fd: OwnedFd,
    pub mac: Mac,
    pub address: Ipv4Addr,
}

impl Raw {
    pub fn send(&self, frame: &[u8]) {
        let bytes = [&[0u8; 12][..], frame].concat();
        assert_eq!(nix::unistd::write(&self.fd, &bytes).unwrap(), bytes.len());
    }

    pub fn udp(&self, to: &Self, ports: (u16, u16), payload: &[u8]) {
        self.send(&udp((self.mac, to.mac), (self.address, to.address), ports, payload));
    }

    /// Frames up to and including the first that `last` picks.
    pub fn until(&self, last: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        self.within(DEADLINE, last).expect("the frame did not come")
    }

    /// As [`Self::until`]; `None` when that frame does not come in time.
    pub fn within(&self, limit: Duration, last: impl Fn(&[u8]) -> bool) -> Option<Vec<Vec<u8>>> {
        let (begin, mut frames) = (Instant::now(), Vec::new());
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return None;
            }
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            if !fds[0].any().unwrap_or(false) {
                continue;
            }
            let mut buffer = vec![0u8; 70_000];
            let length = nix::unistd::read(&self.fd, &mut buffer).unwrap();
            let frame = buffer[12..length].to_vec();
            let done = last(&frame);
            frames.push(frame);
            if done {
                return Some(frames);
            }
        }
    }

    /// UDP payloads that arrive before the one that is `last`.
    pub fn payloads_until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let frames = self.until(|frame| udp_payload(frame) == Some(last));
        let mut payloads: Vec<Vec<u8>> =
            frames.iter().filter_map(|f| udp_payload(f)).map(<[u8]>::to_vec).collect();
        payloads.pop();
        payloads
    }
}

pub fn udp(macs: (Mac, Mac), addresses: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    use std::net::SocketAddrV4;
    let (from, to) = (SocketAddrV4::new(addresses.0, ports.0), SocketAddrV4::new(addresses.1, ports.1));
    netd::link::packet::udp(macs, from, to, payload).unwrap()
}

/// A TCP segment that asks for a connection.
pub fn syn(macs: (Mac, Mac), addresses: (Ipv4Addr, Ipv4Addr), ports: (u16, u16)) -> Vec<u8> {
    let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    let (from, to) = (addresses.0.octets(), addresses.1.octets());
    let check = checksum(&[&from, &to, &[0, 6, 0, 20], &tcp]);
    tcp[16..18].copy_from_slice(&check);
    ipv4(macs, addresses, 6, &tcp)
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn ipv4(macs: (Mac, Mac), addresses: (Ipv4Addr, Ipv4Addr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(20 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0];
    ip.extend(addresses.0.octets());
    ip.extend(addresses.1.octets());
    let check = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&check);
    [&macs.1.0[..], &macs.0.0[..], &[8, 0], &ip, payload].concat()
}

pub fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    let plain = frame.get(12..14)? == [8, 0] && frame[14] == 0x45 && frame[23] == 17;
    plain.then(|| &frame[42..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))])
}

pub fn v4(port: &PortSpec) -> Ipv4Addr {
    match port.addresses[0].1 {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => unreachable!("tests use IPv4"),
    }
}

/// What passes everything out, and nothing in.
pub fn egress() -> FilterRule {
    FilterRule {
        direction: Direction::Egress,
        v6: false,
        protocol: None,
        ports: None,
        remote: vec![],
        remote_only: false,
    }
}

pub fn ingress(protocol: u8, port: u16) -> FilterRule {
    FilterRule {
        direction: Direction::Ingress,
        protocol: Some(protocol),
        ports: Some((port, Some(port))),
        ..egress()
    }
}

/// Moves a network from 10.0.0.0/24 to another range and into a provider's bridge.
pub fn provided(spec: &mut NetworkSpec, label: &str, [a, b, c]: [u8; 3]) {
    let moved = |address: &mut IpAddr| {
        if let IpAddr::V4(old) = address {
            *address = Ipv4Addr::new(a, b, c, old.octets()[3]).into();
        }
    };
    spec.provider = Some(label.to_owned());
    for subnet in &mut spec.subnets {
        subnet.cidr = format!("{a}.{b}.{c}.0/24").parse().unwrap();
        subnet.gateway.iter_mut().for_each(moved);
    }
    spec.ports.iter_mut().flat_map(|port| &mut port.addresses).for_each(|(_, address)| moved(address));
}

/// A range of 198.18.0.0/15, which is for tests between networks, by process: they run side by side in one namespace.
pub fn range_of_our_own(number: u8) -> [u8; 3] {
    let pid = std::process::id().to_le_bytes();
    [198, 18 + (number & 1), pid[0].wrapping_add(number).wrapping_mul(31) ^ pid[1]]
}

/// Answers metadata requests with the server that they are for.
pub fn fake_api(lab: &Lab) {
    use base::rpc::{Allow, Router};
    use wire::metadata::{MetadataReply, ReadMetadata};
    let api = Router::new().serve(|call: ReadMetadata| async move {
        let body = call.server.to_string().into_bytes();
        Ok(MetadataReply { status: 200, content_type: "text/plain".into(), body })
    });
    let socket = lab.dir.path().join("api.sock");
    let end = base::CancellationToken::new();
    tokio::spawn(base::rpc::listen(&socket, 0o600, api, Allow::own(), end).unwrap());
}

/// Echo requests, let in.
pub fn ping() -> FilterRule {
    FilterRule { protocol: Some(1), ports: Some((8, Some(0))), ..ingress(1, 8) }
}

/// An ICMP packet of type 8 (request) or 0 (answer), of the conversation `id`.
pub fn echo(from: &Raw, to: &Raw, kind: u8, id: u8) -> Vec<u8> {
    let mut icmp = vec![kind, 0, 0, 0, 0, id, 0, 1];
    let check = checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&check);
    ipv4((from.mac, to.mac), (from.address, to.address), 1, &icmp)
}

/// Type and conversation of an ICMP packet.
pub fn echoed(frame: &[u8]) -> Option<(u8, u8)> {
    (frame.get(12..14)? == [8, 0] && frame[23] == 1).then(|| (frame[34], frame[39]))
}

/// A network 10.0.0.0/24 with a responder at .2 and guests at .11, .12, ...
pub fn network(guests: u8, rules: &[FilterRule]) -> (NetworkId, NetworkSpec) {
    let subnet = SubnetId::new();
    let port = |last: u8, hostname: String, role| PortSpec {
        id: PortId::new(),
        mac: Mac([0xfa, 0x16, 0x3e, 0, 0, last]),
        addresses: vec![(subnet, [10, 0, 0, last].into())],
        hostname,
        role,
        filter: Some(rules.to_vec()),
        allowed_pairs: vec![],
        admin_up: true,
    };
    let mut ports = vec![port(2, String::new(), PortRole::Dhcp)];
    for number in 0..guests {
        let role = PortRole::Server { server: ServerId::new() };
        ports.push(port(11 + number, format!("guest{number}"), role));
    }
    let spec = NetworkSpec {
        mtu: 1400,
        provider: None,
        dns_domain: "cloud.test".to_owned(),
        subnets: vec![SubnetSpec {
            id: subnet,
            cidr: "10.0.0.0/24".parse().unwrap(),
            gateway: Some([10, 0, 0, 1].into()),
            name_servers: vec![],
            routes: vec![],
            dhcp: true,
        }],
        ports,
    };
    (NetworkId::new(), spec)
}
