//! One request, as a handler sees it.

use crate::policy::Verdict;
use crate::router::Mounted;
use crate::{Caller, Fault, Micro, Operation, Target};
use axum::body::Body;
use axum::http::{HeaderMap, Method, Uri};
use base::gate::Gate;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Values of the path template's `{names}`, percent-decoded.
#[derive(Debug, Clone, Default)]
pub struct PathParams(pub(crate) Vec<(String, String)>);

impl PathParams {
    /// The value of `{name}`; empty when the template has none.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// The query string, decoded, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(pub(crate) Vec<(String, String)>);

impl Query {
    /// Decodes `a=1&b=2`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is there at all (`?recursive`).
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A truth parameter in any of the spellings that OpenStack takes.
    ///
    /// # Errors
    /// 400 when it is none of them.
    pub fn truth(&self, name: &str) -> Result<Option<bool>, Fault> {
        self.get(name).map(|text| truth(name, text)).transpose()
    }

    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

pub(crate) fn truth(name: &str, text: &str) -> Result<bool, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(Fault::bad_request(format!(
            "Invalid value '{}' for '{name}'. Acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'.",
            text.chars().take(64).collect::<String>()
        ))),
    }
}

/// A request that passed the kit's checks.
pub struct Call<S> {
    /// The application.
    pub app: Arc<S>,
    /// Who calls. On an open operation without a token: nobody ([`Caller::default`]).
    pub caller: Arc<Caller>,
    /// The microversion agreed on.
    pub version: Micro,
    /// Path parameters.
    pub path: PathParams,
    /// Query parameters.
    pub query: Query,
    /// The JSON body; `Null` when there is none.
    pub body: Value,
    /// The body's bytes, on operations declared `raw`.
    pub raw: bytes::Bytes,
    /// Request headers.
    pub headers: HeaderMap,
    /// `HEAD` where the operation is `GET` and the client wants no body.
    pub method: Method,
    /// As requested, the service's prefix included.
    pub uri: Uri,
    /// `req-UUID`
    pub request_id: String,
    /// Public URL of the service, `https://host:port/compute`, for links.
    pub base: String,
    /// Address of the client, when it came by TCP.
    pub peer: Option<SocketAddr>,
    /// The operation.
    pub op: Arc<Operation<S>>,
    pub(crate) service: Arc<Mounted<S>>,
    // In a mutex only to make the call shareable: a body by itself is not.
    pub(crate) stream: Mutex<Option<Body>>,
    pub(crate) gate: Gate,
}

impl<S> Call<S> {
    /// The value of `{name}` in the path.
    #[must_use]
    pub fn path(&self, name: &str) -> &str {
        self.path.get(name)
    }

    /// Enforces this operation's rule against what it touches. Where the rule depends on that, nothing can be changed
    /// and no daemon asked before this has passed.
    ///
    /// # Errors
    /// 403 in the words of upstream.
    pub fn enforce(&self, target: &Target<'_>) -> Result<(), Fault> {
        let rule = self.op.rule().unwrap_or_default();
        if !self.may(rule, target) {
            return Err(self.service.forbidden(rule));
        }
        self.gate.open();
        Ok(())
    }

    /// Marks a reading operation's rule as met by other means: the handler only shows what the caller may see. On an
    /// operation that writes it does nothing: that has to [`Call::enforce`].
    pub fn enforced_by_query(&self) {
        if self.method == Method::GET || self.method == Method::HEAD {
            self.gate.open();
        }
    }

    /// Marks the operation's rule as met because the resource's own access list lets the caller do this. To be called
    /// after that list was asked.
    pub fn enforced_by_access_list(&self) {
        self.gate.open();
    }

    /// Whether any rule of this service allows it.
    #[must_use]
    pub fn may(&self, rule: &str, target: &Target<'_>) -> bool {
        self.service.policy.check(rule, &self.caller, target) == Verdict::Yes
    }

    /// Enforces another rule of this service than the operation's own.
    ///
    /// # Errors
    /// 403 in the words of upstream.
    pub fn enforce_rule(&self, rule: &str, target: &Target<'_>) -> Result<(), Fault> {
        if self.may(rule, target) { Ok(()) } else { Err(self.service.forbidden(rule)) }
    }

    /// The token's project.
    ///
    /// # Errors
    /// 403 when the token is not scoped to a project.
    pub fn project_id(&self) -> Result<&str, Fault> {
        self.caller.project_id.as_deref().ok_or_else(|| {
            Fault::forbidden(
                "This needs a token that is scoped to a project. Ask for one with a project scope.",
            )
        })
    }

    /// The body's value under the one key that wraps it (`{"server": {...}}`); `Null` when it is not there.
    #[must_use]
    pub fn inner(&self, key: &str) -> &Value {
        self.body.get(key).unwrap_or(&Value::Null)
    }

    /// A request header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body of an operation declared with `streams()`. A second take gives an empty one.
    pub fn take_stream(&self) -> Body {
        let taken = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(Body::empty)
    }
}
