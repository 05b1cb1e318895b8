//! Every operation on existing resources of a project, as a member of another project and as a reader of the own one.

use crate::app::{self, App};
use crate::compute::tests::world::World;
use crate::identity::bootstrap::{self as identity, Made};
use crate::testing::{DEMO_PROJECT, OTHER_PROJECT};
use api_kit::{Micro, Operation, Service};
use base::store::{Query, Sql, Store, testing::sqlite};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const NOBODY: &str = "11111111-1111-4111-8111-111111111111";

/// What a member of another project gets from an operation, where that is not 404.
const OTHERS: &[(&str, u16)] = &[
    // Everybody's defaults are the same.
    ("compute:quotas:defaults", 200),
    // Without a destination it does not come to looking.
    ("object:object:copy", 412),
];

/// What a reader of the project gets from an operation that changes something, where that is not 403.
const READERS: &[(&str, u16)] = &[
    // Everybody ends their own tokens; this request names none.
    ("identity:revoke_token", 400),
    // Key pairs are the user's own, whatever the roles: a bad key, and none of this name.
    ("compute:keypairs:create", 400),
    ("compute:keypairs:delete", 404),
    ("object:object:copy", 412),
];

/// Ids of the demo project's resources, by the path that comes before them.
struct Rows {
    ids: BTreeMap<&'static str, String>,
    made: Made,
}

impl Rows {
    /// The template with existing ids in it.
    fn fill(&self, template: &str) -> String {
        let mut before = "";
        let mut out = Vec::new();
        for part in template.split('/') {
            let named = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
            out.push(match named {
                None => part.to_owned(),
                Some("account") => format!("AUTH_{DEMO_PROJECT}"),
                Some("project_id") if before == "projects" => self.made.demo.project_id.clone().unwrap(),
                Some("project_id") => DEMO_PROJECT.to_owned(),
                Some("user_id") => self.made.demo.user_id.clone(),
                Some(name) => {
                    self.ids.get(before).or_else(|| self.ids.get(name)).map_or(NOBODY, |id| id).to_owned()
                }
            });
            before = part;
        }
        out.join("/")
    }
}

async fn make(world: &World, token: &str, path: &str, key: &str, fields: Value) -> String {
    let made = world.cloud.call(token, "POST", path, Some(json!({key: fields}))).await;
    assert!((200..300).contains(&made.status), "{path}: {} {}", made.status, made.json);
    let id = &made.json[key]["id"];
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

async fn first(world: &World, sql: &'static str) -> String {
    world.cloud.app.store.row(sql, Vec::new()).await.unwrap().expect(sql).text("id").unwrap()
}

/// One of everything, of the project `demo`.
async fn rows(world: &World) -> Rows {
    let made =
        identity::run(&world.cloud.app, "https://c", &[], ("a-password", "d-password"), false).await.unwrap();
    let net = |what: &str| format!("/network/v2.0/{what}");
    let volumes = |what: &str| format!("/volume/v3/{DEMO_PROJECT}/{what}");
    let mut ids = BTreeMap::new();
    let server = world.server().await;
    let (free, used) = (world.volume().await, world.volume().await);
    let body = json!({"volumeAttachment": {"volumeId": used}});
    let attached = world.call("POST", &format!("/servers/{server}/os-volume_attachments"), Some(body)).await;
    assert_eq!(attached.status, 200, "{attached:?}");
    world.drain().await;
    let body = json!({"volume_id": free, "name": "s"});
    ids.insert("snapshots", make(world, "demo", &volumes("snapshots"), "snapshot", body).await);
    world.drain().await;
    ids.insert("attachments", first(world, "SELECT id FROM volume_attachments").await);
    let key = world.call_at("2.1", "POST", "/os-keypairs", Some(json!({"keypair": {"name": "mine"}}))).await;
    assert_eq!(key.status, 200, "{key:?}");
    ids.insert("os-keypairs", "mine".to_owned());
    let own = "SELECT id FROM network_ports WHERE device_owner LIKE 'compute:%'";
    ids.insert("os-interface", first(world, own).await);
    let done = world.call("GET", &format!("/servers/{server}/os-instance-actions"), None).await;
    ids.insert(
        "os-instance-actions",
        done.json["instanceActions"][0]["request_id"].as_str().unwrap_or(NOBODY).to_owned(),
    );
    ids.insert("os-volume_attachments", used);
    ids.insert("volumes", free);
    ids.insert("servers", server);
    ids.insert("images", world.image.clone());
    ids.insert("members", OTHER_PROJECT.to_owned());
    ids.insert("networks", world.network.clone());
    let subnets = world.cloud.call("demo", "GET", &net("subnets"), None).await;
    ids.insert("subnets", subnets.json["subnets"][0]["id"].as_str().unwrap().to_owned());
    let port = json!({"network_id": world.network});
    ids.insert("ports", make(world, "demo", &net("ports"), "port", port).await);
    ids.insert("routers", make(world, "demo", &net("routers"), "router", json!({"name": "r"})).await);
    let group = make(world, "demo", &net("security-groups"), "security_group", json!({"name": "g"})).await;
    let rule = json!({"security_group_id": group, "direction": "ingress", "ethertype": "IPv4"});
    ids.insert(
        "security-group-rules",
        make(world, "demo", &net("security-group-rules"), "security_group_rule", rule).await,
    );
    ids.insert("security-groups", group);
    let outside = json!({"name": "outside", "router:external": true});
    let outside = make(world, "admin", &net("networks"), "network", outside).await;
    let subnet =
        json!({"network_id": outside, "cidr": "198.51.100.0/24", "ip_version": 4, "enable_dhcp": false});
    make(world, "admin", &net("subnets"), "subnet", subnet).await;
    let floating = json!({"floating_network_id": outside});
    ids.insert("floatingips", make(world, "demo", &net("floatingips"), "floatingip", floating).await);
    let path = format!("/object-store/v1/AUTH_{DEMO_PROJECT}/box");
    let put = world.cloud.call_with("demo", "PUT", &path, &[("content-length", "0")], Bytes::new()).await;
    assert_eq!(put.status, 201, "{put:?}");
    ids.insert("container", "box".to_owned());
    ids.insert("*object", "thing".to_owned());
    ids.insert("users", made.demo.user_id.clone());
    ids.insert("projects", made.demo.project_id.clone().unwrap());
    Rows { ids, made }
}

/// The smallest body that a schema lets through, near enough.
fn sample(schema: &Value, root: &Value, depth: u32) -> Value {
    let Some(schema) = schema.as_object().filter(|_| depth < 12) else { return json!("1") };
    if let Some(pointer) = schema.get("$ref").and_then(Value::as_str) {
        return sample(
            root.pointer(pointer.trim_start_matches('#')).unwrap_or(&Value::Null),
            root,
            depth + 1,
        );
    }
    if let Some(one) = schema.get("const").or_else(|| schema.get("enum")?.get(0)) {
        return one.clone();
    }
    if let Some(one) = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(*key)?.get(0))
        && !schema.contains_key("type")
    {
        return sample(one, root, depth + 1);
    }
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
        Some(kind) => kind.as_str(),
        None if schema.contains_key("properties") => Some("object"),
        None => None,
    };
    let number = |name: &str| schema.get(name).and_then(Value::as_u64);
    match kind {
        Some("object") => {
            let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
            let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
            let mut names: Vec<&str> = required.iter().filter_map(Value::as_str).collect();
            if names.is_empty() && number("minProperties").is_some() {
                names.extend(properties.keys().next().map(String::as_str));
            }
            let member = |name: &str| sample(properties.get(name).unwrap_or(&Value::Null), root, depth + 1);
            Value::Object(names.into_iter().map(|name| (name.to_owned(), member(name))).collect())
        }
        Some("array") => match (number("minItems"), schema.get("items")) {
            (Some(1..), Some(items)) => json!([sample(items, root, depth + 1)]),
            (Some(_) | None, Some(_) | None) => json!([]),
        },
        Some("integer" | "number") => json!(number("minimum").unwrap_or(1)),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        Some(_) | None if schema.get("format").is_some_and(|format| format == "uuid") => json!(NOBODY),
        Some(_) | None => json!("1".repeat(usize::try_from(number("minLength").unwrap_or(1)).unwrap())),
    }
}

fn body(operation: &Operation<App>, version: Option<Micro>) -> Bytes {
    let mut body = match operation.body_schema(version.unwrap_or(Micro(0, 0))) {
        Some(text) => {
            let schema: Value = serde_json::from_str(text).unwrap();
            sample(&schema, &schema, 0)
        }
        None => Value::Null,
    };
    if let Some(action) = operation.action_key()
        && body.get(action).is_none()
    {
        let mut named = Map::new();
        named.insert(action.to_owned(), Value::Null);
        body = Value::Object(named);
    }
    if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) }
}

async fn ask(
    world: &World,
    token: &str,
    (service, operation): (&Service<App>, &Operation<App>),
    path: &str,
) -> (u16, Value) {
    let version = service.micro.map(|range| operation.last_version().unwrap_or(range.max));
    let text = match (service.micro, version) {
        (Some(range), Some(version)) => format!("{} {version}", range.word),
        (Some(_) | None, Some(_) | None) => String::new(),
    };
    let content = match operation.id().contains("patch") || operation.route().0.as_str() == "PATCH" {
        true if service.name == "image" => "application/openstack-images-v2.1-json-patch",
        true | false => "application/json",
    };
    let mut headers = vec![("content-type", content)];
    if !text.is_empty() {
        headers.push(("openstack-api-version", &text));
    }
    let writes = !matches!(operation.route().0.as_str(), "GET" | "HEAD" | "DELETE");
    let bytes = if writes { body(operation, version) } else { Bytes::new() };
    let path = format!("{}{path}", service.prefix);
    let answer = world.cloud.call_with(token, operation.route().0.as_str(), &path, &headers, bytes).await;
    (answer.status, answer.json)
}

/// All rows of all tables, but for what belongs to the other project alone (its default security group).
async fn dump(store: &Store) -> Vec<String> {
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name";
    let mut out = Vec::new();
    for table in store.rows(Sql::from(tables), Vec::new()).await.unwrap() {
        let name = table.text("name").unwrap();
        // Statements are constants by design; a test's own may be leaked.
        let sql: &'static str = Box::leak(format!("SELECT * FROM {name}").into_boxed_str());
        for row in store.rows(Sql::from(sql), Vec::new()).await.unwrap() {
            let text = format!("{name}: {row:?}");
            if !text.contains(OTHER_PROJECT) {
                out.push(text);
            }
        }
    }
    out.sort();
    out
}

fn listed(table: &[(&str, u16)], name: &str) -> Option<u16> {
    table.iter().find(|(listed, _)| *listed == name).map(|(_, code)| *code)
}

#[tokio::test]
async fn a_member_of_another_project_reaches_nothing_and_a_reader_changes_nothing() {
    let world = World::on(sqlite().await).await;
    let rows = rows(&world).await;
    let before = dump(&world.cloud.app.store).await;
    let (mut wrong, mut hidden, mut refused) = (Vec::new(), 0, 0);
    for service in app::services() {
        for operation in service.operations.iter().filter(|operation| !operation.is_open()) {
            let (method, template) = operation.route();
            let name = format!("{}:{}", service.name, operation.id());
            let path = rows.fill(template);
            if operation.names_row() {
                let (status, json) = ask(&world, "other", (&service, operation), &path).await;
                let fine = match listed(OTHERS, &name) {
                    Some(code) => status == code,
                    // An operation that is not listed may refuse in its own way, but has to refuse.
                    None => matches!(status, 400 | 403 | 404),
                };
                hidden += u32::from(status == 404);
                if !fine {
                    wrong.push(format!("other: {name} {method} {path}: {status} {json}"));
                }
            }
            if !matches!(method.as_str(), "GET" | "HEAD") {
                let (status, json) = ask(&world, "reader", (&service, operation), &path).await;
                refused += u32::from(status == 403);
                if status != listed(READERS, &name).unwrap_or(403) {
                    wrong.push(format!("reader: {name} {method} {path}: {status} {json}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(hidden > 60 && refused > 90, "{hidden} {refused}");
    let after = dump(&world.cloud.app.store).await;
    let changed: Vec<&String> = before
        .iter()
        .filter(|row| !after.contains(row))
        .chain(after.iter().filter(|row| !before.contains(row)))
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
}

#[tokio::test]
async fn what_a_body_names_must_be_visible_too() {
    let world = World::on(sqlite().await).await;
    let rows = rows(&world).await;
    let before = dump(&world.cloud.app.store).await;
    let id = |name: &str| rows.ids[name].clone();
    let volumes = |what: &str| format!("/volume/v3/{OTHER_PROJECT}/{what}");
    let net = |what: &str| format!("/network/v2.0/{what}");
    let server = |more: Value| {
        let mut body = json!({"name": "x", "flavorRef": "42", "imageRef": id("images"), "networks": "none"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"server": body})
    };
    for (path, body, expected) in [
        (
            net("subnets"),
            json!({"subnet": {"network_id": id("networks"), "cidr": "10.9.0.0/24", "ip_version": 4}}),
            404,
        ),
        (net("ports"), json!({"port": {"network_id": id("networks")}}), 404),
        (
            net("security-group-rules"),
            json!({"security_group_rule": {"security_group_id": id("security-groups"), "direction": "ingress"}}),
            404,
        ),
        (volumes("snapshots"), json!({"snapshot": {"volume_id": id("volumes")}}), 404),
        (volumes("volumes"), json!({"volume": {"size": 1, "source_volid": id("volumes")}}), 404),
        (volumes("volumes"), json!({"volume": {"size": 1, "snapshot_id": id("snapshots")}}), 404),
        (volumes("volumes"), json!({"volume": {"size": 1, "imageRef": id("images")}}), 400),
        ("/compute/v2.1/servers".to_owned(), server(json!({})), 400),
    ] {
        let headers = [("openstack-api-version", "compute 2.60"), ("content-type", "application/json")];
        let answer =
            world.cloud.call_with("other", "POST", &path, &headers, Bytes::from(body.to_string())).await;
        assert_eq!(answer.status, expected, "{path} {body}: {}", answer.json);
    }
    let after = dump(&world.cloud.app.store).await;
    let changed: Vec<&String> = before
        .iter()
        .filter(|row| !after.contains(row))
        .chain(after.iter().filter(|row| !before.contains(row)))
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
}
