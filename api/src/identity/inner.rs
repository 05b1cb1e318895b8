//! What other services may ask in process.

use super::entity::{PROJECTS, enabled};
use crate::app::App;
use api_kit::Fault;

/// Whether there is such a project and it is enabled.
///
/// # Errors
/// When the store does not answer.
pub async fn project_exists(app: &App, id: &str) -> Result<bool, Fault> {
    Ok(PROJECTS.find(&app.store, id).await?.is_some_and(|project| enabled(&project)))
}
