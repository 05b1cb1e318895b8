//! Containers, and listings of both kinds.

use super::access::{self, Deed};
use super::headers::{self, CONTAINER_HEADERS, change, listed, mark, show as show_meta, stamp, wants_json};
use super::quota;
use super::records::{self, Held, Meta, Object, Slice};
use crate::app::App;
use api_kit::{Call, Fault, Outcome, Reply};
use axum::http::Method;
use base::store::StoreError;
use serde_json::{Value, json};

/// A line of a listing.
pub(super) enum Entry {
    Object(Object),
    Container(Held),
    /// What several names have in common up to the delimiter.
    Subdir(String),
}

/// What part of a listing the client asks for.
pub(super) struct Window {
    prefix: String,
    delimiter: String,
    marker: String,
    end_marker: String,
    limit: usize,
    pub reverse: bool,
}

pub(super) fn window(call: &Call<App>) -> Result<Window, Fault> {
    let text = |name: &str| call.query.get(name).unwrap_or_default().to_owned();
    let limit = match call.query.get("limit").filter(|text| !text.is_empty()) {
        None => headers::LISTING,
        Some(text) => text.parse::<i64>().ok().filter(|limit| *limit >= 0).unwrap_or(headers::LISTING),
    };
    if limit > headers::LISTING {
        return Err(Fault::new(
            axum::http::StatusCode::PRECONDITION_FAILED,
            format!("Maximum limit is {}", headers::LISTING),
        ));
    }
    let (mut prefix, mut delimiter) = (text("prefix"), text("delimiter"));
    if let Some(path) = call.query.get("path") {
        // An older spelling: what lies directly below a pseudo-directory.
        let path = path.trim_end_matches('/');
        prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        delimiter = "/".to_owned();
    }
    Ok(Window {
        prefix,
        delimiter,
        marker: text("marker"),
        end_marker: text("end_marker"),
        limit: usize::try_from(limit).unwrap_or(0),
        reverse: call.query.truth("reverse")?.unwrap_or(false),
    })
}

/// Walks the names of a window in pieces; a common prefix is one entry and the rest of it is jumped over.
pub(super) struct Walk<'a> {
    window: &'a Window,
    from: Vec<u8>,
    inclusive: bool,
    end: Option<Vec<u8>>,
}

pub(super) struct Bounds {
    pub from: Vec<u8>,
    pub inclusive: bool,
    pub end: Option<Vec<u8>>,
    pub limit: i64,
}

/// The first name after all that begin with `prefix`; names are UTF-8, which has no 0xff.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    end.push(0xff);
    end
}

impl Window {
    pub fn slice(&self) -> Walk<'_> {
        let (low, high) =
            if self.reverse { (&self.end_marker, &self.marker) } else { (&self.marker, &self.end_marker) };
        let below = !low.is_empty() && low.as_bytes() >= self.prefix.as_bytes();
        let (from, inclusive) =
            if below { (low.as_bytes().to_vec(), false) } else { (self.prefix.as_bytes().to_vec(), true) };
        let mut end = (!self.prefix.is_empty()).then(|| after(&self.prefix));
        if !high.is_empty() {
            let high = high.as_bytes().to_vec();
            end = Some(end.map_or(high.clone(), |end| end.min(high)));
        }
        Walk { window: self, from, inclusive, end }
    }
}

impl Walk<'_> {
    /// Bounds of the next piece; `None` when enough was taken.
    pub fn next(&mut self, entries: &[Entry]) -> Option<Bounds> {
        let left = self.window.limit.checked_sub(entries.len()).filter(|left| *left > 0)?;
        let nothing = self.end.as_ref().is_some_and(|end| *end <= self.from);
        (!nothing).then(|| Bounds {
            from: self.from.clone(),
            inclusive: self.inclusive,
            end: self.end.clone(),
            limit: i64::try_from(left).unwrap_or(i64::MAX).min(1000),
        })
    }

    /// Takes a name; `false` when the rest of the piece is to be jumped over.
    pub fn take(&mut self, entries: &mut Vec<Entry>, name: &str, make: impl FnOnce() -> Entry) -> bool {
        let rest = name.get(self.window.prefix.len()..).unwrap_or_default();
        let delimiter = &self.window.delimiter;
        let cut = if delimiter.is_empty() { None } else { rest.find(delimiter.as_str()) };
        if self.window.reverse {
            self.end = Some(name.as_bytes().to_vec());
        } else {
            (self.from, self.inclusive) = (name.as_bytes().to_vec(), false);
        }
        let Some(cut) = cut else {
            entries.push(make());
            return true;
        };
        let subdir = format!("{}{}{delimiter}", self.window.prefix, &rest[..cut]);
        if self.window.reverse {
            self.end = Some(subdir.as_bytes().to_vec());
        } else {
            (self.from, self.inclusive) = (after(&subdir), true);
        }
        // A marker inside the common prefix: it was shown on the page before.
        if subdir != self.window.marker {
            entries.push(Entry::Subdir(subdir));
        }
        false
    }
}

/// Renders a listing as JSON or as lines.
pub(super) fn listing(call: &Call<App>, entries: &[Entry]) -> Reply {
    if wants_json(call) {
        let list: Vec<Value> = entries
            .iter()
            .map(|entry| match entry {
                Entry::Object(object) => {
                    json!({"name": object.name, "hash": object.etag, "bytes": object.bytes,
                    "content_type": object.content_type, "last_modified": listed(object.updated_us)})
                }
                Entry::Container(held) => {
                    json!({"name": held.name, "count": held.objects, "bytes": held.bytes,
                    "last_modified": listed(held.updated_us)})
                }
                Entry::Subdir(subdir) => json!({"subdir": subdir}),
            })
            .collect();
        return Reply::json(200, Value::Array(list))
            .header("content-type", "application/json; charset=utf-8");
    }
    if entries.is_empty() {
        return Reply::empty(204);
    }
    let lines: String = entries
        .iter()
        .map(|entry| match entry {
            Entry::Object(object) => format!("{}\n", object.name),
            Entry::Container(held) => format!("{}\n", held.name),
            Entry::Subdir(name) => format!("{name}\n"),
        })
        .collect();
    Reply::text(200, lines).header("content-type", "text/plain; charset=utf-8")
}

fn names(call: &Call<App>) -> (String, String) {
    (call.path("account").to_owned(), call.path("container").to_owned())
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let (account, name) = names(&call);
    let store = &call.app.store;
    let found = records::container(store, &account, &name).await?;
    access::check(&call, &account, found.as_ref().map(|found| &found.meta), Deed::List)?;
    let found = found.ok_or_else(|| Fault::not_found("The resource could not be found."))?;
    let (objects, bytes) = records::usage(store, &account, &name).await?;
    let finish = |reply: Reply| {
        let reply = reply
            .header("x-container-object-count", objects.to_string())
            .header("x-container-bytes-used", bytes.to_string())
            .header("x-timestamp", stamp(found.created_us))
            .header("x-storage-policy", "default")
            .header("accept-ranges", "bytes");
        mark(&call, show_meta(reply, &found.meta))
    };
    if call.method == Method::HEAD {
        return Ok(finish(Reply::empty(204)));
    }
    let window = window(&call)?;
    let (mut entries, mut walk) = (Vec::new(), window.slice());
    while let Some(bounds) = walk.next(&entries) {
        let slice = Slice {
            from: &bounds.from,
            inclusive: bounds.inclusive,
            end: bounds.end.as_deref(),
            reverse: window.reverse,
            limit: bounds.limit,
        };
        let rows = records::list_objects(store, &account, &name, &slice).await?;
        let full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= bounds.limit;
        let mut jumped = false;
        for row in rows {
            let name = row.name.clone();
            if !walk.take(&mut entries, &name, || Entry::Object(row)) {
                jumped = true;
                break;
            }
        }
        if !full && !jumped {
            break;
        }
    }
    Ok(finish(listing(&call, &entries)))
}

pub(super) async fn create(call: Call<App>) -> Outcome {
    let (account, name) = names(&call);
    access::check(&call, &account, None, Deed::Own)?;
    if name.is_empty() || name.len() > headers::CONTAINER || name.contains('/') {
        return Err(Fault::bad_request(format!(
            "Container name length of {} longer than {}, or it contains a slash",
            name.len(),
            headers::CONTAINER
        )));
    }
    let known = records::container(&call.app.store, &account, &name).await?;
    let is_new = known.is_none();
    let mut meta = known.map(|known| known.meta).unwrap_or_default();
    quota::check_container(&call)?;
    change(&call, "container", &CONTAINER_HEADERS, &mut meta)?;
    access::clean(&mut meta)?;
    put(&call, &account, &name, &meta).await?;
    Ok(mark(&call, Reply::empty(if is_new { 201 } else { 202 })))
}

async fn put(call: &Call<App>, account: &str, name: &str, meta: &Meta) -> Result<(), StoreError> {
    call.app.store.tx(|tx| async move { records::put_container(&tx, account, name, meta).await }).await
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let (account, name) = names(&call);
    access::check(&call, &account, None, Deed::Own)?;
    let known = records::container(&call.app.store, &account, &name).await?;
    let mut meta = known.ok_or_else(|| Fault::not_found("The resource could not be found."))?.meta;
    quota::check_container(&call)?;
    change(&call, "container", &CONTAINER_HEADERS, &mut meta)?;
    access::clean(&mut meta)?;
    put(&call, &account, &name, &meta).await?;
    Ok(mark(&call, Reply::empty(204)))
}

pub(super) async fn delete(call: Call<App>) -> Outcome {
    let (account, name) = names(&call);
    access::check(&call, &account, None, Deed::Own)?;
    let (account, name) = (&account, &name);
    call.app
        .store
        .tx(|tx| async move {
            if records::usage(&tx, account, name).await?.0 > 0 {
                return Err(Fault::conflict("There was a conflict when trying to complete your request."));
            }
            match records::delete_container(&tx, account, name).await? {
                0 => Err(Fault::not_found("The resource could not be found.")),
                _ => Ok(()),
            }
        })
        .await?;
    Ok(mark(&call, Reply::empty(204)))
}
