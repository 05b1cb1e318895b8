//! Rebuild, resize, confirm, revert, rescue, unrescue, shelve, unshelve.

use super::actions::action;
use crate::app::App;
use crate::compute::metadata::ZONE;
use crate::compute::policy::ADMIN;
use crate::compute::rules::{self, create, remake, shelving};
use crate::compute::state::Vm;
use crate::compute::view::server as view;
use crate::compute::{micro, schema};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use serde_json::json;

pub fn operations() -> Vec<Operation<App>> {
    vec![
        action("rebuild", "os_compute_api:servers:rebuild", rebuild)
            .name("servers:rebuild")
            .body(schema::REBUILD)
            .body_from(micro::DESCRIPTION, schema::REBUILD_2_19)
            .body_from(micro::REBUILD_KEY, schema::REBUILD_2_54)
            .body_from(micro::NO_PERSONALITY, schema::REBUILD_2_57)
            .body_from(micro::CERTIFICATES, schema::REBUILD_2_63)
            .body_from(micro::HOSTNAME, schema::REBUILD_2_90)
            .body_from(micro::HOSTNAME_FQDN, schema::REBUILD_2_94)
            .summary("Make a server anew from an image"),
        action("resize", "os_compute_api:servers:resize", resize)
            .name("servers:resize")
            .body(schema::RESIZE)
            .summary("Give a server another flavor"),
        action("confirmResize", "os_compute_api:servers:confirm_resize", confirm)
            .name("servers:confirm-resize")
            .body(schema::CONFIRM_RESIZE)
            .codes(204, &[400, 401, 403, 404, 409])
            .summary("Keep what a resize made"),
        action("revertResize", "os_compute_api:servers:revert_resize", revert)
            .name("servers:revert-resize")
            .body(schema::REVERT_RESIZE)
            .summary("Take a resize back"),
        action("rescue", "os_compute_api:os-rescue", rescue)
            .name("servers:rescue")
            .body(schema::RESCUE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Start a server from another disk, its own beside it"),
        action("changePassword", "os_compute_api:os-admin-password", change_password)
            .name("servers:change-password")
            .body(schema::CHANGE_PASSWORD)
            .summary("Set the administrator's password in a guest; refused, as guests have no agent for it"),
        action("shelve", "os_compute_api:os-shelve:shelve", shelve)
            .name("servers:shelve")
            .body(schema::SHELVE)
            .summary("Make an image of a server and free its place"),
        action("shelveOffload", "os_compute_api:os-shelve:shelve_offload", offload)
            .policy("os_compute_api:os-shelve:shelve_offload", ADMIN)
            .name("servers:shelve-offload")
            .body(schema::SHELVE_OFFLOAD)
            .summary("Free the place of a shelved server"),
        action("unshelve", "os_compute_api:os-shelve:unshelve", unshelve)
            .name("servers:unshelve")
            .body(schema::UNSHELVE)
            .body_from(micro::UNSHELVE_ZONE, schema::UNSHELVE_2_77)
            .summary("Bring a shelved server back"),
        action("unrescue", "os_compute_api:os-unrescue", unrescue)
            .name("servers:unrescue")
            .body(schema::UNRESCUE)
            .summary("Start a server from its own disk again"),
    ]
}

async fn rebuild(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::rebuild(&call, &server).await?;
    let fresh = rules::find(&call).await?;
    let mut all = view::gather(&call.app, vec![fresh]).await?;
    let Some(shown) = all.pop() else { return Err(Fault::internal("the server went away")) };
    let mut body = view::detail(&shown, &call);
    if call.version < micro::STRICT {
        super::servers::plain(&mut body);
    }
    if call.version >= micro::REBUILD_KEY {
        body["key_name"] = json!(shown.server.key_name);
    }
    body["adminPass"] = json!(password(&call, "rebuild")?);
    if call.version >= micro::NO_PERSONALITY {
        body["user_data"] = json!(shown.server.body.user_data);
    }
    let location = format!("{}/v2.1/servers/{}", call.base, server.id);
    Ok(Reply::json(202, json!({"server": body})).header("location", location))
}

/// Shown for clients' sake: nothing sets a password in the guest, which gets the key instead.
fn password(call: &Call<App>, key: &str) -> Result<String, Fault> {
    match call.inner(key)["adminPass"].as_str() {
        Some(given) => Ok(given.to_owned()),
        None => create::password(),
    }
}

async fn resize(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::resize(&call, &server).await?;
    Ok(Reply::empty(202))
}

async fn confirm(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::confirm(&call.app, &call.caller, server.id).await?;
    Ok(Reply::empty(204))
}

async fn revert(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::revert(&call.app, &call.caller, server.id).await?;
    Ok(Reply::empty(202))
}

async fn rescue(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::rescue(&call, &server).await?;
    Ok(Reply::json(200, json!({"adminPass": password(&call, "rescue")?})))
}

/// What upstream answers where a guest has no agent that could do it, as none has here.
async fn change_password(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let state = rules::state_of(&call.app.store, &server).await?;
    rules::check(&server, state, "changePassword", &[Vm::Active], &call.caller)?;
    Err(Fault::conflict(format!(
        "Failed to set admin password on {} because its guest has no agent for that; use its key pair, or a rescue.",
        server.id
    )))
}

async fn shelve(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    shelving::shelve(&call, &server).await?;
    Ok(Reply::empty(202))
}

/// A server that is shelved has no place already, so there is no state that allows this.
async fn offload(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let state = rules::state_of(&call.app.store, &server).await?;
    rules::check(&server, state, "shelveOffload", &[], &call.caller)?;
    Ok(Reply::empty(202))
}

async fn unshelve(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let zone = call.inner("unshelve")["availability_zone"].as_str();
    if zone.is_some_and(|zone| zone != ZONE) {
        return Err(Fault::bad_request("The requested availability zone is not available"));
    }
    shelving::unshelve(&call.app, &call.caller, server.id).await?;
    Ok(Reply::empty(202))
}

async fn unrescue(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::unrescue(&call.app, &call.caller, server.id).await?;
    Ok(Reply::empty(202))
}
