//! Server groups: which servers should share a host, and which should not.

use crate::app::App;
use crate::compute::policy::{MEMBER, READER};
use crate::compute::records::groups::{self, Group, Policy};
use crate::compute::{micro, rules, schema};
use api_kit::{Call, Fault, Operation, Outcome, Reply, Target};
use axum::http::Method;
use serde_json::{Value, json};
use wire::ids::ServerId;

/// Largest page.
const MOST: i64 = 1000;

pub fn operations() -> Vec<Operation<App>> {
    let (all, one) = ("/v2.1/os-server-groups", "/v2.1/os-server-groups/{group_id}");
    vec![
        Operation::new(Method::GET, all, list)
            .name("server-groups:list")
            .policy("os_compute_api:os-server-groups:index", READER)
            .query(&["all_projects", "limit", "offset"])
            .codes(200, &[400, 401, 403])
            .summary("List server groups"),
        Operation::new(Method::POST, all, create)
            .name("server-groups:create")
            .policy("os_compute_api:os-server-groups:create", MEMBER)
            .body(schema::GROUP)
            .body_from(micro::SOFT_POLICIES, schema::GROUP_2_15)
            .body_from(micro::GROUP_RULES, schema::GROUP_2_64)
            .codes(200, &[400, 401, 403])
            .summary("Create a server group"),
        Operation::new(Method::GET, one, show)
            .name("server-groups:show")
            .policy("os_compute_api:os-server-groups:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show a server group"),
        Operation::new(Method::DELETE, one, delete)
            .name("server-groups:delete")
            .policy("os_compute_api:os-server-groups:delete", MEMBER)
            .codes(204, &[401, 403, 404])
            .summary("Delete a server group"),
    ]
}

fn view(it: &Group, members: &[(String, ServerId, Option<String>)], call: &Call<App>) -> Value {
    let members: Vec<ServerId> =
        members.iter().filter(|(group, ..)| *group == it.id).map(|(_, server, _)| *server).collect();
    let mut out = json!({"id": it.id, "name": it.name, "members": members});
    if call.version >= micro::GROUP_OWNER {
        out["project_id"] = json!(it.project_id);
        out["user_id"] = json!(it.user_id);
    }
    if call.version >= micro::GROUP_RULES {
        out["policy"] = json!(it.policy.as_str());
        out["rules"] = if it.policy == Policy::AntiAffinity && it.per_host != 1 {
            json!({"max_server_per_host": it.per_host})
        } else {
            json!({})
        };
    } else {
        out["policies"] = json!([it.policy.as_str()]);
        out["metadata"] = json!({});
    }
    out
}

async fn shown(call: &Call<App>, all: &[Group]) -> Result<Vec<Value>, Fault> {
    let members = groups::members(&call.app.store, all.iter().map(|it| it.id.as_str())).await?;
    Ok(all.iter().map(|it| view(it, &members, call)).collect())
}

async fn find(call: &Call<App>) -> Result<Group, Fault> {
    let id = call.path("group_id");
    let missing = || {
        let id: String = id.chars().take(64).collect();
        Fault::not_found(format!("Instance group {id} could not be found."))
    };
    let it = groups::get(&call.app.store, id).await?.ok_or_else(missing)?;
    let own = call.caller.project_id.as_deref() == Some(&it.project_id);
    match call.enforce(&Target::project(&it.project_id)) {
        Err(_) if !own => Err(missing()),
        other => other.map(|()| it),
    }
}

fn number(call: &Call<App>, name: &str, or: i64) -> Result<i64, Fault> {
    let Some(text) = call.query.get(name) else { return Ok(or) };
    text.parse().ok().filter(|number| *number >= 0).ok_or_else(|| {
        Fault::bad_request(format!(
            "Invalid input for query parameters {name}: a non-negative integer is expected."
        ))
    })
}

async fn list(call: Call<App>) -> Outcome {
    // Upstream takes the parameter's presence for a yes, and ignores it for all but administrators.
    let everyones = call.query.has("all_projects") && call.caller.is_admin;
    let project = if everyones {
        call.enforce_rule("os_compute_api:os-server-groups:index:all_projects", &Target::new())?;
        None
    } else {
        Some(call.project_id()?)
    };
    call.enforced_by_query();
    let (offset, limit) = (number(&call, "offset", 0)?, number(&call, "limit", MOST)?.min(MOST));
    let all = groups::list(&call.app.store, project, offset, limit).await?;
    Ok(Reply::json(200, json!({"server_groups": shown(&call, &all).await?})))
}

async fn create(call: Call<App>) -> Outcome {
    let (project, body) = (call.project_id()?, call.inner("server_group"));
    let policy = body["policy"].as_str().or_else(|| body["policies"][0].as_str());
    let policy = policy
        .and_then(Policy::parse)
        .ok_or_else(|| Fault::bad_request("Invalid input for field/attribute policies: name one policy."))?;
    let per_host = body.pointer("/rules/max_server_per_host").map(|most| {
        most.as_i64().or_else(|| most.as_str()?.parse().ok()).filter(|most| *most > 0).ok_or_else(|| {
            Fault::bad_request(
                "Invalid input for field/attribute max_server_per_host: a positive integer is expected.",
            )
        })
    });
    if body["rules"].as_object().is_some_and(|rules| !rules.is_empty()) && policy != Policy::AntiAffinity {
        return Err(Fault::bad_request("Only anti-affinity policy supports rules."));
    }
    let group = &Group {
        id: uuid::Uuid::new_v4().to_string(),
        project_id: project.to_owned(),
        user_id: call.caller.user_id.clone(),
        name: body["name"].as_str().unwrap_or_default().to_owned(),
        policy,
        per_host: per_host.transpose()?.unwrap_or(1),
        created_at: api_kit::time::now(),
    };
    call.app
        .store
        .tx(|tx| async move {
            let in_use = groups::count(&tx, project).await?;
            api_kit::quota::fits(&tx, "compute", project, rules::quota("server_groups"), in_use, 1)
                .await?
                .map_err(|_| Fault::over_quota("Quota exceeded, too many server groups."))?;
            groups::insert(&tx, group).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    Ok(Reply::json(200, json!({"server_group": view(group, &[], &call)})))
}

async fn show(call: Call<App>) -> Outcome {
    let it = find(&call).await?;
    let mut all = shown(&call, std::slice::from_ref(&it)).await?;
    Ok(Reply::json(200, json!({"server_group": all.pop()})))
}

async fn delete(call: Call<App>) -> Outcome {
    let it = &find(&call).await?;
    call.app.store.tx(|tx| async move { groups::delete(&tx, &it.id).await }).await?;
    Ok(Reply::empty(204))
}
