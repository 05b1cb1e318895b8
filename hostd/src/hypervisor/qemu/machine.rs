//! One QEMU.

use super::qmp::{Heard, Qmp, QmpError};
use super::{BALLOON, MONITOR, args, disk_device, disk_node, nic_device, nic_node};
use crate::console;
use crate::hypervisor::{Control, DiskNow, End, How, Kind, Life, Machine, Seat, Status, figures, place};
use crate::process::Process;
use crate::resources::Resources;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, watch};
use wire::host::{DiskCounts, DiskFigures, DiskSpec, Figures, MemoryFigures, NicFigures, NicSpec};
use wire::ids::PortId;
use wire::machine::{Limits, MAX_DISKS, MAX_NICS};
use wire::{MiB, Refused};

/// Where QEMU's objects live that have a name of ours.
const PERIPHERAL: &str = "/machine/peripheral";

/// How often, and how far apart, QEMU is asked to release the disk of a device that is gone.
const RELEASE_TRIES: u32 = 100;
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// A QEMU that runs or has run.
pub struct QemuMachine {
    seat: Seat,
    process: Process,
    resources: Resources,
    link: AsyncMutex<Option<Arc<Link>>>,
    heard: Mutex<Option<watch::Receiver<Heard>>>,
}

/// A connection, and what is on which root port as far as known.
struct Link {
    qmp: Qmp,
    ports: Mutex<BTreeMap<String, usize>>,
}

impl From<QmpError> for Refused {
    fn from(error: QmpError) -> Self {
        match &error {
            QmpError::Refused { .. } => Self::internal(error.to_string()),
            QmpError::Gone(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl QemuMachine {
    /// The machine of a process. Its monitor is connected when it is first needed.
    pub fn new(seat: Seat, process: Process, resources: Resources) -> Self {
        Self { seat, process, resources, link: AsyncMutex::new(None), heard: Mutex::new(None) }
    }

    /// Where it lives.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Connects to the monitor, unless that is done.
    pub async fn connect(&self) -> Result<(), QmpError> {
        self.link().await.map(drop)
    }

    async fn link(&self) -> Result<Arc<Link>, QmpError> {
        let mut place = self.link.lock().await;
        if let Some(link) = place.as_ref()
            && !link.qmp.heard().borrow().closed
        {
            return Ok(link.clone());
        }
        let gone = |error: std::io::Error| QmpError::Gone(error.to_string());
        let stream =
            place::with_short_path(&self.seat, MONITOR, |path| UnixStream::connect(path)).map_err(gone)?;
        let link = Arc::new(Link { qmp: Qmp::open(stream).await?, ports: Mutex::default() });
        link.learn().await?;
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.qmp.heard());
        *place = Some(link.clone());
        Ok(link)
    }

    async fn read(&self) -> Result<Status, Refused> {
        if self.process.has_ended() {
            return Ok(self.ended());
        }
        let looked = async {
            let link = self.link().await?;
            if let Some(heard) = self.heard.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                heard.borrow_and_update();
            }
            link.status().await
        };
        match looked.await {
            Ok((run_state, status)) => Ok(match run_state.as_str() {
                "shutdown" => Status { life: Life::Ended(self.guest_end().await), ..status },
                "watchdog" => Status { life: Life::Paused, bitten: true, ..status },
                "paused" | "prelaunch" => Status { life: Life::Paused, ..status },
                // Running, or asleep by its own wish.
                _ => status,
            }),
            // It may have ended since the first look.
            Err(_) if self.process.has_ended() => Ok(self.ended()),
            Err(error) => Err(error.into()),
        }
    }

    fn ended(&self) -> Status {
        let status = self.process.status().unwrap_or_else(|| "an unknown status".into());
        let words = place::last_words(&self.seat);
        if status == "exit status: 0" && words.is_empty() {
            // A guest that powers off or resets leaves QEMU standing; nobody tells it to quit; and what ends it by a
            // signal is in its words. That leaves a watchdog that powers off.
            let detail = "the guest started its watchdog and stopped calling it".to_owned();
            return Status { life: Life::Ended(End { how: How::Watchdog, detail }), ..Status::default() };
        }
        let detail = if words.is_empty() {
            format!("QEMU ended with {status}")
        } else {
            format!("QEMU ended with {status}: {words}")
        };
        Status { life: Life::Ended(End { how: How::Failed, detail }), ..Status::default() }
    }

    /// Why a QEMU stands still: from its event, or, when that came before we were connected, from its trace, which has
    /// a line for a power-off (cause 6 of QEMU's `ShutdownCause`) and none for a reset.
    async fn guest_end(&self) -> End {
        let told = {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.as_ref().and_then(|heard| heard.borrow().shutdown.clone())
        };
        let how = match told.as_deref() {
            Some("guest-shutdown") => How::PowerOff,
            Some("guest-reset") => How::Reset,
            Some(_) => How::Stopped,
            None => {
                let log = std::fs::read(place::log_path(&self.seat)).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                if log.contains("qemu_system_shutdown_request reason=6") { How::PowerOff } else { How::Reset }
            }
        };
        End { how, detail: String::new() }
    }

    async fn act(&self, control: Control) -> Result<(), Refused> {
        let link = self.link().await?;
        match control {
            Control::Pause => link.qmp.run("stop", json!({})).await.map(drop)?,
            Control::Resume => link.qmp.run("cont", json!({})).await.map(drop)?,
            Control::PowerButton => link.qmp.run("system_powerdown", json!({})).await.map(drop)?,
            Control::PlugDisk(disk) => self.plug_disk(&link, &disk).await?,
            Control::UnplugDisk(key) => link.unplug(&disk_device(&key)).await?,
            Control::PlugNic(nic) => self.plug_nic(&link, &nic).await?,
            Control::UnplugNic(port) => link.unplug(&nic_device(port)).await?,
            Control::LimitDisk(key, limits) => link.limit(&key, limits).await?,
            // Its interfaces have no limits; `docs/conformance.md` says so.
            Control::LimitNic(..) => (),
            Control::ResizeDisk(key, bytes) => {
                if let Some(port) = link.port_of(&disk_device(&key)) {
                    let arguments = json!({"node-name": disk_node(port), "size": bytes});
                    link.qmp.run("block_resize", arguments).await?;
                }
            }
        }
        Ok(())
    }

    async fn plug_disk(&self, link: &Link, disk: &DiskSpec) -> Result<(), Refused> {
        let device = disk_device(&disk.key);
        if link.devices().await?.contains(&device) {
            return Ok(());
        }
        let port = link.free_port().await?;
        let (resources, spec) = (self.resources.clone(), disk.clone());
        let file = blocking(move || resources.disk(&spec)).await?;
        let plugged = async {
            link.qmp.run_with("add-fd", json!({"fdset-id": port}), Some(file.as_fd())).await?;
            link.qmp.run("blockdev-add", args::blockdev(port, disk)).await?;
            link.qmp.run("device_add", args::disk_options(port, disk)).await
        };
        link.finish(device, port, plugged.await).await?;
        if disk.limits == Limits::default() { Ok(()) } else { link.limit(&disk.key, disk.limits).await }
    }

    /// Sets the limits of disks that the machine started with. They count from the first moments of the guest on.
    pub async fn limit(&self, disks: &[DiskSpec]) -> Result<(), Refused> {
        for disk in disks.iter().filter(|disk| disk.limits != Limits::default()) {
            self.link().await?.limit(&disk.key, disk.limits).await?;
        }
        Ok(())
    }

    async fn count(&self) -> Result<Figures, Refused> {
        let link = self.link().await?;
        let (_, status) = link.status().await?;
        let stats = link.qmp.run("query-blockstats", json!({})).await?;
        let memory = link.guest_memory().await?;
        let usage = figures::usage(self.process.pid(), "CPU ").await?;
        let disk = |disk: DiskNow| DiskFigures {
            counts: disk_counts(&stats, &disk_device(&disk.key)),
            key: disk.key,
        };
        Ok(Figures {
            hypervisor: Kind::Qemu.to_string(),
            uptime_secs: usage.uptime_secs,
            cpus_ns: usage.cpus_ns,
            memory: MemoryFigures { resident: usage.resident, ..memory },
            disks: status.disks.into_iter().map(disk).collect(),
            // QEMU does not count what its taps carry.
            nics: status.nics.into_iter().map(|port| NicFigures { port, mac: None, counts: None }).collect(),
        })
    }

    async fn plug_nic(&self, link: &Link, nic: &NicSpec) -> Result<(), Refused> {
        let device = nic_device(nic.port);
        if link.devices().await?.contains(&device) {
            return Ok(());
        }
        let port = link.free_port().await?;
        let (resources, id): (Resources, PortId) = (self.resources.clone(), nic.port);
        let tap: OwnedFd = blocking(move || resources.tap(id)).await?;
        let name = nic_node(port);
        let plugged = async {
            link.qmp.run_with("getfd", json!({"fdname": name}), Some(tap.as_fd())).await?;
            let backend = json!({"type": "tap", "id": name, "fd": name, "vhost": false});
            link.qmp.run("netdev_add", backend).await?;
            link.qmp.run("device_add", args::nic_options(port, nic)).await
        };
        link.finish(device, port, plugged.await).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Refused::internal(error.to_string()))?
}

impl Link {
    /// Finds out which device is on which root port, and clears the ports of devices that went while nobody listened.
    async fn learn(&self) -> Result<(), QmpError> {
        let mut ports = BTreeMap::new();
        for device in self.devices().await? {
            let property = if device.starts_with("disk-") { "drive" } else { "netdev" };
            let path = format!("{PERIPHERAL}/{device}");
            let backend = self.qmp.run("qom-get", json!({"path": path, "property": property})).await?;
            let number = backend.as_str().and_then(|name| name.get(1..)).and_then(|text| text.parse().ok());
            if let Some(port) = number {
                ports.insert(device, port);
            }
        }
        for port in 0..MAX_DISKS + MAX_NICS {
            if !ports.values().any(|used| *used == port) {
                self.clear(port).await?;
            }
        }
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = ports;
        Ok(())
    }

    /// Our devices as QEMU has them now.
    async fn devices(&self) -> Result<BTreeSet<String>, QmpError> {
        Ok(self
            .peripherals()
            .await?
            .into_iter()
            .filter(|name| name.starts_with("disk-") || name.starts_with("nic-"))
            .collect())
    }

    async fn peripherals(&self) -> Result<BTreeSet<String>, QmpError> {
        let list = self.qmp.run("qom-list", json!({"path": PERIPHERAL})).await?;
        let names = list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Takes away what is behind a root port without a device. That there is nothing is the usual case.
    ///
    /// QEMU frees a device some time after it has left the tree and its event was sent (its memory regions go by RCU);
    /// until then its disk is in use. This waits a while for that; false says that the disk is still in use.
    async fn clear(&self, port: usize) -> Result<bool, QmpError> {
        let mut tries = 0;
        loop {
            match self.qmp.run("blockdev-del", json!({"node-name": disk_node(port)})).await {
                Ok(_) => break,
                Err(QmpError::Refused { text, .. }) if text.starts_with("Failed to find node") => break,
                Err(QmpError::Refused { .. }) if tries < RELEASE_TRIES => tries += 1,
                Err(QmpError::Refused { text, .. }) => {
                    tracing::warn!(port, text, "QEMU does not release a disk");
                    return Ok(false);
                }
                Err(error @ QmpError::Gone(_)) => return Err(error),
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
        let undo = [
            ("remove-fd", json!({"fdset-id": port})),
            ("netdev_del", json!({"id": nic_node(port)})),
            ("closefd", json!({"fdname": nic_node(port)})),
        ];
        for (command, arguments) in undo {
            match self.qmp.run(command, arguments).await {
                Ok(_) | Err(QmpError::Refused { .. }) => (),
                Err(error @ QmpError::Gone(_)) => return Err(error),
            }
        }
        Ok(true)
    }

    async fn status(&self) -> Result<(String, Status), QmpError> {
        let run = self.qmp.run("query-status", json!({})).await?;
        let mut devices = self.devices().await?;
        let gone: Vec<(String, usize)> = {
            let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            ports.iter().filter(|(name, _)| !devices.contains(*name)).map(|(n, p)| (n.clone(), *p)).collect()
        };
        for (device, port) in gone {
            if self.clear(port).await? {
                self.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
            } else {
                // Whoever hears that a disk is gone gives its file to somebody else.
                devices.insert(device);
            }
        }
        let nodes = self.qmp.run("query-named-block-nodes", json!({"flat": true})).await?;
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut at: Vec<(&String, usize)> =
            devices.iter().map(|device| (device, ports.get(device).copied().unwrap_or(usize::MAX))).collect();
        at.sort_by_key(|(_, port)| *port);
        let (mut disks, mut nics) = (Vec::new(), Vec::new());
        for (device, port) in at {
            if let Some(key) = device.strip_prefix("disk-") {
                disks.push(DiskNow { key: key.to_owned(), bytes: size_of_node(&nodes, port) });
            } else if let Some(Ok(port)) = device.strip_prefix("nic-").map(str::parse) {
                nics.push(port);
            }
        }
        let state = run["status"].as_str().unwrap_or_default().to_owned();
        Ok((state, Status { disks, nics, ..Status::default() }))
    }

    /// Limits a disk, or takes its limits away.
    async fn limit(&self, key: &str, limits: Limits) -> Result<(), Refused> {
        let path = format!("{PERIPHERAL}/{}/virtio-backend", disk_device(key));
        let mut arguments = json!({"id": path, "bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0});
        for (name, limit) in [("bps", limits.bytes), ("iops", limits.operations)] {
            // 0 is none to QEMU.
            arguments[name] = json!(limit.map_or(0, |limit| limit.per_second));
            if let Some(limit) = limit.filter(|limit| limit.burst > limit.per_second) {
                arguments[format!("{name}_max")] = json!(limit.burst);
            }
        }
        self.qmp.run("block_set_io_throttle", arguments).await?;
        Ok(())
    }

    /// What the guest's balloon driver says; asks it to say more later.
    async fn guest_memory(&self) -> Result<MemoryFigures, QmpError> {
        let path = format!("{PERIPHERAL}/{BALLOON}");
        let ask = json!({"path": path, "property": "guest-stats-polling-interval", "value": 2});
        let read = json!({"path": path, "property": "guest-stats"});
        let told = match self.qmp.run("qom-set", ask).await {
            Ok(_) => self.qmp.run("qom-get", read).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(told) => {
                // -1 as an unsigned number is what is not known.
                let mib = |name: &str| {
                    let bytes = told["stats"][name].as_u64().filter(|bytes| *bytes != u64::MAX)?;
                    Some(MiB(bytes >> 20))
                };
                let (total, available) = (mib("stat-total-memory"), mib("stat-available-memory"));
                Ok(MemoryFigures { total, available, ..MemoryFigures::default() })
            }
            // A machine that an earlier hostd started has none.
            Err(QmpError::Refused { .. }) => Ok(MemoryFigures::default()),
            Err(error @ QmpError::Gone(_)) => Err(error),
        }
    }

    fn port_of(&self, device: &str) -> Option<usize> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).get(device).copied()
    }

    /// A root port without a device, cleared.
    async fn free_port(&self) -> Result<usize, Refused> {
        let there = self.peripherals().await?;
        let used: BTreeSet<usize> =
            self.ports.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect();
        for port in 0..MAX_DISKS + MAX_NICS {
            let free = there.contains(&super::port_name(port)) && !used.contains(&port);
            if free && self.clear(port).await? {
                return Ok(port);
            }
        }
        Err(Refused::no_space("the running machine has no free PCI port left")
            .remedy("detach a device, or stop and start the server: it then gets more ports"))
    }

    async fn finish(
        &self,
        device: String,
        port: usize,
        outcome: Result<Value, QmpError>,
    ) -> Result<(), Refused> {
        match outcome {
            Ok(_) => {
                self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(device, port);
                Ok(())
            }
            Err(error) => {
                self.clear(port).await?;
                Err(error.into())
            }
        }
    }

    async fn unplug(&self, device: &str) -> Result<(), Refused> {
        match self.qmp.run("device_del", json!({"id": device})).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_missing() => Ok(()),
            Err(QmpError::Refused { text, .. }) if text.contains("in the process of unplug") => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn disk_counts(stats: &Value, device: &str) -> Option<DiskCounts> {
    // The device is told by its path in the tree: `/machine/peripheral/ID/virtio-backend`.
    let of = |entry: &&Value| {
        entry["qdev"].as_str().is_some_and(|path| path.split('/').any(|part| part == device))
    };
    let own = &stats.as_array()?.iter().find(of)?["stats"];
    let number = |name: &str| own[name].as_u64().unwrap_or_default();
    Some(DiskCounts {
        read_bytes: number("rd_bytes"),
        reads: number("rd_operations"),
        written_bytes: number("wr_bytes"),
        writes: number("wr_operations"),
        errors: number("failed_rd_operations").saturating_add(number("failed_wr_operations")),
    })
}

fn size_of_node(nodes: &Value, port: usize) -> Option<u64> {
    let name = disk_node(port);
    let node = nodes.as_array()?.iter().find(|node| node["node-name"].as_str() == Some(&name))?;
    node["image"]["virtual-size"].as_u64()
}

impl Machine for QemuMachine {
    fn status(&self) -> BoxFuture<'_, Result<Status, Refused>> {
        self.read().boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            let event = async {
                let told = match heard {
                    Some(mut heard) => heard.changed().await.is_ok(),
                    None => false,
                };
                if !told {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = self.process.ended() => (),
                () = event => (),
            }
        }
        .boxed()
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), Refused>> {
        self.act(control).boxed()
    }

    fn suspend<'a>(&'a self, _into: &'a Path, _memory: MiB) -> BoxFuture<'a, Result<(), Refused>> {
        let refused = Refused::invalid("a server that QEMU emulates cannot be suspended")
            .remedy("pause it, or run the host with hardware virtualisation");
        futures::future::ready(Err(refused)).boxed()
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, Refused>> {
        self.count().boxed()
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        self.process.kill().boxed()
    }

    fn tend(&self) {
        let logs = [
            (console::current(&self.seat.state), self.seat.console_limit),
            (place::log_path(&self.seat), place::LOG_LIMIT),
        ];
        for (path, limit) in logs {
            if let Err(error) = console::trim(&path, limit) {
                tracing::warn!(path = %path.display(), %error, "cannot trim a log");
            }
        }
    }
}
