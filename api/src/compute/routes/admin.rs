//! Versions, limits, quotas, and what administrators see of the host.

use crate::app::App;
use crate::compute::metadata::ZONE;
use crate::compute::policy::{ADMIN, ANYBODY, READER};
use crate::compute::records::groups;
use crate::compute::records::servers::{self, Server};
use crate::compute::{micro, rules, schema};
use crate::placement;
use api_kit::{Call, Fault, Operation, Outcome, Reply, Target};
use axum::http::Method;
use serde_json::{Map, Value, json};
use wire::host::{DescribeHost, HostFacts};

pub fn operations() -> Vec<Operation<App>> {
    let get = |path, name, summary, handler: fn(Call<App>) -> api_kit::BoxFuture<'static, Outcome>| {
        Operation::new(Method::GET, path, handler).name(name).summary(summary)
    };
    vec![
        get("/", "versions:list", "List versions", |call| Box::pin(versions(call))).open().codes(200, &[]),
        get("/v2.1", "versions:show", "Show the version", |call| Box::pin(version(call)))
            .open()
            .codes(200, &[]),
        get("/v2.1/extensions", "extensions:list", "List extensions", |call| Box::pin(extensions(call)))
            .policy("os_compute_api:extensions", ANYBODY)
            .codes(200, &[401]),
        get("/v2.1/limits", "limits:show", "Show limits and usage", |call| Box::pin(limits(call)))
            .policy("os_compute_api:limits", ANYBODY)
            .query(&["tenant_id", "reserved"])
            .codes(200, &[401, 403]),
        get("/v2.1/os-availability-zone", "zones:list", "List availability zones", |call| {
            Box::pin(zones(call, false))
        })
        .policy("os_compute_api:os-availability-zone:list", ANYBODY)
        .codes(200, &[401]),
        get(
            "/v2.1/os-availability-zone/detail",
            "zones:detail",
            "List availability zones with hosts",
            |call| Box::pin(zones(call, true)),
        )
        .policy("os_compute_api:os-availability-zone:detail", ADMIN)
        .codes(200, &[401, 403]),
        get("/v2.1/os-hypervisors", "hypervisors:list", "List hypervisors", |call| {
            Box::pin(hypervisors(call, false))
        })
        .policy("os_compute_api:os-hypervisors:list", ADMIN)
        .query(&["limit", "marker", "hypervisor_hostname_pattern", "with_servers"])
        .codes(200, &[400, 401, 403]),
        get("/v2.1/os-hypervisors/detail", "hypervisors:detail", "List hypervisors with details", |call| {
            Box::pin(hypervisors(call, true))
        })
        .policy("os_compute_api:os-hypervisors:list-detail", ADMIN)
        .query(&["limit", "marker", "hypervisor_hostname_pattern", "with_servers"])
        .codes(200, &[400, 401, 403]),
        get(
            "/v2.1/os-hypervisors/statistics",
            "hypervisors:statistics",
            "Sum over all hypervisors",
            |call| Box::pin(statistics(call)),
        )
        .policy("os_compute_api:os-hypervisors:statistics", ADMIN)
        .until(api_kit::Micro(2, 87))
        .codes(200, &[401, 403]),
        get("/v2.1/os-hypervisors/{id}", "hypervisors:show", "Show a hypervisor", |call| {
            Box::pin(hypervisor(call))
        })
        .policy("os_compute_api:os-hypervisors:show", ADMIN)
        .query(&["with_servers"])
        .codes(200, &[401, 403, 404]),
        get("/v2.1/os-services", "services:list", "List compute services", |call| Box::pin(services(call)))
            .policy("os_compute_api:os-services:list", ADMIN)
            .query(&["binary", "host"])
            .codes(200, &[401, 403]),
        get("/v2.1/os-quota-sets/{project_id}", "quotas:show", "Show a project's quotas", |call| {
            Box::pin(quotas(call, false))
        })
        .policy("os_compute_api:os-quota-sets:show", READER)
        .query(&["user_id"])
        .codes(200, &[401, 403]),
        get(
            "/v2.1/os-quota-sets/{project_id}/detail",
            "quotas:detail",
            "Show a project's quotas and usage",
            |call| Box::pin(quotas(call, true)),
        )
        .policy("os_compute_api:os-quota-sets:detail", READER)
        .query(&["user_id"])
        .codes(200, &[401, 403]),
        get(
            "/v2.1/os-quota-sets/{project_id}/defaults",
            "quotas:defaults",
            "Show the default quotas",
            |call| Box::pin(quota_defaults(call)),
        )
        .policy("os_compute_api:os-quota-sets:defaults", ANYBODY)
        .codes(200, &[401]),
        Operation::new(Method::PUT, "/v2.1/os-quota-sets/{project_id}", quota_set)
            .name("quotas:set")
            .summary("Set a project's quotas")
            .policy("os_compute_api:os-quota-sets:update", ADMIN)
            .query(&["user_id"])
            .body(schema::QUOTA)
            .codes(200, &[400, 401, 403]),
        Operation::new(Method::DELETE, "/v2.1/os-quota-sets/{project_id}", quota_reset)
            .name("quotas:reset")
            .summary("Take a project back to the default quotas")
            .policy("os_compute_api:os-quota-sets:delete", ADMIN)
            .query(&["user_id"])
            .codes(202, &[401, 403]),
    ]
}

fn entry(call: &Call<App>) -> Value {
    json!({"id": "v2.1", "status": "CURRENT", "version": micro::MAX.to_string(),
        "min_version": micro::RANGE.min.to_string(), "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{}/v2.1/", call.base)}]})
}

async fn versions(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"versions": [entry(&call)]})))
}

async fn version(call: Call<App>) -> Outcome {
    let mut it = entry(&call);
    it["media-types"] =
        json!([{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]);
    Ok(Reply::json(200, json!({"version": it})))
}

async fn extensions(_call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"extensions": []})))
}

async fn limits(call: Call<App>) -> Outcome {
    let own = call.caller.project_id.clone();
    let project = match call.query.get("tenant_id").or_else(|| call.query.get("project_id")) {
        Some(other) if Some(other) != own.as_deref() => {
            call.enforce_rule("os_compute_api:limits:other_project", &Target::project(other))?;
            other.to_owned()
        }
        Some(_) | None => call.project_id()?.to_owned(),
    };
    let store = &call.app.store;
    let limit = api_kit::quota::limits(store, "compute", &project, rules::QUOTAS).await?;
    let used = servers::used(store, &project).await?;
    let of = |name: &str| limit.get(name).copied().unwrap_or(-1);
    let mut absolute = json!({
        "maxTotalInstances": of("instances"), "maxTotalCores": of("cores"), "maxTotalRAMSize": of("ram"),
        "maxTotalKeypairs": of("key_pairs"), "maxServerMeta": of("metadata_items"),
        "maxServerGroups": of("server_groups"), "maxServerGroupMembers": of("server_group_members"),
        "totalInstancesUsed": used.instances, "totalCoresUsed": used.cores, "totalRAMUsed": used.ram,
        "totalServerGroupsUsed": groups::count(store, &project).await?,
    });
    if call.version < micro::NO_PROXIES {
        absolute["maxSecurityGroups"] = json!(-1);
        absolute["maxSecurityGroupRules"] = json!(-1);
        absolute["maxTotalFloatingIps"] = json!(-1);
        absolute["totalFloatingIpsUsed"] = json!(0);
        absolute["totalSecurityGroupsUsed"] = json!(0);
    }
    if call.version < micro::NO_IMAGE_META {
        absolute["maxImageMeta"] = json!(of("metadata_items"));
    }
    if call.version < micro::NO_PERSONALITY {
        absolute["maxPersonality"] = json!(of("injected_files"));
        absolute["maxPersonalitySize"] = json!(of("injected_file_content_bytes"));
    }
    Ok(Reply::json(200, json!({"limits": {"rate": [], "absolute": absolute}})))
}

async fn zones(call: Call<App>, detail: bool) -> Outcome {
    let mut hosts = Value::Null;
    if detail {
        let mut map = Map::new();
        for room in placement::inner::rooms(&call.app.store).await? {
            map.insert(
                room.provider.name,
                json!({"nova-compute": {"available": true, "active": true,
                "updated_at": api_kit::time::naive(&api_kit::time::now())}}),
            );
        }
        hosts = Value::Object(map);
    }
    let zone = json!({"zoneName": ZONE, "zoneState": {"available": true}, "hosts": hosts});
    Ok(Reply::json(200, json!({"availabilityZoneInfo": [zone]})))
}

/// The host, as its daemon describes it now.
struct Host {
    room: placement::rules::Room,
    facts: Option<HostFacts>,
    servers: Vec<Server>,
}

async fn hosts(app: &App) -> Result<Vec<Host>, Fault> {
    // A host that does not answer is listed as down rather than left out.
    let facts = app.host.call(&DescribeHost {}).await.ok();
    let all = servers::all(&app.store).await?;
    let rooms = placement::inner::rooms(&app.store).await?;
    Ok(rooms
        .into_iter()
        .map(|room| {
            let name = Some(room.provider.name.as_str());
            Host {
                facts: facts.clone().filter(|facts| Some(facts.name.as_str()) == name),
                servers: all.iter().filter(|server| server.host.as_deref() == name).cloned().collect(),
                room,
            }
        })
        .collect())
}

fn host_view(it: &Host, call: &Call<App>, detail: bool) -> Value {
    let provider = &it.room.provider;
    let id = if call.version >= micro::HOST_UUIDS { json!(provider.uuid) } else { json!(1) };
    let state = if it.facts.is_some() { "up" } else { "down" };
    let mut out =
        json!({"id": id, "hypervisor_hostname": provider.name, "state": state, "status": "enabled"});
    let with_servers = call.query.truth("with_servers").ok().flatten().unwrap_or(false);
    if with_servers && call.version >= micro::HOST_UUIDS {
        out["servers"] =
            it.servers.iter().map(|server| json!({"uuid": server.id, "name": server.name})).collect();
    }
    if !detail {
        return out;
    }
    out["host_ip"] = json!("127.0.0.1");
    out["hypervisor_type"] = json!(it.facts.as_ref().map_or("unknown", |facts| {
        if facts.hypervisor == "vmm" { "KVM" } else { facts.hypervisor.as_str() }
    }));
    out["hypervisor_version"] = json!(1000);
    out["service"] = json!({"host": provider.name, "id": id, "disabled_reason": null});
    if call.version >= micro::HYPERVISOR_LEAN {
        out["uptime"] = Value::Null;
        return out;
    }
    let total = |class: &str| it.room.inventories.get(class).map_or(0, |inventory| inventory.total);
    let used = |class: &str| it.room.used.get(class).copied().unwrap_or(0);
    out["vcpus"] = json!(total("VCPU"));
    out["vcpus_used"] = json!(used("VCPU"));
    out["memory_mb"] = json!(total("MEMORY_MB"));
    out["memory_mb_used"] = json!(used("MEMORY_MB"));
    out["free_ram_mb"] = json!(total("MEMORY_MB") - used("MEMORY_MB"));
    out["local_gb"] = json!(total("DISK_GB"));
    out["local_gb_used"] = json!(used("DISK_GB"));
    out["free_disk_gb"] = json!(total("DISK_GB") - used("DISK_GB"));
    out["disk_available_least"] = json!(total("DISK_GB") - used("DISK_GB"));
    out["current_workload"] = json!(0);
    out["running_vms"] = json!(it.servers.len());
    let model = json!({"model": it.facts.as_ref().map(|facts| &facts.cpu_model)});
    out["cpu_info"] = if call.version >= micro::CPU_INFO_OBJECT { model } else { json!(model.to_string()) };
    out
}

async fn hypervisors(call: Call<App>, detail: bool) -> Outcome {
    let mut all = hosts(&call.app).await?;
    if let Some(pattern) = call.query.get("hypervisor_hostname_pattern") {
        all.retain(|it| it.room.provider.name.contains(pattern));
    }
    let all: Vec<Value> = all.iter().map(|it| host_view(it, &call, detail)).collect();
    Ok(Reply::json(200, json!({"hypervisors": all})))
}

async fn hypervisor(call: Call<App>) -> Outcome {
    let wanted = call.path("id");
    let all = hosts(&call.app).await?;
    let found = all
        .iter()
        .find(|it| it.room.provider.uuid == wanted || (call.version < micro::HOST_UUIDS && wanted == "1"));
    let found = found.ok_or_else(|| {
        let wanted: String = wanted.chars().take(64).collect();
        Fault::not_found(format!("Hypervisor with ID '{wanted}' could not be found."))
    })?;
    Ok(Reply::json(200, json!({"hypervisor": host_view(found, &call, true)})))
}

async fn statistics(call: Call<App>) -> Outcome {
    let all = hosts(&call.app).await?;
    let mut sums = json!({"count": all.len()});
    for name in [
        "vcpus",
        "vcpus_used",
        "memory_mb",
        "memory_mb_used",
        "free_ram_mb",
        "local_gb",
        "local_gb_used",
        "free_disk_gb",
        "disk_available_least",
        "current_workload",
        "running_vms",
    ] {
        let sum: i64 = all.iter().filter_map(|it| host_view(it, &call, true)[name].as_i64()).sum();
        sums[name] = json!(sum);
    }
    Ok(Reply::json(200, json!({"hypervisor_statistics": sums})))
}

async fn services(call: Call<App>) -> Outcome {
    let mut all = Vec::new();
    for it in hosts(&call.app).await? {
        let name = it.room.provider.name.clone();
        let id = if call.version >= micro::HOST_UUIDS { json!(it.room.provider.uuid) } else { json!(1) };
        let state = if it.facts.is_some() { "up" } else { "down" };
        let mut out = json!({"id": id, "binary": "nova-compute", "host": name, "zone": ZONE, "status": "enabled",
            "state": state, "updated_at": api_kit::time::naive(&api_kit::time::now()), "disabled_reason": null});
        if call.version >= micro::FORCED_DOWN {
            out["forced_down"] = json!(false);
        }
        let asked = |key: &str, value: &str| call.query.get(key).is_none_or(|asked| asked == value);
        if asked("binary", "nova-compute") && asked("host", &name) {
            all.push(out);
        }
    }
    Ok(Reply::json(200, json!({"services": all})))
}

/// Quotas that a version shows.
fn shows(name: &str, version: api_kit::Micro) -> bool {
    !(name.starts_with("injected_") && version >= micro::NO_PERSONALITY)
}

async fn quotas(call: Call<App>, detail: bool) -> Outcome {
    let project = call.path("project_id");
    call.enforce(&Target::project(project))?;
    let store = &call.app.store;
    let limits = api_kit::quota::limits(store, "compute", project, rules::QUOTAS).await?;
    let used = servers::used(store, project).await?;
    let mut out = json!({"id": project});
    for (name, limit) in limits.iter().filter(|(name, _)| shows(name, call.version)) {
        let in_use = match name.as_str() {
            "instances" => used.instances,
            "cores" => used.cores,
            "ram" => used.ram,
            _ => 0,
        };
        out[name.as_str()] =
            if detail { json!({"limit": limit, "in_use": in_use, "reserved": 0}) } else { json!(limit) };
    }
    Ok(Reply::json(200, json!({"quota_set": out})))
}

async fn quota_defaults(call: Call<App>) -> Outcome {
    let mut out = json!({"id": call.path("project_id")});
    for (name, limit) in rules::QUOTAS.iter().filter(|(name, _)| shows(name, call.version)) {
        out[*name] = json!(limit);
    }
    Ok(Reply::json(200, json!({"quota_set": out})))
}

async fn quota_set(call: Call<App>) -> Outcome {
    let (project, body) = (call.path("project_id"), call.inner("quota_set"));
    let force = body["force"] == json!(true)
        || body["force"].as_str().is_some_and(|it| it.eq_ignore_ascii_case("true"));
    let used = servers::used(&call.app.store, project).await?;
    let mut wanted = Vec::new();
    for (name, value) in body.as_object().into_iter().flatten() {
        if matches!(name.as_str(), "tenant_id" | "force") {
            continue;
        }
        if rules::QUOTAS.iter().all(|(known, _)| known != name) {
            return Err(Fault::bad_request(format!(
                "Invalid input for field/attribute quota_set. Additional properties are not allowed ('{}' was unexpected)",
                name.chars().take(64).collect::<String>()
            )));
        }
        let limit = value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let limit = limit.ok_or_else(|| Fault::bad_request(format!("{name} must be an integer.")))?;
        let in_use = match name.as_str() {
            "instances" => used.instances,
            "cores" => used.cores,
            "ram" => used.ram,
            _ => 0,
        };
        if !force && limit >= 0 && limit < in_use {
            return Err(Fault::bad_request(format!(
                "Quota limit {limit} for {name} must be greater than or equal to already used and reserved {in_use}."
            )));
        }
        wanted.push((name.clone(), limit));
    }
    let limits = &wanted;
    call.app.store.tx(|tx| async move { api_kit::quota::set(&tx, "compute", project, limits).await }).await?;
    let limits = api_kit::quota::limits(&call.app.store, "compute", project, rules::QUOTAS).await?;
    let shown: Map<String, Value> = limits
        .into_iter()
        .filter(|(name, _)| shows(name, call.version))
        .map(|(name, limit)| (name, json!(limit)))
        .collect();
    Ok(Reply::json(200, json!({"quota_set": shown})))
}

async fn quota_reset(call: Call<App>) -> Outcome {
    let project = call.path("project_id");
    call.app.store.tx(|tx| async move { api_kit::quota::reset(&tx, "compute", project).await }).await?;
    Ok(Reply::empty(202))
}
