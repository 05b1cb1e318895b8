//! Tags of projects.

use super::crud;
use super::entity::{Entity, PROJECTS};
use super::state::change;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Query, Reply};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A project's tags.
fn tags(project: &Entity) -> BTreeSet<String> {
    let tags = project.get("tags").and_then(Value::as_array);
    tags.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Keeps the projects that `tags`, `tags-any`, `not-tags` and `not-tags-any` ask for.
pub fn retain_tagged(query: &Query, rows: &mut Vec<Entity>) {
    let asked = |name: &str| -> Option<Vec<String>> {
        query.get(name).map(|list| list.split(',').map(str::to_owned).collect())
    };
    let (all, any) = (asked("tags"), asked("tags-any"));
    let (not_all, not_any) = (asked("not-tags"), asked("not-tags-any"));
    rows.retain(|row| {
        let has = tags(row);
        let every = |list: &Vec<String>| list.iter().all(|tag| has.contains(tag));
        let some = |list: &Vec<String>| list.iter().any(|tag| has.contains(tag));
        all.as_ref().is_none_or(every)
            && any.as_ref().is_none_or(some)
            && !not_all.as_ref().is_some_and(every)
            && !not_any.as_ref().is_some_and(some)
    });
}

/// GET /projects/ID/tags
///
/// # Errors
/// 404
pub async fn list_tags(call: Call<App>) -> Outcome {
    let project = crud::get(&call, &PROJECTS).await?;
    let link = format!("{}/v3/projects/{}/tags", call.base, call.path("id"));
    Ok(Reply::json(
        200,
        json!({"tags": tags(&project), "links": {"self": link, "previous": null, "next": null}}),
    ))
}

/// GET /projects/ID/tags/TAG
///
/// # Errors
/// 404
pub async fn has_tag(call: Call<App>) -> Outcome {
    let project = crud::get(&call, &PROJECTS).await?;
    if tags(&project).contains(call.path("tag")) {
        Ok(Reply::empty(204))
    } else {
        Err(Fault::not_found(format!("Could not find project tag: {}.", call.path("tag"))))
    }
}

async fn change_tags(
    call: &Call<App>,
    alter: impl Fn(&mut BTreeSet<String>) -> Result<(), Fault> + Sync,
) -> Result<BTreeSet<String>, Fault> {
    crud::get(call, &PROJECTS).await?;
    let (id, alter) = (call.path("id"), &alter);
    change(&call.app, |tx| async move {
        let mut project = PROJECTS.get(&tx, id).await?;
        let mut tags = tags(&project);
        alter(&mut tags)?;
        project.insert("tags".to_owned(), json!(tags));
        PROJECTS.put(&tx, &project).await?;
        Ok(tags)
    })
    .await
}

/// PUT /projects/ID/tags
///
/// # Errors
/// 404
pub async fn set_tags(call: Call<App>) -> Outcome {
    let new = tags(&call.body.as_object().cloned().unwrap_or_default());
    let tags = change_tags(&call, |tags| {
        tags.clone_from(&new);
        Ok(())
    })
    .await?;
    let link = format!("{}/v3/projects/{}/tags", call.base, call.path("id"));
    Ok(Reply::json(200, json!({"tags": tags, "links": {"self": link, "previous": null, "next": null}})))
}

/// PUT /projects/ID/tags/TAG
///
/// # Errors
/// 400 for a tag that is not allowed, or one too many.
pub async fn add_tag(call: Call<App>) -> Outcome {
    let tag = call.path("tag").to_owned();
    if tag.is_empty() || tag.len() > 255 || tag.contains([',', '/']) {
        return Err(Fault::bad_request("A tag has 1 to 255 characters, and no comma or slash among them."));
    }
    change_tags(&call, |tags| {
        tags.insert(tag.clone());
        if tags.len() > 80 {
            return Err(Fault::bad_request("A project has at most 80 tags."));
        }
        Ok(())
    })
    .await?;
    let link = format!("{}/v3/projects/{}/tags/{tag}", call.base, call.path("id"));
    Ok(Reply::empty(201).header("location", link))
}

/// DELETE /projects/ID/tags
///
/// # Errors
/// 404
pub async fn clear_tags(call: Call<App>) -> Outcome {
    change_tags(&call, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::empty(204))
}

/// DELETE /projects/ID/tags/TAG
///
/// # Errors
/// 404
pub async fn remove_tag(call: Call<App>) -> Outcome {
    let tag = call.path("tag");
    change_tags(&call, |tags| {
        if tags.remove(tag) {
            Ok(())
        } else {
            Err(Fault::not_found(format!("Could not find project tag: {tag}.")))
        }
    })
    .await?;
    Ok(Reply::empty(204))
}
