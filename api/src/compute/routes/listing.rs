//! The list of servers: what it is filtered by, every filter before the page is cut.

use crate::app::App;
use crate::compute::metadata::ZONE;
use crate::compute::micro;
use crate::compute::neighbours::network;
use crate::compute::state;
use crate::compute::tasks;
use api_kit::list::{Filter, Match, SortKey};
use api_kit::{Call, Dir, Fault, ListSpec, Page};
use base::store::{Query, Sql, Value as Cell, Where};
use base::task::Tasks;
use std::collections::BTreeSet;
use wire::ids::ServerId;

pub static LIST: ListSpec = ListSpec {
    table: "compute_servers",
    key: "id",
    filters: &[
        Filter::new("uuid", "id", Match::Text),
        Filter::new("flavor", "flavor_id", Match::Text),
        Filter::new("image", "image_id", Match::Text),
        Filter::new("key_name", "key_name", Match::Text),
        Filter::new("user_id", "user_id", Match::Text),
        Filter::new("reservation_id", "reservation_id", Match::Text),
        Filter::new("config_drive", "config_drive", Match::Truth),
        Filter::new("changes-since", "updated_at", Match::Since),
        Filter::new("locked", "locked", Match::Truth),
    ],
    sorts: &[
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "updated_at", column: "updated_at" },
        SortKey { name: "launched_at", column: "COALESCE(launched_at, '')" },
        SortKey { name: "display_name", column: "name" },
        SortKey { name: "name", column: "name" },
        SortKey { name: "uuid", column: "id" },
        SortKey { name: "host", column: "COALESCE(host, '')" },
        SortKey { name: "instance_type_id", column: "flavor_id" },
        SortKey { name: "image_ref", column: "COALESCE(image_id, '')" },
        SortKey { name: "key_name", column: "COALESCE(key_name, '')" },
        SortKey { name: "project_id", column: "project_id" },
        SortKey { name: "user_id", column: "user_id" },
        SortKey { name: "availability_zone", column: "COALESCE(zone, '')" },
    ],
    default_sort: &[("created_at", Dir::Desc)],
    max_limit: 1000,
    zero_is_all: false,
};

/// Further parameters, which are dealt with below.
pub const HANDLED: &[&str] = &[
    "name",
    "description",
    "hostname",
    "ip",
    "ip6",
    "status",
    "vm_state",
    "power_state",
    "task_state",
    "availability_zone",
    "host",
    "all_tenants",
    "project_id",
    "tenant_id",
    "tags",
    "tags-any",
    "not-tags",
    "not-tags-any",
    "changes-before",
    "deleted",
];

fn pattern(call: &Call<App>, name: &str) -> Result<Option<regex::Regex>, Fault> {
    let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let built = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
    built.map(Some).map_err(|_| {
        let text: String = text.chars().take(64).collect();
        Fault::bad_request(format!("Invalid filter {name}: '{text}' is not a regular expression"))
    })
}

/// Ids of those servers that match filters which no column answers: texts by pattern, addresses.
async fn matching(call: &Call<App>, project: Option<&str>) -> Result<Option<Vec<Cell>>, Fault> {
    let texts = [
        ("name", pattern(call, "name")?),
        ("description", pattern(call, "description")?),
        ("hostname", pattern(call, "hostname")?),
    ];
    let (ip, ip6) = (pattern(call, "ip")?, pattern(call, "ip6")?);
    if texts.iter().all(|(_, wanted)| wanted.is_none()) && ip.is_none() && ip6.is_none() {
        return Ok(None);
    }
    let sql = "SELECT id, name, COALESCE(description, '') AS description, hostname FROM compute_servers
        WHERE project_id = $1 OR $2 = 1";
    let args = base::args![project.unwrap_or_default(), project.is_none()];
    let mut ids = Vec::new();
    for row in call.app.store.rows(Sql::from(sql), args).await? {
        let mut fits = true;
        for (column, wanted) in &texts {
            if let Some(wanted) = wanted {
                fits &= wanted.is_match(&row.text(column)?);
            }
        }
        if fits {
            ids.push(row.parse::<ServerId>("id")?);
        }
    }
    if ip.is_some() || ip6.is_some() {
        let ports = network::of_servers(&call.app, &ids).await?;
        let has = |id: &ServerId, wanted: &regex::Regex, v6: bool| {
            ports
                .get(id)
                .into_iter()
                .flatten()
                .flat_map(|port| &port.addresses)
                .any(|(address, _)| address.is_ipv6() == v6 && wanted.is_match(&address.to_string()))
        };
        ids.retain(|id| {
            ip.as_ref().is_none_or(|ip| has(id, ip, false)) && ip6.as_ref().is_none_or(|ip| has(id, ip, true))
        });
    }
    Ok(Some(ids.into_iter().map(Cell::from).collect()))
}

/// The servers that a task with one of these states works on now.
async fn with_task(call: &Call<App>, wanted: &[&str]) -> Result<Vec<ServerId>, Fault> {
    let live = Tasks::live_below(&call.app.store, tasks::SUBJECT).await?;
    let fits =
        live.iter().filter(|task| state::task_state(task).is_some_and(|state| wanted.contains(&state)));
    Ok(fits.filter_map(|task| task.subject.strip_prefix(tasks::SUBJECT)?.parse().ok()).collect())
}

const BUILDING: &str = "(lifecycle = 'building' OR (lifecycle = 'deleting' AND launched_at IS NULL))";
const ACTIVE: &str = "(lifecycle IN ('ready', 'deleting') AND launched_at IS NOT NULL AND mode = '' AND observed IN ('running', 'nothing'))";
const PAUSED: &str =
    "(lifecycle IN ('ready', 'deleting') AND launched_at IS NOT NULL AND mode = '' AND observed = 'paused')";
const SUSPENDED: &str = "(lifecycle IN ('ready', 'deleting') AND launched_at IS NOT NULL AND mode = '' AND observed = 'suspended')";
const STOPPED: &str = "(lifecycle IN ('ready', 'deleting') AND launched_at IS NOT NULL AND mode = '' AND observed IN ('off', 'crashed'))";
const RESIZED: &str = "(lifecycle IN ('ready', 'deleting') AND mode = 'resized')";
const RESCUED: &str = "(lifecycle IN ('ready', 'deleting') AND mode = 'rescued')";
const OFFLOADED: &str = "(lifecycle IN ('ready', 'deleting') AND mode = 'shelved_offloaded')";
const ERROR: &str = "lifecycle = 'failed'";
const NONE: &str = "1 = 0";

/// Any of these conditions, or of these servers.
fn any_of(select: &mut Where, conditions: &[&'static str], ids: &[ServerId]) {
    select.and("(1 = 0", []);
    // Each once, however often the client says it.
    for condition in conditions.iter().collect::<BTreeSet<_>>() {
        select.append(" OR ", []).append(condition, []);
    }
    // As one list: SQLite takes no more than 1000 conditions in a row.
    for (index, id) in ids.iter().enumerate() {
        select.append(if index == 0 { " OR id IN (?" } else { ", ?" }, [(*id).into()]);
    }
    select.append(if ids.is_empty() { ")" } else { "))" }, []);
}

async fn by_status(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    let (mut conditions, mut rebooting) = (Vec::new(), Vec::new());
    for status in call.query.all("status") {
        conditions.push(match status.to_uppercase().as_str() {
            "ACTIVE" => ACTIVE,
            "SHUTOFF" => STOPPED,
            "PAUSED" => PAUSED,
            "SUSPENDED" => SUSPENDED,
            "ERROR" => ERROR,
            "BUILD" => BUILDING,
            "VERIFY_RESIZE" => RESIZED,
            "RESCUE" => RESCUED,
            "SHELVED_OFFLOADED" => OFFLOADED,
            "REBUILD" => {
                rebooting.extend(["rebuilding", "rebuild_block_device_mapping", "rebuild_spawning"]);
                NONE
            }
            "RESIZE" => {
                rebooting.extend(["resize_migrating", "resize_migrated", "resize_finish"]);
                NONE
            }
            "REVERT_RESIZE" => {
                rebooting.push("resize_reverting");
                NONE
            }
            "REBOOT" => {
                rebooting.push("rebooting");
                NONE
            }
            "HARD_REBOOT" => {
                rebooting.push("rebooting_hard");
                NONE
            }
            // Upstream's other states do not happen here.
            "DELETED" | "SOFT_DELETED" | "MIGRATING" | "SHELVED" | "PASSWORD" | "UNKNOWN" => NONE,
            _ if call.version >= micro::STATUS_CHECKED => {
                return Err(Fault::bad_request("Invalid status value"));
            }
            _ => NONE,
        });
    }
    if !conditions.is_empty() {
        let ids = if rebooting.is_empty() { Vec::new() } else { with_task(call, &rebooting).await? };
        any_of(select, &conditions, &ids);
    }
    Ok(())
}

async fn by_states(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    let vm: Vec<&'static str> = call
        .query
        .all("vm_state")
        .map(|text| match text {
            "building" => BUILDING,
            "active" => ACTIVE,
            "paused" => PAUSED,
            "suspended" => SUSPENDED,
            "stopped" => STOPPED,
            "resized" => RESIZED,
            "rescued" => RESCUED,
            "shelved_offloaded" => OFFLOADED,
            "error" => ERROR,
            _ => NONE,
        })
        .collect();
    if !vm.is_empty() {
        any_of(select, &vm, &[]);
    }
    let mut power = Vec::new();
    for text in call.query.all("power_state") {
        let number: i64 = text.parse().map_err(|_| {
            let text: String = text.chars().take(64).collect();
            Fault::bad_request(format!("Invalid filter power_state: '{text}' is not a number"))
        })?;
        power.push(match number {
            0 => "observed = 'nothing'",
            1 => "observed = 'running'",
            3 => "observed = 'paused'",
            4 => "observed IN ('off', 'suspended')",
            6 => "observed = 'crashed'",
            _ => NONE,
        });
    }
    if !power.is_empty() {
        any_of(select, &power, &[]);
    }
    let wanted: Vec<&str> = call.query.all("task_state").collect();
    if !wanted.is_empty() {
        any_of(select, &[], &with_task(call, &wanted).await?);
    }
    Ok(())
}

/// Most tags that a filter names; a server has at most 50.
const TAGS: usize = 100;

fn by_tags(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    // Each tag stands between commas in the column, and taking it out makes a difference where it is: the same on both
    // engines, and by case, which LIKE is not.
    const HAS: &str = "REPLACE(tags, ?, '') <> tags";
    for (name, begin, between, end) in [
        ("tags", "(", " AND ", ")"),
        ("tags-any", "(", " OR ", ")"),
        ("not-tags", "NOT (", " AND ", ")"),
        ("not-tags-any", "NOT (", " OR ", ")"),
    ] {
        let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else { continue };
        let tags: BTreeSet<&str> = text.split(',').collect();
        if tags.len() > TAGS {
            return Err(Fault::bad_request(format!(
                "Invalid filter {name}: it names {} tags, and at most {TAGS} are taken.",
                tags.len()
            )));
        }
        select.and(begin, []);
        for (index, tag) in tags.iter().enumerate() {
            if index > 0 {
                select.append(between, []);
            }
            select.append(HAS, [format!(",{tag},").into()]);
        }
        select.append(end, []);
    }
    Ok(())
}

fn by_time(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    let Some(text) = call.query.get("changes-before").filter(|_| call.version >= micro::CHANGES_BEFORE)
    else {
        return Ok(());
    };
    let before = api_kit::time::parse_time(text).ok_or_else(|| {
        Fault::bad_request(
            "Invalid value for 'changes-before': a time like 2026-01-31T12:00:00Z is expected.",
        )
    })?;
    let since = call.query.get("changes-since").and_then(api_kit::time::parse_time);
    if since.is_some_and(|since| since > before) {
        return Err(Fault::bad_request(
            "The value of changes-since must be less than or equal to changes-before.",
        ));
    }
    select.and("updated_at <= ?", [before.into()]);
    Ok(())
}

/// The page of servers that was asked for: what cuts it, and the statement that reads it out of `select`.
///
/// # Errors
/// 400 for values that no filter takes, 403 for servers of others.
pub async fn page(call: &Call<App>, all_rule: &str, mut select: Where) -> Result<(Page, Where), Fault> {
    let store = &call.app.store;
    let all = match call.query.get("all_tenants") {
        Some("") => true,
        Some(_) => call.query.truth("all_tenants")?.unwrap_or(false),
        None => false,
    };
    let all = all || (call.query.has("project_id") && call.caller.is_admin);
    let all = all || (call.query.has("tenant_id") && call.caller.is_admin);
    let project = if all {
        call.enforce_rule(all_rule, &api_kit::Target::new())?;
        call.query.get("project_id").or_else(|| call.query.get("tenant_id")).map(str::to_owned)
    } else {
        Some(call.project_id()?.to_owned())
    };
    call.enforced_by_query();
    let page = call.list(&LIST, store).await?;
    if let Some(project) = &project {
        select.and("project_id = ?", [project.into()]);
    }
    if let Some(ids) = matching(call, project.as_deref()).await? {
        select.and_in("id", ids);
    }
    by_status(call, &mut select).await?;
    by_states(call, &mut select).await?;
    by_tags(call, &mut select)?;
    by_time(call, &mut select)?;
    match call.query.get("availability_zone") {
        None => (),
        // As it is shown: the zone of the host, none before there is one.
        Some(ZONE) => {
            select.and("host IS NOT NULL", []);
        }
        Some("") => {
            select.and("host IS NULL", []);
        }
        Some(_) => {
            select.and(NONE, []);
        }
    }
    // Members do not learn of hosts, not by trying names either: for them the parameter is not there, as upstream.
    if let Some(host) = call.query.get("host").filter(|_| call.caller.is_admin) {
        select.and("host = ?", [host.into()]);
    }
    if call.query.truth("deleted")?.unwrap_or(false) {
        select.and(NONE, []);
    }
    page.apply(&mut select);
    Ok((page, select))
}
