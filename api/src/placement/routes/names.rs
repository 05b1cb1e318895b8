//! Resource classes and traits: names that an administrator may add to.

use super::super::records::{self, Names};
use super::super::rules;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply};
use serde_json::{Value, json};

pub(super) async fn known_class(call: &Call<App>, class: &str) -> Result<bool, Fault> {
    Ok(rules::STANDARD_CLASSES.contains(&class)
        || records::names(&call.app.store, Names::Classes).await?.iter().any(|name| name == class))
}

fn class_body(name: &str) -> Value {
    json!({"name": name, "links": [{"rel": "self", "href": format!("/placement/resource_classes/{name}")}]})
}

pub(super) async fn list_classes(call: Call<App>) -> Outcome {
    let custom = records::names(&call.app.store, Names::Classes).await?;
    let all = rules::STANDARD_CLASSES.iter().copied().chain(custom.iter().map(String::as_str));
    Ok(Reply::json(200, json!({"resource_classes": all.map(class_body).collect::<Vec<_>>()})))
}

async fn add(call: &Call<App>, kind: Names, name: &str) -> Result<bool, Fault> {
    let rest = name.strip_prefix("CUSTOM_").unwrap_or_default();
    let plain = rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if rest.is_empty() || name.len() > 255 || !plain {
        return Err(Fault::bad_request(
            "The name must start with 'CUSTOM_' and hold only A-Z, 0-9 and '_', at most 255 characters.",
        ));
    }
    Ok(call.app.store.tx(|tx| async move { records::add_name(&tx, kind, name).await }).await?)
}

pub(super) async fn create_class(call: Call<App>) -> Outcome {
    let name = call.inner("name").as_str().unwrap_or_default();
    if !add(&call, Names::Classes, name).await? {
        return Err(Fault::conflict(format!("Conflicting resource class already exists: {name}")));
    }
    Ok(Reply::empty(201).header("location", format!("{}/resource_classes/{name}", call.base)))
}

pub(super) async fn show_class(call: Call<App>) -> Outcome {
    let name = call.path("name");
    if known_class(&call, name).await? {
        return Ok(Reply::json(200, class_body(name)));
    }
    let name: String = name.chars().take(64).collect();
    Err(Fault::not_found(format!("No such resource class {name}.")))
}

pub(super) async fn put_class(call: Call<App>) -> Outcome {
    let name = call.path("name");
    let code = if add(&call, Names::Classes, name).await? { 201 } else { 204 };
    Ok(Reply::empty(code).header("location", format!("{}/resource_classes/{name}", call.base)))
}

async fn remove(call: &Call<App>, kind: Names, what: &str) -> Outcome {
    let name = call.path("name");
    if !name.starts_with("CUSTOM_") {
        let shown: String = name.chars().take(64).collect();
        return Err(Fault::bad_request(format!("Cannot delete standard {what} {shown}.")));
    }
    call.app
        .store
        .tx(|tx| async move {
            if records::name_in_use(&tx, kind, name).await? {
                return Err(Fault::conflict(format!("The {what} {name} is in use by a resource provider.")));
            }
            match records::delete_name(&tx, kind, name).await? {
                true => Ok(()),
                false => Err(Fault::not_found(format!("No such {what} {name}."))),
            }
        })
        .await?;
    Ok(Reply::empty(204))
}

pub(super) async fn delete_class(call: Call<App>) -> Outcome {
    remove(&call, Names::Classes, "resource class").await
}

pub(super) async fn list_traits(call: Call<App>) -> Outcome {
    let mut names = records::names(&call.app.store, Names::Traits).await?;
    match call.query.get("name") {
        None => (),
        Some(filter) => {
            if let Some(prefix) = filter.strip_prefix("startswith:") {
                names.retain(|name| name.starts_with(prefix));
            } else if let Some(list) = filter.strip_prefix("in:") {
                names.retain(|name| list.split(',').any(|it| it == name));
            } else {
                return Err(Fault::bad_request(
                    "Badly formatted name parameter. Expected name query string parameter in form: ?name=[in|startswith]:[name1,name2|prefix].",
                ));
            }
        }
    }
    if let Some(wanted) = call.query.truth("associated")? {
        let mut kept = Vec::new();
        for name in names {
            if records::name_in_use(&call.app.store, Names::Traits, &name).await? == wanted {
                kept.push(name);
            }
        }
        names = kept;
    }
    Ok(Reply::json(200, json!({"traits": names})))
}

pub(super) async fn show_trait(call: Call<App>) -> Outcome {
    let name = call.path("name");
    if records::names(&call.app.store, Names::Traits).await?.iter().any(|it| it == name) {
        return Ok(Reply::empty(204));
    }
    let name: String = name.chars().take(64).collect();
    Err(Fault::not_found(format!("No such trait {name}.")))
}

pub(super) async fn put_trait(call: Call<App>) -> Outcome {
    let name = call.path("name");
    let code = if add(&call, Names::Traits, name).await? { 201 } else { 204 };
    Ok(Reply::empty(code).header("location", format!("{}/traits/{name}", call.base)))
}

pub(super) async fn delete_trait(call: Call<App>) -> Outcome {
    remove(&call, Names::Traits, "trait").await
}
