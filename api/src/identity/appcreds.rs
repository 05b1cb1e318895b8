//! Application credentials: secrets of their own for programs, on one project with some of the user's roles.

use super::caller::{self, Proof};
use super::entity::{Entity, new_id, text};
use super::state::change;
use super::{auth, keys};
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::args;
use base::store::{Query, StoreError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Instant;

/// The roles that a credential grants; `None` when it is gone or over.
///
/// # Errors
/// When the store does not answer.
pub async fn granted(query: &impl Query, id: &str) -> Result<Option<BTreeSet<String>>, StoreError> {
    let sql = "SELECT expires_at, body FROM identity_appcreds WHERE id = $1";
    let Some(row) = query.row(sql, args![id]).await? else { return Ok(None) };
    if row.opt_text("expires_at")?.is_some_and(|end| end <= api_kit::time::now()) {
        return Ok(None);
    }
    let body: Entity = row.json("body")?;
    let roles = body.get("roles").and_then(Value::as_array);
    Ok(Some(roles.into_iter().flatten().filter_map(|role| role["id"].as_str()).map(str::to_owned).collect()))
}

/// The project of a credential.
///
/// # Errors
/// When the store does not answer.
pub async fn project(app: &App, id: &str) -> Result<Option<String>, Fault> {
    let sql = "SELECT project_id FROM identity_appcreds WHERE id = $1";
    Ok(app.store.row(sql, args![id]).await?.map(|row| row.text("project_id")).transpose()?)
}

/// Checks a credential that asks for a token.
///
/// # Errors
/// 401
pub async fn prove(call: &Call<App>, given: &Value) -> Result<Proof, Fault> {
    let app = &call.app;
    let who = match given["id"].as_str() {
        Some(id) => auth::source(call, &[&json!("appcred"), &json!(id)]),
        None => auth::source(call, &[&json!("appcred"), &given["name"], &auth::key(&given["user"])]),
    };
    app.identity.throttle.may_try(&who, Instant::now())?;
    let row = match (given["id"].as_str(), given["name"].as_str()) {
        (Some(id), _) => {
            let sql = "SELECT id, user_id, secret FROM identity_appcreds WHERE id = $1";
            app.store.row(sql, args![id]).await?
        }
        (None, Some(name)) => match auth::find_user(app, &given["user"]).await? {
            Some(user) => {
                let sql =
                    "SELECT id, user_id, secret FROM identity_appcreds WHERE user_id = $1 AND name = $2";
                app.store.row(sql, args![user.id, name]).await?
            }
            None => None,
        },
        (None, None) => {
            return Err(Fault::bad_request("Expecting to find id or name in application_credential."));
        }
    };
    let hash = row.as_ref().map(|row| row.text("secret")).transpose()?;
    let secret = given["secret"].as_str().unwrap_or_default();
    let right = app.identity.passwords.check(secret, hash).await?;
    app.identity.throttle.note(&who, right, Instant::now());
    match row {
        Some(row) if right => Ok(Proof {
            user: row.text("user_id")?,
            methods: BTreeSet::from(["application_credential"]),
            from: None,
            appcred: Some(row.text("id")?),
        }),
        Some(_) | None => Err(Fault::unauthorized()),
    }
}

/// How a token shows the credential that it was made from.
///
/// # Errors
/// When the store does not answer.
pub async fn shown_in_token(app: &App, id: &str) -> Result<Value, Fault> {
    let body = find(app, id).await?.unwrap_or_default();
    let restricted = body.get("unrestricted") != Some(&Value::Bool(true));
    Ok(json!({"id": id, "name": body.get("name"), "restricted": restricted}))
}

async fn find(app: &App, id: &str) -> Result<Option<Entity>, StoreError> {
    let sql = "SELECT body FROM identity_appcreds WHERE id = $1";
    app.store.row(sql, args![id]).await?.map(|row| row.json("body")).transpose()
}

fn shown(call: &Call<App>, mut body: Entity) -> Value {
    let link = format!(
        "{}/v3/users/{}/application_credentials/{}",
        call.base,
        text(&body, "user_id"),
        text(&body, "id")
    );
    body.remove("user_id");
    body.insert("links".to_owned(), json!({"self": link}));
    Value::Object(body)
}

fn own(call: &Call<App>) -> Result<&str, Fault> {
    let user = call.path("id");
    call.enforce(&Target::new().with("target.user.id", user))?;
    Ok(user)
}

/// A token made from a restricted credential may not make or remove credentials.
async fn unrestricted(call: &Call<App>) -> Result<(), Fault> {
    let Some(id) = &call.caller.application_credential_id else { return Ok(()) };
    let body = find(&call.app, id).await?.unwrap_or_default();
    if body.get("unrestricted") == Some(&Value::Bool(true)) {
        return Ok(());
    }
    Err(Fault::forbidden(
        "Using method 'application_credential' is not allowed for managing additional application credentials.",
    ))
}

/// GET /users/ID/application_credentials
///
/// # Errors
/// 403 for other users.
pub async fn list(call: Call<App>) -> Outcome {
    let user = own(&call)?;
    let sql = "SELECT body FROM identity_appcreds WHERE user_id = $1 ORDER BY name";
    let mut all = Vec::new();
    for row in call.app.store.rows(sql, args![user]).await? {
        let body: Entity = row.json("body")?;
        if call.query.get("name").is_none_or(|name| text(&body, "name") == name) {
            all.push(shown(&call, body));
        }
    }
    let link = format!("{}/v3/users/{user}/application_credentials", call.base);
    Ok(Reply::json(
        200,
        json!({"application_credentials": all, "links": {"self": link, "previous": null, "next": null}}),
    ))
}

/// POST /users/ID/application_credentials: by the user itself, on the token's project.
///
/// # Errors
/// 403 without a project; 400 for roles that the user does not have.
pub async fn create(call: Call<App>) -> Outcome {
    let user = call.path("id");
    call.enforce(&Target::new().user(user))?;
    if user != call.caller.user_id {
        return Err(Fault::forbidden("Only the user itself can create its application credentials."));
    }
    unrestricted(&call).await?;
    let project = call.project_id()?.to_owned();
    let given = call.inner("application_credential");
    let has = caller::roles(&call.app.store, user, "project", &project).await?;
    let mut roles = Vec::new();
    match given["roles"].as_array().filter(|roles| !roles.is_empty()) {
        None => roles = has,
        Some(asked) => {
            for role in asked {
                let found = has.iter().find(|(id, name)| role["id"] == **id || role["name"] == **name);
                let found = found.ok_or_else(|| {
                    Fault::bad_request(
                        "Invalid application credential: the user does not have one of the roles.",
                    )
                })?;
                roles.push(found.clone());
            }
        }
    }
    let expires = match given["expires_at"].as_str() {
        None => None,
        Some(text) => {
            let time = api_kit::time::parse_time(text)
                .ok_or_else(|| Fault::bad_request("expires_at is not a time like 2027-01-31T12:00:00Z."))?;
            if time <= api_kit::time::now() {
                return Err(Fault::bad_request("expires_at is in the past."));
            }
            Some(time)
        }
    };
    let secret = match given["secret"].as_str() {
        Some(secret) => secret.to_owned(),
        None => URL_SAFE_NO_PAD.encode(keys::random::<48>().map_err(Fault::internal)?),
    };
    let hash = call.app.identity.passwords.hash(&secret).await?;
    let roles: Vec<Value> =
        roles.into_iter().map(|(id, name)| json!({"id": id, "name": name, "domain_id": null})).collect();
    let id = new_id();
    let body = json!({"id": id, "user_id": user, "project_id": project, "name": given["name"],
        "description": given["description"], "roles": roles, "expires_at": expires,
        "unrestricted": given["unrestricted"] == true, "system": null});
    let name = given["name"].as_str().unwrap_or_default();
    let (body_ref, hash, expires, id, project) = (&body, &hash, &expires, &id, &project);
    change(&call.app, |tx| async move {
        let done = tx
            .exec(
                "INSERT INTO identity_appcreds (id, user_id, project_id, name, secret, expires_at, body)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                args![id, user, project, name, hash, expires, body_ref],
            )
            .await;
        match done {
            Err(StoreError::Duplicate(_)) => Err(Fault::conflict(format!(
                "Conflict occurred attempting to store application_credential - Duplicate entry found with name {name}."
            ))),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    })
    .await?;
    let mut shown = shown(&call, body.as_object().cloned().unwrap_or_default());
    shown["secret"] = secret.into();
    Ok(Reply::json(201, json!({"application_credential": shown})))
}

/// GET /users/ID/application_credentials/CREDENTIAL
///
/// # Errors
/// 404
pub async fn show(call: Call<App>) -> Outcome {
    let user = own(&call)?;
    let id = call.path("credential_id");
    let body = find(&call.app, id).await?.filter(|body| text(body, "user_id") == user);
    let body =
        body.ok_or_else(|| Fault::not_found(format!("Could not find Application Credential: {id}.")))?;
    Ok(Reply::json(200, json!({"application_credential": shown(&call, body)})))
}

/// DELETE /users/ID/application_credentials/CREDENTIAL
///
/// # Errors
/// 404
pub async fn delete(call: Call<App>) -> Outcome {
    let user = own(&call)?;
    unrestricted(&call).await?;
    let id = call.path("credential_id");
    change(&call.app, |tx| async move {
        let sql = "DELETE FROM identity_appcreds WHERE id = $1 AND user_id = $2";
        if tx.exec(sql, args![id, user]).await? == 0 {
            return Err(Fault::not_found(format!("Could not find Application Credential: {id}.")));
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}
