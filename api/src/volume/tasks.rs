//! Long work on volumes. Every step may run again: the storage daemon's calls say what should be.

use super::records;
use crate::app::App;
use api_kit::Fault;
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::block::{DiskSource, EnsureDisk, EnsureSnapshot, ForgetDisk, ForgetSnapshot};
use wire::ids::{DiskId, SnapshotId};

/// Longest time of one step: a conversion of a large image.
const STEP: Duration = Duration::from_secs(3600);

pub(super) fn disk(id: &str) -> Result<DiskId, Stop> {
    id.parse().map_err(|_| Stop::Fail(format!("the volume id {id} is no UUID")))
}

fn snapshot(id: &str) -> Result<SnapshotId, Stop> {
    id.parse().map_err(|_| Stop::Fail(format!("the snapshot id {id} is no UUID")))
}

pub(super) fn bytes(gib: i64) -> u64 {
    u64::try_from(gib).unwrap_or(0).saturating_mul(1 << 30)
}

fn stop(fault: &Fault) -> Stop {
    if fault.status.is_server_error() {
        Stop::Retry(fault.to_string())
    } else {
        Stop::Fail(fault.to_string())
    }
}

async fn set_status(app: &App, id: &str, status: &str) -> Result<(), Stop> {
    Ok(app.store.tx(|tx| async move { records::set_status(&tx, id, status).await }).await?)
}

/// Makes a volume's disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum CreateVolume {
    /// The disk is there.
    Make { volume: String, gib: i64, source: DiskSource },
    /// The volume may be used.
    Ready { volume: String },
}

impl Task for CreateVolume {
    const KIND: &'static str = "volume.create";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        match self {
            Self::Make { volume, gib, source } => {
                let call = EnsureDisk { id: disk(volume)?, bytes: bytes(*gib), source: source.clone() };
                app.block.call_within(&call, STEP).await?;
                Ok(Next::Step(Self::Ready { volume: volume.clone() }))
            }
            Self::Ready { volume } => {
                app.store
                    .tx(|tx| async move { records::advance(&tx, volume, "creating", "available").await })
                    .await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        match self {
            Self::Make { volume, .. } => {
                Ok(app.block.call(&ForgetDisk { id: disk(volume)?, by: app.cloud.asked() }).await?)
            }
            Self::Ready { .. } => Ok(()),
        }
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        match self {
            Self::Make { volume, .. } | Self::Ready { volume } => {
                tracing::warn!(volume, why, "a volume could not be made");
                set_status(app, volume, "error").await
            }
        }
    }
}

/// Removes a volume's disk and then the volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum DeleteVolume {
    /// The disk is gone.
    Forget { volume: String },
    /// The row is gone.
    Remove { volume: String },
}

impl Task for DeleteVolume {
    const KIND: &'static str = "volume.delete";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        match self {
            Self::Forget { volume } => {
                app.block.call(&ForgetDisk { id: disk(volume)?, by: app.cloud.asked() }).await?;
                Ok(Next::Step(Self::Remove { volume: volume.clone() }))
            }
            Self::Remove { volume } => {
                app.store.tx(|tx| async move { records::delete(&tx, volume).await }).await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, _app: &App, _job: &Job) -> Result<(), Stop> {
        Ok(())
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        match self {
            Self::Forget { volume } | Self::Remove { volume } => {
                tracing::warn!(volume, why, "a volume could not be deleted");
                set_status(app, volume, "error_deleting").await
            }
        }
    }
}

/// Enlarges a volume's disk. The row has the new size from the start, so that the quota counts it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum ExtendVolume {
    /// The disk has the new size.
    Grow { volume: String, old: i64, new: i64 },
}

impl Task for ExtendVolume {
    const KIND: &'static str = "volume.extend";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Self::Grow { volume, new, .. } = self;
        let call = EnsureDisk { id: disk(volume)?, bytes: bytes(*new), source: DiskSource::Blank };
        app.block.call_within(&call, STEP).await?;
        app.store
            .tx(|tx| async move { records::advance(&tx, volume, "extending", "available").await })
            .await?;
        Ok(Next::Done)
    }

    async fn undo(&self, _app: &App, _job: &Job) -> Result<(), Stop> {
        Ok(())
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let Self::Grow { volume, old, .. } = self;
        tracing::warn!(volume, why, "a volume could not be extended");
        app.store
            .tx(|tx| async move {
                records::set_size(&tx, volume, *old).await?;
                records::set_status(&tx, volume, "error_extending").await
            })
            .await?;
        Ok(())
    }
}

/// Turns a volume into an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum UploadVolume {
    /// The image is active and the volume free again.
    Fill { volume: String, image: String, before: String },
}

impl Task for UploadVolume {
    const KIND: &'static str = "volume.upload";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Self::Fill { volume, image, before } = self;
        let source = DiskSource::Disk { disk: disk(volume)? };
        crate::image::inner::fill_from_disk(app, image, source).await.map_err(|fault| stop(&fault))?;
        app.store.tx(|tx| async move { records::advance(&tx, volume, "uploading", before).await }).await?;
        Ok(Next::Done)
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let Self::Fill { image, .. } = self;
        crate::image::inner::fail(app, image).await.map_err(|fault| stop(&fault))
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let Self::Fill { volume, before, .. } = self;
        tracing::warn!(volume, why, "a volume could not be turned into an image");
        app.store.tx(|tx| async move { records::advance(&tx, volume, "uploading", before).await }).await?;
        Ok(())
    }
}

/// Takes a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum CreateSnapshot {
    /// The reflink is there and the snapshot available.
    Take { snapshot: String, volume: String },
}

impl Task for CreateSnapshot {
    const KIND: &'static str = "volume.snapshot";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Self::Take { snapshot: id, volume } = self;
        let call = EnsureSnapshot { id: snapshot(id)?, disk: disk(volume)? };
        app.block.call_within(&call, STEP).await?;
        app.store.tx(|tx| async move { records::set_snapshot_status(&tx, id, "available").await }).await?;
        Ok(Next::Done)
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let Self::Take { snapshot: id, .. } = self;
        Ok(app.block.call(&ForgetSnapshot { id: snapshot(id)?, by: app.cloud.asked() }).await?)
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let Self::Take { snapshot: id, .. } = self;
        tracing::warn!(snapshot = id, why, "a snapshot could not be taken");
        app.store.tx(|tx| async move { records::set_snapshot_status(&tx, id, "error").await }).await?;
        Ok(())
    }
}

/// Removes a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum DeleteSnapshot {
    /// The reflink and the row are gone.
    Forget { snapshot: String },
}

impl Task for DeleteSnapshot {
    const KIND: &'static str = "volume.delete-snapshot";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Self::Forget { snapshot: id } = self;
        app.block.call(&ForgetSnapshot { id: snapshot(id)?, by: app.cloud.asked() }).await?;
        app.store.tx(|tx| async move { records::delete_snapshot(&tx, id).await }).await?;
        Ok(Next::Done)
    }

    async fn undo(&self, _app: &App, _job: &Job) -> Result<(), Stop> {
        Ok(())
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let Self::Forget { snapshot: id } = self;
        tracing::warn!(snapshot = id, why, "a snapshot could not be deleted");
        app.store
            .tx(|tx| async move { records::set_snapshot_status(&tx, id, "error_deleting").await })
            .await?;
        Ok(())
    }
}
