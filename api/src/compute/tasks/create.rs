//! Create: a place, ports, disks, volumes, wires, and the machine.

use super::volume::set_disk;
use super::{Applied, DISK_LIMIT, apply, change, load_living, stop};
use crate::app::App;
use crate::compute::metadata;
use crate::compute::neighbours::{image, network, volume};
use crate::compute::records::attachments::{self, Attachment, State};
use crate::compute::records::servers::{
    self, Disk, Fault, Lifecycle, NetworkRequest, Nic, Seen, Server, VolumeRequest, Wanted,
};
use crate::compute::rules::{self, attach};
use crate::compute::scheduler::{self, NoPlace};
use crate::placement;
use base::task::{Job, Next, Stop, Task};
use network::NetRequest;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::block::{DiskSource, EnsureDisk, EnsureRaw, ForgetDisk};
use wire::host::{ForgetServer, NicSpec, PowerNow};
use wire::ids::ServerId;
use wire::machine::NicLimits;

/// Creates a server whose row is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum CreateServer {
    /// A host has room for it, and keeps it.
    Place {
        /// Which server.
        server: ServerId,
    },
    /// Its ports exist.
    Network {
        /// Which server.
        server: ServerId,
    },
    /// Its own disks exist.
    Disks {
        /// Which server.
        server: ServerId,
    },
    /// Its volumes are reserved and their files known.
    Volumes {
        /// Which server.
        server: ServerId,
    },
    /// Its taps exist and are filtered.
    Wire {
        /// Which server.
        server: ServerId,
    },
    /// The machine runs.
    Start {
        /// Which server.
        server: ServerId,
    },
    /// Everybody knows.
    Finish {
        /// Which server.
        server: ServerId,
    },
}

impl CreateServer {
    fn server(&self) -> ServerId {
        match self {
            Self::Place { server }
            | Self::Network { server }
            | Self::Disks { server }
            | Self::Volumes { server }
            | Self::Wire { server }
            | Self::Start { server }
            | Self::Finish { server } => *server,
        }
    }
}

/// What the network service is to make of a request.
#[must_use]
pub fn net_request(it: &NetworkRequest) -> NetRequest {
    match it {
        NetworkRequest::Auto => NetRequest::Auto,
        NetworkRequest::None => NetRequest::None,
        NetworkRequest::Network { id, fixed_ip, .. } => {
            NetRequest::Network { network_id: id.clone(), fixed_ip: *fixed_ip }
        }
        NetworkRequest::Port { id, .. } => NetRequest::Port { port_id: id.clone() },
    }
}

fn tag(it: Option<&NetworkRequest>) -> Option<String> {
    match it? {
        NetworkRequest::Network { tag, .. } | NetworkRequest::Port { tag, .. } => tag.clone(),
        NetworkRequest::Auto | NetworkRequest::None => None,
    }
}

async fn networks(app: &App, row: &Server) -> Result<(), Stop> {
    let requests: Vec<NetRequest> = row.body.networks.iter().map(net_request).collect();
    let host = row.host.clone().unwrap_or_default();
    let ports = network::allocate(
        app,
        &row.project_id,
        row.id,
        &requests,
        &row.body.security_groups,
        &row.body.hostname,
        &host,
    )
    .await
    .map_err(stop)?;
    let nics: Vec<Nic> = ports
        .iter()
        .enumerate()
        .map(|(index, it)| Nic {
            spec: NicSpec { port: it.port, mac: it.mac, mtu: it.mtu, limits: NicLimits::default() },
            tag: tag(row.body.networks.get(index)),
        })
        .collect();
    change(app, row.id, |server| server.body.nics.clone_from(&nics)).await?;
    Ok(())
}

pub(super) async fn make_disk(app: &App, disk: &Disk, source: DiskSource) -> Result<Disk, Stop> {
    let call = EnsureDisk { id: disk.id, bytes: disk.bytes, source };
    let made = app.block.call_within(&call, DISK_LIMIT).await?;
    Ok(Disk { path: Some(made.path), ..disk.clone() })
}

async fn disks(app: &App, row: &Server) -> Result<(), Stop> {
    let mut disks = row.body.disks.clone();
    if let (Some(root), Some(it)) = (&disks.root, &row.body.image) {
        let source = DiskSource::Image { blob: it.blob, format: it.format.clone() };
        disks.root = Some(make_disk(app, root, source).await?);
    }
    for slot in [&mut disks.ephemeral, &mut disks.swap] {
        if let Some(disk) = slot {
            *slot = Some(make_disk(app, disk, DiskSource::Blank).await?);
        }
    }
    if let Some(config) = &disks.config {
        let files = metadata::config_drive(app, row).await.map_err(stop)?;
        let source = DiskSource::Files { label: "config-2".to_owned(), files };
        disks.config = Some(make_disk(app, config, source).await?);
    }
    let mut kernel = row.body.kernel.clone();
    if let Some(it) = &mut kernel {
        it.kernel = Some(raw(app, &it.kernel_id).await?);
        if let Some(id) = &it.ramdisk_id {
            it.ramdisk = Some(raw(app, id).await?);
        }
    }
    change(app, row.id, |server| {
        server.body.disks.clone_from(&disks);
        server.body.kernel.clone_from(&kernel);
    })
    .await?;
    Ok(())
}

pub(super) async fn raw(app: &App, image_id: &str) -> Result<std::path::PathBuf, Stop> {
    let it = image::by_id(app, image_id).await.map_err(stop)?;
    // Kernel and initrd images say `aki` and `ari`; both are plain files.
    let call = EnsureRaw { blob: it.blob, format: "raw".to_owned() };
    Ok(app.block.call_within(&call, DISK_LIMIT).await?.path)
}

/// Makes or finds the volume of a request, reserves it and learns its file. Each part is written down before the next.
async fn volume_for(
    app: &App,
    row: &Server,
    index: usize,
    wanted: &VolumeRequest,
) -> Result<Option<Duration>, Stop> {
    let position = i64::try_from(index).unwrap_or(i64::MAX);
    let known = attachments::of_server(&app.store, row.id).await?;
    let mut it = match known.into_iter().find(|it| it.position == position) {
        Some(it) => it,
        None => {
            let volume_id = rules::volume_for_server(app, row, wanted).await.map_err(stop)?;
            let body = attachments::Body {
                device: rules::device_name(index),
                tag: wanted.tag.clone(),
                delete_on_termination: wanted.delete_on_termination,
                boot: wanted.boot,
                ..attachments::Body::default()
            };
            let it = Attachment {
                id: uuid::Uuid::new_v4().to_string(),
                server: row.id,
                volume_id,
                state: State::Attaching,
                position,
                created_at: api_kit::time::now(),
                body,
            };
            let new = &it;
            app.store.tx(|tx| async move { attachments::put(&tx, new).await }).await?;
            it
        }
    };
    if it.body.disk.is_some() {
        return Ok(None);
    }
    if it.body.attachment_id.is_none() {
        match volume::status(app, &it.volume_id).await.map_err(stop)?.as_str() {
            "creating" | "downloading" => return Ok(Some(Duration::from_millis(200))),
            "error" => return Err(Stop::Fail(format!("volume {} could not be made", it.volume_id))),
            _ => (),
        }
        let caller = rules::caller_of(row);
        let id = volume::reserve(app, &caller, &it.volume_id, row.id).await.map_err(stop)?;
        it.body.attachment_id = Some(id);
        let changed = &it;
        app.store.tx(|tx| async move { attachments::put(&tx, changed).await }).await?;
    }
    let attachment = it.body.attachment_id.clone().unwrap_or_default();
    let exported = volume::export(app, &attachment).await.map_err(stop)?;
    set_disk(app, &it.id, Some(&exported.disk)).await?;
    Ok(None)
}

impl Task for CreateServer {
    const KIND: &'static str = "compute.create-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let server = self.server();
        let row = load_living(app, server).await?;
        match self {
            Self::Place { .. } => {
                let host = match scheduler::place(&app.store, &row).await {
                    Ok(host) => host,
                    Err(NoPlace::Store(error)) => return Err(error.into()),
                    Err(no @ NoPlace::NoHost(_)) => return Err(Stop::Fail(no.to_string())),
                };
                change(app, server, |row| row.host = Some(host.clone())).await?;
                Ok(Next::Step(Self::Network { server }))
            }
            Self::Network { .. } => {
                networks(app, &row).await?;
                Ok(Next::Step(Self::Disks { server }))
            }
            Self::Disks { .. } => {
                disks(app, &row).await?;
                Ok(Next::Step(Self::Volumes { server }))
            }
            Self::Volumes { .. } => {
                for (index, wanted) in row.body.volumes.iter().enumerate() {
                    if let Some(pause) = volume_for(app, &row, index, wanted).await? {
                        return Ok(Next::Wait(pause));
                    }
                }
                Ok(Next::Step(Self::Wire { server }))
            }
            Self::Wire { .. } => {
                for nic in &row.body.nics {
                    network::wire(app, nic.spec.port).await.map_err(stop)?;
                }
                Ok(Next::Step(Self::Start { server }))
            }
            Self::Start { .. } => match apply(app, server).await? {
                Applied::Waiting => Ok(Next::Wait(Duration::from_millis(20))),
                Applied::Failed(why) => Err(Stop::Fail(why)),
                Applied::Reached(observed) => match observed.power {
                    PowerNow::Running => Ok(Next::Step(Self::Finish { server })),
                    // It ran and powered itself off already: that is the guest's own business.
                    PowerNow::Off => Ok(Next::Step(Self::Finish { server })),
                    PowerNow::Paused | PowerNow::Suspended => Ok(Next::Wait(Duration::from_millis(100))),
                    PowerNow::Crashed => Err(Stop::Fail("the machine crashed while it started".to_owned())),
                },
            },
            Self::Finish { .. } => {
                let host = row.host.clone().unwrap_or_default();
                for mut it in attachments::of_server(&app.store, server).await? {
                    if it.state != State::Attaching {
                        continue;
                    }
                    let id = it.body.attachment_id.clone().unwrap_or_default();
                    volume::complete(app, &id, &it.body.device, &host).await.map_err(stop)?;
                    it.state = State::Attached;
                    let done = &it;
                    app.store.tx(|tx| async move { attachments::put(&tx, done).await }).await?;
                }
                change(app, server, |row| {
                    if row.lifecycle == Lifecycle::Building {
                        row.lifecycle = Lifecycle::Ready;
                        row.launched_at = Some(api_kit::time::now());
                    }
                })
                .await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let server = self.server();
        match self {
            Self::Finish { .. } | Self::Wire { .. } => Ok(()),
            Self::Start { .. } => {
                Ok(app.host.call(&ForgetServer { id: server, by: app.cloud.asked() }).await?)
            }
            Self::Volumes { .. } => {
                for it in attachments::of_server(&app.store, server).await? {
                    attach::let_go(app, &it).await.map_err(stop)?;
                }
                Ok(())
            }
            Self::Disks { .. } => {
                // Without a row nobody knows of disks; the pool's own clean-up finds them.
                if let Some(row) = servers::get(&app.store, server).await? {
                    for disk in row.body.disks.all() {
                        app.block.call(&ForgetDisk { id: disk.id, by: app.cloud.asked() }).await?;
                    }
                }
                Ok(())
            }
            Self::Network { .. } => {
                network::release(app, server).await.map_err(stop)?;
                change(app, server, |row| row.body.nics.clear()).await?;
                Ok(())
            }
            Self::Place { .. } => {
                let released = placement::inner::release(&app.store, &server.to_string()).await;
                released.map_err(|refusal| Stop::Retry(refusal.to_string()))?;
                change(app, server, |row| row.host = None).await?;
                Ok(())
            }
        }
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        change(app, self.server(), |row| {
            if row.lifecycle == Lifecycle::Building {
                row.lifecycle = Lifecycle::Failed;
                row.power = Wanted::Off;
                row.observed = Seen::Nothing;
                let created = api_kit::time::now();
                row.body.fault = Some(Fault { code: 500, message: why.to_owned(), created });
            }
        })
        .await?;
        Ok(())
    }
}
