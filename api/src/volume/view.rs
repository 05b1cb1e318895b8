//! How volumes, snapshots and attachments are shown.

use super::records::{Attached, Pairs, Snapshot, Volume};
use super::rules::ZONE;
use super::type_rows::Kind;
use crate::app::App;
use api_kit::time::naive;
use api_kit::{Call, Micro};
use serde_json::{Value, json};

/// The volume type of those who ask for none.
pub(super) const TYPE_ID: &str = "0f1e5a3c-8d1b-4a52-9c55-6d6f6e74616e";
/// Its name, as upstream's default type.
pub(super) const TYPE_NAME: &str = "__DEFAULT__";
/// Groups came with this version.
const GROUPS: Micro = Micro(3, 13);
/// Snapshots of groups came with this version.
const GROUP_SNAPSHOTS: Micro = Micro(3, 14);
/// The provider's own id is shown from this version on.
const PROVIDER_ID: Micro = Micro(3, 21);

fn links(call: &Call<App>, kind: &str, id: &str) -> Value {
    let project = call.path("project_id");
    let root = call.base.clone();
    json!([
        {"rel": "self", "href": format!("{root}/v3/{project}/{kind}/{id}")},
        {"rel": "bookmark", "href": format!("{root}/{project}/{kind}/{id}")},
    ])
}

/// A line of the short list.
pub(super) fn brief(call: &Call<App>, volume: &Volume) -> Value {
    json!({"id": volume.id, "name": volume.name, "links": links(call, "volumes", &volume.id)})
}

/// One volume with what it is attached to.
pub(super) fn volume(call: &Call<App>, volume: &Volume, attached: &[Attached]) -> Value {
    let attachments: Vec<Value> = attached
        .iter()
        .filter(|one| one.volume_id == volume.id && one.status != "reserved")
        .map(|one| {
            json!({"id": volume.id, "attachment_id": one.id, "volume_id": volume.id, "server_id": one.server_id,
                "host_name": if call.caller.is_admin { one.host.clone() } else { None },
                "device": one.mountpoint, "attached_at": one.attached_at.as_deref().map(naive)})
        })
        .collect();
    let mut shown = json!({
        "id": volume.id,
        "name": volume.name,
        "description": volume.description,
        "status": volume.status,
        "size": volume.size,
        "availability_zone": ZONE,
        "created_at": naive(&volume.created_at),
        "updated_at": naive(&volume.updated_at),
        "volume_type": volume.type_name.as_deref().unwrap_or(TYPE_NAME),
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid,
        "metadata": volume.metadata,
        "user_id": volume.user_id,
        "bootable": if volume.bootable { "true" } else { "false" },
        "encrypted": false,
        "multiattach": false,
        "replication_status": null,
        "consistencygroup_id": null,
        "migration_status": null,
        "attachments": attachments,
        "links": links(call, "volumes", &volume.id),
        "os-vol-tenant-attr:tenant_id": volume.project_id,
    });
    if !volume.image_metadata.is_empty() {
        shown["volume_image_metadata"] = json!(volume.image_metadata);
    }
    if call.caller.is_admin {
        shown["os-vol-host-attr:host"] = json!(format!("{}@pool#pool", call.app.config.host_name));
        shown["os-vol-mig-status-attr:migstat"] = Value::Null;
        shown["os-vol-mig-status-attr:name_id"] = Value::Null;
    }
    if call.version >= GROUPS {
        shown["group_id"] = Value::Null;
    }
    if call.version >= PROVIDER_ID && call.caller.is_admin {
        shown["provider_id"] = Value::Null;
    }
    shown
}

/// One snapshot; `full` with what only the detailed views have.
pub(super) fn snapshot(call: &Call<App>, snapshot: &Snapshot, full: bool) -> Value {
    let mut shown = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "status": snapshot.status,
        "size": snapshot.size,
        "volume_id": snapshot.volume_id,
        "metadata": snapshot.metadata,
        "created_at": naive(&snapshot.created_at),
        "updated_at": naive(&snapshot.updated_at),
    });
    if full {
        let done = if snapshot.status == "available" { "100%" } else { "0%" };
        shown["os-extended-snapshot-attributes:progress"] = json!(done);
        shown["os-extended-snapshot-attributes:project_id"] = json!(snapshot.project_id);
    }
    if call.version >= GROUP_SNAPSHOTS {
        shown["group_snapshot_id"] = Value::Null;
    }
    shown
}

/// One attachment; `full` with what only the detailed views have.
///
/// `specs` are those QoS specs that the machine enforces, as upstream hands them to it.
pub(super) fn attachment(one: &Attached, specs: Option<&Pairs>, full: bool) -> Value {
    let mut shown =
        json!({"id": one.id, "status": one.status, "instance": one.server_id, "volume_id": one.volume_id});
    if full {
        shown["attached_at"] = json!(one.attached_at.as_deref().map(naive));
        shown["detached_at"] = Value::Null;
        shown["attach_mode"] = json!("rw");
        // Volumes reach a server on its host, as files: there is nothing for another host to connect to.
        shown["connection_info"] = specs.map_or_else(|| json!({}), |specs| json!({"qos_specs": specs}));
    }
    shown
}

/// A volume type; what is behind it is for administrators.
pub(super) fn volume_type(call: &Call<App>, kind: &Kind) -> Value {
    let mut shown = json!({"id": kind.id, "name": kind.name, "description": kind.description,
        "is_public": kind.is_public, "os-volume-type-access:is_public": kind.is_public, "extra_specs": {}});
    if call.caller.is_admin {
        shown["extra_specs"] = json!(kind.extra_specs);
        shown["qos_specs_id"] = json!(kind.qos_specs_id);
    }
    shown
}
