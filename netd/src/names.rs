//! Names of kernel objects. They come from ids and the instance's name only, so nothing that a tenant wrote ever
//! reaches a command, and whose an object is can be read from its name alone.
//!
//! In namespaces of our own: `br0` (bridge), `tXXXXXXXX` (tap), `rXXXXXXXX` (a router's leg, network side) and
//! `qXXXXXXXX` (the same, router side), where X are the first hex digits of the port id. In the root namespace the same
//! names carry a prefix of five characters that is derived from the instance's name.

use serde::Deserialize;
use wire::ids::{NetworkId, PortId, RouterId};

/// The bridge, or the leg into a provider's bridge, in a network's namespace.
pub const BRIDGE: &str = "br0";

/// Short name of a `netd` among several on one machine: 1 to 12 characters of `a-z0-9`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Instance(String);

impl TryFrom<String> for Instance {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        if (1..=12).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text))
        } else {
            Err("instance must be 1 to 12 characters of a-z and 0-9".to_owned())
        }
    }
}

/// What an object of this instance is, read back from its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A network's; the first hex digits of its id.
    Network(String),
    /// A router's; the first hex digits of its id.
    Router(String),
}

impl Instance {
    /// Namespace of a network.
    #[must_use]
    pub fn network_namespace(&self, id: NetworkId) -> String {
        format!("fs-{}-n-{}", self.0, id.short())
    }

    /// Namespace of a router.
    #[must_use]
    pub fn router_namespace(&self, id: RouterId) -> String {
        format!("fs-{}-r-{}", self.0, id.short())
    }

    /// Whose a namespace is; `None` for a stranger's.
    #[must_use]
    pub fn own_namespace(&self, name: &str) -> Option<Kind> {
        let rest = name.strip_prefix("fs-")?.strip_prefix(self.0.as_str())?;
        if let Some(short) = rest.strip_prefix("-n-") {
            is_short(short).then(|| Kind::Network(short.to_owned()))
        } else {
            rest.strip_prefix("-r-")
                .filter(|short| is_short(short))
                .map(|short| Kind::Router(short.to_owned()))
        }
    }

    /// Prefix of this instance's devices in the root namespace: `f` and four hex digits of a hash (FNV-1a).
    #[must_use]
    pub fn device_prefix(&self) -> String {
        format!("f{:04x}", self.hash())
    }

    /// Metric of this instance's `unreachable` routes: worse than any other route's, and its own.
    #[must_use]
    pub fn metric(&self) -> u64 {
        0xff00_0000 + u64::from(self.hash())
    }

    fn hash(&self) -> u32 {
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let hash = self.0.bytes().fold(0x811c_9dc5, step);
        (hash ^ (hash >> 16)) & 0xffff
    }

    /// A provider network's bridge in the root namespace.
    #[must_use]
    pub fn root_bridge(&self, id: NetworkId) -> String {
        format!("{}b{}", self.device_prefix(), id.short())
    }

    /// The root side of the pair that joins a provider's bridge to the responder's namespace.
    #[must_use]
    pub fn root_responder(&self, id: NetworkId) -> String {
        format!("{}d{}", self.device_prefix(), id.short())
    }

    /// Whether a device of the root namespace is ours.
    #[must_use]
    pub fn own_device(&self, name: &str) -> bool {
        name.strip_prefix(&self.device_prefix())
            .and_then(|rest| rest.strip_prefix(['b', 'd', 't', 'r']))
            .is_some_and(is_short)
    }

    /// The nftables table of a network.
    #[must_use]
    pub fn table(&self, id: NetworkId) -> String {
        format!("fs_{}_{}", self.0, id.short())
    }

    /// Whether a table of the root namespace is ours.
    #[must_use]
    pub fn own_table(&self, name: &str) -> bool {
        name.strip_prefix("fs_")
            .and_then(|rest| rest.strip_prefix(self.0.as_str()))
            .and_then(|rest| rest.strip_prefix('_'))
            .is_some_and(is_short)
    }

    /// The plain name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_short(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())
}

/// A guest's tap; `prefix` is empty in a namespace of our own.
#[must_use]
pub fn tap(prefix: &str, port: PortId) -> String {
    format!("{prefix}t{}", port.short())
}

/// The network side of a router's leg; `prefix` is empty in a namespace of our own.
#[must_use]
pub fn leg(prefix: &str, port: PortId) -> String {
    format!("{prefix}r{}", port.short())
}

/// The router side of a router's leg.
#[must_use]
pub fn router_leg(port: PortId) -> String {
    format!("q{}", port.short())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_are_recognised_and_strangers_are_not() {
        let instance = Instance::try_from("ab".to_owned()).unwrap();
        let other = Instance::try_from("abc".to_owned()).unwrap();
        let (network, router, port) = (NetworkId::new(), RouterId::new(), PortId::new());
        assert_eq!(
            instance.own_namespace(&instance.network_namespace(network)),
            Some(Kind::Network(network.short()))
        );
        assert_eq!(
            instance.own_namespace(&instance.router_namespace(router)),
            Some(Kind::Router(router.short()))
        );
        assert_eq!(instance.own_namespace(&other.network_namespace(network)), None);
        let prefix = instance.device_prefix();
        for own in [instance.root_bridge(network), instance.root_responder(network), tap(&prefix, port)] {
            assert!(own.len() < 16 && instance.own_device(&own) && !other.own_device(&own), "{own}");
        }
        assert!(!instance.own_device("eth0") && !instance.own_device(&tap("", port)));
        assert!(instance.own_table(&instance.table(network)) && !other.own_table(&instance.table(network)));
        for bad in ["", "a-b", "A", "abcdefghijklm"] {
            assert!(Instance::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
