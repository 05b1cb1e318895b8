use super::*;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use std::os::fd::AsRawFd;
use wire::machine::{BlockSize, Limits};

/// A server on an abstract address of its own, and a function that connects a client.
fn server() -> (Server, impl Fn() -> OwnedFd) {
    let name = format!("vmm-control-test-{}", uuid::Uuid::new_v4());
    let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
    let make = || socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let listener = make();
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    let client = move || {
        let client = make();
        connect(client.as_raw_fd(), &address).unwrap();
        client
    };
    (Server::new(listener).unwrap(), client)
}

#[test]
fn calls_come_in_order_one_at_a_time_with_their_descriptor() {
    let (mut server, connect) = server();
    let client = connect();
    let file = tempfile::tempfile().unwrap();
    let plug = MachineCall::PlugDisk {
        key: "v".into(),
        read_only: false,
        serial: "s".into(),
        block_size: BlockSize::default(),
        limits: Limits::default(),
    };
    send(client.as_fd(), &serde_json::to_vec(&plug).unwrap(), Some(file.as_fd())).unwrap();
    send(client.as_fd(), br#"{"call":"pause"}"#, None).unwrap();
    let first = server.take();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].call, plug);
    assert_eq!(first[0].fds.len(), 1);
    assert!(server.take().is_empty(), "the second waits for the first one's reply");
    server.reply(first[0].client, &MachineReply::Done);
    assert_eq!(receive_reply(&client).unwrap(), MachineReply::Done);
    assert!(server.has_ready());
    let second = server.take();
    assert_eq!(second[0].call, MachineCall::Pause);
}

#[test]
fn nonsense_is_answered_and_the_client_dropped_while_others_stay() {
    let (mut server, connect) = server();
    let (bad, good) = (connect(), connect());
    send(bad.as_fd(), b"{\"call\":\"fly\"}", None).unwrap();
    send(good.as_fd(), br#"{"call":"resume"}"#, None).unwrap();
    let calls = server.take();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].call, MachineCall::Resume);
    let MachineReply::Refused(refused) = receive_reply(&bad).unwrap() else { panic!("not refused") };
    assert!(refused.message.contains("no call"), "{refused}");
    assert!(receive_reply(&bad).is_err());
    assert!(server.connected(calls[0].client));
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let (mut server, connect) = server();
    let client = connect();
    for _ in 0..100_000 {
        if send(client.as_fd(), br#"{"call":"pause"}"#, None).is_err() {
            // Our own calls fill up when the server stops taking them, or it hung up.
        }
        for call in server.take() {
            server.reply(call.client, &MachineReply::Done);
        }
        if server.clients.is_empty() {
            return;
        }
    }
    panic!("still connected");
}

#[test]
fn no_more_clients_than_the_limit() {
    let (mut server, connect) = server();
    let clients: Vec<_> = (0..2 * MAX_CLIENTS)
        .map(|_| {
            let client = connect();
            server.take();
            client
        })
        .collect();
    assert_eq!(server.clients.len(), MAX_CLIENTS);
    drop(clients);
    server.take();
    assert!(server.clients.is_empty());
}

#[test]
fn descriptors_beyond_what_a_call_has_are_closed() {
    let (mut server, connect) = server();
    let client = connect();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // More than there is room for, and more than are kept.
    for count in [9, 4] {
        let _ = send_with(client.as_fd(), br#"{"call":"pause"}"#, &vec![writer.as_fd(); count]);
    }
    drop((writer, client));
    while !server.take().is_empty() {}
    assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
}
