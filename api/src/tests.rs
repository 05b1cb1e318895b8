//! What holds for every operation of every service.

mod cross;

use crate::app::{self, App};
use crate::testing::{Answer, Cloud};
use api_kit::{Operation, Service};
use bytes::Bytes;

/// A path that fits the template.
fn filled(template: &str) -> String {
    template
        .split('/')
        .map(|part| if part.starts_with('{') { "11111111111111111111111111111111" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

/// The header that asks for a version which has the operation.
fn version(service: &Service<App>, operation: &Operation<App>) -> String {
    match (service.micro, operation.first_version()) {
        (Some(range), Some(version)) => format!("{} {version}", range.word),
        (Some(_) | None, Some(_) | None) => String::new(),
    }
}

async fn ask(cloud: &Cloud, token: &str, method: &str, path: &str, version: String) -> Answer {
    let headers = [("openstack-api-version", version.as_str())];
    let headers = if version.is_empty() { &headers[..0] } else { &headers[..] };
    cloud.call_with(token, method, path, headers, Bytes::new()).await
}

#[test]
fn every_operation_has_a_name_a_policy_and_a_schema() {
    assert_eq!(api_kit::coverage::faults(&app::services()), Vec::<String>::new());
}

#[tokio::test]
async fn no_operation_but_the_open_ones_answers_without_a_token() {
    let cloud = Cloud::new().await;
    let mut asked = 0;
    for service in app::services() {
        for operation in service.operations.iter().filter(|operation| !operation.is_open()) {
            let (method, template) = operation.route();
            let path = format!("{}{}", service.prefix, filled(template));
            for token in ["", "a forged one"] {
                let answer = ask(&cloud, token, method.as_str(), &path, version(&service, operation)).await;
                assert_eq!(answer.status, 401, "{} {path}: {}", operation.id(), answer.json);
                asked += 1;
            }
        }
    }
    assert!(asked > 150, "{asked}");
}

#[tokio::test]
async fn a_caller_without_a_role_is_refused_wherever_the_rule_names_one() {
    let cloud = Cloud::new().await;
    let mut refused = 0;
    for service in app::services() {
        for operation in service.operations.iter().filter(|operation| !operation.is_open()) {
            let (method, template) = operation.route();
            let path = format!("{}{}", service.prefix, filled(template));
            let answer = ask(&cloud, "nobody", method.as_str(), &path, version(&service, operation)).await;
            // Without a role nothing may be changed or made; what is answered at all is an empty view of nothing.
            assert_ne!(answer.status, 500, "{} {path}: {}", operation.id(), answer.json);
            if answer.status == 403 {
                refused += 1;
            }
        }
    }
    assert!(refused > 50, "{refused}");
}

/// All links in a document.
fn links(value: &serde_json::Value, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                match value.as_str() {
                    Some(link) if name == "href" || name == "url" || name == "openapi" => {
                        out.push(link.to_owned());
                    }
                    Some(_) | None => links(value, out),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| links(item, out)),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => (),
    }
}

#[tokio::test]
async fn whatever_discovery_announces_answers() {
    let cloud = Cloud::new().await;
    let mut open = vec!["/".to_owned(), "/network/v2.0".to_owned()];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let answer = cloud.call("admin", "GET", &path, None).await;
        assert!(matches!(answer.status, 200 | 204 | 300), "{path}: {} {}", answer.status, answer.json);
        // From the index to the services, to their versions, to what these name; not into resources and paths of the document.
        if path.matches('/').count() <= 3 && path != "/openapi.json" {
            let mut found = Vec::new();
            links(&answer.json, &mut found);
            open.extend(
                found
                    .iter()
                    .filter_map(|link| link.strip_prefix("http://cloud.test"))
                    // As upstream's, which answers nothing there either: clients only append to it.
                    .filter(|path| *path != "/image/v2/")
                    .map(str::to_owned),
            );
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
}
