//! Lists of volumes and snapshots.

use super::records;
use super::view;
use crate::app::App;
use api_kit::list::Match;
use api_kit::{Call, Dir, Fault, Filter, ListSpec, Outcome, Page, Reply, SortKey};
use base::store::Where;
use serde_json::{Value, json};

pub(super) const VOLUMES: ListSpec = ListSpec {
    table: "volume_volumes",
    key: "id",
    filters: &[
        Filter::new("name", "name", Match::Text),
        Filter::new("status", "status", Match::Text),
        Filter::new("bootable", "bootable", Match::Truth),
        Filter::new("user_id", "user_id", Match::Text),
        Filter::new("all_tenants", "", Match::Handler),
        Filter::new("project_id", "project_id", Match::Handler),
        Filter::new("metadata", "", Match::Handler),
        Filter::new("availability_zone", "", Match::Handler),
        Filter::new("offset", "", Match::Handler),
    ],
    sorts: &[
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "updated_at", column: "updated_at" },
        SortKey { name: "name", column: "COALESCE(name, '')" },
        SortKey { name: "display_name", column: "COALESCE(name, '')" },
        SortKey { name: "size", column: "size" },
        SortKey { name: "status", column: "status" },
        SortKey { name: "bootable", column: "bootable" },
    ],
    default_sort: &[("created_at", Dir::Desc)],
    max_limit: 1000,
    zero_is_all: false,
};

pub(super) const SNAPSHOTS: ListSpec = ListSpec {
    table: "volume_snapshots",
    key: "id",
    filters: &[
        Filter::new("name", "name", Match::Text),
        Filter::new("status", "status", Match::Text),
        Filter::new("volume_id", "volume_id", Match::Text),
        Filter::new("user_id", "user_id", Match::Text),
        Filter::new("all_tenants", "", Match::Handler),
        Filter::new("project_id", "project_id", Match::Handler),
        Filter::new("metadata", "", Match::Handler),
        Filter::new("offset", "", Match::Handler),
    ],
    sorts: &[
        SortKey { name: "created_at", column: "created_at" },
        SortKey { name: "name", column: "COALESCE(name, '')" },
        SortKey { name: "size", column: "size" },
        SortKey { name: "status", column: "status" },
    ],
    default_sort: &[("created_at", Dir::Desc)],
    max_limit: 1000,
    zero_is_all: false,
};

/// Limits a list to the caller's project; an administrator may ask for all or for another one.
pub(super) fn scope(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    call.enforced_by_query();
    let all = call.query.truth("all_tenants")?.unwrap_or(false);
    if call.caller.is_admin && all {
        if let Some(project) = call.query.get("project_id") {
            select.and("project_id = ?", [project.into()]);
        }
        return Ok(());
    }
    select.and("project_id = ?", [call.project_id()?.into()]);
    Ok(())
}

/// `{'key': 'value'}`, as clients print a mapping, or the same in JSON.
fn pairs(text: &str) -> Option<records::Pairs> {
    if let Ok(pairs) = serde_json::from_str(text) {
        return Some(pairs);
    }
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut out = records::Pairs::new();
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        let (value, after) = quoted(after.trim_start().strip_prefix(':')?)?;
        out.insert(key, value);
        rest = match after.trim_start() {
            "" => "",
            more => more.strip_prefix(',')?.trim_start(),
        };
    }
    Some(out)
}

/// A text in quotes of either kind, with what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let text = text.strip_prefix('u').unwrap_or(text);
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let mut out = String::new();
    let mut all = text[1..].char_indices();
    while let Some((at, it)) = all.next() {
        match it {
            '\\' => out.push(all.next()?.1),
            it if it == quote => return Some((out, &text[at + 2..])),
            it => out.push(it),
        }
    }
    None
}

/// Filters that are the same for volumes and snapshots.
fn common(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    if let Some(text) = call.query.get("metadata") {
        let wanted =
            pairs(text).filter(|pairs| text.len() <= 8192 && pairs.len() <= 100).ok_or_else(|| {
                Fault::bad_request("Invalid filter metadata: a mapping like {'key': 'value'} is expected.")
            })?;
        for (key, value) in wanted {
            // The column is compact JSON, in which a pair looks the same wherever it stands; taking it out makes a
            // difference where it is there. The same on both engines, and by case, which LIKE is not.
            let pair = format!("{}:{}", json!(key), json!(value));
            select.and("REPLACE(metadata, ?, '') <> metadata", [pair.into()]);
        }
    }
    if call.query.get("availability_zone").is_some_and(|zone| zone != super::rules::ZONE) {
        select.and("1 = 0", []);
    }
    Ok(())
}

/// Rows to leave out at the beginning, beside the marker.
fn offset(call: &Call<App>, select: &mut Where) -> Result<(), Fault> {
    if let Some(text) = call.query.get("offset").filter(|text| !text.is_empty()) {
        let offset: i64 = text.parse().ok().filter(|offset| *offset >= 0).ok_or_else(|| {
            Fault::bad_request("Invalid input received: offset must be a non-negative integer.")
        })?;
        select.end("OFFSET ?", [offset.into()]);
    }
    Ok(())
}

fn body(call: &Call<App>, page: &Page, name: &str, items: Vec<Value>, next: Option<String>) -> Reply {
    let mut body = json!({name: items});
    if let Some(marker) = next {
        let link = json!([{"rel": "next", "href": page.next_link(call, &marker)}]);
        body[format!("{name}_links")] = link;
    }
    Reply::json(200, body)
}

pub(super) async fn volumes(call: Call<App>) -> Outcome {
    list_volumes(&call, false).await
}

pub(super) async fn volumes_detail(call: Call<App>) -> Outcome {
    list_volumes(&call, true).await
}

async fn list_volumes(call: &Call<App>, detail: bool) -> Outcome {
    let page = call.list(&VOLUMES, &call.app.store).await?;
    let mut select = Where::new(records::VOLUMES);
    scope(call, &mut select)?;
    common(call, &mut select)?;
    page.apply(&mut select);
    offset(call, &mut select)?;
    let rows = records::volumes(&call.app.store, select).await?;
    let (rows, next) = page.finish(rows, |volume| volume.id.clone());
    let items = if detail {
        let ids = rows.iter().map(|volume| volume.id.clone());
        let attached = records::attachments_of(&call.app.store, ids).await?;
        rows.iter().map(|volume| view::volume(call, volume, &attached)).collect()
    } else {
        rows.iter().map(|volume| view::brief(call, volume)).collect()
    };
    Ok(body(call, &page, "volumes", items, next))
}

pub(super) async fn summary(call: Call<App>) -> Outcome {
    let mut select = Where::new(
        "SELECT CAST(count(*) AS BIGINT) AS n, CAST(COALESCE(sum(size), 0) AS BIGINT) AS g FROM volume_volumes",
    );
    scope(&call, &mut select)?;
    let (sql, args) = select.build();
    let row = base::store::Query::row(&call.app.store, sql, args).await?;
    let (count, size) = match row {
        Some(row) => (row.int("n")?, row.int("g")?),
        None => (0, 0),
    };
    Ok(Reply::json(200, json!({"volume-summary": {"total_count": count, "total_size": size}})))
}

pub(super) async fn snapshots(call: Call<App>) -> Outcome {
    list_snapshots(&call, false).await
}

pub(super) async fn snapshots_detail(call: Call<App>) -> Outcome {
    list_snapshots(&call, true).await
}

async fn list_snapshots(call: &Call<App>, detail: bool) -> Outcome {
    let page = call.list(&SNAPSHOTS, &call.app.store).await?;
    let mut select = Where::new("SELECT * FROM volume_snapshots");
    scope(call, &mut select)?;
    common(call, &mut select)?;
    page.apply(&mut select);
    offset(call, &mut select)?;
    let rows = records::snapshots(&call.app.store, select).await?;
    let (rows, next) = page.finish(rows, |snapshot| snapshot.id.clone());
    let items = rows.iter().map(|snapshot| view::snapshot(call, snapshot, detail)).collect();
    Ok(body(call, &page, "snapshots", items, next))
}

#[cfg(test)]
mod tests {
    use super::pairs;

    #[test]
    fn mappings_are_read_as_clients_write_them_and_nothing_else_is() {
        let one = [("a b".to_owned(), "it's".to_owned())].into();
        for text in
            [r#"{"a b": "it's"}"#, r#"{'a b': "it's"}"#, r"{u'a b': u'it\'s'}", r#" { 'a b' : "it's" } "#]
        {
            assert_eq!(pairs(text).as_ref(), Some(&one), "{text}");
        }
        assert_eq!(pairs("{'a': 'b', 'c': 'd'}").unwrap().len(), 2);
        assert_eq!(pairs("{}").unwrap().len(), 0);
        for text in
            ["", "a", "{'a'}", "{'a': 1}", "{'a': 'b'", "{'a' 'b'}", "{'a': 'b' 'c': 'd'}", "{'é", "{é}"]
        {
            assert_eq!(pairs(text), None, "{text}");
        }
    }
}
