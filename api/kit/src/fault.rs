//! What went wrong, and how each service says it.
//!
//! A fault has a public message and a private source. Only the edge knows the body's shape: the same fault reads
//! `{"itemNotFound": ...}` from compute and `{"NeutronError": ...}` from network.

use crate::Reply;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use base::store::StoreError;
use serde_json::json;
use std::borrow::Cow;
use std::fmt;
use wire::{Refused, RefusedKind};

/// What a handler returns.
pub type Outcome = Result<Reply, Fault>;

/// A request that failed.
#[derive(Debug, Clone)]
pub struct Fault {
    /// HTTP status.
    pub status: StatusCode,
    /// The service's own name for it (`PortNotFound`); empty means the usual one for the status.
    pub kind: Cow<'static, str>,
    /// For the user: what is wrong and what to do.
    pub message: String,
    /// Further headers of the answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log only.
    pub source: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.status.as_u16())?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

/// The shape of a service's error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultStyle {
    /// `{"error": {"code", "message", "title"}}`
    Keystone,
    /// `{"itemNotFound": {"code", "message"}}`
    Nova,
    /// `{"NeutronError": {"type", "message", "detail"}}`
    Neutron,
    /// As nova.
    Cinder,
    /// HTML, or JSON when the client accepts it, as webob writes it.
    Glance,
    /// Short HTML.
    Swift,
    /// `{"errors": [{"status", "title", "detail", "code", "request_id"}]}`
    Placement,
}

impl Fault {
    /// A fault of any status.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, kind: Cow::Borrowed(""), message: message.into(), headers: Vec::new(), source: None }
    }

    /// 400: the request cannot be understood or contradicts itself.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401, in the words of upstream.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "The request you have made requires authentication.")
    }

    /// 403
    #[must_use]
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 403 because of the rule named `rule`.
    #[must_use]
    pub fn not_allowed(rule: &str) -> Self {
        Self::forbidden(format!("Policy doesn't allow {rule} to be performed."))
    }

    /// 404
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 405
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "The method is not allowed for this resource.")
    }

    /// 409
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 410
    #[must_use]
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, message)
    }

    /// 413
    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// A quota is used up: 403, which compute answers with. Volume says 413 ([`Fault::too_large`]), network 409.
    #[must_use]
    pub fn over_quota(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 500. The source goes to the log, the user gets the request id to ask about.
    #[must_use]
    pub fn internal(source: impl fmt::Display) -> Self {
        let mut fault = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "An unexpected error happened. Its details are in the log of the API under this request's id.",
        );
        fault.source = Some(source.to_string());
        fault
    }

    /// 503: something this depends on does not answer.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut fault = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        fault.headers.push((header::RETRY_AFTER, HeaderValue::from_static("5")));
        fault
    }

    /// Gives it the service's own name: `PortNotFound`.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<Cow<'static, str>>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Adds what only the log should show.
    #[must_use]
    pub fn source(mut self, source: impl fmt::Display) -> Self {
        self.source = Some(source.to_string());
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.push((name, value));
        }
        self
    }

    /// The answer in the service's own shape. `accept` is the request's `Accept` header.
    #[must_use]
    pub fn render(&self, style: FaultStyle, request_id: &str, accept: &str) -> Reply {
        let code = self.status.as_u16();
        // Every service stands behind the same token check, which always answers in identity's shape.
        let style = if code == 401 && style != FaultStyle::Swift { FaultStyle::Keystone } else { style };
        let title = self.status.canonical_reason().unwrap_or("Error");
        let mut reply = match style {
            FaultStyle::Keystone => {
                Reply::json(code, json!({"error": {"code": code, "message": self.message, "title": title}}))
            }
            FaultStyle::Nova | FaultStyle::Cinder => {
                let kind = if self.kind.is_empty() { nova_kind(code) } else { &self.kind };
                Reply::json(code, json!({kind: {"code": code, "message": self.message}}))
            }
            FaultStyle::Neutron => {
                let kind = if self.kind.is_empty() { neutron_kind(code) } else { &self.kind };
                Reply::json(
                    code,
                    json!({"NeutronError": {"type": kind, "message": self.message, "detail": ""}}),
                )
            }
            FaultStyle::Glance => self.webob(title, accept),
            FaultStyle::Swift => self.swift(title),
            FaultStyle::Placement => {
                let kind = if self.kind.is_empty() { "placement.undefined_code" } else { &self.kind };
                Reply::json(
                    code,
                    json!({"errors": [{"status": code, "title": title, "detail": self.message,
                        "code": kind, "request_id": request_id}]}),
                )
            }
        };
        for (name, value) in &self.headers {
            reply.headers.append(name.clone(), value.clone());
        }
        reply
    }

    fn webob(&self, title: &str, accept: &str) -> Reply {
        let code = self.status.as_u16();
        let status = format!("{code} {title}");
        if accept.contains("application/json") {
            let message = format!("{}<br /><br />\n\n\n", self.message);
            return Reply::json(code, json!({"message": message, "code": status, "title": title}));
        }
        let page = format!(
            "<html>\n <head>\n  <title>{status}</title>\n </head>\n <body>\n  <h1>{status}</h1>\n  {}<br /><br />\n\n\n\n </body>\n</html>",
            escape(&self.message)
        );
        Reply::text(code, page).header("content-type", "text/html; charset=UTF-8")
    }

    fn swift(&self, title: &str) -> Reply {
        let code = self.status.as_u16();
        // Where upstream has something of its own to say it says it in plain text.
        if matches!(code, 400 | 409 | 412 | 413 | 503) && !self.message.is_empty() {
            return Reply::text(code, self.message.clone());
        }
        let text = match code {
            401 => {
                "This server could not verify that you are authorized to access the document you requested."
            }
            403 => "Access was denied to this resource.",
            404 => "The resource could not be found.",
            405 => "The method is not allowed for this resource.",
            411 => "Content-Length header required.",
            416 => "The Range requested is not available.",
            422 => "Unable to process the contained instructions",
            _ => &self.message,
        };
        Reply::text(code, format!("<html><h1>{title}</h1><p>{}</p></html>", escape(text)))
            .header("content-type", "text/html; charset=UTF-8")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The names that nova and cinder give to statuses.
fn nova_kind(code: u16) -> &'static str {
    match code {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 | 429 => "overLimit",
        415 => "badMediaType",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    }
}

fn neutron_kind(code: u16) -> &'static str {
    match code {
        400 => "HTTPBadRequest",
        403 => "PolicyNotAuthorized",
        404 => "HTTPNotFound",
        405 => "HTTPMethodNotAllowed",
        409 => "HTTPConflict",
        413 => "HTTPRequestEntityTooLarge",
        429 => "HTTPTooManyRequests",
        503 => "HTTPServiceUnavailable",
        _ => "HTTPInternalServerError",
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Duplicate(_) => {
                Self::conflict("A resource with these unique properties already exists.").source(error)
            }
            StoreError::Constraint(_) => {
                Self::conflict("The resource is in use, or refers to one that does not exist.").source(error)
            }
            StoreError::Unavailable(_) => Self::unavailable(
                "The database does not answer. Try again; if it lasts, the operator should see that it runs.",
            )
            .source(error),
            StoreError::Contended => {
                Self::unavailable("Too many changes were made at the same time. Try again.").source(error)
            }
            // SQLite's and PostgreSQL's codes for a full disk.
            StoreError::Other(ref why) if why.ends_with("(13)") || why.ends_with("(53100)") => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "The disk of the cloud's database is full. The operator should free space or make the disk larger.",
            )
            .source(error),
            StoreError::Newer { .. }
            | StoreError::Shape(_)
            | StoreError::Shut(_)
            | StoreError::Other(_) => Self::internal(error),
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused.kind {
            RefusedKind::Missing => Self::not_found(text),
            RefusedKind::Conflict | RefusedKind::Stale => Self::conflict(text),
            RefusedKind::Invalid => Self::bad_request(text),
            RefusedKind::NoSpace | RefusedKind::Unavailable => Self::unavailable(text),
            RefusedKind::Forbidden => Self::forbidden(text),
            RefusedKind::Internal => Self::internal(text),
        }
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        let kind = match fault.status.as_u16() {
            404 => RefusedKind::Missing,
            409 => RefusedKind::Conflict,
            401 | 403 => RefusedKind::Forbidden,
            503 => RefusedKind::Unavailable,
            400..=499 => RefusedKind::Invalid,
            _ => RefusedKind::Internal,
        };
        Self::new(kind, fault.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(fault: &Fault, style: FaultStyle, accept: &str) -> serde_json::Value {
        fault.render(style, "req-1", accept).value().cloned().unwrap_or_default()
    }

    #[test]
    fn each_service_says_it_in_its_own_shape() {
        let fault = Fault::not_found("No such thing").kind("ThingNotFound");
        assert_eq!(
            body(&fault, FaultStyle::Neutron, ""),
            json!({"NeutronError": {"type": "ThingNotFound", "message": "No such thing", "detail": ""}})
        );
        let fault = Fault::not_found("No such thing");
        assert_eq!(
            body(&fault, FaultStyle::Nova, ""),
            json!({"itemNotFound": {"code": 404, "message": "No such thing"}})
        );
        assert_eq!(
            body(&fault, FaultStyle::Keystone, ""),
            json!({"error": {"code": 404, "message": "No such thing", "title": "Not Found"}})
        );
        assert_eq!(
            body(&fault, FaultStyle::Placement, ""),
            json!({"errors": [{"status": 404, "title": "Not Found", "detail": "No such thing",
                "code": "placement.undefined_code", "request_id": "req-1"}]})
        );
        assert_eq!(body(&fault, FaultStyle::Glance, "application/json")["code"], "404 Not Found");
        assert_eq!(body(&Fault::unauthorized(), FaultStyle::Nova, "")["error"]["code"], 401);
    }

    #[test]
    fn what_a_client_sent_is_not_markup_in_the_answer() {
        let fault = Fault::not_found("<script>");
        for style in [FaultStyle::Glance, FaultStyle::Swift] {
            let text = format!("{:?}", fault.render(style, "", "text/html"));
            assert!(!text.contains("<script>"), "{text}");
        }
    }

    #[test]
    fn causes_stay_in_the_log_and_remedies_reach_the_user() {
        let fault = Fault::from(StoreError::Other("secret table is broken (1)".to_owned()));
        assert_eq!(fault.status.as_u16(), 500);
        assert!(!fault.message.contains("secret") && fault.to_string().contains("secret"));
        let fault = Fault::from(StoreError::Other("database or disk is full (13)".to_owned()));
        assert_eq!(fault.status.as_u16(), 507);
        let fault = Fault::from(StoreError::Unavailable("connection refused".to_owned()));
        assert_eq!((fault.status.as_u16(), fault.headers.len()), (503, 1));
    }
}
