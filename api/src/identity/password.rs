//! Passwords: argon2id, on the blocking pool, a few at a time.

use api_kit::Fault;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::http::header;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// OWASP's choice with the least memory: 7 MiB, 5 passes, 1 lane.
fn argon2() -> Argon2<'static> {
    let params = Params::new(7168, 5, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Longest password in bytes. Longer ones are refused, not cut.
pub const LONGEST: usize = 4096;

/// Log-ins that wait for their turn; more are sent away.
const QUEUE: usize = 512;

/// Hashes and checks, at most `permits` at a time: a flood of log-ins queues instead of taking all cores and memory, and
/// the queue is bounded too.
#[derive(Debug, Clone)]
pub struct Passwords {
    permits: Arc<Semaphore>,
    places: Arc<Semaphore>,
    done: Arc<AtomicU64>,
    /// Checked for users that do not exist, so that they take as long as those that do.
    nobody: Arc<str>,
}

impl Passwords {
    /// # Errors
    /// When there are no random bytes.
    pub fn new(permits: usize) -> Result<Self, Fault> {
        let nobody = hash_now("no user has this password")?;
        let permits = permits.max(1);
        Ok(Self {
            permits: Arc::new(Semaphore::new(permits)),
            places: Arc::new(Semaphore::new(permits + QUEUE)),
            done: Arc::default(),
            nobody: nobody.into(),
        })
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

    /// How many hashes were computed.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let _place = self.places.try_acquire().map_err(|_| {
            Fault::unavailable("Too many log-ins at the same time. Try again.")
                .header(header::RETRY_AFTER, "5")
        })?;
        let permit = self.permits.clone().acquire_owned().await.map_err(Fault::internal)?;
        let done = self.done.clone();
        // The permit goes with the work: a client that hangs up does not end the hashing, and must not make room for more.
        let work = move || {
            let _permit = permit;
            done.fetch_add(1, Ordering::Relaxed);
            work()
        };
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

    #[tokio::test]
    async fn a_client_that_hangs_up_makes_no_room_and_the_queue_is_bounded() {
        let passwords = Passwords::new(1).unwrap();
        let (start, started) = std::sync::mpsc::channel::<()>();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = move || {
            start.send(()).unwrap();
            ended.recv().unwrap();
        };
        let mut first = Box::pin(passwords.run(work));
        assert!(futures::poll!(&mut first).is_pending());
        tokio::task::spawn_blocking(move || started.recv().unwrap()).await.unwrap();
        drop(first);
        assert_eq!(passwords.permits.available_permits(), 0, "the hash still runs");
        let mut waiting = Vec::new();
        for _ in 0..=QUEUE {
            let mut one = Box::pin(passwords.run(|| ()));
            assert!(futures::poll!(&mut one).is_pending());
            waiting.push(one);
        }
        assert_eq!(passwords.run(|| ()).await.unwrap_err().status, 503);
        end.send(()).unwrap();
        for one in waiting {
            one.await.unwrap();
        }
    }
}
