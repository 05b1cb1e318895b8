//! Fake daemons, and a cloud on them.

use crate::app;
use crate::testing::{Answer, Cloud, DEMO_PROJECT, caller};
use base::CancellationToken;
use base::rpc::Router;
use base::store::testing::TestStore;
use base::store::{Query, Sql};
use base::task::{Crash, Workers};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::block::{
    BlobInfo, DiskInfo, DiskSource, EnsureBlobFromDisk, EnsureDisk, EnsureSnapshot, ForgetBlob, ForgetDisk,
    ForgetSnapshot, ImageFacts, InspectImage, ListPool, Pool,
};
use wire::host::{
    DescribeHost, DiskCounts, DiskFigures, EnsureServer, Figures, ForgetServer, HostFacts, ListServers,
    Observed, Power, PowerNow, ReadConsole, ReadFigures,
};
use wire::ids::{DiskId, PortId, ServerId, SnapshotId};
use wire::net::{
    EnsureNetwork, EnsureRouter, ForgetNetwork, ForgetRouter, ListWanted, NetworkState, PortRole, Wanted,
};
use wire::{MiB, Refused, RefusedKind};

/// What the fake daemons have.
#[derive(Default)]
pub struct Has {
    /// Machines, with what they do now.
    pub servers: BTreeMap<ServerId, (EnsureServer, PowerNow)>,
    /// Disks.
    pub disks: BTreeSet<DiskId>,
    /// Snapshots.
    pub snapshots: BTreeSet<SnapshotId>,
    /// Taps.
    pub taps: BTreeSet<PortId>,
    /// What the next starts fail with.
    pub fault: Option<String>,
    /// Machines with more memory than this, in MiB, do not start.
    pub fault_above: Option<u64>,
}

/// A cloud with fake daemons.
pub struct World {
    /// The cloud.
    pub cloud: Cloud,
    /// What its daemons have.
    pub has: Arc<Mutex<Has>>,
    /// An image of the demo project.
    pub image: String,
    /// A network of the demo project.
    pub network: String,
}

fn observed(call: &EnsureServer, power: PowerNow, fault: Option<String>) -> Observed {
    Observed {
        id: call.id,
        wanted: call.generation,
        settled: call.generation,
        power,
        reboots: call.reboots.count,
        disks: call.spec.disks.iter().map(|disk| disk.key.clone()).collect(),
        nics: call.spec.nics.iter().map(|nic| nic.port).collect(),
        fault,
        hypervisor: "vmm".to_owned(),
        panicked: false,
        last_end: None,
    }
}

fn host(has: &Arc<Mutex<Has>>) -> Router {
    let (ensure, forget, list) = (has.clone(), has.clone(), has.clone());
    Router::new()
        .serve(move |call: EnsureServer| {
            let has = ensure.clone();
            async move {
                let mut has = has.lock().unwrap();
                if has.servers.get(&call.id).is_some_and(|(known, _)| known.generation > call.generation) {
                    return Err(Refused::new(RefusedKind::Stale, "older than what is known"));
                }
                let power = match call.power {
                    Power::On => PowerNow::Running,
                    Power::Off { .. } => PowerNow::Off,
                    Power::Paused => PowerNow::Paused,
                    Power::Suspended => PowerNow::Suspended,
                };
                let large = has.fault_above.is_some_and(|most| call.spec.memory.0 > most);
                let large = large && matches!(call.power, Power::On);
                let fault = has.fault.clone().or(large.then(|| "it is too large".to_owned()));
                let power = if fault.is_some() { PowerNow::Crashed } else { power };
                has.servers.insert(call.id, (call.clone(), power));
                Ok(observed(&call, power, fault))
            }
        })
        .serve(move |call: ForgetServer| {
            let has = forget.clone();
            async move {
                has.lock().unwrap().servers.remove(&call.id);
                Ok(())
            }
        })
        .serve(move |_: ListServers| {
            let has = list.clone();
            async move {
                let has = has.lock().unwrap();
                Ok(has.servers.values().map(|(call, power)| observed(call, *power, None)).collect())
            }
        })
        .serve(|_: ReadFigures| async move {
            let counts = DiskCounts { read_bytes: 7, ..DiskCounts::default() };
            let disks = vec![DiskFigures { key: "root".to_owned(), counts: Some(counts) }];
            Ok(Figures { hypervisor: "vmm".to_owned(), cpus_ns: vec![5], disks, ..Figures::default() })
        })
        .serve(|call: ReadConsole| async move { Ok(format!("{:?} lines of {}", call.lines, call.id)) })
        .serve(|_: DescribeHost| async move {
            Ok(HostFacts {
                name: "host-1".to_owned(),
                cpus: 4,
                memory: MiB(8192),
                hypervisor: "vmm".to_owned(),
                reason: "a test".to_owned(),
                cpu_model: "imaginary".to_owned(),
                disk: None,
            })
        })
}

fn block(has: &Arc<Mutex<Has>>) -> Router {
    let (disk, no_disk, copy, no_copy) = (has.clone(), has.clone(), has.clone(), has.clone());
    let list = has.clone();
    Router::new()
        .serve(move |call: EnsureDisk| {
            let has = disk.clone();
            async move {
                has.lock().unwrap().disks.insert(call.id);
                Ok(DiskInfo { path: format!("/pool/{}", call.id).into(), bytes: call.bytes })
            }
        })
        .serve(move |call: ForgetDisk| {
            let has = no_disk.clone();
            async move {
                has.lock().unwrap().disks.remove(&call.id);
                Ok(())
            }
        })
        .serve(move |call: EnsureSnapshot| {
            let has = copy.clone();
            async move {
                has.lock().unwrap().snapshots.insert(call.id);
                Ok(DiskInfo { path: "/pool/s".into(), bytes: 1 << 20 })
            }
        })
        .serve(move |call: ForgetSnapshot| {
            let has = no_copy.clone();
            async move {
                has.lock().unwrap().snapshots.remove(&call.id);
                Ok(())
            }
        })
        .serve(|call: EnsureBlobFromDisk| async move {
            Ok(BlobInfo { id: call.blob, bytes: 1 << 20, md5: "0".repeat(32), sha512: "0".repeat(128) })
        })
        .serve(|_: InspectImage| async move { Ok(ImageFacts { virtual_bytes: 900 << 20 }) })
        .serve(|_: ForgetBlob| async move { Ok(()) })
        .serve(move |_: ListPool| {
            let has = list.clone();
            async move {
                let has = has.lock().unwrap();
                let (disks, snapshots) = (has.disks.iter().copied(), has.snapshots.iter().copied());
                Ok(Pool {
                    total_bytes: 100 << 30,
                    free_bytes: 90 << 30,
                    disks: disks.collect(),
                    snapshots: snapshots.collect(),
                    ..Pool::default()
                })
            }
        })
}

fn net(has: &Arc<Mutex<Has>>) -> Router {
    let has = has.clone();
    Router::new()
        .serve(move |call: EnsureNetwork| {
            let has = has.clone();
            async move {
                let guests =
                    call.spec.ports.iter().filter(|port| matches!(port.role, PortRole::Server { .. }));
                has.lock().unwrap().taps = guests.map(|port| port.id).collect();
                let ready = call.spec.ports.iter().map(|port| port.id).collect();
                Ok(NetworkState { generation: call.generation, ready, failed: Vec::new() })
            }
        })
        .serve(|_: ForgetNetwork| async move { Ok(()) })
        .serve(|_: EnsureRouter| async move { Ok(()) })
        .serve(|_: ForgetRouter| async move { Ok(()) })
        .serve(|_: ListWanted| async move { Ok(Wanted::default()) })
}

impl World {
    /// A cloud with an image, a network and the first flavors.
    pub async fn on(store: TestStore) -> Self {
        let cloud = Cloud::on(store).await;
        let has: Arc<Mutex<Has>> = Arc::default();
        cloud.daemon("host", host(&has));
        cloud.daemon("block", block(&has));
        cloud.daemon("net", net(&has));
        let app = cloud.app.clone();
        crate::compute::inner::bootstrap(&app, &cloud.params()).await.unwrap();
        crate::placement::inner::report_host(&app).await.unwrap();
        let demo = caller("demo", DEMO_PROJECT, &["member", "reader"]);
        let properties: Map<String, Value> = [("disk_format".to_owned(), json!("raw"))].into_iter().collect();
        let image = crate::image::inner::create_snapshot(&app, &demo, "guest", properties).await.unwrap();
        let source = DiskSource::Disk { disk: DiskId::new() };
        crate::image::inner::fill_from_disk(&app, &image, source).await.unwrap();
        let made = cloud
            .call("demo", "POST", "/network/v2.0/networks", Some(json!({"network": {"name": "net"}})))
            .await;
        let network = made.json["network"]["id"].as_str().unwrap().to_owned();
        let subnet = json!({"subnet": {"network_id": network, "cidr": "10.1.0.0/24", "ip_version": 4}});
        let made = cloud.call("demo", "POST", "/network/v2.0/subnets", Some(subnet)).await;
        assert_eq!(made.status, 201, "{made:?}");
        Self { cloud, has, image, network }
    }

    /// A call as `demo` at the newest version.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_at("latest", method, path, body).await
    }

    /// A call as `demo` at some version.
    pub async fn call_at(&self, version: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let version = format!("compute {version}");
        let headers = [("openstack-api-version", version.as_str()), ("content-type", "application/json")];
        let body = body.map_or_else(bytes::Bytes::new, |body| body.to_string().into());
        self.cloud.call_with("demo", method, &format!("/compute/v2.1{path}"), &headers, body).await
    }

    /// Asks for a server.
    pub async fn ask(&self, more: &Value) -> Answer {
        let mut body = json!({"name": "one", "flavorRef": "42", "imageRef": self.image, "networks": "auto"});
        for (key, value) in more.as_object().unwrap() {
            body[key.as_str()] = value.clone();
        }
        self.call("POST", "/servers", Some(json!({"server": body}))).await
    }

    /// A server that is there, unless its creation fails.
    pub async fn server(&self) -> String {
        let asked = self.ask(&json!({})).await;
        assert_eq!(asked.status, 202, "{asked:?}");
        self.drain().await;
        asked.json["server"]["id"].as_str().unwrap().to_owned()
    }

    /// The server as users see it.
    pub async fn show(&self, id: &str) -> Value {
        self.call("GET", &format!("/servers/{id}"), None).await.json["server"].clone()
    }

    /// Does an action, which is to be taken, and waits for its end.
    pub async fn act(&self, id: &str, action: Value) {
        let done = self.call("POST", &format!("/servers/{id}/action"), Some(action)).await;
        assert_eq!(done.status, 202, "{done:?}");
        self.drain().await;
    }

    /// A volume that is available.
    pub async fn volume(&self) -> String {
        let path = format!("/volume/v3/{DEMO_PROJECT}/volumes");
        let made = self.cloud.call("demo", "POST", &path, Some(json!({"volume": {"size": 1}}))).await;
        assert_eq!(made.status, 202, "{made:?}");
        self.drain().await;
        made.json["volume"]["id"].as_str().unwrap().to_owned()
    }

    /// A volume's status.
    pub async fn volume_status(&self, id: &str) -> String {
        crate::volume::inner::status(&self.cloud.app, id).await.unwrap()
    }

    /// Works until nothing is left to do.
    pub async fn drain(&self) {
        assert!(!self.work(Arc::default()).await);
    }

    /// Works until nothing is left to do, or until the crash; whether that happened.
    pub async fn work(&self, crash: Arc<Crash>) -> bool {
        let app = self.cloud.app.clone();
        let end = CancellationToken::new();
        let workers: Workers<_> = app::workers(app.tasks.clone()).crashing(crash.clone());
        let running = workers.run(app.clone(), "node".to_owned(), 4, end.clone());
        let idle = async {
            let sql = "SELECT id FROM tasks WHERE state IN ('live', 'undoing') LIMIT 1";
            while !app.store.rows(Sql::from(sql), Vec::new()).await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            end.cancel();
        };
        let both = async {
            tokio::select! {
                ((), ()) = async { tokio::join!(running, idle) } => (),
                () = crash.happened() => (),
            }
        };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("the queue drains");
        crash.died()
    }

    /// Everything that servers left behind, a line each. Disks of volumes are expected.
    pub async fn leftovers(&self, volumes: &[&str]) -> Vec<String> {
        let app = &self.cloud.app;
        let mut out = Vec::new();
        for (table, sql) in [
            ("servers", "SELECT id FROM compute_servers"),
            ("attachments", "SELECT id FROM compute_attachments"),
            ("allocations", "SELECT consumer AS id FROM placement_allocations"),
            ("consumers", "SELECT uuid AS id FROM placement_consumers"),
            ("ports", "SELECT id FROM network_ports WHERE device_owner LIKE 'compute:%'"),
        ] {
            for row in app.store.rows(Sql::from(sql), Vec::new()).await.unwrap() {
                out.push(format!("{table}: {}", row.text("id").unwrap()));
            }
        }
        let has = self.has.lock().unwrap();
        out.extend(has.servers.keys().map(|id| format!("machine: {id}")));
        out.extend(has.snapshots.iter().map(|id| format!("snapshot: {id}")));
        let disks = has.disks.iter().map(ToString::to_string);
        out.extend(disks.filter(|id| !volumes.contains(&id.as_str())).map(|id| format!("disk: {id}")));
        out
    }
}
