//! The composition root: what every service works with, and which services there are.

use crate::config::Config;
use crate::{cloud, compute, identity, image, network, object, placement, pool, volume};
use api_kit::{BoxFuture, Fault, Service};
use base::metrics::Metrics;
use base::reconcile::Nudge;
use base::rpc::Client;
use base::store::{Migration, Store, StoreError};
use base::task::{Tasks, Workers};
use std::sync::Arc;
use std::time::Duration;
use wire::net::NetworkState;

/// The application, shared by all requests and tasks.
pub type Shared = Arc<App>;

/// What services work with.
pub struct App {
    /// As configured.
    pub config: Config,
    /// The control plane's database.
    pub store: Store,
    /// The queue of durable work.
    pub tasks: Tasks,
    /// `hostd`
    pub host: Client,
    /// `netd`
    pub net: Client,
    /// `blockd`
    pub block: Client,
    /// Which cloud this is.
    pub cloud: cloud::Identity,
    /// Token keys and the cache of revocations.
    pub identity: identity::State,
    /// Who is waiting for which network to be made.
    pub network_turns: network::turns::Turns<Option<NetworkState>>,
    /// Wakes reconcilers.
    pub wake: Wake,
    /// Counters of this process.
    pub metrics: Metrics,
}

/// Nudges of the reconcilers. A rule that changes what is wanted nudges after its commit.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    /// Networks, ports, routers: pushes wanted state to `netd`.
    pub network: Nudge,
    /// Blobs without an owner are collected, images finish.
    pub blobs: Nudge,
    /// Tells the daemons which cloud this is.
    pub cloud: Nudge,
    /// Observed power of servers.
    pub power: Nudge,
    /// The host's inventory.
    pub placement: Nudge,
    /// Notices changes of identity by other processes.
    pub identity: Nudge,
    /// Turns token keys over.
    pub token_keys: Nudge,
    /// Volumes and snapshots without an owner are collected.
    pub volume: Nudge,
    /// What servers that are gone left in the database is given back.
    pub orphans: Nudge,
}

/// A reconciler of a service.
pub struct Reconciler {
    /// For the log.
    pub name: &'static str,
    /// It runs at least this often.
    pub every: Duration,
    /// What wakes it early.
    pub nudge: fn(&Wake) -> &Nudge,
    /// Reads the world and closes the gap.
    pub settle: fn(Shared) -> BoxFuture<'static, Result<(), Fault>>,
}

impl App {
    /// Opens the database, brings its tables up to date and reads the token keys.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub async fn open(config: Config) -> Result<Shared, Fault> {
        let store = Store::open(&config.database).await.map_err(|error| {
            Fault::unavailable(format!("cannot open the database {}: {error}", config.database_shown()))
        })?;
        Self::with_store(config, store).await
    }

    /// As [`App::open`] on a store that is open already.
    ///
    /// # Errors
    /// When tables cannot be made or the token keys cannot be read.
    pub async fn with_store(config: Config, store: Store) -> Result<Shared, Fault> {
        migrate(&store).await?;
        let tasks = Tasks::open(store.clone()).await?;
        let identity = identity::State::open(&config)?;
        let cloud = cloud::Identity::open(&store).await?;
        Ok(Arc::new(Self {
            host: Client::new(&config.sockets.host),
            net: Client::new(&config.sockets.net),
            block: Client::new(&config.sockets.block).trusting(config.sockets.block_uid),
            config,
            store,
            tasks,
            cloud,
            identity,
            network_turns: network::turns::Turns::default(),
            wake: Wake::default(),
            metrics: Metrics::default(),
        }))
    }
}

/// All services, in the order of the catalog.
#[must_use]
pub fn services() -> Vec<Service<App>> {
    vec![
        identity::service(),
        image::service(),
        object::service(),
        volume::service(),
        network::service(),
        placement::service(),
        compute::service(),
    ]
}

/// Every component's tables.
pub const COMPONENTS: &[(&str, &[Migration])] = &[
    ("cloud", cloud::MIGRATIONS),
    ("kit", api_kit::quota::MIGRATIONS),
    ("identity", identity::MIGRATIONS),
    ("image", image::MIGRATIONS),
    ("object", object::MIGRATIONS),
    ("volume", volume::MIGRATIONS),
    ("network", network::MIGRATIONS),
    ("placement", placement::MIGRATIONS),
    ("compute", compute::MIGRATIONS),
];

async fn migrate(store: &Store) -> Result<(), StoreError> {
    for (component, steps) in COMPONENTS {
        store.migrate(component, steps).await?;
    }
    Ok(())
}

/// Workers that know every kind of task.
#[must_use]
pub fn workers(tasks: Tasks) -> Workers<App> {
    let workers = Workers::new(tasks);
    let workers = image::tasks(workers);
    let workers = object::tasks(workers);
    let workers = volume::tasks(workers);
    let workers = network::tasks(workers);
    let workers = placement::tasks(workers);
    compute::tasks(workers)
}

/// Every service's reconcilers.
#[must_use]
pub fn reconcilers() -> Vec<Reconciler> {
    let mut all = identity::reconcilers();
    all.extend(cloud::reconcilers());
    all.extend(pool::reconcilers());
    all.extend(image::reconcilers());
    all.extend(object::reconcilers());
    all.extend(volume::reconcilers());
    all.extend(network::reconcilers());
    all.extend(placement::reconcilers());
    all.extend(compute::reconcilers());
    all
}
