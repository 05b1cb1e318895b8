//! Accounts: one per project, there from the start.

use super::access::{self, Deed};
use super::container::{Entry, listing, window};
use super::headers::{self, change, mark, show as show_meta, stamp};
use super::quota;
use super::records::{self, Slice};
use crate::app::App;
use api_kit::{Call, Outcome, Reply};
use axum::http::Method;
use serde_json::json;

pub(super) async fn info(_call: Call<App>) -> Outcome {
    Ok(Reply::json(
        200,
        json!({"swift": {
            "account_listing_limit": headers::LISTING,
            "container_listing_limit": headers::LISTING,
            "max_account_name_length": 256,
            "max_container_name_length": headers::CONTAINER,
            "max_object_name_length": headers::OBJECT,
            "max_file_size": headers::FILE,
            "max_header_size": 8192,
            "max_meta_count": headers::COUNT,
            "max_meta_name_length": headers::NAME,
            "max_meta_value_length": headers::VALUE,
            "max_meta_overall_size": headers::OVERALL,
            "strict_cors_mode": true,
            "version": env!("CARGO_PKG_VERSION"),
        }, "account_quotas": {}, "container_quotas": {}}),
    ))
}

pub(super) async fn show(call: Call<App>) -> Outcome {
    let account = call.path("account").to_owned();
    access::check(&call, &account, None, Deed::List)?;
    let store = &call.app.store;
    let (created, meta) = records::account_meta(store, &account).await?;
    let (containers, objects, bytes) = records::account_usage(store, &account).await?;
    let finish = |reply: Reply| {
        let reply = reply
            .header("x-account-container-count", containers.to_string())
            .header("x-account-object-count", objects.to_string())
            .header("x-account-bytes-used", bytes.to_string())
            .header("x-timestamp", stamp(created))
            .header("accept-ranges", "bytes");
        mark(&call, show_meta(reply, &meta))
    };
    if call.method == Method::HEAD {
        return Ok(finish(Reply::empty(204)));
    }
    let window = window(&call)?;
    let mut entries = Vec::new();
    let mut slice = window.slice();
    while let Some(bounds) = slice.next(&entries) {
        let limit = bounds.limit;
        let rows = records::list_containers(
            store,
            &account,
            &Slice {
                from: &bounds.from,
                inclusive: bounds.inclusive,
                end: bounds.end.as_deref(),
                reverse: window.reverse,
                limit,
            },
        )
        .await?;
        let full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= limit;
        for row in rows {
            let name = row.name.clone();
            if !slice.take(&mut entries, &name, || Entry::Container(row)) {
                break;
            }
        }
        if !full {
            break;
        }
    }
    Ok(finish(listing(&call, &entries)))
}

pub(super) async fn update(call: Call<App>) -> Outcome {
    let account = call.path("account").to_owned();
    access::check(&call, &account, None, Deed::Own)?;
    quota::check_account(&call)?;
    let (_, mut meta) = records::account_meta(&call.app.store, &account).await?;
    change(&call, "account", &[], &mut meta)?;
    let (account, meta) = (&account, &meta);
    call.app.store.tx(|tx| async move { records::set_account_meta(&tx, account, meta).await }).await?;
    Ok(mark(&call, Reply::empty(204)))
}
