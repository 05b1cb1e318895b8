//! The operations of placement, versions 1.0 to 1.12.

use super::records::{self, Inventory, Labels, Names, Provider, Resources};
use super::rules::{self, Owner, Refusal};
use super::schema;
use crate::app::App;
use api_kit::{Call, Fault, FaultStyle, Micro, MicroRange, Operation, Outcome, Reply, Service};
use axum::http::Method;
use base::store::StoreError;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const MAX: Micro = Micro(1, 12);
/// Aggregates.
const AGGREGATES: Micro = Micro(1, 1);
/// Custom resource classes.
const CLASSES: Micro = Micro(1, 2);
/// `resources` as a filter of providers.
const RESOURCES_FILTER: Micro = Micro(1, 4);
/// All inventories of a provider may be removed at once.
const DELETE_INVENTORIES: Micro = Micro(1, 5);
/// Traits.
const TRAITS: Micro = Micro(1, 6);
/// `PUT` of a class makes it.
const CLASS_PUT: Micro = Micro(1, 7);
/// Allocations name their project and user.
const OWNERS: Micro = Micro(1, 8);
/// Usages of a project.
const USAGES: Micro = Micro(1, 9);
/// Allocation candidates.
const CANDIDATES: Micro = Micro(1, 10);
/// Providers link to their allocations.
const ALLOCATIONS_LINK: Micro = Micro(1, 11);
/// Allocations are written as they are read.
const DICT: Micro = Micro(1, 12);

const ADMIN: &str = "rule:admin_api";

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NoProvider(_) => Self::not_found(text),
            Refusal::NoInventory { .. } => Self::bad_request(text),
            Refusal::Generation { .. } | Refusal::NoRoom { .. } | Refusal::InUse(_) => Self::conflict(text),
            Refusal::Store(error) => error.into(),
        }
    }
}

/// The declaration.
#[must_use]
pub fn service() -> Service<App> {
    let get = |path, handler| Operation::new(Method::GET, path, handler);
    Service::new("placement", "placement", "/placement", FaultStyle::Placement)
        .micro(MicroRange { word: "placement", legacy: None, min: Micro(1, 0), max: MAX })
        .operations([get("/", versions)
            .name("versions:list")
            .open()
            .codes(200, &[])
            .summary("List versions")])
        .operations(provider_operations())
        .operations(inventory_operations())
        .operations(other_operations())
}

fn provider_operations() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/resource_providers", list_providers)
            .name("providers:list")
            .policy("placement:resource_providers:list", ADMIN)
            .query(&["name", "uuid", "member_of", "resources"])
            .codes(200, &[400, 401, 403])
            .summary("List resource providers"),
        Operation::new(Method::POST, "/resource_providers", create_provider)
            .name("providers:create")
            .policy("placement:resource_providers:create", ADMIN)
            .body(schema::PROVIDER)
            .codes(201, &[400, 401, 403, 409])
            .summary("Create a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}", show_provider)
            .name("providers:show")
            .policy("placement:resource_providers:show", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("Show a resource provider"),
        Operation::new(Method::PUT, "/resource_providers/{uuid}", update_provider)
            .name("providers:update")
            .policy("placement:resource_providers:update", ADMIN)
            .body(schema::PROVIDER_UPDATE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Rename a resource provider"),
        Operation::new(Method::DELETE, "/resource_providers/{uuid}", delete_provider)
            .name("providers:delete")
            .policy("placement:resource_providers:delete", ADMIN)
            .codes(204, &[401, 403, 404, 409])
            .summary("Delete a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/usages", provider_usages)
            .name("providers:usages")
            .policy("placement:resource_providers:usages", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("What is used of a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/allocations", provider_allocations)
            .name("providers:allocations")
            .policy("placement:resource_providers:allocations:list", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("Who uses a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/aggregates", show_aggregates)
            .name("providers:aggregates")
            .policy("placement:resource_providers:aggregates:list", ADMIN)
            .since(AGGREGATES)
            .codes(200, &[401, 403, 404])
            .summary("List a resource provider's aggregates"),
        Operation::new(Method::PUT, "/resource_providers/{uuid}/aggregates", put_aggregates)
            .name("providers:set-aggregates")
            .policy("placement:resource_providers:aggregates:update", ADMIN)
            .since(AGGREGATES)
            .body(schema::AGGREGATES)
            .codes(200, &[400, 401, 403, 404])
            .summary("Replace a resource provider's aggregates"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/traits", show_traits)
            .name("providers:traits")
            .policy("placement:resource_providers:traits:list", ADMIN)
            .since(TRAITS)
            .codes(200, &[401, 403, 404])
            .summary("List a resource provider's traits"),
        Operation::new(Method::PUT, "/resource_providers/{uuid}/traits", put_traits)
            .name("providers:set-traits")
            .policy("placement:resource_providers:traits:update", ADMIN)
            .since(TRAITS)
            .body(schema::PROVIDER_TRAITS)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Replace a resource provider's traits"),
    ]
}

fn inventory_operations() -> Vec<Operation<App>> {
    let path = "/resource_providers/{uuid}/inventories";
    let one = "/resource_providers/{uuid}/inventories/{class}";
    vec![
        Operation::new(Method::GET, path, list_inventories)
            .name("inventories:list")
            .policy("placement:resource_providers:inventories:list", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("List a resource provider's inventories"),
        Operation::new(Method::PUT, path, put_inventories)
            .name("inventories:replace")
            .policy("placement:resource_providers:inventories:update", ADMIN)
            .body(schema::INVENTORIES)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Replace a resource provider's inventories"),
        Operation::new(Method::DELETE, path, delete_inventories)
            .name("inventories:clear")
            .policy("placement:resource_providers:inventories:delete", ADMIN)
            .since(DELETE_INVENTORIES)
            .codes(204, &[401, 403, 404, 409])
            .summary("Remove a resource provider's inventories"),
        Operation::new(Method::GET, one, show_inventory)
            .name("inventories:show")
            .policy("placement:resource_providers:inventories:show", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("Show one inventory"),
        Operation::new(Method::PUT, one, put_inventory)
            .name("inventories:update")
            .policy("placement:resource_providers:inventories:update", ADMIN)
            .body(schema::INVENTORY)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Change one inventory"),
        Operation::new(Method::DELETE, one, delete_inventory)
            .name("inventories:delete")
            .policy("placement:resource_providers:inventories:delete", ADMIN)
            .codes(204, &[401, 403, 404, 409])
            .summary("Remove one inventory"),
    ]
}

fn other_operations() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/allocations/{consumer}", show_allocations)
            .name("allocations:show")
            .policy("placement:allocations:list", ADMIN)
            .codes(200, &[401, 403])
            .summary("What a consumer holds"),
        Operation::new(Method::PUT, "/allocations/{consumer}", put_allocations)
            .name("allocations:replace")
            .policy("placement:allocations:update", ADMIN)
            .body(schema::ALLOCATIONS)
            .body_from(OWNERS, schema::ALLOCATIONS_1_8)
            .body_from(DICT, schema::ALLOCATIONS_1_12)
            .codes(204, &[400, 401, 403, 409])
            .summary("Replace what a consumer holds"),
        Operation::new(Method::DELETE, "/allocations/{consumer}", delete_allocations)
            .name("allocations:delete")
            .policy("placement:allocations:delete", ADMIN)
            .codes(204, &[401, 403, 404])
            .summary("Free what a consumer holds"),
        Operation::new(Method::GET, "/allocation_candidates", candidates)
            .name("candidates:list")
            .policy("placement:allocation_candidates:list", ADMIN)
            .since(CANDIDATES)
            .query(&["resources"])
            .codes(200, &[400, 401, 403])
            .summary("Where these resources fit"),
        Operation::new(Method::GET, "/usages", usages)
            .name("usages:list")
            .policy("placement:usages", "rule:admin_api or (role:reader and project_id:%(project_id)s)")
            .since(USAGES)
            .query(&["project_id", "user_id"])
            .codes(200, &[400, 401, 403])
            .summary("What a project uses"),
        Operation::new(Method::GET, "/resource_classes", list_classes)
            .name("classes:list")
            .policy("placement:resource_classes:list", ADMIN)
            .since(CLASSES)
            .codes(200, &[401, 403])
            .summary("List resource classes"),
        Operation::new(Method::POST, "/resource_classes", create_class)
            .name("classes:create")
            .policy("placement:resource_classes:create", ADMIN)
            .since(CLASSES)
            .body(schema::CLASS)
            .codes(201, &[400, 401, 403, 409])
            .summary("Create a custom resource class"),
        Operation::new(Method::GET, "/resource_classes/{name}", show_class)
            .name("classes:show")
            .policy("placement:resource_classes:show", ADMIN)
            .since(CLASSES)
            .codes(200, &[401, 403, 404])
            .summary("Show a resource class"),
        Operation::new(Method::PUT, "/resource_classes/{name}", put_class)
            .name("classes:ensure")
            .policy("placement:resource_classes:update", ADMIN)
            .since(CLASS_PUT)
            .no_schema("the name is in the path")
            .codes(201, &[400, 401, 403])
            .summary("Make sure that a custom resource class exists"),
        Operation::new(Method::DELETE, "/resource_classes/{name}", delete_class)
            .name("classes:delete")
            .policy("placement:resource_classes:delete", ADMIN)
            .since(CLASSES)
            .codes(204, &[400, 401, 403, 404, 409])
            .summary("Delete a custom resource class"),
        Operation::new(Method::GET, "/traits", list_traits)
            .name("traits:list")
            .policy("placement:traits:list", ADMIN)
            .since(TRAITS)
            .query(&["name", "associated"])
            .codes(200, &[400, 401, 403])
            .summary("List traits"),
        Operation::new(Method::GET, "/traits/{name}", show_trait)
            .name("traits:show")
            .policy("placement:traits:show", ADMIN)
            .since(TRAITS)
            .codes(204, &[401, 403, 404])
            .summary("Whether a trait exists"),
        Operation::new(Method::PUT, "/traits/{name}", put_trait)
            .name("traits:ensure")
            .policy("placement:traits:update", ADMIN)
            .since(TRAITS)
            .no_schema("the name is in the path")
            .codes(201, &[400, 401, 403])
            .summary("Make sure that a custom trait exists"),
        Operation::new(Method::DELETE, "/traits/{name}", delete_trait)
            .name("traits:delete")
            .policy("placement:traits:delete", ADMIN)
            .since(TRAITS)
            .codes(204, &[400, 401, 403, 404, 409])
            .summary("Delete a custom trait"),
    ]
}

async fn versions(_call: Call<App>) -> Outcome {
    Ok(Reply::json(
        200,
        json!({"versions": [{"id": "v1.0", "min_version": "1.0", "max_version": MAX.to_string(), "status": "CURRENT",
            "links": [{"rel": "self", "href": ""}]}]}),
    ))
}

fn show(it: &Provider, version: Micro) -> Value {
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
fn parse_resources(text: &str) -> Result<Resources, Fault> {
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

async fn provider(call: &Call<App>) -> Result<Provider, Fault> {
    let uuid = call.path("uuid");
    let found = records::provider_by_id(&call.app.store, uuid).await?;
    found.ok_or_else(|| Refusal::NoProvider(uuid.chars().take(64).collect()).into())
}

async fn list_providers(call: Call<App>) -> Outcome {
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

async fn create_provider(call: Call<App>) -> Outcome {
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

async fn show_provider(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, show(&provider(&call).await?, call.version)))
}

async fn update_provider(call: Call<App>) -> Outcome {
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

async fn delete_provider(call: Call<App>) -> Outcome {
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

async fn provider_usages(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let used = records::usage(&call.app.store, &it.uuid).await?;
    let classes = records::inventories(&call.app.store, &it.uuid).await?;
    let usages: Map<String, Value> = classes
        .into_keys()
        .map(|class| (class.clone(), json!(used.get(&class).copied().unwrap_or(0))))
        .collect();
    Ok(Reply::json(200, json!({"resource_provider_generation": it.generation, "usages": usages})))
}

async fn provider_allocations(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let held = records::of_provider(&call.app.store, &it.uuid).await?;
    let held: Map<String, Value> =
        held.into_iter().map(|(consumer, resources)| (consumer, json!({"resources": resources}))).collect();
    Ok(Reply::json(200, json!({"resource_provider_generation": it.generation, "allocations": held})))
}

async fn show_aggregates(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let own = records::labels(&call.app.store, Labels::Aggregates, &it.uuid).await?;
    Ok(Reply::json(200, json!({"aggregates": own})))
}

fn strings(value: &Value) -> Vec<String> {
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

async fn put_aggregates(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let (uuid, labels) = (it.uuid.as_str(), strings(&call.body));
    let given = &labels;
    call.app
        .store
        .tx(|tx| async move { records::put_labels(&tx, Labels::Aggregates, uuid, given).await })
        .await?;
    Ok(Reply::json(200, json!({"aggregates": labels})))
}

async fn show_traits(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let own = records::labels(&call.app.store, Labels::Traits, &it.uuid).await?;
    Ok(Reply::json(200, json!({"resource_provider_generation": it.generation, "traits": own})))
}

async fn put_traits(call: Call<App>) -> Outcome {
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

async fn list_inventories(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let all = records::inventories(&call.app.store, &it.uuid).await?;
    Ok(Reply::json(200, inventories_body(it.generation, &all)))
}

async fn known_class(call: &Call<App>, class: &str) -> Result<bool, Fault> {
    Ok(rules::STANDARD_CLASSES.contains(&class)
        || records::names(&call.app.store, Names::Classes).await?.iter().any(|name| name == class))
}

async fn replace(
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

async fn put_inventories(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    let mut wanted = BTreeMap::new();
    for (class, value) in call.inner("inventories").as_object().into_iter().flatten() {
        wanted.insert(class.clone(), given(value)?);
    }
    let known = call.inner("resource_provider_generation").as_i64();
    let now = replace(&call, &it.uuid, known, &wanted).await?;
    Ok(Reply::json(200, inventories_body(now.generation, &wanted)))
}

async fn delete_inventories(call: Call<App>) -> Outcome {
    let it = provider(&call).await?;
    replace(&call, &it.uuid, None, &BTreeMap::new()).await?;
    Ok(Reply::empty(204))
}

async fn inventory(call: &Call<App>) -> Result<(Provider, BTreeMap<String, Inventory>), Fault> {
    let it = provider(call).await?;
    let all = records::inventories(&call.app.store, &it.uuid).await?;
    if all.contains_key(call.path("class")) {
        return Ok((it, all));
    }
    let class: String = call.path("class").chars().take(64).collect();
    Err(Fault::not_found(format!("No inventory of class {class} for {}", it.uuid)))
}

async fn show_inventory(call: Call<App>) -> Outcome {
    let (it, all) = inventory(&call).await?;
    let mut body = all.get(call.path("class")).map(shown).unwrap_or_default();
    body["resource_provider_generation"] = json!(it.generation);
    Ok(Reply::json(200, body))
}

async fn put_inventory(call: Call<App>) -> Outcome {
    let (it, mut all) = inventory(&call).await?;
    let fresh = given(&call.body)?;
    all.insert(call.path("class").to_owned(), fresh.clone());
    let known = call.inner("resource_provider_generation").as_i64();
    let now = replace(&call, &it.uuid, known, &all).await?;
    let mut body = shown(&fresh);
    body["resource_provider_generation"] = json!(now.generation);
    Ok(Reply::json(200, body))
}

async fn delete_inventory(call: Call<App>) -> Outcome {
    let (it, mut all) = inventory(&call).await?;
    all.remove(call.path("class"));
    replace(&call, &it.uuid, Some(it.generation), &all).await?;
    Ok(Reply::empty(204))
}

async fn show_allocations(call: Call<App>) -> Outcome {
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

async fn put_allocations(call: Call<App>) -> Outcome {
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

async fn delete_allocations(call: Call<App>) -> Outcome {
    let consumer = call.path("consumer");
    if records::of_consumer(&call.app.store, consumer).await?.is_empty() {
        let consumer: String = consumer.chars().take(64).collect();
        return Err(Fault::not_found(format!("No allocations for consumer '{consumer}'")));
    }
    rules::put(&call.app.store, consumer, Owner { project: "", user: "", kind: "" }, &BTreeMap::new())
        .await?;
    Ok(Reply::empty(204))
}

async fn candidates(call: Call<App>) -> Outcome {
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

async fn usages(call: Call<App>) -> Outcome {
    let project = call.query.get("project_id").ok_or_else(|| {
        Fault::bad_request("Invalid query string parameters: 'project_id' is a required property")
    })?;
    call.enforce(&api_kit::Target::project(project))?;
    let used = records::project_usage(&call.app.store, project, call.query.get("user_id")).await?;
    Ok(Reply::json(200, json!({"usages": used})))
}

fn class_body(name: &str) -> Value {
    json!({"name": name, "links": [{"rel": "self", "href": format!("/placement/resource_classes/{name}")}]})
}

async fn list_classes(call: Call<App>) -> Outcome {
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

async fn create_class(call: Call<App>) -> Outcome {
    let name = call.inner("name").as_str().unwrap_or_default();
    if !add(&call, Names::Classes, name).await? {
        return Err(Fault::conflict(format!("Conflicting resource class already exists: {name}")));
    }
    Ok(Reply::empty(201).header("location", format!("{}/resource_classes/{name}", call.base)))
}

async fn show_class(call: Call<App>) -> Outcome {
    let name = call.path("name");
    if known_class(&call, name).await? {
        return Ok(Reply::json(200, class_body(name)));
    }
    let name: String = name.chars().take(64).collect();
    Err(Fault::not_found(format!("No such resource class {name}.")))
}

async fn put_class(call: Call<App>) -> Outcome {
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

async fn delete_class(call: Call<App>) -> Outcome {
    remove(&call, Names::Classes, "resource class").await
}

async fn list_traits(call: Call<App>) -> Outcome {
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

async fn show_trait(call: Call<App>) -> Outcome {
    let name = call.path("name");
    if records::names(&call.app.store, Names::Traits).await?.iter().any(|it| it == name) {
        return Ok(Reply::empty(204));
    }
    let name: String = name.chars().take(64).collect();
    Err(Fault::not_found(format!("No such trait {name}.")))
}

async fn put_trait(call: Call<App>) -> Outcome {
    let name = call.path("name");
    let code = if add(&call, Names::Traits, name).await? { 201 } else { 204 };
    Ok(Reply::empty(code).header("location", format!("{}/traits/{name}", call.base)))
}

async fn delete_trait(call: Call<App>) -> Outcome {
    remove(&call, Names::Traits, "trait").await
}
