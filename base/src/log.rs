//! Structured logs: one JSON object a line on standard error, each with the request id it belongs to.

use std::future::Future;
use tracing::Instrument;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// Starts logging for this process. `RUST_LOG` overrides the default level `info`.
///
/// # Panics
/// Never; a second call is ignored.
pub fn init(daemon: &'static str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn,hyper=warn"));
    let outcome = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Else a reader of standard error that went away makes every log line a panic.
        .log_internal_errors(false)
        .try_init();
    if outcome.is_ok() {
        tracing::info!(daemon, version = env!("CARGO_PKG_VERSION"), "started logging");
    }
}

/// Runs `work` under a request id: its log lines and the calls it makes to other daemons carry it.
pub async fn with_request_id<T>(id: String, work: impl Future<Output = T>) -> T {
    let span = tracing::info_span!("request", request_id = %id);
    REQUEST_ID.scope(id, work.instrument(span)).await
}

/// The request id that this code runs under, if any.
#[must_use]
pub fn request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// A new request id in the form that OpenStack clients print, `req-UUID`.
#[must_use]
pub fn new_request_id() -> String {
    format!("req-{}", uuid::Uuid::new_v4().hyphenated())
}
