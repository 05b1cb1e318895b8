//! The box's own CA and the server certificate it signs. Clients trust the CA's certificate, which bootstrap gives them;
//! the CA's key never leaves this folder.

use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::Digest;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_rustls::TlsAcceptor;

/// Days that a server certificate is good for: what browsers accept at most.
const SERVER_DAYS: i64 = 825;
/// It is made anew this long before its end.
const RENEW: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error(
        "cannot use {path}: {source}; run 'api bootstrap', and see that the user that runs the API owns the folder"
    )]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or key could not be made or understood.
    #[error(
        "cannot use the certificate in {path}: {why}; remove it and run 'api bootstrap' to have a new one"
    )]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Those in the state folder.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("tls") }
    }

    /// The CA's certificate, for clients.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Names and addresses that the server certificate is good for.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(self.at("server.names")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The SHA-256 of the server's public key, as curl's `--pinnedpubkey` takes it (RFC 7469, section 2.4).
    ///
    /// # Errors
    /// When there is no server certificate yet.
    pub fn pin(&self) -> Result<String, TlsError> {
        use rcgen::PublicKeyData;
        let path = self.at("server.key");
        let key = KeyPair::from_pem(&read(&path)?)
            .map_err(|why| TlsError::Certificate { path, why: why.to_string() })?;
        let digest = sha2::Sha256::digest(key.subject_public_key_info());
        Ok(format!("sha256//{}", base64::engine::general_purpose::STANDARD.encode(digest)))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the CA when there is none, and the server certificate when there is none, it is near its end, or it does not
    /// name all of `names`.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn ensure(&self, names: &BTreeSet<String>) -> Result<(), TlsError> {
        std::fs::create_dir_all(&self.dir)
            .map_err(|source| TlsError::Io { path: self.dir.clone(), source })?;
        self.ensure_ca()?;
        let wanted: String = names.iter().map(|name| format!("{name}\n")).collect();
        let (cert, named) = (self.at("server.pem"), self.at("server.names"));
        let fresh = std::fs::metadata(&cert).and_then(|meta| meta.modified()).is_ok_and(|made| {
            let age = SystemTime::now().duration_since(made).unwrap_or_default();
            let life = Duration::from_secs(u64::try_from(SERVER_DAYS).unwrap_or(0) * 24 * 3600);
            age + RENEW < life
        });
        if fresh && std::fs::read_to_string(&named).is_ok_and(|have| have == wanted) {
            return Ok(());
        }
        let ca = read(&self.ca())?;
        let broken = |why: rcgen::Error| TlsError::Certificate { path: self.ca(), why: why.to_string() };
        let key = KeyPair::from_pem(&read(&self.at("ca.key"))?).map_err(broken)?;
        let issuer = Issuer::from_ca_cert_pem(&ca, key).map_err(broken)?;
        let (server, key) = make_server(names, &issuer)
            .map_err(|why| TlsError::Certificate { path: cert.clone(), why: why.to_string() })?;
        // The key goes first and the list of names last: a crash in between makes all of them anew.
        let _ = std::fs::remove_file(&named);
        write(&self.at("server.key"), &key, 0o600)?;
        write(&cert, &format!("{server}{ca}"), 0o644)?;
        write(&named, &wanted, 0o644)
    }

    fn ensure_ca(&self) -> Result<(), TlsError> {
        if self.ca().exists() && self.at("ca.key").exists() {
            return Ok(());
        }
        let (cert, key) =
            make_ca().map_err(|why| TlsError::Certificate { path: self.ca(), why: why.to_string() })?;
        // The certificate goes last: without it everything is made anew.
        let _ = std::fs::remove_file(self.ca());
        write(&self.at("ca.key"), &key, 0o600)?;
        write(&self.ca(), &cert, 0o644)
    }

    /// What accepts connections with the server certificate.
    ///
    /// # Errors
    /// When the files are not there or do not fit together.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let path = self.at("server.pem");
        let bad = |why: String| TlsError::Certificate { path: path.clone(), why };
        let certs: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(read(&path)?.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| bad(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(read(&self.at("server.key"))?.as_bytes())
            .map_err(|error| bad(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(certs, key)
            .map_err(|error| bad(error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn read(path: &Path) -> Result<String, TlsError> {
    std::fs::read_to_string(path).map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

/// Writes a file whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let work = || {
        let _ = std::fs::remove_file(&aside);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)?;
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    work().map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Ferrostack");
    name.push(DnType::CommonName, common);
    name
}

fn lasting(params: &mut CertificateParams, days: i64) {
    // A day back, for clients whose clock is behind.
    let now = jiff::Zoned::now();
    let date = |days: i64| {
        let at = now.checked_add(jiff::Span::new().days(days)).unwrap_or_else(|_| now.clone());
        let month = u8::try_from(at.month()).unwrap_or(1);
        let day = u8::try_from(at.day()).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(at.year()), month, day)
    };
    params.not_before = date(-1);
    params.not_after = date(days);
}

fn make_ca() -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Ferrostack CA {}", uuid::Uuid::new_v4().simple()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasting(&mut params, 3650);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn make_server(
    names: &BTreeSet<String>,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Ferrostack API");
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    lasting(&mut params, SERVER_DAYS);
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// Names and addresses that clients on this machine or its networks may use.
#[must_use]
pub fn own_names() -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            names.insert(v4.ip().to_string());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            // Link-local addresses need a zone, which no certificate can carry.
            if !v6.ip().is_unicast_link_local() {
                names.insert(v6.ip().to_string());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_follows_the_names_and_the_ca_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let error = files.acceptor().err().unwrap().to_string();
        assert!(error.contains("api bootstrap"), "{error}");
        files.ensure(&names(&["localhost", "127.0.0.1"])).unwrap();
        files.acceptor().unwrap();
        let (ca, server) = (read(&files.ca()).unwrap(), read(&files.at("server.pem")).unwrap());
        files.ensure(&names(&["localhost", "127.0.0.1"])).unwrap();
        assert_eq!(read(&files.at("server.pem")).unwrap(), server);
        files.ensure(&names(&["localhost", "10.0.0.1"])).unwrap();
        assert_eq!(read(&files.ca()).unwrap(), ca);
        assert_ne!(read(&files.at("server.pem")).unwrap(), server);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(files.at("ca.key")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
