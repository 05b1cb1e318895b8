//! `api serve`: listeners, workers, reconcilers.

use crate::app::{self, App, Shared};
use crate::claim::Claim;
use crate::config::Config;
use crate::identity::Tokens;
use crate::tls::Files;
use api_kit::{Connection, Fault, Router, Settings};
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use base::CancellationToken;
use base::rpc::Allow;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use wire::{Health, HealthReport};

/// Connections at the same time, of all listeners.
const CONNECTIONS: usize = 4096;
/// Longest time for a TLS handshake, and for a request's head to arrive.
const PATIENCE: Duration = Duration::from_secs(15);

/// A plain sentence for the operator.
pub type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Serves until cancelled.
///
/// # Errors
/// When it cannot start: a sentence with the remedy.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), Trouble> {
    config.check()?;
    let tls = Files::new(&config.state_dir).acceptor()?;
    // The ports first: a second instance should not even touch the database.
    let https = bind("listen", config.listen).await?;
    let http = match config.http_listen {
        Some(address) => Some(bind("http_listen", address).await?),
        None => None,
    };
    let app = App::open(config).await.map_err(|fault| plain(&fault))?;
    let router = router(&app)?;
    let claim = if app.config.claim { Some(Arc::new(Claim::open(&app.config.state_dir)?)) } else { None };
    let internal = internal(&app, &shutdown)?;
    start_work(&app, &shutdown);

    let connections = TaskTracker::new();
    let server = Server {
        app: app.clone(),
        router,
        claim,
        room: Arc::new(Semaphore::new(CONNECTIONS)),
        connections: connections.clone(),
        shutdown: shutdown.clone(),
    };
    let tasks = TaskTracker::new();
    tasks.spawn(internal);
    tasks.spawn(server.clone().accept(https, Some(tls)));
    if let Some(http) = http {
        tasks.spawn(server.accept(http, None));
    }
    tasks.close();
    base::daemon::notify_ready();
    tracing::info!(https = %app.config.listen, http = ?app.config.http_listen, "serving");
    shutdown.cancelled().await;
    tasks.wait().await;
    connections.close();
    if tokio::time::timeout(Duration::from_secs(5), connections.wait()).await.is_err() {
        tracing::warn!("some requests were cut off");
    }
    // A statement that still runs must not hold up the end: whatever it is part of is rolled back.
    if tokio::time::timeout(Duration::from_secs(3), app.store.close()).await.is_err() {
        tracing::warn!("the database's connections were cut off");
    }
    Ok(())
}

fn plain(fault: &Fault) -> Trouble {
    match &fault.source {
        Some(source) => format!("{}: {source}", fault.message).into(),
        None => fault.message.clone().into(),
    }
}

async fn bind(option: &str, address: SocketAddr) -> Result<TcpListener, Trouble> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program has it; stop that program (see 'ss -tlnp') or choose another port"
            }
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE; grant it or choose a higher port"
            }
            std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
            _ => "choose another address",
        };
        format!("cannot listen on {address} ({option}): {error}; {remedy}").into()
    })
}

/// All services, ready to be called.
///
/// # Errors
/// When a policy override is wrong.
pub fn router(app: &Shared) -> Result<Arc<Router<App>>, Trouble> {
    let config = &app.config;
    let mut settings = Settings {
        trust_forwarded: config.trust_forwarded,
        default_host: config.public.as_deref().and_then(|public| public.split_once("://")).map_or_else(
            || config.listen.to_string(),
            |(_, authority)| authority.trim_end_matches('/').to_owned(),
        ),
        policy: config.policy.clone(),
        ..Settings::default()
    };
    if let Some(rate) = config.rate {
        settings.rate = Some(rate);
    }
    let auth = Arc::new(Tokens(app.clone()));
    let router = Router::new(app.clone(), auth, app::services(), settings, &app.metrics)?;
    Ok(Arc::new(router))
}

fn internal(
    app: &Shared,
    shutdown: &CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, Trouble> {
    let health = app.clone();
    let router = base::rpc::Router::new().serve(move |_: Health| {
        let app = health.clone();
        async move { Ok(report(&app).await) }
    });
    let router = crate::internal_calls(app, router);
    let metrics = app.metrics.clone();
    let exposition = axum::routing::get(move || async move { metrics.render() });
    let router = router.plain(axum::Router::new().route("/metrics", exposition));
    let path = &app.config.socket;
    let allow = Allow::own().and(app.config.socket_uids.iter().copied());
    base::rpc::listen(path, 0o660, router, allow, shutdown.clone()).map_err(|error| {
        format!(
            "cannot listen on {}: {error}; see that its folder exists and this user may write there",
            path.display()
        )
        .into()
    })
}

async fn report(app: &App) -> HealthReport {
    let mut troubles = Vec::new();
    let alive = base::store::Query::row(&app.store, "SELECT 1 AS one", base::args![]).await;
    if let Err(error) = alive {
        troubles.push(error.to_string());
    }
    troubles.extend(app.cloud.troubles());
    let fact = |name: &str, value: String| (name.to_owned(), value);
    HealthReport {
        daemon: "api".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        troubles,
        facts: vec![
            fact("https", app.config.listen.to_string()),
            fact("http", app.config.http_listen.map_or_else(|| "off".to_owned(), |at| at.to_string())),
            fact("cloud", app.cloud.id.to_string()),
            fact("database", app.store.engine_name().to_owned()),
        ],
    }
}

/// Starts task workers and reconcilers; they end with the token.
#[allow(clippy::disallowed_methods)]
pub fn start_work(app: &Shared, shutdown: &CancellationToken) {
    let owner = format!("{}-{}", app.config.host_name, uuid::Uuid::now_v7().simple());
    let workers = app::workers(app.tasks.clone());
    tokio::spawn(workers.run(app.clone(), owner, app.config.task_width, shutdown.clone()));
    for reconciler in app::reconcilers() {
        let app: Arc<App> = app.clone();
        let nudge = (reconciler.nudge)(&app.wake).clone();
        tokio::spawn(base::reconcile::drive(
            reconciler.name,
            nudge,
            reconciler.every,
            shutdown.clone(),
            move || (reconciler.settle)(app.clone()),
        ));
    }
}

#[derive(Clone)]
struct Server {
    app: Shared,
    router: Arc<Router<App>>,
    claim: Option<Arc<Claim>>,
    room: Arc<Semaphore>,
    connections: TaskTracker,
    shutdown: CancellationToken,
}

impl Server {
    async fn accept(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, say: wait instead of spinning.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = self.room.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "turned a connection away: there are too many");
                continue;
            };
            // Small answers should not wait for each other.
            let _ = stream.set_nodelay(true);
            let (server, tls) = (self.clone(), tls.clone());
            self.connections.spawn(async move {
                let _permit = permit;
                let connection = Connection { tls: tls.is_some(), peer: Some(peer) };
                match tls {
                    None => server.converse(stream, connection).await,
                    Some(tls) => match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => server.converse(stream, connection).await,
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                        Err(_) => tracing::debug!(%peer, "no TLS in time"),
                    },
                }
            });
        }
    }

    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, from: Connection) {
        let shutdown = self.shutdown.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request, from).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = shutdown.cancelled() => (),
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }

    async fn answer(self, request: Request<Incoming>, from: Connection) -> Response<Body> {
        if request.uri().path() == "/metrics" {
            let near = from.peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
            let mut response = Response::new(Body::empty());
            if near {
                *response.body_mut() = Body::from(self.app.metrics.render());
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0"),
                );
            } else {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            return response;
        }
        let mut request = request.map(Body::new);
        if from.tls
            && request.uri().path() == "/claim"
            && let Some(claim) = &self.claim
        {
            return claim.answer(request).await;
        }
        request.extensions_mut().insert(from);
        self.router.handle(request).await
    }
}
