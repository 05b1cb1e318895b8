//! What identity has on a new cloud: the default domain, projects, roles, users and the catalog.
//!
//! These first steps are taken once. Until they are [`finish`]ed they may be repeated and make what is missing; after that
//! what an operator deleted stays away, and only the catalog follows the cloud's address ([`refresh`]).

use super::entity::{
    DOMAINS, ENDPOINTS, Entity, Kind, PROJECTS, REGIONS, ROLES, SERVICES, USERS, new_id, text,
};
use super::state::change;
use crate::app::App;
use api_kit::{Caller, Fault};
use base::args;
use base::store::{Query, Tx};
use serde_json::{Value, json};

/// What was made or found.
#[derive(Debug, Clone)]
pub struct Made {
    /// An administrator on the project `admin`.
    pub admin: Caller,
    /// The user `demo` on the project `demo`.
    pub demo: Caller,
    /// Id of the project `service`.
    pub service_project: String,
}

/// One service in the catalog.
#[derive(Debug, Clone)]
pub struct Listed {
    /// `nova`
    pub name: &'static str,
    /// `compute`
    pub kind: &'static str,
    /// Path below the cloud's URL, a template.
    pub path: &'static str,
}

/// Roles from the mightiest down; each implies the next.
const CHAIN: [&str; 4] = ["admin", "manager", "member", "reader"];

/// Makes what is missing. The passwords are those of the users `admin` and `demo` when these are new, or when `reset`
/// says so.
///
/// # Errors
/// When the store does not answer.
pub async fn run(
    app: &App,
    url: &str,
    listed: &[Listed],
    passwords: (&str, &str),
    reset: bool,
) -> Result<Made, Fault> {
    let admin_hash = app.identity.passwords.hash(passwords.0).await?;
    let demo_hash = app.identity.passwords.hash(passwords.1).await?;
    let (region, hashes) = (app.config.region.as_str(), (&admin_hash, &demo_hash));
    change(app, |tx| async move {
        if DOMAINS.find(&tx, "default").await?.is_none() {
            let domain = json!({"id": "default", "name": "Default", "description": "The default domain",
                "enabled": true, "options": {}, "tags": []});
            DOMAINS.put(&tx, &object(domain)).await?;
        }
        let mut roles = Vec::new();
        for name in CHAIN {
            roles.push(role(&tx, name).await?);
        }
        role(&tx, "service").await?;
        for pair in roles.windows(2) {
            let sql =
                "INSERT INTO identity_implied (prior_id, implied_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            tx.exec(sql, args![&pair[0], &pair[1]]).await?;
        }
        let (admin_role, member_role) = (&roles[0], &roles[2]);
        let admin_project = project(&tx, "admin", "The cloud's administrators").await?;
        let demo_project = project(&tx, "demo", "A project to try things in").await?;
        let service_project = project(&tx, "service", "What belongs to the cloud itself").await?;
        let admin = user(&tx, "admin", &admin_project, hashes.0, reset).await?;
        let demo = user(&tx, "demo", &demo_project, hashes.1, reset).await?;
        grant(&tx, &admin, ("project", &admin_project), admin_role).await?;
        grant(&tx, &admin, ("project", &demo_project), admin_role).await?;
        grant(&tx, &admin, ("domain", "default"), admin_role).await?;
        grant(&tx, &admin, ("system", "all"), admin_role).await?;
        grant(&tx, &demo, ("project", &demo_project), member_role).await?;
        if REGIONS.find(&tx, region).await?.is_none() {
            let entity = json!({"id": region, "description": "", "parent_region_id": null});
            REGIONS.put(&tx, &object(entity)).await?;
        }
        list(&tx, url, region, listed).await?;
        Ok(Made {
            admin: caller("admin", &admin, "admin", &admin_project, &CHAIN),
            demo: caller("demo", &demo, "demo", &demo_project, &CHAIN[2..]),
            service_project,
        })
    })
    .await
}

fn object(value: Value) -> Entity {
    match value {
        Value::Object(entity) => entity,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Entity::new(),
    }
}

/// The id of the one that a statement finds, or of the new one.
async fn ensure(
    tx: &Tx,
    kind: &Kind,
    (sql, values): (&'static str, Vec<base::store::Value>),
    mut entity: Value,
) -> Result<(String, bool), Fault> {
    if let Some(row) = tx.row(sql, values).await? {
        return Ok((row.text("id")?, false));
    }
    let id = new_id();
    entity["id"] = json!(id);
    kind.put(tx, &object(entity)).await?;
    Ok((id, true))
}

async fn role(tx: &Tx, name: &str) -> Result<String, Fault> {
    let found = ("SELECT id FROM identity_roles WHERE domain_id = '' AND name = $1", args![name]);
    let entity = json!({"name": name, "domain_id": null, "description": null, "options": {}});
    Ok(ensure(tx, &ROLES, found, entity).await?.0)
}

async fn project(tx: &Tx, name: &str, description: &str) -> Result<String, Fault> {
    let found = ("SELECT id FROM identity_projects WHERE domain_id = 'default' AND name = $1", args![name]);
    let entity = json!({"name": name, "description": description, "domain_id": "default",
        "parent_id": "default", "enabled": true, "is_domain": false, "options": {}, "tags": []});
    Ok(ensure(tx, &PROJECTS, found, entity).await?.0)
}

async fn user(tx: &Tx, name: &str, project: &str, hash: &str, reset: bool) -> Result<String, Fault> {
    let found = ("SELECT id FROM identity_users WHERE domain_id = 'default' AND name = $1", args![name]);
    let entity = json!({"name": name, "domain_id": "default", "enabled": true, "options": {},
        "default_project_id": project, "password_expires_at": null});
    let (id, new) = ensure(tx, &USERS, found, entity).await?;
    if new || reset {
        tx.exec("UPDATE identity_users SET password = $1 WHERE id = $2", args![hash, &id]).await?;
    }
    Ok(id)
}

async fn grant(tx: &Tx, user: &str, (kind, target): (&str, &str), role: &str) -> Result<(), Fault> {
    tx.exec(
        "INSERT INTO identity_assignments (actor_kind, actor_id, target_kind, target_id, role_id)
         VALUES ('user', $1, $2, $3, $4) ON CONFLICT DO NOTHING",
        args![user, kind, target, role],
    )
    .await?;
    Ok(())
}

async fn list(tx: &Tx, url: &str, region: &str, listed: &[Listed]) -> Result<(), Fault> {
    set(tx, "public_url", url).await?;
    for service in listed {
        let known = setting(tx, &format!("listed:{}", service.name)).await?.is_some();
        catalog(tx, url, region, service, known).await?;
        set(tx, &format!("listed:{}", service.name), "yes").await?;
    }
    Ok(())
}

async fn set(tx: &Tx, name: &str, value: &str) -> Result<(), Fault> {
    let sql = "INSERT INTO identity_settings (name, value) VALUES ($1, $2)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    tx.exec(sql, args![name, value]).await?;
    Ok(())
}

async fn setting(query: &impl Query, name: &str) -> Result<Option<String>, Fault> {
    let row = query.row("SELECT value FROM identity_settings WHERE name = $1", args![name]).await?;
    Ok(row.map(|row| row.text("value")).transpose()?)
}

/// Lists a service, or, when it was listed before, leads its endpoints to the cloud's address. What was deleted meanwhile
/// stays away, and URLs that an operator set to something else stay.
async fn catalog(tx: &Tx, url: &str, region: &str, listed: &Listed, known: bool) -> Result<(), Fault> {
    let found =
        ("SELECT id FROM identity_services WHERE type = $1 AND name = $2", args![listed.kind, listed.name]);
    let entity = json!({"type": listed.kind, "name": listed.name, "enabled": true, "description": ""});
    let service = if known {
        let Some(row) = tx.row(found.0, found.1).await? else { return Ok(()) };
        row.text("id")?
    } else {
        ensure(tx, &SERVICES, found, entity).await?.0
    };
    let wanted = format!("{url}{}", listed.path);
    for interface in ["public", "internal", "admin"] {
        let found = (
            "SELECT id FROM identity_endpoints WHERE service_id = $1 AND interface = $2 AND region_id = $3",
            args![&service, interface, region],
        );
        let entity = json!({"service_id": service, "interface": interface, "region_id": region,
            "region": region, "url": wanted, "enabled": true});
        let id = if known {
            let Some(row) = tx.row(found.0, found.1).await? else { continue };
            row.text("id")?
        } else {
            ensure(tx, &ENDPOINTS, found, entity).await?.0
        };
        let mut entity = ENDPOINTS.get(tx, &id).await?;
        let now = text(&entity, "url");
        if now != wanted && now.ends_with(listed.path) {
            entity.insert("url".to_owned(), json!(wanted));
            ENDPOINTS.put(tx, &entity).await?;
        }
    }
    Ok(())
}

/// Whether the first steps were taken to their end.
///
/// # Errors
/// When the store does not answer.
pub async fn finished(app: &App) -> Result<bool, Fault> {
    Ok(setting(&app.store, "first_steps").await?.is_some())
}

/// Remembers that the first steps were taken to their end.
///
/// # Errors
/// When the store does not answer.
pub async fn finish(app: &App) -> Result<(), Fault> {
    app.store.tx(|tx| async move { set(&tx, "first_steps", "done").await }).await
}

/// Leads the catalog to the cloud's address and lists services that this version has and the former one had not.
///
/// # Errors
/// When the store does not answer.
pub async fn refresh(app: &App, url: &str, listed: &[Listed]) -> Result<(), Fault> {
    let region = app.config.region.as_str();
    change(app, |tx| async move { list(&tx, url, region, listed).await }).await
}

/// The cloud's address as the last bootstrap was told.
///
/// # Errors
/// When the store does not answer.
pub async fn public_url(app: &App) -> Result<Option<String>, Fault> {
    setting(&app.store, "public_url").await
}

/// The way back in: gives the user `admin` a new password, with everything that it needs to be administrator, and ends
/// its tokens.
///
/// # Errors
/// When the store does not answer.
pub async fn reset_admin(app: &App, password: &str) -> Result<(), Fault> {
    let hash = app.identity.passwords.hash(password).await?;
    let hash = hash.as_str();
    change(app, |tx| async move {
        let role = role(&tx, "admin").await?;
        let project = project(&tx, "admin", "The cloud's administrators").await?;
        let admin = user(&tx, "admin", &project, hash, true).await?;
        for (kind, id) in [(&DOMAINS, "default"), (&PROJECTS, project.as_str()), (&USERS, admin.as_str())] {
            let mut entity = kind.get(&tx, id).await?;
            entity.insert("enabled".to_owned(), json!(true));
            kind.put(&tx, &entity).await?;
        }
        super::lockout::reset(&tx, &admin).await?;
        grant(&tx, &admin, ("project", &project), &role).await?;
        grant(&tx, &admin, ("domain", "default"), &role).await?;
        grant(&tx, &admin, ("system", "all"), &role).await?;
        Ok(super::caller::revoke(app, &tx, &format!("user:{admin}"), super::caller::now_us()).await?)
    })
    .await
}

fn caller(user: &str, user_id: &str, project: &str, project_id: &str, roles: &[&str]) -> Caller {
    Caller {
        user_id: user_id.to_owned(),
        user_name: user.to_owned(),
        user_domain_id: "default".to_owned(),
        user_domain_name: "Default".to_owned(),
        project_id: Some(project_id.to_owned()),
        project_name: Some(project.to_owned()),
        project_domain_id: Some("default".to_owned()),
        project_domain_name: Some("Default".to_owned()),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        is_admin: roles.contains(&"admin"),
        ..Caller::default()
    }
}
