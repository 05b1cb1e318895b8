//! A server as clients see it, by microversion.

use super::{bookmark, links};
use crate::app::App;
use crate::compute::metadata::ZONE;
use crate::compute::micro;
use crate::compute::neighbours::network::{self, ServerPort};
use crate::compute::records::attachments::{self, Attachment};
use crate::compute::records::servers::{Kernel, Server};
use crate::compute::state::{self, State, Vm};
use crate::compute::tasks;
use api_kit::time::{naive, seconds};
use api_kit::{Call, Fault, Target};
use base::task::{TaskView, Tasks};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use wire::ids::ServerId;

/// A server with all that its view needs.
pub struct Shown {
    /// The row.
    pub server: Server,
    /// Its state.
    pub state: State,
    /// Its ports.
    pub ports: Vec<ServerPort>,
    /// Its volumes.
    pub attachments: Vec<Attachment>,
}

/// Gathers what the views of these servers need, in as many queries for a hundred as for one.
///
/// # Errors
/// When the database or the network service does not answer.
pub async fn gather(app: &App, servers: Vec<Server>) -> Result<Vec<Shown>, Fault> {
    let ids: Vec<ServerId> = servers.iter().map(|it| it.id).collect();
    let subjects: Vec<String> = ids.iter().map(|id| tasks::subject(*id)).collect();
    let live = Tasks::live_of(&app.store, &subjects).await?;
    let live: HashMap<&str, &TaskView> = live.iter().map(|task| (task.subject.as_str(), task)).collect();
    let mut ports = network::of_servers(app, &ids).await?;
    let mut attached: HashMap<ServerId, Vec<Attachment>> = HashMap::new();
    for it in attachments::of_servers(&app.store, &ids).await? {
        attached.entry(it.server).or_default().push(it);
    }
    Ok(servers
        .into_iter()
        .map(|server| {
            let subject = tasks::subject(server.id);
            let state = state::of(&server, live.get(subject.as_str()).copied());
            Shown {
                state,
                ports: ports.remove(&server.id).unwrap_or_default(),
                attachments: attached.remove(&server.id).unwrap_or_default(),
                server,
            }
        })
        .collect())
}

/// The short form.
#[must_use]
pub fn brief(id: ServerId, name: &str, base: &str) -> Value {
    json!({"id": id, "name": name, "links": links(base, "servers", &id.to_string())})
}

/// Addresses by network name.
#[must_use]
pub fn addresses(ports: &[ServerPort], extended: bool) -> Map<String, Value> {
    let mut out: Map<String, Value> = Map::new();
    for port in ports {
        let entries = out.entry(port.network_name.clone()).or_insert_with(|| json!([]));
        let fixed = port.addresses.iter().map(|(address, _)| (*address, "fixed"));
        for (address, kind) in fixed.chain(port.floating.iter().map(|(address, _)| (*address, "floating"))) {
            let mut entry = json!({"version": if address.is_ipv4() { 4 } else { 6 }, "addr": address});
            if extended {
                entry["OS-EXT-IPS:type"] = json!(kind);
                entry["OS-EXT-IPS-MAC:mac_addr"] = json!(port.mac);
            }
            if let Some(list) = entries.as_array_mut() {
                list.push(entry);
            }
        }
    }
    out
}

/// What a host is called to people who may not know its name: the same for all servers of a project on it.
#[must_use]
pub fn host_id(it: &Server) -> String {
    use md5::{Digest, Md5};
    let Some(host) = &it.host else { return String::new() };
    // Two halves with different beginnings: 56 hex digits, as nova's digest has.
    let half = |salt: &str| -> String {
        Md5::digest(format!("{salt}{}{host}", it.project_id))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let mut text = half("a") + &half("b");
    text.truncate(56);
    text
}

fn flavor(it: &Server, call: &Call<App>) -> Value {
    let flavor = &it.body.flavor;
    if call.version < micro::FLAVOR_EMBEDDED {
        return json!({"id": flavor.id, "links": bookmark(&call.base, "flavors", &flavor.id)});
    }
    json!({"vcpus": flavor.vcpus, "ram": flavor.memory_mb, "disk": flavor.disk_gb, "ephemeral": flavor.ephemeral_gb,
        "swap": flavor.swap_mb, "original_name": flavor.name, "extra_specs": flavor.extra_specs})
}

fn attributes(it: &Server, call: &Call<App>, out: &mut Value) {
    let version = call.version;
    let target = Target::project(&it.project_id);
    if call.may("os_compute_api:os-extended-server-attributes", &target) {
        out["OS-EXT-SRV-ATTR:host"] = json!(it.host);
        out["OS-EXT-SRV-ATTR:hypervisor_hostname"] = json!(it.host);
        out["OS-EXT-SRV-ATTR:instance_name"] = json!(format!("instance-{}", it.id.short()));
        if version >= micro::EXTENDED {
            let kernel: Option<&Kernel> = it.body.kernel.as_ref();
            out["OS-EXT-SRV-ATTR:hostname"] = json!(it.body.hostname);
            out["OS-EXT-SRV-ATTR:reservation_id"] = json!(it.body.reservation_id);
            out["OS-EXT-SRV-ATTR:launch_index"] = json!(it.body.launch_index);
            out["OS-EXT-SRV-ATTR:kernel_id"] = json!(kernel.map_or("", |kernel| &kernel.kernel_id));
            out["OS-EXT-SRV-ATTR:ramdisk_id"] =
                json!(kernel.and_then(|kernel| kernel.ramdisk_id.as_deref()).unwrap_or_default());
            out["OS-EXT-SRV-ATTR:root_device_name"] = json!("/dev/vda");
            out["OS-EXT-SRV-ATTR:user_data"] = json!(it.body.user_data);
        }
    }
    if version >= micro::HOSTNAME {
        out["OS-EXT-SRV-ATTR:hostname"] = json!(it.body.hostname);
    }
    if version >= micro::HOST_STATUS && call.may("os_compute_api:servers:show:host_status", &target) {
        out["host_status"] = json!(if it.host.is_some() { "UP" } else { "" });
    }
    if version >= micro::LOCKED {
        out["locked"] = json!(it.locked);
    }
    if version >= micro::DESCRIPTION {
        out["description"] = json!(it.body.description);
    }
    if version >= micro::TAGS {
        out["tags"] = json!(it.body.tags);
    }
    if version >= micro::CERTIFICATES {
        out["trusted_image_certificates"] = Value::Null;
    }
    if version >= micro::LOCKED_REASON {
        out["locked_reason"] = json!(it.body.locked_reason);
    }
    if version >= micro::PINNED_ZONE {
        out["pinned_availability_zone"] = json!(it.zone);
    }
}

/// The whole.
#[must_use]
pub fn detail(shown: &Shown, call: &Call<App>) -> Value {
    let (it, state) = (&shown.server, shown.state);
    let id = it.id.to_string();
    let image = match &it.image_id {
        Some(id) => json!({"id": id, "links": bookmark(&call.base, "images", id)}),
        None => json!(""),
    };
    let mut out = json!({
        "id": id, "name": it.name, "status": state.status, "tenant_id": it.project_id, "user_id": it.user_id,
        "metadata": it.body.metadata, "hostId": host_id(it), "image": image, "flavor": flavor(it, call),
        "created": seconds(&it.created_at), "updated": seconds(&it.updated_at),
        "addresses": addresses(&shown.ports, true), "accessIPv4": it.body.access_ipv4.map_or_else(String::new, |ip| ip.to_string()),
        "accessIPv6": it.body.access_ipv6.map_or_else(String::new, |ip| ip.to_string()),
        "links": links(&call.base, "servers", &id), "OS-DCF:diskConfig": "MANUAL",
        "OS-EXT-AZ:availability_zone": if it.host.is_some() { ZONE } else { "" },
        "config_drive": if it.body.config_drive { "True" } else { "" },
        "key_name": it.key_name,
        "OS-SRV-USG:launched_at": it.launched_at.as_deref().map(naive), "OS-SRV-USG:terminated_at": null,
        "OS-EXT-STS:task_state": state.task, "OS-EXT-STS:vm_state": state.vm.as_str(),
        "OS-EXT-STS:power_state": state.power,
    });
    out["os-extended-volumes:volumes_attached"] = shown
        .attachments
        .iter()
        .filter(|it| it.state != attachments::State::Reserving)
        .map(|it| {
            let mut entry = json!({"id": it.volume_id});
            if call.version >= micro::EXTENDED {
                entry["delete_on_termination"] = json!(it.body.delete_on_termination);
            }
            entry
        })
        .collect();
    if !it.body.nics.is_empty() {
        out["security_groups"] = it.body.security_groups.iter().map(|name| json!({"name": name})).collect();
    }
    match (state.vm, state.status) {
        (
            _,
            "ACTIVE" | "BUILD" | "REBOOT" | "HARD_REBOOT" | "REBUILD" | "RESIZE" | "VERIFY_RESIZE"
            | "REVERT_RESIZE",
        ) => {
            out["progress"] =
                json!(if ["BUILD", "REBUILD", "RESIZE"].contains(&state.status) { 0 } else { 100 });
        }
        (Vm::Error, _) => {
            if let Some(fault) = &it.body.fault {
                out["fault"] = json!({"code": fault.code, "created": seconds(&fault.created),
                    "message": fault.message});
            }
        }
        (
            Vm::Building
            | Vm::Active
            | Vm::Paused
            | Vm::Suspended
            | Vm::Stopped
            | Vm::Resized
            | Vm::Rescued
            | Vm::Offloaded,
            _,
        ) => (),
    }
    attributes(it, call, &mut out);
    out
}
