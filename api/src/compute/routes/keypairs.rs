//! Key pairs.

use crate::app::App;
use crate::compute::policy::KEYPAIR;
use crate::compute::records::keypairs::{self, Keypair};
use crate::compute::{keys, micro, rules, schema, view};
use api_kit::{Call, Fault, Operation, Outcome, Reply, Target};
use axum::http::Method;
use base::store::StoreError;
use serde_json::json;

pub fn operations() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/v2.1/os-keypairs", list)
            .name("keypairs:list")
            .policy("os_compute_api:os-keypairs:index", KEYPAIR)
            .query(&["user_id", "limit", "marker"])
            .codes(200, &[400, 401, 403])
            .summary("List key pairs"),
        Operation::new(Method::POST, "/v2.1/os-keypairs", create)
            .name("keypairs:create")
            .policy("os_compute_api:os-keypairs:create", KEYPAIR)
            .body(schema::KEYPAIR)
            .body_from(micro::KEYPAIR_TYPE, schema::KEYPAIR_2_2)
            .body_from(micro::KEYPAIR_USER, schema::KEYPAIR_2_10)
            .body_from(micro::KEYPAIR_IMPORT_ONLY, schema::KEYPAIR_2_92)
            .codes(200, &[400, 401, 403, 409])
            .summary("Import a public key, or create a key pair"),
        Operation::new(Method::GET, "/v2.1/os-keypairs/{name}", show)
            .name("keypairs:show")
            .policy("os_compute_api:os-keypairs:show", KEYPAIR)
            .query(&["user_id"])
            .codes(200, &[401, 403, 404])
            .summary("Show a key pair"),
        Operation::new(Method::DELETE, "/v2.1/os-keypairs/{name}", delete)
            .name("keypairs:delete")
            .policy("os_compute_api:os-keypairs:delete", KEYPAIR)
            .query(&["user_id"])
            .codes(202, &[401, 403, 404])
            .summary("Delete a key pair"),
    ]
}

/// Whose key pairs are meant, if the caller may touch them.
fn user(call: &Call<App>, named: Option<&str>) -> Result<String, Fault> {
    let user = named.filter(|_| call.version >= micro::KEYPAIR_USER).unwrap_or(&call.caller.user_id);
    call.enforce(&Target::new().user(user))?;
    Ok(user.to_owned())
}

fn missing(name: &str, user: &str) -> Fault {
    let name: String = name.chars().take(255).collect();
    Fault::not_found(format!("Keypair {name} not found for user {user}"))
}

async fn list(call: Call<App>) -> Outcome {
    let user = user(&call, call.query.get("user_id"))?;
    let paged = call.version >= micro::KEYPAIR_PAGING;
    let limit = match call.query.get("limit").filter(|_| paged) {
        None => 1000,
        Some(text) => text.parse::<i64>().ok().filter(|limit| *limit >= 0).ok_or_else(|| {
            let text: String = text.chars().take(64).collect();
            Fault::bad_request(format!("Invalid input for query parameters limit. Value: {text}."))
        })?,
    }
    .min(1000);
    let marker = call.query.get("marker").filter(|_| paged);
    if let Some(marker) = marker
        && keypairs::get(&call.app.store, &user, marker).await?.is_none()
    {
        let marker: String = marker.chars().take(255).collect();
        return Err(Fault::bad_request(format!("marker [{marker}] not found")));
    }
    let mut found = keypairs::list(&call.app.store, &user, marker, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(1000);
    let more = found.len() > limit;
    found.truncate(limit);
    let all: Vec<_> = found.iter().map(|it| json!({"keypair": view::keypair(it, call.version)})).collect();
    let mut body = json!({"keypairs": all});
    if let Some(last) = found.last().filter(|_| more && paged) {
        body["keypairs_links"] = json!([{"rel": "next", "href": super::next_link(&call, &last.name)}]);
    }
    Ok(Reply::json(200, body))
}

async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("keypair");
    let user = user(&call, body["user_id"].as_str())?;
    let name = body["name"].as_str().unwrap_or_default().trim();
    if body["type"].as_str() == Some("x509") {
        return Err(Fault::bad_request(
            "Keypair data is invalid: key pairs of type x509 are not supported; use type ssh.",
        ));
    }
    let invalid = |reason: String| Fault::bad_request(format!("Keypair data is invalid: {reason}"));
    let (public_key, private_key) = match body["public_key"].as_str() {
        Some(key) => (key.trim().to_owned(), None),
        None if call.version >= micro::KEYPAIR_IMPORT_ONLY => {
            return Err(invalid(
                "public_key is required from version 2.92 on; make the pair with ssh-keygen".to_owned(),
            ));
        }
        None => {
            let (private, public) = keys::generate("generated-by-compute").map_err(Fault::internal)?;
            (public, Some(private))
        }
    };
    let fingerprint = keys::fingerprint(&public_key).map_err(invalid)?;
    let row = Keypair {
        user_id: user.clone(),
        name: name.to_owned(),
        kind: "ssh".to_owned(),
        fingerprint,
        public_key,
        created_at: api_kit::time::now(),
    };
    let (it, project) = (&row, call.caller.project_id.as_deref().unwrap_or_default());
    let made = call
        .app
        .store
        .tx(|tx| async move {
            let count = keypairs::count(&tx, &it.user_id).await?;
            let fits =
                api_kit::quota::fits(&tx, "compute", project, rules::quota("key_pairs"), count, 1).await?;
            if fits.is_err() {
                return Ok(Err(Fault::over_quota("Quota exceeded, too many key pairs.")));
            }
            keypairs::insert(&tx, it).await?;
            Ok::<_, StoreError>(Ok(()))
        })
        .await;
    match made {
        Err(StoreError::Duplicate(_)) => {
            return Err(Fault::conflict(format!("Key pair '{name}' already exists.")));
        }
        other => other??,
    }
    let mut shown = view::keypair(&row, call.version);
    shown["user_id"] = json!(user);
    if let Some(private) = private_key {
        shown["private_key"] = json!(private);
    }
    let code = if call.version >= micro::KEYPAIR_TYPE { 201 } else { 200 };
    Ok(Reply::json(code, json!({"keypair": shown})))
}

async fn show(call: Call<App>) -> Outcome {
    let user = user(&call, call.query.get("user_id"))?;
    let name = call.path("name");
    let it = keypairs::get(&call.app.store, &user, name).await?.ok_or_else(|| missing(name, &user))?;
    let mut shown = view::keypair(&it, call.version);
    shown["user_id"] = json!(it.user_id);
    shown["created_at"] = json!(api_kit::time::naive(&it.created_at));
    shown["deleted"] = json!(false);
    shown["deleted_at"] = json!(null);
    shown["updated_at"] = json!(null);
    // Upstream's rows are numbered; nothing refers to the number.
    shown["id"] = json!(1);
    Ok(Reply::json(200, json!({"keypair": shown})))
}

async fn delete(call: Call<App>) -> Outcome {
    let user = user(&call, call.query.get("user_id"))?;
    let (name, owner) = (call.path("name"), user.as_str());
    if !call.app.store.tx(|tx| async move { keypairs::delete(&tx, owner, name).await }).await? {
        return Err(missing(name, &user));
    }
    Ok(Reply::empty(if call.version >= micro::KEYPAIR_TYPE { 204 } else { 202 }))
}
