//! The keys that tokens are sealed with: files `1`, `2`, ... in one folder. The highest seals, all open; a key is
//! removed when no token that it sealed can still be good.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a nonce. They are random: 192 bits make a repetition impossible in practice.
const NONCE: usize = 24;
/// Names what a sealed text is for, so that it is good for nothing else.
const PURPOSE: &[u8] = b"ferrostack token v1";

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The folder or a file.
    #[error(
        "cannot use the token keys in {path}: {source}; the folder must be owned by the user that runs the API, with mode 0700"
    )]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold a key.
    #[error(
        "{0} does not hold a token key of 32 bytes; restore it from a backup, or remove it (tokens that it sealed end)"
    )]
    Broken(PathBuf),
    /// The kernel gave no random bytes.
    #[error("the kernel gives no random bytes: {0}")]
    Random(String),
}

/// The keys that were read.
pub struct Keys {
    ring: BTreeMap<u32, XChaCha20Poly1305>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.ring.keys()).finish()
    }
}

/// Random bytes from the kernel.
///
/// # Errors
/// When it gives none.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(|error| KeyError::Random(error.to_string()))?;
    Ok(bytes)
}

impl Keys {
    /// Reads the folder, making it with a first key when there is none.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| KeyError::Io { path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let mut ring = BTreeMap::new();
        for (number, path) in files(dir)? {
            let bytes = std::fs::read(&path).map_err(io(&path))?;
            let key: [u8; KEY] = bytes.try_into().map_err(|_| KeyError::Broken(path))?;
            ring.insert(number, XChaCha20Poly1305::new(&key.into()));
        }
        if ring.is_empty() {
            add(dir, 1)?;
            return Self::open(dir);
        }
        Ok(Self { ring })
    }

    /// Adds a key when the newest is older than `every`, and removes those that cannot be needed any more. True when
    /// something changed.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn rotate(dir: &Path, every: Duration, token_life: Duration) -> Result<bool, KeyError> {
        let age = |path: &Path| {
            let changed = std::fs::metadata(path).and_then(|meta| meta.modified());
            changed
                .map(|at| SystemTime::now().duration_since(at).unwrap_or_default())
                .map_err(|source| KeyError::Io { path: path.to_owned(), source })
        };
        let all = files(dir)?;
        let mut changed = false;
        if let Some((newest, path)) = all.last_key_value()
            && age(path)? > every
        {
            add(dir, newest.saturating_add(1))?;
            changed = true;
        }
        // A key sealed until its successor was made.
        for (path, successor) in all.values().zip(all.values().skip(1)) {
            if age(successor)? > token_life + Duration::from_secs(3600) {
                std::fs::remove_file(path).map_err(|source| KeyError::Io { path: path.clone(), source })?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Seals with the newest key.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let nonce = random::<NONCE>()?;
        let (number, cipher) =
            self.ring.last_key_value().ok_or_else(|| KeyError::Random("no key".to_owned()))?;
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: PURPOSE })
            .map_err(|_| KeyError::Random("the text is too long to be sealed".to_owned()))?;
        let mut out = number.to_be_bytes().to_vec();
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens what any of the keys sealed; `None` when none of them did.
    #[must_use]
    pub fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (number, rest) = sealed.split_first_chunk::<4>()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE>()?;
        let cipher = self.ring.get(&u32::from_be_bytes(*number))?;
        cipher.decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: PURPOSE }).ok()
    }
}

fn files(dir: &Path) -> Result<BTreeMap<u32, PathBuf>, KeyError> {
    let entries = std::fs::read_dir(dir).map_err(|source| KeyError::Io { path: dir.to_owned(), source })?;
    Ok(entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
        .collect())
}

/// Whole or not at all: written aside, synced, linked to its name. Another process that made the same is left alone.
fn add(dir: &Path, number: u32) -> Result<(), KeyError> {
    let key = random::<KEY>()?;
    let path = dir.join(number.to_string());
    let aside = dir.join(format!(".{number}.{}", std::process::id()));
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&key)?;
        file.sync_all()?;
        let linked = std::fs::hard_link(&aside, &path);
        std::fs::remove_file(&aside)?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => std::fs::File::open(dir)?.sync_all(),
        }
    };
    write().map_err(|source| KeyError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_until_its_key_is_gone_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        let keys = Keys::open(&dir).unwrap();
        let sealed = keys.seal(b"who").unwrap();
        assert_eq!(keys.unseal(&sealed).as_deref(), Some(&b"who"[..]));
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            assert_eq!(keys.unseal(&forged), None, "byte {at}");
        }
        assert_eq!(keys.unseal(&sealed[..20]), None);

        assert!(!Keys::rotate(&dir, Duration::from_secs(60), Duration::ZERO).unwrap());
        let old = |name: &str, hours: u64| {
            let file = std::fs::File::options().write(true).open(dir.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        };
        old("1", 9);
        assert!(Keys::rotate(&dir, Duration::from_secs(3600), Duration::from_secs(3600)).unwrap());
        let keys = Keys::open(&dir).unwrap();
        assert!(keys.unseal(&sealed).is_some(), "the old key opens as long as tokens live");
        assert_eq!(&keys.seal(b"x").unwrap()[..4], [0, 0, 0, 2], "the new key seals");
        old("2", 3);
        assert!(Keys::rotate(&dir, Duration::from_secs(36000), Duration::from_secs(3600)).unwrap());
        assert!(Keys::open(&dir).unwrap().unseal(&sealed).is_none());
    }

    #[test]
    fn a_broken_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1"), "short").unwrap();
        assert!(Keys::open(dir.path()).unwrap_err().to_string().contains("32 bytes"));
    }
}
