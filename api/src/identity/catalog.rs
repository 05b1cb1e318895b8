//! The catalog: which service is where.

use super::entity::{ENDPOINTS, SERVICES, enabled, text};
use crate::app::App;
use api_kit::{Caller, Fault};
use base::store::{StoreError, Where};
use serde_json::{Value, json};
use std::sync::Arc;

/// Enabled services with their enabled endpoints, as rows have them: URLs are still templates.
#[derive(Debug, Default)]
pub struct Catalog(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    id: String,
    kind: String,
    name: String,
    endpoints: Vec<(Value, String)>,
}

/// The catalog, remembered until something changes.
///
/// # Errors
/// When the store does not answer.
pub async fn load(app: &App) -> Result<Arc<Catalog>, Fault> {
    if let Some(catalog) = app.identity.catalog() {
        return Ok(catalog);
    }
    let generation = app.identity.generation();
    let catalog = Arc::new(read(app).await?);
    app.identity.remember_catalog(generation, &catalog);
    Ok(catalog)
}

async fn read(app: &App) -> Result<Catalog, StoreError> {
    let mut select = Where::new(SERVICES.select);
    select.end("ORDER BY type, id", []);
    let services = SERVICES.rows(&app.store, select).await?;
    let mut select = Where::new(ENDPOINTS.select);
    select.end("ORDER BY interface, id", []);
    let endpoints = ENDPOINTS.rows(&app.store, select).await?;
    let mut out = Vec::new();
    for service in services.iter().filter(|service| enabled(service)) {
        let id = text(service, "id");
        let of_it = endpoints
            .iter()
            .filter(|endpoint| enabled(endpoint) && text(endpoint, "service_id") == id)
            .map(|endpoint| {
                let shown = json!({"id": endpoint["id"], "interface": endpoint["interface"],
                    "region_id": endpoint.get("region_id"), "region": endpoint.get("region_id")});
                (shown, text(endpoint, "url").to_owned())
            })
            .collect();
        out.push(Entry {
            id: id.to_owned(),
            kind: text(service, "type").to_owned(),
            name: text(service, "name").to_owned(),
            endpoints: of_it,
        });
    }
    Ok(Catalog(out))
}

impl Catalog {
    /// As a token shows it. Endpoints whose URL needs a project are left out for callers without one.
    #[must_use]
    pub fn shown(&self, caller: &Caller) -> Value {
        self.0
            .iter()
            .map(|entry| {
                let endpoints: Vec<Value> = entry
                    .endpoints
                    .iter()
                    .filter_map(|(shown, template)| {
                        let mut shown = shown.clone();
                        shown["url"] = fill(template, caller)?.into();
                        Some(shown)
                    })
                    .collect();
                json!({"id": entry.id, "type": entry.kind, "name": entry.name, "endpoints": endpoints})
            })
            .collect()
    }
}

fn fill(template: &str, caller: &Caller) -> Option<String> {
    let mut out = template.to_owned();
    for (from, to) in [
        ("%(project_id)s", caller.project_id.as_deref()),
        ("$(project_id)s", caller.project_id.as_deref()),
        ("%(tenant_id)s", caller.project_id.as_deref()),
        ("$(tenant_id)s", caller.project_id.as_deref()),
        ("%(user_id)s", Some(caller.user_id.as_str())),
        ("$(user_id)s", Some(caller.user_id.as_str())),
    ] {
        if out.contains(from) {
            out = out.replace(from, to?);
        }
    }
    Some(out)
}
