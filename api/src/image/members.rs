//! Sharing an image with projects.

use super::access::{find, find_own};
use super::records::{self, Image};
use super::view;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply, Target};
use base::store::StoreError;
use serde_json::json;

fn check_shared(image: &Image) -> Result<(), Fault> {
    if image.visibility == "shared" {
        return Ok(());
    }
    Err(Fault::forbidden("Only shared images have members."))
}

fn is_owner(call: &Call<App>, image: &Image) -> bool {
    call.caller.is_admin || call.caller.project_id.as_deref() == Some(image.owner.as_str())
}

async fn one(call: &Call<App>, image: &Image, project: &str) -> Result<records::Member, Fault> {
    let members = records::members(&call.app.store, &image.id).await?;
    let mine = is_owner(call, image) || call.caller.project_id.as_deref() == Some(project);
    let found = members.into_iter().find(|member| mine && member.member == project);
    found.ok_or_else(|| Fault::not_found("The image has no such member."))
}

pub(super) async fn list(call: Call<App>) -> Outcome {
    let image = find(&call, call.path("image_id")).await?;
    check_shared(&image)?;
    let all = is_owner(&call, &image);
    let members = records::members(&call.app.store, &image.id).await?;
    let shown: Vec<_> = members
        .iter()
        .filter(|member| all || call.caller.project_id.as_deref() == Some(member.member.as_str()))
        .map(|member| view::member(&image.id, member))
        .collect();
    Ok(Reply::json(200, json!({"members": shown, "schema": "/v2/schemas/members"})))
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let image = find_own(&call, call.path("image_id")).await?;
    check_shared(&image)?;
    let project = call.body.get("member").and_then(|member| member.as_str()).unwrap_or_default().to_owned();
    let (id, new) = (&image.id, &project);
    let added = call.app.store.tx(|tx| async move { records::add_member(&tx, id, new).await }).await;
    match added {
        Ok(()) => (),
        Err(StoreError::Duplicate(_)) => {
            return Err(Fault::conflict(format!(
                "The target member {project} is already associated with image {id}."
            )));
        }
        Err(error) => return Err(error.into()),
    }
    let member = one(&call, &image, &project).await?;
    Ok(Reply::json(200, view::member(&image.id, &member)))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let image = find(&call, call.path("image_id")).await?;
    let member = one(&call, &image, call.path("member_id")).await?;
    Ok(Reply::json(200, view::member(&image.id, &member)))
}

/// Only the member itself says whether it accepts.
pub(super) async fn update(call: Call<App>) -> Outcome {
    let image = find(&call, call.path("image_id")).await?;
    let project = call.path("member_id").to_owned();
    one(&call, &image, &project).await?;
    if !call.caller.is_admin && call.caller.project_id.as_deref() != Some(project.as_str()) {
        return Err(Fault::forbidden("Only the member itself may change its status."));
    }
    call.enforce(&Target::project(&project))?;
    let status = call.body.get("status").and_then(|status| status.as_str()).unwrap_or_default().to_owned();
    let (id, member, status) = (&image.id, &project, &status);
    call.app.store.tx(|tx| async move { records::set_member(&tx, id, member, status).await }).await?;
    let member = one(&call, &image, &project).await?;
    Ok(Reply::json(200, view::member(&image.id, &member)))
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let image = find_own(&call, call.path("image_id")).await?;
    let (id, project) = (&image.id, call.path("member_id"));
    let gone = call.app.store.tx(|tx| async move { records::drop_member(&tx, id, project).await }).await?;
    if gone == 0 {
        return Err(Fault::not_found("The image has no such member."));
    }
    Ok(Reply::empty(204))
}
