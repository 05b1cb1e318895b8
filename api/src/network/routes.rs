//! The operations.

use super::records::{Floating, Group, Network, Port, Router, Rule, Subnet};
use super::resource::{Resource, create, delete, list, show, update};
use super::{interfaces, quotas, schema};
use crate::app::App;
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use serde_json::{Value, json};

const READER: &str = "rule:project_reader_or_admin";
const MEMBER: &str = "rule:project_member_or_admin";
const ADMIN: &str = "rule:admin_only";
const REFUSALS: &[u16] = &[400, 401, 403, 404, 409];
const READS: &[u16] = &[400, 401, 403, 404];

/// List, show, create and delete.
macro_rules! unchanging {
    ($type:ident, $one:literal, $many:literal, $get:literal, $create:literal, $delete:literal, $schema:expr) => {
        [
            Operation::new(Method::GET, concat!("/v2.0/", $many), list::<$type>)
                .name(concat!($many, ":list"))
                .summary(concat!("List ", $one, "s"))
                .policy($get, READER)
                .query(&["fields"])
                .list(<$type as Resource>::LIST)
                .codes(200, READS),
            Operation::new(Method::GET, concat!("/v2.0/", $many, "/{id}"), show::<$type>)
                .name(concat!($many, ":show"))
                .summary(concat!("Show a ", $one))
                .policy($get, READER)
                .query(&["fields"])
                .codes(200, READS),
            Operation::new(Method::POST, concat!("/v2.0/", $many), create::<$type>)
                .name(concat!($many, ":create"))
                .summary(concat!("Create one or several ", $one, "s"))
                .policy($create, MEMBER)
                .body($schema)
                .codes(201, REFUSALS),
            Operation::new(Method::DELETE, concat!("/v2.0/", $many, "/{id}"), delete::<$type>)
                .name(concat!($many, ":delete"))
                .summary(concat!("Delete a ", $one))
                .policy($delete, MEMBER)
                .codes(204, REFUSALS),
        ]
    };
}
/// The same, and update.
macro_rules! crud {
    ($type:ident, $one:literal, $many:literal, $get:literal, $create:literal, $update:literal, $delete:literal, $schema:expr, $change:expr) => {{
        let mut all = Vec::from(unchanging!($type, $one, $many, $get, $create, $delete, $schema));
        all.push(
            Operation::new(Method::PUT, concat!("/v2.0/", $many, "/{id}"), update::<$type>)
                .name(concat!($many, ":update"))
                .summary(concat!("Change a ", $one))
                .policy($update, MEMBER)
                .body($change)
                .codes(200, REFUSALS),
        );
        all
    }};
}
/// All operations.
#[must_use]
pub fn operations() -> Vec<Operation<App>> {
    let mut all = discovery();
    all.extend(crud!(
        Network,
        "network",
        "networks",
        "get_network",
        "create_network",
        "update_network",
        "delete_network",
        schema::NETWORK,
        schema::NETWORK_UPDATE
    ));
    all.extend(crud!(
        Subnet,
        "subnet",
        "subnets",
        "get_subnet",
        "create_subnet",
        "update_subnet",
        "delete_subnet",
        schema::SUBNET,
        schema::SUBNET_UPDATE
    ));
    all.extend(crud!(
        Port,
        "port",
        "ports",
        "get_port",
        "create_port",
        "update_port",
        "delete_port",
        schema::PORT,
        schema::PORT_UPDATE
    ));
    all.extend(crud!(
        Router,
        "router",
        "routers",
        "get_router",
        "create_router",
        "update_router",
        "delete_router",
        schema::ROUTER,
        schema::ROUTER_UPDATE
    ));
    all.extend(crud!(
        Floating,
        "floatingip",
        "floatingips",
        "get_floatingip",
        "create_floatingip",
        "update_floatingip",
        "delete_floatingip",
        schema::FLOATING,
        schema::FLOATING_UPDATE
    ));
    all.extend(crud!(
        Group,
        "security group",
        "security-groups",
        "get_security_group",
        "create_security_group",
        "update_security_group",
        "delete_security_group",
        schema::GROUP,
        schema::GROUP_UPDATE
    ));
    all.extend(unchanging!(
        Rule,
        "security group rule",
        "security-group-rules",
        "get_security_group_rule",
        "create_security_group_rule",
        "delete_security_group_rule",
        schema::RULE
    ));
    all.extend(interfaces());
    all.extend(limits());
    all
}

fn interfaces() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::PUT, "/v2.0/routers/{id}/add_router_interface", interfaces::add_interface)
            .name("routers:add_interface")
            .summary("Join a router to a subnet")
            .policy("add_router_interface", MEMBER)
            .body(schema::INTERFACE)
            .codes(200, REFUSALS),
        Operation::new(
            Method::PUT,
            "/v2.0/routers/{id}/remove_router_interface",
            interfaces::remove_interface,
        )
        .name("routers:remove_interface")
        .summary("Part a router from a subnet")
        .policy("remove_router_interface", MEMBER)
        .body(schema::INTERFACE)
        .codes(200, REFUSALS),
    ]
}

fn limits() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/v2.0/quotas", quotas::list)
            .name("quotas:list")
            .summary("List projects with quotas of their own")
            .policy("get_quota:all", ADMIN)
            .codes(200, READS),
        Operation::new(Method::GET, "/v2.0/quotas/{project_id}", quotas::show)
            .name("quotas:show")
            .summary("Show a project's quotas")
            .policy("get_quota", READER)
            .codes(200, READS),
        Operation::new(Method::GET, "/v2.0/quotas/{project_id}/default", quotas::defaults)
            .name("quotas:default")
            .summary("Show the default quotas")
            .policy("get_quota", READER)
            .codes(200, READS),
        Operation::new(Method::GET, "/v2.0/quotas/{project_id}/details", quotas::details)
            .name("quotas:details")
            .summary("Show a project's quotas and use")
            .policy("get_quota", READER)
            .codes(200, READS),
        Operation::new(Method::PUT, "/v2.0/quotas/{project_id}", quotas::update)
            .name("quotas:update")
            .summary("Set a project's quotas")
            .policy("update_quota", ADMIN)
            .body(schema::QUOTA)
            .codes(200, REFUSALS),
        Operation::new(Method::DELETE, "/v2.0/quotas/{project_id}", quotas::reset)
            .name("quotas:delete")
            .summary("Take a project back to the default quotas")
            .policy("delete_quota", ADMIN)
            .codes(204, READS),
    ]
}

fn discovery() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/", versions)
            .name("versions")
            .summary("List versions")
            .open()
            .codes(200, &[]),
        Operation::new(Method::GET, "/v2.0", resources)
            .name("resources")
            .summary("List collections")
            .open()
            .codes(200, &[]),
        Operation::new(Method::GET, "/v2.0/extensions", extensions)
            .name("extensions:list")
            .summary("List extensions")
            .policy("get_extension", "")
            .codes(200, READS),
        Operation::new(Method::GET, "/v2.0/extensions/{alias}", extension)
            .name("extensions:show")
            .summary("Show an extension")
            .policy("get_extension", "")
            .codes(200, READS),
    ]
}

async fn versions(call: Call<App>) -> Outcome {
    let version = json!({"id": "v2.0", "status": "CURRENT",
        "links": [{"rel": "self", "href": format!("{}/v2.0/", call.base)}]});
    Ok(Reply::json(200, json!({"versions": [version]})))
}

async fn resources(call: Call<App>) -> Outcome {
    let names = [
        ("network", "networks"),
        ("subnet", "subnets"),
        ("port", "ports"),
        ("router", "routers"),
        ("floatingip", "floatingips"),
        ("security_group", "security-groups"),
        ("security_group_rule", "security-group-rules"),
        ("quota", "quotas"),
        ("extension", "extensions"),
    ];
    let item = |(name, path): &(&str, &str)| {
        json!({"name": name, "collection": path.replace('-', "_"),
            "links": [{"rel": "self", "href": format!("{}/v2.0/{path}", call.base)}]})
    };
    let items: Vec<Value> = names.iter().map(item).collect();
    Ok(Reply::json(200, json!({"resources": items})))
}

/// What works, by upstream's names for it.
const EXTENSIONS: &[(&str, &str)] = &[
    ("allowed-address-pairs", "Allowed Address Pairs"),
    ("binding", "Port Binding"),
    ("ext-gw-mode", "Neutron L3 Configurable external gateway mode"),
    ("external-net", "Neutron external network"),
    ("extraroute", "Neutron Extra Route"),
    ("fip-port-details", "Floating IP Port Details Extension"),
    ("ip-substring-filtering", "IP address substring filtering"),
    ("net-mtu", "Network MTU"),
    ("net-mtu-writable", "Network MTU (writable)"),
    ("pagination", "Pagination support"),
    ("port-security", "Port Security"),
    ("project-id", "project_id field enabled"),
    ("provider", "Provider Network"),
    ("quota_details", "Quota details management support"),
    ("quotas", "Quota management support"),
    ("router", "Neutron L3 Router"),
    ("security-group", "security-group"),
    ("sorting", "Sorting support"),
    ("standard-attr-description", "standard-attr-description"),
    ("standard-attr-revisions", "Resource revision numbers"),
    ("standard-attr-timestamp", "Resource timestamps"),
];

fn extension_view((alias, name): &(&str, &str)) -> Value {
    json!({"alias": alias, "name": name, "description": name, "updated": "2020-01-01T00:00:00-00:00", "links": []})
}

async fn extensions(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    let all: Vec<Value> = EXTENSIONS.iter().map(extension_view).collect();
    Ok(Reply::json(200, json!({"extensions": all})))
}

async fn extension(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    let alias = call.path("alias");
    let found = EXTENSIONS.iter().find(|(known, _)| *known == alias).map(extension_view);
    let missing = || {
        Fault::not_found(format!(
            "Extension with alias {} does not exist",
            alias.chars().take(64).collect::<String>()
        ))
    };
    Ok(Reply::json(200, json!({"extension": found.ok_or_else(missing)?})))
}
