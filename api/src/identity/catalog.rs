//! The catalog: which service is where.

use super::entity::{ENDPOINTS, SERVICES, enabled, text};
use crate::app::App;
use crate::bootstrap::host_of;
use crate::tls::Files;
use api_kit::{Caller, Fault};
use base::args;
use base::store::{Query, StoreError, Where};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Enabled services with their enabled endpoints, as rows have them: URLs are still templates.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: Vec<Entry>,
    /// The cloud's URL, which endpoints of this cloud begin with.
    public_url: String,
    /// Names and addresses that the server certificate is good for.
    names: BTreeSet<String>,
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
    let names = Files::new(&app.config.state_dir).names();
    Ok(Catalog { entries: out, public_url, names })
}

impl Catalog {
    /// As a token shows it. Endpoints whose URL needs a project are left out for callers without one.
    ///
    /// `base` is how the client reached identity. When that is one of this machine's own addresses it is led on by the same
    /// one, which works for it, unlike perhaps `127.0.0.1` or an address behind a port forwarding; and a client of the plain
    /// listener is led on to that listener.
    #[must_use]
    pub fn shown(&self, caller: &Caller, base: &str) -> Value {
        let near = base.strip_suffix("/identity").filter(|near| {
            let own = || host_of(near).is_some_and(|host| self.names.contains(&host));
            !self.public_url.is_empty() && (near.starts_with("http://") || own())
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_led_on_by_the_own_address_they_used() {
        let url = "https://10.0.2.15:443/volume/v3/%(project_id)s".to_owned();
        let entry = Entry {
            id: "1".into(),
            kind: "block-storage".into(),
            name: "cinder".into(),
            endpoints: vec![(json!({}), url), (json!({}), "https://elsewhere.example/".to_owned())],
        };
        let names = ["127.0.0.1", "cloud.example"].into_iter().map(str::to_owned).collect();
        let catalog = Catalog { entries: vec![entry], public_url: "https://10.0.2.15:443".into(), names };
        let caller = Caller { project_id: Some("p".into()), ..Caller::default() };
        for (base, url) in [
            ("https://127.0.0.1:9443/identity", "https://127.0.0.1:9443/volume/v3/p"),
            ("https://cloud.example/identity", "https://cloud.example/volume/v3/p"),
            ("https://evil.example/identity", "https://10.0.2.15:443/volume/v3/p"),
        ] {
            let shown = catalog.shown(&caller, base);
            assert_eq!(shown[0]["endpoints"][0]["url"], url);
            assert_eq!(shown[0]["endpoints"][1]["url"], "https://elsewhere.example/");
        }
    }
}
