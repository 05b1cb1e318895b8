//! The control socket: `SOCK_SEQPACKET`, one JSON call per packet, one JSON reply per packet.
//!
//! Nothing here blocks: the driver thread polls the descriptors and comes by when one is ready. A client that does not read
//! its replies, sends what is no call, or more than [`MAX_PACKET`] bytes, is dropped; the machine does not notice.

mod packet;

use nix::poll::{PollFd, PollFlags};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use wire::machine::{MAX_PACKET, MachineCall, MachineReply};
use wire::{Refused, RefusedKind};

pub use packet::{Received, receive, receive_reply, send, send_with, set_nonblocking};

/// Most clients at a time; the oldest goes when another one comes.
const MAX_CLIENTS: usize = 16;
/// Calls that one client may have waiting for replies.
const MAX_WAITING: usize = 16;

/// Names a connected client; never used twice.
pub type ClientId = u64;

/// A call that came in.
pub struct Incoming {
    /// From whom.
    pub client: ClientId,
    /// What.
    pub call: MachineCall,
    /// The descriptors that came along, at most two.
    pub fds: Vec<OwnedFd>,
}

struct Client {
    socket: OwnedFd,
    /// A call that is not answered yet keeps later ones in the socket, so that replies stay in order.
    busy: bool,
    ready: VecDeque<(MachineCall, Vec<OwnedFd>)>,
}

/// The listening socket and its clients.
pub struct Server {
    listener: OwnedFd,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
}

impl Server {
    /// Serves a listening socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(listener: OwnedFd) -> nix::Result<Self> {
        packet::set_nonblocking(listener.as_fd())?;
        Ok(Self { listener, clients: BTreeMap::new(), next: 0 })
    }

    /// The descriptors to poll: the listener, then the clients that may speak, in the order of their ids.
    #[must_use]
    pub fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        for client in self.clients.values() {
            // A busy client is still polled for hang-up.
            let events = if client.busy { PollFlags::empty() } else { PollFlags::POLLIN };
            fds.push(PollFd::new(client.socket.as_fd(), events));
        }
        fds
    }

    /// Takes what came in: new clients, and at most one call from each client that has none pending.
    pub fn take(&mut self) -> Vec<Incoming> {
        while let Some(socket) = packet::accept(self.listener.as_fd()) {
            if self.clients.len() >= MAX_CLIENTS {
                self.clients.pop_first();
            }
            self.clients.insert(self.next, Client { socket, busy: false, ready: VecDeque::new() });
            self.next += 1;
        }
        let mut calls = Vec::new();
        let mut gone = Vec::new();
        for (id, client) in &mut self.clients {
            loop {
                if client.ready.len() >= MAX_WAITING {
                    break;
                }
                match packet::receive(client.socket.as_fd(), MAX_PACKET) {
                    Received::Nothing => break,
                    Received::Closed => {
                        gone.push(*id);
                        break;
                    }
                    Received::Packet(bytes, fds) => match serde_json::from_slice(&bytes) {
                        Ok(call) => client.ready.push_back((call, fds)),
                        Err(error) => {
                            let refused = Refused::new(
                                RefusedKind::Invalid,
                                format!("this is no call that the monitor knows: {error}"),
                            );
                            if !client.busy && client.ready.is_empty() {
                                let _ = packet::send_reply(
                                    client.socket.as_fd(),
                                    &MachineReply::Refused(refused),
                                );
                            }
                            gone.push(*id);
                            break;
                        }
                    },
                }
            }
            if !client.busy
                && let Some((call, fds)) = client.ready.pop_front()
            {
                client.busy = true;
                calls.push(Incoming { client: *id, call, fds });
            }
        }
        for id in gone {
            // What it asked before it left is still done, the reply goes nowhere.
            self.clients.remove(&id);
        }
        calls
    }

    /// Whether a client has a call that came in already and may be taken now.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.clients.values().any(|client| !client.busy && !client.ready.is_empty())
    }

    /// Whether a client is still there.
    #[must_use]
    pub fn connected(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// Answers a client's pending call.
    pub fn reply(&mut self, id: ClientId, reply: &MachineReply) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.busy = false;
        if packet::send_reply(client.socket.as_fd(), reply).is_err() {
            self.clients.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests;
