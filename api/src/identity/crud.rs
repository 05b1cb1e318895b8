//! Create, list, show, change and delete: the same for all kinds of resources, with each kind's own rules in between.

use super::caller::{self, now_us};
use super::entity::{DOMAINS, Entity, GROUPS, Kind, PROJECTS, REGIONS, ROLES, SERVICES, USERS};
use super::entity::{enabled, new_id, text};
use super::state::change;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::args;
use base::store::{Query, Tx, Where};
use serde_json::{Map, Value, json};

/// The attributes that rules may ask for.
fn target<'a>(kind: &Kind, entity: &'a Entity) -> Target<'a> {
    let (id, domain) = (text(entity, "id"), text(entity, "domain_id"));
    let target = Target::new();
    match kind.one {
        "user" => target.with("target.user.id", id).with("target.user.domain_id", domain),
        "project" => target.with("target.project.id", id).with("target.project.domain_id", domain),
        "group" => target.with("target.group.id", id).with("target.group.domain_id", domain),
        "domain" => target.with("target.domain.id", id),
        "role" => target.with("target.role.id", id).with("target.role.domain_id", domain),
        _ => target,
    }
}

/// A resource with its link, as answers show it.
#[must_use]
pub fn shown(call: &Call<App>, kind: &Kind, mut entity: Entity) -> Value {
    let link = format!("{}/v3/{}/{}", call.base, kind.many, text(&entity, "id"));
    entity.insert("links".to_owned(), json!({"self": link}));
    Value::Object(entity)
}

/// A list's answer.
///
/// # Errors
/// Never now; the type is that of handlers.
pub fn listing(call: &Call<App>, kind: &Kind, rows: Vec<Entity>, next: Option<String>) -> Outcome {
    let path = call.uri.path();
    let path = path.strip_prefix("/identity").unwrap_or(path);
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let link = format!("{}{path}{query}", call.base);
    let rows: Vec<Value> = rows.into_iter().map(|row| shown(call, kind, row)).collect();
    Ok(Reply::json(200, json!({kind.many: rows, "links": {"self": link, "previous": null, "next": next}})))
}

/// Lists.
///
/// # Errors
/// 400 for filters that are wrong.
pub async fn list(call: Call<App>, kind: &'static Kind) -> Outcome {
    let everywhere = call.may("identity_reader", &Target::new());
    let own = call.caller.domain_id.clone().unwrap_or_default();
    let asked = call.query.get("domain_id").unwrap_or(&own);
    call.enforce(&Target::new().with("target.domain_id", asked))?;
    let page = call.list(&kind.list, &call.app.store).await?;
    let mut select = Where::new(kind.select);
    if !everywhere && kind.columns.contains(&"domain_id") && kind.one != "role" {
        select.and("domain_id = ?", [own.into()]);
    }
    if kind.one == "role" {
        // Roles of a domain are listed only when asked for.
        select.and("domain_id = ?", [call.query.get("domain_id").unwrap_or_default().into()]);
    }
    page.apply(&mut select);
    let mut rows = kind.rows(&call.app.store, select).await?;
    let before = rows.len();
    if kind.one == "project" {
        if call.query.truth("is_domain")? == Some(true) {
            rows.clear();
        }
        super::projects::retain_tagged(&call.query, &mut rows);
    }
    let filtered = rows.len() != before;
    let (rows, next) = page.finish(rows, |row| text(row, "id").to_owned());
    let next = next.filter(|_| !filtered).map(|marker| page.next_link(&call, &marker));
    listing(&call, kind, rows, next)
}

/// Shows one.
///
/// # Errors
/// 404, or 403 when the caller may not see any.
pub async fn show(call: Call<App>, kind: &'static Kind) -> Outcome {
    let entity = get(&call, kind).await?;
    Ok(Reply::json(200, json!({kind.one: shown(&call, kind, entity)})))
}

/// The resource that the path names, enforced: whoever may not know of it learns nothing.
pub(super) async fn get(call: &Call<App>, kind: &'static Kind) -> Result<Entity, Fault> {
    let id = call.path("id");
    match kind.find(&call.app.store, id).await? {
        Some(entity) => {
            call.enforce(&target(kind, &entity))?;
            Ok(entity)
        }
        None => {
            call.enforce(&Target::new())?;
            Err(kind.missing(id))
        }
    }
}

/// Creates one.
///
/// # Errors
/// 409 when its name is taken, 404 or 400 when what it refers to is not there.
pub async fn create(call: Call<App>, kind: &'static Kind) -> Outcome {
    let mut entity = call.inner(kind.one).as_object().cloned().unwrap_or_default();
    let password = taken_password(&mut entity);
    let own_domain = call.caller.domain_id.clone().or_else(|| call.caller.project_domain_id.clone());
    defaults(kind, &mut entity, &own_domain.unwrap_or_else(|| "default".to_owned()));
    call.enforce(&target(kind, &entity))?;
    let hash = match &password {
        Some(password) => Some(call.app.identity.passwords.hash(password).await?),
        None => None,
    };
    let (new, hash) = (&entity, hash.as_deref());
    change(&call.app, |tx| async move {
        if kind.one == "region" && kind.find(&tx, text(new, "id")).await?.is_some() {
            return Err(Fault::conflict(format!("Duplicate ID, {}.", text(new, "id"))));
        }
        references(kind, &tx, new).await?;
        kind.put(&tx, new).await?;
        if let Some(hash) = hash {
            set_password(&tx, text(new, "id"), hash).await?;
        }
        Ok(())
    })
    .await?;
    Ok(Reply::json(201, json!({kind.one: shown(&call, kind, entity)})))
}

fn taken_password(entity: &mut Entity) -> Option<String> {
    entity.remove("original_password");
    entity.remove("password").and_then(|password| password.as_str().map(str::to_owned))
}

async fn set_password(tx: &Tx, user: &str, hash: &str) -> Result<(), Fault> {
    tx.exec("UPDATE identity_users SET password = $1 WHERE id = $2", args![hash, user]).await?;
    Ok(())
}

/// Fills in what the client left out. Ids are ours, except a region's.
fn defaults(kind: &Kind, entity: &mut Entity, domain: &str) {
    let given = entity.remove("id");
    let id = match (kind.one, given.as_ref().and_then(Value::as_str)) {
        ("region", Some(id)) => id.to_owned(),
        _ => new_id(),
    };
    entity.remove("links");
    let mut fill = |name: &str, value: Value| {
        let slot = entity.entry(name.to_owned()).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value;
        }
    };
    fill("id", id.into());
    match kind.one {
        "domain" => {
            fill("description", "".into());
            fill("enabled", true.into());
            fill("options", json!({}));
            fill("tags", json!([]));
        }
        "project" => {
            fill("description", "".into());
            fill("enabled", true.into());
            fill("options", json!({}));
            fill("tags", json!([]));
            fill("is_domain", false.into());
            fill("domain_id", domain.into());
        }
        "user" => {
            fill("enabled", true.into());
            fill("options", json!({}));
            fill("domain_id", domain.into());
            fill("password_expires_at", Value::Null);
        }
        "group" => {
            fill("description", "".into());
            fill("domain_id", domain.into());
        }
        "role" => {
            fill("description", Value::Null);
            fill("domain_id", Value::Null);
            fill("options", json!({}));
        }
        "region" => {
            fill("description", "".into());
            fill("parent_region_id", Value::Null);
        }
        "service" => fill("enabled", true.into()),
        "endpoint" => {
            fill("enabled", true.into());
            fill("region_id", Value::Null);
        }
        _ => (),
    }
    if kind.one == "project" {
        let parent = entity["domain_id"].clone();
        let slot = entity.entry("parent_id").or_insert(Value::Null);
        if slot.is_null() {
            *slot = parent;
        }
    }
    if kind.one == "user" && entity.get("default_project_id").is_some_and(Value::is_null) {
        entity.remove("default_project_id");
    }
    if kind.one == "endpoint" {
        // `region` is the old name; it makes the region when it is not there.
        let region = entity.remove("region").filter(|region| !region.is_null());
        if entity["region_id"].is_null()
            && let Some(region) = region
        {
            entity.insert("region_id".to_owned(), region);
        }
        entity.insert("region".to_owned(), entity["region_id"].clone());
    }
}

/// What it refers to must be there.
async fn references(kind: &Kind, tx: &Tx, entity: &Entity) -> Result<(), Fault> {
    match kind.one {
        "project" | "user" | "group" => {
            DOMAINS.get(tx, text(entity, "domain_id")).await?;
            let parent = text(entity, "parent_id");
            if kind.one == "project" && parent != text(entity, "domain_id") {
                let parent = PROJECTS.get(tx, parent).await?;
                if text(&parent, "domain_id") != text(entity, "domain_id") {
                    return Err(Fault::bad_request(
                        "The parent project is in another domain than the project itself.",
                    ));
                }
            }
            if kind.one == "project" && entity.get("is_domain") == Some(&Value::Bool(true)) {
                return Err(Fault::bad_request("A project cannot be made a domain: create a domain."));
            }
        }
        "role" if !text(entity, "domain_id").is_empty() => {
            DOMAINS.get(tx, text(entity, "domain_id")).await?;
        }
        "region" => {
            let parent = text(entity, "parent_region_id");
            if parent == text(entity, "id") {
                return Err(Fault::bad_request("A region cannot be its own parent."));
            }
            if !parent.is_empty() {
                REGIONS.get(tx, parent).await?;
            }
        }
        "endpoint" => {
            let service = text(entity, "service_id");
            SERVICES.find(tx, service).await?.ok_or_else(|| {
                Fault::bad_request(format!(
                    "The service {service} does not exist. Name one that 'service list' shows."
                ))
            })?;
            let region = text(entity, "region_id");
            if !region.is_empty() && REGIONS.find(tx, region).await?.is_none() {
                let mut new = Map::new();
                new.insert("id".to_owned(), region.into());
                defaults(&REGIONS, &mut new, "");
                REGIONS.put(tx, &new).await?;
            }
        }
        _ => (),
    }
    Ok(())
}

/// Changes one.
///
/// # Errors
/// 404, 409 when the new name is taken, 400 for attributes that cannot change.
pub async fn update(call: Call<App>, kind: &'static Kind) -> Outcome {
    get(&call, kind).await?;
    let mut patch = call.inner(kind.one).as_object().cloned().unwrap_or_default();
    let password = taken_password(&mut patch);
    let hash = match &password {
        Some(password) => Some(call.app.identity.passwords.hash(password).await?),
        None => None,
    };
    let (id, patch, hash, app) = (call.path("id"), &patch, hash.as_deref(), &*call.app);
    let entity = change(app, |tx| async move {
        let old = kind.get(&tx, id).await?;
        let new = merged(kind, &old, patch)?;
        references(kind, &tx, &new).await?;
        kind.put(&tx, &new).await?;
        if let Some(hash) = hash {
            set_password(&tx, id, hash).await?;
        }
        if kind.one == "user" && (hash.is_some() || patch.get("enabled") == Some(&Value::Bool(true))) {
            super::lockout::reset(&tx, id).await?;
        }
        let disabled = enabled(&old) && !enabled(&new);
        if kind.one == "user" && (disabled || hash.is_some()) {
            caller::revoke(app, &tx, &format!("user:{id}"), now_us()).await?;
        }
        if kind.one == "project" && disabled {
            caller::revoke(app, &tx, &format!("project:{id}"), now_us()).await?;
        }
        Ok(new)
    })
    .await?;
    Ok(Reply::json(200, json!({kind.one: shown(&call, kind, entity)})))
}

fn merged(kind: &Kind, old: &Entity, patch: &Entity) -> Result<Entity, Fault> {
    let mut new = old.clone();
    for (name, value) in patch {
        let fixed = match name.as_str() {
            "id" => true,
            "domain_id" => kind.columns.contains(&"domain_id"),
            "parent_id" | "is_domain" => kind.one == "project",
            _ => false,
        };
        if fixed {
            let same = old.get(name) == Some(value);
            if !same {
                return Err(Fault::bad_request(format!("The attribute '{name}' cannot be changed.")));
            }
            continue;
        }
        match name.as_str() {
            "links" => (),
            "region" if kind.one == "endpoint" => {
                new.insert("region_id".to_owned(), value.clone());
            }
            "default_project_id" if value.is_null() => {
                new.remove(name);
            }
            _ => {
                new.insert(name.clone(), value.clone());
            }
        }
    }
    if kind.one == "endpoint" {
        new.insert("region".to_owned(), new.get("region_id").cloned().unwrap_or(Value::Null));
    }
    Ok(new)
}

/// Deletes one, with what hangs on it.
///
/// # Errors
/// 404; 403 for an enabled domain; 409 for a region that others are in.
pub async fn delete(call: Call<App>, kind: &'static Kind) -> Outcome {
    get(&call, kind).await?;
    let (id, app) = (call.path("id"), &*call.app);
    change(app, |tx| async move {
        let old = kind.get(&tx, id).await?;
        if kind.one == "domain" {
            if enabled(&old) {
                return Err(Fault::forbidden(
                    "Cannot delete a domain that is enabled, please disable it first.",
                ));
            }
            for (child, sql) in [
                (&USERS, "SELECT id FROM identity_users WHERE domain_id = $1"),
                (&GROUPS, "SELECT id FROM identity_groups WHERE domain_id = $1"),
                (&PROJECTS, "SELECT id FROM identity_projects WHERE domain_id = $1"),
                (&ROLES, "SELECT id FROM identity_roles WHERE domain_id = $1"),
            ] {
                for row in tx.rows(sql, args![id]).await? {
                    remove(child, &tx, &row.text("id")?).await?;
                }
            }
        }
        if kind.one == "project" {
            let children = tx
                .row("SELECT id FROM identity_projects WHERE parent_id = $1", args![id])
                .await?;
            if children.is_some() {
                return Err(Fault::forbidden(format!(
                    "Cannot delete the project {id} since it is not a leaf in the hierarchy. Delete its sub-projects first."
                )));
            }
        }
        if kind.one == "region" {
            let child =
                tx.row("SELECT id FROM identity_regions WHERE parent_region_id = $1", args![id]).await?;
            let endpoint =
                tx.row("SELECT id FROM identity_endpoints WHERE region_id = $1", args![id]).await?;
            if child.is_some() || endpoint.is_some() {
                return Err(Fault::forbidden(format!(
                    "Unable to delete region {id} because it or its child regions have associated endpoints."
                )));
            }
        }
        remove(kind, &tx, id).await
    })
    .await?;
    Ok(Reply::empty(204))
}

async fn remove(kind: &Kind, tx: &Tx, id: &str) -> Result<(), Fault> {
    let statements: &[&'static str] = match kind.one {
        "user" => &[
            "DELETE FROM identity_members WHERE user_id = $1",
            "DELETE FROM identity_appcreds WHERE user_id = $1",
            "DELETE FROM identity_assignments WHERE actor_kind = 'user' AND actor_id = $1",
        ],
        "group" => &[
            "DELETE FROM identity_members WHERE group_id = $1",
            "DELETE FROM identity_assignments WHERE actor_kind = 'group' AND actor_id = $1",
        ],
        "project" => &[
            "DELETE FROM identity_appcreds WHERE project_id = $1",
            "DELETE FROM identity_assignments WHERE target_kind IN ('project', 'project+') AND target_id = $1",
        ],
        "domain" => &[
            "DELETE FROM identity_assignments WHERE target_kind IN ('domain', 'domain+') AND target_id = $1",
        ],
        "role" => &[
            "DELETE FROM identity_assignments WHERE role_id = $1",
            "DELETE FROM identity_implied WHERE prior_id = $1",
            "DELETE FROM identity_implied WHERE implied_id = $1",
        ],
        "service" => &["DELETE FROM identity_endpoints WHERE service_id = $1"],
        _ => &[],
    };
    for statement in statements {
        tx.exec(*statement, args![id]).await?;
    }
    kind.remove(tx, id).await
}
