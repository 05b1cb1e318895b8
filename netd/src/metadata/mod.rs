//! The metadata service at 169.254.169.254: proves which port a request came from and lets `api` answer it. The proof
//! is the source address, which `filter::identity` keeps honest on every port, also on those without port security: only
//! a port's own fixed addresses count, never those that it may use by an allowed address pair.

use crate::network::METADATA;
use crate::responder::View;
use base::rpc::Client;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use wire::metadata::ReadMetadata;
use wire::net::PortRole;

/// Longest path in bytes.
const PATH: usize = 1024;
/// Longest life of a connection.
const CONNECTION: Duration = Duration::from_secs(30);
/// Longest wait for `api`.
const ANSWER: Duration = Duration::from_secs(10);

/// Serves one connection of a guest to its end.
pub async fn serve(stream: TcpStream, from: IpAddr, view: Arc<View>, api: Client) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (view, api) = (view.clone(), api.clone());
        async move { Ok::<_, Infallible>(respond(&request, from, &view, &api).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(5))
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    // Whatever ends it, the guest is the only one to be told.
    let _ = tokio::time::timeout(CONNECTION, connection).await;
}

async fn respond(
    request: &Request<Incoming>,
    from: IpAddr,
    view: &View,
    api: &Client,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served");
    }
    let path = request.uri().path();
    if path.len() > PATH {
        return plain(StatusCode::URI_TOO_LONG, "the path is too long");
    }
    let port = view.spec.ports.iter().find(|port| port.addresses.iter().any(|(_, address)| *address == from));
    let Some((port, server)) = port.and_then(|port| match port.role {
        PortRole::Server { server } => Some((port.id, server)),
        PortRole::Dhcp | PortRole::Router => None,
    }) else {
        return plain(StatusCode::NOT_FOUND, &format!("no server has the address {from} on this network"));
    };
    let call = ReadMetadata { server, port, path: path.to_owned() };
    let id = base::log::new_request_id();
    match base::log::with_request_id(id, api.call_within(&call, ANSWER)).await {
        Ok(reply) => {
            let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = Response::new(Full::new(Bytes::from(reply.body)));
            *response.status_mut() = status;
            if let Ok(kind) = HeaderValue::from_str(&reply.content_type) {
                response.headers_mut().insert(CONTENT_TYPE, kind);
            }
            response
        }
        Err(refused) => {
            tracing::warn!(%server, %refused, "cannot answer a metadata request");
            plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the metadata service is not available now; try again later",
            )
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Where it listens.
#[must_use]
pub fn address() -> std::net::SocketAddr {
    (METADATA, 80).into()
}
