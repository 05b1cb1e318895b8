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
        call.enforced_by_access_list();
        return Ok(());
    }
    let list = |name: &str| container.and_then(|meta| meta.get(name)).map_or("", String::as_str);
    let referrer = call.header("referer").unwrap_or_default();
    let allowed = match deed {
        Deed::Read => named(list("x-container-read"), &call.caller, referrer, false),
        Deed::List => named(list("x-container-read"), &call.caller, referrer, true),
        // Never by a referrer; also not by a list from before those were refused.
        Deed::Write => members(list("x-container-write"), &call.caller),
        Deed::Own => false,
    };
    if allowed {
        call.enforced_by_access_list();
        Ok(())
    } else if call.caller.user_id.is_empty() {
        Err(Fault::unauthorized())
    } else {
        Err(Fault::forbidden("Access was denied to this resource."))
    }
}

/// Whether a list's `.r:` items let a page on this host refer here: the last one that fits decides, `-` says no. What a client
/// claims here it may claim freely; the lists mean no more than that in Swift either.
fn referrer_allowed(list: &str, referrer: &str) -> bool {
    let host = referrer.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = host.split(':').next().filter(|host| !host.is_empty()).unwrap_or("unknown");
    let host = host.to_ascii_lowercase();
    let fits = |item: &str| item == "*" || item == host || (item.starts_with('.') && host.ends_with(item));
    let items = list.split(',').filter_map(|item| item.trim().strip_prefix(".r:"));
    let mut decided = items.filter_map(|item| match item.strip_prefix('-') {
        Some(not) => fits(not).then_some(false),
        None => fits(item).then_some(true),
    });
    decided.next_back().unwrap_or(false)
}

/// Takes the lists of a container's metadata to their one spelling.
///
/// # Errors
/// 400 for what they cannot say: everybody may read, but never write.
pub(super) fn clean(meta: &mut Meta) -> Result<(), Fault> {
    for name in ["x-container-read", "x-container-write"] {
        let Some(list) = meta.get(name) else { continue };
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items = items.map(|item| clean_item(name, item)).collect::<Result<Vec<_>, _>>()?;
        if items.is_empty() {
            meta.remove(name);
        } else {
            meta.insert(name.to_owned(), items.join(","));
        }
    }
    Ok(())
}

fn clean_item(name: &str, item: &str) -> Result<String, Fault> {
    let Some((kind, value)) = item.split_once(':').map(|(kind, value)| (kind.trim(), value.trim())) else {
        return Ok(item.to_owned());
    };
    if !kind.starts_with('.') {
        return Ok(item.to_owned());
    }
    if !matches!(kind, ".r" | ".ref" | ".referer" | ".referrer") {
        return Err(Fault::bad_request(format!("Unknown designator '{kind}' in ACL: '{item}'")));
    }
    if name == "x-container-write" {
        return Err(Fault::bad_request(format!("Referrers not allowed in write ACL: '{item}'")));
    }
    let (not, host) = value.strip_prefix('-').map_or(("", value), |host| ("-", host.trim()));
    // `*.example.org` and `.example.org` are the same.
    let host = if host == "*" { host } else { host.strip_prefix('*').map_or(host, str::trim) };
    if host.is_empty() || host == "." {
        return Err(Fault::bad_request(format!(
            "No host/domain value after referrer designation in ACL: '{item}'"
        )));
    }
    Ok(format!(".r:{not}{}", host.to_ascii_lowercase()))
}

/// Whether a list like `.r:*,.rlistings,PROJECT:USER` names the caller. Public reading does not include listing.
fn named(list: &str, caller: &Caller, referrer: &str, listing: bool) -> bool {
    let items = || list.split(',').map(str::trim);
    if referrer_allowed(list, referrer) && (!listing || items().any(|item| item == ".rlistings")) {
        return true;
    }
    members(list, caller)
}

fn members(list: &str, caller: &Caller) -> bool {
    let Some(project) = caller.project_id.as_deref() else { return false };
    list.split(',').map(str::trim).any(|item| {
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
        assert!(named(".r:*", &nobody, "", false));
        assert!(!named(".r:*", &nobody, "", true));
        assert!(named(".r:*,.rlistings", &nobody, "", true));
        for list in ["p1:ann", "*:ann", "p1:*", "x:y, p1:ann", "p1"] {
            assert!(named(list, &ann, "", false), "{list}");
        }
        for list in ["", "p2:ann", "p1:bob", ".r:example.org"] {
            assert!(!named(list, &ann, "", false), "{list}");
            assert!(!named(list, &nobody, "", false), "{list}");
        }
        assert!(!members(".r:*", &nobody) && !members(".r:*", &ann));
    }

    #[test]
    fn the_last_referrer_that_fits_decides() {
        let list = ".r:*,.r:-.example.org,.r:good.example.org";
        for (referrer, allowed) in [
            ("", true),
            ("https://elsewhere.net/page", true),
            ("https://bad.example.org:8080/page", false),
            ("https://user@BAD.example.org", false),
            ("https://good.example.org/?x", true),
        ] {
            assert_eq!(referrer_allowed(list, referrer), allowed, "{referrer}");
        }
        assert!(!referrer_allowed(".r:example.org", "https://example.org.evil.net/"));
    }

    #[test]
    fn lists_get_one_spelling_and_nobody_writes_by_referrer() {
        let cleaned = |name: &str, list: &str| {
            let mut meta = Meta::from([(name.to_owned(), list.to_owned())]);
            clean(&mut meta)
                .map(|()| meta.remove(name))
                .map_err(|fault| (fault.status.as_u16(), fault.message))
        };
        let read = |list| cleaned("x-container-read", list);
        assert_eq!(read(" .referrer : * ,, .rlistings,p:u").unwrap().unwrap(), ".r:*,.rlistings,p:u");
        assert_eq!(read(".ref:-*.Example.org").unwrap().unwrap(), ".r:-.example.org");
        assert_eq!(read(" , ").unwrap(), None);
        for bad in [".r:", ".r:-", ".r:*.", ".x:y"] {
            assert_eq!(read(bad).unwrap_err().0, 400, "{bad}");
        }
        let (status, message) = cleaned("x-container-write", "p:u,.r:*").unwrap_err();
        assert_eq!((status, message.as_str()), (400, "Referrers not allowed in write ACL: '.r:*'"));
        assert_eq!(cleaned("x-container-write", "p:u,*:v").unwrap().unwrap(), "p:u,*:v");
    }
}
