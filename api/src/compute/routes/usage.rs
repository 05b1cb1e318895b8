//! What projects used over time, and migrations, of which there are none.

use crate::app::App;
use crate::compute::micro;
use crate::compute::policy::{ADMIN, READER};
use crate::compute::records::servers;
use crate::compute::records::usage::{self, Run};
use crate::compute::view::server as view;
use api_kit::time::{naive, now, parse_time};
use api_kit::{Call, Fault, Operation, Outcome, Reply, Target};
use axum::http::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Largest page, in servers.
const MOST: usize = 1000;
/// Length of the time looked at when the client names no start, in seconds: four weeks.
const LENGTH_SECS: i64 = 28 * 24 * 3600;

pub fn operations() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/v2.1/os-simple-tenant-usage", all)
            .name("usage:list")
            .policy("os_compute_api:os-simple-tenant-usage:list", ADMIN)
            .query(&["start", "end", "detailed", "limit", "marker"])
            .codes(200, &[400, 401, 403])
            .summary("What all projects used"),
        Operation::new(Method::GET, "/v2.1/os-simple-tenant-usage/{project_id}", one)
            .name("usage:show")
            .policy("os_compute_api:os-simple-tenant-usage:show", READER)
            .query(&["start", "end", "limit", "marker"])
            .codes(200, &[400, 401, 403])
            .summary("What a project used"),
        Operation::new(Method::GET, "/v2.1/os-migrations", migrations)
            .name("migrations:list")
            .policy("os_compute_api:os-migrations:index", ADMIN)
            .query(&[
                "hidden",
                "host",
                "instance_uuid",
                "source_compute",
                "status",
                "migration_type",
                "limit",
                "marker",
                "changes-since",
                "changes-before",
                "user_id",
                "project_id",
            ])
            .codes(200, &[400, 401, 403])
            .summary("List migrations"),
        Operation::new(Method::GET, "/v2.1/servers/{server_id}/migrations", server_migrations)
            .name("migrations:of-server")
            .policy("os_compute_api:servers:migrations:index", ADMIN)
            .since(micro::SERVER_MIGRATIONS)
            .codes(200, &[401, 403, 404])
            .summary("List a server's migrations"),
    ]
}

/// A run and the state of its server.
type Stated = (Run, &'static str);

/// The time looked at, in stored form.
struct Span {
    from: String,
    to: String,
}

/// Hours between two stored times.
#[allow(clippy::cast_precision_loss)]
fn hours(from: &str, to: &str) -> f64 {
    let parse = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let (Some(from), Some(to)) = (parse(from), parse(to)) else { return 0.0 };
    // Milliseconds of a century fit a double exactly.
    ((to.as_millisecond() - from.as_millisecond()).max(0)) as f64 / 3_600_000.0
}

impl Span {
    fn read(call: &Call<App>) -> Result<Self, Fault> {
        let time = |name: &str| -> Result<Option<String>, Fault> {
            let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
            parse_time(text).map(Some).ok_or_else(|| {
                let text: String = text.chars().take(64).collect();
                Fault::bad_request(format!(
                    "Datetime is in invalid format: {name} is '{text}', not like 2026-01-31T12:00:00."
                ))
            })
        };
        let to = time("end")?.unwrap_or_else(now);
        let from = match time("start")? {
            Some(from) => from,
            None => {
                let end: jiff::Timestamp = to.parse().map_err(Fault::internal)?;
                let begin = end.checked_sub(jiff::SignedDuration::from_secs(LENGTH_SECS));
                begin.map(api_kit::time::stored).map_err(Fault::internal)?
            }
        };
        if from >= to {
            return Err(Fault::bad_request(
                "Invalid start time. The start time cannot occur after the end time.",
            ));
        }
        Ok(Self { from, to })
    }

    /// The hours of a run within the span.
    fn of(&self, run: &Run) -> f64 {
        let end = run.ended_at.as_ref().map_or(&self.to, |ended| ended.min(&self.to));
        hours((&run.started_at).max(&self.from), end)
    }
}

/// The runs of a project, or of all, in the span, by server id, with the state of each.
async fn runs(call: &Call<App>, project: Option<&str>, span: &Span) -> Result<Vec<Stated>, Fault> {
    let store = &call.app.store;
    let mut select = servers::select();
    if let Some(project) = project {
        select.and("project_id = ?", [project.into()]);
    }
    select.and("launched_at < ?", [span.to.as_str().into()]);
    let present = view::gather(&call.app, servers::find(store, select).await?).await?;
    // Rows of the gone after the present: a server that is deleted in between is in both, and counted once.
    let mut by_id: BTreeMap<String, Stated> = BTreeMap::new();
    for shown in &present {
        if let Some(run) = Run::of(&shown.server) {
            by_id.insert(run.server_id.clone(), (run, shown.state.vm.as_str()));
        }
    }
    for run in usage::ended(store, project, &span.from, &span.to).await? {
        by_id.insert(run.server_id.clone(), (run, "terminated"));
    }
    Ok(by_id.into_values().collect())
}

/// The page of runs that was asked for, and the marker of the next. Before 2.40 there are no pages.
fn page(call: &Call<App>, mut all: Vec<Stated>) -> Result<(Vec<Stated>, Option<String>), Fault> {
    if call.version < micro::USAGE_PAGING {
        return Ok((all, None));
    }
    if let Some(marker) = call.query.get("marker") {
        let at = all.iter().position(|(run, _)| run.server_id == marker).ok_or_else(|| {
            Fault::bad_request(format!("marker [{}] not found", marker.chars().take(64).collect::<String>()))
        })?;
        all.drain(..=at);
    }
    let limit = match call.query.get("limit") {
        None => MOST,
        Some(text) => text.parse::<usize>().map(|limit| limit.min(MOST)).map_err(|_| {
            Fault::bad_request(
                "Invalid input for query parameters limit: a non-negative integer is expected.",
            )
        })?,
    };
    let more = all.len() > limit;
    all.truncate(limit);
    let next = if more { all.last().map(|(run, _)| run.server_id.clone()) } else { None };
    Ok((all, next))
}

fn each(run: &Run, state: &str, span: &Span) -> Value {
    let until = run.ended_at.as_deref().unwrap_or(&span.to);
    // Seconds since it began, as far as this answer looks.
    #[allow(clippy::cast_possible_truncation)]
    let uptime = (hours(&run.started_at, until) * 3600.0) as i64;
    json!({"instance_id": run.server_id, "name": run.name, "tenant_id": run.project_id, "flavor": run.flavor,
        "hours": span.of(run), "vcpus": run.vcpus, "memory_mb": run.memory_mb, "local_gb": run.local_gb,
        "started_at": naive(&run.started_at), "ended_at": run.ended_at.as_deref().map(naive), "state": state,
        "uptime": uptime})
}

#[allow(clippy::cast_precision_loss)]
fn sum(project: &str, runs: &[&Stated], span: &Span, detailed: bool) -> Value {
    let (mut total, mut vcpus, mut memory, mut disk) = (0.0, 0.0, 0.0, 0.0);
    for (run, _) in runs {
        let hours = span.of(run);
        total += hours;
        vcpus += hours * run.vcpus as f64;
        memory += hours * run.memory_mb as f64;
        disk += hours * run.local_gb as f64;
    }
    let mut out = json!({"tenant_id": project, "start": naive(&span.from), "stop": naive(&span.to),
        "total_hours": total, "total_vcpus_usage": vcpus, "total_memory_mb_usage": memory,
        "total_local_gb_usage": disk});
    if detailed {
        out["server_usages"] = runs.iter().map(|(run, state)| each(run, state, span)).collect();
    }
    out
}

fn link(call: &Call<App>, marker: &str) -> Value {
    json!([{"rel": "next", "href": super::next_link(call, marker)}])
}

async fn all(call: Call<App>) -> Outcome {
    let span = Span::read(&call)?;
    let (found, next) = page(&call, runs(&call, None, &span).await?)?;
    let mut by_project: HashMap<&str, Vec<&Stated>> = HashMap::new();
    for run in &found {
        by_project.entry(run.0.project_id.as_str()).or_default().push(run);
    }
    let detailed = call.query.get("detailed") == Some("1");
    let mut projects: Vec<&str> = by_project.keys().copied().collect();
    projects.sort_unstable();
    let sums: Vec<Value> =
        projects.iter().map(|project| sum(project, &by_project[project], &span, detailed)).collect();
    let mut body = json!({"tenant_usages": sums});
    if let Some(marker) = next {
        body["tenant_usages_links"] = link(&call, &marker);
    }
    Ok(Reply::json(200, body))
}

async fn one(call: Call<App>) -> Outcome {
    let project = call.path("project_id");
    call.enforce(&Target::project(project))?;
    let span = Span::read(&call)?;
    let (found, next) = page(&call, runs(&call, Some(project), &span).await?)?;
    let found: Vec<&Stated> = found.iter().collect();
    // A project that used nothing has nothing to show, not even zeros.
    let shown = if found.is_empty() { json!({}) } else { sum(project, &found, &span, true) };
    let mut body = json!({"tenant_usage": shown});
    if let Some(marker) = next {
        body["tenant_usage_links"] = link(&call, &marker);
    }
    Ok(Reply::json(200, body))
}

/// No server ever moves: there is one host.
async fn migrations(call: Call<App>) -> Outcome {
    if let Some(marker) = call.query.get("marker").filter(|_| call.version >= micro::MIGRATION_PAGING) {
        let marker: String = marker.chars().take(64).collect();
        return Err(Fault::bad_request(format!("Marker {marker} could not be found.")));
    }
    Ok(Reply::json(200, json!({"migrations": []})))
}

async fn server_migrations(call: Call<App>) -> Outcome {
    crate::compute::rules::find(&call).await?;
    Ok(Reply::json(200, json!({"migrations": []})))
}
