//! Servers: create, list, show, update, delete, and their addresses, metadata and tags.

use crate::app::App;
use crate::compute::neighbours::network;
use crate::compute::policy::{MEMBER, READER};
use crate::compute::records::servers::{self, Server};
use crate::compute::rules::{self, create, no_server, power};
use crate::compute::view::server as view;
use crate::compute::{micro, schema};
use api_kit::list::{Filter, Match, SortKey};
use api_kit::{Call, Dir, Fault, ListSpec, Operation, Outcome, Reply};
use axum::http::Method;
use base::store::{Query, Sql, Value as Cell};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The list of servers.
static LIST: ListSpec = ListSpec {
    table: "compute_servers",
    key: "id",
    filters: &[
        Filter::new("uuid", "id", Match::Text),
        Filter::new("flavor", "flavor_id", Match::Text),
        Filter::new("image", "image_id", Match::Text),
        Filter::new("host", "host", Match::Text),
        Filter::new("key_name", "key_name", Match::Text),
        Filter::new("user_id", "user_id", Match::Text),
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

/// Further parameters that the handlers deal with.
const HANDLED: &[&str] = &[
    "name",
    "status",
    "all_tenants",
    "project_id",
    "tenant_id",
    "ip",
    "ip6",
    "tags",
    "tags-any",
    "not-tags",
    "not-tags-any",
    "reservation_id",
    "deleted",
    "availability_zone",
    "vm_state",
    "power_state",
    "task_state",
    "changes-before",
    "config_drive",
    "description",
    "hostname",
];

pub fn operations() -> Vec<Operation<App>> {
    let one = "/v2.1/servers/{server_id}";
    let mut all = vec![
        Operation::new(Method::GET, "/v2.1/servers", list)
            .name("servers:list")
            .policy("os_compute_api:servers:index", READER)
            .list(&LIST)
            .query(HANDLED)
            .codes(200, &[400, 401, 403])
            .summary("List servers"),
        Operation::new(Method::GET, "/v2.1/servers/detail", detail)
            .name("servers:detail")
            .policy("os_compute_api:servers:detail", READER)
            .list(&LIST)
            .query(HANDLED)
            .codes(200, &[400, 401, 403])
            .summary("List servers with details"),
        Operation::new(Method::POST, "/v2.1/servers", create_server)
            .name("servers:create")
            .policy("os_compute_api:servers:create", MEMBER)
            .body(schema::CREATE)
            .body_from(micro::DESCRIPTION, schema::CREATE_2_19)
            .body_from(micro::NETWORKS_REQUIRED, schema::CREATE_2_37)
            .body_from(micro::TAGS_AT_CREATE, schema::CREATE_2_52)
            .body_from(micro::NO_PERSONALITY, schema::CREATE_2_57)
            .body_from(micro::CERTIFICATES, schema::CREATE_2_63)
            .body_from(micro::CREATE_HOST, schema::CREATE_2_74)
            .body_from(micro::HOSTNAME, schema::CREATE_2_90)
            .body_from(micro::HOSTNAME_FQDN, schema::CREATE_2_94)
            .codes(202, &[400, 401, 403, 409])
            .summary("Create a server"),
        Operation::new(Method::GET, one, show)
            .name("servers:show")
            .policy("os_compute_api:servers:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show a server"),
        Operation::new(Method::PUT, one, update)
            .name("servers:update")
            .policy("os_compute_api:servers:update", MEMBER)
            .body(schema::UPDATE)
            .body_from(micro::DESCRIPTION, schema::UPDATE_2_19)
            .body_from(micro::HOSTNAME, schema::UPDATE_2_90)
            .codes(200, &[400, 401, 403, 404])
            .summary("Change a server's name or description"),
        Operation::new(Method::DELETE, one, delete)
            .name("servers:delete")
            .policy("os_compute_api:servers:delete", MEMBER)
            .codes(204, &[401, 403, 404, 409])
            .summary("Delete a server"),
        Operation::new(Method::GET, "/v2.1/servers/{server_id}/ips", ips)
            .name("servers:ips")
            .policy("os_compute_api:ips:index", READER)
            .codes(200, &[401, 403, 404])
            .summary("List a server's addresses"),
        Operation::new(Method::GET, "/v2.1/servers/{server_id}/ips/{label}", ips_of)
            .name("servers:ips-of")
            .policy("os_compute_api:ips:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("List a server's addresses on one network"),
    ];
    all.extend(metadata_operations());
    all.extend(tag_operations());
    all
}

fn metadata_operations() -> Vec<Operation<App>> {
    let (all, one) = ("/v2.1/servers/{server_id}/metadata", "/v2.1/servers/{server_id}/metadata/{key}");
    vec![
        Operation::new(Method::GET, all, metadata)
            .name("servers:metadata")
            .policy("os_compute_api:server-metadata:index", READER)
            .codes(200, &[401, 403, 404])
            .summary("List a server's metadata"),
        Operation::new(Method::POST, all, metadata_add)
            .name("servers:add-metadata")
            .policy("os_compute_api:server-metadata:create", MEMBER)
            .body(schema::METADATA)
            .codes(200, &[400, 401, 403, 404])
            .summary("Add to a server's metadata"),
        Operation::new(Method::PUT, all, metadata_replace)
            .name("servers:replace-metadata")
            .policy("os_compute_api:server-metadata:update_all", MEMBER)
            .body(schema::METADATA)
            .codes(200, &[400, 401, 403, 404])
            .summary("Replace a server's metadata"),
        Operation::new(Method::GET, one, meta)
            .name("servers:meta")
            .policy("os_compute_api:server-metadata:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show one item of a server's metadata"),
        Operation::new(Method::PUT, one, meta_put)
            .name("servers:set-meta")
            .policy("os_compute_api:server-metadata:update", MEMBER)
            .body(schema::META)
            .codes(200, &[400, 401, 403, 404])
            .summary("Set one item of a server's metadata"),
        Operation::new(Method::DELETE, one, meta_delete)
            .name("servers:delete-meta")
            .policy("os_compute_api:server-metadata:delete", MEMBER)
            .codes(204, &[401, 403, 404])
            .summary("Remove one item of a server's metadata"),
    ]
}

fn tag_operations() -> Vec<Operation<App>> {
    let (all, one) = ("/v2.1/servers/{server_id}/tags", "/v2.1/servers/{server_id}/tags/{tag}");
    vec![
        Operation::new(Method::GET, all, tags)
            .name("servers:tags")
            .policy("os_compute_api:os-server-tags:index", READER)
            .since(micro::TAGS)
            .codes(200, &[401, 403, 404])
            .summary("List a server's tags"),
        Operation::new(Method::PUT, all, tags_replace)
            .name("servers:replace-tags")
            .policy("os_compute_api:os-server-tags:update_all", MEMBER)
            .since(micro::TAGS)
            .body(schema::TAGS)
            .codes(200, &[400, 401, 403, 404])
            .summary("Replace a server's tags"),
        Operation::new(Method::DELETE, all, tags_clear)
            .name("servers:clear-tags")
            .policy("os_compute_api:os-server-tags:delete_all", MEMBER)
            .since(micro::TAGS)
            .codes(204, &[401, 403, 404])
            .summary("Remove a server's tags"),
        Operation::new(Method::GET, one, tag_show)
            .name("servers:tag")
            .policy("os_compute_api:os-server-tags:show", READER)
            .since(micro::TAGS)
            .codes(204, &[401, 403, 404])
            .summary("Whether a server has a tag"),
        Operation::new(Method::PUT, one, tag_add)
            .name("servers:add-tag")
            .policy("os_compute_api:os-server-tags:update", MEMBER)
            .since(micro::TAGS)
            .no_schema("the tag is in the path")
            .codes(201, &[400, 401, 403, 404])
            .summary("Add a tag to a server"),
        Operation::new(Method::DELETE, one, tag_delete)
            .name("servers:delete-tag")
            .policy("os_compute_api:os-server-tags:delete", MEMBER)
            .since(micro::TAGS)
            .codes(204, &[401, 403, 404])
            .summary("Remove a tag from a server"),
    ]
}

/// Ids of those servers that match filters which no column answers: names by pattern, addresses.
async fn matching(call: &Call<App>, project: Option<&str>) -> Result<Option<Vec<Cell>>, Fault> {
    let pattern = |name: &str| -> Result<Option<regex::Regex>, Fault> {
        let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let built = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
        built.map(Some).map_err(|_| {
            let text: String = text.chars().take(64).collect();
            Fault::bad_request(format!("Invalid filter {name}: '{text}' is not a regular expression"))
        })
    };
    let (name, ip, ip6) = (pattern("name")?, pattern("ip")?, pattern("ip6")?);
    if name.is_none() && ip.is_none() && ip6.is_none() {
        return Ok(None);
    }
    let sql = "SELECT id, name FROM compute_servers WHERE project_id = $1 OR $2 = 1";
    let args = base::args![project.unwrap_or_default(), project.is_none()];
    let mut ids = Vec::new();
    for row in call.app.store.rows(Sql::from(sql), args).await? {
        let text = row.text("name")?;
        if name.as_ref().is_none_or(|name| name.is_match(&text)) {
            ids.push(row.parse::<wire::ids::ServerId>("id")?);
        }
    }
    if ip.is_some() || ip6.is_some() {
        let ports = network::of_servers(&call.app, &ids).await?;
        let has = |id: &wire::ids::ServerId, wanted: &regex::Regex, v6: bool| {
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

/// The page of servers that was asked for, with the next marker.
async fn page(call: &Call<App>, all_rule: &str) -> Result<(Vec<Server>, Option<String>), Fault> {
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
    let mut select = servers::select();
    if let Some(project) = &project {
        select.and("project_id = ?", [project.into()]);
    }
    if let Some(ids) = matching(call, project.as_deref()).await? {
        select.and_in("id", ids);
    }
    for status in call.query.all("status") {
        match status.to_uppercase().as_str() {
            "ACTIVE" => {
                select.and("lifecycle IN ('ready', 'deleting') AND observed IN ('running', 'nothing')", [])
            }
            "SHUTOFF" => {
                select.and("lifecycle IN ('ready', 'deleting') AND observed IN ('off', 'crashed')", [])
            }
            "PAUSED" => select.and("lifecycle IN ('ready', 'deleting') AND observed = 'paused'", []),
            "ERROR" => select.and("lifecycle = 'failed'", []),
            "BUILD" => select.and("lifecycle = 'building'", []),
            // Upstream's other states do not happen here.
            "DELETED" | "SOFT_DELETED" | "SUSPENDED" | "RESIZE" | "VERIFY_RESIZE" | "REVERT_RESIZE"
            | "MIGRATING" | "REBUILD" | "RESCUE" | "SHELVED" | "SHELVED_OFFLOADED" | "PASSWORD"
            | "REBOOT" | "HARD_REBOOT" | "UNKNOWN" => select.and("1 = 0", []),
            _ if call.version >= micro::STATUS_CHECKED => {
                return Err(Fault::bad_request("Invalid status value"));
            }
            _ => select.and("1 = 0", []),
        };
    }
    if call.query.truth("deleted")?.unwrap_or(false) {
        select.and("1 = 0", []);
    }
    page.apply(&mut select);
    let found = servers::find(store, select).await?;
    let (mut rows, next) = page.finish(found, |row| row.id.to_string());
    rows.retain(|row| tags_match(call, row));
    Ok((rows, next))
}

fn tags_match(call: &Call<App>, row: &Server) -> bool {
    let given = |name: &str| -> Option<Vec<String>> {
        call.query.get(name).map(|text| text.split(',').map(str::to_owned).collect())
    };
    let has = |tag: &String| row.body.tags.contains(tag);
    given("tags").is_none_or(|tags| tags.iter().all(has))
        && given("tags-any").is_none_or(|tags| tags.iter().any(has))
        && given("not-tags").is_none_or(|tags| !tags.iter().all(has))
        && given("not-tags-any").is_none_or(|tags| !tags.iter().any(has))
}

fn listed(call: &Call<App>, all: Vec<Value>, next: Option<String>) -> Reply {
    let mut body = json!({"servers": all});
    if let Some(marker) = next {
        body["servers_links"] = json!([{"rel": "next", "href": super::next_link(call, &marker)}]);
    }
    Reply::json(200, body)
}

async fn list(call: Call<App>) -> Outcome {
    let (rows, next) = page(&call, "os_compute_api:servers:index:get_all_tenants").await?;
    let all = rows.iter().map(|it| view::brief(it, &call.base)).collect();
    Ok(listed(&call, all, next))
}

async fn detail(call: Call<App>) -> Outcome {
    let (rows, next) = page(&call, "os_compute_api:servers:detail:get_all_tenants").await?;
    let shown = view::gather(&call.app, rows).await?;
    let all = shown.iter().map(|it| view::detail(it, &call)).collect();
    Ok(listed(&call, all, next))
}

async fn whole(call: &Call<App>, server: Server) -> Result<Value, Fault> {
    let id = server.id.to_string();
    let shown = view::gather(&call.app, vec![server]).await?;
    let mut body = shown.first().map(|it| view::detail(it, call)).ok_or_else(|| no_server(&id))?;
    if call.version >= micro::SERVER_GROUPS {
        body["server_groups"] = json!([]);
    }
    Ok(json!({"server": body}))
}

async fn create_server(call: Call<App>) -> Outcome {
    let made = create::create(&call).await?;
    let body = call.inner("server");
    let grouped = match &body["return_reservation_id"] {
        Value::Bool(wanted) => *wanted,
        Value::String(text) => text.eq_ignore_ascii_case("true") || text == "1",
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
    };
    if grouped {
        return Ok(Reply::json(202, json!({"reservation_id": made.reservation_id})));
    }
    let Some(first) = made.servers.first() else { return Err(Fault::internal("no server was made")) };
    let id = first.id.to_string();
    // Shown once for clients' sake: nothing sets a password in the guest, which gets the key instead.
    let password = match body["adminPass"].as_str() {
        Some(given) => given.to_owned(),
        None => create::password()?,
    };
    let groups: Vec<Value> = first.body.security_groups.iter().map(|name| json!({"name": name})).collect();
    let links = crate::compute::view::links(&call.base, "servers", &id);
    let location = format!("{}/v2.1/servers/{id}", call.base);
    let body = json!({"server": {"id": id, "links": links, "OS-DCF:diskConfig": "MANUAL",
        "security_groups": groups, "adminPass": password}});
    Ok(Reply::json(202, body).header("location", location))
}

async fn show(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    Ok(Reply::json(200, whole(&call, server).await?))
}

/// Changes a server's row that the host need not know of.
async fn change<T: Send>(
    call: &Call<App>,
    how: impl Fn(&mut Server) -> Result<T, Fault> + Send + Sync,
) -> Result<(Server, T), Fault> {
    let (id, how) = (rules::find(call).await?.id, &how);
    call.app
        .store
        .tx(|tx| async move {
            let mut server = servers::get(&tx, id).await?.ok_or_else(|| no_server(&id.to_string()))?;
            let out = how(&mut server)?;
            servers::put(&tx, &server).await?;
            Ok((server, out))
        })
        .await
}

async fn update(call: Call<App>) -> Outcome {
    let body = call.inner("server");
    let (server, ()) = change(&call, |server| {
        if let Some(name) = body["name"].as_str() {
            name.trim().clone_into(&mut server.name);
        }
        if let Some(text) = body.get("description") {
            server.body.description = text.as_str().map(str::to_owned);
        }
        if let Some(name) = body["hostname"].as_str() {
            name.clone_into(&mut server.body.hostname);
        }
        Ok(())
    })
    .await?;
    let mut shown = whole(&call, server).await?;
    if call.version < micro::STRICT
        && let Some(map) = shown["server"].as_object_mut()
    {
        // Before 2.75 an update answers without the extensions' fields.
        map.retain(|name, _| {
            !(name.starts_with("OS-EXT")
                || name.starts_with("OS-SRV")
                || matches!(
                    name.as_str(),
                    "config_drive" | "key_name" | "security_groups" | "os-extended-volumes:volumes_attached"
                ))
        });
    }
    Ok(Reply::json(200, shown))
}

async fn delete(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    power::delete(&call.app, &call.caller, server.id).await?;
    Ok(Reply::empty(204))
}

async fn ips(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let ports = network::of_servers(&call.app, &[server.id]).await?.remove(&server.id).unwrap_or_default();
    Ok(Reply::json(200, json!({"addresses": view::addresses(&ports, false)})))
}

async fn ips_of(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let ports = network::of_servers(&call.app, &[server.id]).await?.remove(&server.id).unwrap_or_default();
    let label = call.path("label");
    match view::addresses(&ports, false).remove(label) {
        Some(found) => Ok(Reply::json(200, json!({label: found}))),
        None => Err(Fault::not_found("Instance is not a member of specified network")),
    }
}

async fn metadata(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"metadata": rules::find(&call).await?.body.metadata})))
}

fn pairs(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn bounded(metadata: &BTreeMap<String, String>) -> Result<(), Fault> {
    let (_, most) = rules::quota("metadata_items");
    if i64::try_from(metadata.len()).unwrap_or(i64::MAX) > most {
        return Err(Fault::over_quota("Maximum number of metadata items exceeds the limit."));
    }
    Ok(())
}

async fn metadata_add(call: Call<App>) -> Outcome {
    let new = pairs(call.inner("metadata"));
    let (server, ()) = change(&call, |server| {
        server.body.metadata.extend(new.clone());
        bounded(&server.body.metadata)
    })
    .await?;
    Ok(Reply::json(200, json!({"metadata": server.body.metadata})))
}

async fn metadata_replace(call: Call<App>) -> Outcome {
    let new = pairs(call.inner("metadata"));
    let (server, ()) = change(&call, |server| {
        server.body.metadata.clone_from(&new);
        bounded(&server.body.metadata)
    })
    .await?;
    Ok(Reply::json(200, json!({"metadata": server.body.metadata})))
}

fn no_item() -> Fault {
    Fault::not_found("Metadata item was not found")
}

async fn meta(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let value = server.body.metadata.get(call.path("key")).ok_or_else(no_item)?;
    Ok(Reply::json(200, json!({"meta": {call.path("key"): value}})))
}

async fn meta_put(call: Call<App>) -> Outcome {
    let new = pairs(call.inner("meta"));
    if !new.contains_key(call.path("key")) {
        return Err(Fault::bad_request("Request body and URI mismatch"));
    }
    change(&call, |server| {
        server.body.metadata.extend(new.clone());
        bounded(&server.body.metadata)
    })
    .await?;
    Ok(Reply::json(200, json!({"meta": new})))
}

async fn meta_delete(call: Call<App>) -> Outcome {
    change(&call, |server| server.body.metadata.remove(call.path("key")).ok_or_else(no_item)).await?;
    Ok(Reply::empty(204))
}

async fn tags(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"tags": rules::find(&call).await?.body.tags})))
}

async fn tags_replace(call: Call<App>) -> Outcome {
    let given = call.inner("tags").as_array().into_iter().flatten();
    let new: Vec<String> = given.filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    let (server, ()) = change(&call, |server| {
        server.body.tags = new.iter().cloned().collect();
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, json!({"tags": server.body.tags})))
}

async fn tags_clear(call: Call<App>) -> Outcome {
    change(&call, |server| {
        server.body.tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}

fn no_tag(call: &Call<App>) -> Fault {
    let tag: String = call.path("tag").chars().take(60).collect();
    let id: String = call.path("server_id").chars().take(64).collect();
    Fault::not_found(format!("Server {id} has no tag '{tag}'"))
}

async fn tag_show(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    if server.body.tags.contains(call.path("tag")) { Ok(Reply::empty(204)) } else { Err(no_tag(&call)) }
}

async fn tag_add(call: Call<App>) -> Outcome {
    let tag = call.path("tag");
    if tag.is_empty() || tag.chars().count() > 60 || tag.contains([',', '/']) {
        return Err(Fault::bad_request("A tag has 1 to 60 characters and neither ',' nor '/'."));
    }
    let (_, new) = change(&call, |server| {
        if server.body.tags.len() >= 50 && !server.body.tags.contains(tag) {
            return Err(Fault::bad_request("The number of tags exceeded the per-server limit 50"));
        }
        Ok(server.body.tags.insert(tag.to_owned()))
    })
    .await?;
    let url = format!("{}/v2.1/servers/{}/tags/{tag}", call.base, call.path("server_id"));
    Ok(Reply::empty(if new { 201 } else { 204 }).header("location", url))
}

async fn tag_delete(call: Call<App>) -> Outcome {
    change(
        &call,
        |server| {
            if server.body.tags.remove(call.path("tag")) { Ok(()) } else { Err(no_tag(&call)) }
        },
    )
    .await?;
    Ok(Reply::empty(204))
}
