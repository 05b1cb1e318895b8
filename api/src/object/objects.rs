//! Objects.

use super::access::{self, Deed};
use super::headers::{
    self, OBJECT_HEADERS, change, http_date, mark, parse_http_date, show as show_meta, stamp,
};
use super::records::{self, Meta, Object, now_us};
use super::{inner, inner::upload_fault, quota};
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply};
use axum::http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::atomic::Ordering;
use wire::ids::BlobId;
use wire::range::Span;

struct Place {
    account: String,
    container: String,
    name: String,
}

fn place(call: &Call<App>) -> Place {
    Place {
        account: call.path("account").to_owned(),
        container: call.path("container").to_owned(),
        name: call.path("object").to_owned(),
    }
}

fn missing() -> Fault {
    Fault::not_found("The resource could not be found.")
}

/// Looks the container up and checks what the caller may do in it.
async fn enter(call: &Call<App>, place: &Place, deed: Deed) -> Result<Meta, Fault> {
    let container = records::container(&call.app.store, &place.account, &place.container).await?;
    access::check(call, &place.account, container.as_ref().map(|found| &found.meta), deed)?;
    container.map(|found| found.meta).ok_or_else(missing)
}

async fn find(call: &Call<App>, place: &Place) -> Result<Object, Fault> {
    let found = records::find(&call.app.store, &place.account, &place.container, &place.name).await?;
    found.ok_or_else(missing)
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let place = place(&call);
    enter(&call, &place, Deed::Read).await?;
    let object = find(&call, &place).await?;
    let finish = |reply: Reply| {
        let reply = reply
            .header("etag", &object.etag)
            .header("last-modified", http_date(object.updated_us))
            .header("x-timestamp", stamp(object.updated_us))
            .header("accept-ranges", "bytes")
            .header("content-type", &object.content_type);
        mark(&call, show_meta(reply, &object.meta))
    };
    if let Some(status) = precondition(&call, Some(&object)) {
        return Ok(finish(Reply::empty(status)));
    }
    if call.method == Method::HEAD {
        return Ok(finish(Reply::empty(200)).header("content-length", object.bytes.to_string()));
    }
    let asked = call.header("range").and_then(|text| Span::parse(text, object.bytes));
    match asked {
        None => {
            let body = inner::read(&call.app, object.blob, object.bytes, None).await?;
            Ok(finish(Reply::stream(200, body)).header("content-length", object.bytes.to_string()))
        }
        Some(Err(())) => Err(Fault::new(StatusCode::RANGE_NOT_SATISFIABLE, "")
            .header(axum::http::header::CONTENT_RANGE, format!("bytes */{}", object.bytes))),
        Some(Ok(span)) => {
            let body = inner::read(&call.app, object.blob, object.bytes, Some(span)).await?;
            let shown = format!("bytes {}-{}/{}", span.start, span.end - 1, object.bytes);
            Ok(finish(Reply::stream(206, body))
                .header("content-range", shown)
                .header("content-length", span.bytes().to_string()))
        }
    }
}

/// The status that conditional headers ask for instead of the normal answer.
fn precondition(call: &Call<App>, object: Option<&Object>) -> Option<u16> {
    let matches = |list: &str| {
        list.split(',')
            .map(|item| item.trim().trim_matches('"'))
            .any(|item| object.is_some_and(|object| item == "*" || item == object.etag))
    };
    let seconds = object.map(|object| object.updated_us.div_euclid(1_000_000));
    if call.header("if-match").is_some_and(|list| !matches(list)) {
        return Some(412);
    }
    let limit = call.header("if-unmodified-since").and_then(parse_http_date);
    if let (Some(limit), Some(seconds)) = (limit, seconds)
        && seconds > limit
    {
        return Some(412);
    }
    let reads = call.method == Method::GET || call.method == Method::HEAD;
    if let Some(list) = call.header("if-none-match") {
        return matches(list).then_some(if reads { 304 } else { 412 });
    }
    let since = call.header("if-modified-since").and_then(parse_http_date);
    if let (Some(since), Some(seconds)) = (since, seconds)
        && reads
        && seconds <= since
    {
        return Some(304);
    }
    None
}

fn too_large() -> Fault {
    Fault::too_large("Your request is too large.")
}

fn check_name(name: &str) -> Result<(), Fault> {
    if name.is_empty() || name.len() > headers::OBJECT {
        return Err(Fault::bad_request(format!(
            "Object name length of {} longer than {}",
            name.len(),
            headers::OBJECT
        )));
    }
    Ok(())
}

/// Refuses what would be silently ignored otherwise.
fn check_unsupported(call: &Call<App>) -> Result<(), Fault> {
    for name in ["x-delete-at", "x-delete-after", "x-object-manifest", "x-symlink-target"] {
        if call.headers.contains_key(name) {
            return Err(Fault::bad_request(format!("{name} is not supported by this store")));
        }
    }
    if call.query.has("multipart-manifest") {
        return Err(Fault::bad_request("multipart-manifest is not supported by this store"));
    }
    Ok(())
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let place = place(&call);
    let container = enter(&call, &place, Deed::Write).await?;
    check_name(&place.name)?;
    check_unsupported(&call)?;
    if let Some(from) = call.header("x-copy-from").map(str::to_owned) {
        let account = call.header("x-copy-from-account").unwrap_or(&place.account).to_owned();
        let from = source(&account, &from)?;
        return copy_to(&call, &from, &place).await;
    }
    let length = match call.header("content-length") {
        Some(text) => Some(text.parse::<u64>().map_err(|_| Fault::bad_request("Invalid Content-Length"))?),
        None => None,
    };
    if length.is_none() && !call.header("transfer-encoding").is_some_and(|text| text.contains("chunked")) {
        return Err(Fault::new(StatusCode::LENGTH_REQUIRED, "Missing Content-Length header."));
    }
    if length.is_some_and(|length| length > headers::FILE) {
        return Err(too_large());
    }
    let room = quota::room(&call.app.store, &place.account, (&place.container, &container)).await?;
    if length.is_some_and(|length| length > room) {
        return Err(quota::exceeded());
    }
    if call.headers.contains_key("if-none-match") || call.headers.contains_key("if-match") {
        let known = records::find(&call.app.store, &place.account, &place.container, &place.name).await?;
        if precondition(&call, known.as_ref()).is_some() {
            return Err(Fault::new(StatusCode::PRECONDITION_FAILED, ""));
        }
    }
    let mut meta = Meta::new();
    change(&call, "object", &OBJECT_HEADERS, &mut meta)?;
    let content_type = call
        .header("content-type")
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| guess(&place.name))
        .to_owned();
    let (body, passed) = match length {
        Some(_) => (call.take_stream(), None),
        None => {
            let (body, passed) = quota::bounded(call.take_stream(), room.min(headers::FILE));
            (body, Some(passed))
        }
    };
    let blob = BlobId::new();
    inner::reserve(&call.app, blob, 0).await?;
    let stored = inner::upload(&call.app, blob, length, false, body).await;
    let info = match stored {
        Ok(info) => info,
        Err(refused) => {
            inner::abandon(&call.app, blob).await?;
            return Err(match passed {
                Some(passed) if passed.load(Ordering::Relaxed) && room < headers::FILE => quota::exceeded(),
                Some(passed) if passed.load(Ordering::Relaxed) => too_large(),
                Some(_) | None => upload_fault(refused),
            });
        }
    };
    let claimed = call.header("etag").map(|etag| etag.trim_matches('"').to_ascii_lowercase());
    if claimed.is_some_and(|etag| !etag.is_empty() && etag != info.md5) {
        inner::abandon(&call.app, blob).await?;
        return Err(Fault::new(StatusCode::UNPROCESSABLE_ENTITY, ""));
    }
    let object = Object {
        name: place.name.clone(),
        blob,
        bytes: info.bytes,
        etag: info.md5,
        content_type,
        updated_us: now_us(),
        meta,
    };
    if let Err(fault) = put(&call, &place, &object).await {
        inner::abandon(&call.app, blob).await?;
        return Err(fault);
    }
    Ok(made(&call, &object))
}

/// The row; the container may have gone while the bytes came.
async fn put(call: &Call<App>, place: &Place, object: &Object) -> Result<(), Fault> {
    call.app
        .store
        .tx(|tx| async move {
            let container = records::container(&tx, &place.account, &place.container).await?;
            let container = container.ok_or_else(missing)?;
            if object.bytes > quota::room(&tx, &place.account, (&place.container, &container.meta)).await? {
                return Err(quota::exceeded());
            }
            if !records::end_upload(&tx, object.blob).await? {
                return Err(Fault::unavailable("The upload was not heard of for too long; upload it again."));
            }
            Ok(records::put(&tx, &place.account, &place.container, object).await?)
        })
        .await?;
    call.app.wake.blobs.nudge();
    Ok(())
}

fn made(call: &Call<App>, object: &Object) -> Reply {
    mark(
        call,
        Reply::empty(201)
            .header("etag", &object.etag)
            .header("last-modified", http_date(object.updated_us))
            .header("content-type", "text/html; charset=UTF-8"),
    )
}

fn guess(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "txt" | "log" => "text/plain",
        "html" | "htm" => "text/html",
        "json" => "application/json",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gz" => "application/gzip",
        "tar" => "application/x-tar",
        "css" => "text/css",
        "js" => "text/javascript",
        _ => "application/octet-stream",
    }
}

/// Reads `/container/object` of a copy header.
fn source(account: &str, text: &str) -> Result<Place, Fault> {
    let bad = || {
        Fault::new(
            StatusCode::PRECONDITION_FAILED,
            "A copy header must be of the form <container name>/<object name>",
        )
    };
    let text = percent_decode_str(text).decode_utf8().map_err(|_| bad())?;
    let (container, name) = text.trim_start_matches('/').split_once('/').ok_or_else(bad)?;
    if container.is_empty() || name.is_empty() {
        return Err(bad());
    }
    Ok(Place { account: account.to_owned(), container: container.to_owned(), name: name.to_owned() })
}

pub(super) async fn copy(call: Call<App>) -> Outcome {
    let from = place(&call);
    let Some(to) = call.header("destination").map(str::to_owned) else {
        return Err(Fault::new(StatusCode::PRECONDITION_FAILED, "Destination header required"));
    };
    let account = call.header("destination-account").unwrap_or(&from.account).to_owned();
    let to = source(&account, &to)?;
    enter(&call, &to, Deed::Write).await?;
    check_name(&to.name)?;
    copy_to(&call, &from, &to).await
}

/// A copy is a further row of the same blob. The source's row is read in the transaction that makes the new one: the blob
/// cannot be collected in between.
async fn copy_to(call: &Call<App>, from: &Place, to: &Place) -> Outcome {
    enter(call, from, Deed::Read).await?;
    let fresh = call.header("x-fresh-metadata").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let mut changes = Meta::new();
    change(call, "object", &OBJECT_HEADERS, &mut changes)?;
    let (changes, content_type) = (&changes, call.header("content-type"));
    let object = call
        .app
        .store
        .tx(|tx| async move {
            let found = records::find(&tx, &from.account, &from.container, &from.name).await?;
            let mut object = found.ok_or_else(missing)?;
            let container = records::container(&tx, &to.account, &to.container).await?;
            let container = container.ok_or_else(missing)?;
            if object.bytes > quota::room(&tx, &to.account, (&to.container, &container.meta)).await? {
                return Err(quota::exceeded());
            }
            if fresh {
                object.meta.clear();
            }
            object.meta.extend(changes.clone());
            if let Some(content_type) = content_type {
                object.content_type = content_type.to_owned();
            }
            object.name.clone_from(&to.name);
            object.updated_us = now_us();
            records::put(&tx, &to.account, &to.container, &object).await?;
            Ok::<_, Fault>(object)
        })
        .await?;
    call.app.wake.blobs.nudge();
    Ok(made(call, &object)
        .header("x-copied-from", format!("{}/{}", from.container, from.name))
        .header("x-copied-from-account", &from.account))
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let place = place(&call);
    enter(&call, &place, Deed::Write).await?;
    check_unsupported(&call)?;
    let object = find(&call, &place).await?;
    let mut meta = Meta::new();
    change(&call, "object", &OBJECT_HEADERS, &mut meta)?;
    let kind = call.header("content-type").unwrap_or(&object.content_type).to_owned();
    let (place, meta, kind) = (&place, &meta, &kind);
    let changed = call
        .app
        .store
        .tx(|tx| async move {
            records::set_meta(&tx, &place.account, &place.container, &place.name, kind, meta).await
        })
        .await?;
    if changed == 0 {
        return Err(missing());
    }
    Ok(mark(&call, Reply::empty(202)))
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let place = place(&call);
    enter(&call, &place, Deed::Write).await?;
    let place = &place;
    let was = call
        .app
        .store
        .tx(|tx| async move { records::remove(&tx, &place.account, &place.container, &place.name).await })
        .await?;
    if !was {
        return Err(missing());
    }
    call.app.wake.blobs.nudge();
    Ok(mark(&call, Reply::empty(204)))
}
