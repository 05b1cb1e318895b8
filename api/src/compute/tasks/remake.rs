//! Rebuild, resize, revert, rescue, unrescue: a server that is switched off for a moment and comes back as something else.
//!
//! ```text
//! halt: the machine is off -> make: new disks exist -> switch: the row is the new server -> start -> clean: old disks go
//! ```
//!
//! Until it has started, everything of the old server is there, and a failure brings it back as it was.

use super::create::{make_disk, raw};
use super::{Applied, DISK_LIMIT, apply, change, load_living, stop};
use crate::app::App;
use crate::compute::metadata;
use crate::compute::records::servers::{self, Disk, Fault, Server, Wanted};
use crate::compute::records::shape::{Mode, Shape, unused};
use crate::compute::rules::placing;
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::block::{DiskSource, ForgetDisk};
use wire::host::PowerNow;
use wire::ids::{BlobId, DiskId, ServerId};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// New disks from an image.
    Rebuild,
    /// Another flavor; what the server was is put aside.
    Resize,
    /// What was put aside is the server again.
    Revert,
    /// Another disk to start from, its own beside it.
    Rescue,
    /// Its own disk is what it starts from again.
    Unrescue,
}

/// All that the steps need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What is done.
    pub what: What,
    /// The machine ran before.
    pub ran: bool,
    /// It is to run afterwards.
    pub run: bool,
    /// What the server was.
    pub from: Shape,
    /// What it becomes; disks without a file are to be made.
    pub to: Shape,
    /// The mode that it was in.
    pub from_mode: Mode,
    /// The mode that it will be in.
    pub to_mode: Mode,
    /// What was put aside before.
    pub from_aside: Option<Shape>,
    /// What is put aside afterwards.
    pub to_aside: Option<Shape>,
    /// The image that a new root disk is made from, and its format.
    pub root: Option<(BlobId, String)>,
}

/// Makes something else of a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Remake {
    /// The machine is off, and the host has room for what comes.
    Halt {
        /// Which server.
        server: ServerId,
        /// What is done.
        plan: Box<Plan>,
    },
    /// New disks exist.
    Make {
        /// Which server.
        server: ServerId,
        /// What is done.
        plan: Box<Plan>,
    },
    /// The row is the new server.
    Switch {
        /// Which server.
        server: ServerId,
        /// What is done, with the files of new disks.
        plan: Box<Plan>,
    },
    /// The machine is as it is to be.
    Start {
        /// Which server.
        server: ServerId,
        /// What is done.
        plan: Box<Plan>,
    },
    /// What nobody needs any more is gone.
    Clean {
        /// Which server.
        server: ServerId,
        /// What was done.
        plan: Box<Plan>,
    },
}

impl Remake {
    fn parts(&self) -> (ServerId, &Plan) {
        match self {
            Self::Halt { server, plan }
            | Self::Make { server, plan }
            | Self::Switch { server, plan }
            | Self::Start { server, plan }
            | Self::Clean { server, plan } => (*server, plan),
        }
    }
}

const AGAIN: Duration = Duration::from_millis(50);

/// Switches a server off in the row, unless it is. Only a resize waits for the guest to shut itself down: the others
/// take its disk away, or come from a guest that nobody wants.
pub(super) async fn want_off(app: &App, id: ServerId, hasty: bool) -> Result<(), Stop> {
    change(app, id, |server| {
        if server.power != Wanted::Off || server.body.hasty != hasty {
            server.power = Wanted::Off;
            server.body.hasty = hasty;
            server.generation += 1;
        }
    })
    .await?;
    Ok(())
}

pub(super) fn want(server: &mut Server, run: bool) {
    server.power = if run { Wanted::On } else { Wanted::Off };
    server.body.hasty = false;
    server.generation += 1;
}

/// Whether the machine is off now.
pub(super) async fn is_off(app: &App, id: ServerId) -> Result<bool, Stop> {
    match apply(app, id).await? {
        Applied::Waiting => Ok(false),
        Applied::Failed(why) => Err(Stop::Fail(why)),
        Applied::Reached(observed) => match observed.power {
            PowerNow::Off | PowerNow::Crashed => Ok(true),
            PowerNow::Running | PowerNow::Paused | PowerNow::Suspended => Ok(false),
        },
    }
}

/// The new shape with files for all of its disks.
async fn make(app: &App, row: &Server, plan: &Plan) -> Result<Shape, Stop> {
    let (mut to, from) = (plan.to.clone(), &plan.from.disks);
    // What a resize makes larger is a copy of what was there.
    let copy = |old: &Option<Disk>| match (plan.what, old) {
        (What::Resize, Some(old)) => DiskSource::Disk { disk: old.id },
        (What::Resize | What::Rebuild | What::Revert | What::Rescue | What::Unrescue, _) => DiskSource::Blank,
    };
    let sources = [
        match &plan.root {
            Some((blob, format)) => DiskSource::Image { blob: *blob, format: format.clone() },
            None => copy(&from.root),
        },
        copy(&from.ephemeral),
        copy(&from.swap),
    ];
    let slots = [&mut to.disks.root, &mut to.disks.ephemeral, &mut to.disks.swap];
    for (slot, source) in slots.into_iter().zip(sources) {
        if let Some(disk) = slot.as_ref().filter(|disk| disk.path.is_none()) {
            *slot = Some(make_disk(app, disk, source).await?);
        }
    }
    if let Some(disk) = to.disks.config.as_ref().filter(|disk| disk.path.is_none()) {
        let files = metadata::config_drive(app, row).await.map_err(stop)?;
        let source = DiskSource::Files { label: "config-2".to_owned(), files };
        to.disks.config = Some(make_disk(app, disk, source).await?);
    }
    if let Some(kernel) = to.kernel.as_mut().filter(|kernel| kernel.kernel.is_none()) {
        kernel.kernel = Some(raw(app, &kernel.kernel_id).await?);
        if let Some(id) = &kernel.ramdisk_id {
            kernel.ramdisk = Some(raw(app, id).await?);
        }
    }
    Ok(to)
}

async fn switch(app: &App, id: ServerId, plan: &Plan) -> Result<(), Stop> {
    change(app, id, |server| {
        // It may have been done before a crash.
        if Shape::of(server) != plan.to || server.mode != plan.to_mode {
            plan.to.put(server);
            server.mode = plan.to_mode;
            server.body.aside = plan.to_aside.clone().map(Box::new);
            want(server, plan.run);
        }
    })
    .await?;
    Ok(())
}

/// Removes disks that nobody names any more. What cannot be removed now is found by the pool's collector, so that a
/// server which is done is not undone for it.
pub(super) async fn forget(app: &App, disks: &[DiskId]) {
    for id in disks {
        let call = ForgetDisk { id: *id, by: app.cloud.asked() };
        if let Err(refused) = app.block.call_within(&call, DISK_LIMIT).await {
            tracing::warn!(disk = %id, %refused, "an old disk stays until the pool is looked at");
        }
    }
}

impl Task for Remake {
    const KIND: &'static str = "compute.remake-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let (server, plan) = self.parts();
        let row = load_living(app, server).await?;
        let step =
            |make: fn(ServerId, Box<Plan>) -> Self, plan: Plan| Ok(Next::Step(make(server, Box::new(plan))));
        match self {
            Self::Halt { .. } => {
                if plan.what == What::Resize {
                    placing::hold(app, &row, &[&plan.from, &plan.to]).await?;
                }
                want_off(app, server, plan.what != What::Resize).await?;
                if !is_off(app, server).await? {
                    return Ok(Next::Wait(AGAIN));
                }
                step(|server, plan| Self::Make { server, plan }, plan.clone())
            }
            Self::Make { .. } => {
                let to = make(app, &row, plan).await?;
                step(|server, plan| Self::Switch { server, plan }, Plan { to, ..plan.clone() })
            }
            Self::Switch { .. } => {
                switch(app, server, plan).await?;
                step(|server, plan| Self::Start { server, plan }, plan.clone())
            }
            Self::Start { .. } => match apply(app, server).await? {
                Applied::Waiting => Ok(Next::Wait(AGAIN)),
                Applied::Failed(why) => Err(Stop::Fail(why)),
                Applied::Reached(observed) => match observed.power {
                    PowerNow::Crashed => Err(Stop::Fail("the machine crashed while it started".to_owned())),
                    PowerNow::Running | PowerNow::Off | PowerNow::Paused | PowerNow::Suspended => {
                        step(|server, plan| Self::Clean { server, plan }, plan.clone())
                    }
                },
            },
            Self::Clean { .. } => {
                if plan.what == What::Revert {
                    placing::hold(app, &row, &[&plan.to]).await?;
                }
                forget(app, &unused(&plan.from.disks, &plan.to.disks, plan.to_aside.as_ref())).await;
                change(app, server, |row| row.body.fault = None).await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let (id, plan) = self.parts();
        let Some(row) = servers::get(&app.store, id).await? else { return Ok(()) };
        match self {
            Self::Clean { .. } => Ok(()),
            Self::Start { .. } => {
                want_off(app, id, true).await?;
                match is_off(app, id).await {
                    // A host that cannot even switch it off has no machine of it.
                    Ok(true) | Err(Stop::Fail(_)) => Ok(()),
                    Ok(false) => Err(Stop::Retry("the machine is not off yet".to_owned())),
                    Err(retry) => Err(retry),
                }
            }
            Self::Switch { .. } => {
                change(app, id, |server| {
                    if Shape::of(server) != plan.from || server.mode != plan.from_mode {
                        plan.from.put(server);
                        server.mode = plan.from_mode;
                        server.body.aside = plan.from_aside.clone().map(Box::new);
                        server.generation += 1;
                    }
                })
                .await?;
                Ok(())
            }
            Self::Make { .. } => {
                for disk in unused(&plan.to.disks, &plan.from.disks, plan.from_aside.as_ref()) {
                    app.block.call(&ForgetDisk { id: disk, by: app.cloud.asked() }).await?;
                }
                Ok(())
            }
            Self::Halt { .. } => {
                if plan.what == What::Resize {
                    placing::hold(app, &row, &[&plan.from]).await?;
                }
                change(app, id, |server| {
                    if server.body.hasty || (server.power == Wanted::On) != plan.ran {
                        want(server, plan.ran);
                    }
                })
                .await?;
                match apply(app, id).await {
                    Ok(Applied::Waiting) => Err(Stop::Retry("the server is not what it was yet".to_owned())),
                    Ok(Applied::Reached(_) | Applied::Failed(_)) | Err(Stop::Fail(_)) => Ok(()),
                    Err(retry @ Stop::Retry(_)) => Err(retry),
                }
            }
        }
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let created = api_kit::time::now();
        change(app, self.parts().0, |server| {
            server.body.fault = Some(Fault { code: 500, message: why.to_owned(), created: created.clone() });
        })
        .await?;
        Ok(())
    }
}

/// Removes what a resize kept aside, once its owner has confirmed it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum ConfirmResize {
    /// The only step.
    Clean {
        /// Which server.
        server: ServerId,
        /// What nobody needs any more.
        disks: Vec<DiskId>,
    },
}

impl Task for ConfirmResize {
    const KIND: &'static str = "compute.confirm-resize";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Self::Clean { disks, .. } = self;
        forget(app, disks).await;
        Ok(Next::Done)
    }

    async fn undo(&self, _app: &App, _job: &Job) -> Result<(), Stop> {
        Ok(())
    }

    async fn failed(&self, _app: &App, _job: &Job, _why: &str) -> Result<(), Stop> {
        Ok(())
    }
}
