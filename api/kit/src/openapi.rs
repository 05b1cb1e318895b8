//! The OpenAPI 3.1 document, written from the declarations.

use crate::operation::BodyMode;
use crate::router::{BadDeclaration, Mounted};
use crate::{Operation, Router, Service};
use bytes::Bytes;
use serde_json::{Map, Value, json};

impl<S: Send + Sync + 'static> Router<S> {
    /// The document, made once.
    pub fn openapi_json(&self) -> Bytes {
        self.openapi
            .get_or_init(|| Bytes::from(write(self.services.values().map(|one| &**one)).to_string()))
            .clone()
    }
}

/// The document of services that nobody serves: for tools and tests.
///
/// # Errors
/// When a declaration is wrong.
pub fn document<S: Send + Sync + 'static>(services: Vec<Service<S>>) -> Result<Value, BadDeclaration> {
    let mounted: Vec<Mounted<S>> =
        services.into_iter().map(|service| Mounted::new(service, None)).collect::<Result<_, _>>()?;
    Ok(write(mounted.iter()))
}

fn write<'a, S: 'a>(services: impl Iterator<Item = &'a Mounted<S>>) -> Value {
    let mut paths = Map::new();
    let mut tags = Vec::new();
    for service in services {
        tags.push(json!({"name": service.name, "description": format!("OpenStack {} API", service.kind)}));
        for operation in service.routes.iter().flatten() {
            let path = format!("{}{}", service.prefix, operation.path.replace("{*", "{"));
            let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(&path);
            // OpenAPI has one operation per path and method: versions and actions become fragments.
            let path = match (operation.action, operation.since) {
                (Some(action), None) => format!("{path}#{action}"),
                (Some(action), Some(since)) => format!("{path}#{action}-{since}"),
                (None, Some(since)) => format!("{path}#{since}"),
                (None, None) => path.to_owned(),
            };
            let entry = paths.entry(path).or_insert_with(|| json!({}));
            let method = operation.method.as_str().to_lowercase();
            // OpenAPI 3.1 knows no other methods: Swift's COPY is an extension.
            let known = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
            let key = if known.contains(&method.as_str()) { method } else { format!("x-{method}") };
            entry[key] = describe(service, operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Ferrostack", "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "tags": tags,
        "paths": paths,
        "components": {"securitySchemes": {"token":
            {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}}},
    })
}

fn describe<S>(service: &Mounted<S>, operation: &Operation<S>) -> Value {
    let mut parameters: Vec<Value> = operation
        .path
        .split('{')
        .skip(1)
        .filter_map(|part| part.split_once('}'))
        .map(|(name, _)| {
            json!({"name": name.trim_start_matches('*'), "in": "path", "required": true,
                "schema": {"type": "string"}})
        })
        .collect();
    let mut names: Vec<&str> = operation.query.clone();
    names.sort_unstable();
    names.dedup();
    for name in names {
        parameters.push(json!({"name": name, "in": "query", "schema": {"type": "string"}}));
    }
    let mut responses = Map::new();
    responses.insert(operation.success.to_string(), json!({"description": "success"}));
    for code in operation.errors {
        responses.insert(code.to_string(), json!({"description": "refused"}));
    }
    let mut out = json!({
        "operationId": format!("{}:{}", service.name, operation.name),
        "summary": operation.summary,
        "tags": [service.name],
        "parameters": parameters,
        "responses": responses,
        "security": if operation.open { json!([]) } else { json!([{"token": []}]) },
    });
    if let Some((rule, _)) = operation.policy {
        out["x-openstack-policy"] = json!(rule);
    }
    if let Some(since) = operation.since {
        out["x-openstack-min-version"] = json!(since.to_string());
    }
    if let Some(until) = operation.until {
        out["x-openstack-max-version"] = json!(until.to_string());
    }
    let schemas: Vec<Value> = operation
        .schemas
        .iter()
        .map(|(from, schema)| {
            let mut schema: Value = serde_json::from_str(schema.text()).unwrap_or(Value::Bool(true));
            if from.0 > 0 && schema.is_object() {
                schema["x-openstack-min-version"] = json!(from.to_string());
            }
            schema
        })
        .collect();
    match (schemas.as_slice(), operation.body) {
        ([], BodyMode::Stream | BodyMode::Raw(_)) => {
            out["requestBody"] = json!({"content": {"application/octet-stream": {}}});
        }
        ([], BodyMode::Json) => (),
        ([schema], BodyMode::Json | BodyMode::Raw(_) | BodyMode::Stream) => {
            out["requestBody"] = json!({"content": {"application/json": {"schema": schema}}});
        }
        (several, BodyMode::Json | BodyMode::Raw(_) | BodyMode::Stream) => {
            out["requestBody"] = json!({"content": {"application/json": {"schema": {"oneOf": several}}}});
        }
    }
    out
}
