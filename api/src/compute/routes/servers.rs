//! Servers: create, list, show, update, delete, and their addresses, metadata and tags.

use super::listing;
use crate::app::App;
use crate::compute::neighbours::network;
use crate::compute::policy::{MEMBER, READER};
use crate::compute::records::servers::{self, Server};
use crate::compute::rules::{self, create, no_server, power};
use crate::compute::view::server as view;
use crate::compute::{micro, schema};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use base::store::Where;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn operations() -> Vec<Operation<App>> {
    let one = "/v2.1/servers/{server_id}";
    let mut all = vec![
        Operation::new(Method::GET, "/v2.1/servers", list)
            .name("servers:list")
            .policy("os_compute_api:servers:index", READER)
            .list(&listing::LIST)
            .query(listing::HANDLED)
            .codes(200, &[400, 401, 403])
            .summary("List servers"),
        Operation::new(Method::GET, "/v2.1/servers/detail", detail)
            .name("servers:detail")
            .policy("os_compute_api:servers:detail", READER)
            .list(&listing::LIST)
            .query(listing::HANDLED)
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

fn listed(call: &Call<App>, all: Vec<Value>, next: Option<String>) -> Reply {
    let mut body = json!({"servers": all});
    if let Some(marker) = next {
        body["servers_links"] = json!([{"rel": "next", "href": super::next_link(call, &marker)}]);
    }
    Reply::json(200, body)
}

async fn list(call: Call<App>) -> Outcome {
    let select = Where::new("SELECT id, name FROM compute_servers");
    let (page, select) = listing::page(&call, "os_compute_api:servers:index:get_all_tenants", select).await?;
    let rows = servers::names(&call.app.store, select).await?;
    let (rows, next) = page.finish(rows, |(id, _)| id.to_string());
    let all = rows.iter().map(|(id, name)| view::brief(*id, name, &call.base)).collect();
    Ok(listed(&call, all, next))
}

async fn detail(call: Call<App>) -> Outcome {
    let (page, select) =
        listing::page(&call, "os_compute_api:servers:detail:get_all_tenants", servers::select()).await?;
    let rows = servers::find(&call.app.store, select).await?;
    let (rows, next) = page.finish(rows, |row| row.id.to_string());
    let shown = view::gather(&call.app, rows).await?;
    let all = shown.iter().map(|it| view::detail(it, &call)).collect();
    Ok(listed(&call, all, next))
}

async fn whole(call: &Call<App>, server: Server) -> Result<Value, Fault> {
    let (id, group) = (server.id.to_string(), Vec::from_iter(server.group_id.clone()));
    let shown = view::gather(&call.app, vec![server]).await?;
    let mut body = shown.first().map(|it| view::detail(it, call)).ok_or_else(|| no_server(&id))?;
    if call.version >= micro::SERVER_GROUPS {
        body["server_groups"] = json!(group);
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
        // Null, like an empty text, takes the address away.
        if body.get("accessIPv4").is_some() {
            server.body.access_ipv4 = create::address(body, "accessIPv4")?;
        }
        if body.get("accessIPv6").is_some() {
            server.body.access_ipv6 = create::address(body, "accessIPv6")?;
        }
        Ok(())
    })
    .await?;
    let mut shown = whole(&call, server).await?;
    if call.version < micro::STRICT {
        plain(&mut shown["server"]);
    }
    Ok(Reply::json(200, shown))
}

/// Before 2.75 an update, and a rebuild, answer without the extensions' fields.
pub(super) fn plain(server: &mut Value) {
    let Some(map) = server.as_object_mut() else { return };
    map.retain(|name, _| {
        !(name.starts_with("OS-EXT")
            || name.starts_with("OS-SRV")
            || matches!(
                name.as_str(),
                "config_drive" | "key_name" | "security_groups" | "os-extended-volumes:volumes_attached"
            ))
    });
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
