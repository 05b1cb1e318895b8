//! QoS specs: what volumes of a type may move.
//!
//! Keys are free, as upstream's are. Those that a guest's disk knows ([`limits`]) are enforced by the machine that has the volume,
//! whether the consumer is `front-end` or `both`; `back-end` is for a storage that limits by itself, which the pool does not.

use super::records::Pairs;
use super::rules::{cut_text, text};
use super::type_rows::{self as rows, Kind, Qos};
use super::types;
use crate::app::App;
use api_kit::time::now;
use api_kit::{Call, Fault, Outcome, Reply};
use base::store::{StoreError, Tx};
use serde_json::{Value, json};
use uuid::Uuid;
use wire::machine::{Limit, Limits};

/// Who may enforce specs.
const CONSUMERS: [&str; 3] = ["front-end", "back-end", "both"];

/// Limits of a disk by the names of libvirt's tuning, which both QoS specs and flavors use. `number` answers a value by its name
/// without a prefix (`total_bytes_sec`); 0 is no limit.
///
/// A monitor's disk has one bucket for both directions. `total_*` is just that. Separate limits for reading *and* writing become
/// their sum, which holds nobody back who stays within both; a limit of one direction alone cannot be kept without harming the
/// other, and is left out.
pub fn limits(number: impl Fn(&str) -> Option<u64>) -> Limits {
    let number = |name: String| number(&name).filter(|value| *value > 0);
    let limit = |what: &str| {
        let of = |suffix: &str| {
            let total = number(format!("total_{what}_sec{suffix}"));
            let both = || {
                let read = number(format!("read_{what}_sec{suffix}"))?;
                Some(read.saturating_add(number(format!("write_{what}_sec{suffix}"))?))
            };
            total.or_else(both)
        };
        let per_second = of("")?;
        Some(Limit { per_second, burst: of("_max").unwrap_or(0).max(per_second) })
    };
    Limits { bytes: limit("bytes"), operations: limit("iops") }
}

/// The specs as they are for a volume of this size: `*_per_gb` times its size, at least `*_per_gb_min`.
pub(super) fn for_size(specs: &Pairs, gib: i64) -> Pairs {
    let mut out = specs.clone();
    for (name, value) in specs {
        let Some(base) = name.strip_suffix("_per_gb") else { continue };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let Some(each) = number(value) else { continue };
        let least = specs.get(&format!("{name}_min")).and_then(|text| number(text)).unwrap_or(0);
        let whole = each.saturating_mul(u64::try_from(gib).unwrap_or(0)).max(least);
        out.insert(base.to_owned(), whole.to_string());
        out.remove(name);
        out.remove(&format!("{name}_min"));
    }
    out
}

/// What of QoS specs the machine is to enforce for a volume of this size.
pub(super) fn front_end(qos: &Qos, gib: i64) -> Option<Pairs> {
    (qos.consumer != "back-end").then(|| for_size(&qos.specs, gib))
}

/// Limits of the disk of a volume with these specs.
pub(super) fn of_specs(specs: &Pairs) -> Limits {
    limits(|name| specs.get(name)?.trim().parse().ok())
}

fn missing(id: &str) -> Fault {
    Fault::not_found(format!("No such qos specs {}.", cut_text(id)))
}

async fn find(call: &Call<App>) -> Result<Qos, Fault> {
    let id = call.path("qos_id");
    rows::get_qos(&call.app.store, id).await?.ok_or_else(|| missing(id))
}

fn plain(qos: &Qos) -> Value {
    json!({"id": qos.id, "name": qos.name, "consumer": qos.consumer, "specs": qos.specs})
}

fn shown(call: &Call<App>, qos: &Qos) -> Value {
    let project = call.path("project_id");
    let root = &call.base;
    json!({"qos_specs": plain(qos), "links": [
        {"rel": "self", "href": format!("{root}/v3/{project}/qos-specs/{}", qos.id)},
        {"rel": "bookmark", "href": format!("{root}/{project}/qos-specs/{}", qos.id)}]})
}

/// Free keys of a body; numbers are taken as text, as clients send both.
fn free(body: &Value) -> Pairs {
    let map = body.as_object().into_iter().flatten();
    map.filter(|(name, _)| !["name", "consumer"].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect()
}

fn consumer(body: &Value) -> Result<Option<String>, Fault> {
    let Some(given) = text(body, "consumer") else { return Ok(None) };
    if CONSUMERS.contains(&given.as_str()) {
        return Ok(Some(given));
    }
    Err(Fault::bad_request(format!("Valid consumer of QoS specs are: {CONSUMERS:?}")))
}

pub(super) async fn list(call: Call<App>) -> Outcome {
    let mut all = rows::all_qos(&call.app.store).await?;
    if let Some(marker) = call.query.get("marker") {
        let at = all.iter().position(|it| it.id == marker);
        let at = at.ok_or_else(|| Fault::not_found(format!("marker [{}] not found", cut_text(marker))))?;
        all.drain(..=at);
    }
    if let Some(limit) = call.query.get("limit") {
        let limit = limit.parse::<usize>();
        all.truncate(
            limit.map_err(|_| Fault::bad_request("Invalid input received: limit must be a number"))?,
        );
    }
    let all: Vec<Value> = all.iter().map(plain).collect();
    Ok(Reply::json(200, json!({"qos_specs": all})))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let qos = find(&call).await?;
    Ok(Reply::json(200, shown(&call, &qos)))
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let body = call.inner("qos_specs");
    let name = text(body, "name").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    let qos = Qos {
        id: Uuid::new_v4().hyphenated().to_string(),
        name: name.ok_or_else(|| Fault::bad_request("Please specify a name for QoS specs."))?,
        consumer: consumer(body)?.unwrap_or_else(|| "back-end".to_owned()),
        specs: free(body),
        created_at: now(),
    };
    let new = &qos;
    call.app.store.tx(|tx| async move { rows::insert_qos(&tx, new).await }).await.map_err(
        |error| match error {
            StoreError::Duplicate(_) => {
                Fault::conflict(format!("QoS Specs {} already exists.", cut_text(&qos.name)))
            }
            other => other.into(),
        },
    )?;
    Ok(Reply::json(200, shown(&call, &qos)))
}

async fn change(
    call: &Call<App>,
    how: impl Fn(&mut Qos) -> Result<(), Fault> + Send + Sync,
) -> Result<(), Fault> {
    let (id, how) = (call.path("qos_id"), &how);
    call.app
        .store
        .tx(|tx| async move {
            let mut qos = rows::get_qos(&tx, id).await?.ok_or_else(|| missing(id))?;
            how(&mut qos)?;
            Ok(rows::update_qos(&tx, &qos).await?)
        })
        .await
}

/// Sets keys. Disks that are plugged in keep what they have; the next attachment has the new limits, as upstream's.
pub(super) async fn update(call: Call<App>) -> Outcome {
    let body = call.inner("qos_specs");
    let (specs, consumer) = (free(body), consumer(body)?);
    change(&call, |qos| {
        qos.specs.extend(specs.clone());
        if let Some(consumer) = &consumer {
            qos.consumer.clone_from(consumer);
        }
        Ok(())
    })
    .await?;
    Ok(Reply::json(200, call.body.clone()))
}

pub(super) async fn delete_keys(call: Call<App>) -> Outcome {
    let keys: Vec<&str> =
        call.body["keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    change(&call, |qos| {
        for key in &keys {
            qos.specs.remove(*key).ok_or_else(|| {
                Fault::not_found(format!("QoS spec {} has no spec with key {}.", qos.id, cut_text(key)))
            })?;
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty(202))
}

fn with(all: Vec<Kind>, id: &str) -> Vec<Kind> {
    all.into_iter().filter(|kind| kind.qos_specs_id.as_deref() == Some(id)).collect()
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let (qos, force) = (find(&call).await?, call.query.truth("force")?.unwrap_or(false));
    let id = qos.id.as_str();
    call.app
        .store
        .tx(|tx| async move {
            if !force && !with(rows::all(&tx).await?, id).is_empty() {
                return Err(Fault::bad_request(format!("QoS Specs {id} is still associated with entities.")));
            }
            rows::disassociate_all(&tx, id).await?;
            Ok(rows::delete_qos(&tx, id).await?)
        })
        .await?;
    Ok(Reply::empty(202))
}

pub(super) async fn associations(call: Call<App>) -> Outcome {
    let qos = find(&call).await?;
    let all = with(rows::all(&call.app.store).await?, &qos.id);
    let all: Vec<Value> = all
        .iter()
        .map(|kind| json!({"association_type": "volume_type", "name": kind.name, "id": kind.id}))
        .collect();
    Ok(Reply::json(200, json!({"qos_associations": all})))
}

/// The type that a request names, read in the transaction that changes it.
async fn asked_type(call: &Call<App>, tx: &Tx) -> Result<Kind, Fault> {
    let id = call.query.get("vol_type_id").unwrap_or_default();
    rows::get(tx, id).await?.ok_or_else(|| types::missing(id))
}

fn need_type(call: &Call<App>) -> Result<(), Fault> {
    match call.query.get("vol_type_id") {
        Some(id) if !id.is_empty() => Ok(()),
        Some(_) | None => Err(Fault::bad_request("Volume Type id must not be None.")),
    }
}

pub(super) async fn associate(call: Call<App>) -> Outcome {
    need_type(&call)?;
    let (call, qos) = (&call, &find(&call).await?);
    call.app
        .store
        .tx(|tx| async move {
            let mut kind = asked_type(call, &tx).await?;
            if let Some(other) = kind.qos_specs_id.as_deref().filter(|other| *other != qos.id) {
                return Err(Fault::bad_request(format!(
                    "Invalid volume type: Type {} is already associated with another qos specs: {other}",
                    kind.id
                )));
            }
            kind.qos_specs_id = Some(qos.id.clone());
            Ok(rows::update(&tx, &kind).await?)
        })
        .await?;
    Ok(Reply::empty(202))
}

pub(super) async fn disassociate(call: Call<App>) -> Outcome {
    need_type(&call)?;
    let (call, qos) = (&call, &find(&call).await?);
    call.app
        .store
        .tx(|tx| async move {
            let mut kind = asked_type(call, &tx).await?;
            if kind.qos_specs_id.as_deref() == Some(&qos.id) {
                kind.qos_specs_id = None;
                rows::update(&tx, &kind).await?;
            }
            Ok::<_, Fault>(())
        })
        .await?;
    Ok(Reply::empty(202))
}

pub(super) async fn disassociate_all(call: Call<App>) -> Outcome {
    let qos = &find(&call).await?;
    call.app.store.tx(|tx| async move { rows::disassociate_all(&tx, &qos.id).await }).await?;
    Ok(Reply::empty(202))
}

#[cfg(test)]
mod tests {
    use super::{for_size, of_specs};
    use crate::volume::records::Pairs;
    use wire::machine::{Limit, Limits};

    fn specs(all: &[(&str, &str)]) -> Pairs {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn keys_become_the_limits_that_a_disk_has() {
        let made =
            of_specs(&specs(&[("total_bytes_sec", "100"), ("total_bytes_sec_max", "500"), ("other", "x")]));
        assert_eq!(made, Limits { bytes: Some(Limit { per_second: 100, burst: 500 }), operations: None });
        let both = of_specs(&specs(&[("read_iops_sec", "10"), ("write_iops_sec", "20")]));
        assert_eq!(both.operations, Some(Limit { per_second: 30, burst: 30 }));
        let one =
            of_specs(&specs(&[("read_iops_sec", "10"), ("total_bytes_sec", "0"), ("write_bytes_sec", "a")]));
        assert_eq!(one, Limits::default(), "one direction alone is not held back by both");
    }

    #[test]
    fn a_rate_for_each_gib_grows_with_the_volume() {
        let given =
            specs(&[("total_iops_sec_per_gb", "10"), ("total_iops_sec_per_gb_min", "50"), ("x", "y")]);
        assert_eq!(for_size(&given, 2), specs(&[("total_iops_sec", "50"), ("x", "y")]));
        assert_eq!(for_size(&given, 7), specs(&[("total_iops_sec", "70"), ("x", "y")]));
    }
}
