//! Who sees and changes an image.

use super::records::Image;
use crate::app::App;
use api_kit::policy::Rules;
use api_kit::{Call, Caller, Fault, Target};

/// Rules that handlers ask for.
pub(super) const RULES: Rules = &[
    ("publicize_image", "rule:context_is_admin"),
    ("communitize_image", "rule:project_member_or_admin"),
    ("modify_image", "rule:project_member_or_admin"),
];

/// Whether the caller may know of the image. `is_member`: the image is shared with the caller's project.
pub(super) fn sees(caller: &Caller, image: &Image, is_member: bool) -> bool {
    let own = caller.project_id.as_deref() == Some(image.owner.as_str());
    match image.visibility.as_str() {
        _ if caller.is_admin || own => true,
        "public" | "community" => true,
        "shared" => is_member,
        _ => false,
    }
}

/// The image, if the caller may know of it.
///
/// # Errors
/// 404 in the words of upstream.
pub(super) async fn find(call: &Call<App>, id: &str) -> Result<Image, Fault> {
    call.enforced_by_query();
    visible(&call.app, &call.caller, id).await
}

pub(super) async fn visible(app: &App, caller: &Caller, id: &str) -> Result<Image, Fault> {
    let missing = || {
        let id: String = id.chars().take(64).collect();
        Fault::not_found(format!("No image found with ID {id}"))
    };
    let image = super::records::find(&app.store, id).await?.ok_or_else(missing)?;
    let member = match caller.project_id.as_deref() {
        Some(project) if image.visibility == "shared" => {
            super::records::is_member(&app.store, id, project).await?
        }
        Some(_) | None => false,
    };
    if sees(caller, &image, member) { Ok(image) } else { Err(missing()) }
}

/// The image, if the caller may change it.
///
/// # Errors
/// 404 when it is not visible, 403 when it is somebody else's.
pub(super) async fn find_own(call: &Call<App>, id: &str) -> Result<Image, Fault> {
    let image = find(call, id).await?;
    call.enforce(&Target::project(&image.owner))?;
    Ok(image)
}
