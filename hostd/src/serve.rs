//! The daemon: its socket and its calls.

use crate::config::Config;
use crate::host::{self, Chosen};
use crate::hypervisor::qemu::Qemu;
use crate::hypervisor::simulated::Simulated;
use crate::hypervisor::vmm::Vmm;
use crate::resources::Resources;
use crate::server::Registry;
use crate::server::driver::Fleet;
use base::CancellationToken;
use base::owner::Owner;
use base::rpc::{Allow, Router};
use std::path::Path;
use std::sync::Arc;
use wire::cloud::Attest;
use wire::host::{
    DescribeHost, EnsureServer, ForgetServer, ListServers, PowerNow, ReadConsole, ReadFigures, WatchServer,
};
use wire::{Health, HealthReport, Refused};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs `hostd` until it is told to end. Guests go on.
///
/// # Errors
/// When the configuration, the directories or the socket cannot be used.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Failure> {
    host::check(&config)?;
    let chosen = host::choose(&config).await;
    tracing::info!(hypervisor = %chosen.kind, reason = chosen.reason, "chose the hypervisor");
    let fleet = fleet(&config, &chosen);
    let socket = config.run_dir.join("hostd.sock");
    let registry = Registry::open(config.clone(), fleet, shutdown.clone())
        .await
        .map_err(|error| format!("cannot use {}: {error}", config.state_dir.display()))?;
    let allow = Allow::own().and(config.allow_uids.iter().copied());
    let router = router(config, chosen, registry.clone());
    // The kernel's word on the caller's uid decides, not the mode of the file.
    let serving = base::rpc::listen(&socket, 0o666, router, allow, shutdown)
        .map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    base::daemon::notify_ready();
    serving.await;
    // A step that takes longer is cut off, which every step survives.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), registry.join()).await;
    Ok(())
}

/// All hypervisors, so that machines of one are still looked after when another is chosen for new ones.
#[must_use]
pub fn fleet(config: &Config, chosen: &Chosen) -> Fleet {
    let resources = Resources {
        netd_fd_socket: config.netd_fd_socket.clone(),
        disks_dir: config.disks_dir.clone(),
        kernels_dir: config.kernels_dir.clone(),
        qemu_unconfined: config.qemu_unconfined,
        vmm: config.vmm.clone(),
        firmware: config.firmware.clone(),
        firmware_variables: config.firmware_variables.clone(),
    };
    Fleet {
        all: vec![
            Arc::new(Vmm::new(config.vmm.clone(), resources.clone(), config.cpu_model)),
            Arc::new(Qemu::new(config.qemu.clone(), resources)),
            Arc::new(Simulated::new()),
        ],
        chosen: chosen.kind,
    }
}

/// The calls of `hostd`.
#[must_use]
pub fn router(config: Config, chosen: Chosen, registry: Registry) -> Router {
    let facts = host::facts(&config, &chosen);
    let owner = Arc::new(owner(&config.state_dir));
    let attesting = owner.clone();
    let (ensuring, forgetting) = (registry.clone(), registry.clone());
    let (watching, listing, reading) = (registry.clone(), registry.clone(), registry.clone());
    let figuring = registry.clone();
    Router::new()
        .serve(move |call: EnsureServer| {
            let registry = ensuring.clone();
            async move { registry.ensure(call).await }
        })
        .serve(move |call: ForgetServer| {
            let (registry, owner) = (forgetting.clone(), owner.clone());
            async move {
                of_file(move || owner.permits(&call.by)).await?;
                registry.forget(call.id).await
            }
        })
        .serve(move |call: Attest| {
            let owner = attesting.clone();
            of_file(move || owner.attest(call))
        })
        .serve(move |call: WatchServer| {
            let registry = watching.clone();
            async move { registry.watch(call).await }
        })
        .serve(move |_: ListServers| {
            let registry = listing.clone();
            async move { Ok(registry.list()) }
        })
        .serve(move |call: ReadConsole| {
            let registry = reading.clone();
            async move { registry.read_console(call.id, call.lines).await }
        })
        .serve(move |call: ReadFigures| {
            let registry = figuring.clone();
            async move { registry.figures(call.id).await }
        })
        .serve(move |_: DescribeHost| {
            let facts = facts.clone();
            async move { Ok(facts) }
        })
        .serve(move |_: Health| {
            let report = health(&chosen, &registry);
            async move { Ok(report) }
        })
}

/// Whose the servers in this state directory are.
#[must_use]
pub fn owner(state_dir: &Path) -> Owner {
    Owner::new(state_dir.join("owner.json"), "the servers of this host", "hostd --config FILE --adopt")
}

async fn of_file(work: impl FnOnce() -> Result<(), Refused> + Send + 'static) -> Result<(), Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Refused::internal(error.to_string()))?
}

fn health(chosen: &Chosen, registry: &Registry) -> HealthReport {
    let all = registry.list();
    let running = all.iter().filter(|server| server.power == PowerNow::Running).count();
    HealthReport {
        daemon: "hostd".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        troubles: chosen.troubles.clone(),
        facts: vec![
            ("hypervisor".into(), chosen.kind.to_string()),
            ("hypervisor reason".into(), chosen.reason.clone()),
            ("servers".into(), format!("{} known, {running} running", all.len())),
        ],
    }
}
