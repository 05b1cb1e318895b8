//! What the operator says to `netd`.

use crate::names::Instance;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where wanted state is kept.
    pub state_dir: PathBuf,
    /// Where the sockets `netd.sock` and `netd.fd.sock` are made.
    pub run_dir: PathBuf,
    /// Name of this instance on the machine.
    pub instance: Instance,
    /// Socket of the `api` daemon that answers metadata requests.
    pub api_socket: PathBuf,
    /// Uid that `api` runs as, when it is neither root's nor ours: another's answers are not believed.
    #[serde(default)]
    pub api_uid: Option<u32>,
    /// Uids that may call, root and our own apart.
    #[serde(default)]
    pub allow_uids: Vec<u32>,
    /// Physical networks.
    #[serde(default)]
    pub provider: Vec<Provider>,
    /// Whether traffic of "host" provider networks may leave the machine, under the machine's own address.
    #[serde(default)]
    pub masquerade: bool,
    /// Name servers that names outside the cloud are asked from; none: such names are refused.
    #[serde(default)]
    pub dns_upstreams: Vec<SocketAddr>,
}

/// A physical network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Label that networks name it by.
    pub name: String,
    /// How it is reached.
    pub mode: ProviderMode,
    /// The NIC of mode `nic`.
    #[serde(default)]
    pub nic: Option<String>,
}

/// How a physical network is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderMode {
    /// The machine itself is the gateway of the range.
    Host,
    /// A NIC of the machine is put into the bridge.
    Nic,
}

impl Config {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn check(&self) -> Result<(), String> {
        for (index, provider) in self.provider.iter().enumerate() {
            if self.provider.iter().skip(index + 1).any(|other| other.name == provider.name) {
                return Err(format!("provider '{}' is there twice; give each its own name", provider.name));
            }
            match (provider.mode, provider.nic.as_deref()) {
                (ProviderMode::Nic, None) => {
                    return Err(format!(
                        "provider '{}' has mode \"nic\" but no nic; name the NIC",
                        provider.name
                    ));
                }
                (ProviderMode::Host, Some(nic)) => {
                    return Err(format!(
                        "provider '{}' has mode \"host\" and nic '{nic}'; take one of them away",
                        provider.name
                    ));
                }
                (ProviderMode::Nic, Some(nic)) if !device_name(nic) => {
                    return Err(format!("provider '{}': '{nic}' is not a device name", provider.name));
                }
                (ProviderMode::Nic, Some(_)) | (ProviderMode::Host, None) => (),
            }
        }
        Ok(())
    }
}

fn device_name(text: &str) -> bool {
    (1..16).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_named() {
        let text = "state_dir='/s'\nrun_dir='/r'\ninstance='a'\napi_socket='/x'\n";
        let config = |more: &str| toml_config(&format!("{text}{more}"));
        assert!(config("[[provider]]\nname='public'\nmode='host'\n").unwrap().check().is_ok());
        for (bad, word) in [
            ("[[provider]]\nname='p'\nmode='nic'\n", "no nic"),
            ("[[provider]]\nname='p'\nmode='host'\nnic='e'\n", "take one"),
            ("[[provider]]\nname='p'\nmode='nic'\nnic='-x'\n", "not a device"),
            ("[[provider]]\nname='p'\nmode='host'\n[[provider]]\nname='p'\nmode='host'\n", "twice"),
        ] {
            assert!(config(bad).unwrap().check().unwrap_err().contains(word), "{bad}");
        }
        assert!(config("instnce='b'\n").is_err());
    }

    fn toml_config(text: &str) -> Result<Config, base::config::ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netd.toml");
        std::fs::write(&path, text).unwrap();
        base::config::load(&path)
    }
}
