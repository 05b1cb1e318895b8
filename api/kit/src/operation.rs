//! The declaration of an operation: everything that router, policy, schema check, documentation and tests need.

use crate::schema::Schema;
use crate::{BoxFuture, Call, ListSpec, Micro, Outcome};
use axum::http::Method;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

type Handler<S> = Arc<dyn Fn(Call<S>) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// How the request's body reaches the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyMode {
    /// Parsed JSON in `call.body`.
    Json,
    /// Up to this many bytes in `call.raw`; also parsed into `call.body` when it says it is JSON.
    Raw(usize),
    /// Not read: `call.take_stream()`.
    Stream,
}

/// One operation of a service.
pub struct Operation<S> {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) handler: Handler<S>,
    pub(crate) name: &'static str,
    pub(crate) policy: Option<(&'static str, &'static str)>,
    pub(crate) open: bool,
    pub(crate) since: Option<Micro>,
    pub(crate) until: Option<Micro>,
    pub(crate) schemas: Vec<(Micro, Schema)>,
    pub(crate) no_schema: Option<&'static str>,
    pub(crate) query: Vec<&'static str>,
    pub(crate) list: Option<&'static ListSpec>,
    pub(crate) success: u16,
    pub(crate) errors: &'static [u16],
    pub(crate) summary: &'static str,
    pub(crate) body: BodyMode,
    pub(crate) action: Option<&'static str>,
}

impl<S> fmt::Debug for Operation<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.method, self.path)
    }
}

impl<S: Send + Sync + 'static> Operation<S> {
    /// An operation on a path template below the service's prefix (`/v2.1/servers/{server_id}`; `{*rest}` takes the
    /// remaining segments). Several operations may share method and path when version ranges or actions tell them apart.
    pub fn new<F, Fut>(method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Call<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        Self {
            method,
            path,
            handler: Arc::new(move |call| Box::pin(handler(call))),
            name: "",
            policy: None,
            open: false,
            since: None,
            until: None,
            schemas: Vec::new(),
            no_schema: None,
            query: Vec::new(),
            list: None,
            success: 200,
            errors: &[],
            summary: "",
            body: BodyMode::Json,
            action: None,
        }
    }

    /// Unique id within the service; the OpenAPI document's operation id.
    #[must_use]
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Upstream's rule name and its default in oslo.policy's syntax.
    #[must_use]
    pub fn policy(mut self, rule: &'static str, default: &'static str) -> Self {
        self.policy = Some((rule, default));
        self
    }

    /// Needs no token. One that comes along is still looked at; a bad one counts as none.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// First microversion that has it.
    #[must_use]
    pub fn since(mut self, version: Micro) -> Self {
        self.since = Some(version);
        self
    }

    /// Last microversion that has it.
    #[must_use]
    pub fn until(mut self, version: Micro) -> Self {
        self.until = Some(version);
        self
    }

    /// JSON schema of the body.
    #[must_use]
    pub fn body(self, schema: &'static str) -> Self {
        self.body_from(Micro(0, 0), schema)
    }

    /// JSON schema of the body from this microversion on; the highest one that is not above the request's is used.
    #[must_use]
    pub fn body_from(mut self, version: Micro, schema: &'static str) -> Self {
        self.schemas.push((version, Schema::new(schema)));
        self.schemas.sort_by_key(|(version, _)| *version);
        self
    }

    /// Says why a writing operation has no schema: it takes no body, or the handler checks it by hand.
    #[must_use]
    pub fn no_schema(mut self, why: &'static str) -> Self {
        self.no_schema = Some(why);
        self
    }

    /// Declared query parameters.
    #[must_use]
    pub fn query(mut self, names: &[&'static str]) -> Self {
        self.query.extend_from_slice(names);
        self
    }

    /// The list that it returns: declares its filters and paging parameters too.
    #[must_use]
    pub fn list(mut self, list: &'static ListSpec) -> Self {
        self.query.extend(list.parameters());
        self.list = Some(list);
        self
    }

    /// The status of success, and those of failure (for the documentation).
    #[must_use]
    pub fn codes(mut self, success: u16, errors: &'static [u16]) -> Self {
        self.success = success;
        self.errors = errors;
        self
    }

    /// One line for the documentation.
    #[must_use]
    pub fn summary(mut self, text: &'static str) -> Self {
        self.summary = text;
        self
    }

    /// The body is not read but given as a stream.
    #[must_use]
    pub fn streams(mut self) -> Self {
        self.body = BodyMode::Stream;
        self
    }

    /// A body of any type, at most `limit` bytes, is given as bytes.
    #[must_use]
    pub fn raw(mut self, limit: usize) -> Self {
        self.body = BodyMode::Raw(limit);
        self
    }

    /// The operation is chosen by the single key of the body: `{"os-start": null}`.
    #[must_use]
    pub fn action(mut self, key: &'static str) -> Self {
        self.action = Some(key);
        self
    }
}

impl<S> Operation<S> {
    /// The policy rule's name.
    #[must_use]
    pub fn rule(&self) -> Option<&'static str> {
        self.policy.map(|(rule, _)| rule)
    }

    /// The operation's unique id.
    #[must_use]
    pub fn id(&self) -> &'static str {
        self.name
    }

    /// Method and path template.
    #[must_use]
    pub fn route(&self) -> (&Method, &'static str) {
        (&self.method, self.path)
    }

    /// The first microversion that has it.
    #[must_use]
    pub fn first_version(&self) -> Option<Micro> {
        self.since
    }

    /// The last microversion that has it.
    #[must_use]
    pub fn last_version(&self) -> Option<Micro> {
        self.until
    }

    /// The key of the body that chooses it, when it is an action.
    #[must_use]
    pub fn action_key(&self) -> Option<&'static str> {
        self.action
    }

    /// The JSON schema of its body at this microversion.
    #[must_use]
    pub fn body_schema(&self, version: Micro) -> Option<&'static str> {
        self.schema(version).map(Schema::text)
    }

    /// Whether it needs no token.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether its path names something beyond the project that the request is made in (`/v3/{project_id}/...`).
    #[must_use]
    pub fn names_row(&self) -> bool {
        let mut parts = self.path.split('/').enumerate();
        parts.any(|(place, part)| part.starts_with('{') && !(place == 2 && part == "{project_id}"))
    }

    pub(crate) fn serves(&self, version: Micro) -> bool {
        self.since.is_none_or(|since| version >= since) && self.until.is_none_or(|until| version <= until)
    }

    pub(crate) fn schema(&self, version: Micro) -> Option<&Schema> {
        self.schemas.iter().rev().find(|(from, _)| *from <= version).map(|(_, schema)| schema)
    }
}
