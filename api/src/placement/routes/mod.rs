//! The operations of placement, versions 1.0 to 1.12.

mod allocations;
mod names;
mod providers;

use super::rules::Refusal;
use super::schema;
use crate::app::App;
use api_kit::{Call, Fault, FaultStyle, Micro, MicroRange, Operation, Outcome, Reply, Service};
use axum::http::Method;
use serde_json::json;

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
        Operation::new(Method::GET, "/resource_providers", providers::list_providers)
            .name("providers:list")
            .policy("placement:resource_providers:list", ADMIN)
            .query(&["name", "uuid", "member_of", "resources"])
            .codes(200, &[400, 401, 403])
            .summary("List resource providers"),
        Operation::new(Method::POST, "/resource_providers", providers::create_provider)
            .name("providers:create")
            .policy("placement:resource_providers:create", ADMIN)
            .body(schema::PROVIDER)
            .codes(201, &[400, 401, 403, 409])
            .summary("Create a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}", providers::show_provider)
            .name("providers:show")
            .policy("placement:resource_providers:show", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("Show a resource provider"),
        Operation::new(Method::PUT, "/resource_providers/{uuid}", providers::update_provider)
            .name("providers:update")
            .policy("placement:resource_providers:update", ADMIN)
            .body(schema::PROVIDER_UPDATE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Rename a resource provider"),
        Operation::new(Method::DELETE, "/resource_providers/{uuid}", providers::delete_provider)
            .name("providers:delete")
            .policy("placement:resource_providers:delete", ADMIN)
            .codes(204, &[401, 403, 404, 409])
            .summary("Delete a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/usages", providers::provider_usages)
            .name("providers:usages")
            .policy("placement:resource_providers:usages", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("What is used of a resource provider"),
        Operation::new(
            Method::GET,
            "/resource_providers/{uuid}/allocations",
            providers::provider_allocations,
        )
        .name("providers:allocations")
        .policy("placement:resource_providers:allocations:list", ADMIN)
        .codes(200, &[401, 403, 404])
        .summary("Who uses a resource provider"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/aggregates", providers::show_aggregates)
            .name("providers:aggregates")
            .policy("placement:resource_providers:aggregates:list", ADMIN)
            .since(AGGREGATES)
            .codes(200, &[401, 403, 404])
            .summary("List a resource provider's aggregates"),
        Operation::new(Method::PUT, "/resource_providers/{uuid}/aggregates", providers::put_aggregates)
            .name("providers:set-aggregates")
            .policy("placement:resource_providers:aggregates:update", ADMIN)
            .since(AGGREGATES)
            .body(schema::AGGREGATES)
            .codes(200, &[400, 401, 403, 404])
            .summary("Replace a resource provider's aggregates"),
        Operation::new(Method::GET, "/resource_providers/{uuid}/traits", providers::show_traits)
            .name("providers:traits")
            .policy("placement:resource_providers:traits:list", ADMIN)
            .since(TRAITS)
            .codes(200, &[401, 403, 404])
            .summary("List a resource provider's traits"),
        Operation::new(Method::PUT, "/resource_providers/{uuid}/traits", providers::put_traits)
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
        Operation::new(Method::GET, path, providers::list_inventories)
            .name("inventories:list")
            .policy("placement:resource_providers:inventories:list", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("List a resource provider's inventories"),
        Operation::new(Method::PUT, path, providers::put_inventories)
            .name("inventories:replace")
            .policy("placement:resource_providers:inventories:update", ADMIN)
            .body(schema::INVENTORIES)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Replace a resource provider's inventories"),
        Operation::new(Method::DELETE, path, providers::delete_inventories)
            .name("inventories:clear")
            .policy("placement:resource_providers:inventories:delete", ADMIN)
            .since(DELETE_INVENTORIES)
            .codes(204, &[401, 403, 404, 409])
            .summary("Remove a resource provider's inventories"),
        Operation::new(Method::GET, one, providers::show_inventory)
            .name("inventories:show")
            .policy("placement:resource_providers:inventories:show", ADMIN)
            .codes(200, &[401, 403, 404])
            .summary("Show one inventory"),
        Operation::new(Method::PUT, one, providers::put_inventory)
            .name("inventories:update")
            .policy("placement:resource_providers:inventories:update", ADMIN)
            .body(schema::INVENTORY)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Change one inventory"),
        Operation::new(Method::DELETE, one, providers::delete_inventory)
            .name("inventories:delete")
            .policy("placement:resource_providers:inventories:delete", ADMIN)
            .codes(204, &[401, 403, 404, 409])
            .summary("Remove one inventory"),
    ]
}

fn other_operations() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/allocations/{consumer}", allocations::show_allocations)
            .name("allocations:show")
            .policy("placement:allocations:list", ADMIN)
            .codes(200, &[401, 403])
            .summary("What a consumer holds"),
        Operation::new(Method::PUT, "/allocations/{consumer}", allocations::put_allocations)
            .name("allocations:replace")
            .policy("placement:allocations:update", ADMIN)
            .body(schema::ALLOCATIONS)
            .body_from(OWNERS, schema::ALLOCATIONS_1_8)
            .body_from(DICT, schema::ALLOCATIONS_1_12)
            .codes(204, &[400, 401, 403, 409])
            .summary("Replace what a consumer holds"),
        Operation::new(Method::DELETE, "/allocations/{consumer}", allocations::delete_allocations)
            .name("allocations:delete")
            .policy("placement:allocations:delete", ADMIN)
            .codes(204, &[401, 403, 404])
            .summary("Free what a consumer holds"),
        Operation::new(Method::GET, "/allocation_candidates", allocations::candidates)
            .name("candidates:list")
            .policy("placement:allocation_candidates:list", ADMIN)
            .since(CANDIDATES)
            .query(&["resources"])
            .codes(200, &[400, 401, 403])
            .summary("Where these resources fit"),
        Operation::new(Method::GET, "/usages", allocations::usages)
            .name("usages:list")
            .policy("placement:usages", "rule:admin_api or (role:reader and project_id:%(project_id)s)")
            .since(USAGES)
            .query(&["project_id", "user_id"])
            .codes(200, &[400, 401, 403])
            .summary("What a project uses"),
        Operation::new(Method::GET, "/resource_classes", names::list_classes)
            .name("classes:list")
            .policy("placement:resource_classes:list", ADMIN)
            .since(CLASSES)
            .codes(200, &[401, 403])
            .summary("List resource classes"),
        Operation::new(Method::POST, "/resource_classes", names::create_class)
            .name("classes:create")
            .policy("placement:resource_classes:create", ADMIN)
            .since(CLASSES)
            .body(schema::CLASS)
            .codes(201, &[400, 401, 403, 409])
            .summary("Create a custom resource class"),
        Operation::new(Method::GET, "/resource_classes/{name}", names::show_class)
            .name("classes:show")
            .policy("placement:resource_classes:show", ADMIN)
            .since(CLASSES)
            .codes(200, &[401, 403, 404])
            .summary("Show a resource class"),
        Operation::new(Method::PUT, "/resource_classes/{name}", names::put_class)
            .name("classes:ensure")
            .policy("placement:resource_classes:update", ADMIN)
            .since(CLASS_PUT)
            .no_schema("the name is in the path")
            .codes(201, &[400, 401, 403])
            .summary("Make sure that a custom resource class exists"),
        Operation::new(Method::DELETE, "/resource_classes/{name}", names::delete_class)
            .name("classes:delete")
            .policy("placement:resource_classes:delete", ADMIN)
            .since(CLASSES)
            .codes(204, &[400, 401, 403, 404, 409])
            .summary("Delete a custom resource class"),
        Operation::new(Method::GET, "/traits", names::list_traits)
            .name("traits:list")
            .policy("placement:traits:list", ADMIN)
            .since(TRAITS)
            .query(&["name", "associated"])
            .codes(200, &[400, 401, 403])
            .summary("List traits"),
        Operation::new(Method::GET, "/traits/{name}", names::show_trait)
            .name("traits:show")
            .policy("placement:traits:show", ADMIN)
            .since(TRAITS)
            .codes(204, &[401, 403, 404])
            .summary("Whether a trait exists"),
        Operation::new(Method::PUT, "/traits/{name}", names::put_trait)
            .name("traits:ensure")
            .policy("placement:traits:update", ADMIN)
            .since(TRAITS)
            .no_schema("the name is in the path")
            .codes(201, &[400, 401, 403])
            .summary("Make sure that a custom trait exists"),
        Operation::new(Method::DELETE, "/traits/{name}", names::delete_trait)
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
