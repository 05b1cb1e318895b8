//! Flavors, their extra specs and who may use them.

use crate::app::App;
use crate::compute::policy::{ADMIN, ANYBODY};
use crate::compute::records::flavors::{self, Flavor};
use crate::compute::{hardware, micro, schema, view};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use base::store::StoreError;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const LISTED: &[&str] = &["limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir"];

pub fn operations() -> Vec<Operation<App>> {
    let specs = "/v2.1/flavors/{flavor_id}/os-extra_specs";
    let spec = "/v2.1/flavors/{flavor_id}/os-extra_specs/{key}";
    vec![
        Operation::new(Method::GET, "/v2.1/flavors", list)
            .name("flavors:list")
            .policy("os_compute_api:flavors:index", ANYBODY)
            .query(LISTED)
            .codes(200, &[400, 401])
            .summary("List flavors"),
        Operation::new(Method::GET, "/v2.1/flavors/detail", detail)
            .name("flavors:detail")
            .policy("os_compute_api:flavors:detail", ANYBODY)
            .query(LISTED)
            .codes(200, &[400, 401])
            .summary("List flavors with details"),
        Operation::new(Method::GET, "/v2.1/flavors/{flavor_id}", show)
            .name("flavors:show")
            .policy("os_compute_api:flavors:show", ANYBODY)
            .codes(200, &[401, 404])
            .summary("Show a flavor"),
        Operation::new(Method::POST, "/v2.1/flavors", create)
            .name("flavors:create")
            .policy("os_compute_api:os-flavor-manage:create", ADMIN)
            .body(schema::FLAVOR)
            .body_from(micro::FLAVOR_DESCRIPTION, schema::FLAVOR_2_55)
            .codes(200, &[400, 401, 403, 409])
            .summary("Create a flavor"),
        Operation::new(Method::PUT, "/v2.1/flavors/{flavor_id}", update)
            .name("flavors:update")
            .policy("os_compute_api:os-flavor-manage:update", ADMIN)
            .since(micro::FLAVOR_DESCRIPTION)
            .body(schema::FLAVOR_UPDATE)
            .codes(200, &[400, 401, 403, 404])
            .summary("Change a flavor's description"),
        Operation::new(Method::DELETE, "/v2.1/flavors/{flavor_id}", delete)
            .name("flavors:delete")
            .policy("os_compute_api:os-flavor-manage:delete", ADMIN)
            .codes(202, &[401, 403, 404])
            .summary("Delete a flavor"),
        Operation::new(Method::GET, specs, specs_list)
            .name("flavors:specs")
            .policy("os_compute_api:os-flavor-extra-specs:index", ANYBODY)
            .codes(200, &[401, 404])
            .summary("List a flavor's extra specs"),
        Operation::new(Method::POST, specs, specs_add)
            .name("flavors:add-specs")
            .policy("os_compute_api:os-flavor-extra-specs:create", ADMIN)
            .body(schema::EXTRA_SPECS)
            .codes(200, &[400, 401, 403, 404])
            .summary("Add extra specs to a flavor"),
        Operation::new(Method::GET, spec, spec_show)
            .name("flavors:spec")
            .policy("os_compute_api:os-flavor-extra-specs:show", ANYBODY)
            .codes(200, &[401, 404])
            .summary("Show one extra spec"),
        Operation::new(Method::PUT, spec, spec_put)
            .name("flavors:set-spec")
            .policy("os_compute_api:os-flavor-extra-specs:update", ADMIN)
            .body(schema::EXTRA_SPEC)
            .codes(200, &[400, 401, 403, 404])
            .summary("Set one extra spec"),
        Operation::new(Method::DELETE, spec, spec_delete)
            .name("flavors:delete-spec")
            .policy("os_compute_api:os-flavor-extra-specs:delete", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("Remove one extra spec"),
        Operation::new(Method::GET, "/v2.1/flavors/{flavor_id}/os-flavor-access", access)
            .name("flavors:access")
            .policy("os_compute_api:os-flavor-access", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("List the projects that may use a private flavor"),
        Operation::new(Method::POST, "/v2.1/flavors/{flavor_id}/action", add_access)
            .name("flavors:add-access")
            .policy("os_compute_api:os-flavor-access:add_tenant_access", ADMIN)
            .action("addTenantAccess")
            .body(schema::ADD_ACCESS)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Let a project use a private flavor"),
        Operation::new(Method::POST, "/v2.1/flavors/{flavor_id}/action", remove_access)
            .name("flavors:remove-access")
            .policy("os_compute_api:os-flavor-access:remove_tenant_access", ADMIN)
            .action("removeTenantAccess")
            .body(schema::REMOVE_ACCESS)
            .codes(200, &[400, 401, 403, 404])
            .summary("Let a project no longer use a private flavor"),
    ]
}

fn sees(call: &Call<App>, it: &Flavor) -> bool {
    let project = call.caller.project_id.as_deref().unwrap_or_default();
    it.is_public || call.caller.is_admin || it.access.contains(project)
}

fn missing(id: &str) -> Fault {
    Fault::not_found(format!("Flavor {} could not be found.", id.chars().take(255).collect::<String>()))
}

async fn find(call: &Call<App>) -> Result<Flavor, Fault> {
    let id = call.path("flavor_id");
    let found = flavors::get(&call.app.store, id).await?;
    found.filter(|it| sees(call, it)).ok_or_else(|| missing(id))
}

async fn page(call: &Call<App>) -> Result<(Vec<Flavor>, Option<String>), Fault> {
    let mut all = flavors::all(&call.app.store).await?;
    let public = match call.query.get("is_public") {
        Some(text) if text.eq_ignore_ascii_case("none") => None,
        Some(_) => call.query.truth("is_public")?,
        None => Some(true),
    };
    let project = call.caller.project_id.as_deref().unwrap_or_default();
    all.retain(|it| match (call.caller.is_admin, public) {
        (true, None) => true,
        (true, Some(wanted)) => it.is_public == wanted,
        // Others see what they may use, whatever they ask.
        (false, _) => it.is_public || it.access.contains(project),
    });
    let number = |name: &str| -> Result<Option<u32>, Fault> {
        let parse = |text: &str| {
            text.parse::<u32>().map_err(|_| {
                let text: String = text.chars().take(64).collect();
                Fault::bad_request(format!("Invalid {name} filter [{text}]"))
            })
        };
        call.query.get(name).filter(|text| !text.is_empty()).map(parse).transpose()
    };
    if let Some(least) = number("minRam")? {
        all.retain(|it| it.memory_mb >= least);
    }
    if let Some(least) = number("minDisk")? {
        all.retain(|it| it.disk_gb >= least);
    }
    match call.query.get("sort_key") {
        None | Some("flavorid" | "id") => (),
        Some("name") => all.sort_by(|a, b| a.name.cmp(&b.name)),
        Some("memory_mb" | "ram") => all.sort_by_key(|it| it.memory_mb),
        Some("vcpus") => all.sort_by_key(|it| it.vcpus),
        Some("root_gb" | "disk") => all.sort_by_key(|it| it.disk_gb),
        Some("ephemeral_gb") => all.sort_by_key(|it| it.ephemeral_gb),
        Some("swap") => all.sort_by_key(|it| it.swap_mb),
        Some("rxtx_factor") => all.sort_by(|a, b| a.rxtx_factor.total_cmp(&b.rxtx_factor)),
        Some("created_at" | "updated_at") => all.sort_by(|a, b| a.created_at.cmp(&b.created_at)),
        Some(_) => return Err(Fault::bad_request("Invalid sort key for flavors.")),
    }
    if call.query.get("sort_dir") == Some("desc") {
        all.reverse();
    }
    if let Some(marker) = call.query.get("marker") {
        let at = all.iter().position(|it| it.id == marker).ok_or_else(|| {
            let marker: String = marker.chars().take(255).collect();
            Fault::bad_request(format!("marker [{marker}] not found"))
        })?;
        all.drain(..=at);
    }
    let limit = match call.query.get("limit") {
        None => 1000,
        Some(text) => text.parse::<usize>().map_err(|_| {
            let text: String = text.chars().take(64).collect();
            Fault::bad_request(format!("Invalid input for query parameters limit. Value: {text}."))
        })?,
    }
    .min(1000);
    let more = all.len() > limit;
    all.truncate(limit);
    let next = if more { all.last().map(|it| it.id.clone()) } else { None };
    Ok((all, next))
}

fn listed(call: &Call<App>, all: Vec<Value>, next: Option<String>) -> Reply {
    let mut body = json!({"flavors": all});
    if let Some(marker) = next {
        body["flavors_links"] = json!([{"rel": "next", "href": super::next_link(call, &marker)}]);
    }
    Reply::json(200, body)
}

async fn list(call: Call<App>) -> Outcome {
    let (all, next) = page(&call).await?;
    let all = all.iter().map(|it| view::flavor_brief(it, call.version, &call.base)).collect();
    Ok(listed(&call, all, next))
}

async fn detail(call: Call<App>) -> Outcome {
    let (all, next) = page(&call).await?;
    let all = all.iter().map(|it| view::flavor(it, call.version, &call.base)).collect();
    Ok(listed(&call, all, next))
}

async fn show(call: Call<App>) -> Outcome {
    let it = find(&call).await?;
    Ok(Reply::json(200, json!({"flavor": view::flavor(&it, call.version, &call.base)})))
}

/// A number that clients may send as text.
fn number(value: &Value) -> u32 {
    match value {
        Value::Number(number) => number.as_u64().and_then(|it| u32::try_from(it).ok()).unwrap_or(0),
        Value::String(text) => text.parse().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => 0,
    }
}

async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("flavor");
    let id = match &body["id"] {
        Value::String(id) if id != "auto" => id.clone(),
        Value::Number(id) => id.to_string(),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            uuid::Uuid::new_v4().to_string()
        }
    };
    let rxtx = match &body["rxtx_factor"] {
        Value::Number(number) => number.as_f64().unwrap_or(1.0),
        Value::String(text) => text.parse().unwrap_or(1.0),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => 1.0,
    };
    let is_public = match &body["os-flavor-access:is_public"] {
        Value::Bool(public) => *public,
        Value::String(text) => matches!(text.to_lowercase().as_str(), "1" | "true" | "on" | "yes"),
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => true,
    };
    let it = Flavor {
        id,
        name: body["name"].as_str().unwrap_or_default().trim().to_owned(),
        vcpus: number(&body["vcpus"]),
        memory_mb: number(&body["ram"]),
        disk_gb: number(&body["disk"]),
        ephemeral_gb: number(&body["OS-FLV-EXT-DATA:ephemeral"]),
        swap_mb: number(&body["swap"]),
        rxtx_factor: rxtx,
        is_public,
        description: body["description"].as_str().map(str::to_owned),
        extra_specs: BTreeMap::new(),
        access: BTreeSet::new(),
        created_at: api_kit::time::now(),
    };
    if it.vcpus == 0 || it.vcpus > 64 || it.memory_mb == 0 {
        return Err(Fault::bad_request("Invalid input: vcpus must be 1 to 64 and ram at least 1."));
    }
    let row = &it;
    match call.app.store.tx(|tx| async move { flavors::insert(&tx, row).await }).await {
        Err(StoreError::Duplicate(_)) => {
            let same = flavors::get(&call.app.store, &it.id).await?.is_some();
            Err(Fault::conflict(if same {
                format!("Flavor with ID {} already exists.", it.id)
            } else {
                format!("Flavor with name {} already exists.", it.name)
            }))
        }
        other => {
            other?;
            Ok(Reply::json(200, json!({"flavor": view::flavor(&it, call.version, &call.base)})))
        }
    }
}

/// Changes the flavor of the path in one transaction.
async fn change<T: Send>(
    call: &Call<App>,
    how: impl Fn(&mut Flavor) -> Result<T, Fault> + Send + Sync,
) -> Result<(Flavor, T), Fault> {
    let (id, how) = (call.path("flavor_id"), &how);
    call.app
        .store
        .tx(|tx| async move {
            let mut it = flavors::get(&tx, id).await?.ok_or_else(|| missing(id))?;
            let out = how(&mut it)?;
            flavors::update(&tx, &it).await?;
            Ok((it, out))
        })
        .await
}

async fn update(call: Call<App>) -> Outcome {
    let text = call.inner("flavor")["description"].as_str();
    let (it, ()) = change(&call, |it| {
        it.description = text.map(str::to_owned);
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, json!({"flavor": view::flavor(&it, call.version, &call.base)})))
}

async fn delete(call: Call<App>) -> Outcome {
    let id = call.path("flavor_id");
    if call.app.store.tx(|tx| async move { flavors::delete(&tx, id).await }).await? {
        Ok(Reply::empty(202))
    } else {
        Err(missing(id))
    }
}

async fn specs_list(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"extra_specs": find(&call).await?.extra_specs})))
}

fn specs(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect()
}

fn check(call: &Call<App>, new: &BTreeMap<String, String>) -> Result<(), Fault> {
    if call.version < micro::SPECS_CHECKED {
        return Ok(());
    }
    new.iter().try_for_each(|(name, value)| hardware::validate(name, value))
}

async fn specs_add(call: Call<App>) -> Outcome {
    let new = specs(call.inner("extra_specs"));
    check(&call, &new)?;
    change(&call, |it| {
        it.extra_specs.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, json!({"extra_specs": new})))
}

fn no_spec(call: &Call<App>) -> Fault {
    let cut = |text: &str| text.chars().take(255).collect::<String>();
    Fault::not_found(format!(
        "Flavor {} has no extra specs with key {}.",
        cut(call.path("flavor_id")),
        cut(call.path("key"))
    ))
}

async fn spec_show(call: Call<App>) -> Outcome {
    let it = find(&call).await?;
    let value = it.extra_specs.get(call.path("key")).ok_or_else(|| no_spec(&call))?;
    Ok(Reply::json(200, json!({call.path("key"): value})))
}

async fn spec_put(call: Call<App>) -> Outcome {
    let new = specs(&call.body);
    if !new.contains_key(call.path("key")) {
        return Err(Fault::bad_request("Request body and URI mismatch"));
    }
    check(&call, &new)?;
    change(&call, |it| {
        it.extra_specs.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, call.body.clone()))
}

async fn spec_delete(call: Call<App>) -> Outcome {
    change(&call, |it| it.extra_specs.remove(call.path("key")).ok_or_else(|| no_spec(&call))).await?;
    Ok(Reply::empty(200))
}

fn access_body(it: &Flavor) -> Reply {
    let all: Vec<Value> =
        it.access.iter().map(|project| json!({"flavor_id": it.id, "tenant_id": project})).collect();
    Reply::json(200, json!({"flavor_access": all}))
}

async fn access(call: Call<App>) -> Outcome {
    let it = find(&call).await?;
    if it.is_public {
        return Err(Fault::not_found("Access list not available for public flavors."));
    }
    Ok(access_body(&it))
}

async fn add_access(call: Call<App>) -> Outcome {
    let project = call.inner("addTenantAccess")["tenant"].as_str().unwrap_or_default();
    let (it, ()) = change(&call, |it| {
        if it.is_public {
            return Err(Fault::conflict("Can not add access to a public flavor."));
        }
        if !it.access.insert(project.to_owned()) {
            return Err(Fault::conflict(format!(
                "Flavor access already exists for flavor {} and project {project} combination.",
                it.id
            )));
        }
        Ok(())
    })
    .await?;
    Ok(access_body(&it))
}

async fn remove_access(call: Call<App>) -> Outcome {
    let project = call.inner("removeTenantAccess")["tenant"].as_str().unwrap_or_default();
    let (it, ()) = change(&call, |it| {
        if !it.access.remove(project) {
            return Err(Fault::not_found(format!(
                "Flavor access not found for {} / {project} combination.",
                it.id
            )));
        }
        Ok(())
    })
    .await?;
    Ok(access_body(&it))
}
