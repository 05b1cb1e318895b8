//! `api bootstrap`: first steps of a new cloud, and `api reset-admin-password`, the way back in.
//!
//! The first steps are taken once: until they came to their end a repetition makes what is missing, after that it only
//! follows the cloud's address (certificate, catalog, clouds.yaml). What an operator deleted stays deleted, and no password
//! is ever changed by it.

use crate::app::{App, Shared};
use crate::config::Config;
use crate::identity::bootstrap::{self as identity, Listed, Made};
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
    /// The cloud's URL as clients reach it: https://HOST:PORT; the configuration's 'public' when not given.
    #[arg(long)]
    pub url: Option<String>,
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
    let url = options.url.as_ref().or(config.public.as_ref()).ok_or(
        "the cloud's address is not known: give --url https://HOST:PORT, or set 'public' in the configuration",
    )?;
    let url = url.trim_end_matches('/').to_owned();
    let host = host_of(&url).ok_or_else(|| {
        format!("{url} is not a URL like https://192.0.2.10:8443; give scheme, host and port")
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
    let ca = publish_ca(&files, &options.out)?;

    let app = App::open(config).await.map_err(|fault| fault.to_string())?;
    let done = take(&app, &options, &url, &ca).await;
    app.store.close().await;
    done
}

async fn take(app: &Shared, options: &Options, url: &str, ca: &Path) -> Result<(), Trouble> {
    let plain = |fault: Fault| fault.to_string();
    let clouds = options.out.join("clouds.yaml");
    let known = known_passwords(&clouds);
    if identity::finished(app).await.map_err(plain)? {
        identity::refresh(app, url, &LISTED).await.map_err(plain)?;
        return match known.get("ferrostack") {
            Some(admin) => {
                let demo = known.get("ferrostack-demo").map(String::as_str);
                write_access(&options.out, url, &app.config.region, ca, admin, demo)
            }
            None => {
                eprintln!(
                    "api: {} has no password of the administrator, and passwords are kept as hashes only; 'api reset-admin-password --config FILE --out {}' sets a new one and writes the file",
                    clouds.display(),
                    options.out.display()
                );
                Ok(())
            }
        };
    }
    let (admin, demo, reset) = match (known.get("ferrostack"), known.get("ferrostack-demo")) {
        (Some(admin), Some(demo)) => (admin.clone(), demo.clone(), false),
        (Some(_) | None, Some(_) | None) => (password()?, password()?, true),
    };
    let made = identity::run(app, url, &LISTED, (&admin, &demo), reset).await.map_err(plain)?;
    // Only now: while clouds.yaml is not there, a repetition of unfinished first steps sets new passwords.
    write_access(&options.out, url, &app.config.region, ca, &admin, Some(&demo))?;
    services(app, &params(&made, options)).await.map_err(plain)?;
    identity::finish(app).await.map_err(plain)?;
    Ok(())
}

fn publish_ca(files: &Files, out: &Path) -> Result<PathBuf, Trouble> {
    let ca = out.join("ca.pem");
    let text = std::fs::read_to_string(files.ca()).map_err(|error| {
        format!("cannot read {}: {error}; run 'api bootstrap' first", files.ca().display())
    })?;
    tls::write(&ca, &text, 0o644)?;
    Ok(ca)
}

/// What `api reset-admin-password` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct ResetOptions {
    /// Folder for clouds.yaml, openrc and the CA's certificate.
    #[arg(long)]
    pub out: PathBuf,
}

/// Gives the user `admin` a new random password, makes it administrator again whatever was taken from it, ends its tokens
/// and writes clouds.yaml and openrc.
///
/// # Errors
/// A sentence with the remedy.
pub async fn reset_admin_password(config: Config, options: ResetOptions) -> Result<(), Trouble> {
    config.check()?;
    let app = App::open(config).await.map_err(|fault| fault.to_string())?;
    let done = reset(&app, &options.out).await;
    app.store.close().await;
    done
}

async fn reset(app: &Shared, out: &Path) -> Result<(), Trouble> {
    let plain = |fault: Fault| fault.to_string();
    let url = identity::public_url(app)
        .await
        .map_err(plain)?
        .ok_or("this database belongs to no cloud yet; run 'api bootstrap' first")?;
    std::fs::create_dir_all(out)
        .map_err(|error| format!("cannot make {}: {error}; choose another --out", out.display()))?;
    let ca = publish_ca(&Files::new(&app.config.state_dir), out)?;
    let known = known_passwords(&out.join("clouds.yaml"));
    let admin = password()?;
    identity::reset_admin(app, &admin).await.map_err(plain)?;
    let demo = known.get("ferrostack-demo").map(String::as_str);
    write_access(out, &url, &app.config.region, &ca, &admin, demo)
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

/// The host in a URL of ours.
pub(crate) fn host_of(url: &str) -> Option<String> {
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
    demo: Option<&str>,
) -> Result<(), Trouble> {
    let ca = std::path::absolute(ca)?;
    let mut clouds = String::from("clouds:\n");
    let demo = demo.map(|password| ("ferrostack-demo", "demo", password));
    for (cloud, user, password) in [("ferrostack", "admin", admin)].into_iter().chain(demo) {
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
    use crate::testing::Cloud;
    use base::store::Query;

    #[test]
    fn passwords_survive_a_second_run() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (password().unwrap(), password().unwrap());
        assert!(a.len() == 24 && a != b);
        let ca = dir.path().join("ca.pem");
        write_access(dir.path(), "https://h:1", "RegionOne", &ca, &a, Some(&b)).unwrap();
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

    fn options(out: &Path, url: Option<&str>) -> Options {
        Options {
            out: out.to_owned(),
            url: url.map(str::to_owned),
            public_cidr: "203.0.113.0/24".parse().unwrap(),
            public_gateway: None,
            demo_cidr: "10.0.0.0/24".parse().unwrap(),
            dns: Vec::new(),
            guest_image: None,
        }
    }

    async fn names(cloud: &Cloud, path: &str, many: &str, key: &str) -> Vec<String> {
        let rows = cloud.call("admin", "GET", path, None).await.json[many].as_array().cloned().unwrap();
        let mut names: Vec<String> = rows.iter().map(|row| row[key].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    async fn right(cloud: &Cloud, password: &str) -> bool {
        let sql = "SELECT password FROM identity_users WHERE name = 'admin'";
        let row = cloud.app.store.row(sql, base::args![]).await.unwrap().unwrap();
        cloud.app.identity.passwords.check(password, row.opt_text("password").unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn first_steps_are_taken_once_and_what_was_deleted_stays_away() {
        let (cloud, out) = (Cloud::new().await, tempfile::tempdir().unwrap());
        let (out, app) = (out.path(), &cloud.app);
        let ca = out.join("ca.pem");
        let first = options(out, None);
        take(app, &first, "https://a:1", &ca).await.unwrap();
        let clouds = out.join("clouds.yaml");
        let admin = known_passwords(&clouds)["ferrostack"].clone();
        assert!(right(&cloud, &admin).await);
        let network = "/network/v2.0/networks";
        assert_eq!(names(&cloud, network, "networks", "name").await, ["demo", "public"]);

        // An operator makes it their own: another name, no flavors, no user demo, one endpoint less, one elsewhere.
        let list = cloud.call("admin", "GET", network, None).await.json;
        for row in list["networks"].as_array().unwrap() {
            let path = format!("{network}/{}", row["id"].as_str().unwrap());
            let body = serde_json::json!({"network": {"name": "mine"}});
            assert_eq!(cloud.call("admin", "PUT", &path, Some(body)).await.status, 200);
        }
        for id in names(&cloud, "/compute/v2.1/flavors", "flavors", "id").await {
            let path = format!("/compute/v2.1/flavors/{id}");
            assert_eq!(cloud.call("admin", "DELETE", &path, None).await.status, 202);
        }
        let users = cloud.call("admin", "GET", "/identity/v3/users?name=demo", None).await.json;
        let path = format!("/identity/v3/users/{}", users["users"][0]["id"].as_str().unwrap());
        assert_eq!(cloud.call("admin", "DELETE", &path, None).await.status, 204);
        let endpoints = cloud.call("admin", "GET", "/identity/v3/endpoints", None).await.json;
        let of = |n: usize| {
            format!("/identity/v3/endpoints/{}", endpoints["endpoints"][n]["id"].as_str().unwrap())
        };
        assert_eq!(cloud.call("admin", "DELETE", &of(0), None).await.status, 204);
        let body = serde_json::json!({"endpoint": {"url": "https://elsewhere/x"}});
        assert_eq!(cloud.call("admin", "PATCH", &of(1), Some(body)).await.status, 200);

        take(app, &first, "https://b:2", &ca).await.unwrap();
        assert_eq!(names(&cloud, network, "networks", "name").await, ["mine", "mine"]);
        assert!(names(&cloud, "/compute/v2.1/flavors", "flavors", "id").await.is_empty());
        assert_eq!(names(&cloud, "/identity/v3/users", "users", "name").await, ["admin"]);
        let urls = names(&cloud, "/identity/v3/endpoints", "endpoints", "url").await;
        assert_eq!(urls.len(), LISTED.len() * 3 - 1);
        assert_eq!(urls.iter().filter(|url| url.starts_with("https://b:2/")).count(), urls.len() - 1);
        assert!(std::fs::read_to_string(&clouds).unwrap().contains("auth_url: https://b:2/identity/v3"));

        // A lost clouds.yaml changes no password; the way back sets a new one.
        std::fs::remove_file(&clouds).unwrap();
        take(app, &first, "https://b:2", &ca).await.unwrap();
        assert!(!clouds.exists() && right(&cloud, &admin).await);
        let error = reset(app, out).await.unwrap_err().to_string();
        assert!(error.contains("api bootstrap"), "there is no CA: {error}");
        Files::new(&app.config.state_dir).ensure(&tls::own_names()).unwrap();
        reset(app, out).await.unwrap();
        let new = known_passwords(&clouds)["ferrostack"].clone();
        assert!(new != admin && right(&cloud, &new).await && !right(&cloud, &admin).await);
    }

    #[tokio::test]
    async fn a_new_public_name_is_in_the_certificate_and_the_catalog() {
        let (cloud, out) = (Cloud::new().await, tempfile::tempdir().unwrap());
        let mut config = cloud.app.config.clone();
        let out = out.path();
        let error = run(config.clone(), options(out, None)).await.unwrap_err().to_string();
        assert!(error.contains("--url"), "{error}");
        run(config.clone(), options(out, Some("https://127.0.0.1:8443"))).await.unwrap();
        config.public = Some("https://cloud.example:9443/".to_owned());
        run(config.clone(), options(out, None)).await.unwrap();
        let named = std::fs::read_to_string(config.state_dir.join("tls/server.names")).unwrap();
        assert!(named.lines().any(|name| name == "cloud.example"), "{named}");
        assert!(named.lines().any(|name| name == "127.0.0.1"), "{named}");
        let urls = names(&cloud, "/identity/v3/endpoints", "endpoints", "url").await;
        assert!(urls.iter().all(|url| url.starts_with("https://cloud.example:9443/")), "{urls:?}");
        let clouds = std::fs::read_to_string(out.join("clouds.yaml")).unwrap();
        assert!(clouds.contains("auth_url: https://cloud.example:9443/identity/v3"), "{clouds}");
        config.public = Some("cloud.example".to_owned());
        assert!(config.check().unwrap_err().contains("https://"));
    }
}
