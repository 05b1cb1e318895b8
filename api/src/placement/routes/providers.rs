//! Resource providers and their inventories, aggregates and traits.

use super::super::records::{self, Inventory, Labels, Names, Provider, Resources};
use super::super::rules::{self, Refusal};
use super::names::known_class;
use super::{AGGREGATES, ALLOCATIONS_LINK, RESOURCES_FILTER, TRAITS};
use crate::app::App;
use api_kit::{Call, Fault, Micro, Outcome, Reply};
use base::store::StoreError;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(super) fn show(it: &Provider, version: Micro) -> Value {
    let own = format!("/placement/resource_providers/{}", it.uuid);
    let mut links = vec![
        json!({"rel": "self", "href": own}),
        json!({"rel": "inventories", "href": format!("{own}/inventories")}),
        json!({"rel": "usages", "href": format!("{own}/usages")}),
    ];
    if version >= AGGREGATES {
        links.push(json!({"rel": "aggregates", "href": format!("{own}/aggregates")}));
    }
    if version >= TRAITS {
        links.push(json!({"rel": "traits", "href": format!("{own}/traits")}));
    }
    if version >= ALLOCATIONS_LINK {
        links.push(json!({"rel": "allocations", "href": format!("{own}/allocations")}));
    }
    json!({"uuid": it.uuid, "name": it.name, "generation": it.generation, "links": links})
}

/// `VCPU:2,MEMORY_MB:512`
pub(super) fn parse_resources(text: &str) -> Result<Resources, Fault> {
    let bad = || {
        Fault::bad_request(format!(
            "Badly formed resources parameter. Expected resources query string parameter in form: ?resources=VCPU:2,MEMORY_MB:1024. Got: {}.",
            text.chars().take(200).collect::<String>()
        ))
    };
    let mut out = Resources::new();
    for part in text.split(',') {
        let (class, amount) = part.split_once(':').ok_or_else(bad)?;
        let amount: i64 = amount.parse().map_err(|_| bad())?;
        if amount < 1 || class.is_empty() {
            return Err(bad());
        }
        out.insert(class.to_owned(), amount);
    }
    Ok(out)
}

pub(super) async fn provider(call: &Call<App>) -> Result<Provider, Fault> {
    let uuid = call.path("uuid");
    let found = records::provider_by_id(&call.app.store, uuid).await?;
    found.ok_or_else(|| Refusal::NoProvider(uuid.chars().take(64).collect()).into())
}

pub(super) async fn list_providers(call: Call<App>) -> Outcome {
    let (name, uuid) = (call.query.get("name"), call.query.get("uuid"));
    let mut found = records::providers(&call.app.store, name, uuid).await?;
    if let Some(groups) = call.query.get("member_of") {
        let groups: Vec<&str> = groups.strip_prefix("in:").unwrap_or(groups).split(',').collect();
        let mut kept = Vec::new();
        for it in found {
            let own = records::labels(&call.app.store, Labels::Aggregates, &it.uuid).await?;
            if own.iter().any(|label| groups.contains(&label.as_str())) {
                kept.push(it);
            }
        }
        found = kept;
    }
    if let Some(text) = call.query.get("resources").filter(|_| call.version >= RESOURCES_FILTER) {
        let wanted = parse_resources(text)?;
        let mut kept = Vec::new();
        for it in found {
            if rules::room(&call.app.store, it.clone()).await?.shortages(&wanted).is_empty() {
                kept.push(it);
            }
        }
        found = kept;
    }
    let all: Vec<Value> = found.iter().map(|it| show(it, call.version)).collect();
    Ok(Reply::json(200, json!({"resource_providers": all})))
}

pub(super) async fn create_provider(call: Call<App>) -> Outcome {
    let name = call.inner("name").as_str().unwrap_or_default();
    let uuid =
        call.inner("uuid").as_str().map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_lowercase);
    let id = uuid.as_str();
    let made = call
        .app
        .store
        .tx(|tx| async move { records::insert_provider(&tx, id, name, &api_kit::time::now()).await })
        .await;
    match made {
        Err(StoreError::Duplicate(_)) => {
            return Err(Fault::conflict(format!(
                "Conflicting resource provider name: {name} already exists."
            )));
        }
        other => other?,
    }
    let url = format!("{}/resource_providers/{uuid}", call.base);
    Ok(Reply::empty(201).header("location", url))
}

pub(super) async fn show_provider(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, show(&provider(&call).await?, call.version)))
}

pub(super) async fn update_provider(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let (uuid, name) = (it.uuid.as_str(), call.inner("name").as_str().unwrap_or_default());
    let done = call
        .app
        .store
        .tx(|tx| async move { records::rename_provider(&tx, uuid, name, &api_kit::time::now()).await })
        .await;
    match done {
        Err(StoreError::Duplicate(_)) => {
            Err(Fault::conflict(format!("Conflicting resource provider name: {name} already exists.")))
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Reply::json(200, show(&Provider { name: name.to_owned(), ..it.clone() }, call.version))),
    }
}

pub(super) async fn delete_provider(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let uuid = it.uuid.as_str();
    call.app
        .store
        .tx(|tx| async move {
            if !records::usage(&tx, uuid).await?.is_empty() {
                let text =
                    format!("Unable to delete resource provider {uuid}: Resource provider has allocations.");
                return Err(Refusal::InUse(text));
            }
            Ok(records::delete_provider(&tx, uuid).await?)
        })
        .await?;
    Ok(Reply::empty(204))
}

pub(super) async fn provider_usages(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let used = records::usage(&call.app.store, &it.uuid).await?;
    let classes = records::inventories(&call.app.store, &it.uuid).await?;
    let usages: Map<String, Value> = classes
        .into_keys()
        .map(|class| (class.clone(), json!(used.get(&class).copied().unwrap_or(0))))
        .collect();
    Ok(Reply::json(200, json!({"resource_provider_generation": it.generation, "usages": usages})))
}

pub(super) async fn provider_allocations(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let held = records::of_provider(&call.app.store, &it.uuid).await?;
    let held: Map<String, Value> =
        held.into_iter().map(|(consumer, resources)| (consumer, json!({"resources": resources}))).collect();
    Ok(Reply::json(200, json!({"resource_provider_generation": it.generation, "allocations": held})))
}

pub(super) async fn show_aggregates(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let own = records::labels(&call.app.store, Labels::Aggregates, &it.uuid).await?;
    Ok(Reply::json(200, json!({"aggregates": own})))
}

fn strings(value: &Value) -> Vec<String> {
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

pub(super) async fn put_aggregates(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let (uuid, labels) = (it.uuid.as_str(), strings(&call.body));
    let given = &labels;
    call.app
        .store
        .tx(|tx| async move { records::put_labels(&tx, Labels::Aggregates, uuid, given).await })
        .await?;
    Ok(Reply::json(200, json!({"aggregates": labels})))
}

pub(super) async fn show_traits(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let own = records::labels(&call.app.store, Labels::Traits, &it.uuid).await?;
    Ok(Reply::json(200, json!({"resource_provider_generation": it.generation, "traits": own})))
}

pub(super) async fn put_traits(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let (uuid, labels) = (it.uuid.as_str(), strings(call.inner("traits")));
    let known = call.inner("resource_provider_generation").as_i64();
    let given = &labels;
    let unknown = call
        .app
        .store
        .tx(|tx| async move {
            rules::at_generation(&tx, uuid, known).await?;
            let names = records::names(&tx, Names::Traits).await?;
            let unknown: Vec<String> = given.iter().filter(|label| !names.contains(label)).cloned().collect();
            if unknown.is_empty() {
                records::bump(&tx, uuid, &api_kit::time::now()).await?;
                records::put_labels(&tx, Labels::Traits, uuid, given).await?;
            }
            Ok::<_, Refusal>(unknown)
        })
        .await?;
    if !unknown.is_empty() {
        return Err(Fault::bad_request(format!("No such trait(s): {}.", unknown.join(", "))));
    }
    let generation = it.generation + 1;
    Ok(Reply::json(200, json!({"resource_provider_generation": generation, "traits": labels})))
}

fn shown(it: &Inventory) -> Value {
    json!({"total": it.total, "reserved": it.reserved, "min_unit": it.min_unit, "max_unit": it.max_unit,
        "step_size": it.step_size, "allocation_ratio": it.ratio})
}

fn given(value: &Value) -> Result<Inventory, Fault> {
    let number = |name: &str, or: i64| value.get(name).and_then(Value::as_i64).unwrap_or(or);
    let it = Inventory {
        total: number("total", 0),
        reserved: number("reserved", 0),
        min_unit: number("min_unit", 1),
        max_unit: number("max_unit", i64::from(i32::MAX)),
        step_size: number("step_size", 1),
        ratio: value.get("allocation_ratio").and_then(Value::as_f64).unwrap_or(1.0),
    };
    if it.reserved > it.total {
        return Err(Fault::bad_request("Invalid inventory: the reserved value is greater than total."));
    }
    Ok(it)
}

fn inventories_body(generation: i64, all: &BTreeMap<String, Inventory>) -> Value {
    let all: Map<String, Value> = all.iter().map(|(class, it)| (class.clone(), shown(it))).collect();
    json!({"resource_provider_generation": generation, "inventories": all})
}

pub(super) async fn list_inventories(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let all = records::inventories(&call.app.store, &it.uuid).await?;
    Ok(Reply::json(200, inventories_body(it.generation, &all)))
}

pub(super) async fn replace(
    call: &Call<App>,
    uuid: &str,
    known: Option<i64>,
    wanted: &BTreeMap<String, Inventory>,
) -> Result<Provider, Fault> {
    for class in wanted.keys() {
        if !known_class(call, class).await? {
            return Err(Fault::bad_request(format!(
                "Unknown resource class in inventory: No such resource class {class}."
            )));
        }
    }
    let done =
        call.app.store.tx(|tx| async move { rules::put_inventories(&tx, uuid, known, wanted).await }).await?;
    Ok(done)
}

pub(super) async fn put_inventories(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let mut wanted = BTreeMap::new();
    for (class, value) in call.inner("inventories").as_object().into_iter().flatten() {
        wanted.insert(class.clone(), given(value)?);
    }
    let known = call.inner("resource_provider_generation").as_i64();
    let now = replace(&call, &it.uuid, known, &wanted).await?;
    Ok(Reply::json(200, inventories_body(now.generation, &wanted)))
}

pub(super) async fn delete_inventories(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    replace(&call, &it.uuid, None, &BTreeMap::new()).await?;
    Ok(Reply::empty(204))
}

pub(super) async fn inventory(call: &Call<App>) -> Result<(Provider, BTreeMap<String, Inventory>), Fault> {
    let it = provider(call).await?;
    let all = records::inventories(&call.app.store, &it.uuid).await?;
    if all.contains_key(call.path("class")) {
        return Ok((it, all));
    }
    let class: String = call.path("class").chars().take(64).collect();
    Err(Fault::not_found(format!("No inventory of class {class} for {}", it.uuid)))
}

pub(super) async fn show_inventory(call: Call<App>) -> Outcome {
    let (it, all) = inventory(&call).await?;
    let mut body = all.get(call.path("class")).map(shown).unwrap_or_default();
    body["resource_provider_generation"] = json!(it.generation);
    Ok(Reply::json(200, body))
}

pub(super) async fn put_inventory(call: Call<App>) -> Outcome {
    let (it, mut all) = inventory(&call).await?;
    let fresh = given(&call.body)?;
    all.insert(call.path("class").to_owned(), fresh.clone());
    let known = call.inner("resource_provider_generation").as_i64();
    let now = replace(&call, &it.uuid, known, &all).await?;
    let mut body = shown(&fresh);
    body["resource_provider_generation"] = json!(now.generation);
    Ok(Reply::json(200, body))
}

pub(super) async fn delete_inventory(call: Call<App>) -> Outcome {
    let (it, mut all) = inventory(&call).await?;
    all.remove(call.path("class"));
    replace(&call, &it.uuid, Some(it.generation), &all).await?;
    Ok(Reply::empty(204))
}
