//! Who may read and write: members of the account's project, and whom the container's lists name.

use super::records::Meta;
use crate::app::App;
use api_kit::policy::Rules;
use api_kit::{Call, Caller, Fault, Target};

/// Rules that handlers ask for.
pub(super) const RULES: Rules =
    &[("object:read", "rule:project_reader_or_admin"), ("object:write", "rule:project_member_or_admin")];

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Read an object.
    Read,
    /// List a container.
    List,
    /// Change objects of a container.
    Write,
    /// Change the account or a container itself: lists of a container do not give that.
    Own,
}

/// Refuses a caller who may not do `deed` in `account`; `container` is the metadata of the container, if it is there.
///
/// # Errors
/// 401 for nobody, 403 for somebody else.
pub(super) fn check(
    call: &Call<App>,
    account: &str,
    container: Option<&Meta>,
    deed: Deed,
) -> Result<(), Fault> {
    call.enforced_by_query();
    // Accounts that do not begin so belong to services.
    let Some(project) = account.strip_prefix("AUTH_").filter(|project| !project.is_empty()) else {
        return Err(if call.caller.user_id.is_empty() {
            Fault::unauthorized()
        } else {
            Fault::forbidden("")
        });
    };
    let rule = match deed {
        Deed::Read | Deed::List => "object:read",
        Deed::Write | Deed::Own => "object:write",
    };
    if !call.caller.user_id.is_empty() && call.may(rule, &Target::project(project)) {
        return Ok(());
    }
    let list = |name: &str| container.and_then(|meta| meta.get(name)).map_or("", String::as_str);
    let allowed = match deed {
        Deed::Read => named(list("x-container-read"), &call.caller, false),
        Deed::List => named(list("x-container-read"), &call.caller, true),
        Deed::Write => named(list("x-container-write"), &call.caller, false),
        Deed::Own => false,
    };
    if allowed {
        Ok(())
    } else if call.caller.user_id.is_empty() {
        Err(Fault::unauthorized())
    } else {
        Err(Fault::forbidden("Access was denied to this resource."))
    }
}

/// Whether a list like `.r:*,.rlistings,PROJECT:USER` names the caller. Public reading does not include listing.
fn named(list: &str, caller: &Caller, listing: bool) -> bool {
    let items = || list.split(',').map(str::trim);
    let public = items().any(|item| item == ".r:*" || item == ".referrer:*");
    if public && (!listing || items().any(|item| item == ".rlistings")) {
        return true;
    }
    let Some(project) = caller.project_id.as_deref() else { return false };
    items().any(|item| {
        let Some((left, right)) = item.split_once(':') else { return item == project };
        (left == "*" || left == project) && (right == "*" || right == caller.user_id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_projects_and_users_and_everybody() {
        let ann = Caller { user_id: "ann".into(), project_id: Some("p1".into()), ..Caller::default() };
        let nobody = Caller::default();
        assert!(named(".r:*", &nobody, false));
        assert!(!named(".r:*", &nobody, true));
        assert!(named(".r:*,.rlistings", &nobody, true));
        for list in ["p1:ann", "*:ann", "p1:*", "x:y, p1:ann", "p1"] {
            assert!(named(list, &ann, false), "{list}");
        }
        for list in ["", "p2:ann", "p1:bob", ".r:example.org"] {
            assert!(!named(list, &ann, false), "{list}");
            assert!(!named(list, &nobody, false), "{list}");
        }
    }
}
