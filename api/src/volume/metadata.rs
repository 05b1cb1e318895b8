//! Metadata of volumes and snapshots, key by key.

use super::records::{self, Pairs};
use super::rules::{self, cut_text, pairs};
use super::snapshots;
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply};
use serde_json::json;

/// Whose metadata.
enum Holder {
    Volume(Box<records::Volume>),
    Snapshot(Box<records::Snapshot>),
}

impl Holder {
    async fn find(call: &Call<App>) -> Result<Self, Fault> {
        if call.path("volume_id").is_empty() {
            return Ok(Self::Snapshot(Box::new(snapshots::find(call).await?)));
        }
        Ok(Self::Volume(Box::new(rules::find(call).await?)))
    }

    fn metadata(&mut self) -> &mut Pairs {
        match self {
            Self::Volume(volume) => &mut volume.metadata,
            Self::Snapshot(snapshot) => &mut snapshot.metadata,
        }
    }

    async fn store(&self, call: &Call<App>) -> Result<(), Fault> {
        call.app
            .store
            .tx(|tx| async move {
                match self {
                    Self::Volume(volume) => records::update(&tx, volume).await,
                    Self::Snapshot(snapshot) => records::update_snapshot(&tx, snapshot).await,
                }
            })
            .await?;
        Ok(())
    }
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let mut holder = Holder::find(&call).await?;
    Ok(Reply::json(200, json!({"metadata": holder.metadata()})))
}

pub(super) async fn add(call: Call<App>) -> Outcome {
    let mut holder = Holder::find(&call).await?;
    holder.metadata().extend(pairs(call.inner("metadata")));
    holder.store(&call).await?;
    Ok(Reply::json(200, json!({"metadata": holder.metadata()})))
}

pub(super) async fn replace(call: Call<App>) -> Outcome {
    let mut holder = Holder::find(&call).await?;
    *holder.metadata() = pairs(call.inner("metadata"));
    holder.store(&call).await?;
    Ok(Reply::json(200, json!({"metadata": holder.metadata()})))
}

fn no_key(key: &str) -> Fault {
    Fault::not_found(format!("Metadata item {} was not found.", cut_text(key)))
}

pub(super) async fn show_one(call: Call<App>) -> Outcome {
    let mut holder = Holder::find(&call).await?;
    let key = call.path("key");
    let value = holder.metadata().get(key).ok_or_else(|| no_key(key))?;
    Ok(Reply::json(200, json!({"meta": {key: value}})))
}

pub(super) async fn put_one(call: Call<App>) -> Outcome {
    let mut holder = Holder::find(&call).await?;
    let (key, new) = (call.path("key"), pairs(call.inner("meta")));
    let value = new.get(key).ok_or_else(|| {
        Fault::bad_request("Request body and URI mismatch: the key in the body must be the one in the path.")
    })?;
    holder.metadata().insert(key.to_owned(), value.clone());
    holder.store(&call).await?;
    Ok(Reply::json(200, json!({"meta": new})))
}

pub(super) async fn delete_one(call: Call<App>) -> Outcome {
    let mut holder = Holder::find(&call).await?;
    let key = call.path("key");
    holder.metadata().remove(key).ok_or_else(|| no_key(key))?;
    holder.store(&call).await?;
    Ok(Reply::empty(200))
}
