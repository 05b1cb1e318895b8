//! Volume types: what an administrator offers, and who may use it.

use super::records::Pairs;
use super::rules::{cut_text, pairs, text};
use super::type_rows::{self as rows, Kind};
use super::view;
use crate::app::App;
use api_kit::time::now;
use api_kit::{Call, Caller, Fault, Outcome, Reply};
use base::store::{Query, StoreError};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// 404 in cinder's words.
pub(super) fn missing(id: &str) -> Fault {
    Fault::not_found(format!("Volume type {} could not be found.", cut_text(id)))
}

fn sees(caller: &Caller, kind: &Kind) -> bool {
    let project = caller.project_id.as_deref().unwrap_or_default();
    caller.is_admin || kind.is_public || kind.access.contains(project)
}

/// The type with this id or name, when the caller may use it.
///
/// # Errors
/// When the database fails.
pub(super) async fn named(
    query: &impl Query,
    caller: &Caller,
    name: &str,
) -> Result<Option<Kind>, StoreError> {
    let all = rows::all(query).await?;
    let found = all.iter().find(|kind| kind.id == name).or_else(|| all.iter().find(|kind| kind.name == name));
    Ok(found.filter(|kind| sees(caller, kind)).cloned())
}

async fn find(call: &Call<App>) -> Result<Kind, Fault> {
    let id = call.path("type_id");
    let id = if id == "default" { view::TYPE_ID } else { id };
    let found = named(&call.app.store, &call.caller, id).await?;
    found.ok_or_else(|| missing(id))
}

pub(super) async fn list(call: Call<App>) -> Outcome {
    let asked = match call.query.get("is_public") {
        Some(word) if word.eq_ignore_ascii_case("none") => None,
        Some(_) => call.query.truth("is_public")?,
        None => None,
    };
    let all = rows::all(&call.app.store).await?;
    let shown = all.iter().filter(|kind| sees(&call.caller, kind));
    // Only an administrator may ask for the one sort or the other.
    let shown =
        shown.filter(|kind| !call.caller.is_admin || asked.is_none_or(|public| kind.is_public == public));
    let shown: Vec<Value> = shown.map(|kind| view::volume_type(&call, kind)).collect();
    Ok(Reply::json(200, json!({"volume_types": shown})))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let kind = find(&call).await?;
    Ok(Reply::json(200, json!({"volume_type": view::volume_type(&call, &kind)})))
}

fn truth(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(it) => Some(*it),
        Value::String(it) => {
            Some(matches!(it.to_lowercase().as_str(), "1" | "true" | "t" | "yes" | "y" | "on"))
        }
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn taken(error: StoreError, name: &str) -> Fault {
    match error {
        StoreError::Duplicate(_) => {
            Fault::conflict(format!("Volume Type {} already exists.", cut_text(name)))
        }
        other => other.into(),
    }
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("volume_type");
    let name = text(body, "name").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| {
        Fault::bad_request("Invalid input for field/attribute name. Value: ''. it has at least 1 character")
    })?;
    let kind = Kind {
        id: Uuid::new_v4().hyphenated().to_string(),
        name,
        description: text(body, "description"),
        is_public: truth(body.get("os-volume-type-access:is_public")).unwrap_or(true),
        extra_specs: pairs(body.get("extra_specs").unwrap_or(&Value::Null)),
        access: BTreeSet::new(),
        qos_specs_id: None,
        created_at: now(),
    };
    let new = &kind;
    let made = call.app.store.tx(|tx| async move { rows::insert(&tx, new).await }).await;
    made.map_err(|error| taken(error, &kind.name))?;
    Ok(Reply::json(200, json!({"volume_type": view::volume_type(&call, &kind)})))
}

/// Changes the type of the path in one transaction.
async fn change<T: Send>(
    call: &Call<App>,
    how: impl Fn(&mut Kind) -> Result<T, Fault> + Send + Sync,
) -> Result<(Kind, T), Fault> {
    let (id, how) = (find(call).await?.id, &how);
    let id = id.as_str();
    call.app
        .store
        .tx(|tx| async move {
            let mut kind = rows::get(&tx, id).await?.ok_or_else(|| missing(id))?;
            let out = how(&mut kind)?;
            rows::update(&tx, &kind).await.map_err(|error| taken(error, &kind.name))?;
            Ok((kind, out))
        })
        .await
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let body = call.inner("volume_type");
    let (kind, ()) = change(&call, |kind| {
        match body.get("name") {
            None | Some(Value::Null) => (),
            Some(_) => {
                let name = text(body, "name").map(|name| name.trim().to_owned());
                kind.name = name
                    .filter(|name| !name.is_empty())
                    .ok_or_else(|| Fault::bad_request("Volume type name can not be empty."))?;
            }
        }
        if body.get("description").is_some() {
            kind.description = text(body, "description");
        }
        if let Some(public) =
            truth(body.get("is_public").or_else(|| body.get("os-volume-type-access:is_public")))
        {
            kind.is_public = public;
        }
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, json!({"volume_type": view::volume_type(&call, &kind)})))
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let kind = find(&call).await?;
    if kind.id == view::TYPE_ID {
        return Err(Fault::bad_request(
            "The volume type __DEFAULT__ is the only volume type and cannot be deleted.",
        ));
    }
    let id = kind.id.as_str();
    call.app
        .store
        .tx(|tx| async move {
            if rows::is_used(&tx, id).await? {
                return Err(Fault::bad_request("Target volume type is still in use."));
            }
            Ok(rows::delete(&tx, id).await?)
        })
        .await?;
    Ok(Reply::empty(202))
}

fn no_spec(call: &Call<App>) -> Fault {
    let (id, key) = (cut_text(call.path("type_id")), cut_text(call.path("key")));
    Fault::not_found(format!("Volume Type {id} has no extra specs with key {key}."))
}

fn specs(call: &Call<App>, kind: &Kind) -> Pairs {
    if call.caller.is_admin { kind.extra_specs.clone() } else { Pairs::new() }
}

pub(super) async fn specs_list(call: Call<App>) -> Outcome {
    let kind = find(&call).await?;
    Ok(Reply::json(200, json!({"extra_specs": specs(&call, &kind)})))
}

pub(super) async fn specs_add(call: Call<App>) -> Outcome {
    let new = pairs(call.inner("extra_specs"));
    change(&call, |kind| {
        kind.extra_specs.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, json!({"extra_specs": new})))
}

pub(super) async fn spec_show(call: Call<App>) -> Outcome {
    let kind = find(&call).await?;
    let all = specs(&call, &kind);
    let value = all.get(call.path("key")).ok_or_else(|| no_spec(&call))?;
    Ok(Reply::json(200, json!({call.path("key"): value})))
}

pub(super) async fn spec_put(call: Call<App>) -> Outcome {
    let new = pairs(&call.body);
    if !new.contains_key(call.path("key")) {
        return Err(Fault::bad_request("Request body and URI mismatch"));
    }
    change(&call, |kind| {
        kind.extra_specs.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, json!(new)))
}

pub(super) async fn spec_delete(call: Call<App>) -> Outcome {
    change(&call, |kind| kind.extra_specs.remove(call.path("key")).ok_or_else(|| no_spec(&call))).await?;
    Ok(Reply::empty(202))
}

pub(super) async fn access(call: Call<App>) -> Outcome {
    let kind = find(&call).await?;
    if kind.is_public {
        return Err(Fault::not_found("Access list not available for public volume types."));
    }
    let all: Vec<Value> =
        kind.access.iter().map(|project| json!({"volume_type_id": kind.id, "project_id": project})).collect();
    Ok(Reply::json(200, json!({"volume_type_access": all})))
}

pub(super) async fn add_access(call: Call<App>) -> Outcome {
    let project = call.inner("addProjectAccess")["project"].as_str().unwrap_or_default();
    change(&call, |kind| {
        if kind.is_public {
            return Err(Fault::conflict("Type access modification is not applicable to public volume type."));
        }
        if !kind.access.insert(project.to_owned()) {
            let (id, project) = (&kind.id, cut_text(project));
            return Err(Fault::conflict(format!(
                "Volume type access for {id} / {project} combination already exists."
            )));
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty(202))
}

pub(super) async fn remove_access(call: Call<App>) -> Outcome {
    let project = call.inner("removeProjectAccess")["project"].as_str().unwrap_or_default();
    change(&call, |kind| {
        if !kind.access.remove(project) {
            let (id, project) = (&kind.id, cut_text(project));
            return Err(Fault::not_found(format!(
                "Volume type access not found for {id} / {project} combination."
            )));
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty(202))
}
