//! Snapshot of a server's root disk to an image: a reflink taken at once, turned into image bytes afterwards.

use super::{DISK_LIMIT, load_living, stop};
use crate::app::App;
use crate::compute::neighbours::image;
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use wire::block::{DiskSource, EnsureSnapshot, ForgetSnapshot};
use wire::ids::{ServerId, SnapshotId};

/// Makes an image of a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum SnapshotServer {
    /// The disk as it is now.
    Copy {
        /// Which server.
        server: ServerId,
        /// The image to fill.
        image: String,
        /// The snapshot to make.
        snapshot: SnapshotId,
    },
    /// The image's bytes.
    Fill {
        /// Which server.
        server: ServerId,
        /// The image to fill.
        image: String,
        /// From where.
        snapshot: SnapshotId,
    },
    /// The snapshot is not needed any more.
    Forget {
        /// Which server.
        server: ServerId,
        /// The image that was filled.
        image: String,
        /// What to remove.
        snapshot: SnapshotId,
    },
}

impl SnapshotServer {
    fn parts(&self) -> (&str, SnapshotId) {
        match self {
            Self::Copy { image, snapshot, .. }
            | Self::Fill { image, snapshot, .. }
            | Self::Forget { image, snapshot, .. } => (image, *snapshot),
        }
    }
}

impl Task for SnapshotServer {
    const KIND: &'static str = "compute.snapshot-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        match self {
            Self::Copy { server, image, snapshot } => {
                let row = load_living(app, *server).await?;
                let disk = row.body.disks.root.as_ref().map(|disk| disk.id);
                let disk =
                    disk.ok_or_else(|| Stop::Fail("the server has no root disk of its own".to_owned()))?;
                let call = EnsureSnapshot { id: *snapshot, disk };
                app.block.call_within(&call, DISK_LIMIT).await?;
                Ok(Next::Step(Self::Fill { server: *server, image: image.clone(), snapshot: *snapshot }))
            }
            Self::Fill { server, image, snapshot } => {
                let source = DiskSource::Snapshot { snapshot: *snapshot };
                image::fill_from_disk(app, image, source).await.map_err(stop)?;
                Ok(Next::Step(Self::Forget { server: *server, image: image.clone(), snapshot: *snapshot }))
            }
            Self::Forget { snapshot, .. } => {
                app.block.call(&ForgetSnapshot { id: *snapshot, by: app.cloud.asked() }).await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        match self {
            Self::Copy { snapshot, .. } => {
                Ok(app.block.call(&ForgetSnapshot { id: *snapshot, by: app.cloud.asked() }).await?)
            }
            Self::Fill { .. } | Self::Forget { .. } => Ok(()),
        }
    }

    async fn failed(&self, app: &App, _job: &Job, _why: &str) -> Result<(), Stop> {
        // The reason stays with the action; an image has no field for it.
        image::fail(app, self.parts().0).await.map_err(stop)
    }
}
