//! What may be done with images.

use super::access::{find, find_own};
use super::records::{self, Image};
use super::{limits, patch, view};
use crate::app::App;
use crate::object::inner::{self as objects, IMAGE_ACCOUNT};
use api_kit::list::Match;
use api_kit::time::now;
use api_kit::{Call, Dir, Fault, Filter, ListSpec, Outcome, Reply, SortKey, Target};
use base::store::{StoreError, Value as Sql, Where};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

pub(super) const LIST: ListSpec = ListSpec {
    table: "image_images",
    key: "id",
    filters: &[
        Filter::new("name", "name", Match::Handler),
        Filter::new("status", "status", Match::Handler),
        Filter::new("owner", "owner", Match::Text),
        Filter::new("disk_format", "disk_format", Match::Handler),
        Filter::new("container_format", "container_format", Match::Handler),
        Filter::new("id", "id", Match::Handler),
        Filter::new("checksum", "checksum", Match::Text),
        Filter::new("protected", "protected", Match::Truth),
        Filter::new("min_disk", "min_disk", Match::Int),
        Filter::new("min_ram", "min_ram", Match::Int),
        Filter::new("visibility", "visibility", Match::Handler),
        Filter::new("member_status", "", Match::Handler),
        Filter::new("os_hidden", "os_hidden", Match::Handler),
        Filter::new("size_min", "size", Match::Handler),
        Filter::new("size_max", "size", Match::Handler),
        Filter::new("tag", "", Match::Handler),
        Filter::new("created_at", "created_at", Match::Handler),
        Filter::new("updated_at", "updated_at", Match::Handler),
    ],
    sorts: &[
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "updated_at", column: "updated_at" },
        SortKey { name: "name", column: "COALESCE(name, '')" },
        SortKey { name: "status", column: "status" },
        SortKey { name: "size", column: "COALESCE(size, 0)" },
        SortKey { name: "disk_format", column: "COALESCE(disk_format, '')" },
        SortKey { name: "container_format", column: "COALESCE(container_format, '')" },
    ],
    default_sort: &[("created_at", Dir::Desc)],
    max_limit: 1000,
    zero_is_all: false,
};

/// Parameters that are neither filters on properties nor dealt with by the list.
fn is_property(name: &str) -> bool {
    let paging = ["limit", "marker", "sort_key", "sort_dir", "sort", "page_reverse"];
    !paging.contains(&name) && LIST.filters.iter().all(|filter| filter.name != name)
}

pub(super) async fn list(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    let page = call.list(&LIST, &call.app.store).await?;
    let mut select = Where::new("SELECT * FROM image_images");
    visible(&call, &mut select)?;
    let number = |name: &str| -> Result<Option<i64>, Fault> {
        let text = call.query.get(name);
        let parsed = text.map(|text| text.parse::<i64>().ok().filter(|number| *number >= 0));
        match parsed {
            None => Ok(None),
            Some(Some(number)) => Ok(Some(number)),
            Some(None) => Err(Fault::bad_request(format!("{name} must be an integer that is not negative"))),
        }
    };
    if let Some(least) = number("size_min")? {
        select.and("size >= ?", [least.into()]);
    }
    if let Some(most) = number("size_max")? {
        select.and("size <= ?", [most.into()]);
    }
    let hidden = call.query.truth("os_hidden")?.unwrap_or(false);
    select.and("os_hidden = ?", [hidden.into()]);
    for name in ["name", "status", "disk_format", "container_format", "id"] {
        for text in call.query.all(name) {
            select.and_in(name, any_of(text)?.into_iter().map(Into::into));
        }
    }
    for tag in call.query.all("tag") {
        select.and("id IN (SELECT image_id FROM image_tags WHERE tag = ?)", [tag.into()]);
    }
    for name in ["created_at", "updated_at"] {
        for text in call.query.all(name) {
            time_filter(&mut select, name, text)?;
        }
    }
    for (name, value) in call.query.iter().filter(|(name, _)| is_property(name)) {
        select.and(
            "id IN (SELECT image_id FROM image_properties WHERE name = ? AND value = ?)",
            [name.into(), value.into()],
        );
    }
    page.apply(&mut select);
    let rows = records::select(&call.app.store, select).await?;
    let (rows, next) = page.finish(rows, |image| image.id.clone());
    let mut body = json!({"images": rows.iter().map(view::image).collect::<Vec<_>>(),
        "first": link(&call, None), "schema": "/v2/schemas/images"});
    if let Some(marker) = next {
        body["next"] = json!(link(&call, Some(&marker)));
    }
    Ok(Reply::json(200, body))
}

/// Links of this service begin with the version, as upstream's.
fn link(call: &Call<App>, marker: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in call.query.iter().filter(|(name, _)| *name != "marker") {
        query.append_pair(name, value);
    }
    if let Some(marker) = marker {
        query.append_pair("marker", marker);
    }
    let query = query.finish();
    if query.is_empty() { "/v2/images".to_owned() } else { format!("/v2/images?{query}") }
}

/// The values of `VALUE` or `in:VALUE,"VALUE, with a comma",...`.
fn any_of(text: &str) -> Result<Vec<String>, Fault> {
    let Some(mut rest) = text.strip_prefix("in:") else { return Ok(vec![text.to_owned()]) };
    let bad = || {
        Fault::bad_request(format!("The filter '{text}' has a quote that is not closed or text after one"))
    };
    let mut values = Vec::new();
    loop {
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(bad)?,
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        values.push(value.to_owned());
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None if after.is_empty() => return Ok(values),
            None => return Err(bad()),
        };
    }
}

/// `gt:2026-01-01T00:00:00Z` and its kin.
fn time_filter(select: &mut Where, column: &str, text: &str) -> Result<(), Fault> {
    let (op, time) = match text.split_once(':') {
        Some((op @ ("gt" | "gte" | "lt" | "lte" | "eq" | "neq"), time)) => (op, time),
        Some(_) | None => ("eq", text),
    };
    let time = api_kit::time::parse_time(time).ok_or_else(|| {
        Fault::bad_request(format!(
            "Invalid time format for {column}: {}",
            text.chars().take(64).collect::<String>()
        ))
    })?;
    let condition = match (column, op) {
        ("created_at", "gt") => "created_at > ?",
        ("created_at", "gte") => "created_at >= ?",
        ("created_at", "lt") => "created_at < ?",
        ("created_at", "lte") => "created_at <= ?",
        ("created_at", "neq") => "created_at <> ?",
        ("created_at", _) => "created_at = ?",
        (_, "gt") => "updated_at > ?",
        (_, "gte") => "updated_at >= ?",
        (_, "lt") => "updated_at < ?",
        (_, "lte") => "updated_at <= ?",
        (_, "neq") => "updated_at <> ?",
        (_, _) => "updated_at = ?",
    };
    select.and(condition, [Sql::from(time)]);
    Ok(())
}

/// Which images the caller sees in a list: community images only when asked for.
fn visible(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    let project = call.caller.project_id.clone().unwrap_or_default();
    let status = match call.query.get("member_status") {
        None => "accepted",
        Some(status @ ("accepted" | "pending" | "rejected" | "all")) => status,
        Some(_) => {
            return Err(Fault::bad_request("Invalid status: it must be accepted, pending, rejected or all."));
        }
    };
    let asked = call.query.get("visibility");
    match asked {
        None | Some("all") => (),
        Some(word @ ("public" | "private" | "shared" | "community")) => {
            select.and("visibility = ?", [word.into()]);
        }
        Some(_) => return Err(Fault::bad_request("Invalid visibility value")),
    }
    if call.caller.is_admin && asked.is_some() {
        return Ok(());
    }
    if call.caller.is_admin {
        select.and("(visibility <> 'community' OR owner = ?)", [project.into()]);
        return Ok(());
    }
    select.and("(owner = ? OR visibility = 'public'", [project.clone().into()]);
    if matches!(asked, Some("community" | "all")) {
        select.append(" OR visibility = 'community'", []);
    }
    select.append(
        " OR (visibility = 'shared' AND id IN (SELECT image_id FROM image_members WHERE member = ?",
        [project.into()],
    );
    if status != "all" {
        select.append(" AND status = ?", [status.into()]);
    }
    select.append(")))", []);
    Ok(())
}

pub(super) fn blank(id: String, owner: String) -> Image {
    Image {
        id,
        owner,
        name: None,
        status: "queued".to_owned(),
        visibility: "shared".to_owned(),
        disk_format: None,
        container_format: None,
        size: None,
        virtual_size: None,
        checksum: None,
        hash_value: None,
        blob: None,
        min_disk: 0,
        min_ram: 0,
        protected: false,
        os_hidden: false,
        created_at: now(),
        updated_at: now(),
        properties: BTreeMap::new(),
        tags: BTreeSet::new(),
    }
}

fn check_visibility(call: &Call<App>, image: &Image) -> Result<(), Fault> {
    match image.visibility.as_str() {
        "public" => call.enforce_rule("publicize_image", &Target::project(&image.owner)),
        "community" => call.enforce_rule("communitize_image", &Target::project(&image.owner)),
        _ => Ok(()),
    }
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let project = call.project_id()?.to_owned();
    let mut image = blank(Uuid::new_v4().hyphenated().to_string(), project.clone());
    let fields = call.body.as_object().cloned().unwrap_or_default();
    for (name, value) in &fields {
        if name == "id" {
            let id = value.as_str().and_then(|id| Uuid::parse_str(id).ok());
            image.id =
                id.ok_or_else(|| Fault::bad_request("Invalid image id format"))?.hyphenated().to_string();
        } else if name == "owner" && !call.caller.is_admin && value.as_str() != Some(&project) {
            return Err(Fault::forbidden(format!(
                "You are not permitted to create images owned by '{}'.",
                value.as_str().unwrap_or_default().chars().take(64).collect::<String>()
            )));
        } else {
            patch::set(&mut image, name, Some(value))?;
        }
    }
    check_visibility(&call, &image)?;
    call.enforce(&Target::project(&image.owner))?;
    let new = &image;
    let app = &call.app;
    app.store
        .tx(|tx| async move {
            limits::one_more(&tx, &app.config.images, &new.owner).await?;
            match records::insert(&tx, new).await {
                Err(StoreError::Duplicate(_)) => {
                    Err(Fault::conflict(format!("Image ID {} already exists!", new.id)))
                }
                other => Ok(other?),
            }
        })
        .await?;
    let url = format!("{}/v2/images/{}", call.base, image.id);
    Ok(Reply::json(201, view::image(&image)).header("location", url))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let image = find(&call, call.path("image_id")).await?;
    Ok(Reply::json(200, view::image(&image)))
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let kind = call.header("content-type").unwrap_or_default();
    if !kind.starts_with("application/openstack-images-v2") || !kind.contains("json-patch") {
        return Err(Fault::new(
            axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The content type must be application/openstack-images-v2.1-json-patch",
        )
        .header(
            axum::http::HeaderName::from_static("accept-patch"),
            "application/openstack-images-v2.1-json-patch",
        ));
    }
    let change: serde_json::Value = serde_json::from_slice(&call.raw)
        .map_err(|error| Fault::bad_request(format!("Malformed JSON in request body: {error}")))?;
    find_own(&call, call.path("image_id")).await?;
    let id = call.path("image_id");
    let (call, change) = (&call, &change);
    let image = call
        .app
        .store
        .tx(|tx| async move {
            let old = records::find(&tx, id).await?;
            let old = old.ok_or_else(|| Fault::not_found(format!("No image found with ID {id}")))?;
            let mut image = old.clone();
            patch::apply(&mut image, change)?;
            if image.visibility != old.visibility {
                check_visibility(call, &image)?;
            }
            if image.owner != old.owner && !call.caller.is_admin {
                return Err(Fault::forbidden("Attribute 'owner' can only be changed by an administrator."));
            }
            if image != old {
                image.updated_at = now();
                records::update(&tx, &image).await?;
            }
            Ok::<_, Fault>(image)
        })
        .await?;
    Ok(Reply::json(200, view::image(&image)))
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let image = find_own(&call, call.path("image_id")).await?;
    if image.protected {
        return Err(Fault::forbidden(format!(
            "Image {} is protected and cannot be deleted. Unprotect it first.",
            image.id
        )));
    }
    remove(&call.app, &image).await?;
    Ok(Reply::empty(204))
}

/// Removes an image and its data. An upload that runs finds its image gone and gives up.
pub(super) async fn remove(app: &App, image: &Image) -> Result<(), StoreError> {
    let id = &image.id;
    app.store
        .tx(|tx| async move {
            objects::drop_kept(&tx, IMAGE_ACCOUNT, id).await?;
            records::delete(&tx, id).await
        })
        .await?;
    app.wake.blobs.nudge();
    Ok(())
}

pub(super) async fn deactivate(call: Call<App>) -> Outcome {
    turn(call, "active", "deactivated").await
}

pub(super) async fn reactivate(call: Call<App>) -> Outcome {
    turn(call, "deactivated", "active").await
}

async fn turn(call: Call<App>, from: &'static str, to: &'static str) -> Outcome {
    let image = find_own(&call, call.path("image_id")).await?;
    let (id, blob) = (&image.id, &image.blob);
    let done = call
        .app
        .store
        .tx(|tx| async move { records::advance(&tx, id, (from, to), blob.clone()).await })
        .await?;
    if !done && image.status != to {
        return Err(Fault::forbidden(format!("Not allowed to turn an image that is {} {to}", image.status)));
    }
    Ok(Reply::empty(204))
}

pub(super) async fn add_tag(call: Call<App>) -> Outcome {
    tag(call, true).await
}

pub(super) async fn remove_tag(call: Call<App>) -> Outcome {
    tag(call, false).await
}

async fn tag(call: Call<App>, add: bool) -> Outcome {
    let image = find_own(&call, call.path("image_id")).await?;
    let tag = call.path("tag").to_owned();
    let mut changed = image.clone();
    if add {
        if tag.chars().count() > 255 {
            return Err(Fault::bad_request("Tags have at most 255 characters."));
        }
        changed.tags.insert(tag);
        if changed.tags.len() > 128 {
            return Err(Fault::too_large("An image has at most 128 tags."));
        }
    } else if !changed.tags.remove(&tag) {
        return Err(Fault::not_found("No tag of this name at this image."));
    }
    changed.updated_at = now();
    let changed = &changed;
    call.app.store.tx(|tx| async move { records::update(&tx, changed).await }).await?;
    Ok(Reply::empty(204))
}

#[cfg(test)]
mod tests {
    use super::any_of;

    #[test]
    fn several_values_are_told_apart() {
        assert_eq!(any_of("a,b").unwrap(), ["a,b"]);
        assert_eq!(any_of("in:a,b").unwrap(), ["a", "b"]);
        assert_eq!(any_of(r#"in:"a,b",c"#).unwrap(), ["a,b", "c"]);
        assert!(any_of(r#"in:"a"#).is_err() && any_of(r#"in:"a"b"#).is_err());
    }
}
