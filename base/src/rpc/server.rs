//! The serving end.

use super::{BODY_LIMIT, REQUEST_ID};
use crate::CancellationToken;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeSet;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;
use wire::{Call, Refused, RefusedKind};

/// The uids that a daemon serves, or that a caller takes for the daemon.
#[derive(Debug, Clone)]
pub struct Allow(BTreeSet<u32>);

impl Allow {
    /// root and the uid of this process.
    #[must_use]
    pub fn own() -> Self {
        Self([0, nix::unistd::geteuid().as_raw()].into())
    }

    /// Exactly these.
    #[must_use]
    pub fn uids(uids: impl IntoIterator<Item = u32>) -> Self {
        Self(uids.into_iter().collect())
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn allows(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }

    /// The next of them that connects to `listener`, or nobody once it is time to end. Others are turned away: the kernel's word
    /// on the caller's uid decides. `path` is for the log.
    pub async fn next(
        &self,
        listener: &UnixListener,
        path: &Path,
        shutdown: &CancellationToken,
    ) -> Option<UnixStream> {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, say: wait instead of spinning.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if self.allows(peer.uid()) => return Some(stream),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), socket = %path.display(), "turned a stranger away");
                }
                Err(_) => (),
            }
        }
    }

    /// These too.
    #[must_use]
    pub fn and(mut self, uids: impl IntoIterator<Item = u32>) -> Self {
        self.0.extend(uids);
        self
    }
}

/// The calls that a daemon serves.
#[derive(Debug, Default)]
pub struct Router(axum::Router);

impl Router {
    /// Serves nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the call `C` with `handler`.
    #[must_use]
    pub fn serve<C, F, Fut>(self, handler: F) -> Self
    where
        C: Call,
        F: Fn(C) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<C::Reply, Refused>> + Send + 'static,
    {
        let route = axum::routing::post(move |body: Bytes| {
            let handler = handler.clone();
            async move {
                let call: C = match serde_json::from_slice(&body) {
                    Ok(call) => call,
                    Err(error) => {
                        let message = format!("the body of {} does not fit the call: {error}", C::PATH);
                        return refuse(
                            &Refused::invalid(message).remedy("run the same version of every daemon"),
                        );
                    }
                };
                match handler(call).await {
                    Ok(reply) => json(StatusCode::OK, &reply),
                    Err(refused) => refuse(&refused),
                }
            }
        });
        Self(self.0.route(C::PATH, route))
    }

    /// Adds plain routes: byte streams, `/metrics`.
    #[must_use]
    pub fn plain(self, routes: axum::Router) -> Self {
        Self(self.0.merge(routes))
    }
}

/// Renders a refusal as the internal socket carries it; for handlers of plain routes.
#[must_use]
pub fn refuse(refused: &Refused) -> Response {
    if refused.kind == RefusedKind::Internal {
        tracing::error!(%refused, "refused a call");
    }
    let status = StatusCode::from_u16(refused.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, refused)
}

fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn scope(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).map(str::to_owned);
    crate::log::with_request_id(given.unwrap_or_else(crate::log::new_request_id), next.run(request)).await
}

/// Takes the socket (replacing a stale one) with `mode` and returns the future that serves it until cancelled;
/// requests that run then have five seconds to finish, and the socket file is removed.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(
    path: &Path,
    mode: u32,
    router: Router,
    allow: Allow,
    shutdown: CancellationToken,
) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let service = router.0.layer(DefaultBodyLimit::max(BODY_LIMIT)).layer(axum::middleware::from_fn(scope));
    let path = path.to_owned();
    Ok(async move {
        let connections = TaskTracker::new();
        while let Some(stream) = allow.next(&listener, &path, &shutdown).await {
            let (service, end) = (TowerToHyperService::new(service.clone()), shutdown.clone());
            connections.spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    _ = &mut connection => (),
                    () = end.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        let _ = connection.await;
                    }
                }
            });
        }
        drop(listener);
        let _ = std::fs::remove_file(&path);
        connections.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), connections.wait()).await;
    })
}
