//! What consumers hold, and where more would fit.

use super::super::records::{self, Resources};
use super::super::rules::{self, Owner, Refusal};
use super::DICT;
use super::names::known_class;
use super::providers::parse_resources;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(super) async fn show_allocations(call: Call<App>) -> Outcome {
    let consumer = call.path("consumer");
    let mut all = Map::new();
    for (uuid, resources) in records::of_consumer(&call.app.store, consumer).await? {
        let generation = records::provider_by_id(&call.app.store, &uuid).await?.map_or(0, |it| it.generation);
        all.insert(uuid, json!({"generation": generation, "resources": resources}));
    }
    let mut body = json!({"allocations": all});
    if call.version >= DICT
        && let Some((project, user)) = records::consumer(&call.app.store, consumer).await?
    {
        body["project_id"] = json!(project);
        body["user_id"] = json!(user);
    }
    Ok(Reply::json(200, body))
}

fn amounts(value: &Value) -> Resources {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(class, amount)| Some((class.clone(), amount.as_i64()?))).collect()
}

pub(super) async fn put_allocations(call: Call<App>) -> Outcome {
    let consumer = call.path("consumer");
    if uuid::Uuid::parse_str(consumer).is_err() {
        return Err(Fault::bad_request("Malformed allocation data: the consumer is not a UUID."));
    }
    let mut wanted = BTreeMap::new();
    match call.inner("allocations") {
        Value::Array(list) => {
            for it in list {
                let uuid = it.pointer("/resource_provider/uuid").and_then(Value::as_str).unwrap_or_default();
                wanted.insert(uuid.to_owned(), amounts(&it["resources"]));
            }
        }
        other => {
            for (uuid, it) in other.as_object().into_iter().flatten() {
                wanted.insert(uuid.to_lowercase(), amounts(&it["resources"]));
            }
        }
    }
    // Before 1.8 nobody said whose they are.
    let text = |name| call.inner(name).as_str().unwrap_or("00000000-0000-0000-0000-000000000000");
    let owner = Owner { project: text("project_id"), user: text("user_id"), kind: "" };
    match rules::put(&call.app.store, consumer, owner, &wanted).await {
        Err(refusal @ Refusal::NoProvider(_)) => Err(Fault::bad_request(format!(
            "Allocation for resource provider that does not exist: {refusal}"
        ))),
        other => {
            other?;
            Ok(Reply::empty(204))
        }
    }
}

pub(super) async fn delete_allocations(call: Call<App>) -> Outcome {
    let consumer = call.path("consumer");
    if records::of_consumer(&call.app.store, consumer).await?.is_empty() {
        let consumer: String = consumer.chars().take(64).collect();
        return Err(Fault::not_found(format!("No allocations for consumer '{consumer}'")));
    }
    rules::put(&call.app.store, consumer, Owner { project: "", user: "", kind: "" }, &BTreeMap::new())
        .await?;
    Ok(Reply::empty(204))
}

pub(super) async fn candidates(call: Call<App>) -> Outcome {
    let text = call.query.get("resources").ok_or_else(|| {
        Fault::bad_request("Invalid query string parameters: 'resources' is a required property")
    })?;
    let wanted = parse_resources(text)?;
    for class in wanted.keys() {
        if !known_class(&call, class).await? {
            return Err(Fault::bad_request(format!(
                "Invalid resource class in resources parameter: {class}"
            )));
        }
    }
    let (mut requests, mut summaries) = (Vec::new(), Map::new());
    for room in rules::rooms(&call.app.store).await? {
        if !room.shortages(&wanted).is_empty() {
            continue;
        }
        let uuid = &room.provider.uuid;
        requests.push(if call.version >= DICT {
            json!({"allocations": {uuid: {"resources": wanted}}})
        } else {
            json!({"allocations": [{"resource_provider": {"uuid": uuid}, "resources": wanted}]})
        });
        let amounts: Map<String, Value> = wanted
            .keys()
            .filter_map(|class| {
                let capacity = room.inventories.get(class)?.capacity();
                let used = room.used.get(class).copied().unwrap_or(0);
                Some((class.clone(), json!({"capacity": capacity, "used": used})))
            })
            .collect();
        summaries.insert(uuid.clone(), json!({"resources": amounts}));
    }
    Ok(Reply::json(200, json!({"allocation_requests": requests, "provider_summaries": summaries})))
}

pub(super) async fn usages(call: Call<App>) -> Outcome {
    let project = call.query.get("project_id").ok_or_else(|| {
        Fault::bad_request("Invalid query string parameters: 'project_id' is a required property")
    })?;
    call.enforce(&api_kit::Target::project(project))?;
    let used = records::project_usage(&call.app.store, project, call.query.get("user_id")).await?;
    Ok(Reply::json(200, json!({"usages": used})))
}
