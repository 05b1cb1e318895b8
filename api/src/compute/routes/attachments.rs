//! Volume attachments and interfaces of servers, and the history of their actions.

use crate::app::App;
use crate::compute::neighbours::network::{self, NetRequest, ServerPort};
use crate::compute::policy::{MEMBER, READER};
use crate::compute::records::attachments::{self, Attachment, State};
use crate::compute::records::servers::Server;
use crate::compute::rules::{self, attach};
use crate::compute::{micro, schema, tasks};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use base::task::{TaskView, Tasks};
use serde_json::{Value, json};
use wire::ids::PortId;

pub fn operations() -> Vec<Operation<App>> {
    let (all, one) = (
        "/v2.1/servers/{server_id}/os-volume_attachments",
        "/v2.1/servers/{server_id}/os-volume_attachments/{volume_id}",
    );
    let (ports, port) =
        ("/v2.1/servers/{server_id}/os-interface", "/v2.1/servers/{server_id}/os-interface/{port_id}");
    let (actions, action) = (
        "/v2.1/servers/{server_id}/os-instance-actions",
        "/v2.1/servers/{server_id}/os-instance-actions/{request_id}",
    );
    vec![
        Operation::new(Method::GET, all, list)
            .name("attachments:list")
            .policy("os_compute_api:os-volumes-attachments:index", READER)
            .query(&["limit", "offset"])
            .codes(200, &[400, 401, 403, 404])
            .summary("List a server's volumes"),
        Operation::new(Method::POST, all, create)
            .name("attachments:create")
            .policy("os_compute_api:os-volumes-attachments:create", MEMBER)
            .body(schema::ATTACH_VOLUME)
            .body_from(api_kit::Micro(2, 49), schema::ATTACH_VOLUME_2_49)
            .body_from(micro::DELETE_ON_TERMINATION, schema::ATTACH_VOLUME_2_79)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Attach a volume to a server"),
        Operation::new(Method::GET, one, show)
            .name("attachments:show")
            .policy("os_compute_api:os-volumes-attachments:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show an attachment"),
        Operation::new(Method::PUT, one, update)
            .name("attachments:update")
            .policy("os_compute_api:os-volumes-attachments:update", MEMBER)
            .since(micro::ATTACHMENT_UPDATE)
            .body(schema::UPDATE_ATTACHMENT)
            .codes(202, &[400, 401, 403, 404])
            .summary("Change whether a volume goes with its server"),
        Operation::new(Method::DELETE, one, delete)
            .name("attachments:delete")
            .policy("os_compute_api:os-volumes-attachments:delete", MEMBER)
            .codes(202, &[400, 401, 403, 404, 409])
            .summary("Detach a volume from a server"),
        Operation::new(Method::GET, ports, interfaces)
            .name("interfaces:list")
            .policy("os_compute_api:os-attach-interfaces:list", READER)
            .codes(200, &[401, 403, 404])
            .summary("List a server's interfaces"),
        Operation::new(Method::POST, ports, interface_create)
            .name("interfaces:create")
            .policy("os_compute_api:os-attach-interfaces:create", MEMBER)
            .body(schema::ATTACH_INTERFACE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Give a server one more interface"),
        Operation::new(Method::GET, port, interface_show)
            .name("interfaces:show")
            .policy("os_compute_api:os-attach-interfaces:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show an interface"),
        Operation::new(Method::DELETE, port, interface_delete)
            .name("interfaces:delete")
            .policy("os_compute_api:os-attach-interfaces:delete", MEMBER)
            .codes(202, &[401, 403, 404, 409])
            .summary("Take an interface from a server"),
        Operation::new(Method::GET, actions, actions_list)
            .name("actions:list")
            .policy("os_compute_api:os-instance-actions:list", READER)
            .query(&["limit", "marker", "changes-since", "changes-before"])
            .codes(200, &[400, 401, 403, 404])
            .summary("List what was done with a server"),
        Operation::new(Method::GET, action, actions_show)
            .name("actions:show")
            .policy("os_compute_api:os-instance-actions:show", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show one thing that was done with a server"),
    ]
}

fn shown(it: &Attachment, call: &Call<App>) -> Value {
    let mut out = json!({"volumeId": it.volume_id, "serverId": it.server, "device": it.body.device});
    if call.version < micro::ATTACHMENT_IDS {
        out["id"] = json!(it.volume_id);
    } else {
        out["attachment_id"] = json!(it.body.attachment_id);
        out["bdm_uuid"] = json!(it.id);
    }
    if call.version >= micro::ATTACHMENT_TAGS {
        out["tag"] = json!(it.body.tag);
    }
    if call.version >= micro::DELETE_ON_TERMINATION {
        out["delete_on_termination"] = json!(it.body.delete_on_termination);
    }
    out
}

async fn of(call: &Call<App>, server: &Server) -> Result<Vec<Attachment>, Fault> {
    let mut all = attachments::of_server(&call.app.store, server.id).await?;
    all.retain(|it| it.state != State::Reserving);
    Ok(all)
}

async fn list(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let number = |name: &str, or: usize| match call.query.get(name) {
        None => Ok(or),
        Some(text) => text.parse::<usize>().map_err(|_| {
            let text: String = text.chars().take(64).collect();
            Fault::bad_request(format!("Invalid input for query parameters {name}. Value: {text}."))
        }),
    };
    let (limit, offset) = (number("limit", 1000)?, number("offset", 0)?);
    let all = of(&call, &server).await?;
    let all: Vec<Value> = all.iter().skip(offset).take(limit).map(|it| shown(it, &call)).collect();
    Ok(Reply::json(200, json!({"volumeAttachments": all})))
}

async fn find(call: &Call<App>) -> Result<(Server, Attachment), Fault> {
    let server = rules::find(call).await?;
    let id = call.path("volume_id");
    let found = of(call, &server).await?.into_iter().find(|it| it.volume_id == id);
    let found = found.ok_or_else(|| attach::no_attachment(id))?;
    Ok((server, found))
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(it) => *it,
        Value::String(it) => matches!(it.to_lowercase().as_str(), "1" | "true" | "on" | "yes"),
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

async fn create(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let body = call.inner("volumeAttachment");
    let wanted = attach::Wanted {
        volume_id: body["volumeId"].as_str().unwrap_or_default().to_owned(),
        device: body["device"].as_str().map(str::to_owned),
        tag: body["tag"].as_str().map(str::to_owned),
        delete_on_termination: truth(&body["delete_on_termination"]),
    };
    let made = attach::attach(&call.app, &call.caller, server.id, &wanted).await?;
    Ok(Reply::json(200, json!({"volumeAttachment": shown(&made, &call)})))
}

async fn show(call: Call<App>) -> Outcome {
    let (_, it) = find(&call).await?;
    Ok(Reply::json(200, json!({"volumeAttachment": shown(&it, &call)})))
}

async fn update(call: Call<App>) -> Outcome {
    let (_, it) = find(&call).await?;
    let body = call.inner("volumeAttachment");
    if body["volumeId"].as_str() != Some(it.volume_id.as_str()) {
        return Err(Fault::bad_request(
            "Swapping one volume for another is not supported: detach it, then attach the other.",
        ));
    }
    let (id, goes) = (it.id.as_str(), truth(&body["delete_on_termination"]));
    call.app
        .store
        .tx(|tx| async move {
            let found = attachments::get(&tx, id).await?;
            let mut it = found.ok_or_else(|| Fault::not_found("The attachment is gone"))?;
            it.body.delete_on_termination = goes;
            attachments::put(&tx, &it).await?;
            Ok::<_, Fault>(())
        })
        .await?;
    Ok(Reply::empty(202))
}

async fn delete(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    attach::detach(&call.app, &call.caller, server.id, call.path("volume_id")).await?;
    Ok(Reply::empty(202))
}

fn interface(it: &ServerPort, call: &Call<App>, server: &Server) -> Value {
    let fixed: Vec<Value> = it
        .addresses
        .iter()
        .map(|(address, subnet)| json!({"ip_address": address, "subnet_id": subnet}))
        .collect();
    let mut out = json!({"port_state": it.status, "port_id": it.port, "net_id": it.network_id,
        "mac_addr": it.mac, "fixed_ips": fixed});
    if call.version >= micro::ATTACHMENT_TAGS {
        let nic = server.body.nics.iter().find(|nic| nic.spec.port == it.port);
        out["tag"] = json!(nic.and_then(|nic| nic.tag.clone()));
    }
    out
}

async fn ports(call: &Call<App>, server: &Server) -> Result<Vec<ServerPort>, Fault> {
    Ok(network::of_servers(&call.app, &[server.id]).await?.remove(&server.id).unwrap_or_default())
}

async fn interfaces(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let all: Vec<Value> =
        ports(&call, &server).await?.iter().map(|it| interface(it, &call, &server)).collect();
    Ok(Reply::json(200, json!({"interfaceAttachments": all})))
}

async fn interface_create(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let body = call.inner("interfaceAttachment");
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    let fixed_ip = body.pointer("/fixed_ips/0/ip_address").and_then(Value::as_str);
    let fixed_ip = fixed_ip.map(str::parse).transpose();
    let fixed_ip =
        fixed_ip.map_err(|_| Fault::bad_request("Invalid input for field/attribute ip_address."))?;
    let request = match (text("net_id"), text("port_id")) {
        (Some(_), Some(_)) => {
            return Err(Fault::bad_request("Must not input both network_id and port_id"));
        }
        (None, None) if fixed_ip.is_some() => {
            return Err(Fault::bad_request("Must input network_id when request IP address"));
        }
        (None, Some(port_id)) => NetRequest::Port { port_id },
        (Some(network_id), None) => NetRequest::Network { network_id, fixed_ip },
        (None, None) => NetRequest::Auto,
    };
    let made = rules::network::attach(&call.app, &call.caller, server.id, &request, text("tag")).await?;
    Ok(Reply::json(200, json!({"interfaceAttachment": interface(&made, &call, &server)})))
}

fn no_port(call: &Call<App>) -> Fault {
    let port: String = call.path("port_id").chars().take(64).collect();
    Fault::not_found(format!("Port {port} is not attached to this server"))
}

async fn interface_show(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let all = ports(&call, &server).await?;
    let found = all.iter().find(|it| it.port.to_string() == call.path("port_id"));
    let found = found.ok_or_else(|| no_port(&call))?;
    Ok(Reply::json(200, json!({"interfaceAttachment": interface(found, &call, &server)})))
}

async fn interface_delete(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let port: PortId = call.path("port_id").parse().map_err(|_| no_port(&call))?;
    rules::network::detach(&call.app, &call.caller, server.id, port).await?;
    Ok(Reply::empty(202))
}

/// Nova's name of what a task does, and of its only event.
fn action_names(task: &TaskView) -> (&'static str, &'static str) {
    match task.kind.as_str() {
        "compute.create-server" => ("create", "compute__do_build_and_run_instance"),
        "compute.delete-server" => ("delete", "compute_terminate_instance"),
        "compute.snapshot-server" => ("createImage", "compute_snapshot_instance"),
        "compute.attach-volume" => ("attach_volume", "compute_attach_volume"),
        "compute.detach-volume" => ("detach_volume", "compute_detach_volume"),
        "compute.attach-interface" => ("attach_interface", "compute_attach_interface"),
        "compute.detach-interface" => ("detach_interface", "compute_detach_interface"),
        "compute.shelve-server" => ("shelve", "compute_shelve_instance"),
        "compute.unshelve-server" => ("unshelve", "compute_unshelve_instance"),
        "compute.confirm-resize" => ("confirmResize", "compute_confirm_resize"),
        "compute.remake-server" => match task.step["plan"]["what"].as_str().unwrap_or_default() {
            "rebuild" => ("rebuild", "compute_rebuild_instance"),
            "resize" => ("resize", "compute_resize_instance"),
            "revert" => ("revertResize", "compute_revert_resize"),
            "rescue" => ("rescue", "compute_rescue_instance"),
            _ => ("unrescue", "compute_unrescue_instance"),
        },
        _ => match task.step["act"].as_str().unwrap_or_default() {
            "start" => ("start", "compute_start_instance"),
            "stop" => ("stop", "compute_stop_instance"),
            "pause" => ("pause", "compute_pause_instance"),
            "unpause" => ("unpause", "compute_unpause_instance"),
            "suspend" => ("suspend", "compute_suspend_instance"),
            "resume" => ("resume", "compute_resume_instance"),
            _ => ("reboot", "compute_reboot_instance"),
        },
    }
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(api_kit::time::stored).unwrap_or_default()
}

fn action(task: &TaskView, server: &Server, version: api_kit::Micro) -> Value {
    let message = if task.state == "failed" { json!("Error") } else { Value::Null };
    let mut out = json!({"action": action_names(task).0, "instance_uuid": server.id, "request_id": task.request_id,
        "user_id": server.user_id, "project_id": server.project_id, "start_time": api_kit::time::naive(&time(task.created_ms)),
        "message": message});
    if version >= micro::ACTION_PAGING {
        out["updated_at"] = json!(api_kit::time::naive(&time(task.updated_ms)));
    }
    out
}

/// Everything that was done with the server: on it as a whole, its volumes, its interfaces.
async fn history(call: &Call<App>, server: &Server) -> Result<Vec<TaskView>, Fault> {
    let store = &call.app.store;
    let mut all = Tasks::history(store, &tasks::subject(server.id)).await?;
    for it in attachments::of_server(store, server.id).await? {
        all.extend(Tasks::history(store, &tasks::attachment_subject(&it.id)).await?);
    }
    for nic in &server.body.nics {
        all.extend(Tasks::history(store, &tasks::interface_subject(nic.spec.port)).await?);
    }
    all.sort_by(|a, b| (b.created_ms, &b.id).cmp(&(a.created_ms, &a.id)));
    Ok(all)
}

async fn actions_list(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let mut all = history(&call, &server).await?;
    if call.version >= micro::ACTION_PAGING {
        if let Some(marker) = call.query.get("marker") {
            let at = all.iter().position(|task| task.request_id == marker);
            let at = at.ok_or_else(|| {
                let marker: String = marker.chars().take(64).collect();
                Fault::bad_request(format!("Marker {marker} could not be found."))
            })?;
            all.drain(..=at);
        }
        if let Some(since) = call.query.get("changes-since").and_then(api_kit::time::parse_time) {
            all.retain(|task| time(task.updated_ms) >= since);
        }
        if let Some(before) = call.query.get("changes-before").and_then(api_kit::time::parse_time) {
            all.retain(|task| time(task.updated_ms) <= before);
        }
        if let Some(limit) = call.query.get("limit").and_then(|text| text.parse().ok()) {
            all.truncate(limit);
        }
    }
    let all: Vec<Value> = all.iter().map(|task| action(task, &server, call.version)).collect();
    Ok(Reply::json(200, json!({"instanceActions": all})))
}

async fn actions_show(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let wanted = call.path("request_id");
    let all = history(&call, &server).await?;
    let task = all.iter().find(|task| task.request_id == wanted).ok_or_else(|| {
        let wanted: String = wanted.chars().take(64).collect();
        Fault::not_found(format!("Action for request_id {wanted} on instance {} not found", server.id))
    })?;
    let mut out = action(task, &server, call.version);
    let target = api_kit::Target::project(&server.project_id);
    let admin = call.may("os_compute_api:os-instance-actions:events", &target);
    if admin || call.version >= micro::ACTION_EVENTS {
        let ended = matches!(task.state.as_str(), "done" | "failed");
        let result = if task.state == "failed" { "Error" } else { "Success" };
        let mut event = json!({"event": action_names(task).1, "start_time": out["start_time"],
            "finish_time": ended.then(|| api_kit::time::naive(&time(task.updated_ms))),
            "result": ended.then_some(result)});
        if admin {
            event["traceback"] = if task.state == "failed" { json!(task.why) } else { Value::Null };
        }
        if call.version >= micro::EVENT_HOST {
            event["hostId"] = json!(crate::compute::view::server::host_id(&server));
            if admin {
                event["host"] = json!(server.host);
            }
        }
        if call.version >= micro::EVENT_DETAILS {
            event["details"] = if task.state == "failed" { json!(task.why) } else { Value::Null };
        }
        out["events"] = json!([event]);
    }
    Ok(Reply::json(200, json!({"instanceAction": out})))
}
