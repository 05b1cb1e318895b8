//! A cloud in the test's own process: all services on a fresh store, called without a socket.
//!
//! Tokens are names: `admin`, `demo` (member of the demo project), `reader`, `other` (member of another project) and
//! `nobody` (no role anywhere). The daemons are whatever `base::rpc` servers the test puts at [`Cloud::socket`]; without
//! one, calls to it are refused as unavailable.

use crate::app::{self, App, Shared};
use crate::bootstrap::Params;
use crate::config::{Config, ImageLimits, Sockets, Tokens};
use api_kit::{Authenticate, BoxFuture, Caller, Fault, Router, Settings};
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use base::CancellationToken;
use base::rpc::{Allow, Router as RpcRouter};
use base::store::testing::TestStore;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The project of `demo` and `reader`.
pub const DEMO_PROJECT: &str = "de000000000000000000000000000001";
/// The project of `other`.
pub const OTHER_PROJECT: &str = "de000000000000000000000000000002";
/// The project of `admin`.
pub const ADMIN_PROJECT: &str = "ad000000000000000000000000000001";

/// A cloud and what keeps it alive.
pub struct Cloud {
    /// The application.
    pub app: Shared,
    /// Its services.
    pub router: Arc<Router<App>>,
    /// Ends what [`Cloud::start`] and [`Cloud::daemon`] started, when the cloud goes.
    pub shutdown: CancellationToken,
    dir: tempfile::TempDir,
    _store: TestStore,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as JSON; `Null` when it is none.
    pub json: Value,
    /// Body as it came.
    pub bytes: Bytes,
}

struct Names(HashMap<&'static str, Arc<Caller>>);

impl Authenticate for Names {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Arc<Caller>, Fault>> {
        Box::pin(async move { self.0.get(token).cloned().ok_or_else(Fault::unauthorized) })
    }
}

/// A caller for tests.
#[must_use]
pub fn caller(name: &str, project: &str, roles: &[&str]) -> Caller {
    Caller {
        user_id: format!("{name:0<32}"),
        user_name: name.to_owned(),
        user_domain_id: "default".to_owned(),
        user_domain_name: "Default".to_owned(),
        project_id: Some(project.to_owned()),
        project_name: Some(format!("project-of-{name}")),
        project_domain_id: Some("default".to_owned()),
        project_domain_name: Some("Default".to_owned()),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        token: name.to_owned(),
        issued_at: "2026-01-01T00:00:00.000000Z".to_owned(),
        expires_at: "2126-01-01T00:00:00.000000Z".to_owned(),
        methods: vec!["password".to_owned()],
        is_admin: roles.contains(&"admin"),
        ..Caller::default()
    }
}

fn names() -> Names {
    let admin = caller("admin", ADMIN_PROJECT, &["admin", "manager", "member", "reader"]);
    let member = ["member", "reader"];
    Names(
        [
            ("admin", admin),
            ("demo", caller("demo", DEMO_PROJECT, &member)),
            ("reader", caller("reader", DEMO_PROJECT, &["reader"])),
            ("other", caller("other", OTHER_PROJECT, &member)),
            ("nobody", caller("nobody", OTHER_PROJECT, &[])),
        ]
        .into_iter()
        .map(|(name, caller)| (name, Arc::new(caller)))
        .collect(),
    )
}

impl Cloud {
    /// A cloud on an empty SQLite store.
    pub async fn new() -> Self {
        Self::on(base::store::testing::sqlite().await).await
    }

    /// A cloud on a store of the test's choice (`on_both`).
    pub async fn on(store: TestStore) -> Self {
        Self::configured(store, |_| ()).await
    }

    /// The same, configured otherwise.
    ///
    /// # Panics
    /// When it does not start.
    #[allow(clippy::expect_used)]
    pub async fn configured(store: TestStore, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name);
        let mut config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            public: None,
            http_listen: None,
            database: store.url.clone(),
            state_dir: at("state"),
            socket: at("api.sock"),
            socket_uids: Vec::new(),
            sockets: Sockets {
                host: at("host.sock"),
                net: at("net.sock"),
                block: at("block.sock"),
                block_uid: None,
            },
            host_name: "host-1".to_owned(),
            region: "RegionOne".to_owned(),
            tokens: Tokens::default(),
            security_compliance: crate::identity::lockout::SecurityCompliance::default(),
            rate: None,
            trust_forwarded: false,
            policy: std::collections::BTreeMap::new(),
            images: ImageLimits::default(),
            threads: 2,
            claim: false,
            task_width: 8,
        };
        change(&mut config);
        std::fs::create_dir_all(&config.state_dir).expect("a folder for keys");
        let app = App::with_store(config, store.store.clone()).await.expect("the application opens");
        let settings = Settings { rate: None, open_rate: None, ..Settings::default() };
        let router = Router::new(app.clone(), Arc::new(names()), app::services(), settings, &app.metrics);
        let router = Arc::new(router.expect("the declarations are right"));
        Self { app, router, shutdown: CancellationToken::new(), dir, _store: store }
    }

    /// The same cloud with the identity service's own tokens instead of names.
    ///
    /// # Panics
    /// When a declaration is wrong.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn with_tokens(mut self) -> Self {
        let auth = Arc::new(crate::identity::Tokens(self.app.clone()));
        let settings = Settings { rate: None, open_rate: None, ..Settings::default() };
        let metrics = base::metrics::Metrics::default();
        let router = Router::new(self.app.clone(), auth, app::services(), settings, &metrics);
        self.router = Arc::new(router.expect("the declarations are right"));
        self
    }

    /// Where a daemon listens: `host`, `net` or `block`.
    #[must_use]
    pub fn socket(&self, daemon: &str) -> PathBuf {
        self.dir.path().join(format!("{daemon}.sock"))
    }

    /// Serves a fake daemon at [`Cloud::socket`] until the cloud goes. A daemon served again replaces the former one.
    ///
    /// # Panics
    /// When the socket cannot be made.
    #[allow(clippy::expect_used, clippy::disallowed_methods)]
    pub fn daemon(&self, daemon: &str, router: RpcRouter) -> CancellationToken {
        let end = self.shutdown.child_token();
        let serving = base::rpc::listen(&self.socket(daemon), 0o600, router, Allow::own(), end.clone());
        tokio::spawn(serving.expect("the socket is free"));
        end
    }

    /// Starts workers and reconcilers, as `api serve` does.
    pub fn start(&self) {
        crate::serve::start_work(&self.app, &self.shutdown);
    }

    /// Calls an operation: `call("demo", "POST", "/compute/v2.1/servers", Some(json))`.
    pub async fn call(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_with(token, method, path, &[], body.map_or_else(Bytes::new, |body| body.to_string().into()))
            .await
    }

    /// Calls an operation with headers and any body. An empty token sends none.
    ///
    /// # Panics
    /// When the request is not one that HTTP allows.
    #[allow(clippy::expect_used)]
    pub async fn call_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = Request::builder().method(method).uri(path).header("host", "cloud.test");
        if !token.is_empty() {
            request = request.header("x-auth-token", token);
        }
        if headers.iter().all(|(name, _)| !name.eq_ignore_ascii_case("accept")) {
            request = request.header("accept", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).expect("a request");
        let response = self.router.clone().handle(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("the body arrives").to_bytes();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status.as_u16(), headers: parts.headers, json, bytes }
    }

    /// Parameters for `inner::bootstrap` functions.
    ///
    /// # Panics
    /// Never: the addresses are constant.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn params(&self) -> Params {
        Params {
            admin: caller("admin", ADMIN_PROJECT, &["admin", "manager", "member", "reader"]),
            demo: caller("demo", DEMO_PROJECT, &["member", "reader"]),
            admin_project: ADMIN_PROJECT.to_owned(),
            demo_project: DEMO_PROJECT.to_owned(),
            service_project: ADMIN_PROJECT.to_owned(),
            public_cidr: "203.0.113.0/24".parse().expect("a network"),
            public_gateway: None,
            demo_cidr: "10.0.0.0/24".parse().expect("a network"),
            dns: Vec::new(),
            guest_image: None,
        }
    }
}
