//! Databases for tests: each test gets an empty one of each engine.
//!
//! PostgreSQL is Debian's, started for the test process on a unix socket in a temporary folder and stopped with it.

use super::Store;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A store with what keeps it alive.
pub struct TestStore {
    /// The store.
    pub store: Store,
    /// Its URL, for opening it a second time.
    pub url: String,
    _dir: tempfile::TempDir,
    _server: Option<Server>,
}

// With a Drop of its own, an `async move` block that only uses `db.store` still owns the whole, folder and server
// included (edition 2021 and later capture field by field otherwise).
impl Drop for TestStore {
    fn drop(&mut self) {}
}

/// An empty SQLite store.
///
/// # Panics
/// When it cannot be made.
#[allow(clippy::expect_used)]
pub async fn sqlite() -> TestStore {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}", dir.path().join("test.db").display());
    let store = Store::open(&url).await.expect("SQLite opens");
    TestStore { store, url, _dir: dir, _server: None }
}

/// An empty PostgreSQL store, in a server of its own.
///
/// # Panics
/// When PostgreSQL is not installed (Debian: `postgresql`) or does not start.
#[allow(clippy::expect_used)]
pub async fn postgres() -> TestStore {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(dir.path());
    let url = format!("postgres://ferro@localhost/postgres?host={}", dir.path().display());
    let store = Store::open(&url).await.expect("PostgreSQL answers");
    TestStore { store, url, _dir: dir, _server: Some(server) }
}

/// Runs the test on both engines: `on_both(|db| async move { ... }).await`.
pub async fn on_both<F, Fut>(test: F)
where
    F: Fn(TestStore) -> Fut,
    Fut: Future<Output = ()>,
{
    test(sqlite().await).await;
    test(postgres().await).await;
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown: nothing in it is worth a checkpoint.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGQUIT);
        }
        let _ = self.0.wait();
    }
}

impl Server {
    #[allow(clippy::expect_used, clippy::panic)]
    fn start(dir: &Path) -> Self {
        let bin = binaries();
        // PostgreSQL refuses to run as root: Debian's package brings the user for it.
        let root = nix::unistd::geteuid().is_root();
        if root {
            let user =
                nix::unistd::User::from_name("postgres").ok().flatten().expect("the user 'postgres' exists");
            nix::unistd::chown(dir, Some(user.uid), Some(user.gid)).expect("chown");
        }
        let as_user = |program: &str| {
            let mut command = if root {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=QUIT"]);
                command.arg(bin.join(program));
                command
            } else {
                Command::new(bin.join(program))
            };
            command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let data = dir.join("pg");
        let made = as_user("initdb")
            .args(["--auth=trust", "--username=ferro", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .status()
            .expect("initdb runs");
        assert!(made.success(), "initdb failed");
        let child = as_user("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "shared_buffers=16MB",
                "-c",
                "max_connections=40",
            ])
            .spawn()
            .expect("postgres starts");
        let server = Self(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(dir.join(".s.PGSQL.5432")).is_err() {
            assert!(Instant::now() < deadline, "postgres did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

#[allow(clippy::panic)]
fn binaries() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin"))).collect())
        .unwrap_or_default();
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("PostgreSQL is not installed: apt-get install postgresql"))
}
