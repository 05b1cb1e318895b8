//! Start, stop, reboot, pause, unpause: the rule has written the wanted state, the task sees it through.

use super::{Applied, apply, change};
use crate::app::App;
use crate::compute::records::servers::{Fault, Seen, Wanted};
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::ids::ServerId;

/// What a user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// `os-start`
    Start,
    /// `os-stop`
    Stop,
    /// `reboot` of type `SOFT`
    RebootSoft,
    /// `reboot` of type `HARD`
    RebootHard,
    /// `pause`
    Pause,
    /// `unpause`
    Unpause,
    /// `suspend`
    Suspend,
    /// `resume`
    Resume,
}

/// Brings a server into the wanted power state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum PowerServer {
    /// The only step.
    Apply {
        /// Which server.
        server: ServerId,
        /// What was asked for: decides what users see meanwhile.
        act: Act,
    },
}

impl Task for PowerServer {
    const KIND: &'static str = "compute.power-server";
    type Context = App;

    async fn run(&self, app: &App, _job: &Job) -> Result<Next<Self>, Stop> {
        let Self::Apply { server, .. } = self;
        match apply(app, *server).await? {
            Applied::Waiting => Ok(Next::Wait(Duration::from_millis(50))),
            Applied::Reached(_) => Ok(Next::Done),
            Applied::Failed(why) => Err(Stop::Fail(why)),
        }
    }

    async fn undo(&self, app: &App, _job: &Job) -> Result<(), Stop> {
        let Self::Apply { server, .. } = self;
        // What cannot be is not wanted any longer: a later restart of the host must not try it again.
        change(app, *server, |server| {
            server.power = match server.observed {
                Seen::Running => Wanted::On,
                Seen::Paused => Wanted::Paused,
                Seen::Suspended => Wanted::Suspended,
                Seen::Off | Seen::Crashed => Wanted::Off,
                Seen::Nothing => return,
            };
            server.generation += 1;
        })
        .await?;
        Ok(())
    }

    async fn failed(&self, app: &App, _job: &Job, why: &str) -> Result<(), Stop> {
        let Self::Apply { server, .. } = self;
        change(app, *server, |server| {
            server.body.fault =
                Some(Fault { code: 500, message: why.to_owned(), created: api_kit::time::now() });
        })
        .await?;
        Ok(())
    }
}
