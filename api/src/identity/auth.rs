//! Tokens: asking for one, asking about one, ending one; and what one may be scoped to.

use super::caller::{self, Proof};
use super::entity::{DOMAINS, PROJECTS, USERS, enabled, text};
use super::lockout::{self, Failures};
use super::state::change;
use super::token::{Scope, Token};
use super::{appcreds, catalog};
use crate::app::App;
use api_kit::{Call, Caller, Fault, Outcome, Reply, Target};
use base::args;
use base::store::{Query, Where};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::time::Instant;

/// POST /auth/tokens
///
/// # Errors
/// 401 for whatever does not fit together, without saying what.
pub async fn issue(call: Call<App>) -> Outcome {
    let auth = call.inner("auth");
    let proof = prove(&call, &auth["identity"]).await?;
    let scope = scope(&call.app, &auth["scope"], &proof).await?;
    let explicit = !auth["scope"].is_null();
    let mut issued = caller::issue(&call.app, &proof, scope).await?;
    if issued.is_none() && !explicit {
        // A default project that the user lost its roles on does not keep it out.
        issued = caller::issue(&call.app, &proof, Scope::Unscoped).await?;
    }
    let (token, caller) = issued.ok_or_else(Fault::unauthorized)?;
    let body = shown(&call, &caller, !call.query.has("nocatalog")).await?;
    Ok(Reply::json(201, body).header("x-subject-token", token).header("vary", "X-Auth-Token"))
}

async fn prove(call: &Call<App>, identity: &Value) -> Result<Proof, Fault> {
    let app = &call.app;
    let mut proof: Option<Proof> = None;
    let mut seen = BTreeSet::new();
    for method in identity["methods"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        // Named again it proves nothing more: no second hash for the price of one request.
        if !seen.insert(method) {
            continue;
        }
        let given = &identity[method];
        if !given.is_object() {
            return Err(Fault::bad_request(format!(
                "Expecting to find {} in identity. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error.",
                method.chars().take(64).collect::<String>()
            )));
        }
        let one = match method {
            "password" => by_password(call, given).await?,
            "token" => by_token(app, given).await?,
            "application_credential" => appcreds::prove(call, given).await?,
            _ => return Err(Fault::unauthorized()),
        };
        proof = Some(match proof {
            None => one,
            // Every method named must prove the same user.
            Some(before) if before.user == one.user => Proof {
                methods: before.methods.union(&one.methods).copied().collect(),
                from: before.from.or(one.from),
                appcred: before.appcred.or(one.appcred),
                user: before.user,
            },
            Some(_) => return Err(Fault::unauthorized()),
        });
    }
    proof.ok_or_else(Fault::unauthorized)
}

/// What a log-in needs of a user's row.
pub(super) struct Account {
    pub(super) id: String,
    hash: Option<String>,
    failures: Failures,
}

/// Finds a user by id, or by name and domain.
pub(super) async fn find_user(app: &App, user: &Value) -> Result<Option<Account>, Fault> {
    let row = if let Some(id) = user["id"].as_str() {
        let sql = "SELECT id, password, failures, failed_us FROM identity_users WHERE id = $1";
        app.store.row(sql, args![id]).await?
    } else if let Some(name) = user["name"].as_str() {
        let Some(domain) = domain_id(app, &user["domain"]).await? else { return Ok(None) };
        let sql =
            "SELECT id, password, failures, failed_us FROM identity_users WHERE domain_id = $1 AND name = $2";
        app.store.row(sql, args![domain, name]).await?
    } else {
        return Err(Fault::bad_request("Expecting to find id or name in user."));
    };
    row.map(|row| {
        Ok(Account {
            id: row.text("id")?,
            hash: row.opt_text("password")?,
            failures: Failures { count: row.int("failures")?, last_us: row.int("failed_us")? },
        })
    })
    .transpose()
}

/// Checks a user's password: slowed down after failures from the same source, always wrong for a locked account, and
/// as slow for a user that does not exist.
///
/// # Errors
/// 429 while this source has to wait, 503 when too many log in.
pub(super) async fn check_password(
    call: &Call<App>,
    user: &Value,
    password: &str,
) -> Result<Option<String>, Fault> {
    let app = &call.app;
    let who = source(call, &[&key(user)]);
    app.identity.throttle.may_try(&who, Instant::now())?;
    let account = find_user(app, user).await?;
    let usable = account.as_ref().filter(|account| !lockout::locked(app, account.failures));
    let hash = usable.and_then(|account| account.hash.clone());
    let locked = account.is_some() && usable.is_none();
    let right = app.identity.passwords.check(password, hash).await?;
    app.identity.throttle.note(&who, right, Instant::now());
    let Some(account) = account.filter(|_| !locked) else { return Ok(None) };
    lockout::note(app, &account.id, right, account.failures).await?;
    Ok(right.then_some(account.id))
}

/// The client's address with whom it claims to be, in a bounded length. Made of no more than what finds the user, read as
/// [`find_user`] reads it: whatever else a client adds makes nobody else of it.
pub(super) fn source(call: &Call<App>, claimed: &[&Value]) -> String {
    of(&call.peer.map(|peer| peer.ip().to_string()).unwrap_or_default(), claimed)
}

pub(super) fn of(address: &str, claimed: &[&Value]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(json!([address, claimed]).to_string()))
}

/// What finds an entity of these: its id, or its name with what finds its domain.
pub(super) fn key(entity: &Value) -> Value {
    match entity["id"].as_str() {
        Some(id) => json!({"id": id}),
        None => {
            let domain = &entity["domain"];
            let domain = match domain["id"].as_str() {
                Some(id) => json!({"id": id}),
                None => json!({"name": domain["name"]}),
            };
            json!({"name": entity["name"], "domain": domain})
        }
    }
}

async fn domain_id(app: &App, domain: &Value) -> Result<Option<String>, Fault> {
    if let Some(id) = domain["id"].as_str() {
        return Ok(Some(id.to_owned()));
    }
    let Some(name) = domain["name"].as_str() else {
        return Err(Fault::bad_request("Expecting to find domain in user or project, with an id or a name."));
    };
    let row = app.store.row("SELECT id FROM identity_domains WHERE name = $1", args![name]).await?;
    Ok(row.map(|row| row.text("id")).transpose()?)
}

async fn by_password(call: &Call<App>, given: &Value) -> Result<Proof, Fault> {
    let user = &given["user"];
    let Some(password) = user["password"].as_str() else {
        return Err(Fault::bad_request("Expecting to find user with a password in password."));
    };
    let user = check_password(call, user, password).await?.ok_or_else(Fault::unauthorized)?;
    Ok(Proof { user, methods: BTreeSet::from(["password"]), from: None, appcred: None })
}

async fn by_token(app: &App, given: &Value) -> Result<Proof, Fault> {
    let text = given["id"].as_str().unwrap_or_default();
    if caller::check(app, text).await?.is_none() {
        return Err(Fault::unauthorized());
    }
    let token = Token::unseal(&app.identity.keys(), text).ok_or_else(Fault::unauthorized)?;
    if token.appcred.is_some() {
        // It is good for what it was made for, and may not be turned into more.
        return Err(Fault::forbidden(
            "Using method 'application_credential' is not allowed for managing tokens.",
        ));
    }
    Ok(Proof {
        user: token.user,
        methods: BTreeSet::from(["token"]),
        from: Some((token.expires_us, token.audit, token.methods)),
        appcred: None,
    })
}

async fn scope(app: &App, asked: &Value, proof: &Proof) -> Result<Scope, Fault> {
    if let Some(id) = &proof.appcred {
        let project = appcreds::project(app, id).await?.ok_or_else(Fault::unauthorized)?;
        return match asked["project"]["id"].as_str() {
            Some(other) if other != project => Err(Fault::unauthorized()),
            Some(_) | None => Ok(Scope::Project(project)),
        };
    }
    if asked.is_null() {
        let user = USERS.find(&app.store, &proof.user).await?.unwrap_or_default();
        let default = text(&user, "default_project_id");
        return Ok(if default.is_empty() { Scope::Unscoped } else { Scope::Project(default.to_owned()) });
    }
    if asked == "unscoped" || asked["unscoped"].is_object() {
        return Ok(Scope::Unscoped);
    }
    if asked["system"]["all"] == true {
        return Ok(Scope::System);
    }
    if asked["domain"].is_object() {
        let id = domain_id(app, &asked["domain"]).await?.ok_or_else(Fault::unauthorized)?;
        return Ok(Scope::Domain(id));
    }
    let project = &asked["project"];
    if let Some(id) = project["id"].as_str() {
        return Ok(Scope::Project(id.to_owned()));
    }
    if let Some(name) = project["name"].as_str() {
        let domain = domain_id(app, &project["domain"]).await?.ok_or_else(Fault::unauthorized)?;
        let sql = "SELECT id FROM identity_projects WHERE domain_id = $1 AND name = $2";
        let row = app.store.row(sql, args![domain, name]).await?.ok_or_else(Fault::unauthorized)?;
        return Ok(Scope::Project(row.text("id")?));
    }
    Err(Fault::bad_request("The scope names neither a project nor a domain nor the system."))
}

/// A token as the API shows it.
async fn shown(call: &Call<App>, caller: &Caller, with_catalog: bool) -> Result<Value, Fault> {
    let mut token = json!({
        "methods": caller.methods, "issued_at": caller.issued_at, "expires_at": caller.expires_at,
        "audit_ids": caller.audit_ids,
        "user": {"id": caller.user_id, "name": caller.user_name, "password_expires_at": null,
            "domain": {"id": caller.user_domain_id, "name": caller.user_domain_name}},
    });
    if let Some(id) = &caller.project_id {
        token["project"] = json!({"id": id, "name": caller.project_name,
            "domain": {"id": caller.project_domain_id, "name": caller.project_domain_name}});
        token["is_domain"] = json!(false);
    } else if let Some(id) = &caller.domain_id {
        token["domain"] = json!({"id": id, "name": caller.domain_name});
    } else if caller.system {
        token["system"] = json!({"all": true});
    } else {
        return Ok(json!({"token": token}));
    }
    token["roles"] =
        caller.role_ids.iter().zip(&caller.roles).map(|(id, name)| json!({"id": id, "name": name})).collect();
    if let Some(id) = &caller.application_credential_id {
        token["application_credential"] = appcreds::shown_in_token(&call.app, id).await?;
    }
    if with_catalog {
        token["catalog"] = catalog::load(&call.app).await?.shown(caller, &call.base);
    }
    Ok(json!({"token": token}))
}

/// The token that a request is about, enforced.
async fn subject(call: &Call<App>) -> Result<std::sync::Arc<Caller>, Fault> {
    let text = call.header("x-subject-token").unwrap_or_default().to_owned();
    if text.is_empty() {
        return Err(Fault::bad_request("Expecting to find X-Subject-Token in the headers."));
    }
    match caller::check(&call.app, &text).await? {
        Some(subject) => {
            call.enforce(&Target::new().with("target.token.user_id", subject.user_id.as_str()))?;
            Ok(subject)
        }
        None => {
            // Whoever may ask about any token learns that there is none; so does everyone else.
            Err(Fault::not_found("Could not find token: it is unknown, expired or revoked."))
        }
    }
}

/// GET and HEAD /auth/tokens
///
/// # Errors
/// 404 for a token that is not good.
pub async fn validate(call: Call<App>) -> Outcome {
    let subject = subject(&call).await?;
    let body = shown(&call, &subject, !call.query.has("nocatalog")).await?;
    Ok(Reply::json(200, body).header("x-subject-token", &subject.token).header("vary", "X-Auth-Token"))
}

/// DELETE /auth/tokens
///
/// # Errors
/// 404 for a token that is not good.
pub async fn revoke(call: Call<App>) -> Outcome {
    let subject = subject(&call).await?;
    let Some(id) = subject.audit_ids.first() else { return Err(Fault::internal("a token without audit id")) };
    let (app, what) = (&*call.app, &*format!("audit:{id}"));
    change(app, |tx| async move { Ok(caller::revoke(app, &tx, what, i64::MAX).await?) }).await?;
    Ok(Reply::empty(204))
}

/// GET /auth/catalog
///
/// # Errors
/// 403 for a token without scope.
pub async fn catalog(call: Call<App>) -> Outcome {
    let caller = &call.caller;
    if caller.project_id.is_none() && caller.domain_id.is_none() && !caller.system {
        return Err(Fault::forbidden("A token without a scope has no catalog. Ask for one with a scope."));
    }
    let catalog = catalog::load(&call.app).await?.shown(caller, &call.base);
    let link = format!("{}/v3/auth/catalog", call.base);
    Ok(Reply::json(200, json!({"catalog": catalog, "links": {"self": link, "previous": null, "next": null}})))
}

/// GET /auth/projects, and GET /users/ID/projects
///
/// # Errors
/// When the store does not answer.
pub async fn projects(call: Call<App>) -> Outcome {
    let user = call.caller.user_id.clone();
    projects_of(&call, &user).await
}

/// The projects that a user has a role on.
pub(super) async fn projects_of(call: &Call<App>, user: &str) -> Outcome {
    let rows = targets(call, user, "project", PROJECTS.select).await?;
    super::crud::listing(call, &PROJECTS, rows, None)
}

/// GET /auth/domains
///
/// # Errors
/// When the store does not answer.
pub async fn domains(call: Call<App>) -> Outcome {
    let rows = targets(&call, &call.caller.user_id, "domain", DOMAINS.select).await?;
    super::crud::listing(&call, &DOMAINS, rows, None)
}

/// GET /auth/system
///
/// # Errors
/// When the store does not answer.
pub async fn system(call: Call<App>) -> Outcome {
    let roles = caller::roles(&call.app.store, &call.caller.user_id, "system", "all").await?;
    let list = if roles.is_empty() { json!([]) } else { json!([{"all": true}]) };
    let link = format!("{}/v3/auth/system", call.base);
    Ok(Reply::json(200, json!({"system": list, "links": {"self": link}})))
}

async fn targets(
    call: &Call<App>,
    user: &str,
    kind: &'static str,
    head: &'static str,
) -> Result<Vec<super::entity::Entity>, Fault> {
    let store = &call.app.store;
    let mut inherited = BTreeSet::new();
    if kind == "project" {
        let places = caller::inherited(store, user).await?;
        if !places.is_empty() {
            let below = caller::below(store).await?;
            inherited = places.iter().filter_map(|(place, _)| below.get(place)).flatten().cloned().collect();
        }
    }
    let mut select = Where::new(head);
    select.and(
        "id IN (SELECT target_id FROM identity_assignments WHERE target_kind = ?
            AND ((actor_kind = 'user' AND actor_id = ?)
              OR (actor_kind = 'group' AND actor_id IN (SELECT group_id FROM identity_members WHERE user_id = ?))))",
        [kind.into(), user.into(), user.into()],
    );
    select.end("ORDER BY name", []);
    let mut rows = PROJECTS.rows(store, select).await?;
    for row in &rows {
        inherited.remove(text(row, "id"));
    }
    if !inherited.is_empty() {
        let mut select = Where::new(head);
        select.and_in("id", inherited.iter().map(Into::into));
        rows.extend(PROJECTS.rows(store, select).await?);
        rows.sort_by(|one, two| text(one, "name").cmp(text(two, "name")));
    }
    rows.retain(enabled);
    Ok(rows)
}
