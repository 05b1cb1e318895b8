//! Figures of a running machine, in the shape that every driver had for itself, and in the common one from 2.48 on.

use crate::app::App;
use crate::compute::micro;
use crate::compute::policy::ADMIN;
use crate::compute::records::servers::{Seen, Server};
use crate::compute::rules::{self, device_name};
use api_kit::{Call, Fault, Operation, Outcome, Reply};
use axum::http::Method;
use serde_json::{Map, Value, json};
use wire::RefusedKind;
use wire::host::{Figures, ReadFigures};

pub fn operations() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/v2.1/servers/{server_id}/diagnostics", show)
            .name("servers:diagnostics")
            .policy("os_compute_api:os-server-diagnostics", ADMIN)
            .codes(200, &[400, 401, 403, 404, 409, 501])
            .summary("Show figures of a server's machine"),
    ]
}

async fn show(call: Call<App>) -> Outcome {
    let server = rules::find(&call).await?;
    let no = |what: &str| {
        Fault::conflict(format!("Cannot 'get_diagnostics' instance {} while it is in {what}", server.id))
    };
    let state = rules::state_of(&call.app.store, &server).await?;
    match server.observed {
        Seen::Running | Seen::Paused => {}
        Seen::Nothing | Seen::Suspended | Seen::Off | Seen::Crashed => {
            return Err(no(&format!("power state {}", state.power)));
        }
    }
    let figures = match call.app.host.call(&ReadFigures { id: server.id }).await {
        Ok(figures) => figures,
        Err(refused) if matches!(refused.kind, RefusedKind::Missing | RefusedKind::Conflict) => {
            return Err(no("a state without a machine"));
        }
        Err(refused) => return Err(refused.into()),
    };
    let shown =
        if call.version >= micro::DIAGNOSTICS { common(&server, &figures) } else { own(&server, &figures) };
    Ok(Reply::json(200, shown))
}

/// The form before 2.48: what libvirt's driver told, as names and numbers. Memory is in KiB; what is not known is left out.
fn own(server: &Server, figures: &Figures) -> Value {
    let kib = |mib: u64| mib.saturating_mul(1024);
    let mut out = Map::new();
    for (number, time) in figures.cpus_ns.iter().enumerate() {
        out.insert(format!("cpu{number}_time"), json!(time));
    }
    let memory = figures.memory;
    out.insert("memory".to_owned(), json!(kib(server.body.flavor.memory_mb.into())));
    for (name, value) in [
        ("memory-available", memory.total),
        ("memory-usable", memory.available),
        ("memory-rss", memory.resident),
    ] {
        out.extend(value.map(|value| (name.to_owned(), json!(kib(value.0)))));
    }
    for (index, disk) in figures.disks.iter().enumerate() {
        let Some(counts) = disk.counts else { continue };
        let device = device_name(index);
        let name = device.trim_start_matches("/dev/");
        out.insert(format!("{name}_read"), json!(counts.read_bytes));
        out.insert(format!("{name}_read_req"), json!(counts.reads));
        out.insert(format!("{name}_write"), json!(counts.written_bytes));
        out.insert(format!("{name}_write_req"), json!(counts.writes));
        out.insert(format!("{name}_errors"), json!(counts.errors));
    }
    for nic in &figures.nics {
        let Some(counts) = nic.counts else { continue };
        let name = format!("tap{}", nic.port.to_string().chars().take(11).collect::<String>());
        out.insert(format!("{name}_rx"), json!(counts.received_bytes));
        out.insert(format!("{name}_rx_packets"), json!(counts.received));
        out.insert(format!("{name}_rx_drop"), json!(counts.receive_drops));
        out.insert(format!("{name}_rx_errors"), json!(0));
        out.insert(format!("{name}_tx"), json!(counts.sent_bytes));
        out.insert(format!("{name}_tx_packets"), json!(counts.sent));
        out.insert(format!("{name}_tx_drop"), json!(counts.send_drops));
        out.insert(format!("{name}_tx_errors"), json!(0));
    }
    Value::Object(out)
}

/// The form from 2.48 on. The driver is one of upstream's names, by which clients choose; the hypervisor is what it really is.
fn common(server: &Server, figures: &Figures) -> Value {
    let cpus: Vec<Value> = figures
        .cpus_ns
        .iter()
        .enumerate()
        .map(|(id, time)| json!({"id": id, "time": time, "utilisation": null}))
        .collect();
    let disks: Vec<Value> = figures
        .disks
        .iter()
        .map(|disk| {
            let counts = disk.counts;
            json!({"read_bytes": counts.map(|it| it.read_bytes), "read_requests": counts.map(|it| it.reads),
                "write_bytes": counts.map(|it| it.written_bytes), "write_requests": counts.map(|it| it.writes),
                "errors_count": counts.map(|it| it.errors)})
        })
        .collect();
    let nics: Vec<Value> = figures
        .nics
        .iter()
        .map(|nic| {
            let counts = nic.counts;
            json!({"mac_address": nic.mac,
                "rx_octets": counts.map(|it| it.received_bytes), "rx_packets": counts.map(|it| it.received),
                "rx_drop": counts.map(|it| it.receive_drops), "rx_errors": counts.map(|_| 0), "rx_rate": null,
                "tx_octets": counts.map(|it| it.sent_bytes), "tx_packets": counts.map(|it| it.sent),
                "tx_drop": counts.map(|it| it.send_drops), "tx_errors": counts.map(|_| 0), "tx_rate": null})
        })
        .collect();
    let memory = figures.memory;
    let used = match (memory.total, memory.available) {
        (Some(total), Some(available)) => Some(total.0.saturating_sub(available.0)),
        (Some(_) | None, _) => None,
    };
    json!({
        "state": if server.observed == Seen::Paused { "paused" } else { "running" },
        "driver": "libvirt",
        "hypervisor": if figures.hypervisor == "vmm" { "kvm" } else { &figures.hypervisor },
        "hypervisor_os": "linux",
        "uptime": figures.uptime_secs,
        "config_drive": server.body.config_drive,
        "num_cpus": server.body.flavor.vcpus, "num_disks": disks.len(), "num_nics": nics.len(),
        "memory_details": {"maximum": server.body.flavor.memory_mb, "used": used},
        "cpu_details": cpus, "disk_details": disks, "nic_details": nics,
    })
}
