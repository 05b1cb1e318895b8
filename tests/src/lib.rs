//! What black-box tests share: an instance of the whole system made by `./ferro up`, driven by the unmodified client.
//!
//! Everything made here is taken down again, also when a test fails.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    // As the test runner says, not the compiler: several checkouts may share one target folder.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().unwrap_or(Path::new("/")).to_owned()
}

/// The cache folder that the test command prepared: client, guest image.
#[must_use]
pub fn cache() -> PathBuf {
    std::env::var_os("FERRO_CACHE").map_or_else(|| PathBuf::from("/var/cache/ferrostack"), PathBuf::from)
}

/// Tries until it holds or the time is up; the last trouble is the error.
///
/// # Errors
/// The last trouble.
pub fn eventually<T>(within: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + within;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(trouble) if Instant::now() > deadline => return Err(format!("after {within:?}: {trouble}")),
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

/// One instance of Ferrostack on this machine.
#[derive(Debug)]
pub struct Instance {
    data: PathBuf,
    port: u16,
    variables: Vec<(&'static str, String)>,
}

impl Instance {
    /// Brings one up in a new folder on a free port.
    ///
    /// # Errors
    /// What `ferro up` said.
    pub fn up(name: &str) -> Result<Self, String> {
        Self::up_with(name, &[])
    }

    /// Brings one up with variables of `ferro` set (`FERRO_POOL_SIZE`, ...).
    ///
    /// # Errors
    /// What `ferro up` said.
    pub fn up_with(name: &str, variables: &[(&'static str, String)]) -> Result<Self, String> {
        let data = PathBuf::from(format!("/var/lib/ferrostack-{name}-{}", std::process::id()));
        let instance = Self { data, port: free_port()?, variables: variables.to_vec() };
        instance.ferro("up")?;
        Ok(instance)
    }

    /// Runs `./ferro COMMAND` for this instance.
    ///
    /// # Errors
    /// What it said, when it did not succeed.
    pub fn ferro(&self, command: &str) -> Result<String, String> {
        let mut ferro = Command::new(root().join("ferro"));
        ferro.args([command, "--data"]).arg(&self.data).envs(self.variables.iter().cloned());
        if command == "up" {
            ferro.args(["--port", &self.port.to_string()]);
        }
        finished(&mut ferro)
    }

    /// The folder of the instance.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The HTTPS port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of one of its daemons.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self, daemon: &str) -> Result<i32, String> {
        let file = self.data.join("pids").join(daemon);
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        text.trim().parse().map_err(|error| format!("{}: {error}", file.display()))
    }

    /// A client of the demo project.
    #[must_use]
    pub fn demo(&self) -> Client {
        self.client("ferrostack-demo")
    }

    /// A client of the administrator.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.client("ferrostack")
    }

    fn client(&self, cloud: &'static str) -> Client {
        Client { config: self.data.join("clouds.yaml"), cloud }
    }

    /// Sends a request with `curl` and returns status and body. `arguments` are curl's.
    ///
    /// # Errors
    /// When no answer came.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> Result<(u16, String), String> {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "120", "-w", "\n%{http_code}", "--cacert"])
            .arg(self.data.join("ca.pem"));
        curl.args(arguments).arg(format!("https://127.0.0.1:{}{path}", self.port));
        let output = curl.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').ok_or("curl printed nothing")?;
        Ok((status.parse().map_err(|error| format!("{status}: {error}"))?, body.to_owned()))
    }

    /// What the kernel still has of this instance: namespaces, links, tables, mounts, loop devices, processes.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn leftovers(&self, tag: &str) -> Result<Vec<String>, String> {
        let data = self.data.display().to_string();
        let mut left = Vec::new();
        let mut look = |what: &str, program: &str, arguments: &[&str], needle: &str| -> Result<(), String> {
            let output = finished(Command::new(program).args(arguments))?;
            left.extend(
                output.lines().filter(|line| line.contains(needle)).map(|line| format!("{what}: {line}")),
            );
            Ok(())
        };
        look("namespace", "ip", &["netns", "list"], &format!("-{tag}-"))?;
        look("link", "ip", &["-o", "link"], tag)?;
        look("table", "nft", &["list", "tables"], tag)?;
        look("mount", "cat", &["/proc/mounts"], &data)?;
        look("loop device", "losetup", &["-a"], &data)?;
        look("process", "ps", &["-eo", "args"], &format!("{data}/bin/"))?;
        Ok(left)
    }

    /// The instance's tag in names of kernel objects.
    ///
    /// # Errors
    /// When its folder has no instance file.
    pub fn tag(&self) -> Result<String, String> {
        let text =
            std::fs::read_to_string(self.data.join("etc/instance")).map_err(|error| error.to_string())?;
        let tag = text.lines().find_map(|line| line.strip_prefix("INSTANCE="));
        tag.map(str::to_owned).ok_or_else(|| "no INSTANCE line".to_owned())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in ["api", "hostd", "netd", "blockd"] {
                let log =
                    std::fs::read_to_string(self.data.join(format!("log/{daemon}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"INFO\"")).collect();
                eprintln!(
                    "--- end of {daemon}'s log\n{}",
                    lines[lines.len().saturating_sub(25)..].join("\n")
                );
            }
        }
        let mut ferro = Command::new(root().join("ferro"));
        let _ = finished(ferro.args(["down", "--purge", "--data"]).arg(&self.data));
    }
}

/// The `openstack` client with one set of credentials.
#[derive(Debug, Clone)]
pub struct Client {
    config: PathBuf,
    cloud: &'static str,
}

impl Client {
    /// Runs a command and returns its standard output.
    ///
    /// # Errors
    /// What the client said.
    pub fn text(&self, command: &str) -> Result<String, String> {
        self.run(command, &[])
    }

    /// Runs a command with `-f json` and decodes what it prints.
    ///
    /// # Errors
    /// What the client said.
    pub fn json(&self, command: &str) -> Result<Value, String> {
        let text = self.run(command, &["-f", "json"])?;
        serde_json::from_str(&text).map_err(|error| format!("openstack {command}: {error}: {text}"))
    }

    /// Runs a command and returns one field of the resource that it prints.
    ///
    /// # Errors
    /// What the client said, or that there is no such field.
    pub fn field(&self, command: &str, field: &str) -> Result<String, String> {
        let value = self.json(command)?;
        match value.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Ok(other.to_string()),
            None => Err(format!("openstack {command}: no '{field}' in {value}")),
        }
    }

    fn run(&self, command: &str, more: &[&str]) -> Result<String, String> {
        let mut client = Command::new(cache().join("client/bin/openstack"));
        client.env("OS_CLIENT_CONFIG_FILE", &self.config).env("OS_CLOUD", self.cloud);
        client.args(command.split_whitespace()).args(more);
        finished(&mut client)
    }
}

/// Runs a command on a guest over SSH.
///
/// # Errors
/// What `ssh` said.
pub fn ssh(key: &Path, address: &str, command: &str) -> Result<String, String> {
    let mut ssh = Command::new("ssh");
    ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]);
    ssh.args(["-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "-i"]).arg(key);
    ssh.arg(format!("ferro@{address}")).arg(command);
    finished(&mut ssh)
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// Its name, exit status and what it wrote, when it did not succeed.
pub fn finished(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let (out, err) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(out) } else { Err(format!("{command:?}: {status}\n{out}\n{err}")) }
}

fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    Ok(listener.local_addr().map_err(|error| error.to_string())?.port())
}
