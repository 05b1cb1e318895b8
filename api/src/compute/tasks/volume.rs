//! A volume comes to a server and goes from it, while it runs or not.

use super::{Applied, apply, load, load_living, stop};
use crate::app::App;
use crate::compute::neighbours::volume;
use crate::compute::records::attachments::{self, Attachment, State};
use crate::compute::records::servers;
use base::store::{StoreError, Tx};
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::host::{DiskSpec, PowerNow};
use wire::ids::ServerId;

/// Gives a server a volume that is reserved for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum AttachVolume {
    /// The volume's file is known.
    Export {
        /// Which attachment.
        attachment: String,
    },
    /// The machine has it.
    Plug {
        /// Which attachment.
        attachment: String,
    },
    /// The volume service knows that it is in use.
    Complete {
        /// Which attachment.
        attachment: String,
    },
}

/// Takes a volume from a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum DetachVolume {
    /// The volume service knows that it is about to go.
    Begin {
        /// Which attachment.
        attachment: String,
    },
    /// The machine has let go of it.
    Unplug {
        /// Which attachment.
        attachment: String,
    },
    /// The volume is free.
    Release {
        /// Which attachment.
        attachment: String,
    },
}

async fn find(app: &App, id: &str) -> Result<Attachment, Stop> {
    let found = attachments::get(&app.store, id).await?;
    found.ok_or_else(|| Stop::Fail("the attachment is gone".to_owned()))
}

fn reserved(it: &Attachment) -> Result<&str, Stop> {
    it.body.attachment_id.as_deref().ok_or_else(|| Stop::Fail("the volume was never reserved".to_owned()))
}

/// Sets the disk that the server is meant to have through this attachment; the server's generation rises when that is
/// news. Harmless when the attachment is gone.
pub(super) async fn set_disk(app: &App, id: &str, disk: Option<&DiskSpec>) -> Result<(), StoreError> {
    app.store
        .tx(|tx: Tx| async move {
            let Some(mut it) = attachments::get(&tx, id).await? else { return Ok(()) };
            if it.body.disk.as_ref() != disk {
                it.body.disk = disk.cloned();
                attachments::put(&tx, &it).await?;
                servers::change(&tx, it.server, |server| server.generation += 1).await?;
            }
            Ok(())
        })
        .await
}

async fn set_state(app: &App, id: &str, state: State) -> Result<(), StoreError> {
    app.store
        .tx(|tx| async move {
            let Some(mut it) = attachments::get(&tx, id).await? else { return Ok(()) };
            it.state = state;
            attachments::put(&tx, &it).await
        })
        .await
}

async fn drop_row(app: &App, id: &str) -> Result<(), StoreError> {
    app.store.tx(|tx| async move { attachments::delete(&tx, id).await }).await
}

/// Whether the machine has, or has not, the disk. A machine that is off has what its next start will give it.
async fn plugged(app: &App, server: ServerId, key: &str, wanted: bool) -> Result<bool, Stop> {
    match apply(app, server).await? {
        Applied::Waiting => Ok(false),
        Applied::Failed(why) => Err(Stop::Fail(why)),
        Applied::Reached(observed) => match observed.power {
            PowerNow::Off | PowerNow::Suspended | PowerNow::Crashed => Ok(true),
            PowerNow::Running | PowerNow::Paused => {
                Ok(observed.disks.iter().any(|disk| disk == key) == wanted)
            }
        },
    }
}

const AGAIN: Duration = Duration::from_millis(100);

impl AttachVolume {
    fn attachment(&self) -> &str {
        match self {
            Self::Export { attachment } | Self::Plug { attachment } | Self::Complete { attachment } => {
                attachment
            }
        }
    }
}

impl Task for AttachVolume {
    const KIND: &'static str = "compute.attach-volume";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let it = find(app, self.attachment()).await?;
        let server = load_living(app, it.server).await?;
        match self {
            Self::Export { attachment } => {
                let exported = volume::export(app, reserved(&it)?).await.map_err(stop)?;
                set_disk(app, attachment, Some(&exported.disk)).await?;
                Ok(Next::Step(Self::Plug { attachment: attachment.clone() }))
            }
            Self::Plug { attachment } => {
                // The volume's id is its disk's key.
                if !plugged(app, it.server, &it.volume_id, true).await? {
                    return Ok(Next::Wait(AGAIN));
                }
                Ok(Next::Step(Self::Complete { attachment: attachment.clone() }))
            }
            Self::Complete { attachment } => {
                let host = server.host.unwrap_or_default();
                volume::complete(app, reserved(&it)?, &it.body.device, &host).await.map_err(stop)?;
                set_state(app, attachment, State::Attached).await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let Some(it) = attachments::get(&app.store, self.attachment()).await? else { return Ok(()) };
        match self {
            Self::Complete { .. } => Ok(()),
            Self::Plug { attachment } => {
                // Out of the wanted state, and out of the machine, before anybody else may have the volume.
                set_disk(app, attachment, None).await?;
                match plugged(app, it.server, &it.volume_id, false).await {
                    // A server that is being deleted stops its machine anyway, or never had one.
                    Ok(true) | Err(Stop::Fail(_)) => Ok(()),
                    Ok(false) => Err(Stop::Retry("the machine has not let go of the volume yet".to_owned())),
                    Err(retry) => Err(retry),
                }
            }
            Self::Export { attachment } => {
                if let Some(id) = &it.body.attachment_id {
                    volume::release(app, id).await.map_err(stop)?;
                }
                Ok(drop_row(app, attachment).await?)
            }
        }
    }

    async fn failed(&self, _app: &App, _job: &Job, _why: &str) -> Result<(), Stop> {
        // The reason stays with the server's actions; the attachment itself is gone.
        Ok(())
    }
}

impl DetachVolume {
    fn attachment(&self) -> &str {
        match self {
            Self::Begin { attachment } | Self::Unplug { attachment } | Self::Release { attachment } => {
                attachment
            }
        }
    }
}

impl Task for DetachVolume {
    const KIND: &'static str = "compute.detach-volume";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Some(it) = attachments::get(&app.store, self.attachment()).await? else { return Ok(Next::Done) };
        match self {
            Self::Begin { attachment } => {
                load(app, it.server).await?;
                volume::begin_detach(app, reserved(&it)?).await.map_err(stop)?;
                Ok(Next::Step(Self::Unplug { attachment: attachment.clone() }))
            }
            Self::Unplug { attachment } => {
                set_disk(app, attachment, None).await?;
                if !plugged(app, it.server, &it.volume_id, false).await? {
                    return Ok(Next::Wait(AGAIN));
                }
                Ok(Next::Step(Self::Release { attachment: attachment.clone() }))
            }
            Self::Release { attachment } => {
                volume::release(app, reserved(&it)?).await.map_err(stop)?;
                drop_row(app, attachment).await?;
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let Some(it) = attachments::get(&app.store, self.attachment()).await? else { return Ok(()) };
        match self {
            Self::Release { .. } => Ok(()),
            Self::Unplug { attachment } => {
                let exported = match volume::export(app, reserved(&it)?).await {
                    Ok(exported) => exported,
                    // No longer reserved for this server: it must not get it back.
                    Err(fault) if fault.status == 404 => return Ok(()),
                    Err(fault) => return Err(stop(fault)),
                };
                set_disk(app, attachment, Some(&exported.disk)).await?;
                match plugged(app, it.server, &it.volume_id, true).await {
                    Ok(true) | Err(Stop::Fail(_)) => Ok(()),
                    Ok(false) => {
                        Err(Stop::Retry("the machine does not have the volume again yet".to_owned()))
                    }
                    Err(retry) => Err(retry),
                }
            }
            Self::Begin { attachment } => {
                let Some(server) = servers::get(&app.store, it.server).await? else {
                    return Ok(drop_row(app, attachment).await?);
                };
                let host = server.host.unwrap_or_default();
                match volume::complete(app, reserved(&it)?, &it.body.device, &host).await {
                    Ok(()) => Ok(set_state(app, attachment, State::Attached).await?),
                    Err(fault) if fault.status == 404 => Ok(drop_row(app, attachment).await?),
                    Err(fault) => Err(stop(fault)),
                }
            }
        }
    }

    async fn failed(&self, _app: &App, _job: &Job, _why: &str) -> Result<(), Stop> {
        Ok(())
    }
}
