//! Calls between daemons: HTTP/1.1 with JSON over unix sockets, one type per call at both ends ([`wire::Call`]).
//!
//! The kernel says who is at the other end (`SO_PEERCRED`), to both: a connection from a uid that is not allowed is closed
//! before a byte of it is read, and nothing is said to a socket that another uid than the daemon's listens on. The caller's request id travels along in `x-openstack-request-id`.

mod client;
mod server;

pub use client::Client;
pub use server::{Allow, Router, listen, refuse};

/// Header that carries the request id.
pub const REQUEST_ID: &str = "x-openstack-request-id";

/// Largest JSON body of a call or reply, in bytes.
pub const BODY_LIMIT: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CancellationToken;
    use serde::{Deserialize, Serialize};
    use wire::{Call, Refused, RefusedKind};

    #[derive(Serialize, Deserialize)]
    struct Halve {
        number: u32,
    }
    impl Call for Halve {
        const PATH: &'static str = "/v1/halve";
        type Reply = (u32, Option<String>);
    }

    fn router() -> Router {
        Router::new().serve(|call: Halve| async move {
            if call.number.is_multiple_of(2) {
                Ok((call.number / 2, crate::log::request_id()))
            } else {
                Err(Refused::invalid(format!("{} is odd", call.number)).remedy("give an even number"))
            }
        })
    }

    async fn up(dir: &std::path::Path, allow: Allow) -> (Client, CancellationToken) {
        let (path, end) = (dir.join("x.sock"), CancellationToken::new());
        let serving = listen(&path, 0o660, router(), allow, end.clone()).unwrap();
        tokio::spawn(serving);
        (Client::new(path), end)
    }

    #[tokio::test]
    async fn replies_refusals_and_request_ids_cross_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let (client, _end) = up(dir.path(), Allow::own()).await;
        let reply = crate::log::with_request_id("req-1".into(), client.call(&Halve { number: 4 })).await;
        assert_eq!(reply.unwrap(), (2, Some("req-1".into())));
        let refused = client.call(&Halve { number: 3 }).await.unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Invalid);
        assert_eq!(refused.remedy, "give an even number");
    }

    #[tokio::test]
    async fn a_restarted_daemon_is_reached_again_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (client, end) = up(dir.path(), Allow::own()).await;
        client.call(&Halve { number: 4 }).await.unwrap();
        end.cancel();
        while dir.path().join("x.sock").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let refused = client.call(&Halve { number: 4 }).await.unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Unavailable);
        assert!(refused.message.contains("x.sock"), "{refused}");
        let (_, _end) = up(dir.path(), Allow::own()).await;
        assert_eq!(client.call(&Halve { number: 4 }).await.unwrap().0, 2);
    }

    #[tokio::test]
    async fn nothing_is_said_to_a_stranger_at_the_daemons_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        const STRANGER: u32 = 64_999;
        let listener = crate::testing::as_uid(STRANGER, dir.path(), || {
            std::os::unix::net::UnixListener::bind(&path).unwrap()
        });
        let heard = std::thread::spawn(move || {
            let mut text = String::new();
            for stream in listener.incoming().take(2) {
                let mut byte = [0u8];
                if std::io::Read::read(&mut stream.unwrap(), &mut byte).unwrap() > 0 {
                    text.push(char::from(byte[0]));
                }
            }
            text
        });
        let refused = Client::new(&path).call(&Halve { number: 4 }).await.unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Unavailable);
        assert!(refused.message.contains("64999"), "{refused}");
        // Told that this is the daemon's uid, the caller speaks.
        let client = Client::new(&path).trusting([STRANGER]);
        client.call(&Halve { number: 4 }).await.unwrap_err();
        assert_eq!(heard.join().unwrap(), "P");
    }

    #[tokio::test]
    async fn a_stranger_is_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let (client, _end) = up(dir.path(), Allow::uids([u32::MAX - 1])).await;
        assert_eq!(client.call(&Halve { number: 4 }).await.unwrap_err().kind, RefusedKind::Unavailable);
    }
}
