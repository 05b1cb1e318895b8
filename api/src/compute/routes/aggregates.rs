//! Host aggregates.

use crate::app::App;
use crate::compute::metadata::ZONE;
use crate::compute::policy::ADMIN;
use crate::compute::records::aggregates::{self, Aggregate, Body};
use crate::compute::{micro, schema};
use crate::placement;
use api_kit::time::{naive, now};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use base::store::StoreError;
use serde_json::{Value, json};

const ZONE_KEY: &str = "availability_zone";

pub fn operations() -> Vec<Operation<App>> {
    let (all, one) = ("/v2.1/os-aggregates", "/v2.1/os-aggregates/{aggregate_id}");
    let action = "/v2.1/os-aggregates/{aggregate_id}/action";
    vec![
        Operation::new(Method::GET, all, list)
            .name("aggregates:list")
            .policy("os_compute_api:os-aggregates:index", ADMIN)
            .codes(200, &[401, 403])
            .summary("List host aggregates"),
        Operation::new(Method::POST, all, create)
            .name("aggregates:create")
            .policy("os_compute_api:os-aggregates:create", ADMIN)
            .body(schema::AGGREGATE)
            .codes(200, &[400, 401, 403, 409])
            .summary("Create a host aggregate"),
        Operation::new(Method::GET, one, show)
            .name("aggregates:show")
            .policy("os_compute_api:os-aggregates:show", ADMIN)
            .codes(200, &[400, 401, 403, 404])
            .summary("Show a host aggregate"),
        Operation::new(Method::PUT, one, update)
            .name("aggregates:update")
            .policy("os_compute_api:os-aggregates:update", ADMIN)
            .body(schema::AGGREGATE_UPDATE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Change a host aggregate"),
        Operation::new(Method::DELETE, one, delete)
            .name("aggregates:delete")
            .policy("os_compute_api:os-aggregates:delete", ADMIN)
            .codes(200, &[400, 401, 403, 404])
            .summary("Delete a host aggregate"),
        Operation::new(Method::POST, action, add_host)
            .name("aggregates:add-host")
            .policy("os_compute_api:os-aggregates:add_host", ADMIN)
            .body(schema::AGGREGATE_ADD)
            .action("add_host")
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Add a host to an aggregate"),
        Operation::new(Method::POST, action, remove_host)
            .name("aggregates:remove-host")
            .policy("os_compute_api:os-aggregates:remove_host", ADMIN)
            .body(schema::AGGREGATE_REMOVE)
            .action("remove_host")
            .codes(200, &[400, 401, 403, 404])
            .summary("Take a host from an aggregate"),
        Operation::new(Method::POST, action, set_metadata)
            .name("aggregates:set-metadata")
            .policy("os_compute_api:os-aggregates:set_metadata", ADMIN)
            .body(schema::AGGREGATE_METADATA)
            .action("set_metadata")
            .codes(200, &[400, 401, 403, 404])
            .summary("Set or remove an aggregate's metadata"),
    ]
}

fn view(it: &Aggregate, call: &Call<App>) -> Value {
    let mut out = json!({"id": it.id, "name": it.name, "availability_zone": it.body.metadata.get(ZONE_KEY),
        "hosts": it.body.hosts, "metadata": it.body.metadata, "created_at": naive(&it.created_at),
        "updated_at": it.updated_at.as_deref().map(naive), "deleted": false, "deleted_at": null});
    if call.version >= micro::AGGREGATE_UUID {
        out["uuid"] = json!(it.uuid);
    }
    out
}

fn missing(id: &str) -> Fault {
    let id: String = id.chars().take(64).collect();
    Fault::not_found(format!("Aggregate {id} could not be found."))
}

/// There is one zone; a name that means nothing is not taken.
fn zone(value: &Value) -> Result<Option<String>, Fault> {
    match value.as_str() {
        None => Ok(None),
        Some(ZONE) => Ok(Some(ZONE.to_owned())),
        Some(other) => Err(Fault::bad_request(format!(
            "Availability zone '{}' cannot be made: this cloud has one host, in the zone '{ZONE}'.",
            other.chars().take(64).collect::<String>()
        ))),
    }
}

fn taken(error: StoreError, name: &str) -> Fault {
    match error {
        StoreError::Duplicate(_) => Fault::conflict(format!("Aggregate {name} already exists.")),
        other => other.into(),
    }
}

async fn find(call: &Call<App>) -> Result<Aggregate, Fault> {
    let text = call.path("aggregate_id");
    let id: i64 = text.parse().map_err(|_| missing(text))?;
    aggregates::get(&call.app.store, id).await?.ok_or_else(|| missing(text))
}

/// Changes an aggregate and answers what it then is.
async fn change(
    call: &Call<App>,
    how: impl Fn(&mut Aggregate) -> Result<(), Fault> + Send + Sync,
) -> Outcome {
    let (id, how) = (find(call).await?.id, &how);
    let changed = call
        .app
        .store
        .tx(|tx| async move {
            let mut it = aggregates::get(&tx, id).await?.ok_or_else(|| missing(&id.to_string()))?;
            how(&mut it)?;
            it.updated_at = Some(now());
            aggregates::put(&tx, &it).await.map_err(|error| taken(error, &it.name))?;
            Ok::<_, Fault>(it)
        })
        .await?;
    Ok(Reply::json(200, json!({"aggregate": view(&changed, call)})))
}

async fn list(call: Call<App>) -> Outcome {
    let all = aggregates::all(&call.app.store).await?;
    let all: Vec<Value> = all.iter().map(|it| view(it, &call)).collect();
    Ok(Reply::json(200, json!({"aggregates": all})))
}

async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("aggregate");
    let name = body["name"].as_str().unwrap_or_default().trim();
    let zone = zone(&body[ZONE_KEY])?.map(|zone| (ZONE_KEY.to_owned(), zone));
    let new = &Aggregate {
        id: 0,
        uuid: uuid::Uuid::new_v4().to_string(),
        name: name.to_owned(),
        created_at: now(),
        updated_at: None,
        body: Body { metadata: zone.into_iter().collect(), ..Body::default() },
    };
    let made = call
        .app
        .store
        .tx(|tx| async move {
            let it = Aggregate { id: aggregates::number(&tx).await?, ..new.clone() };
            aggregates::put(&tx, &it).await.map_err(|error| taken(error, name))?;
            Ok::<_, Fault>(it)
        })
        .await?;
    let mut shown = view(&made, &call);
    // A new one is answered without what it cannot have yet.
    if let Some(map) = shown.as_object_mut() {
        map.retain(|key, _| key != "hosts" && key != "metadata");
    }
    Ok(Reply::json(200, json!({"aggregate": shown})))
}

async fn show(call: Call<App>) -> Outcome {
    let it = find(&call).await?;
    Ok(Reply::json(200, json!({"aggregate": view(&it, &call)})))
}

async fn update(call: Call<App>) -> Outcome {
    let body = call.inner("aggregate");
    let zone = body.get(ZONE_KEY).map(zone).transpose()?;
    change(&call, |it| {
        if let Some(name) = body["name"].as_str() {
            name.trim().clone_into(&mut it.name);
        }
        match &zone {
            None => None,
            Some(None) => it.body.metadata.remove(ZONE_KEY),
            Some(Some(zone)) => it.body.metadata.insert(ZONE_KEY.to_owned(), zone.clone()),
        };
        Ok(())
    })
    .await
}

async fn delete(call: Call<App>) -> Outcome {
    let id = find(&call).await?.id;
    call.app
        .store
        .tx(|tx| async move {
            let it = aggregates::get(&tx, id).await?.ok_or_else(|| missing(&id.to_string()))?;
            if !it.body.hosts.is_empty() {
                return Err(Fault::bad_request(format!(
                    "Cannot perform action 'delete' on aggregate {id}. Reason: Host aggregate is not empty."
                )));
            }
            Ok(aggregates::delete(&tx, id).await?)
        })
        .await?;
    Ok(Reply::empty(200))
}

async fn add_host(call: Call<App>) -> Outcome {
    let host = call.inner("add_host")["host"].as_str().unwrap_or_default();
    if !placement::inner::rooms(&call.app.store).await?.iter().any(|room| room.provider.name == host) {
        find(&call).await?;
        let host: String = host.chars().take(64).collect();
        return Err(Fault::not_found(format!("Compute host {host} could not be found.")));
    }
    change(&call, |it| {
        if it.body.hosts.insert(host.to_owned()) {
            return Ok(());
        }
        Err(Fault::conflict(format!("Aggregate {} already has host {host}.", it.id)))
    })
    .await
}

async fn remove_host(call: Call<App>) -> Outcome {
    let host = call.inner("remove_host")["host"].as_str().unwrap_or_default();
    change(&call, |it| {
        if it.body.hosts.remove(host) {
            return Ok(());
        }
        let host: String = host.chars().take(64).collect();
        Err(Fault::not_found(format!("Aggregate {} has no host {host}.", it.id)))
    })
    .await
}

async fn set_metadata(call: Call<App>) -> Outcome {
    let given = &call.inner("set_metadata")["metadata"];
    if let Some(value) = given.get(ZONE_KEY) {
        zone(value)?;
    }
    change(&call, |it| {
        for (key, value) in given.as_object().into_iter().flatten() {
            match value.as_str() {
                Some(text) => it.body.metadata.insert(key.clone(), text.to_owned()),
                None => it.body.metadata.remove(key),
            };
        }
        Ok(())
    })
    .await
}
