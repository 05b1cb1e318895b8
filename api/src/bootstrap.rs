//! `api bootstrap`: first steps of a new cloud. Idempotent: run again it makes only what is missing.

use crate::app::{App, Shared};
use crate::config::Config;
use crate::identity::bootstrap::{Listed, Made};
use crate::identity::keys;
use crate::serve::Trouble;
use crate::tls::{self, Files};
use api_kit::{Caller, Fault};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What the services' `inner::bootstrap` functions need to know. They are idempotent: a second run changes nothing.
#[derive(Debug, Clone)]
pub struct Params {
    /// An administrator scoped to the project `admin`, for rules that ask who calls.
    pub admin: Caller,
    /// The user `demo` scoped to the project `demo`.
    pub demo: Caller,
    /// Id of the project `admin`.
    pub admin_project: String,
    /// Id of the project `demo`.
    pub demo_project: String,
    /// Id of the project `service`, owner of what belongs to the cloud itself.
    pub service_project: String,
    /// Subnet of the public network `public`.
    pub public_cidr: IpNet,
    /// Gateway of the public network on the host.
    pub public_gateway: Option<IpAddr>,
    /// Subnet of the demo project's network.
    pub demo_cidr: IpNet,
    /// Name servers of the demo subnet; empty means the host's own.
    pub dns: Vec<IpAddr>,
    /// Disk image for guests (raw or qcow2).
    pub guest_image: Option<PathBuf>,
}

/// What `api bootstrap` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Folder for clouds.yaml, openrc and the CA's certificate.
    #[arg(long)]
    pub out: PathBuf,
    /// The cloud's URL as clients reach it: https://HOST:PORT
    #[arg(long)]
    pub url: String,
    /// Subnet of the network `public`, from which floating IPs come.
    #[arg(long, default_value = "198.51.100.0/24")]
    pub public_cidr: IpNet,
    /// Gateway of the network `public`; the first address when not given.
    #[arg(long)]
    pub public_gateway: Option<IpAddr>,
    /// Subnet of the demo project's network.
    #[arg(long, default_value = "10.20.0.0/24")]
    pub demo_cidr: IpNet,
    /// Name server for guests; may be repeated.
    #[arg(long)]
    pub dns: Vec<IpAddr>,
    /// Disk image for guests (raw or qcow2).
    #[arg(long)]
    pub guest_image: Option<PathBuf>,
}

/// The catalog. Types and paths are those that clients look for.
///
/// Volume is there twice: under its own name of today, and under the one that older clients ask for.
const LISTED: [Listed; 8] = [
    Listed { name: "keystone", kind: "identity", path: "/identity" },
    Listed { name: "glance", kind: "image", path: "/image" },
    Listed { name: "swift", kind: "object-store", path: "/object-store/v1/AUTH_%(project_id)s" },
    Listed { name: "cinder", kind: "block-storage", path: "/volume/v3/%(project_id)s" },
    Listed { name: "cinderv3", kind: "volumev3", path: "/volume/v3/%(project_id)s" },
    Listed { name: "neutron", kind: "network", path: "/network" },
    Listed { name: "placement", kind: "placement", path: "/placement" },
    Listed { name: "nova", kind: "compute", path: "/compute/v2.1" },
];

/// Bootstraps.
///
/// # Errors
/// A sentence with the remedy.
pub async fn run(config: Config, options: Options) -> Result<(), Trouble> {
    config.check()?;
    let url = options.url.trim_end_matches('/').to_owned();
    let host = host_of(&url).ok_or_else(|| {
        format!("--url {url} is not a URL like https://192.0.2.10:8443; give scheme, host and port")
    })?;
    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("cannot make {}: {error}; choose another --out", options.out.display()))?;
    std::fs::create_dir_all(&config.state_dir).map_err(|error| {
        format!("cannot make {}: {error}; see 'state_dir' in the configuration", config.state_dir.display())
    })?;
    let files = Files::new(&config.state_dir);
    let mut names = tls::own_names();
    names.insert(host);
    names.insert(config.host_name.clone());
    files.ensure(&names)?;
    let ca = options.out.join("ca.pem");
    let text = std::fs::read_to_string(files.ca())?;
    tls::write(&ca, &text, 0o644)?;

    let app = App::open(config).await.map_err(|fault| fault.to_string())?;
    let clouds = options.out.join("clouds.yaml");
    let known = known_passwords(&clouds);
    let (admin, demo, reset) = match (known.get("ferrostack"), known.get("ferrostack-demo")) {
        (Some(admin), Some(demo)) => (admin.clone(), demo.clone(), false),
        (Some(_) | None, Some(_) | None) => (password()?, password()?, true),
    };
    let made = crate::identity::bootstrap::run(&app, &url, &LISTED, (&admin, &demo), reset)
        .await
        .map_err(|fault| fault.to_string())?;
    // Only now: while clouds.yaml is not there, a repetition sets new passwords.
    write_access(&options.out, &url, &app.config.region, &ca, &admin, &demo)?;
    let params = params(&made, &options);
    services(&app, &params).await.map_err(|fault| fault.to_string())?;
    app.store.close().await;
    Ok(())
}

/// What each service has on a new cloud.
async fn services(app: &Shared, params: &Params) -> Result<(), Fault> {
    crate::bootstrap_services(app, params).await
}

fn params(made: &Made, options: &Options) -> Params {
    let project = |caller: &Caller| caller.project_id.clone().unwrap_or_default();
    Params {
        admin_project: project(&made.admin),
        demo_project: project(&made.demo),
        admin: made.admin.clone(),
        demo: made.demo.clone(),
        service_project: made.service_project.clone(),
        public_cidr: options.public_cidr,
        public_gateway: options.public_gateway,
        demo_cidr: options.demo_cidr,
        dns: options.dns.clone(),
        guest_image: options.guest_image.clone(),
    }
}

fn host_of(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let authority: axum::http::uri::Authority = rest.parse().ok()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| host.to_owned())
}

/// 24 letters and digits, safe in YAML and shells.
fn password() -> Result<String, Trouble> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789ABCDEFG";
    let bytes = keys::random::<24>()?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect())
}

/// The passwords in a file that [`write_access`] wrote, by cloud.
fn known_passwords(path: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut cloud = String::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        let indent = line.len() - line.trim_start().len();
        if indent == 2 {
            cloud = line.trim().trim_end_matches(':').to_owned();
        }
        if let Some(password) = line.trim().strip_prefix("password: ") {
            out.insert(cloud.clone(), password.trim_matches('"').to_owned());
        }
    }
    out
}

fn write_access(
    out: &Path,
    url: &str,
    region: &str,
    ca: &Path,
    admin: &str,
    demo: &str,
) -> Result<(), Trouble> {
    let ca = std::path::absolute(ca)?;
    let mut clouds = String::from("clouds:\n");
    for (cloud, user, password) in [("ferrostack", "admin", admin), ("ferrostack-demo", "demo", demo)] {
        clouds.push_str(&format!(
            "  {cloud}:\n    auth:\n      auth_url: {url}/identity/v3\n      username: {user}\n      password: \"{password}\"\n      project_name: {user}\n      user_domain_id: default\n      project_domain_id: default\n    region_name: {region}\n    interface: public\n    identity_api_version: 3\n    cacert: {}\n",
            ca.display()
        ));
    }
    let openrc = format!(
        "export OS_AUTH_URL={url}/identity/v3\nexport OS_USERNAME=admin\nexport OS_PASSWORD={admin}\nexport OS_PROJECT_NAME=admin\nexport OS_USER_DOMAIN_ID=default\nexport OS_PROJECT_DOMAIN_ID=default\nexport OS_REGION_NAME={region}\nexport OS_INTERFACE=public\nexport OS_IDENTITY_API_VERSION=3\nexport OS_CACERT='{}'\n",
        ca.display()
    );
    tls::write(&out.join("openrc"), &openrc, 0o600)?;
    tls::write(&out.join("clouds.yaml"), &clouds, 0o600)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_survive_a_second_run() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (password().unwrap(), password().unwrap());
        assert!(a.len() == 24 && a != b);
        let ca = dir.path().join("ca.pem");
        write_access(dir.path(), "https://h:1", "RegionOne", &ca, &a, &b).unwrap();
        let known = known_passwords(&dir.path().join("clouds.yaml"));
        assert_eq!(known.get("ferrostack"), Some(&a));
        assert_eq!(known.get("ferrostack-demo"), Some(&b));
        assert!(known_passwords(&dir.path().join("nothing")).is_empty());
    }

    #[test]
    fn the_url_must_name_a_host() {
        assert_eq!(host_of("https://[::1]:8443").as_deref(), Some("::1"));
        assert_eq!(host_of("https://cloud.example:8443").as_deref(), Some("cloud.example"));
        assert_eq!(host_of("cloud.example"), None);
        assert_eq!(host_of("https://"), None);
    }
}
