//! Create: everything that can be known before the 202 is checked before it.

use super::{device_name, ours, placing, quota};
use crate::app::App;
use crate::compute::neighbours::{image, network, volume};
use crate::compute::records::flavors::{self, Flavor};
use crate::compute::records::servers::{
    Body, Disk, Disks, Image, Kernel, Key, Lifecycle, NetworkRequest, Seen, Server, VolumeRequest,
    VolumeSource, Wanted,
};
use crate::compute::records::shape::Mode;
use crate::compute::records::{keypairs, servers};
use crate::compute::scheduler::boots_from_volume;
use crate::compute::tasks::{self, CreateServer, net_request};
use crate::compute::{hardware, micro};
use api_kit::{Call, Caller, Fault};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use wire::ids::ServerId;

/// Longest user data in bytes, encoded.
const USER_DATA_LIMIT: usize = 65_535;
/// Most servers of one request: what one transaction writes without keeping others waiting.
const AT_ONCE: i64 = 1000;
/// Room of a config drive beyond its user data, in bytes.
pub(super) const CONFIG_ROOM: u64 = 4 << 20;

/// What was made.
pub struct Created {
    /// The servers, one unless more were asked for.
    pub servers: Vec<Server>,
    /// Their common reservation.
    pub reservation_id: String,
}

pub(super) fn text<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    body.get(name).and_then(Value::as_str)
}

/// A truth in one of the spellings that compute takes: JSON's, or text.
pub(super) fn truth(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(it)) => *it,
        Some(Value::String(it)) => {
            matches!(it.to_lowercase().as_str(), "1" | "true" | "t" | "yes" | "y" | "on")
        }
        Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => false,
    }
}

/// An address that may be null or empty, as clients take it away.
///
/// # Errors
/// 400 when it is no address of this kind.
pub fn address<T: std::str::FromStr>(body: &Value, name: &str) -> Result<Option<T>, Fault> {
    let Some(text) = text(body, name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let (text, kind) =
            (text.chars().take(64).collect::<String>(), name.trim_start_matches("access").to_lowercase());
        Fault::bad_request(format!(
            "Invalid input for field/attribute {name}. Value: {text}. '{text}' is not a '{kind}'"
        ))
    })
}

/// An id out of an id or a link that ends in it.
fn last_part(reference: &str) -> &str {
    reference.trim_end_matches('/').rsplit('/').next().unwrap_or(reference)
}

pub(super) async fn flavor(app: &App, caller: &Caller, reference: &str) -> Result<Flavor, Fault> {
    let id = last_part(reference);
    let missing = || {
        let id: String = id.chars().take(255).collect();
        Fault::bad_request(format!("Flavor {id} could not be found."))
    };
    let found = flavors::get(&app.store, id).await?.ok_or_else(missing)?;
    let project = caller.project_id.as_deref().unwrap_or_default();
    if !found.is_public && !caller.is_admin && !found.access.contains(project) {
        return Err(missing());
    }
    Ok(found)
}

pub(super) fn stored_image(it: image::BootImage) -> Image {
    // `ami` is a plain disk beside its kernel.
    let format = if it.disk_format == "qcow2" { it.disk_format } else { "raw".to_owned() };
    Image {
        id: it.id,
        name: it.name,
        blob: it.blob,
        format,
        virtual_bytes: it.virtual_bytes,
        min_disk_gib: it.min_disk_gib,
        min_ram_mib: it.min_ram_mib,
        properties: it.properties,
    }
}

pub(super) async fn usable_image(app: &App, caller: &Caller, id: &str) -> Result<image::BootImage, Fault> {
    let it = image::visible(app, caller, id).await.map_err(|fault| match fault.status.as_u16() {
        404 | 403 => Fault::bad_request("Can not find requested image"),
        _ => fault,
    })?;
    if it.status != "active" {
        return Err(Fault::bad_request(format!("Image {id} is not active.")));
    }
    if !["raw", "qcow2", "ami", "aki", "ari"].contains(&it.disk_format.as_str()) {
        return Err(Fault::bad_request(format!(
            "Image {id} is unacceptable: its disk format '{}' cannot be started; convert it to raw or qcow2.",
            it.disk_format
        )));
    }
    Ok(it)
}

/// Sizes against what the image needs. `root` is whether the disk is the flavor's.
pub(super) fn fits(flavor: &Flavor, image: &Image, root: bool) -> Result<(), Fault> {
    if u64::from(flavor.memory_mb) < image.min_ram_mib {
        return Err(Fault::bad_request("Flavor's memory is too small for requested image."));
    }
    let size = u64::from(flavor.disk_gb) << 30;
    if !root || flavor.disk_gb == 0 {
        return Ok(());
    }
    if size < image.virtual_bytes {
        return Err(Fault::bad_request(format!(
            "Flavor's disk is too small for requested image. Flavor disk is {size} bytes, image is {} bytes.",
            image.virtual_bytes
        )));
    }
    let smallest = image.min_disk_gib << 30;
    if size < smallest {
        return Err(Fault::bad_request(format!(
            "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is {size} bytes, minimum size is {smallest} bytes."
        )));
    }
    Ok(())
}

fn volumes(body: &Value, has_image: bool) -> Result<(Vec<VolumeRequest>, Option<String>), Fault> {
    let (mut out, mut local) = (Vec::new(), None);
    let all = body.get("block_device_mapping_v2").and_then(Value::as_array).map(Vec::as_slice);
    for it in all.unwrap_or_default() {
        let number = |name: &str| match it.get(name) {
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.parse::<i64>().ok(),
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => None,
        };
        let uuid = || {
            text(it, "uuid").map(str::to_owned).ok_or_else(|| {
                Fault::bad_request("Block Device Mapping is Invalid: a source of this type needs a uuid.")
            })
        };
        let (from, to) = (text(it, "source_type").unwrap_or("volume"), text(it, "destination_type"));
        let boot = number("boot_index") == Some(0);
        let source = match (from, to) {
            // The image itself, as clients spell out a plain start from an image.
            ("image", Some("local") | None) if boot => {
                local = Some(uuid()?);
                continue;
            }
            ("volume", Some("volume") | None) => VolumeSource::Volume(uuid()?),
            ("image", Some("volume")) => VolumeSource::Image(uuid()?),
            ("snapshot", Some("volume") | None) => VolumeSource::Snapshot(uuid()?),
            ("blank", Some("volume")) => VolumeSource::Blank,
            (from, to) => {
                return Err(Fault::bad_request(format!(
                    "Block Device Mapping is Invalid: a source of type {from} as a {} disk is not supported; use a volume.",
                    to.unwrap_or("local")
                )));
            }
        };
        let size_gib =
            number("volume_size").and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0);
        if size_gib.is_none() && matches!(source, VolumeSource::Image(_) | VolumeSource::Blank) {
            return Err(Fault::bad_request(
                "Block Device Mapping is Invalid: a volume made from an image or empty needs a volume_size.",
            ));
        }
        out.push(VolumeRequest {
            id: uuid::Uuid::new_v4(),
            source,
            size_gib,
            delete_on_termination: truth(it.get("delete_on_termination")),
            boot: boot && !has_image,
            tag: text(it, "tag").map(str::to_owned),
        });
    }
    if out.iter().filter(|it| it.boot).count() > 1 {
        return Err(Fault::bad_request(
            "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping combination is not valid.",
        ));
    }
    Ok((out, local))
}

fn networks(body: &Value) -> Result<Vec<NetworkRequest>, Fault> {
    let list = match body.get("networks") {
        None | Some(Value::Null) => return Ok(vec![NetworkRequest::Auto]),
        Some(Value::String(word)) if word == "none" => return Ok(vec![NetworkRequest::None]),
        Some(Value::String(_)) => return Ok(vec![NetworkRequest::Auto]),
        Some(Value::Array(list)) if list.is_empty() => return Ok(vec![NetworkRequest::Auto]),
        Some(Value::Array(list)) => list,
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            return Err(Fault::bad_request("Invalid input for field/attribute networks."));
        }
    };
    list.iter()
        .map(|it| {
            let tag = text(it, "tag").map(str::to_owned);
            if let Some(id) = text(it, "port") {
                return Ok(NetworkRequest::Port { id: id.to_owned(), tag });
            }
            let id = text(it, "uuid").ok_or_else(|| {
                Fault::bad_request("Bad networks format: network uuid is not in proper format (None)")
            })?;
            let fixed_ip = match text(it, "fixed_ip") {
                None => None,
                Some(ip) => Some(ip.parse().map_err(|_| {
                    let ip: String = ip.chars().take(64).collect();
                    Fault::bad_request(format!("Invalid input for field/attribute fixed_ip. Value: {ip}."))
                })?),
            };
            Ok(NetworkRequest::Network { id: id.to_owned(), fixed_ip, tag })
        })
        .collect()
}

/// A DNS label out of a display name, as nova makes host names.
fn hostname(name: &str, id: ServerId) -> String {
    let mut out = String::new();
    for it in name.chars() {
        match it {
            ' ' | '_' | '.' => out.push('-'),
            it if it.is_ascii_alphanumeric() || it == '-' => out.push(it.to_ascii_lowercase()),
            _ => (),
        }
    }
    let out: String = out.trim_matches('-').chars().take(63).collect();
    let out = out.trim_end_matches('-');
    if out.is_empty() { format!("server-{id}") } else { out.to_owned() }
}

pub(super) fn kernel(image: Option<&Image>) -> Option<Kernel> {
    let properties = &image?.properties;
    let text = |name: &str| {
        let value = properties.get(name).and_then(Value::as_str)?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    Some(Kernel {
        kernel_id: text("kernel_id")?,
        ramdisk_id: text("ramdisk_id"),
        command_line: text("os_command_line").unwrap_or_else(|| "root=/dev/vda console=ttyS0".to_owned()),
        kernel: None,
        ramdisk: None,
    })
}

pub(super) fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn random(bytes: usize) -> Result<Vec<u8>, Fault> {
    let mut out = vec![0; bytes];
    getrandom::fill(&mut out).map_err(Fault::internal)?;
    Ok(out)
}

/// Twelve letters and digits that are not mistaken for each other.
///
/// # Errors
/// When the system gives no random numbers.
pub fn password() -> Result<String, Fault> {
    const LETTERS: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let pick = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
    Ok(random(12)?.iter().map(pick).collect())
}

/// Checks a request to create servers and writes them with their tasks.
///
/// # Errors
/// Nova's 400s, 403 over quota.
#[allow(clippy::too_many_lines)]
pub async fn create(call: &Call<App>) -> Result<Created, Fault> {
    let (app, caller, body) = (&call.app, &call.caller, call.inner("server"));
    let project = call.project_id()?.to_owned();
    let flavor = flavor(app, caller, text(body, "flavorRef").unwrap_or_default()).await?;

    let image_ref = text(body, "imageRef").map(last_part).filter(|id| !id.is_empty());
    let (volumes, local) = volumes(body, image_ref.is_some())?;
    let image = match image_ref.map(str::to_owned).or(local) {
        Some(id) => Some(stored_image(usable_image(app, caller, &id).await?)),
        None => None,
    };
    if image.is_none() && !boots_from_volume(&volumes) {
        return Err(Fault::bad_request(
            "Invalid imageRef provided: name an image, or a volume with boot_index 0 in block_device_mapping_v2.",
        ));
    }
    if let Some(image) = &image {
        fits(&flavor, image, true)?;
        for id in ["kernel_id", "ramdisk_id"].iter().filter_map(|name| image.properties.get(*name)?.as_str())
        {
            if !id.is_empty() {
                usable_image(app, caller, id).await?;
            }
        }
    }
    for it in &volumes {
        match &it.source {
            VolumeSource::Volume(id) => {
                let facts =
                    volume::facts(app, caller, id).await.map_err(|fault| match fault.status.as_u16() {
                        404 | 403 => Fault::bad_request(format!(
                            "Block Device Mapping is Invalid: failed to get volume {id}."
                        )),
                        _ => fault,
                    })?;
                if facts.status != "available" {
                    return Err(Fault::bad_request(format!(
                        "Invalid volume: volume {id} is not available (it is {}).",
                        facts.status
                    )));
                }
                if it.boot && !facts.bootable {
                    return Err(Fault::bad_request(format!(
                        "Block Device {id} is not bootable: it was not made from an image."
                    )));
                }
            }
            VolumeSource::Image(id) => {
                let it = stored_image(usable_image(app, caller, id).await?);
                fits(&flavor, &it, false)?;
            }
            VolumeSource::Snapshot(_) | VolumeSource::Blank => (),
        }
    }

    hardware::of(&flavor, image.as_ref())?;
    let networks = networks(body)?;
    let requests: Vec<network::NetRequest> = networks.iter().map(net_request).collect();
    network::check_requests(app, caller, &requests).await.map_err(ours)?;

    let key = match text(body, "key_name") {
        None => None,
        Some(name) => {
            let found = keypairs::get(&app.store, &caller.user_id, name).await?;
            let found = found.ok_or_else(|| Fault::bad_request("Invalid key_name provided."))?;
            Some(Key { name: found.name, kind: found.kind, public_key: found.public_key })
        }
    };
    let user_data = match text(body, "user_data").filter(|data| !data.is_empty()) {
        None => None,
        Some(data) if data.len() > USER_DATA_LIMIT => {
            return Err(Fault::bad_request(format!(
                "User data too large. User data must be no larger than {USER_DATA_LIMIT} bytes once base64 encoded. Your data is {} bytes",
                data.len()
            )));
        }
        Some(data) => {
            let plain: String = data.split_ascii_whitespace().collect();
            let valid = BASE64.decode(&plain).is_ok();
            if !valid {
                return Err(Fault::bad_request("User data needs to be valid base 64."));
            }
            Some(plain)
        }
    };
    if body.get("trusted_image_certificates").is_some_and(|it| !it.is_null()) {
        return Err(Fault::bad_request(
            "Image signature certificate validation is not supported here; leave it out.",
        ));
    }
    let metadata = strings(body.get("metadata"));
    let (_, items) = quota("metadata_items");
    if i64::try_from(metadata.len()).unwrap_or(i64::MAX) > items {
        return Err(Fault::over_quota(
            "Quota exceeded for metadata_items: Maximum number of metadata items exceeds the limit.",
        ));
    }
    let (zone, asked_host) = placing::zone(call, &project).await?;
    let (group_id, mut hints) = placing::hints(call)?;
    hints.host = placing::destination(call, &project).await?.or(asked_host);
    let (access_ipv4, access_ipv6) = (address(body, "accessIPv4")?, address(body, "accessIPv6")?);
    let count = |name: &str, or: i64| match body.get(name) {
        Some(Value::Number(number)) => number.as_i64().unwrap_or(or),
        Some(Value::String(text)) => text.parse().unwrap_or(or),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => or,
    };
    let least = count("min_count", 1);
    let most = count("max_count", least);
    if least > most {
        return Err(Fault::bad_request("min_count must be <= max_count"));
    }
    if most > AT_ONCE {
        return Err(Fault::bad_request(format!(
            "Invalid input for field/attribute max_count. Value: {most}. {most} is greater than the maximum of {AT_ONCE}: make several requests."
        )));
    }
    let single = volumes.iter().any(|it| matches!(it.source, VolumeSource::Volume(_)))
        || networks.iter().any(|it| match it {
            NetworkRequest::Port { .. } => true,
            NetworkRequest::Network { fixed_ip, .. } => fixed_ip.is_some(),
            NetworkRequest::Auto | NetworkRequest::None => false,
        });
    if most > 1 && single {
        return Err(Fault::bad_request(
            "A port, a fixed address or an existing volume can be given to one server only: set max_count to 1.",
        ));
    }
    let groups = body.get("security_groups").and_then(Value::as_array).map(Vec::as_slice);
    let mut security_groups: Vec<String> = Vec::new();
    for name in groups.unwrap_or_default().iter().filter_map(|it| text(it, "name")) {
        if !security_groups.iter().any(|known| known == name) {
            security_groups.push(name.to_owned());
        }
    }
    if security_groups.is_empty() {
        security_groups.push("default".to_owned());
    }
    network::security_groups(app, &project, &security_groups).await.map_err(ours)?;
    let name = text(body, "name").unwrap_or_default().trim();
    let reservation_id = format!("r-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let seed = |index: i64| -> Result<Server, Fault> {
        let id = ServerId::new();
        let name = if most > 1 { format!("{name}-{}", index + 1) } else { name.to_owned() };
        let hostname = match text(body, "hostname").filter(|_| call.version >= micro::HOSTNAME) {
            Some(given) => given.to_owned(),
            None => hostname(&name, id),
        };
        let gib = |size: u32| u64::from(size) << 30;
        let root = image.as_ref().map(|image| {
            let whole = image.virtual_bytes.div_ceil(512) * 512;
            Disk::planned(if flavor.disk_gb == 0 { whole } else { gib(flavor.disk_gb) })
        });
        let config_drive = truth(body.get("config_drive"));
        let data = user_data.as_ref().map_or(0, String::len);
        let disks = Disks {
            root,
            ephemeral: (flavor.ephemeral_gb > 0).then(|| Disk::planned(gib(flavor.ephemeral_gb))),
            swap: (flavor.swap_mb > 0).then(|| Disk::planned(u64::from(flavor.swap_mb) << 20)),
            config: config_drive
                .then(|| Disk::planned(CONFIG_ROOM + u64::try_from(data).unwrap_or(0).div_ceil(512) * 1024)),
        };
        let now = api_kit::time::now();
        let tags: BTreeSet<String> = body
            .get("tags")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|tag| tag.as_str().map(str::to_owned))
            .collect();
        Ok(Server {
            id,
            project_id: project.clone(),
            user_id: caller.user_id.clone(),
            name,
            lifecycle: Lifecycle::Building,
            power: Wanted::On,
            observed: Seen::Nothing,
            generation: 1,
            reboots: 0,
            reboot_grace: 0,
            image_id: image.as_ref().map(|image| image.id.clone()),
            key_name: key.as_ref().map(|key| key.name.clone()),
            host: None,
            zone: zone.clone(),
            locked: false,
            created_at: now.clone(),
            updated_at: now,
            launched_at: None,
            mode: Mode::Plain,
            group_id: group_id.clone(),
            body: Body {
                flavor: flavor.clone(),
                kernel: kernel(image.as_ref()),
                image: image.clone(),
                description: text(body, "description").map(str::to_owned),
                metadata: metadata.clone(),
                tags,
                user_data: user_data.clone(),
                key: key.clone(),
                config_drive,
                hostname,
                security_groups: security_groups.clone(),
                networks: networks.clone(),
                reservation_id: reservation_id.clone(),
                launch_index: u32::try_from(index).unwrap_or_default(),
                random_seed: BASE64.encode(random(512)?),
                disks,
                volumes: volumes.clone(),
                nics: Vec::new(),
                fault: None,
                locked_reason: None,
                locked_by_admin: false,
                hypervisor: String::new(),
                hints: hints.clone(),
                access_ipv4,
                access_ipv6,
                aside: None,
                shelved: None,
                hasty: false,
            },
        })
    };
    let rows: Vec<Server> = (0..most.max(1)).map(seed).collect::<Result<_, _>>()?;
    let made = insert(app, &project, &rows, least.max(1)).await?;
    app.tasks.wake();
    Ok(Created { servers: made, reservation_id })
}

/// Writes as many of the rows as the quota leaves room for, at least `least`, each with its task.
async fn insert(app: &App, project: &str, rows: &[Server], least: i64) -> Result<Vec<Server>, Fault> {
    let Some(flavor) = rows.first().map(|row| &row.body.flavor) else {
        return Err(Fault::bad_request("min_count must be at least 1"));
    };
    app.store
        .tx(|tx| async move {
            let used = servers::used(&tx, project).await?;
            let needs = [
                ("instances", used.instances, 1),
                ("cores", used.cores, i64::from(flavor.vcpus)),
                ("ram", used.ram, i64::from(flavor.memory_mb)),
            ];
            let limits = api_kit::quota::limits(&tx, "compute", project, super::QUOTAS).await?;
            let mut count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
            for (name, in_use, each) in needs {
                let limit = limits.get(name).copied().unwrap_or(-1);
                if limit >= 0 && each > 0 {
                    count = count.min((limit - in_use).max(0) / each);
                }
            }
            let count = count.max(least);
            for (name, in_use, each) in needs {
                let delta = each.saturating_mul(count);
                api_kit::quota::check(&tx, "compute", project, quota(name), in_use, delta).await?;
            }
            placing::check_group(&tx, project, rows.first().and_then(|row| row.group_id.as_deref()), count)
                .await?;
            let mut made = Vec::new();
            for row in rows.iter().take(usize::try_from(count).unwrap_or(1)) {
                servers::put(&tx, row).await?;
                let first = CreateServer::Place { server: row.id };
                app.tasks.enqueue(&tx, &tasks::subject(row.id), &first).await?;
                made.push(row.clone());
            }
            Ok(made)
        })
        .await
}

/// The first free device name of a server.
#[must_use]
pub fn free_device(server: &Server, taken: &[String]) -> String {
    let own = server.body.disks.all().count();
    let names = (own..own + 64).map(device_name);
    names.into_iter().find(|name| !taken.contains(name)).unwrap_or_else(|| device_name(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_labels_whatever_the_name() {
        let id = ServerId::new();
        assert_eq!(hostname("My Server_1.x", id), "my-server-1-x");
        assert_eq!(hostname(&"a".repeat(255), id).len(), 63);
        assert_eq!(hostname("サーバ", id), format!("server-{id}"));
        assert_eq!(hostname("-a-", id), "a");
    }

    #[test]
    fn block_devices_are_read_or_refused_with_a_reason() {
        let read = |text: &str| volumes(&serde_json::from_str::<Value>(text).unwrap(), false);
        let (made, _) = read(
            r#"{"block_device_mapping_v2": [{"source_type": "image", "uuid": "i", "destination_type": "volume",
                "volume_size": "3", "boot_index": "0", "delete_on_termination": true}]}"#,
        )
        .unwrap();
        assert_eq!(made[0].size_gib, Some(3));
        assert!(made[0].boot && made[0].delete_on_termination);
        let bad = read(
            r#"{"block_device_mapping_v2": [{"source_type": "image", "uuid": "i", "destination_type": "volume"}]}"#,
        );
        assert!(bad.unwrap_err().message.contains("volume_size"));
        let bad =
            read(r#"{"block_device_mapping_v2": [{"source_type": "blank", "destination_type": "local"}]}"#);
        assert!(bad.unwrap_err().message.contains("blank"));
    }
}
