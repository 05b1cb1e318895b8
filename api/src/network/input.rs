//! Values from request bodies, and faults in the words of upstream. The schema has already checked types.

use api_kit::Fault;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::net::IpAddr;
use wire::ids::Mac;

/// Attributes of a request.
pub type Attributes = Map<String, Value>;

/// A text attribute, when it is given and not null.
#[must_use]
pub fn text<'a>(body: &'a Attributes, key: &str) -> Option<&'a str> {
    body.get(key).and_then(Value::as_str)
}

/// A truth attribute, when it is given.
#[must_use]
pub fn truth(body: &Attributes, key: &str) -> Option<bool> {
    body.get(key).and_then(Value::as_bool)
}

/// 400 in the words of upstream.
#[must_use]
pub fn invalid(key: &str, reason: impl std::fmt::Display) -> Fault {
    let reason: String = reason.to_string().chars().take(300).collect();
    Fault::bad_request(format!("Invalid input for {key}. Reason: {reason}.")).kind("HTTPBadRequest")
}

/// An address.
///
/// # Errors
/// 400 when it is none.
pub fn address(key: &str, text: &str) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| invalid(key, format!("'{}' is not a valid IP address", cut(text))))
}

/// A range; a lone address is a range of one.
///
/// # Errors
/// 400 when it is none.
pub fn range(key: &str, text: &str) -> Result<IpNet, Fault> {
    let lone = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| lone())
        .map_err(|_| invalid(key, format!("'{}' is not a valid IP subnet", cut(text))))
}

/// An Ethernet address of one device.
///
/// # Errors
/// 400 when it is none.
pub fn mac(text: &str) -> Result<Mac, Fault> {
    let bad = || invalid("mac_address", format!("'{}' is not a valid MAC address", cut(text)));
    let mac: Mac = text.to_ascii_lowercase().parse().map_err(|_| bad())?;
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] { Err(bad()) } else { Ok(mac) }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A list of addresses.
///
/// # Errors
/// 400 naming the one that is wrong.
pub fn addresses(body: &Attributes, key: &str) -> Result<Option<Vec<IpAddr>>, Fault> {
    let Some(list) = body.get(key).and_then(Value::as_array) else { return Ok(None) };
    let list = list.iter().map(|item| address(key, item.as_str().unwrap_or_default()));
    Ok(Some(list.collect::<Result<_, _>>()?))
}

/// A list of `{"destination", "nexthop"}`.
///
/// # Errors
/// 400 naming the one that is wrong.
pub fn routes(body: &Attributes, key: &str) -> Result<Option<Vec<(IpNet, IpAddr)>>, Fault> {
    let Some(list) = body.get(key).and_then(Value::as_array) else { return Ok(None) };
    let mut routes = Vec::new();
    for item in list {
        let part = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let (destination, hop) = (range(key, part("destination"))?.trunc(), address(key, part("nexthop"))?);
        if destination.addr().is_ipv4() != hop.is_ipv4() {
            return Err(invalid(key, format!("{destination} and {hop} are of different IP versions")));
        }
        routes.push((destination, hop));
    }
    Ok(Some(routes))
}

/// A list of ids.
#[must_use]
pub fn ids(body: &Attributes, key: &str) -> Option<Vec<String>> {
    let list = body.get(key)?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// 404 in the words of upstream: `NetworkNotFound`, "Network X could not be found."
#[must_use]
pub fn missing(kind: &'static str, label: &str, id: &str) -> Fault {
    Fault::not_found(format!("{label} {} could not be found.", cut(id))).kind(kind)
}

/// 400 of one's own kind.
#[must_use]
pub fn bad(kind: &'static str, message: impl Into<String>) -> Fault {
    Fault::bad_request(message).kind(kind)
}

/// 409 of one's own kind.
#[must_use]
pub fn conflict(kind: &'static str, message: impl Into<String>) -> Fault {
    Fault::conflict(message).kind(kind)
}
