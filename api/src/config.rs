//! What an operator sets: one TOML file with drop-ins.

use crate::identity::lockout::SecurityCompliance;
use api_kit::rate::Limit;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// `api.toml`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port of the HTTPS listener.
    pub listen: SocketAddr,
    /// The cloud's URL as clients reach it, `https://HOST:PORT`: for the catalog, the certificate and links. `api bootstrap`
    /// applies a new value.
    #[serde(default)]
    pub public: Option<String>,
    /// Address and port of a plain HTTP listener; loopback only.
    #[serde(default)]
    pub http_listen: Option<SocketAddr>,
    /// `sqlite:///absolute/path` or `postgres://user:password@host/name`.
    pub database: String,
    /// Folder for keys and certificates, readable by this user only.
    pub state_dir: PathBuf,
    /// Socket for the other daemons and for `status`.
    pub socket: PathBuf,
    /// Uids besides root and the own one that may use that socket (`netd`'s).
    #[serde(default)]
    pub socket_uids: Vec<u32>,
    /// Sockets of the other daemons.
    pub sockets: Sockets,
    /// Name of this host in compute and placement.
    #[serde(default = "default_host")]
    pub host_name: String,
    /// Region in the catalog.
    #[serde(default = "default_region")]
    pub region: String,
    /// Tokens.
    #[serde(default)]
    pub tokens: Tokens,
    /// Locking of accounts after failed log-ins.
    #[serde(default)]
    pub security_compliance: SecurityCompliance,
    /// Requests that one user may send.
    #[serde(default)]
    pub rate: Option<Limit>,
    /// Whether a proxy before every listener sets `X-Forwarded-Proto` and `X-Forwarded-Host`.
    #[serde(default)]
    pub trust_forwarded: bool,
    /// Policy rules that replace the defaults: `[policy.compute] "os_compute_api:servers:create" = "role:admin"`.
    #[serde(default)]
    pub policy: BTreeMap<String, BTreeMap<String, String>>,
    /// Whether whoever reads the code on the console may fetch the credentials over the network, once.
    #[serde(default)]
    pub claim: bool,
    /// What a project may have of images.
    #[serde(default)]
    pub images: ImageLimits,
    /// Worker threads of the runtime.
    #[serde(default = "default_threads")]
    pub threads: usize,
    /// Tasks that run at the same time.
    #[serde(default = "default_width")]
    pub task_width: usize,
}

/// Where the other daemons listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// `hostd`
    pub host: PathBuf,
    /// `netd`
    pub net: PathBuf,
    /// `blockd`
    pub block: PathBuf,
    /// Uid that `blockd` runs as, when it is neither root's nor ours: another's answers are not believed.
    #[serde(default)]
    pub block_uid: Option<u32>,
}

/// What each project may have of images; -1 is no limit. The names are Glance's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageLimits {
    /// Data of all images together, in MiB.
    pub image_size_total: i64,
    /// Images.
    pub image_count_total: i64,
    /// Images whose data is on its way.
    pub image_count_uploading: i64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { image_size_total: 100 << 10, image_count_total: 200, image_count_uploading: 20 }
    }
}

/// How tokens live.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    /// Seconds that a token is good for.
    pub seconds: u32,
    /// Seconds after which a new key encrypts.
    pub rotate_seconds: u32,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { seconds: 12 * 3600, rotate_seconds: 7 * 24 * 3600 }
    }
}

fn default_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

fn default_region() -> String {
    "RegionOne".to_owned()
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

fn default_width() -> usize {
    8
}

impl Config {
    /// The database's URL without its password.
    #[must_use]
    pub fn database_shown(&self) -> String {
        match (self.database.split_once("://"), self.database.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) if !self.database.starts_with("sqlite:") => {
                format!("{scheme}://...@{host}")
            }
            (Some(_) | None, Some(_) | None) => self.database.clone(),
        }
    }

    /// What can be seen to be wrong without trying.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn check(&self) -> Result<(), String> {
        if let Some(http) = self.http_listen
            && !http.ip().is_loopback()
        {
            return Err(format!(
                "http_listen is {http}, but plain HTTP is served on loopback only: use 127.0.0.1 or [::1], or the HTTPS 'listen'"
            ));
        }
        if let Some(public) = &self.public
            && crate::bootstrap::host_of(public.trim_end_matches('/')).is_none()
        {
            return Err(format!("public is {public}, which is not a URL like https://cloud.example:8443"));
        }
        if self.tokens.seconds < 60 || self.tokens.rotate_seconds < 60 {
            return Err("tokens.seconds and tokens.rotate_seconds must be at least 60".to_owned());
        }
        if self.security_compliance.lockout_failure_attempts == Some(0) {
            return Err("security_compliance.lockout_failure_attempts must be at least 1; leave it out to lock nobody"
                .to_owned());
        }
        if self.task_width == 0 || self.threads == 0 {
            return Err("task_width and threads must be at least 1".to_owned());
        }
        Ok(())
    }
}
