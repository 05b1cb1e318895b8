//! The calling end.

use super::{Allow, BODY_LIMIT, REQUEST_ID};
use axum::body::Body;
use axum::http::{Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use wire::{Call, Refused};

/// Idle connections kept for reuse.
const IDLE: usize = 8;

/// A caller of one daemon. Cheap to clone; connections are kept and reused.
#[derive(Debug, Clone)]
pub struct Client {
    path: Arc<PathBuf>,
    trusted: Arc<Allow>,
    idle: Arc<Mutex<Vec<SendRequest<Body>>>>,
}

impl Client {
    /// A caller of the daemon at this socket, which must be served by root or by our own uid. Nothing is connected yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Arc::new(path.into()), trusted: Arc::new(Allow::own()), idle: Arc::default() }
    }

    /// Believes a daemon that runs as one of these uids too.
    #[must_use]
    pub fn trusting(mut self, uids: impl IntoIterator<Item = u32>) -> Self {
        self.trusted = Arc::new(self.trusted.as_ref().clone().and(uids));
        self
    }

    /// Makes a call, waiting at most a minute.
    ///
    /// # Errors
    /// What the daemon refused; `Unavailable` when it does not answer.
    pub async fn call<C: Call>(&self, call: &C) -> Result<C::Reply, Refused> {
        self.call_within(call, Duration::from_secs(60)).await
    }

    /// Makes a call, waiting at most `limit`. A connection that died is replaced once: calls are repeatable.
    ///
    /// # Errors
    /// What the daemon refused; `Unavailable` when it does not answer.
    pub async fn call_within<C: Call>(&self, call: &C, limit: Duration) -> Result<C::Reply, Refused> {
        gate()?;
        let body = serde_json::to_vec(call).map_err(|error| Refused::internal(error.to_string()))?;
        let exchange = async {
            let make = || Request::post(C::PATH).header(header::CONTENT_TYPE, "application/json");
            let response = match self.kept(make(), Body::from(body.clone())).await {
                Some(response) => response,
                None => self.fresh(make(), Body::from(body)).await?,
            };
            let (status, bytes) = (response.0.status(), response.0.into_body());
            let bytes = Limited::new(bytes, BODY_LIMIT)
                .collect()
                .await
                .map_err(|error| self.unavailable(&error.to_string()))?
                .to_bytes();
            self.keep(response.1);
            if status.is_success() {
                serde_json::from_slice(&bytes).map_err(|error| self.nonsense(C::PATH, &error.to_string()))
            } else {
                let refused: Result<Refused, _> = serde_json::from_slice(&bytes);
                Err(refused.unwrap_or_else(|_| self.nonsense(C::PATH, &format!("status {status}"))))
            }
        };
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(self.unavailable(&format!("no answer within {} s", limit.as_secs()))))
    }

    /// Sends any request (byte streams) on a connection of its own. The answer's body is the caller's to read.
    ///
    /// # Errors
    /// `Unavailable` when the daemon does not answer, else what it refused.
    pub async fn send(
        &self,
        request: axum::http::request::Builder,
        body: Body,
    ) -> Result<Response<Incoming>, Refused> {
        gate()?;
        let (response, _) = self.fresh(request, body).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = Limited::new(response.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| self.unavailable(&error.to_string()))?
            .to_bytes();
        Err(serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| self.nonsense("a stream", &format!("status {status}"))))
    }

    async fn kept(
        &self,
        request: axum::http::request::Builder,
        body: Body,
    ) -> Option<(Response<Incoming>, SendRequest<Body>)> {
        let mut sender = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        sender.ready().await.ok()?;
        let response = sender.send_request(identified(request, body).ok()?).await.ok()?;
        Some((response, sender))
    }

    async fn fresh(
        &self,
        request: axum::http::request::Builder,
        body: Body,
    ) -> Result<(Response<Incoming>, SendRequest<Body>), Refused> {
        let stream = UnixStream::connect(self.path.as_path())
            .await
            .map_err(|error| self.unavailable(&error.to_string()))?;
        // Whoever can put a socket at this path is not yet the daemon: nothing is said to another.
        let peer = stream.peer_cred().map_err(|error| self.unavailable(&error.to_string()))?.uid();
        if !self.trusted.allows(peer) {
            return Err(self.stranger(peer));
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unavailable(&error.to_string()))?;
        tokio::spawn(connection);
        let request = identified(request, body).map_err(|error| Refused::internal(error.to_string()))?;
        let response =
            sender.send_request(request).await.map_err(|error| self.unavailable(&error.to_string()))?;
        Ok((response, sender))
    }

    fn keep(&self, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(sender);
        }
    }

    fn unavailable(&self, why: &str) -> Refused {
        Refused::unavailable(format!("the daemon at {} does not answer: {why}", self.path.display()))
            .remedy("see whether it runs and what its log says")
    }

    fn stranger(&self, uid: u32) -> Refused {
        let path = self.path.display();
        tracing::error!(uid, socket = %path, "a socket is served by a stranger");
        Refused::unavailable(format!("the socket {path} is served by uid {uid}, which is not the daemon's"))
            .remedy("stop that process, start the daemon again, and see that the configuration names its uid")
    }

    fn nonsense(&self, path: &str, why: &str) -> Refused {
        Refused::internal(format!(
            "the daemon at {} answered {path} with something else: {why}",
            self.path.display()
        ))
        .remedy("run the same version of every daemon")
    }
}

fn gate() -> Result<(), Refused> {
    crate::gate::pass().map_err(|shut| Refused::internal(shut.to_string()))
}

fn identified(request: axum::http::request::Builder, body: Body) -> Result<Request<Body>, axum::http::Error> {
    let request = request.header(header::HOST, "localhost");
    match crate::log::request_id() {
        Some(id) => request.header(REQUEST_ID, id).body(body),
        None => request.body(body),
    }
}
