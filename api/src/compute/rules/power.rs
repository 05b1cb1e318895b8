//! Start, stop, reboot, pause, lock, delete.

use super::{busy, check, reread};
use crate::app::App;
use crate::compute::records::servers::{self, Lifecycle, Server, Wanted};
use crate::compute::spec::GRACE_SECS;
use crate::compute::state::Vm;
use crate::compute::tasks::{self, Act, DeleteServer, PowerServer};
use api_kit::{Caller, Fault};
use wire::ids::ServerId;

fn allowed(act: Act) -> (&'static str, &'static [Vm]) {
    match act {
        Act::Start => ("start", &[Vm::Stopped]),
        Act::Stop => ("stop", &[Vm::Active, Vm::Error]),
        Act::RebootSoft => ("reboot", &[Vm::Active]),
        Act::RebootHard => ("reboot", &[Vm::Active, Vm::Stopped, Vm::Paused, Vm::Suspended, Vm::Error]),
        Act::Pause => ("pause", &[Vm::Active]),
        Act::Unpause => ("unpause", &[Vm::Paused]),
        Act::Suspend => ("suspend", &[Vm::Active]),
        Act::Resume => ("resume", &[Vm::Suspended]),
    }
}

fn want(server: &mut Server, act: Act) {
    match act {
        Act::Start | Act::Unpause | Act::Resume => server.power = Wanted::On,
        Act::Suspend => server.power = Wanted::Suspended,
        Act::Stop => server.power = Wanted::Off,
        Act::Pause => server.power = Wanted::Paused,
        Act::RebootSoft | Act::RebootHard => {
            server.power = Wanted::On;
            server.reboots += 1;
            server.reboot_grace = if act == Act::RebootSoft { i64::from(GRACE_SECS) } else { 0 };
        }
    }
    server.generation += 1;
}

/// Changes the wanted power state.
///
/// # Errors
/// 404, 409 when the state or the lock does not allow it.
pub async fn act(app: &App, caller: &Caller, id: ServerId, act: Act) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            let (mut server, state) = reread(&tx, id).await?;
            let (name, states) = allowed(act);
            check(&server, state, name, states, caller)?;
            // A server whose creation failed has no machine that could change its power.
            if server.launched_at.is_none() {
                return Err(Fault::conflict(format!(
                    "Cannot '{name}' instance {id} while it is in vm_state {}",
                    state.vm.as_str()
                )));
            }
            if act == Act::Suspend && server.body.hypervisor == "qemu" {
                return Err(Fault::conflict(format!(
                    "Instance {id} cannot be suspended: its host emulates it in software. Pause it instead."
                )));
            }
            want(&mut server, act);
            server.body.fault = None;
            servers::put(&tx, &server).await?;
            let first = PowerServer::Apply { server: id, act };
            app.tasks
                .enqueue(&tx, &tasks::subject(id), &first)
                .await
                .map_err(|error| busy(error, name, id))?;
            Ok(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

/// Deletes a server in any state; what works on it is undone first.
///
/// # Errors
/// 404, 409 when it is locked.
pub async fn delete(app: &App, caller: &Caller, id: ServerId) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            let (mut server, _) = reread(&tx, id).await?;
            if server.locked && !caller.is_admin {
                return Err(Fault::conflict(format!("Instance {id} is locked")));
            }
            server.lifecycle = Lifecycle::Deleting;
            server.body.fault = None;
            servers::put(&tx, &server).await?;
            app.tasks.supersede(&tx, &tasks::subject(id), &DeleteServer::Halt { server: id }).await?;
            Ok(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}

/// Locks or unlocks a server.
///
/// # Errors
/// 404; 403 when an administrator locked it and the caller is none.
pub async fn lock(
    app: &App,
    override_admin: bool,
    id: ServerId,
    lock: bool,
    by_admin: bool,
    reason: Option<String>,
) -> Result<(), Fault> {
    let reason = &reason;
    app.store
        .tx(|tx| async move {
            let (mut server, _) = reread(&tx, id).await?;
            if !lock && server.body.locked_by_admin && !override_admin {
                return Err(Fault::not_allowed("os_compute_api:os-lock-server:unlock:unlock_override"));
            }
            server.locked = lock;
            server.body.locked_by_admin = lock && by_admin;
            server.body.locked_reason = if lock { reason.clone() } else { None };
            servers::put(&tx, &server).await?;
            Ok(())
        })
        .await
}
