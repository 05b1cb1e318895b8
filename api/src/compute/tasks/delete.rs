//! Delete: stops the machine first, then gives back what it used, the row last, so that it can always be repeated.

use super::{attachment_subject, change, interface_subject, load, stop};
use crate::app::App;
use crate::compute::neighbours::{image, network};
use crate::compute::records::{attachments, servers, shape};
use crate::compute::rules::attach;
use crate::placement;
use base::task::{Job, Next, Stop, Task, Tasks};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::block::ForgetDisk;
use wire::host::ForgetServer;
use wire::ids::ServerId;

/// Deletes a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum DeleteServer {
    /// Other work on its volumes and interfaces ends, then the machine does.
    Halt {
        /// Which server.
        server: ServerId,
    },
    /// Volumes are free again, or gone when they go with the server.
    Volumes {
        /// Which server.
        server: ServerId,
    },
    /// Ports are released.
    Network {
        /// Which server.
        server: ServerId,
    },
    /// Its own disks are removed.
    Disks {
        /// Which server.
        server: ServerId,
    },
    /// Its room on the host is free, and the row is removed.
    Forget {
        /// Which server.
        server: ServerId,
    },
}

impl DeleteServer {
    fn server(&self) -> ServerId {
        match self {
            Self::Halt { server }
            | Self::Volumes { server }
            | Self::Network { server }
            | Self::Disks { server }
            | Self::Forget { server } => *server,
        }
    }
}

impl Task for DeleteServer {
    const KIND: &'static str = "compute.delete-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        match self {
            Self::Halt { server } => {
                let row = load(app, *server).await?;
                let mut others: Vec<String> =
                    row.body.nics.iter().map(|nic| interface_subject(nic.spec.port)).collect();
                for it in attachments::of_server(&app.store, *server).await? {
                    others.push(attachment_subject(&it.id));
                }
                if !Tasks::live_of(&app.store, &others).await?.is_empty() {
                    return Ok(Next::Wait(Duration::from_millis(200)));
                }
                app.host.call(&ForgetServer { id: *server, by: app.cloud.asked() }).await?;
                Ok(Next::Step(Self::Volumes { server: *server }))
            }
            Self::Volumes { server } => {
                for it in attachments::of_server(&app.store, *server).await? {
                    attach::let_go(app, &it).await.map_err(stop)?;
                }
                Ok(Next::Step(Self::Network { server: *server }))
            }
            Self::Network { server } => {
                network::release(app, *server).await.map_err(stop)?;
                Ok(Next::Step(Self::Disks { server: *server }))
            }
            Self::Disks { server } => {
                let row = load(app, *server).await?;
                for disk in shape::disks(&row) {
                    app.block.call(&ForgetDisk { id: disk.id, by: app.cloud.asked() }).await?;
                }
                if let Some(id) = &row.body.shelved {
                    image::remove(app, id).await.map_err(stop)?;
                }
                Ok(Next::Step(Self::Forget { server: *server }))
            }
            Self::Forget { server } => {
                placement::inner::release(&app.store, &server.to_string())
                    .await
                    .map_err(|refusal| Stop::Retry(refusal.to_string()))?;
                let id = *server;
                app.store.tx(|tx| async move { servers::delete(&tx, id).await }).await?;
                Ok(Next::Done)
            }
        }
    }

    /// A deletion never goes back: what is left is deleted by the next try.
    async fn undo(&self, _app: &App, _job: &Job) -> Result<(), Stop> {
        Ok(())
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let message = format!("The server could not be deleted yet: {why}. It will be tried again.");
        change(app, self.server(), |server| {
            let created = api_kit::time::now();
            server.body.fault = Some(servers::Fault { code: 500, message: message.clone(), created });
        })
        .await?;
        Ok(())
    }
}
