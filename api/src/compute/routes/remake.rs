//! Rebuild, resize, confirm, revert, rescue, unrescue.

use super::actions::action;
use crate::app::App;
use crate::compute::rules::{self, create, remake};
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

async fn unrescue(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    remake::unrescue(&call.app, &call.caller, server.id).await?;
    Ok(Reply::empty(202))
}
