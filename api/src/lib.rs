//! The control plane: every REST service over one store, and the work that they start.
//!
//! ```text
//!  HTTPS / loopback HTTP --> kit::Router --> <service>::routes --> rules (one transaction) --> view
//!                                                  |  writes a resource row and a task row
//!  base::task::Workers <---------------------------+      reconcilers (woken by a nudge or a timer)
//!        |                                                        |
//!        +--------------> hostd, netd, blockd (unix sockets) <----+
//! ```
//!
//! Services call each other in process through `<service>::inner` only, and never see each other's tables.

pub mod app;
pub mod bootstrap;
pub mod claim;
pub mod cloud;
pub mod compute;
pub mod config;
pub mod identity;
pub mod image;
pub mod network;
pub mod object;
pub mod placement;
pub mod pool;
pub mod serve;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod volume;

pub use api_kit as kit;

use api_kit::Fault;
use app::Shared;

/// Calls that the other daemons make to `api`.
fn internal_calls(app: &Shared, router: base::rpc::Router) -> base::rpc::Router {
    let app = app.clone();
    router.serve(move |call: wire::metadata::ReadMetadata| {
        let app = app.clone();
        async move { Ok(compute::inner::metadata(&app, call).await) }
    })
}

/// What each service has on a new cloud.
async fn bootstrap_services(app: &Shared, params: &bootstrap::Params) -> Result<(), Fault> {
    compute::inner::bootstrap(app, params).await?;
    network::inner::bootstrap(app, params).await?;
    image::inner::bootstrap(app, params).await
}
