//! Claiming a new box: whoever reads the code on its console gets its credentials, once, over the network.
//!
//! An appliance has no default password and nothing to log in to. At its first start it makes a one-time code and shows it,
//! with the fingerprint of its certificate's key, on its console; `POST /claim` with the code in the body answers with a tar
//! archive of `clouds.yaml`, `openrc` and `ca.pem`. Someone without sight of the console neither knows the code nor can stand
//! between the two, since `curl --pinnedpubkey` checks the fingerprint.

use crate::serve::Trouble;
use crate::tls::{self, Files};
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Largest body that can hold a code.
const BODY: usize = 1024;
/// How long the code may take to arrive, so that nobody occupies connections with codes that never come.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How long the code is still good after it was used first, for an answer that got lost.
const GRACE: Duration = Duration::from_secs(600);

/// The open claim of a box, or none when it has been claimed.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
}

impl Claim {
    /// Offers the box to whoever has the code; makes the code at the first start.
    ///
    /// # Errors
    /// When the state folder cannot be written.
    pub fn open(state_dir: &Path) -> Result<Self, Trouble> {
        let claim = Self { dir: state_dir.to_owned() };
        if claim.claimed().is_none() {
            // At every start: the certificate, and with it the fingerprint, may be another one.
            let code = match claim.code() {
                Some(code) => code,
                None => new_code()?,
            };
            claim.show(&code)?;
        }
        Ok(claim)
    }

    /// Where the console reads code and fingerprint: lines for a shell, for root only.
    fn shown(&self) -> PathBuf {
        self.dir.join("claim")
    }

    fn done(&self) -> PathBuf {
        self.dir.join("claimed")
    }

    fn claimed(&self) -> Option<SystemTime> {
        std::fs::metadata(self.done()).and_then(|meta| meta.modified()).ok()
    }

    fn code(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.shown()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("code=")).map(str::to_owned)
    }

    fn show(&self, code: &str) -> Result<(), Trouble> {
        let pin = Files::new(&self.dir).pin()?;
        tls::write(&self.shown(), &format!("code={code}\npin={pin}\n"), 0o600)?;
        Ok(())
    }

    /// Answers `POST /claim`.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if request.method() != axum::http::Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "send the code by POST: curl -d CODE .../claim");
        }
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        let body = match tokio::time::timeout(ARRIVAL, Limited::new(request.into_body(), BODY).collect())
            .await
        {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is the code alone"),
            Err(_) => {
                return text(StatusCode::REQUEST_TIMEOUT, "the code did not arrive in time; send it again");
            }
        };
        let body = body.to_bytes();
        let given = String::from_utf8_lossy(&body);
        let given = given.trim().trim_start_matches("code=");
        // A clock that was set back makes it over, too.
        let over = self.claimed().is_some_and(|at| !at.elapsed().is_ok_and(|passed| passed <= GRACE));
        let Some(code) = self.code().filter(|_| !over) else {
            let _ = std::fs::remove_file(self.shown());
            return text(
                StatusCode::GONE,
                "this box has been claimed; docs/operations.md says how whoever holds its disk claims it again",
            );
        };
        // Nothing slows guesses down: for almost 60 random bits nobody has the time, and a penalty could keep the owner out.
        if !same(&code, given) {
            return text(StatusCode::FORBIDDEN, "this is not the code that the console shows");
        }
        match self.archive(host.as_deref()) {
            Ok(archive) => {
                if self.claimed().is_none()
                    && let Err(error) = tls::write(&self.done(), "", 0o600)
                {
                    tracing::error!(%error, "the claim could not be recorded");
                    return text(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "the claim could not be recorded; try again",
                    );
                }
                tracing::info!("the box was claimed");
                let mut response = Response::new(Body::from(archive));
                let kind = HeaderValue::from_static("application/x-tar");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            Err(error) => {
                tracing::error!(%error, "the credentials could not be packed");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the credentials could not be read; see the box's log",
                )
            }
        }
    }

    /// The files of a client, for the address by which this one came when the certificate names it.
    fn archive(&self, host: Option<&str>) -> std::io::Result<Vec<u8>> {
        let ca = Files::new(&self.dir).ca();
        let names = Files::new(&self.dir).names();
        let local = |name: &str| -> std::io::Result<String> {
            let text = std::fs::read_to_string(self.dir.join(name))?;
            let text = text.replace(&*self.dir.join("ca.pem").to_string_lossy(), "ca.pem");
            Ok(match host.filter(|host| is_one_of(host, &names)) {
                Some(host) => with_host(&text, host),
                None => text,
            })
        };
        let mut archive = tar::Builder::new(Vec::new());
        for (name, mode, content) in [
            ("clouds.yaml", 0o600, local("clouds.yaml")?),
            ("openrc", 0o600, local("openrc")?),
            ("ca.pem", 0o644, std::fs::read_to_string(ca)?),
        ] {
            let mut head = tar::Header::new_ustar();
            head.set_mode(mode);
            head.set_size(content.len() as u64);
            head.set_mtime(
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |at| at.as_secs()),
            );
            archive.append_data(&mut head, name, content.as_bytes())?;
        }
        archive.into_inner()
    }
}

fn is_one_of(host: &str, names: &BTreeSet<String>) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    names.contains(authority.host().trim_start_matches('[').trim_end_matches(']'))
}

/// `text` with `host` in every `https://HOST/identity`.
fn with_host(text: &str, host: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("https://") {
        out.push_str(before);
        out.push_str("https://");
        rest = match after.find("/identity") {
            Some(end) if !after[..end].contains(char::is_whitespace) => {
                out.push_str(host);
                &after[end..]
            }
            Some(_) | None => after,
        };
    }
    out.push_str(rest);
    out
}

/// Compares without telling by its time where the difference is. Case and dashes do not count: people type this.
fn same(code: &str, given: &str) -> bool {
    let plain = |text: &str| {
        Sha256::digest(
            text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase(),
        )
    };
    plain(code) == plain(given)
}

/// Almost 60 random bits as `xxxx-xxxx-xxxx`, without letters and digits that look like others.
fn new_code() -> Result<String, Trouble> {
    const LETTERS: &[u8; 31] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let bytes = crate::identity::keys::random::<12>()?;
    let letters: Vec<char> = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 31)])).collect();
    Ok(letters.chunks(4).map(|part| part.iter().collect::<String>()).collect::<Vec<_>>().join("-"))
}

fn text(status: StatusCode, sentence: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{sentence}\n")));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_box() -> (tempfile::TempDir, Claim) {
        let dir = tempfile::tempdir().unwrap();
        let names = ["localhost", "127.0.0.1"].into_iter().map(str::to_owned).collect();
        Files::new(dir.path()).ensure(&names).unwrap();
        let ca = dir.path().join("ca.pem").display().to_string();
        let clouds =
            format!("clouds:\n  a:\n    auth_url: https://10.0.2.15:443/identity/v3\n    cacert: {ca}\n");
        std::fs::write(dir.path().join("clouds.yaml"), clouds).unwrap();
        std::fs::write(dir.path().join("openrc"), "export OS_AUTH_URL=https://10.0.2.15:443/identity/v3\n")
            .unwrap();
        let claim = Claim::open(dir.path()).unwrap();
        (dir, claim)
    }

    async fn ask(claim: &Claim, host: &str, code: &str) -> (StatusCode, Vec<u8>) {
        let request = Request::post("/claim").header("host", host).body(Body::from(code.to_owned())).unwrap();
        let response = claim.answer(request).await;
        (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    fn files(archive: &[u8]) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries
            .map(|mut entry| {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect()
    }

    #[tokio::test]
    async fn who_reads_the_code_gets_the_credentials_for_the_address_it_used_and_nobody_later() {
        let (dir, claim) = new_box();
        let code = claim.code().unwrap();
        assert_eq!(ask(&claim, "127.0.0.1:9443", "code=nothing").await.0, StatusCode::FORBIDDEN);
        assert_eq!(ask(&claim, "127.0.0.1:9443", "").await.0, StatusCode::FORBIDDEN);
        let huge = "x".repeat(BODY + 1);
        assert_eq!(ask(&claim, "127.0.0.1:9443", &huge).await.0, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(claim.claimed().is_none());

        let typed = code.to_uppercase().replace('-', " ");
        let (status, archive) = ask(&claim, "127.0.0.1:9443", &typed).await;
        assert_eq!(status, StatusCode::OK);
        let files = files(&archive);
        let named: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, ["clouds.yaml", "openrc", "ca.pem"]);
        let wanted = "clouds:\n  a:\n    auth_url: https://127.0.0.1:9443/identity/v3\n    cacert: ca.pem\n";
        assert_eq!(files[0].1, wanted);
        assert!(files[2].1.contains("BEGIN CERTIFICATE"));

        // The answer may have got lost; a restart changes nothing about that.
        let again = Claim::open(dir.path()).unwrap();
        let (status, archive) = ask(&again, "evil.example", &code).await;
        assert_eq!(status, StatusCode::OK);
        assert!(!String::from_utf8_lossy(&archive).contains("evil.example"));

        let past = SystemTime::now() - GRACE - Duration::from_secs(1);
        std::fs::File::options().write(true).open(claim.done()).unwrap().set_modified(past).unwrap();
        assert_eq!(ask(&again, "127.0.0.1", &code).await.0, StatusCode::GONE);
        assert!(again.code().is_none(), "the console stops showing it");
        assert!(Claim::open(dir.path()).unwrap().code().is_none());
    }
}
