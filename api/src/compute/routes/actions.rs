//! Actions on servers.

use crate::app::App;
use crate::compute::neighbours::{image, network};
use crate::compute::policy::MEMBER;
use crate::compute::records::servers;
use crate::compute::rules::{self, busy, check, power, reread};
use crate::compute::state::Vm;
use crate::compute::tasks::{self, Act, SnapshotServer};
use crate::compute::{micro, schema};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use serde_json::{Map, Value, json};
use wire::RefusedKind;
use wire::host::ReadConsole;
use wire::ids::SnapshotId;

/// Lines of a console log at most.
const CONSOLE_LINES: i64 = 100_000;

pub(super) fn action<F, Fut>(key: &'static str, rule: &'static str, handler: F) -> Operation<App>
where
    F: Fn(Call<App>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    Operation::new(Method::POST, "/v2.1/servers/{server_id}/action", handler)
        .action(key)
        .policy(rule, MEMBER)
        .codes(202, &[400, 401, 403, 404, 409])
}

pub fn operations() -> Vec<Operation<App>> {
    vec![
        action("os-start", "os_compute_api:servers:start", |call| act(call, Act::Start))
            .name("servers:start")
            .body(schema::START)
            .summary("Start a server"),
        action("os-stop", "os_compute_api:servers:stop", |call| act(call, Act::Stop))
            .name("servers:stop")
            .body(schema::STOP)
            .summary("Stop a server"),
        action("reboot", "os_compute_api:servers:reboot", reboot)
            .name("servers:reboot")
            .body(schema::REBOOT)
            .summary("Reboot a server"),
        action("pause", "os_compute_api:os-pause-server:pause", |call| act(call, Act::Pause))
            .name("servers:pause")
            .body(schema::PAUSE)
            .summary("Pause a server"),
        action("unpause", "os_compute_api:os-pause-server:unpause", |call| act(call, Act::Unpause))
            .name("servers:unpause")
            .body(schema::UNPAUSE)
            .summary("Resume a paused server"),
        action("suspend", "os_compute_api:os-suspend-server:suspend", |call| act(call, Act::Suspend))
            .name("servers:suspend")
            .body(schema::SUSPEND)
            .summary("Put a server's memory into a file and stop it"),
        action("resume", "os_compute_api:os-suspend-server:resume", |call| act(call, Act::Resume))
            .name("servers:resume")
            .body(schema::RESUME)
            .summary("Let a suspended server go on"),
        action("lock", "os_compute_api:os-lock-server:lock", |call| lock(call, true))
            .name("servers:lock")
            .body(schema::LOCK)
            .body_from(micro::LOCKED_REASON, schema::LOCK_2_73)
            .summary("Lock a server against changes"),
        action("unlock", "os_compute_api:os-lock-server:unlock", |call| lock(call, false))
            .name("servers:unlock")
            .body(schema::UNLOCK)
            .summary("Unlock a server"),
        action("createImage", "os_compute_api:servers:create_image", create_image)
            .name("servers:create-image")
            .body(schema::CREATE_IMAGE)
            .summary("Make an image of a server's root disk"),
        action("os-getConsoleOutput", "os_compute_api:os-console-output", console)
            .name("servers:console-output")
            .body(schema::CONSOLE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Read the end of a server's console log"),
        action("addSecurityGroup", "os_compute_api:os-security-groups:add", |call| group(call, true))
            .name("servers:add-security-group")
            .body(schema::ADD_GROUP)
            .summary("Add a security group to a server's ports"),
        action("removeSecurityGroup", "os_compute_api:os-security-groups:remove", |call| group(call, false))
            .name("servers:remove-security-group")
            .body(schema::REMOVE_GROUP)
            .summary("Take a security group from a server's ports"),
    ]
}

async fn act(call: Call<App>, act: Act) -> Outcome {
    let server = rules::find(&call).await?;
    power::act(&call.app, &call.caller, server.id, act).await?;
    Ok(Reply::empty(202))
}

async fn reboot(call: Call<App>) -> Outcome {
    let hard = call.inner("reboot")["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("hard"));
    act(call, if hard { Act::RebootHard } else { Act::RebootSoft }).await
}

async fn lock(call: Call<App>, on: bool) -> Outcome {
    let server = rules::find(&call).await?;
    let target = api_kit::Target::project(&server.project_id);
    let over = call.may("os_compute_api:os-lock-server:unlock:unlock_override", &target);
    let reason = call.inner("lock")["locked_reason"].as_str().map(str::to_owned);
    let own = call.caller.project_id.as_deref() == Some(server.project_id.as_str());
    let by_admin = call.caller.is_admin && !own;
    power::lock(&call.app, over, server.id, on, by_admin, reason).await?;
    Ok(Reply::empty(202))
}

async fn create_image(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let (app, id) = (&call.app, server.id);
    let state = rules::state_of(&app.store, &server).await?;
    let allowed = [Vm::Active, Vm::Stopped, Vm::Paused, Vm::Suspended];
    check(&server, state, "createImage", &allowed, &call.caller)?;
    if server.body.disks.root.is_none() {
        return Err(Fault::bad_request(
            "Images of servers that start from a volume are not supported; make a snapshot of the volume instead.",
        ));
    }
    let body = call.inner("createImage");
    let mut properties: Map<String, Value> = Map::new();
    if let Some(image) = &server.body.image {
        properties.extend(image.properties.clone());
    }
    properties.extend(body["metadata"].as_object().cloned().unwrap_or_default());
    properties.insert("instance_uuid".to_owned(), json!(id));
    properties.insert("base_image_ref".to_owned(), json!(server.image_id));
    properties.insert("image_type".to_owned(), json!("snapshot"));
    properties.insert("user_id".to_owned(), json!(call.caller.user_id));
    properties.insert("min_disk".to_owned(), json!(server.body.flavor.disk_gb));
    let name = body["name"].as_str().unwrap_or_default();
    let image = image::create_snapshot(app, &call.caller, name, properties).await?;
    let first = SnapshotServer::Copy { server: id, image: image.clone(), snapshot: SnapshotId::new() };
    let (step, caller) = (&first, &*call.caller);
    let written = app
        .store
        .tx(|tx| async move {
            let (server, state) = reread(&tx, id).await?;
            check(&server, state, "createImage", &allowed, caller)?;
            app.tasks
                .enqueue(&tx, &tasks::subject(id), step)
                .await
                .map_err(|error| busy(error, "createImage", id))
        })
        .await;
    if let Err(fault) = written {
        image::fail(app, &image).await?;
        return Err(fault);
    }
    app.tasks.wake();
    let base = call.base.strip_suffix("/compute").unwrap_or(&call.base);
    let reply = if call.version >= micro::IMAGE_ID_BODY {
        Reply::json(202, json!({"image_id": image}))
    } else {
        Reply::empty(202).header("location", format!("{base}/image/v2/images/{image}"))
    };
    Ok(reply)
}

async fn console(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let lines = match &call.inner("os-getConsoleOutput")["length"] {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let lines = lines.filter(|lines| *lines >= 0).map(|lines| lines.min(CONSOLE_LINES));
    let read = ReadConsole { id: server.id, lines: lines.and_then(|lines| u32::try_from(lines).ok()) };
    let output = match call.app.host.call(&read).await {
        Ok(output) => output,
        Err(refused) if refused.kind == RefusedKind::Missing => {
            return Err(Fault::conflict(format!("Instance {} is not ready", server.id)));
        }
        Err(refused) => return Err(refused.into()),
    };
    Ok(Reply::json(200, json!({"output": output})))
}

async fn group(call: Call<App>, add: bool) -> Outcome {
    let server = rules::find(&call).await?;
    let key = if add { "addSecurityGroup" } else { "removeSecurityGroup" };
    let name = call.inner(key)["name"].as_str().unwrap_or_default();
    network::change_group(&call.app, &server.project_id, server.id, name, add).await?;
    let id = server.id;
    call.app
        .store
        .tx(|tx| async move {
            servers::change(&tx, id, |server| {
                server.body.security_groups.retain(|known| known != name);
                if add {
                    server.body.security_groups.push(name.to_owned());
                }
            })
            .await
        })
        .await?;
    Ok(Reply::empty(202))
}
