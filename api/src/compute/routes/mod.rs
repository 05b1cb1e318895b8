//! The operations of compute.

mod actions;
mod admin;
mod aggregates;
mod attachments;
mod diagnostics;
mod flavors;
mod groups;
mod keypairs;
mod listing;
mod remake;
mod servers;
mod usage;

use super::{micro, policy};
use crate::app::App;
use api_kit::{Call, FaultStyle, Service, UnknownQuery};

/// The declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("compute", "compute", "/compute", FaultStyle::Nova)
        .micro(micro::RANGE)
        .unknown_query(UnknownQuery::RefuseFrom(micro::STRICT))
        .rules(policy::RULES)
        .operations(admin::operations())
        .operations(flavors::operations())
        .operations(keypairs::operations())
        .operations(servers::operations())
        .operations(actions::operations())
        .operations(remake::operations())
        .operations(attachments::operations())
        .operations(diagnostics::operations())
        .operations(aggregates::operations())
        .operations(groups::operations())
        .operations(usage::operations())
}

/// URL of the next page: the same request with this marker.
fn next_link(call: &Call<App>, marker: &str) -> String {
    let path = call.uri.path().strip_prefix("/compute").unwrap_or(call.uri.path());
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in call.query.iter().filter(|(name, _)| *name != "marker") {
        query.append_pair(name, value);
    }
    query.append_pair("marker", marker);
    format!("{}{path}?{}", call.base, query.finish())
}
