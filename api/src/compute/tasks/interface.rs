//! An interface comes to a server and goes from it, while it runs or not.

use super::{Applied, apply, change, load_living, stop};
use crate::app::App;
use crate::compute::neighbours::network;
use crate::compute::records::servers::{self, Nic};
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::host::PowerNow;
use wire::ids::{PortId, ServerId};

/// Gives a server a port that is allocated for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum AttachInterface {
    /// The tap exists and is filtered.
    Wire {
        /// Which server.
        server: ServerId,
        /// The interface.
        nic: Nic,
    },
    /// The machine has it.
    Plug {
        /// Which server.
        server: ServerId,
        /// The interface.
        nic: Nic,
    },
}

/// Takes a port from a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum DetachInterface {
    /// The machine has let go of it.
    Unplug {
        /// Which server.
        server: ServerId,
        /// Which port.
        port: PortId,
    },
    /// The port is deleted, or unbound when the server did not make it.
    Release {
        /// Which server.
        server: ServerId,
        /// Which port.
        port: PortId,
    },
}

const AGAIN: Duration = Duration::from_millis(100);

async fn plugged(app: &App, server: ServerId, port: PortId, wanted: bool) -> Result<bool, Stop> {
    match apply(app, server).await? {
        Applied::Waiting => Ok(false),
        Applied::Failed(why) => Err(Stop::Fail(why)),
        Applied::Reached(observed) => match observed.power {
            PowerNow::Off | PowerNow::Suspended | PowerNow::Crashed => Ok(true),
            PowerNow::Running | PowerNow::Paused => Ok(observed.nics.contains(&port) == wanted),
        },
    }
}

async fn want(app: &App, server: ServerId, nic: &Nic) -> Result<(), Stop> {
    change(app, server, |row| {
        if row.body.nics.iter().all(|it| it.spec.port != nic.spec.port) {
            row.body.nics.push(nic.clone());
            row.generation += 1;
        }
    })
    .await?;
    Ok(())
}

async fn unwant(app: &App, server: ServerId, port: PortId) -> Result<(), Stop> {
    change(app, server, |row| {
        let before = row.body.nics.len();
        row.body.nics.retain(|it| it.spec.port != port);
        if row.body.nics.len() != before {
            row.generation += 1;
        }
    })
    .await?;
    Ok(())
}

impl Task for AttachInterface {
    const KIND: &'static str = "compute.attach-interface";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        match self {
            Self::Wire { server, nic } => {
                load_living(app, *server).await?;
                network::wire(app, nic.spec.port).await.map_err(stop)?;
                Ok(Next::Step(Self::Plug { server: *server, nic: nic.clone() }))
            }
            Self::Plug { server, nic } => {
                load_living(app, *server).await?;
                want(app, *server, nic).await?;
                if !plugged(app, *server, nic.spec.port, true).await? {
                    return Ok(Next::Wait(AGAIN));
                }
                Ok(Next::Done)
            }
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        match self {
            Self::Plug { server, nic } => {
                if servers::get(&app.store, *server).await?.is_none() {
                    return Ok(());
                }
                unwant(app, *server, nic.spec.port).await?;
                match plugged(app, *server, nic.spec.port, false).await {
                    Ok(true) | Err(Stop::Fail(_)) => Ok(()),
                    Ok(false) => {
                        Err(Stop::Retry("the machine has not let go of the interface yet".to_owned()))
                    }
                    Err(retry) => Err(retry),
                }
            }
            Self::Wire { server, nic } => {
                network::detach_one(app, *server, nic.spec.port).await.map_err(stop)
            }
        }
    }

    async fn failed(&self, _app: &App, _job: &Job, _why: &str) -> Result<(), Stop> {
        Ok(())
    }
}

impl Task for DetachInterface {
    const KIND: &'static str = "compute.detach-interface";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        match self {
            Self::Unplug { server, port } => {
                unwant(app, *server, *port).await?;
                if !plugged(app, *server, *port, false).await? {
                    return Ok(Next::Wait(AGAIN));
                }
                Ok(Next::Step(Self::Release { server: *server, port: *port }))
            }
            Self::Release { server, port } => {
                network::detach_one(app, *server, *port).await.map_err(stop)?;
                Ok(Next::Done)
            }
        }
    }

    /// The interface is not wanted any more and goes with the next change of the server; its port is given back then.
    async fn undo(&self, _app: &App, _job: &Job) -> Result<(), Stop> {
        Ok(())
    }

    async fn failed(&self, _app: &App, _job: &Job, _why: &str) -> Result<(), Stop> {
        Ok(())
    }
}
