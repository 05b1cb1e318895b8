//! From a request to an operation, through every check that the declarations ask for.

mod mounted;

pub use mounted::{BadDeclaration, Mounted};

use crate::call::Query;
use crate::micro::Disagree;
use crate::operation::BodyMode;
use crate::rate::{Limit, Rate};
use crate::service::UnknownQuery;
use crate::{Authenticate, Call, Caller, Fault, FaultStyle, Micro, MicroRange, Operation, Reply, Service};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How the connection came in; the listener puts it into the request's extensions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connection {
    /// Whether it is encrypted.
    pub tls: bool,
    /// The other end.
    pub peer: Option<SocketAddr>,
}

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest JSON body in bytes.
    pub body_limit: usize,
    /// Longest time for a JSON body to arrive.
    pub body_time: Duration,
    /// Requests of one user.
    pub rate: Option<Limit>,
    /// Requests without a token from one address (log-ins among them).
    pub open_rate: Option<Limit>,
    /// Whether `X-Forwarded-Proto` and `X-Forwarded-Host` are believed (a proxy stands before every listener).
    pub trust_forwarded: bool,
    /// Host and port for links when a request names none that is usable.
    pub default_host: String,
    /// Policy rules that replace defaults: service, rule, text.
    pub policy: BTreeMap<String, BTreeMap<String, String>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            body_limit: 10 << 20,
            body_time: Duration::from_secs(60),
            rate: Some(Limit { per_second: 2000.0, burst: 10_000.0 }),
            open_rate: Some(Limit { per_second: 500.0, burst: 2000.0 }),
            trust_forwarded: false,
            default_host: "localhost".to_owned(),
            policy: BTreeMap::new(),
        }
    }
}

/// Serves all services.
pub struct Router<S> {
    pub(crate) app: Arc<S>,
    pub(crate) services: BTreeMap<&'static str, Arc<Mounted<S>>>,
    auth: Arc<dyn Authenticate>,
    settings: Settings,
    rate: Option<Rate>,
    open_rate: Option<Rate>,
    pub(crate) openapi: OnceLock<Bytes>,
    seen: crate::coverage::Seen,
}

/// What a request turned out to be, for the log.
#[derive(Default)]
struct Trace {
    service: &'static str,
    operation: &'static str,
    user: String,
    project: String,
}

impl<S: Send + Sync + 'static> Router<S> {
    /// Makes services ready.
    ///
    /// # Errors
    /// When a declaration or an operator's override is wrong.
    pub fn new(
        app: Arc<S>,
        auth: Arc<dyn Authenticate>,
        services: Vec<Service<S>>,
        settings: Settings,
        metrics: &base::metrics::Metrics,
    ) -> Result<Self, BadDeclaration> {
        let mut mounted = BTreeMap::new();
        let names: BTreeSet<&str> = services.iter().map(|service| service.name).collect();
        if let Some(name) = settings.policy.keys().find(|name| !names.contains(name.as_str())) {
            return Err(BadDeclaration::Override(name.clone()));
        }
        for service in services {
            let (prefix, overrides) = (service.prefix, settings.policy.get(service.name));
            mounted.insert(prefix.trim_start_matches('/'), Arc::new(Mounted::new(service, overrides)?));
        }
        Ok(Self {
            app,
            services: mounted,
            auth,
            rate: settings.rate.map(Rate::new),
            open_rate: settings.open_rate.map(Rate::new),
            settings,
            openapi: OnceLock::new(),
            seen: crate::coverage::Seen::register(metrics),
        })
    }

    /// Serves one request.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let (started, id) = (Instant::now(), base::log::new_request_id());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let given = text(request.headers(), "x-openstack-request-id").unwrap_or_default();
        let global = if is_request_id(given) { given.to_owned() } else { String::new() };
        let connection = request.extensions().get::<Connection>().copied().unwrap_or_default();
        let work = async {
            let mut trace = Trace::default();
            let outcome =
                AssertUnwindSafe(self.dispatch(request, connection, &id, &mut trace)).catch_unwind();
            let mut response = outcome.await.unwrap_or_else(|_| {
                let fault = Fault::internal("the handler panicked");
                tracing::error!(operation = trace.operation, "a handler panicked");
                fault.render(FaultStyle::Nova, &id, "").into_response(false)
            });
            if let Ok(value) = HeaderValue::from_str(&id) {
                if trace.service == "compute" {
                    response.headers_mut().insert("x-compute-request-id", value.clone());
                }
                response.headers_mut().insert("x-openstack-request-id", value);
            }
            let (status, elapsed) = (response.status().as_u16(), started.elapsed());
            self.seen.note(trace.service, trace.operation, status, elapsed);
            tracing::info!(
                target: "access", method = %method, path, status, global,
                ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                operation = trace.operation, user = trace.user, project = trace.project,
                peer = connection.peer.map(|peer| peer.ip().to_string()), "served"
            );
            response
        };
        base::log::with_request_id(id.clone(), work).await
    }

    async fn dispatch(
        &self,
        request: Request<Body>,
        connection: Connection,
        id: &str,
        trace: &mut Trace,
    ) -> Response<Body> {
        let path = request.uri().path();
        let (first, rest) = match path.strip_prefix('/').unwrap_or(path).split_once('/') {
            Some((first, _)) => (first, &path[first.len() + 1..]),
            None => (path.trim_start_matches('/'), "/"),
        };
        let Some(service) = self.services.get(first) else {
            return self.root(&request, connection, id);
        };
        trace.service = service.name;
        let (service, rest) = (service.clone(), rest.to_owned());
        let head = request.method() == Method::HEAD;
        let accept = text(request.headers(), "accept").unwrap_or_default().to_owned();
        let base = self.base(&request, connection);
        let mut version = service.micro.map(|range| range.min);
        let outcome = self.run(&service, &rest, request, connection, id, &base, &mut version, trace).await;
        let mut response = match outcome {
            Ok(reply) => reply.into_response(head),
            Err(mut fault) => {
                if fault.status.is_server_error() {
                    tracing::error!(%fault, "a request failed");
                } else if fault.source.is_some() {
                    tracing::info!(%fault, "a request was refused");
                }
                if fault.status == StatusCode::UNAUTHORIZED {
                    let value = format!("Keystone uri=\"{base}/identity/v3\"");
                    fault = fault.header(header::WWW_AUTHENTICATE, value);
                }
                fault.render(service.faults, id, &accept).into_response(head)
            }
        };
        if let (Some(range), Some(version)) = (service.micro, version) {
            range.mark(version, response.headers_mut());
        }
        response
    }

    /// Scheme, host and port as the client sees them.
    fn base<B>(&self, request: &Request<B>, connection: Connection) -> String {
        let headers = request.headers();
        let forwarded = |name| if self.settings.trust_forwarded { text(headers, name) } else { None };
        let scheme = match forwarded("x-forwarded-proto") {
            Some("https") => "https",
            Some("http") => "http",
            Some(_) | None if connection.tls => "https",
            Some(_) | None => "http",
        };
        let host = forwarded("x-forwarded-host")
            .or_else(|| text(headers, "host"))
            .or_else(|| request.uri().authority().map(axum::http::uri::Authority::as_str))
            .filter(|host| is_authority(host))
            .unwrap_or(&self.settings.default_host);
        format!("{scheme}://{host}")
    }

    #[allow(clippy::too_many_arguments)]
    async fn run(
        &self,
        service: &Arc<Mounted<S>>,
        rest: &str,
        request: Request<Body>,
        connection: Connection,
        id: &str,
        base: &str,
        version: &mut Option<Micro>,
        trace: &mut Trace,
    ) -> Result<Reply, Fault> {
        let (parts, body) = request.into_parts();
        let (routes, path) =
            service.find(rest).ok_or_else(|| Fault::not_found("The resource could not be found."))?;
        let spoken = match service.micro {
            None => Micro(0, 0),
            Some(range) => {
                // Version discovery answers whatever the client asks for.
                let open = routes.iter().all(|operation| operation.open);
                let agreed = range.negotiate(&parts.headers);
                let agreed = if open { agreed.or(Ok(range.min)) } else { agreed };
                agreed.map_err(|why| disagree(range, service.faults, why))?
            }
        };
        *version = service.micro.map(|_| spoken);
        let candidates = candidates(routes, &parts.method, spoken)?;
        // An action's name, and hence its rule, is in the body; whoever may send one has a token at least.
        let by_action = candidates.iter().any(|operation| operation.action.is_some());
        let open = candidates.iter().all(|operation| operation.open);
        let caller = self.caller(&parts.headers, open).await?;
        trace.user.clone_from(&caller.user_id);
        trace.project = caller.project_id.clone().unwrap_or_default();
        self.slow_down(&caller, connection)?;
        let mut body = Some(body);
        let mut read = None;
        let operation = if by_action {
            let (value, _) = self.json(&parts.headers, body.take(), BodyMode::Json).await?;
            let operation = pick_action(&candidates, &value)?;
            read = Some((value, Bytes::new()));
            operation
        } else {
            let first = candidates.first().ok_or_else(Fault::method_not_allowed)?;
            Arc::clone(first)
        };
        trace.operation = operation.name;
        let gate = service.gate(&operation, &caller)?;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        check_query(service, &operation, spoken, &query)?;
        let reads = parts.method != Method::GET && parts.method != Method::HEAD;
        let (value, raw) = match read {
            Some(read) => read,
            None if operation.body == BodyMode::Stream || !reads => (Value::Null, Bytes::new()),
            None => self.json(&parts.headers, body.take(), operation.body).await?,
        };
        if reads && let Some(schema) = operation.schema(spoken) {
            schema.check(&value, service.faults)?;
        }
        let handler = operation.handler.clone();
        let call = Call {
            app: self.app.clone(),
            caller,
            version: spoken,
            path,
            query,
            body: value,
            raw,
            headers: parts.headers,
            method: parts.method,
            uri: parts.uri,
            request_id: id.to_owned(),
            base: format!("{base}{}", service.prefix),
            peer: connection.peer,
            op: operation,
            service: service.clone(),
            stream: Mutex::new(body),
            gate: gate.clone(),
        };
        let reply = gate.clone().guard(handler(call)).await?;
        if !gate.is_open() {
            return Err(Fault::internal(format!(
                "{} answered without enforcing its policy against what it touched",
                trace.operation
            )));
        }
        Ok(reply)
    }

    async fn caller(&self, headers: &HeaderMap, open: bool) -> Result<Arc<Caller>, Fault> {
        let token = text(headers, "x-auth-token").or_else(|| text(headers, "x-storage-token"));
        let caller = match token {
            Some(token) => self.auth.authenticate(token).await,
            None => Err(Fault::unauthorized()),
        };
        let mut caller = match caller {
            Ok(caller) => caller,
            // A bad token counts as none; a database that is away does not.
            Err(fault) if open && fault.status == StatusCode::UNAUTHORIZED => return Ok(Arc::default()),
            Err(fault) => return Err(fault),
        };
        if let Some(token) = text(headers, "x-service-token") {
            let service = self.auth.authenticate(token).await?;
            Arc::make_mut(&mut caller).service_roles.clone_from(&service.roles);
        }
        Ok(caller)
    }

    fn slow_down(&self, caller: &Caller, connection: Connection) -> Result<(), Fault> {
        let wait = if caller.user_id.is_empty() {
            let (Some(rate), Some(peer)) = (&self.open_rate, connection.peer) else { return Ok(()) };
            rate.take(&peer.ip().to_string(), Instant::now())
        } else {
            let Some(rate) = &self.rate else { return Ok(()) };
            rate.take(&caller.user_id, Instant::now())
        };
        wait.map_err(|wait| {
            let seconds = wait.as_secs() + 1;
            Fault::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("This user sent too many requests. Try again in {seconds} s."),
            )
            .header(header::RETRY_AFTER, seconds.to_string())
        })
    }

    async fn json(
        &self,
        headers: &HeaderMap,
        body: Option<Body>,
        mode: BodyMode,
    ) -> Result<(Value, Bytes), Fault> {
        let limit = match mode {
            BodyMode::Raw(limit) => limit,
            BodyMode::Json | BodyMode::Stream => self.settings.body_limit,
        };
        let too_large =
            || Fault::too_large(format!("The request's body is too large: at most {limit} bytes are taken."));
        let length = text(headers, "content-length").and_then(|text| text.parse::<usize>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(too_large().header(header::CONNECTION, "close"));
        }
        let Some(body) = body else { return Ok((Value::Null, Bytes::new())) };
        let collected = tokio::time::timeout(self.settings.body_time, Limited::new(body, limit).collect())
            .await
            .map_err(|_| {
                Fault::new(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive in time.")
            })?;
        let bytes = collected
            .map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    too_large().header(header::CONNECTION, "close")
                } else {
                    Fault::bad_request("The request's body ended too early.")
                }
            })?
            .to_bytes();
        if bytes.is_empty() {
            return Ok((Value::Null, bytes));
        }
        let raw = matches!(mode, BodyMode::Raw(_));
        if raw && !text(headers, "content-type").is_some_and(|kind| kind.contains("json")) {
            return Ok((Value::Null, bytes));
        }
        let value = serde_json::from_slice(&bytes).map_err(|error| {
            Fault::bad_request(format!("Malformed request body: it is not valid JSON: {error}."))
        })?;
        Ok((value, if raw { bytes } else { Bytes::new() }))
    }

    fn root(&self, request: &Request<Body>, connection: Connection, id: &str) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let reply = match request.uri().path() {
            "/" => {
                let base = self.base(request, connection);
                let services: Vec<Value> = self
                    .services
                    .values()
                    .map(|service| {
                        serde_json::json!({"name": service.name, "type": service.kind,
                            "url": format!("{base}{}{}", service.prefix, service.door())})
                    })
                    .collect();
                Reply::json(
                    200,
                    serde_json::json!({"services": services,
                    "openapi": format!("{base}/openapi.json"), "version": env!("CARGO_PKG_VERSION")}),
                )
            }
            "/healthcheck" => Reply::text(200, "OK"),
            "/openapi.json" => {
                Reply::bytes(200, self.openapi_json()).header("content-type", "application/json")
            }
            _ => Fault::not_found("The resource could not be found. The services' paths are listed at '/'.")
                .render(FaultStyle::Keystone, id, ""),
        };
        reply.into_response(head)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_request_id(text: &str) -> bool {
    text.strip_prefix("req-").is_some_and(|id| id.len() == 36 && uuid::Uuid::parse_str(id).is_ok())
}

/// A host with an optional port and nothing else: links are made from it.
fn is_authority(host: &str) -> bool {
    host.len() <= 255
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte))
        && host.parse::<axum::http::uri::Authority>().is_ok()
}

fn disagree(range: MicroRange, style: FaultStyle, why: Disagree) -> Fault {
    match why {
        Disagree::Malformed(text) => {
            let text: String = text.chars().take(64).collect();
            Fault::bad_request(format!(
                "API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
            ))
        }
        Disagree::Unsupported(text) => {
            let message = match style {
                FaultStyle::Placement => format!(
                    "Unacceptable version header: {text}. Minimum is {} and maximum is {}.",
                    range.min, range.max
                ),
                FaultStyle::Keystone
                | FaultStyle::Nova
                | FaultStyle::Neutron
                | FaultStyle::Cinder
                | FaultStyle::Glance
                | FaultStyle::Swift => format!(
                    "Version {text} is not supported by the API. Minimum is {} and maximum is {}.",
                    range.min, range.max
                ),
            };
            Fault::new(StatusCode::NOT_ACCEPTABLE, message)
        }
    }
}

/// The operations of this path with this method and version.
fn candidates<S>(
    routes: &[Arc<Operation<S>>],
    method: &Method,
    version: Micro,
) -> Result<Vec<Arc<Operation<S>>>, Fault> {
    let of = |method: &Method| -> Vec<&Arc<Operation<S>>> {
        routes.iter().filter(|operation| operation.method == *method).collect()
    };
    let mut found = of(method);
    if found.is_empty() && method == Method::HEAD {
        found = of(&Method::GET);
    }
    if found.is_empty() {
        let mut allowed: BTreeSet<&str> = routes.iter().map(|operation| operation.method.as_str()).collect();
        if allowed.contains("GET") {
            allowed.insert("HEAD");
        }
        let list = allowed.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Fault::method_not_allowed().header(header::ALLOW, list));
    }
    found.retain(|operation| operation.serves(version));
    if found.is_empty() {
        return Err(Fault::not_found(format!("API version {version} is not supported on this method.")));
    }
    Ok(found.into_iter().cloned().collect())
}

fn pick_action<S>(candidates: &[Arc<Operation<S>>], body: &Value) -> Result<Arc<Operation<S>>, Fault> {
    let Some(body) = body.as_object() else { return Err(Fault::bad_request("Malformed request body")) };
    if body.len() > 1 {
        return Err(Fault::bad_request("Multiple actions specified: the body must hold exactly one."));
    }
    let Some(key) = body.keys().next() else {
        return Err(Fault::bad_request("Malformed request body: it names no action."));
    };
    candidates.iter().find(|operation| operation.action == Some(key.as_str())).cloned().ok_or_else(|| {
        let key: String = key.chars().take(64).collect();
        Fault::bad_request(format!("There is no such action: {key}"))
    })
}

fn check_query<S>(
    service: &Mounted<S>,
    operation: &Operation<S>,
    version: Micro,
    query: &Query,
) -> Result<(), Fault> {
    let strict = match service.unknown_query {
        UnknownQuery::Ignore => false,
        UnknownQuery::Refuse => true,
        UnknownQuery::RefuseFrom(from) => version >= from,
    };
    if !strict {
        return Ok(());
    }
    let unknown: BTreeSet<&str> =
        query.iter().map(|(name, _)| name).filter(|name| !operation.query.contains(name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = unknown
        .iter()
        .take(10)
        .map(|name| format!("'{}'", name.chars().take(64).collect::<String>()))
        .collect();
    let verb = if list.len() == 1 { "was" } else { "were" };
    Err(Fault::bad_request(format!(
        "Additional properties are not allowed ({} {verb} unexpected)",
        list.join(", ")
    )))
}

/// Header name helpers for callers that build requests in tests.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-auth-token");

/// The path of a URI without the service's prefix.
#[must_use]
pub fn below<'a>(uri: &'a Uri, prefix: &str) -> &'a str {
    uri.path().strip_prefix(prefix).unwrap_or(uri.path())
}

#[cfg(test)]
mod tests;
