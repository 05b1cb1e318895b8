//! `api serve`: listeners, workers, reconcilers.

use crate::app::{self, App, Shared};
use base::CancellationToken;
use std::sync::Arc;

/// Starts task workers and reconcilers; they end with the token.
#[allow(clippy::disallowed_methods)]
pub fn start_work(app: &Shared, shutdown: &CancellationToken) {
    let owner = format!("{}-{}", app.config.host_name, uuid::Uuid::now_v7().simple());
    let workers = app::workers(app.tasks.clone());
    tokio::spawn(workers.run(app.clone(), owner, app.config.task_width, shutdown.clone()));
    for reconciler in app::reconcilers() {
        let app: Arc<App> = app.clone();
        let nudge = (reconciler.nudge)(&app.wake).clone();
        tokio::spawn(base::reconcile::drive(
            reconciler.name,
            nudge,
            reconciler.every,
            shutdown.clone(),
            move || (reconciler.settle)(app.clone()),
        ));
    }
}
