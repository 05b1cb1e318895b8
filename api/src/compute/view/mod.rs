//! What clients see.

pub mod server;

use super::micro;
use super::records::flavors::Flavor;
use super::records::keypairs::Keypair;
use api_kit::Micro;
use serde_json::{Value, json};

/// Links of a resource: with and without the version.
#[must_use]
pub fn links(base: &str, kind: &str, id: &str) -> Value {
    json!([
        {"rel": "self", "href": format!("{base}/v2.1/{kind}/{id}")},
        {"rel": "bookmark", "href": format!("{base}/{kind}/{id}")},
    ])
}

/// Only the bookmark, as embedded references carry it.
#[must_use]
pub fn bookmark(base: &str, kind: &str, id: &str) -> Value {
    json!([{"rel": "bookmark", "href": format!("{base}/{kind}/{id}")}])
}

/// A flavor, whole.
#[must_use]
pub fn flavor(it: &Flavor, version: Micro, base: &str) -> Value {
    let swap = if it.swap_mb > 0 || version >= micro::STRICT { json!(it.swap_mb) } else { json!("") };
    let mut out = json!({
        "id": it.id, "name": it.name, "ram": it.memory_mb, "disk": it.disk_gb, "vcpus": it.vcpus, "swap": swap,
        "OS-FLV-EXT-DATA:ephemeral": it.ephemeral_gb, "OS-FLV-DISABLED:disabled": false,
        "os-flavor-access:is_public": it.is_public, "rxtx_factor": it.rxtx_factor,
        "links": links(base, "flavors", &it.id),
    });
    if version >= micro::FLAVOR_DESCRIPTION {
        out["description"] = json!(it.description);
    }
    if version >= micro::FLAVOR_SPECS {
        out["extra_specs"] = json!(it.extra_specs);
    }
    out
}

/// A flavor in the short list.
#[must_use]
pub fn flavor_brief(it: &Flavor, version: Micro, base: &str) -> Value {
    let mut out = json!({"id": it.id, "name": it.name, "links": links(base, "flavors", &it.id)});
    if version >= micro::FLAVOR_DESCRIPTION {
        out["description"] = json!(it.description);
    }
    out
}

/// A key pair in lists.
#[must_use]
pub fn keypair(it: &Keypair, version: Micro) -> Value {
    let mut out = json!({"name": it.name, "public_key": it.public_key, "fingerprint": it.fingerprint});
    if version >= micro::KEYPAIR_TYPE {
        out["type"] = json!(it.kind);
    }
    out
}
