//! Packets on the control socket: whatever one client sends, the server stands, holds little, and serves another client.
//! A call that is understood is written and read again as the same.
#![no_main]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use vmm::control::{Server, receive_reply, send, send_with};
use wire::machine::{MachineCall, MachineReply};

fn end() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

fn serve(server: &mut Server) {
    // One more round than calls fit into a client's queue.
    for _ in 0..40 {
        let calls = server.take();
        for incoming in calls {
            assert!(incoming.fds.len() <= 2, "more descriptors than a call has");
            let text = serde_json::to_vec(&incoming.call).expect("a call can be written");
            let again: MachineCall = serde_json::from_slice(&text).expect("what was written can be read");
            assert_eq!(again, incoming.call);
            server.reply(incoming.client, &MachineReply::Done);
        }
        if !server.has_ready() {
            break;
        }
    }
    assert!(server.poll_fds().len() <= 17, "more clients than may be");
}

fuzz_target!(|data: &[u8]| {
    let name = format!("vmm-fuzz-control-{}", std::process::id());
    let address = UnixAddr::new_abstract(name.as_bytes()).expect("an address");
    let listener = end();
    bind(listener.as_raw_fd(), &address).expect("a free address");
    listen(&listener, Backlog::new(8).expect("a number")).expect("a listener");
    let mut server = Server::new(listener).expect("a server");
    let client = || {
        let client = end();
        connect(client.as_raw_fd(), &address).map(|()| client)
    };
    let mut bad = client().expect("the server listens");
    let good = client().expect("the server listens");
    // Packets end with a zero byte, which is in no call; the byte behind it says what happens then.
    let mut rest = data;
    while !rest.is_empty() {
        let length = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        let (packet, later) = rest.split_at(length);
        let then = later.get(1).copied().unwrap_or(7);
        rest = later.get(2..).unwrap_or_default();
        let fds = [good.as_fd(); 5];
        let sent = send_with(bad.as_fd(), packet, &fds[..usize::from(then >> 5).min(5)]);
        let again = then & 6 == 2 || sent.is_err();
        if then & 1 != 0 || again {
            serve(&mut server);
        }
        if again {
            bad = client().expect("the server listens");
        }
    }
    serve(&mut server);
    send(good.as_fd(), br#"{"call":"pause"}"#, None).expect("room for one call");
    serve(&mut server);
    assert_eq!(receive_reply(&good).expect("an answer"), MachineReply::Done);
    // Without the socket, and so without its framing.
    if let Ok(call) = serde_json::from_slice::<MachineCall>(data) {
        let text = serde_json::to_vec(&call).expect("a call can be written");
        assert_eq!(serde_json::from_slice::<MachineCall>(&text).expect("read again"), call);
    }
});
