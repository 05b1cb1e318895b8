//! What only users and groups have: passwords, membership.

use super::caller::{self, now_us};
use super::entity::{GROUPS, USERS};
use super::state::change;
use super::{auth, crud};
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::args;
use base::store::{Query, Where};
use serde_json::json;

/// POST /users/ID/password: by the user itself, who need not have a token but the old password.
///
/// # Errors
/// 401 when the old password is wrong or the user does not exist, without telling which.
pub async fn change_password(call: Call<App>) -> Outcome {
    let (id, given) = (call.path("id"), call.inner("user"));
    let original = given["original_password"].as_str().unwrap_or_default();
    if auth::check_password(&call, &json!({"id": id}), original).await?.is_none() {
        return Err(Fault::unauthorized());
    }
    let new = given["password"].as_str().unwrap_or_default();
    if new == original {
        return Err(Fault::bad_request("The new password cannot be identical to the old one."));
    }
    let hash = call.app.identity.passwords.hash(new).await?;
    let (app, hash) = (&*call.app, hash.as_str());
    change(app, |tx| async move {
        tx.exec("UPDATE identity_users SET password = $1 WHERE id = $2", args![hash, id]).await?;
        Ok(caller::revoke(app, &tx, &format!("user:{id}"), now_us()).await?)
    })
    .await?;
    Ok(Reply::empty(204))
}

/// GET /users/ID/projects
///
/// # Errors
/// 403 for other users' projects.
pub async fn projects(call: Call<App>) -> Outcome {
    let id = call.path("id");
    call.enforce(&Target::new().with("target.user.id", id))?;
    USERS.get(&call.app.store, id).await?;
    auth::projects_of(&call, id).await
}

/// GET /users/ID/groups
///
/// # Errors
/// 403 for other users' groups.
pub async fn groups(call: Call<App>) -> Outcome {
    let id = call.path("id");
    call.enforce(&Target::new().with("target.user.id", id))?;
    USERS.get(&call.app.store, id).await?;
    let mut select = Where::new(GROUPS.select);
    select.and("id IN (SELECT group_id FROM identity_members WHERE user_id = ?)", [id.into()]);
    select.end("ORDER BY name", []);
    let rows = GROUPS.rows(&call.app.store, select).await?;
    crud::listing(&call, &GROUPS, rows, None)
}

/// GET /groups/ID/users
///
/// # Errors
/// 404
pub async fn members(call: Call<App>) -> Outcome {
    crud::get(&call, &GROUPS).await?;
    let mut select = Where::new(USERS.select);
    select.and("id IN (SELECT user_id FROM identity_members WHERE group_id = ?)", [call.path("id").into()]);
    select.end("ORDER BY name", []);
    let rows = USERS.rows(&call.app.store, select).await?;
    crud::listing(&call, &USERS, rows, None)
}

/// PUT /groups/ID/users/USER
///
/// # Errors
/// 404
pub async fn add_member(call: Call<App>) -> Outcome {
    crud::get(&call, &GROUPS).await?;
    let (group, user) = (call.path("id"), call.path("user_id"));
    change(&call.app, |tx| async move {
        USERS.get(&tx, user).await?;
        let sql = "INSERT INTO identity_members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        tx.exec(sql, args![group, user]).await?;
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}

/// GET and HEAD /groups/ID/users/USER
///
/// # Errors
/// 404
pub async fn is_member(call: Call<App>) -> Outcome {
    crud::get(&call, &GROUPS).await?;
    let (group, user) = (call.path("id"), call.path("user_id"));
    USERS.get(&call.app.store, user).await?;
    let sql = "SELECT user_id FROM identity_members WHERE group_id = $1 AND user_id = $2";
    match call.app.store.row(sql, args![group, user]).await? {
        Some(_) => Ok(Reply::empty(204)),
        None => Err(Fault::not_found(format!("User '{user}' not found in group '{group}'."))),
    }
}

/// DELETE /groups/ID/users/USER
///
/// # Errors
/// 404
pub async fn remove_member(call: Call<App>) -> Outcome {
    crud::get(&call, &GROUPS).await?;
    let (app, group, user) = (&*call.app, call.path("id"), call.path("user_id"));
    change(app, |tx| async move {
        let sql = "DELETE FROM identity_members WHERE group_id = $1 AND user_id = $2";
        if tx.exec(sql, args![group, user]).await? == 0 {
            return Err(Fault::not_found(format!("User '{user}' not found in group '{group}'.")));
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}
