//! What answers guests on one network: DHCP, DNS and metadata, on sockets that were made inside its namespace and live
//! on the daemon's runtime. Stopping it stops nothing but answers.

use crate::link::packet::FrameSender;
use crate::link::{Place, namespace};
use crate::{dhcp, dns, metadata, names};
use base::CancellationToken;
use base::rpc::Client;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, watch};
use wire::ids::NetworkId;
use wire::net::{NetworkSpec, PortSpec};

/// Metadata connections of one network at a time.
const CONNECTIONS: usize = 64;
/// DNS queries of one network that are being asked elsewhere at a time.
const FORWARDS: usize = 64;

/// What the answers come from.
#[derive(Debug, Clone)]
pub struct View {
    /// Which network.
    pub id: NetworkId,
    /// How it should be.
    pub spec: NetworkSpec,
    /// The port that answers.
    pub port: PortSpec,
}

impl View {
    fn addresses(&self) -> Vec<Ipv4Addr> {
        let v4 = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(address) => Some(address),
            std::net::IpAddr::V6(_) => None,
        };
        self.port.addresses.iter().filter_map(|(_, address)| v4(*address)).collect()
    }
}

/// What tells whether running sockets still stand on the same device with the same addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ground {
    namespace: u64,
    device: u32,
    addresses: Vec<Ipv4Addr>,
}

/// A running responder; ends when dropped.
#[derive(Debug)]
pub struct Responder {
    ground: Ground,
    view: watch::Sender<Arc<View>>,
    end: CancellationToken,
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

struct Sockets {
    dhcp: UdpSocket,
    frames: FrameSender,
    dns: Vec<UdpSocket>,
    metadata: TcpListener,
}

impl Responder {
    /// Makes `running` answer from `view`; starts it anew when what it stands on has changed.
    ///
    /// # Errors
    /// When a socket cannot be made. Blocks for some system calls.
    pub fn ensure(
        running: Option<Self>,
        namespace_name: &str,
        view: View,
        api: &Client,
        upstreams: &[SocketAddr],
    ) -> std::io::Result<Self> {
        let place = Place::Namespace(namespace_name.to_owned());
        let device = namespace::within(&place, || Ok(nix::net::if_::if_nametoindex(names::BRIDGE)?))?;
        let ground = Ground {
            namespace: namespace::identity(namespace_name).unwrap_or_default(),
            device,
            addresses: view.addresses(),
        };
        if let Some(running) = running.filter(|running| running.ground == ground) {
            running.view.send_replace(Arc::new(view));
            return Ok(running);
        }
        let sockets = open(&place, &ground)?;
        let (sender, receiver) = watch::channel(Arc::new(view));
        let end = CancellationToken::new();
        let work = serve(sockets, receiver, api.clone(), upstreams.to_vec());
        let stop = end.clone();
        tokio::spawn(async move {
            tokio::select! { () = stop.cancelled() => (), () = work => () }
        });
        Ok(Self { ground, view: sender, end })
    }
}

fn open(place: &Place, ground: &Ground) -> std::io::Result<Sockets> {
    let (dhcp, dns, metadata) = namespace::within(place, || {
        let dhcp = made(SockType::Datagram, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67))?;
        let dns: Vec<OwnedFd> = ground
            .addresses
            .iter()
            .map(|address| made(SockType::Datagram, SocketAddrV4::new(*address, 53)))
            .collect::<std::io::Result<_>>()?;
        let SocketAddr::V4(address) = metadata::address() else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let metadata = made(SockType::Stream, address)?;
        listen(&metadata, Backlog::new(32)?)?;
        Ok((dhcp, dns, metadata))
    })?;
    let udp = |fd: OwnedFd| UdpSocket::from_std(fd.into());
    Ok(Sockets {
        dhcp: udp(dhcp)?,
        frames: FrameSender::open(place, names::BRIDGE)?,
        dns: dns.into_iter().map(udp).collect::<std::io::Result<_>>()?,
        metadata: TcpListener::from_std(metadata.into())?,
    })
}

fn made(kind: SockType, address: SocketAddrV4) -> std::io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::BindToDevice, &names::BRIDGE.into())?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(fd)
}

async fn serve(sockets: Sockets, view: watch::Receiver<Arc<View>>, api: Client, upstreams: Vec<SocketAddr>) {
    let current = || view.borrow().clone();
    let dhcp = async {
        let mut buffer = vec![0u8; 2048];
        loop {
            let Some((length, _)) = receive(&sockets.dhcp, &mut buffer).await else { continue };
            let view = current();
            if let Some(frame) = dhcp::answer(&view, &buffer[..length])
                && let Err(error) = sockets.frames.send(&frame)
            {
                tracing::warn!(network = %view.id, %error, "cannot send a DHCP answer");
            }
        }
    };
    let upstreams: Arc<[SocketAddr]> = upstreams.into();
    let dns = futures::future::join_all(sockets.dns.into_iter().map(|socket| {
        let (socket, upstreams, view) = (Arc::new(socket), upstreams.clone(), view.clone());
        answer_names(socket, upstreams, view)
    }));
    let metadata = async {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            match sockets.metadata.accept().await {
                Ok((stream, from)) => {
                    // No room: closing tells the guest to come back; waiting would let one guest starve the rest.
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let work = metadata::serve(stream, from.ip(), current(), api.clone());
                    tokio::spawn(async move {
                        work.await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let _: ((), Vec<()>, ()) = tokio::join!(dhcp, dns, metadata);
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    match socket.recv_from(buffer).await {
        Ok(received) => Some(received),
        Err(_) => {
            // An ICMP error of an earlier answer, or no memory: never a reason to spin or to end.
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

async fn answer_names(
    socket: Arc<UdpSocket>,
    upstreams: Arc<[SocketAddr]>,
    view: watch::Receiver<Arc<View>>,
) {
    let room = Arc::new(Semaphore::new(FORWARDS));
    let mut buffer = vec![0u8; dns::LARGEST + 1];
    loop {
        let Some((length, from)) = receive(&socket, &mut buffer).await else { continue };
        let view = view.borrow().clone();
        match dns::answer(&view, &buffer[..length]) {
            dns::Verdict::Silence => (),
            dns::Verdict::Answer(answer) => {
                let _ = socket.send_to(&answer, from).await;
            }
            dns::Verdict::Elsewhere if upstreams.is_empty() => {
                let _ = socket.send_to(&dns::refusal(&buffer[..length]), from).await;
            }
            dns::Verdict::Elsewhere => {
                let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                let (query, socket, upstreams) =
                    (buffer[..length].to_vec(), socket.clone(), upstreams.clone());
                tokio::spawn(async move {
                    let answer = ask(&query, &upstreams).await.unwrap_or_else(|| dns::failure(&query));
                    let _ = socket.send_to(&answer, from).await;
                    drop(permit);
                });
            }
        }
    }
}

/// Asks name servers outside, from the machine's own namespace and a port of its own for each query.
async fn ask(query: &[u8], upstreams: &[SocketAddr]) -> Option<Vec<u8>> {
    for upstream in upstreams {
        let any: SocketAddr =
            if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let Ok(socket) = UdpSocket::bind(any).await else { continue };
        if socket.connect(upstream).await.is_err() || socket.send(query).await.is_err() {
            continue;
        }
        let mut buffer = vec![0u8; dns::LARGEST];
        let received = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await;
        if let Ok(Ok(length)) = received
            && buffer.get(..2) == query.get(..2)
        {
            buffer.truncate(length);
            return Some(buffer);
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use wire::ids::{Mac, PortId, ServerId, SubnetId};
    use wire::net::{PortRole, SubnetSpec};

    /// A network 10.0.0.0/24 with a responder and one guest `one` at 10.0.0.5, whose MAC is returned.
    pub(crate) fn view() -> (View, Mac) {
        let (subnet, guest) = (SubnetId::new(), Mac([0xfa, 0x16, 0x3e, 0, 0, 5]));
        let port = |mac, address: [u8; 4], hostname: &str, role| PortSpec {
            id: PortId::new(),
            mac,
            addresses: vec![(subnet, address.into())],
            hostname: hostname.to_owned(),
            role,
            filter: Some(vec![]),
            allowed_pairs: vec![],
            admin_up: true,
        };
        let responder = port(Mac([0xfa, 0x16, 0x3e, 0, 0, 2]), [10, 0, 0, 2], "", PortRole::Dhcp);
        let server = PortRole::Server { server: ServerId::new() };
        let spec = NetworkSpec {
            mtu: 1442,
            provider: None,
            dns_domain: "cloud.test.".to_owned(),
            subnets: vec![SubnetSpec {
                id: subnet,
                cidr: "10.0.0.0/24".parse().unwrap(),
                gateway: Some([10, 0, 0, 1].into()),
                name_servers: vec![],
                routes: vec![],
                dhcp: true,
            }],
            ports: vec![responder.clone(), port(guest, [10, 0, 0, 5], "one", server)],
        };
        (View { id: NetworkId::new(), spec, port: responder }, guest)
    }
}
