//! The daemon's one brain: takes wanted state, keeps it, and makes the kernel have it.
//!
//! There is one path: [`Engine::settle_network`] and [`Engine::settle_router`] read the kernel and close the gap. A
//! call runs it for its subject at once; the sweep runs it for all, at the start and every 30 seconds, and takes away
//! what carries our name but is not wanted. Work on the kernel is serial (it is short, and its parts meet in bridges).

use crate::config::{Config, ProviderMode};
use crate::fault::{Fault, Steps};
use crate::filter::network::Marks;
use crate::link::{Batch, Place, ROUTE_PROTOCOL, devices, namespace, routes, tap};
use crate::names::Kind;
use crate::network::Layout;
use crate::responder::{Responder, View};
use crate::state::Shelf;
use crate::{filter, names, network, router};
use base::rpc::Client;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::ids::{NetworkId, PortId, RouterId};
use wire::net::{
    EnsureNetwork, EnsureRouter, ForgetNetwork, ForgetRouter, NetworkSpec, NetworkState, PortRole,
    RouterSpec, Wanted,
};
use wire::{HealthReport, Refused};

/// Shared by all calls.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    api: Client,
    steps: Steps,
    wanted: Mutex<Shelves>,
    /// Held while the kernel is read and changed.
    kernel: Mutex<Kernel>,
    runtime: tokio::runtime::Handle,
}

#[derive(Debug)]
struct Shelves {
    networks: Shelf<NetworkId, NetworkSpec>,
    routers: Shelf<RouterId, RouterSpec>,
}

/// What belongs to the kernel's state but lives in this process.
#[derive(Debug, Default)]
struct Kernel {
    marks: BTreeMap<NetworkId, Marks>,
    responders: BTreeMap<NetworkId, Responder>,
    troubles: BTreeMap<String, String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Reads what is wanted. To be called on the runtime; nothing is changed yet.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn open(config: Config) -> std::io::Result<Self> {
        let wanted = Shelves {
            networks: Shelf::open(config.state_dir.join("networks"))?,
            routers: Shelf::open(config.state_dir.join("routers"))?,
        };
        Ok(Self(Arc::new(Inner {
            api: Client::new(config.api_socket.clone()).trusting(config.api_uid),
            config,
            steps: Steps::default(),
            wanted: Mutex::new(wanted),
            kernel: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        })))
    }

    /// The switch for crash tests.
    #[must_use]
    pub fn steps(&self) -> &Steps {
        &self.0.steps
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let engine = self.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let _on_runtime = engine.0.runtime.enter();
            work(&engine)
        });
        outcome
            .await
            .unwrap_or_else(|error| Err(Refused::internal(format!("the work on the kernel ended: {error}"))))
    }

    /// [`EnsureNetwork`]
    ///
    /// # Errors
    /// Invalid, stale, or the kernel's trouble.
    pub async fn ensure_network(&self, call: EnsureNetwork) -> Result<NetworkState, Refused> {
        self.blocking(move |engine| {
            crate::check::network(&call.spec)?;
            Layout::of(&engine.0.config, call.id, &call.spec)?;
            engine.check_short(call.id)?;
            lock(&engine.0.wanted).networks.put(call.id, call.generation, Some(call.spec))?;
            let mut kernel = lock(&engine.0.kernel);
            let state = engine.settle_network(&mut kernel, call.id)?;
            state.ok_or_else(|| Refused::conflict(format!("network {} was forgotten meanwhile", call.id)))
        })
        .await
    }

    /// [`EnsureRouter`]
    ///
    /// # Errors
    /// Invalid, stale, a network that is not known, or the kernel's trouble.
    pub async fn ensure_router(&self, call: EnsureRouter) -> Result<(), Refused> {
        self.blocking(move |engine| {
            crate::check::router(&call.spec)?;
            lock(&engine.0.wanted).routers.put(call.id, call.generation, Some(call.spec))?;
            Ok(engine.settle_router(call.id)?)
        })
        .await
    }

    /// [`ForgetNetwork`]
    ///
    /// # Errors
    /// Stale, or the kernel's trouble.
    pub async fn forget_network(&self, call: ForgetNetwork) -> Result<(), Refused> {
        self.blocking(move |engine| {
            lock(&engine.0.wanted).networks.put(call.id, call.generation, None)?;
            let mut kernel = lock(&engine.0.kernel);
            engine.settle_network(&mut kernel, call.id)?;
            Ok(())
        })
        .await
    }

    /// [`ForgetRouter`]
    ///
    /// # Errors
    /// Stale, or the kernel's trouble.
    pub async fn forget_router(&self, call: ForgetRouter) -> Result<(), Refused> {
        self.blocking(move |engine| {
            lock(&engine.0.wanted).routers.put(call.id, call.generation, None)?;
            Ok(engine.settle_router(call.id)?)
        })
        .await
    }

    /// [`wire::net::ListWanted`]
    #[must_use]
    pub fn list_wanted(&self) -> Wanted {
        let wanted = lock(&self.0.wanted);
        Wanted {
            networks: wanted.networks.live().map(|(id, generation, _)| (id, generation)).collect(),
            routers: wanted.routers.live().map(|(id, generation, _)| (id, generation)).collect(),
        }
    }

    /// The tap of a guest's port, opened.
    ///
    /// # Errors
    /// `Missing` when no network has such a port, `Conflict` while somebody else holds the tap.
    pub fn open_tap(&self, port: PortId) -> Result<OwnedFd, Refused> {
        let layout = {
            let wanted = lock(&self.0.wanted);
            let server = |spec: &NetworkSpec| {
                spec.ports
                    .iter()
                    .any(|there| there.id == port && matches!(there.role, PortRole::Server { .. }))
            };
            let found = wanted.networks.live().find(|(_, _, spec)| server(spec));
            let Some((id, _, spec)) = found else {
                return Err(Refused::missing(format!("no network of this host has the port {port}"))
                    .remedy("ensure the port's network first"));
            };
            Layout::of(&self.0.config, id, spec)?
        };
        let name = names::tap(&layout.prefix, port);
        tap::open(&layout.place, &name).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => Refused::conflict(format!("the tap {name} of port {port} is in use"))
                .remedy("stop the machine that holds it"),
            Some(libc::ENODEV) => {
                Refused::unavailable(format!("the tap {name} of port {port} is not made yet"))
            }
            Some(_) | None => {
                Refused::unavailable(format!("cannot open the tap {name} of port {port}: {error}"))
            }
        })
    }

    /// How the daemon is.
    #[must_use]
    pub fn health(&self) -> HealthReport {
        let mut troubles: Vec<String> = filter::probe().err().into_iter().collect();
        // While the kernel is being worked on, the last known troubles are not worth a wait.
        if let Ok(kernel) = self.0.kernel.try_lock() {
            troubles.extend(kernel.troubles.iter().map(|(subject, why)| format!("{subject}: {why}")));
        }
        let wanted = self.list_wanted();
        HealthReport {
            daemon: "netd".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            troubles,
            facts: vec![
                ("networks".to_owned(), wanted.networks.len().to_string()),
                ("routers".to_owned(), wanted.routers.len().to_string()),
                ("connection tracking".to_owned(), "br_netfilter".to_owned()),
            ],
        }
    }

    /// Two live ids whose first eight digits agree would share kernel objects.
    fn check_short(&self, id: NetworkId) -> Result<(), Refused> {
        let wanted = lock(&self.0.wanted);
        match wanted.networks.live().find(|(there, _, _)| *there != id && there.short() == id.short()) {
            None => Ok(()),
            Some((there, _, _)) => {
                Err(Refused::conflict(format!("the ids of networks {id} and {there} begin alike"))
                    .remedy("delete one of them and make it anew"))
            }
        }
    }

    fn settle_network(&self, kernel: &mut Kernel, id: NetworkId) -> Result<Option<NetworkState>, Fault> {
        let entry = lock(&self.0.wanted).networks.get(id).cloned();
        let outcome = match entry.as_ref().and_then(|entry| Some((entry.generation, entry.spec.as_ref()?))) {
            Some((generation, spec)) => {
                let marks = kernel.marks.entry(id).or_default();
                network::settle(&self.0.config, id, spec, marks, &self.0.steps).and_then(|failed| {
                    self.respond(kernel, id, spec)?;
                    let server = |port: &&wire::net::PortSpec| matches!(port.role, PortRole::Server { .. });
                    let fine = |port: &PortId| failed.iter().all(|(bad, _)| bad != port);
                    let ready = spec.ports.iter().filter(server).map(|port| port.id).filter(fine).collect();
                    Ok(Some(NetworkState { generation, ready, failed }))
                })
            }
            None => {
                kernel.responders.remove(&id);
                kernel.marks.remove(&id);
                network::remove(&self.0.config, id, &self.0.steps)
                    .and_then(|()| self.sweep_routes())
                    .map(|()| None)
            }
        };
        remember(kernel, format!("network {id}"), &outcome);
        outcome
    }

    fn respond(&self, kernel: &mut Kernel, id: NetworkId, spec: &NetworkSpec) -> Result<(), Fault> {
        let running = kernel.responders.remove(&id);
        let Some(port) = network::responder_port(spec) else { return Ok(()) };
        let view = View { id, spec: spec.clone(), port: port.clone() };
        let name = self.0.config.instance.network_namespace(id);
        let responder = Responder::ensure(running, &name, view, &self.0.api, &self.0.config.dns_upstreams)
            .map_err(Fault::io(format!("answer on network {id}")))?;
        kernel.responders.insert(id, responder);
        Ok(())
    }

    fn settle_router(&self, id: RouterId) -> Result<(), Fault> {
        let mut kernel = lock(&self.0.kernel);
        self.settle_router_with(&mut kernel, id)
    }

    fn settle_router_with(&self, kernel: &mut Kernel, id: RouterId) -> Result<(), Fault> {
        let (spec, networks) = {
            let wanted = lock(&self.0.wanted);
            let spec = wanted.routers.get(id).and_then(|entry| entry.spec.clone());
            let legs = spec.iter().flat_map(|spec| {
                spec.interfaces.iter().chain(spec.gateway.as_ref().map(|gateway| &gateway.leg))
            });
            let networks: BTreeMap<NetworkId, NetworkSpec> = legs
                .filter_map(|leg| Some((leg.network, wanted.networks.get(leg.network)?.spec.clone()?)))
                .collect();
            (spec, networks)
        };
        let outcome = match spec {
            Some(spec) => router::settle(&self.0.config, id, &spec, |id| networks.get(&id), &self.0.steps),
            None => router::remove(&self.0.config, id, &self.0.steps),
        };
        remember(kernel, format!("router {id}"), &outcome);
        outcome
    }

    /// Settles everything and takes away what is not wanted.
    ///
    /// # Errors
    /// The number of subjects that could not be settled, and the last reason.
    pub async fn sweep(&self) -> Result<(), Refused> {
        self.blocking(Self::sweep_now).await
    }

    fn sweep_now(&self) -> Result<(), Refused> {
        let wanted = self.list_wanted();
        let mut failures = Vec::new();
        // Leftovers first: an address that moved must leave its old place.
        {
            let _kernel = lock(&self.0.kernel);
            failures.extend(self.sweep_leftovers(&wanted).err());
        }
        for (id, _) in &wanted.networks {
            // Taken for each, so that calls come between.
            let mut kernel = lock(&self.0.kernel);
            failures.extend(self.settle_network(&mut kernel, *id).err());
        }
        for (id, _) in &wanted.routers {
            failures.extend(self.settle_router(*id).err());
        }
        match failures.pop() {
            None => Ok(()),
            Some(last) => Err(Refused::unavailable(format!(
                "{} subjects are not settled, the last: {last}",
                failures.len() + 1
            ))),
        }
    }

    fn sweep_leftovers(&self, wanted: &Wanted) -> Result<(), Fault> {
        let (config, steps) = (&self.0.config, &self.0.steps);
        let networks: Vec<String> = wanted.networks.iter().map(|(id, _)| id.short()).collect();
        let routers: Vec<String> = wanted.routers.iter().map(|(id, _)| id.short()).collect();
        for name in namespace::list()? {
            let left = match config.instance.own_namespace(&name) {
                Some(Kind::Network(short)) => !networks.contains(&short),
                Some(Kind::Router(short)) => !routers.contains(&short),
                None => false,
            };
            if left {
                network::empty_namespace(&name, steps)?;
            }
        }
        let kept: Vec<String> = self.root_devices();
        let mut batch = Batch::new(&Place::Root);
        for device in devices(&Place::Root)? {
            if config.instance.own_device(&device.ifname) && !kept.contains(&device.ifname) {
                batch.add(format!("link del dev {}", device.ifname));
            }
        }
        batch.run(steps)?;
        let tables: Vec<String> = wanted.networks.iter().map(|(id, _)| config.instance.table(*id)).collect();
        filter::remove(&Place::Root, steps, |name| {
            config.instance.own_table(name) && tables.iter().all(|kept| kept != name)
        })?;
        self.sweep_routes()
    }

    /// Names of devices in the root namespace that wanted state explains.
    fn root_devices(&self) -> Vec<String> {
        let (wanted, instance) = (lock(&self.0.wanted), &self.0.config.instance);
        let prefix = instance.device_prefix();
        let mut kept = Vec::new();
        for (id, _, spec) in wanted.networks.live().filter(|(_, _, spec)| spec.provider.is_some()) {
            kept.push(instance.root_bridge(id));
            if network::responder_port(spec).is_some() {
                kept.push(instance.root_responder(id));
            }
            kept.extend(spec.ports.iter().map(|port| names::tap(&prefix, port.id)));
        }
        for (_, _, spec) in wanted.routers.live() {
            let legs = spec.interfaces.iter().chain(spec.gateway.as_ref().map(|gateway| &gateway.leg));
            kept.extend(legs.map(|leg| names::leg(&prefix, leg.port)));
        }
        kept
    }

    fn sweep_routes(&self) -> Result<(), Fault> {
        let config = &self.0.config;
        let kept: Vec<String> = {
            let wanted = lock(&self.0.wanted);
            let host = |spec: &NetworkSpec| {
                let mut providers = config.provider.iter().filter(|there| there.mode == ProviderMode::Host);
                providers.any(|there| spec.provider.as_ref() == Some(&there.name))
            };
            let live = wanted.networks.live().filter(|(_, _, spec)| host(spec));
            live.flat_map(|(_, _, spec)| network::v4_ranges(spec).map(|range| range.to_string())).collect()
        };
        let mut batch = Batch::new(&Place::Root);
        for route in routes(&Place::Root, "unreachable")? {
            if route.metric == Some(config.instance.metric()) && !kept.contains(&route.dst) {
                batch.add(format!(
                    "route del unreachable {} metric {} proto {ROUTE_PROTOCOL}",
                    route.dst,
                    config.instance.metric()
                ));
            }
        }
        batch.run(&self.0.steps)
    }

    /// Takes away every kernel object of this instance, whatever is wanted. Wanted state stays on disk.
    ///
    /// # Errors
    /// The first change that failed.
    pub async fn purge(&self) -> Result<(), Refused> {
        self.blocking(|engine| {
            let mut kernel = lock(&engine.0.kernel);
            kernel.responders.clear();
            {
                let mut wanted = lock(&engine.0.wanted);
                wanted.networks.clear();
                wanted.routers.clear();
            }
            Ok(engine.sweep_leftovers(&Wanted::default())?)
        })
        .await
    }
}

/// Keeps the last outcome of a subject for the health report.
fn remember<T>(kernel: &mut Kernel, subject: String, outcome: &Result<T, Fault>) {
    match outcome {
        Ok(_) => {
            kernel.troubles.remove(&subject);
        }
        Err(fault) => {
            tracing::warn!(%subject, %fault, "cannot settle");
            kernel.troubles.insert(subject, fault.to_string());
        }
    }
}
