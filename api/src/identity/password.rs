//! Passwords: argon2id, on the blocking pool, a few at a time.

use api_kit::Fault;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// OWASP's choice with the least memory: 7 MiB, 5 passes, 1 lane.
fn argon2() -> Argon2<'static> {
    let params = Params::new(7168, 5, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Longest password in bytes. Longer ones are refused, not cut.
pub const LONGEST: usize = 4096;

/// Hashes and checks, at most `permits` at a time: a flood of log-ins queues instead of taking all cores and memory.
#[derive(Debug, Clone)]
pub struct Passwords {
    permits: Arc<Semaphore>,
    /// Checked for users that do not exist, so that they take as long as those that do.
    nobody: Arc<str>,
}

impl Passwords {
    /// # Errors
    /// When there are no random bytes.
    pub fn new(permits: usize) -> Result<Self, Fault> {
        let nobody = hash_now("no user has this password")?;
        Ok(Self { permits: Arc::new(Semaphore::new(permits.max(1))), nobody: nobody.into() })
    }

    /// The hash to store.
    ///
    /// # Errors
    /// 400 for one that is too long.
    pub async fn hash(&self, password: &str) -> Result<String, Fault> {
        if password.len() > LONGEST {
            return Err(Fault::bad_request(format!("A password has at most {LONGEST} bytes.")));
        }
        let password = password.to_owned();
        self.run(move || hash_now(&password)).await?
    }

    /// Whether the password is the hash's; always false, but just as slow, without a hash.
    ///
    /// # Errors
    /// When the pool is gone.
    pub async fn check(&self, password: &str, hash: Option<String>) -> Result<bool, Fault> {
        let password = password.to_owned();
        let (known, hash) = match hash {
            Some(hash) if password.len() <= LONGEST => (true, hash),
            Some(_) | None => (false, self.nobody.to_string()),
        };
        let right = self
            .run(move || {
                let bytes = password.as_bytes();
                let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
                PasswordHash::new(&hash).is_ok_and(|hash| argon2().verify_password(bytes, &hash).is_ok())
            })
            .await?;
        Ok(known && right)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let _permit = self.permits.acquire().await.map_err(Fault::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(Fault::internal)
    }
}

fn hash_now(password: &str) -> Result<String, Fault> {
    let salt = super::keys::random::<16>().map_err(Fault::internal)?;
    let salt = SaltString::encode_b64(&salt).map_err(Fault::internal)?;
    argon2().hash_password(password.as_bytes(), &salt).map(|hash| hash.to_string()).map_err(Fault::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_passes() {
        let passwords = Passwords::new(2).unwrap();
        let hash = passwords.hash("secret").await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.check("secret", Some(hash.clone())).await.unwrap());
        assert!(!passwords.check("Secret", Some(hash.clone())).await.unwrap());
        assert!(!passwords.check("no user has this password", None).await.unwrap());
        assert!(!passwords.check(&"x".repeat(LONGEST + 1), Some(hash)).await.unwrap());
        assert!(passwords.hash(&"x".repeat(LONGEST + 1)).await.is_err());
    }
}
