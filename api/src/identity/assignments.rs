//! Who has which role where, and which roles imply which.
//!
//! A role that is inherited (OS-INHERIT) is an assignment on `domain+` or `project+`: it holds in all projects of the domain,
//! or below the project, and not there itself.

use super::caller;
use super::crud;
use super::entity::{DOMAINS, Entity, GROUPS, Kind, PROJECTS, ROLES, USERS, text};
use super::state::change;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply};
use base::args;
use base::store::{Query, Where};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A pair of an actor and a target, as the path names them.
struct Pair {
    actor_kind: &'static str,
    actor: String,
    target_kind: &'static str,
    target: String,
}

impl Pair {
    /// Reads and checks what the path names: `project_id`, `domain_id` or neither (the system); `user_id` or `group_id`.
    async fn read(call: &Call<App>) -> Result<Self, Fault> {
        let store = &call.app.store;
        let inherited = call.op.route().1.starts_with("/v3/OS-INHERIT/");
        let of = |name: &str| Some(call.path(name).to_owned()).filter(|id| !id.is_empty());
        let (target_kind, target) = match (of("project_id"), of("domain_id")) {
            (Some(id), _) => {
                PROJECTS.get(store, &id).await?;
                (if inherited { "project+" } else { "project" }, id)
            }
            (None, Some(id)) => {
                DOMAINS.get(store, &id).await?;
                (if inherited { "domain+" } else { "domain" }, id)
            }
            (None, None) => ("system", "all".to_owned()),
        };
        let (actor_kind, actor) = match (of("user_id"), of("group_id")) {
            (Some(id), _) => {
                USERS.get(store, &id).await?;
                ("user", id)
            }
            (None, id) => {
                let id = id.unwrap_or_default();
                GROUPS.get(store, &id).await?;
                ("group", id)
            }
        };
        Ok(Self { actor_kind, actor, target_kind, target })
    }
}

/// GET .../roles
///
/// # Errors
/// 404
pub async fn list_pair(call: Call<App>) -> Outcome {
    let pair = Pair::read(&call).await?;
    let mut select = Where::new(ROLES.select);
    select.and(
        "id IN (SELECT role_id FROM identity_assignments
            WHERE actor_kind = ? AND actor_id = ? AND target_kind = ? AND target_id = ?)",
        [pair.actor_kind.into(), pair.actor.into(), pair.target_kind.into(), pair.target.into()],
    );
    select.end("ORDER BY name", []);
    let rows = ROLES.rows(&call.app.store, select).await?;
    crud::listing(&call, &ROLES, rows, None)
}

/// PUT .../roles/ROLE
///
/// # Errors
/// 404
pub async fn grant(call: Call<App>) -> Outcome {
    let pair = Pair::read(&call).await?;
    let (pair, role) = (&pair, call.path("role_id"));
    change(&call.app, |tx| async move {
        let found = ROLES.get(&tx, role).await?;
        let domain = text(&found, "domain_id");
        if !domain.is_empty() {
            let project = match pair.target_kind {
                "project" | "project+" => PROJECTS.get(&tx, &pair.target).await?,
                _ => Entity::new(),
            };
            if pair.target != domain && text(&project, "domain_id") != domain {
                return Err(Fault::forbidden(
                    "A role of a domain can only be granted on that domain and its projects.",
                ));
            }
        }
        tx.exec(
            "INSERT INTO identity_assignments (actor_kind, actor_id, target_kind, target_id, role_id)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            args![pair.actor_kind, &pair.actor, pair.target_kind, &pair.target, role],
        )
        .await?;
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}

/// GET and HEAD .../roles/ROLE
///
/// # Errors
/// 404
pub async fn check(call: Call<App>) -> Outcome {
    let pair = Pair::read(&call).await?;
    let role = call.path("role_id");
    ROLES.get(&call.app.store, role).await?;
    let row = call
        .app
        .store
        .row(
            "SELECT role_id FROM identity_assignments
             WHERE actor_kind = $1 AND actor_id = $2 AND target_kind = $3 AND target_id = $4 AND role_id = $5",
            args![pair.actor_kind, pair.actor, pair.target_kind, pair.target, role],
        )
        .await?;
    row.map(|_| Reply::empty(204)).ok_or_else(|| not_assigned(role))
}

fn not_assigned(role: &str) -> Fault {
    Fault::not_found(format!(
        "Could not find role assignment with role: {role}, user or group, project, domain or system."
    ))
}

/// DELETE .../roles/ROLE
///
/// # Errors
/// 404
pub async fn ungrant(call: Call<App>) -> Outcome {
    let pair = Pair::read(&call).await?;
    let (pair, role) = (&pair, call.path("role_id"));
    change(&call.app, |tx| async move {
        let gone = tx
            .exec(
                "DELETE FROM identity_assignments
                 WHERE actor_kind = $1 AND actor_id = $2 AND target_kind = $3 AND target_id = $4 AND role_id = $5",
                args![pair.actor_kind, &pair.actor, pair.target_kind, &pair.target, role],
            )
            .await?;
        if gone == 0 { Err(not_assigned(role)) } else { Ok(()) }
    })
    .await?;
    Ok(Reply::empty(204))
}

/// GET /role_assignments
///
/// # Errors
/// 400 for filters that contradict each other.
pub async fn list(call: Call<App>) -> Outcome {
    let (store, query) = (&call.app.store, &call.query);
    let flag = |name: &str| -> Result<bool, Fault> {
        match query.get(name) {
            // The parameter alone means yes; `0` means no.
            None | Some("0") => Ok(false),
            Some("") => Ok(true),
            Some(_) => Ok(query.truth(name)?.unwrap_or(false)),
        }
    };
    let (effective, with_names) = (flag("effective")?, flag("include_names")?);
    if query.has("user.id") && query.has("group.id") {
        return Err(Fault::bad_request("Specify a user or group, not both"));
    }
    if effective && query.has("group.id") {
        return Err(Fault::bad_request(
            "Combining effective and group filter will always result in an empty list.",
        ));
    }
    let inherited = query.get("scope.OS-INHERIT:inherited_to");
    if inherited.is_some_and(|to| to != "projects") {
        return Err(Fault::bad_request("scope.OS-INHERIT:inherited_to can only be 'projects'."));
    }
    if effective && inherited.is_some() && query.has("scope.domain.id") {
        return Err(Fault::bad_request(
            "Combining effective, domain and inherited filters will always result in an empty list.",
        ));
    }
    let mut select =
        Where::new("SELECT actor_kind, actor_id, target_kind, target_id, role_id FROM identity_assignments");
    let pairs: [(&str, &'static str, &'static str); 4] = [
        ("user.id", "(actor_kind = 'user' AND actor_id = ?)", "user"),
        ("group.id", "(actor_kind = 'group' AND actor_id = ?)", "group"),
        ("scope.project.id", "(target_kind IN ('project', 'project+') AND target_id = ?)", "project"),
        ("scope.domain.id", "(target_kind IN ('domain', 'domain+') AND target_id = ?)", "domain"),
    ];
    for (name, condition, kind) in pairs {
        let Some(id) = query.get(name) else { continue };
        if kind == "project" && effective {
            // What holds there may be given above: sorted out below.
            continue;
        }
        if kind == "user" && effective {
            select.and(
                "((actor_kind = 'user' AND actor_id = ?) OR (actor_kind = 'group'
                  AND actor_id IN (SELECT group_id FROM identity_members WHERE user_id = ?)))",
                [id.into(), id.into()],
            );
        } else {
            select.and(condition, [id.into()]);
        }
    }
    if query.has("scope.system") {
        select.and("target_kind = 'system'", []);
    }
    if let (Some(role), false) = (query.get("role.id"), effective) {
        select.and("role_id = ?", [role.into()]);
    }
    if inherited.is_some() {
        select.and("target_kind IN ('project+', 'domain+')", []);
    }
    select.end("ORDER BY actor_id, target_id, role_id", []);
    let (sql, args) = select.build();
    let mut found = BTreeSet::new();
    for row in store.rows(sql, args).await? {
        let (target_kind, target) = (row.text("target_kind")?, row.text("target_id")?);
        let from = target_kind.strip_suffix('+').map_or(String::new(), |kind| format!("{kind}s/{target}"));
        found.insert([
            row.text("actor_kind")?,
            row.text("actor_id")?,
            target_kind,
            target,
            row.text("role_id")?,
            from,
        ]);
    }
    if effective {
        found = expanded(&call, found).await?;
        if let Some(role) = query.get("role.id") {
            found.retain(|row| row[4] == role);
        }
        if let Some(user) = query.get("user.id") {
            found.retain(|row| row[1] == user);
        }
        for (name, kind) in [("scope.project.id", "project"), ("scope.domain.id", "domain")] {
            if let Some(id) = query.get(name) {
                found.retain(|row| row[2] == kind && row[3] == id);
            }
        }
    }
    let names = if with_names { names(&call).await? } else { BTreeMap::new() };
    let list: Vec<Value> = found.iter().map(|row| shown(&call, row, &names)).collect();
    let link = format!("{}/v3/role_assignments", call.base);
    Ok(Reply::json(
        200,
        json!({"role_assignments": list, "links": {"self": link, "previous": null, "next": null}}),
    ))
}

/// An assignment: actor, target, role, and the place that it is inherited from (`domains/ID`), empty when it is not.
type Granted = [String; 6];

/// Groups become their members, roles bring the implied ones, and what is inherited becomes the projects that inherit it.
async fn expanded(call: &Call<App>, found: BTreeSet<Granted>) -> Result<BTreeSet<Granted>, Fault> {
    let store = &call.app.store;
    let below = if found.iter().any(|row| !row[5].is_empty()) {
        caller::below(store).await?
    } else {
        BTreeMap::new()
    };
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in store.rows("SELECT group_id, user_id FROM identity_members", args![]).await? {
        members.entry(row.text("group_id")?).or_default().push(row.text("user_id")?);
    }
    let mut implied: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut out = BTreeSet::new();
    for [actor_kind, actor, target_kind, target, role, from] in found {
        if !implied.contains_key(&role) {
            let all = caller::with_implied(store, BTreeSet::from([role.clone()])).await?;
            implied.insert(role.clone(), all);
        }
        let users = if actor_kind == "group" {
            members.get(&actor).cloned().unwrap_or_default()
        } else {
            vec![actor]
        };
        for user in users {
            for role in implied.get(&role).into_iter().flatten() {
                let mut add = |kind: &str, target: &str| {
                    let (user, role) = (user.clone(), role.clone());
                    out.insert([
                        "user".to_owned(),
                        user,
                        kind.to_owned(),
                        target.to_owned(),
                        role,
                        from.clone(),
                    ]);
                };
                if from.is_empty() {
                    add(&target_kind, &target);
                } else {
                    below.get(&target).into_iter().flatten().for_each(|project| add("project", project));
                }
            }
        }
    }
    Ok(out)
}

/// Name and domain of everything that assignments refer to.
async fn names(call: &Call<App>) -> Result<BTreeMap<String, Value>, Fault> {
    let mut out = BTreeMap::new();
    let mut domains = BTreeMap::new();
    for kind in [&DOMAINS, &USERS, &GROUPS, &PROJECTS, &ROLES] as [&Kind; 5] {
        for entity in kind.rows(&call.app.store, Where::new(kind.select)).await? {
            let (id, name, domain) = (text(&entity, "id"), text(&entity, "name"), text(&entity, "domain_id"));
            if kind.one == "domain" {
                domains.insert(id.to_owned(), name.to_owned());
            }
            let mut value = json!({"id": id, "name": name});
            if let Some(domain_name) = domains.get(domain) {
                value["domain"] = json!({"id": domain, "name": domain_name});
            }
            // A domain and a project may share an id only in theory; kinds are kept apart all the same.
            out.insert(format!("{}:{id}", kind.one), value);
        }
    }
    Ok(out)
}

fn shown(call: &Call<App>, row: &Granted, names: &BTreeMap<String, Value>) -> Value {
    let [actor_kind, actor, target_kind, target, role, from] = row;
    let of = |kind: &str, id: &str| {
        names.get(&format!("{kind}:{id}")).cloned().unwrap_or_else(|| json!({"id": id}))
    };
    let (place, mut scope) = match target_kind.trim_end_matches('+') {
        "system" => ("system".to_owned(), json!({"system": {"all": true}})),
        kind => (format!("{kind}s/{target}"), json!({kind: of(kind, target)})),
    };
    let mut link = format!("{}/v3/{place}/{actor_kind}s/{actor}/roles/{role}", call.base);
    if !from.is_empty() {
        scope["OS-INHERIT:inherited_to"] = json!("projects");
        link = format!(
            "{}/v3/OS-INHERIT/{from}/{actor_kind}s/{actor}/roles/{role}/inherited_to_projects",
            call.base
        );
    }
    json!({actor_kind.as_str(): of(actor_kind, actor), "scope": scope, "role": of("role", role),
        "links": {"assignment": link}})
}

/// GET /role_inferences and GET /roles/ID/implies
///
/// # Errors
/// 404
pub async fn inferences(call: Call<App>) -> Outcome {
    let only = Some(call.path("id")).filter(|id| !id.is_empty());
    let brief = |role: &Entity| {
        let link = format!("{}/v3/roles/{}", call.base, text(role, "id"));
        json!({"id": role.get("id"), "name": role.get("name"), "links": {"self": link}})
    };
    let mut roles = BTreeMap::new();
    for role in ROLES.rows(&call.app.store, Where::new(ROLES.select)).await? {
        roles.insert(text(&role, "id").to_owned(), brief(&role));
    }
    let mut implies: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let sql = "SELECT prior_id, implied_id FROM identity_implied ORDER BY prior_id, implied_id";
    for row in call.app.store.rows(sql, args![]).await? {
        let implied = roles.get(&row.text("implied_id")?).cloned().unwrap_or(Value::Null);
        implies.entry(row.text("prior_id")?).or_default().push(implied);
    }
    if let Some(id) = only {
        let prior = roles.get(id).ok_or_else(|| ROLES.missing(id))?;
        let implied = implies.remove(id).unwrap_or_default();
        let link = format!("{}/v3/roles/{id}/implies", call.base);
        return Ok(Reply::json(
            200,
            json!({"role_inference": {"prior_role": prior, "implies": implied}, "links": {"self": link}}),
        ));
    }
    let all: Vec<Value> = implies
        .into_iter()
        .map(|(id, implied)| json!({"prior_role": roles.get(&id), "implies": implied}))
        .collect();
    let link = format!("{}/v3/role_inferences", call.base);
    Ok(Reply::json(200, json!({"role_inferences": all, "links": {"self": link}})))
}

/// PUT /roles/ID/implies/ROLE
///
/// # Errors
/// 404; 403 when the role would imply itself, or `admin` would be implied.
pub async fn imply(call: Call<App>) -> Outcome {
    let (prior, implied) = (call.path("id"), call.path("role_id"));
    change(&call.app, |tx| async move {
        ROLES.get(&tx, prior).await?;
        let found = ROLES.get(&tx, implied).await?;
        if text(&found, "name") == "admin" {
            return Err(Fault::forbidden("admin cannot be an implied role."));
        }
        if caller::with_implied(&tx, BTreeSet::from([implied.to_owned()])).await?.contains(prior) {
            return Err(Fault::conflict("The role would imply itself."));
        }
        let sql =
            "INSERT INTO identity_implied (prior_id, implied_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        tx.exec(sql, args![prior, implied]).await?;
        Ok(())
    })
    .await?;
    show_implied(&call, 201).await
}

/// GET and HEAD /roles/ID/implies/ROLE
///
/// # Errors
/// 404
pub async fn is_implied(call: Call<App>) -> Outcome {
    show_implied(&call, 200).await
}

async fn show_implied(call: &Call<App>, status: u16) -> Outcome {
    let (store, prior, implied) = (&call.app.store, call.path("id"), call.path("role_id"));
    let (first, second) = (ROLES.get(store, prior).await?, ROLES.get(store, implied).await?);
    let sql = "SELECT prior_id FROM identity_implied WHERE prior_id = $1 AND implied_id = $2";
    store.row(sql, args![prior, implied]).await?.ok_or_else(|| {
        Fault::not_found(format!("Could not find implied role: {prior} does not imply {implied}."))
    })?;
    let link = format!("{}/v3/roles/{prior}/implies/{implied}", call.base);
    let (first, second) = (crud::shown(call, &ROLES, first), crud::shown(call, &ROLES, second));
    Ok(Reply::json(
        status,
        json!({"role_inference": {"prior_role": first, "implies": second}, "links": {"self": link}}),
    ))
}

/// DELETE /roles/ID/implies/ROLE
///
/// # Errors
/// 404
pub async fn unimply(call: Call<App>) -> Outcome {
    let (prior, implied) = (call.path("id"), call.path("role_id"));
    change(&call.app, |tx| async move {
        let sql = "DELETE FROM identity_implied WHERE prior_id = $1 AND implied_id = $2";
        if tx.exec(sql, args![prior, implied]).await? == 0 {
            return Err(Fault::not_found(format!("{prior} does not imply {implied}.")));
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}
