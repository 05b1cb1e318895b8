//! Shelve: a server's disk becomes an image and its place on the host is free; unshelve makes it anew from that.
//!
//! ```text
//! halt -> copy -> fill: the image is whole -> offload: nothing of it is on the host -> clean
//! place -> disks -> start -> clean: the image goes
//! ```

use super::create::{make_disk, raw};
use super::remake::{forget, is_off, want, want_off};
use super::{Applied, DISK_LIMIT, apply, change, load_living, stop};
use crate::app::App;
use crate::compute::metadata;
use crate::compute::neighbours::image;
use crate::compute::records::servers::{self, Disk, Disks, Fault, Seen, Server, Wanted};
use crate::compute::records::shape::Mode;
use crate::compute::scheduler::{self, NoPlace};
use crate::placement;
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::block::{DiskSource, EnsureSnapshot, ForgetDisk, ForgetSnapshot};
use wire::host::{ForgetServer, PowerNow};
use wire::ids::{DiskId, ServerId, SnapshotId};

const AGAIN: Duration = Duration::from_millis(50);

/// What shelving works on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shelf {
    /// Which server.
    pub server: ServerId,
    /// Whether its machine ran.
    pub ran: bool,
    /// The image to fill; none for a server that starts from a volume.
    pub image: Option<String>,
    /// The copy of its disk that the image is made from.
    pub snapshot: SnapshotId,
}

/// Shelves a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum ShelveServer {
    /// The machine is off.
    Halt {
        /// What is worked on.
        shelf: Shelf,
    },
    /// Its disk is copied.
    Copy {
        /// What is worked on.
        shelf: Shelf,
    },
    /// The image is whole.
    Fill {
        /// What is worked on.
        shelf: Shelf,
    },
    /// Nothing of it is on the host, and the row says so.
    Offload {
        /// What is worked on.
        shelf: Shelf,
    },
    /// What it left is gone.
    Clean {
        /// What is worked on.
        shelf: Shelf,
        /// Its disks.
        disks: Vec<DiskId>,
    },
}

impl ShelveServer {
    fn shelf(&self) -> &Shelf {
        match self {
            Self::Halt { shelf }
            | Self::Copy { shelf }
            | Self::Fill { shelf }
            | Self::Offload { shelf }
            | Self::Clean { shelf, .. } => shelf,
        }
    }
}

/// The same disks, to be made anew.
fn planned(disks: &Disks) -> Disks {
    let anew = |disk: &Option<Disk>| disk.as_ref().map(|disk| Disk::planned(disk.bytes));
    Disks {
        root: anew(&disks.root),
        ephemeral: anew(&disks.ephemeral),
        swap: anew(&disks.swap),
        config: anew(&disks.config),
    }
}

impl Task for ShelveServer {
    const KIND: &'static str = "compute.shelve-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let shelf = self.shelf().clone();
        let row = load_living(app, shelf.server).await?;
        match self {
            Self::Halt { .. } => {
                want_off(app, shelf.server, false).await?;
                if !is_off(app, shelf.server).await? {
                    return Ok(Next::Wait(AGAIN));
                }
                Ok(Next::Step(Self::Copy { shelf }))
            }
            Self::Copy { .. } => {
                if let (Some(root), Some(_)) = (&row.body.disks.root, &shelf.image) {
                    let call = EnsureSnapshot { id: shelf.snapshot, disk: root.id };
                    app.block.call_within(&call, DISK_LIMIT).await?;
                }
                Ok(Next::Step(Self::Fill { shelf }))
            }
            Self::Fill { .. } => {
                if let Some(id) = &shelf.image {
                    let source = DiskSource::Snapshot { snapshot: shelf.snapshot };
                    image::fill_from_disk(app, id, source).await.map_err(stop)?;
                }
                Ok(Next::Step(Self::Offload { shelf }))
            }
            Self::Offload { .. } => {
                app.host.call(&ForgetServer { id: shelf.server, by: app.cloud.asked() }).await?;
                let disks: Vec<DiskId> = row.body.disks.all().map(|disk| disk.id).collect();
                // The ids stay in the next step, so that the disks are found until they are gone.
                Ok(Next::Step(Self::Clean { shelf, disks }))
            }
            Self::Clean { disks, .. } => {
                placement::inner::release(&app.store, &shelf.server.to_string())
                    .await
                    .map_err(|refusal| Stop::Retry(refusal.to_string()))?;
                change(app, shelf.server, |server| {
                    if server.mode != Mode::Offloaded {
                        server.mode = Mode::Offloaded;
                        server.host = None;
                        server.observed = Seen::Off;
                        server.body.disks = planned(&server.body.disks);
                        server.body.shelved.clone_from(&shelf.image);
                        server.body.fault = None;
                        server.generation += 1;
                    }
                })
                .await?;
                forget(app, disks).await;
                let call = ForgetSnapshot { id: shelf.snapshot, by: app.cloud.asked() };
                if let Err(refused) = app.block.call(&call).await {
                    tracing::warn!(%refused, "a copy of a shelved disk stays until the pool is looked at");
                }
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let shelf = self.shelf();
        match self {
            // The host may have forgotten it already; the undo of the halt brings it back from its disks.
            Self::Clean { .. } | Self::Offload { .. } | Self::Fill { .. } => Ok(()),
            Self::Copy { .. } => {
                Ok(app.block.call(&ForgetSnapshot { id: shelf.snapshot, by: app.cloud.asked() }).await?)
            }
            Self::Halt { .. } => {
                let row = change_back(app, shelf).await?;
                if row {
                    match apply(app, shelf.server).await {
                        Ok(Applied::Waiting) => {
                            return Err(Stop::Retry("the server is not what it was yet".to_owned()));
                        }
                        Ok(Applied::Reached(_) | Applied::Failed(_)) | Err(Stop::Fail(_)) => {}
                        Err(retry @ Stop::Retry(_)) => return Err(retry),
                    }
                }
                Ok(())
            }
        }
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let shelf = self.shelf();
        if let Some(id) = &shelf.image {
            image::remove(app, id).await.map_err(stop)?;
        }
        fault(app, shelf.server, why).await
    }
}

/// Wants of the server what it was before; false when it is shelved already, or gone.
async fn change_back(app: &App, shelf: &Shelf) -> Result<bool, Stop> {
    change(app, shelf.server, |server| {
        if server.mode == Mode::Plain && (server.power == Wanted::On) != shelf.ran {
            want(server, shelf.ran);
        }
    })
    .await?;
    let row = servers::get(&app.store, shelf.server).await?;
    Ok(row.is_some_and(|row| row.mode == Mode::Plain))
}

async fn fault(app: &App, server: ServerId, why: &str) -> Result<(), Stop> {
    let created = api_kit::time::now();
    change(app, server, |server| {
        server.body.fault = Some(Fault { code: 500, message: why.to_owned(), created: created.clone() });
    })
    .await?;
    Ok(())
}

/// Brings a shelved server back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum UnshelveServer {
    /// A host has room for it, and keeps it.
    Place {
        /// Which server.
        server: ServerId,
    },
    /// Its own disks exist.
    Disks {
        /// Which server.
        server: ServerId,
    },
    /// The machine runs.
    Start {
        /// Which server.
        server: ServerId,
    },
    /// The image is gone.
    Clean {
        /// Which server.
        server: ServerId,
        /// What it was made from.
        image: Option<String>,
    },
}

impl UnshelveServer {
    fn server(&self) -> ServerId {
        match self {
            Self::Place { server }
            | Self::Disks { server }
            | Self::Start { server }
            | Self::Clean { server, .. } => *server,
        }
    }
}

async fn disks(app: &App, row: &Server) -> Result<(), Stop> {
    let mut disks = row.body.disks.clone();
    if let (Some(root), Some(id)) = (&disks.root, &row.body.shelved) {
        let from = image::by_id(app, id).await.map_err(stop)?;
        let source = DiskSource::Image { blob: from.blob, format: from.disk_format };
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
        server.mode = Mode::Plain;
        want(server, true);
    })
    .await?;
    Ok(())
}

impl Task for UnshelveServer {
    const KIND: &'static str = "compute.unshelve-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let server = self.server();
        let row = load_living(app, server).await?;
        match self {
            Self::Place { .. } => match scheduler::place(&app.store, &row).await {
                Ok(host) => {
                    change(app, server, |row| row.host = Some(host.clone())).await?;
                    Ok(Next::Step(Self::Disks { server }))
                }
                Err(NoPlace::Store(error)) => Err(error.into()),
                Err(no @ NoPlace::NoHost(_)) => Err(Stop::Fail(no.to_string())),
            },
            Self::Disks { .. } => {
                if row.mode == Mode::Offloaded {
                    disks(app, &row).await?;
                }
                Ok(Next::Step(Self::Start { server }))
            }
            Self::Start { .. } => match apply(app, server).await? {
                Applied::Waiting => Ok(Next::Wait(AGAIN)),
                Applied::Failed(why) => Err(Stop::Fail(why)),
                Applied::Reached(observed) => match observed.power {
                    PowerNow::Crashed => Err(Stop::Fail("the machine crashed while it started".to_owned())),
                    PowerNow::Running | PowerNow::Off | PowerNow::Paused | PowerNow::Suspended => {
                        Ok(Next::Step(Self::Clean { server, image: row.body.shelved }))
                    }
                },
            },
            Self::Clean { image: from, .. } => {
                change(app, server, |row| {
                    row.body.shelved = None;
                    row.body.fault = None;
                })
                .await?;
                if let Some(id) = from
                    && let Err(fault) = image::remove(app, id).await
                {
                    tracing::warn!(image = id, %fault, "the image of an unshelved server stays");
                }
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let id = self.server();
        let Some(row) = servers::get(&app.store, id).await? else { return Ok(()) };
        match self {
            Self::Clean { .. } => Ok(()),
            Self::Start { .. } => Ok(app.host.call(&ForgetServer { id, by: app.cloud.asked() }).await?),
            Self::Disks { .. } => {
                for disk in row.body.disks.all() {
                    app.block.call(&ForgetDisk { id: disk.id, by: app.cloud.asked() }).await?;
                }
                change(app, id, |server| {
                    server.mode = Mode::Offloaded;
                    server.observed = Seen::Off;
                    server.power = Wanted::Off;
                    server.body.disks = planned(&server.body.disks);
                })
                .await?;
                Ok(())
            }
            Self::Place { .. } => {
                let released = placement::inner::release(&app.store, &id.to_string()).await;
                released.map_err(|refusal| Stop::Retry(refusal.to_string()))?;
                change(app, id, |row| row.host = None).await?;
                Ok(())
            }
        }
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        fault(app, self.server(), why).await
    }
}
