//! Schemas of bodies, and the schema documents that clients fetch.

use serde_json::{Value, json};

/// Disk formats that a row may have; [`crate::image`] says which of them can be used.
pub(super) const DISK_FORMATS: [&str; 12] =
    ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso", "gpt"];
/// Container formats that a row may have.
pub(super) const CONTAINER_FORMATS: [&str; 8] =
    ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"];

pub(super) const CREATE: &str = r#"{"type": "object", "properties": {
    "id": {"type": "string", "pattern": "^[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$"},
    "name": {"type": ["null", "string"], "maxLength": 255},
    "visibility": {"enum": ["community", "public", "private", "shared"]},
    "protected": {"type": "boolean"},
    "os_hidden": {"type": "boolean"},
    "disk_format": {"enum": [null, "ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso", "gpt"]},
    "container_format": {"enum": [null, "ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"]},
    "min_disk": {"type": "integer", "minimum": 0, "maximum": 2147483647},
    "min_ram": {"type": "integer", "minimum": 0, "maximum": 2147483647},
    "owner": {"type": ["null", "string"], "maxLength": 255},
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}, "maxItems": 128}
}, "additionalProperties": {"type": "string"}}"#;

pub(super) const MEMBER_CREATE: &str = r#"{"type": "object", "properties": {
    "member": {"type": "string", "minLength": 1, "maxLength": 255}}, "required": ["member"]}"#;

pub(super) const MEMBER_UPDATE: &str = r#"{"type": "object", "properties": {
    "status": {"enum": ["pending", "accepted", "rejected"]}}, "required": ["status"]}"#;

fn properties() -> Value {
    let read_only = |kind: Value| json!({"type": kind, "readOnly": true});
    json!({
        "id": {"type": "string", "description": "An identifier for the image",
            "pattern": "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"},
        "name": {"type": ["null", "string"], "maxLength": 255},
        "status": {"type": "string", "readOnly": true,
            "enum": ["queued", "saving", "active", "deactivated"]},
        "visibility": {"type": "string", "enum": ["community", "public", "private", "shared"]},
        "protected": {"type": "boolean"},
        "os_hidden": {"type": "boolean"},
        "checksum": read_only(json!(["null", "string"])),
        "os_hash_algo": read_only(json!(["null", "string"])),
        "os_hash_value": read_only(json!(["null", "string"])),
        "owner": {"type": ["null", "string"], "maxLength": 255},
        "size": read_only(json!(["null", "integer"])),
        "virtual_size": read_only(json!(["null", "integer"])),
        "disk_format": {"type": ["null", "string"], "enum": std::iter::once(Value::Null)
            .chain(DISK_FORMATS.iter().map(|format| json!(format))).collect::<Vec<_>>()},
        "container_format": {"type": ["null", "string"], "enum": std::iter::once(Value::Null)
            .chain(CONTAINER_FORMATS.iter().map(|format| json!(format))).collect::<Vec<_>>()},
        "min_disk": {"type": "integer"},
        "min_ram": {"type": "integer"},
        "created_at": read_only(json!("string")),
        "updated_at": read_only(json!("string")),
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}},
        "self": read_only(json!("string")),
        "file": read_only(json!("string")),
        "schema": read_only(json!("string")),
    })
}

/// The document of one image.
pub(super) fn image() -> Value {
    json!({"name": "image", "properties": properties(), "additionalProperties": {"type": "string"},
        "links": [{"rel": "self", "href": "{self}"}, {"rel": "enclosure", "href": "{file}"},
            {"rel": "describedby", "href": "{schema}"}]})
}

/// The document of a page of images.
pub(super) fn images() -> Value {
    collection("images", image())
}

/// The document of one member.
pub(super) fn member() -> Value {
    json!({"name": "member", "properties": {
        "created_at": {"type": "string"}, "updated_at": {"type": "string"},
        "image_id": {"type": "string"}, "member_id": {"type": "string"},
        "status": {"type": "string", "enum": ["pending", "accepted", "rejected"]},
        "schema": {"type": "string", "readOnly": true}}})
}

/// The document of an image's members.
pub(super) fn members() -> Value {
    let mut document = json!({"name": "members", "properties": {"schema": {"type": "string"}},
        "links": [{"rel": "describedby", "href": "{schema}"}]});
    document["properties"]["members"] = json!({"type": "array", "items": member()});
    document
}

fn collection(name: &str, item: Value) -> Value {
    json!({"name": name, "properties": {
            name: {"type": "array", "items": item},
            "first": {"type": "string"}, "next": {"type": "string"}, "schema": {"type": "string"}},
        "links": [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"},
            {"rel": "describedby", "href": "{schema}"}]})
}
