//! What a guest reads about itself: the OpenStack and EC2 trees at 169.254.169.254, and the same files on a config drive.

use super::neighbours::network::{self, ServerPort};
use super::records::servers::{self, Server};
use crate::app::App;
use api_kit::Fault;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use wire::ids::ServerId;
use wire::metadata::{MetadataReply, ReadMetadata};

/// Dates of the OpenStack tree's versions; their content only ever grew, so each serves the newest.
const OPENSTACK_VERSIONS: &[&str] = &[
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
];
/// Versions of the EC2 tree.
const EC2_VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
];
/// The only availability zone.
pub const ZONE: &str = "nova";

/// Everything that a server may read, gathered once per request.
#[derive(Debug, Clone)]
pub struct Facts {
    server: Server,
    ports: Vec<ServerPort>,
}

impl Facts {
    /// Gathers them.
    ///
    /// # Errors
    /// When the network service does not answer.
    pub async fn of(app: &App, server: Server) -> Result<Self, Fault> {
        let ports = network::of_servers(app, &[server.id]).await?.remove(&server.id).unwrap_or_default();
        Ok(Self { server, ports })
    }

    fn user_data(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.server.body.user_data.as_ref()?).ok()
    }

    fn meta_data(&self) -> Value {
        let it = &self.server;
        let mut out = json!({
            "uuid": it.id,
            "name": it.name,
            "hostname": it.body.hostname,
            "launch_index": it.body.launch_index,
            "availability_zone": ZONE,
            "project_id": it.project_id,
            "random_seed": it.body.random_seed,
            "meta": it.body.metadata,
            "devices": self.devices(),
            "dedicated_cpus": [],
        });
        if let Some(key) = &it.body.key {
            out["public_keys"] = json!({&key.name: key.public_key});
            out["keys"] = json!([{"name": key.name, "type": key.kind, "data": key.public_key}]);
        }
        out
    }

    /// Tagged interfaces. Disks are found by their serial numbers and need no list.
    fn devices(&self) -> Vec<Value> {
        let nics = self.server.body.nics.iter();
        nics.filter_map(|nic| {
            let tag = nic.tag.as_ref()?;
            Some(json!({"type": "nic", "bus": "pci", "mac": nic.spec.mac, "tags": [tag]}))
        })
        .collect()
    }

    fn network_data(&self) -> Value {
        let (mut links, mut networks) = (Vec::new(), Vec::new());
        for port in &self.ports {
            let link = format!("tap{}", &port.port.to_string()[..11]);
            links.push(json!({"id": link, "vif_id": port.port, "type": "ovs", "mtu": port.mtu,
                "ethernet_mac_address": port.mac}));
            for (address, subnet) in &port.addresses {
                // The guest asks DHCP, which knows mask, routes and name servers.
                let kind = if address.is_ipv4() { "ipv4_dhcp" } else { "ipv6_dhcp" };
                networks.push(json!({"id": format!("network{}", networks.len()), "type": kind, "link": link,
                    "network_id": port.network_id, "subnet_id": subnet}));
            }
        }
        json!({"links": links, "networks": networks, "services": []})
    }

    /// The files of one version of the OpenStack tree, as (name, content type, content).
    fn openstack(&self) -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let json = |value: Value| value.to_string().into_bytes();
        let mut files = vec![
            ("meta_data.json", "application/json", json(self.meta_data())),
            ("network_data.json", "application/json", json(self.network_data())),
            ("vendor_data.json", "application/json", json(json!({}))),
            ("vendor_data2.json", "application/json", json(json!({}))),
        ];
        if let Some(data) = self.user_data() {
            files.push(("user_data", "application/octet-stream", data));
        }
        files
    }

    fn first(&self, v6: bool) -> Option<IpAddr> {
        let mut all = self.ports.iter().flat_map(|port| port.addresses.iter().map(|(address, _)| *address));
        all.find(|address| address.is_ipv6() == v6)
    }

    /// The EC2 tree below `meta-data`.
    fn ec2(&self) -> Value {
        let it = &self.server;
        let address = self.first(false).map(|address| address.to_string()).unwrap_or_default();
        let floating = self.ports.iter().flat_map(|port| port.floating.iter()).next();
        let mut out = json!({
            "ami-id": ec2_id("ami", it.image_id.as_deref().unwrap_or_default()),
            "ami-launch-index": it.body.launch_index.to_string(),
            "block-device-mapping": {"ami": "vda", "root": "/dev/vda"},
            "hostname": it.body.hostname,
            "instance-action": "none",
            "instance-id": ec2_id("i", &it.id.to_string()),
            "instance-type": it.body.flavor.name,
            "local-hostname": it.body.hostname,
            "local-ipv4": address,
            "placement": {"availability-zone": ZONE},
            "public-hostname": it.body.hostname,
            "public-ipv4": floating.map(|(outside, _)| outside.to_string()).unwrap_or_default(),
            "reservation-id": it.body.reservation_id,
            "security-groups": it.body.security_groups.join("\n"),
        });
        if let Some(key) = &it.body.key {
            out["public-keys"] = json!({"0": {"openssh-key": key.public_key, "_name": key.name}});
        }
        out
    }

    /// Answers one path.
    #[must_use]
    pub fn answer(&self, path: &str) -> MetadataReply {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let answer = match parts.as_slice() {
            [] => Some(text(list(EC2_VERSIONS.iter().copied().chain(["latest"])))),
            ["openstack"] => Some(text(list(OPENSTACK_VERSIONS.iter().copied().chain(["latest"])))),
            ["openstack", version] if known(version, OPENSTACK_VERSIONS) => {
                Some(text(list(self.openstack().iter().map(|(name, _, _)| *name))))
            }
            ["openstack", version, name] if known(version, OPENSTACK_VERSIONS) => {
                let found = self.openstack().into_iter().find(|(file, _, _)| file == name);
                found.map(|(_, kind, body)| reply(200, kind, body))
            }
            [version] if known(version, EC2_VERSIONS) => {
                let data = self.server.body.user_data.as_ref().map(|_| "user-data");
                Some(text(list(["meta-data/"].into_iter().chain(data))))
            }
            [version, "user-data"] if known(version, EC2_VERSIONS) => {
                self.user_data().map(|data| reply(200, "application/octet-stream", data))
            }
            [version, "meta-data", rest @ ..] if known(version, EC2_VERSIONS) => walk(&self.ec2(), rest),
            _ => None,
        };
        answer.unwrap_or_else(|| reply(404, "text/plain", b"404 Not Found".to_vec()))
    }
}

fn known(version: &str, all: &[&str]) -> bool {
    version == "latest" || all.contains(&version)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join("\n")
}

fn reply(status: u16, kind: &str, body: Vec<u8>) -> MetadataReply {
    MetadataReply { status, content_type: kind.to_owned(), body }
}

fn text(body: String) -> MetadataReply {
    reply(200, "text/plain", body.into_bytes())
}

/// EC2's short form of an id: a prefix and eight hex digits.
fn ec2_id(prefix: &str, id: &str) -> String {
    let hex: String = id.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    format!("{prefix}-{hex:0>8}")
}

fn walk(tree: &Value, path: &[&str]) -> Option<MetadataReply> {
    let mut at = tree;
    for part in path {
        at = at.as_object()?.get(*part).filter(|_| !part.starts_with('_'))?;
    }
    match at {
        Value::String(value) => Some(text(value.clone())),
        Value::Object(map) => Some(text(entries(map))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// A directory's listing: folders end in a slash, keys show as `0=name`.
fn entries(map: &Map<String, Value>) -> String {
    let line = |(name, value): (&String, &Value)| match value.get("_name").and_then(Value::as_str) {
        Some(key) => format!("{name}={key}"),
        None if value.is_object() => format!("{name}/"),
        None => name.clone(),
    };
    map.iter().filter(|(name, _)| !name.starts_with('_')).map(line).collect::<Vec<_>>().join("\n")
}

/// Answers a guest's request.
pub async fn read(app: &App, request: &ReadMetadata) -> MetadataReply {
    let id: ServerId = request.server;
    let facts = match servers::get(&app.store, id).await {
        // User data holds secrets: only the server's own interfaces are proof that it is the server who asks.
        Ok(Some(server)) if server.body.nics.iter().all(|nic| nic.spec.port != request.port) => {
            return reply(404, "text/plain", b"404 Not Found".to_vec());
        }
        Ok(Some(server)) => Facts::of(app, server).await,
        Ok(None) => return reply(404, "text/plain", b"404 Not Found".to_vec()),
        Err(error) => Err(error.into()),
    };
    match facts {
        Ok(facts) => facts.answer(&request.path),
        Err(fault) => {
            tracing::warn!(%fault, server = %id, "could not answer a guest's metadata request");
            reply(503, "text/plain", b"503 Service Unavailable: try again".to_vec())
        }
    }
}

/// The files of a config drive.
///
/// # Errors
/// When the network service does not answer.
pub async fn config_drive(app: &App, server: &Server) -> Result<Vec<(String, Vec<u8>)>, Fault> {
    let facts = Facts::of(app, server.clone()).await?;
    let mut files = Vec::new();
    for (name, _, content) in facts.openstack() {
        files.push((format!("openstack/latest/{name}"), content));
    }
    let mut ec2 = facts.ec2();
    if let Some(key) = &server.body.key {
        ec2["public-keys"] = json!({"0": {"openssh-key": key.public_key}});
    }
    files.push(("ec2/latest/meta-data.json".to_owned(), ec2.to_string().into_bytes()));
    if let Some(data) = facts.user_data() {
        files.push(("ec2/latest/user-data".to_owned(), data));
    }
    Ok(files)
}
