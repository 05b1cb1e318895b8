//! What users may do with servers: checks, and one transaction each that writes rows and the task.

pub mod attach;
pub mod create;
pub mod network;
pub mod placing;
pub mod power;
pub mod remake;
pub mod shelving;

use super::neighbours::volume;
use super::records::servers::{self, Server, VolumeRequest, VolumeSource};
use super::state::{self, State, Vm};
use super::tasks;
use crate::app::App;
use api_kit::{Call, Caller, Fault, Target};
use base::store::{Query, StoreError, Tx};
use base::task::Tasks;
use wire::ids::ServerId;

/// Default limits of a project.
pub const QUOTAS: api_kit::quota::Defaults = &[
    ("cores", 20),
    ("injected_file_content_bytes", 10_240),
    ("injected_file_path_bytes", 255),
    ("injected_files", 5),
    ("instances", 10),
    ("key_pairs", 100),
    ("metadata_items", 128),
    ("ram", 51_200),
    ("server_group_members", 10),
    ("server_groups", 10),
];

/// The default limit of one resource, with its name.
#[must_use]
pub fn quota(name: &'static str) -> (&'static str, i64) {
    (name, QUOTAS.iter().find(|(known, _)| *known == name).map_or(-1, |(_, limit)| *limit))
}

/// 404 in nova's words.
#[must_use]
pub fn no_server(id: &str) -> Fault {
    Fault::not_found(format!("Instance {} could not be found.", id.chars().take(64).collect::<String>()))
}

/// The server named in the path, if the caller may do this operation with it.
///
/// # Errors
/// 404 also for servers of others, as upstream hides them; 403 when only the role is short.
pub async fn find(call: &Call<App>) -> Result<Server, Fault> {
    let text = call.path("server_id");
    let id: ServerId = text.parse().map_err(|_| no_server(text))?;
    let server = servers::get(&call.app.store, id).await?.ok_or_else(|| no_server(text))?;
    enforce(call, &server)?;
    Ok(server)
}

/// Enforces the operation's rule on a server.
///
/// # Errors
/// As [`find`].
pub fn enforce(call: &Call<App>, server: &Server) -> Result<(), Fault> {
    let target = Target::project(&server.project_id).user(&server.user_id);
    let own = call.caller.project_id.as_deref() == Some(&server.project_id);
    match call.enforce(&target) {
        Err(_) if !own => Err(no_server(&server.id.to_string())),
        other => other,
    }
}

/// A server read again inside the transaction that changes it, with its state.
///
/// # Errors
/// 404 when it is gone meanwhile.
pub async fn reread(tx: &Tx, id: ServerId) -> Result<(Server, State), Fault> {
    let server = servers::get(tx, id).await?.ok_or_else(|| no_server(&id.to_string()))?;
    let live = Tasks::live(tx, &tasks::subject(id)).await?;
    let state = state::of(&server, live.as_ref());
    Ok((server, state))
}

/// The state of a server now.
///
/// # Errors
/// When the database fails.
pub async fn state_of(query: &impl Query, server: &Server) -> Result<State, StoreError> {
    let live = Tasks::live(query, &tasks::subject(server.id)).await?;
    Ok(state::of(server, live.as_ref()))
}

/// Refuses what does not go in this state, and what the lock forbids.
///
/// # Errors
/// 409 in nova's words.
pub fn check(
    server: &Server,
    state: State,
    action: &str,
    allowed: &[Vm],
    caller: &Caller,
) -> Result<(), Fault> {
    let conflict = |attribute: &str, value: &str| {
        Err(Fault::conflict(format!(
            "Cannot '{action}' instance {} while it is in {attribute} {value}",
            server.id
        )))
    };
    if server.locked && !caller.is_admin {
        return Err(Fault::conflict(format!("Instance {} is locked", server.id)));
    }
    if let Some(task) = state.task {
        return conflict("task_state", task);
    }
    if !allowed.contains(&state.vm) {
        return conflict("vm_state", state.vm.as_str());
    }
    Ok(())
}

/// A neighbour's refusal in this service's shape: its own names for errors mean nothing to clients of compute.
#[must_use]
pub fn ours(mut fault: Fault) -> Fault {
    fault.kind = "".into();
    fault
}

/// The words for a subject whose task is live already.
#[must_use]
pub fn busy(error: StoreError, action: &str, id: ServerId) -> Fault {
    match error {
        StoreError::Duplicate(_) => Fault::conflict(format!(
            "Cannot '{action}' instance {id} while another action on it is in progress; try again when it is done"
        )),
        other => other.into(),
    }
}

/// The server's owner as a caller, for work that goes on after the request.
#[must_use]
pub fn caller_of(server: &Server) -> Caller {
    Caller {
        user_id: server.user_id.clone(),
        project_id: Some(server.project_id.clone()),
        roles: vec!["member".to_owned(), "reader".to_owned()],
        ..Caller::default()
    }
}

/// Name of the n-th disk as people see it; guests choose their own.
#[must_use]
pub fn device_name(index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap_or_default());
    match index / 26 {
        0 => format!("/dev/vd{}", letter(index)),
        more => format!("/dev/vd{}{}", letter(more - 1), letter(index)),
    }
}

/// Asks the volume service for a volume that a server is to start with; its id. Asked again, it is the same one.
///
/// # Errors
/// What the volume service refuses.
pub async fn volume_for_server(app: &App, server: &Server, wanted: &VolumeRequest) -> Result<String, Fault> {
    let source = match &wanted.source {
        VolumeSource::Volume(id) => return Ok(id.clone()),
        VolumeSource::Image(id) => volume::VolumeSource::Image(id.clone()),
        VolumeSource::Snapshot(id) => volume::VolumeSource::Snapshot(id.clone()),
        VolumeSource::Blank => volume::VolumeSource::Blank,
    };
    volume::create_for_server(app, &caller_of(server), wanted.id, wanted.size_gib, source, "").await
}
