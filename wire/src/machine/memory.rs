//! How a machine has its memory from the host.

use crate::MiB;
use serde::{Deserialize, Serialize};

/// How guest memory is had from the host. The default: pages of the host's choice, private, taken when they are touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBacking {
    /// In one file without a name (memfd), which other processes can map: vhost-user back ends need that.
    #[serde(default)]
    pub shared: bool,
    /// The pages that it consists of.
    #[serde(default)]
    pub pages: Pages,
    /// All of it is taken from the host before the guest starts: it then starts later, and never waits for memory.
    #[serde(default)]
    pub prefault: bool,
}

/// Most NUMA nodes of a machine.
pub const MAX_NODES: usize = 16;

/// A NUMA node of a machine: memory and vCPUs that are near each other. Memory is shared out upwards, in the order of the nodes; what is
/// plugged in later is the first node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// Its memory; that of all nodes together is the machine's.
    pub memory: MiB,
    /// Its vCPUs, from 0 on; each that there can be is in one node. Linux calls the one with vCPU 0 its node 0.
    pub vcpus: Vec<u32>,
    /// The host's node on which the memory lies; wherever the host likes when `None`.
    #[serde(default)]
    pub host_node: Option<u32>,
    /// Distances to all nodes in their order: 10 to itself, 11 to 254 to others. 20 to each other one when empty.
    #[serde(default)]
    pub distances: Vec<u8>,
}

/// How much memory a machine has that can have more: all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What it is to have.
    pub target: u64,
    /// What it has: the guest plugs memory in and out in its own time, and out only as far as it can do without.
    pub actual: u64,
    /// What it started with and always has.
    pub least: u64,
    /// The most that it can have.
    pub most: u64,
}

/// The host's pages that guest memory consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pages {
    /// What the host does by itself.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// Of 2 MiB where the host has such a page at hand (transparent huge pages), otherwise of 4 KiB.
    #[serde(rename = "transparent")]
    Transparent,
    /// Of 2 MiB, which the host's administrator has set aside.
    #[serde(rename = "2M")]
    Huge2M,
    /// Of 1 GiB, which the host's administrator has set aside.
    #[serde(rename = "1G")]
    Huge1G,
}

impl Pages {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Host, Self::Transparent, Self::Huge2M, Self::Huge1G];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Transparent => "transparent",
            Self::Huge2M => "2M",
            Self::Huge1G => "1G",
        }
    }

    /// Size of pages that are set aside; `None` for those that need no such thing.
    #[must_use]
    pub fn set_aside(self) -> Option<MiB> {
        match self {
            Self::Host | Self::Transparent => None,
            Self::Huge2M => Some(MiB(2)),
            Self::Huge1G => Some(MiB(1024)),
        }
    }
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|pages| pages.name() == text).ok_or_else(|| {
            format!("there are no pages '{text}'; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_called_the_same_everywhere() {
        for pages in Pages::ALL {
            assert_eq!(serde_json::to_string(&pages).unwrap(), format!("\"{pages}\""));
            assert_eq!(pages.name().parse(), Ok(pages));
        }
        assert!("4M".parse::<Pages>().unwrap_err().contains("2M, 1G"));
        assert_eq!(serde_json::from_str::<MemoryBacking>("{}").unwrap(), MemoryBacking::default());
    }
}
