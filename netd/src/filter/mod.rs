//! nftables: each network and router owns one table per family, replaced whole in one transaction, so that no packet
//! ever meets half a rule set. An empty chain in it is named after a hash of its text; when the kernel already has that
//! hash, nothing is done.

mod identity;
pub mod network;
pub mod router;

use crate::fault::{Fault, Steps};
use crate::link::{Place, namespace};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// A table as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `bridge`, `inet` or `ip`.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// Chains, sets and maps.
    pub body: String,
}

impl Table {
    fn mark(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.family, &self.name, &self.body).hash(&mut hasher);
        format!("hash_{:016x}", hasher.finish())
    }
}

/// Loads what the filters need and finds out whether the kernel can track bridged connections.
///
/// # Errors
/// What is missing, and the remedy.
pub fn probe() -> Result<(), String> {
    // Built in, or loaded already, or a container that may not load modules: the file decides.
    let _ = Command::new("modprobe").args(["-q", "br_netfilter"]).status();
    if !std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        return Err(
            "the kernel has no br_netfilter, which security groups need; load the module br_netfilter".into(),
        );
    }
    match Command::new("nft").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) | Err(_) => Err("nft does not run, which filters need; install the package nftables".into()),
    }
}

/// Makes these tables exist with this content, in one transaction.
///
/// # Errors
/// What `nft` says.
pub fn apply(place: &Place, tables: &[Table], steps: &Steps) -> Result<(), Fault> {
    let present = list(place)?;
    let mut text = String::new();
    for table in tables {
        let (family, name, mark) = (table.family, &table.name, table.mark());
        let same = |there: &Present| there.family == family && there.table == *name && there.chain == mark;
        if present.iter().any(same) {
            continue;
        }
        text += &format!("table {family} {name}\ndelete table {family} {name}\n");
        text += &format!("table {family} {name} {{\nchain {mark} {{\n}}\n{}}}\n", table.body);
    }
    run(place, &text, steps)
}

/// Removes the tables that `unwanted` picks.
///
/// # Errors
/// What `nft` says.
pub fn remove(place: &Place, steps: &Steps, unwanted: impl Fn(&str) -> bool) -> Result<(), Fault> {
    let chains = list(place)?;
    let tables: BTreeSet<(&str, &str)> =
        chains.iter().map(|chain| (chain.family.as_str(), chain.table.as_str())).collect();
    let mut text = String::new();
    for (family, name) in tables.into_iter().filter(|(_, name)| unwanted(name)) {
        text += &format!("delete table {family} {name}\n");
    }
    run(place, &text, steps)
}

/// Starts `nft` in a place. A process begins in the namespace of the thread that starts it, which spares `ip netns exec` with its
/// mounts.
fn nft(place: &Place, command: &mut Command) -> Result<Child, Fault> {
    namespace::within(place, || command.stderr(Stdio::piped()).spawn()).map_err(Fault::io("run nft"))
}

/// A chain that the kernel has.
struct Present {
    family: String,
    table: String,
    chain: String,
}

fn list(place: &Place) -> Result<Vec<Present>, Fault> {
    let fault = |message: String| Fault::Command { command: "nft -j list chains".into(), message };
    let output = nft(
        place,
        Command::new("nft").args(["-j", "list", "chains"]).stdin(Stdio::null()).stdout(Stdio::piped()),
    )?
    .wait_with_output()
    .map_err(Fault::io("run nft"))?;
    if !output.status.success() {
        return Err(fault(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let value: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| fault(error.to_string()))?;
    let items = value.get("nftables").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let text = |chain: &serde_json::Value, key: &str| {
        chain.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    let chains = items.iter().filter_map(|item| item.get("chain"));
    Ok(chains
        .map(|chain| Present {
            family: text(chain, "family"),
            table: text(chain, "table"),
            chain: text(chain, "name"),
        })
        .collect())
}

fn run(place: &Place, text: &str, steps: &Steps) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    steps.step()?;
    let mut child =
        nft(place, Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()))?;
    if let Some(mut input) = child.stdin.take() {
        // When it ends early, its own words on standard error are the better report.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(Fault::io("run nft"))?;
    if output.status.success() {
        return Ok(());
    }
    tracing::error!(%place, rules = text, "nft refused rules");
    let message: String =
        String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ").chars().take(500).collect();
    Err(Fault::Command { command: format!("nft in {place}"), message })
}

/// `{ a, b }`
fn set<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("{{ {} }}", items.join(", "))
}
