//! How much an account or a container may hold, as their metadata say: the operator sets it on an account, the owner on a
//! container of their own.

use super::records::{self, Meta};
use crate::app::App;
use api_kit::{Call, Fault};
use axum::body::Body;
use base::store::Query;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ACCOUNT_BYTES: &str = "x-account-meta-quota-bytes";
const CONTAINER_BYTES: &str = "x-container-meta-quota-bytes";
const CONTAINER_COUNT: &str = "x-container-meta-quota-count";

/// Refuses a change of the account's quota by anybody but an administrator.
///
/// # Errors
/// 403, or 400 when it is no number.
pub(super) fn check_account(call: &Call<App>) -> Result<(), Fault> {
    let removed = call.headers.contains_key("x-remove-account-meta-quota-bytes");
    let new = call.header(ACCOUNT_BYTES);
    if (removed || new.is_some()) && !call.caller.is_admin {
        return Err(Fault::forbidden("Access was denied to this resource."));
    }
    number(new, "Invalid bytes quota.")
}

/// Refuses quotas of a container that are no numbers.
///
/// # Errors
/// 400
pub(super) fn check_container(call: &Call<App>) -> Result<(), Fault> {
    number(call.header(CONTAINER_BYTES), "Invalid bytes quota.")?;
    number(call.header(CONTAINER_COUNT), "Invalid count quota.")
}

fn number(value: Option<&str>, otherwise: &str) -> Result<(), Fault> {
    match value {
        Some(text) if !text.is_empty() && text.parse::<u64>().is_err() => Err(Fault::bad_request(otherwise)),
        Some(_) | None => Ok(()),
    }
}

/// The refusal.
pub(super) fn exceeded() -> Fault {
    Fault::too_large("Upload exceeds quota.")
}

/// Bytes that one more object may have. As in Swift, what it would replace still counts.
///
/// # Errors
/// 413 when there is room for none.
pub(super) async fn room(
    query: &impl Query,
    account: &str,
    (container, meta): (&str, &Meta),
) -> Result<u64, Fault> {
    let limit = |meta: &Meta, name: &str| meta.get(name).and_then(|text| text.parse::<u64>().ok());
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    let mut room = u64::MAX;
    let (_, own) = records::account_meta(query, account).await?;
    if let Some(quota) = limit(&own, ACCOUNT_BYTES) {
        let (_, _, used) = records::account_usage(query, account).await?;
        room = quota.checked_sub(positive(used)).ok_or_else(exceeded)?;
    }
    let (bytes, count) = (limit(meta, CONTAINER_BYTES), limit(meta, CONTAINER_COUNT));
    if bytes.is_some() || count.is_some() {
        let (objects, used) = records::usage(query, account, container).await?;
        if count.is_some_and(|count| positive(objects) >= count) {
            return Err(exceeded());
        }
        if let Some(quota) = bytes {
            room = room.min(quota.checked_sub(positive(used)).ok_or_else(exceeded)?);
        }
    }
    Ok(room)
}

/// A body that breaks off when more than `limit` bytes come, and whether it did. For bodies of unknown length.
pub(crate) fn bounded(body: Body, limit: u64) -> (Body, Arc<AtomicBool>) {
    let passed = Arc::new(AtomicBool::new(false));
    let (flag, mut left) = (passed.clone(), limit);
    let pieces = body.into_data_stream().map(move |piece| {
        let piece = piece.map_err(std::io::Error::other)?;
        match left.checked_sub(piece.len() as u64) {
            Some(rest) => left = rest,
            None => {
                flag.store(true, Ordering::Relaxed);
                return Err(std::io::Error::other("more bytes than there is room for"));
            }
        }
        Ok(piece)
    });
    (Body::from_stream(pieces), passed)
}
