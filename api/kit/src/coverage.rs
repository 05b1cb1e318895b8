//! What keeps the declarations honest: a list of everything that one of them forgot, and counts of what is asked.

use crate::Service;
use crate::operation::BodyMode;
use crate::policy::{COMMON, Policy};
use axum::http::Method;
use base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::BTreeSet;
use std::time::Duration;

/// Everything that is missing or contradictory in the declarations, a line each.
#[must_use]
pub fn faults<S: Send + Sync + 'static>(services: &[Service<S>]) -> Vec<String> {
    let mut out = Vec::new();
    for service in services {
        let mut ids = BTreeSet::new();
        let mut policy = Policy::default();
        for (name, text) in COMMON.iter().chain(service.rules) {
            if let Err(error) = policy.add(*name, text) {
                out.push(format!("{}: {error}", service.name));
            }
        }
        for operation in &service.operations {
            let mut fault = |what: String| {
                out.push(format!("{} {} {}: {what}", service.name, operation.method, operation.path));
            };
            if operation.name.is_empty() {
                fault("has no name".to_owned());
            }
            if !ids.insert(operation.name) {
                fault(format!("shares its name '{}' with another", operation.name));
            }
            if operation.summary.is_empty() {
                fault("has no summary".to_owned());
            }
            match operation.policy {
                None if !operation.open => fault("has no policy and is not open".to_owned()),
                Some((rule, text)) => {
                    if let Err(error) = policy.add(rule, text) {
                        fault(error.to_string());
                    }
                }
                None => (),
            }
            let writes = [Method::POST, Method::PUT, Method::PATCH].contains(&operation.method);
            if writes
                && operation.body == BodyMode::Json
                && operation.schemas.is_empty()
                && operation.no_schema.is_none()
            {
                fault("takes a body and has no schema; say why with no_schema if that is right".to_owned());
            }
            for (_, schema) in &operation.schemas {
                if let Err(error) = schema.validator() {
                    fault(error);
                }
            }
            if service.micro.is_none() && (operation.since.is_some() || operation.until.is_some()) {
                fault("has a version range in a service without microversions".to_owned());
            }
        }
        if let Err(error) = policy.verify() {
            out.push(format!("{}: {error}", service.name));
        }
    }
    out
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    service: &'static str,
    operation: &'static str,
    status: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByService {
    service: &'static str,
}

/// Counts of answered requests.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    requests: Family<Labels, Counter>,
    seconds: Family<ByService, Histogram>,
}

impl Seen {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let seen = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 14))),
        };
        metrics.register(|registry| {
            registry.register("ferro_api_requests", "Requests answered", seen.requests.clone());
            registry.register(
                "ferro_api_request_seconds",
                "Time until a request's answer began",
                seen.seconds.clone(),
            );
        });
        seen
    }

    pub(crate) fn note(&self, service: &'static str, operation: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&Labels { service, operation, status: status.into() }).inc();
        self.seconds.get_or_create(&ByService { service }).observe(took.as_secs_f64());
    }
}
