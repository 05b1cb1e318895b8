//! Versions, zones, services: what clients ask around the volumes.

use super::{MICRO, rules::ZONE};
use crate::app::App;
use api_kit::time::{naive, now};
use api_kit::{Call, Outcome, Reply};
use serde_json::{Value, json};

fn version(call: &Call<App>) -> Value {
    json!({"id": "v3.0", "status": "CURRENT", "version": MICRO.max.to_string(), "min_version": MICRO.min.to_string(),
        "updated": "2026-11-22T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}/v3/", call.base)}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}]})
}

pub(super) async fn versions(call: Call<App>) -> Outcome {
    Ok(Reply::json(300, json!({"versions": [version(&call)]})))
}

pub(super) async fn version_3(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"versions": [version(&call)]})))
}

pub(super) async fn zones(_call: Call<App>) -> Outcome {
    let zone = json!({"zoneName": ZONE, "zoneState": {"available": true}});
    Ok(Reply::json(200, json!({"availabilityZoneInfo": [zone]})))
}

pub(super) async fn extensions(_call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"extensions": []})))
}

/// The storage daemon, and whether it answers now.
pub(super) async fn services(call: Call<App>) -> Outcome {
    let up = call.app.block.call_within(&wire::Health {}, std::time::Duration::from_secs(3)).await.is_ok();
    let host = &call.app.config.host_name;
    let service = |binary: &str, host: String, up: bool| {
        json!({"binary": binary, "host": host, "zone": ZONE, "status": "enabled",
            "state": if up { "up" } else { "down" }, "updated_at": naive(&now()), "disabled_reason": null,
            "frozen": false, "replication_status": "disabled", "active_backend_id": null})
    };
    let list = [
        service("cinder-scheduler", host.clone(), true),
        service("cinder-volume", format!("{host}@pool"), up),
    ];
    let list: Vec<&Value> =
        list.iter().filter(|one| call.query.get("binary").is_none_or(|name| one["binary"] == name)).collect();
    Ok(Reply::json(200, json!({"services": list})))
}
