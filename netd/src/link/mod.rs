//! Devices, addresses and routes. Read as JSON and changed in batches by `ip` (one process for each), because a batch
//! is one text that can be logged and tried by hand; every word in it is ours ([`crate::names`]) or a parsed address.

pub mod namespace;
pub mod packet;
pub mod tap;

use crate::fault::{Fault, Steps};
pub use namespace::Place;
use serde::Deserialize;
use std::io::Write;
use std::process::{Command, Stdio};
use wire::ids::Mac;

/// A device as the kernel has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Device {
    /// Name.
    pub ifname: String,
    /// MTU in bytes.
    #[serde(default)]
    pub mtu: u32,
    /// Ethernet address.
    #[serde(default)]
    pub address: Option<String>,
    /// The bridge that it is in.
    #[serde(default)]
    pub master: Option<String>,
    /// `UP` among others.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Addresses.
    #[serde(default)]
    pub addr_info: Vec<Address>,
    /// Kind and its options.
    #[serde(default)]
    linkinfo: Option<LinkInfo>,
}

/// An address of a device.
#[derive(Debug, Clone, Deserialize)]
pub struct Address {
    /// `inet` or `inet6`.
    #[serde(default)]
    pub family: String,
    /// The address.
    #[serde(default)]
    pub local: String,
    /// Its prefix length.
    #[serde(default)]
    pub prefixlen: u8,
}

#[derive(Debug, Clone, Deserialize)]
struct LinkInfo {
    #[serde(default)]
    info_data: serde_json::Value,
}

impl Device {
    /// Whether it is set up.
    #[must_use]
    pub fn up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }

    /// Whether it has this Ethernet address.
    #[must_use]
    pub fn has_mac(&self, mac: Mac) -> bool {
        self.address.as_deref() == Some(mac.to_string().as_str())
    }

    /// Its IPv4 addresses as `address/length`.
    #[must_use]
    pub fn v4(&self) -> Vec<String> {
        let v4 = self.addr_info.iter().filter(|address| address.family == "inet");
        v4.map(|address| format!("{}/{}", address.local, address.prefixlen)).collect()
    }

    /// Whether this bridge shows its frames to the filters of IP.
    #[must_use]
    pub fn calls_filters(&self) -> bool {
        let Some(info) = &self.linkinfo else { return false };
        ["nf_call_iptables", "nf_call_ip6tables"].iter().all(|key| info.info_data.get(key) == Some(&1.into()))
    }
}

/// The devices of a place, with their addresses.
///
/// # Errors
/// When `ip` cannot be run or says something else.
pub fn devices(place: &Place) -> Result<Vec<Device>, Fault> {
    read(place, &["-d", "addr", "show"])
}

/// A route as `ip -j route` shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Route {
    /// `default` or a range.
    pub dst: String,
    /// Next hop.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Metric.
    #[serde(default)]
    pub metric: Option<u64>,
}

/// The IPv4 routes that carry our protocol number.
///
/// # Errors
/// When `ip` cannot be run or says something else.
pub fn routes(place: &Place, kind: &str) -> Result<Vec<Route>, Fault> {
    read(place, &["-4", "route", "show", "type", kind, "proto", ROUTE_PROTOCOL])
}

/// The number that marks routes as ours (`rtm_protocol`; not assigned to anybody).
pub const ROUTE_PROTOCOL: &str = "245";

fn read<T: serde::de::DeserializeOwned>(place: &Place, words: &[&str]) -> Result<Vec<T>, Fault> {
    let mut command = ip(place);
    command.arg("-j").args(words);
    let shown = format!("ip {}", words.join(" "));
    let output = command.output().map_err(Fault::io(format!("run '{shown}'")))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Fault::Command { command: shown, message });
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| Fault::Command {
        command: shown,
        message: format!("its answer is not understood: {error}"),
    })
}

fn ip(place: &Place) -> Command {
    let mut command = Command::new("ip");
    if let Place::Namespace(name) = place {
        command.args(["-n", name]);
    }
    command
}

/// Changes of one place, made in order until one fails.
#[derive(Debug)]
pub struct Batch {
    place: Place,
    lines: Vec<String>,
}

impl Batch {
    /// No change yet.
    #[must_use]
    pub fn new(place: &Place) -> Self {
        Self { place: place.clone(), lines: Vec::new() }
    }

    /// Adds a change, in the words of `ip`.
    pub fn add(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// The first that failed; those before it were made.
    pub fn run(mut self, steps: &Steps) -> Result<(), Fault> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let (wanted, allowed) = (self.lines.len(), steps.allowance(self.lines.len()));
        self.lines.truncate(allowed);
        tracing::debug!(place = %self.place, lines = ?self.lines, "changes links");
        self.apply()?;
        if allowed < wanted { Err(Fault::Stopped) } else { Ok(()) }
    }

    fn apply(&self) -> Result<(), Fault> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let fault = || Fault::io("run 'ip -batch'");
        let mut child = ip(&self.place)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(fault())?;
        if let Some(mut input) = child.stdin.take() {
            // When it ends early, its own words on standard error are the better report.
            let _ = input.write_all((self.lines.join("\n") + "\n").as_bytes());
        }
        let output = child.wait_with_output().map_err(fault())?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        let number = message.rsplit_once("-:").and_then(|(_, number)| number.trim().parse::<usize>().ok());
        let line = number.and_then(|number| self.lines.get(number.checked_sub(1)?));
        let command = line.map_or_else(|| "ip -batch".to_owned(), |line| format!("ip {line}"));
        Err(Fault::Command { command, message })
    }
}
