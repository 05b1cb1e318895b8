//! The catalog: which service is where.

use super::entity::{ENDPOINTS, SERVICES, enabled, text};
use crate::app::App;
use api_kit::{Caller, Fault};
use base::args;
use base::store::{Query, StoreError, Where};
use serde_json::{Value, json};
use std::sync::Arc;

/// Enabled services with their enabled endpoints, as rows have them: URLs are still templates.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: Vec<Entry>,
    /// The cloud's URL, which endpoints of this cloud begin with.
    public_url: String,
}

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
    let sql = "SELECT value FROM identity_settings WHERE name = 'public_url'";
    let row = app.store.row(sql, args![]).await?;
    let public_url = row.map_or(Ok(String::new()), |row| row.text("value"))?;
    Ok(Catalog { entries: out, public_url })
}

impl Catalog {
    /// As a token shows it. Endpoints whose URL needs a project are left out for callers without one.
    ///
    /// `base` is how the client reached identity. A client of the plain listener on loopback is led on to that listener,
    /// not to the encrypted one.
    #[must_use]
    pub fn shown(&self, caller: &Caller, base: &str) -> Value {
        let near = base
            .strip_suffix("/identity")
            .filter(|base| base.starts_with("http://") && !self.public_url.is_empty());
        self.entries
            .iter()
            .map(|entry| {
                let endpoints: Vec<Value> = entry
                    .endpoints
                    .iter()
                    .filter_map(|(shown, template)| {
                        let mut shown = shown.clone();
                        let mut url = fill(template, caller)?;
                        if let (Some(near), Some(path)) = (near, url.strip_prefix(&self.public_url)) {
                            url = format!("{near}{path}");
                        }
                        shown["url"] = url.into();
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
