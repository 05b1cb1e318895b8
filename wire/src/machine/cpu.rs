//! The processors that a guest finds.

use serde::{Deserialize, Serialize};

/// What a guest finds of the host's processor: all of it, or what every machine of a generation has, so that the guest may go on on
/// another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuModel {
    /// All that KVM passes on.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// SSE4.2 and what came before: servers from about 2009 on.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// AVX2, AES: from about 2015 (Intel) and 2017 (AMD) on.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// AVX-512: from about 2017 (Intel) and 2022 (AMD) on.
    #[serde(rename = "x86-64-v4")]
    V4,
}

impl CpuModel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Host, Self::V2, Self::V3, Self::V4];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|model| model.name() == text).ok_or_else(|| {
            format!("there is no CPU model '{text}'; the models are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// How vCPUs are arranged; the numbers multiply to the number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl std::str::FromStr for Topology {
    type Err = String;

    /// Sockets, cores and threads, as in `2,4,1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<u32> = text.split(',').filter_map(|number| number.parse().ok()).collect();
        match numbers.as_slice() {
            [sockets, cores, threads] if text.matches(',').count() == 2 => {
                Ok(Self { sockets: *sockets, cores: *cores, threads: *threads })
            }
            _ => Err(format!("'{text}' is no topology: give sockets, cores and threads, as in 2,4,1")),
        }
    }
}
