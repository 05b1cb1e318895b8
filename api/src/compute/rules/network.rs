//! Interfaces and security groups of servers.

use super::{busy, check, reread};
use crate::app::App;
use crate::compute::neighbours::network::{self, NetRequest, ServerPort};
use crate::compute::records::servers::Nic;
use crate::compute::state::Vm;
use crate::compute::tasks::{self, AttachInterface, DetachInterface};
use api_kit::{Caller, Fault};
use wire::host::NicSpec;
use wire::ids::{PortId, ServerId};
use wire::machine::NicLimits;

const STATES: &[Vm] = &[Vm::Active, Vm::Paused, Vm::Stopped, Vm::Resized];

/// Gives a server one more interface.
///
/// # Errors
/// 404, 409 by state, and what the network service refuses.
pub async fn attach(
    app: &App,
    caller: &Caller,
    id: ServerId,
    request: &NetRequest,
    tag: Option<String>,
) -> Result<ServerPort, Fault> {
    network::check_requests(app, caller, std::slice::from_ref(request)).await?;
    let tag = &tag;
    // One transaction with the task: a crash, or a deletion of the server meanwhile, leaves no port without one.
    let port = app
        .store
        .tx(|tx| async move {
            let (server, state) = reread(&tx, id).await?;
            check(&server, state, "attach_interface", STATES, caller)?;
            let (project, body) = (&server.project_id, &server.body);
            let host = server.host.as_deref().unwrap_or_default();
            let made =
                network::attach_one(&tx, project, id, request, &body.security_groups, &body.hostname, host)
                    .await?;
            let port = made.ok_or_else(|| Fault::bad_request("No network or port was named to attach."))?;
            let nic = Nic {
                spec: NicSpec { port: port.port, mac: port.mac, mtu: port.mtu, limits: NicLimits::default() },
                tag: tag.clone(),
            };
            let subject = tasks::interface_subject(port.port);
            let first = AttachInterface::Wire { server: id, nic };
            app.tasks
                .enqueue(&tx, &subject, &first)
                .await
                .map_err(|error| busy(error, "attach_interface", id))?;
            Ok::<_, Fault>(port)
        })
        .await?;
    app.wake.network.nudge();
    app.tasks.wake();
    Ok(port)
}

/// Takes an interface from a server.
///
/// # Errors
/// 404 when the server does not have it, 409 by state.
pub async fn detach(app: &App, caller: &Caller, id: ServerId, port: PortId) -> Result<(), Fault> {
    app.store
        .tx(|tx| async move {
            let (server, state) = reread(&tx, id).await?;
            check(&server, state, "detach_interface", STATES, caller)?;
            if server.body.nics.iter().all(|nic| nic.spec.port != port) {
                return Err(Fault::not_found(format!("Port {port} is not attached to instance {id}")));
            }
            let subject = tasks::interface_subject(port);
            let first = DetachInterface::Unplug { server: id, port };
            app.tasks
                .enqueue(&tx, &subject, &first)
                .await
                .map_err(|error| busy(error, "detach_interface", id))?;
            Ok(())
        })
        .await?;
    app.tasks.wake();
    Ok(())
}
