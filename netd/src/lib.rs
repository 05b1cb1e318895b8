//! `netd`: makes one host's kernel have the networks, filters and routers that the control plane wants.
//!
//! ```text
//!  api --EnsureNetwork/EnsureRouter--> state (a file each) --> engine --> link (ip), filter (nft)
//!                                                               |             in a namespace per network and router
//!  hostd --FdRequest::Tap--> fd_server                          +--> responder: DHCP, DNS, metadata --> api
//! ```
//!
//! The daemon may end at any moment: bridges, taps, filters and NAT stay in the kernel, and the next start settles from
//! the files alone.

pub mod check;
pub mod config;
pub mod dhcp;
pub mod dns;
pub mod engine;
pub mod fault;
pub mod fd_server;
pub mod filter;
pub mod link;
pub mod metadata;
pub mod names;
pub mod network;
pub mod responder;
pub mod router;
pub mod state;

use base::CancellationToken;
use base::rpc::{Allow, Router};
use config::Config;
use engine::Engine;
use std::time::Duration;
use wire::Health;
use wire::net::{EnsureNetwork, EnsureRouter, ForgetNetwork, ForgetRouter, ListWanted};

/// The longest time between two sweeps over everything.
const SWEEP: Duration = Duration::from_secs(30);

/// Runs the daemon until cancelled.
///
/// # Errors
/// When it cannot start: the kernel lacks something, or a socket or the state cannot be had.
pub async fn run(
    config: Config,
    end: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    filter::probe()?;
    std::fs::create_dir_all(&config.run_dir)?;
    let engine = Engine::open(config.clone())?;
    let allow = Allow::own().and(config.allow_uids.iter().copied());
    let calls =
        base::rpc::listen(&config.run_dir.join("netd.sock"), 0o660, router(&engine), allow, end.clone())?;
    let fd_socket = config.run_dir.join("netd.fd.sock");
    let listener = base::fdpass::listen(&fd_socket)?;
    std::fs::set_permissions(&fd_socket, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
    let mut uids = config.allow_uids.clone();
    uids.extend([0, nix::unistd::geteuid().as_raw()]);
    let taps = fd_server::serve(listener, engine.clone(), uids, end.clone());
    let sweeper = engine.clone();
    let sweeps = base::reconcile::drive(
        "networks",
        base::reconcile::Nudge::default(),
        SWEEP,
        end.clone(),
        move || {
            let engine = sweeper.clone();
            async move { engine.sweep().await }
        },
    );
    base::daemon::notify_ready();
    let (_, taps, ()) = tokio::join!(calls, taps, sweeps);
    let _ = std::fs::remove_file(&fd_socket);
    Ok(taps?)
}

fn router(engine: &Engine) -> Router {
    let with = || engine.clone();
    let (a, b, c, d, e, f) = (with(), with(), with(), with(), with(), with());
    Router::new()
        .serve(move |call: EnsureNetwork| {
            let engine = a.clone();
            async move { engine.ensure_network(call).await }
        })
        .serve(move |call: EnsureRouter| {
            let engine = b.clone();
            async move { engine.ensure_router(call).await }
        })
        .serve(move |call: ForgetNetwork| {
            let engine = c.clone();
            async move { engine.forget_network(call).await }
        })
        .serve(move |call: ForgetRouter| {
            let engine = d.clone();
            async move { engine.forget_router(call).await }
        })
        .serve(move |_: ListWanted| {
            let wanted = e.list_wanted();
            async move { Ok(wanted) }
        })
        .serve(move |_: Health| {
            let engine = f.clone();
            async move { Ok(engine.health()) }
        })
}
