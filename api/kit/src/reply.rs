//! What a handler answers.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde_json::Value;

/// A successful (or redirecting) answer.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers beyond the content type.
    pub headers: HeaderMap,
    body: Content,
}

#[derive(Debug)]
enum Content {
    Empty,
    Json(Value),
    Text(String),
    Bytes(Bytes),
    Stream(Body),
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl Reply {
    fn new(code: u16, body: Content) -> Self {
        Self { status: status(code), headers: HeaderMap::new(), body }
    }

    /// A JSON body.
    #[must_use]
    pub fn json(code: u16, value: Value) -> Self {
        Self::new(code, Content::Json(value))
    }

    /// No body.
    #[must_use]
    pub fn empty(code: u16) -> Self {
        Self::new(code, Content::Empty)
    }

    /// A body of plain text (UTF-8); set a `content-type` header to say otherwise.
    #[must_use]
    pub fn text(code: u16, text: impl Into<String>) -> Self {
        Self::new(code, Content::Text(text.into()))
    }

    /// A body of bytes; `application/octet-stream` unless a header says otherwise.
    #[must_use]
    pub fn bytes(code: u16, bytes: impl Into<Bytes>) -> Self {
        Self::new(code, Content::Bytes(bytes.into()))
    }

    /// A body that is produced while it is sent; `application/octet-stream` unless a header says otherwise.
    #[must_use]
    pub fn stream(code: u16, body: Body) -> Self {
        Self::new(code, Content::Stream(body))
    }

    /// Adds a header. A value that HTTP does not allow is left out, with a warning in the log.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_ref().as_bytes())) {
            (Ok(name), Ok(value)) => {
                self.headers.append(name, value);
            }
            (Ok(_) | Err(_), Ok(_) | Err(_)) => tracing::warn!(name, "a header could not be sent"),
        }
        self
    }

    /// The JSON body, for tests of handlers and for operations that wrap another's answer.
    #[must_use]
    pub fn value(&self) -> Option<&Value> {
        match &self.body {
            Content::Json(value) => Some(value),
            Content::Empty | Content::Text(_) | Content::Bytes(_) | Content::Stream(_) => None,
        }
    }

    /// The HTTP answer. With `head_only` the body is counted but not sent.
    #[must_use]
    pub fn into_response(self, head_only: bool) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        let (bytes, kind) = match self.body {
            Content::Empty => (None, None),
            Content::Json(value) => (Some(Bytes::from(value.to_string())), Some("application/json")),
            Content::Text(text) => (Some(Bytes::from(text)), Some("text/plain; charset=UTF-8")),
            Content::Bytes(bytes) => (Some(bytes), Some("application/octet-stream")),
            Content::Stream(body) => {
                if !head_only {
                    *response.body_mut() = body;
                }
                (None, Some("application/octet-stream"))
            }
        };
        let headers = response.headers_mut();
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        let mut last = None;
        for (name, value) in self.headers {
            // A name of `None` is a further value of the last name.
            match name {
                Some(name) => {
                    headers.insert(name.clone(), value);
                    last = Some(name);
                }
                None => {
                    if let Some(name) = &last {
                        headers.append(name.clone(), value);
                    }
                }
            }
        }
        if let Some(bytes) = bytes {
            // HEAD has no body for hyper to count. An explicit length (an object's HEAD) wins.
            if head_only {
                headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes.len()));
            } else {
                *response.body_mut() = Body::from(bytes);
            }
        }
        response
    }
}
