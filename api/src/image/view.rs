//! How images are shown.

use super::records::{Image, Member};
use api_kit::time::seconds;
use serde_json::{Map, Value, json};

/// One image. Free properties lie beside the fixed ones.
pub(super) fn image(image: &Image) -> Value {
    let mut shown = Map::new();
    for (name, value) in &image.properties {
        shown.insert(name.clone(), json!(value));
    }
    let active = image.hash_value.is_some();
    let fixed = json!({
        "id": image.id,
        "name": image.name,
        "status": image.status,
        "visibility": image.visibility,
        "owner": image.owner,
        "protected": image.protected,
        "os_hidden": image.os_hidden,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "checksum": image.checksum,
        "os_hash_algo": active.then_some("sha512"),
        "os_hash_value": image.hash_value,
        "tags": image.tags,
        "created_at": seconds(&image.created_at),
        "updated_at": seconds(&image.updated_at),
        "self": format!("/v2/images/{}", image.id),
        "file": format!("/v2/images/{}/file", image.id),
        "schema": "/v2/schemas/image",
    });
    if let Value::Object(fixed) = fixed {
        shown.extend(fixed);
    }
    Value::Object(shown)
}

/// One member.
pub(super) fn member(image_id: &str, member: &Member) -> Value {
    json!({"image_id": image_id, "member_id": member.member, "status": member.status,
        "created_at": seconds(&member.created_at), "updated_at": seconds(&member.updated_at),
        "schema": "/v2/schemas/member"})
}
