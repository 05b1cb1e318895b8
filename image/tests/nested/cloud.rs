//! The few calls of the public API that the nested test makes, through `curl`: no client of ours that could share a mistake
//! with the server.

use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

/// A session with the cloud.
pub struct Cloud {
    base: String,
    token: String,
    /// Project that the token is for.
    pub project: String,
}

impl Cloud {
    /// Logs in as `name` of `clouds.yaml`, waiting until the cloud answers.
    pub fn log_in(https: u16, clouds: &str, name: &str, limit: Duration) -> Self {
        let section =
            clouds.split(&format!("{name}:\n")).nth(1).unwrap_or_else(|| panic!("no {name} in:\n{clouds}"));
        let field = |key: &str| {
            let line = section.lines().find_map(|line| line.trim().strip_prefix(&format!("{key}:")));
            line.unwrap_or_else(|| panic!("no {key} for {name}")).trim().trim_matches(['"', '\'']).to_owned()
        };
        let auth = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": field("username"), "password": field("password"), "domain": {"id": "default"}}}},
            "scope": {"project": {"name": field("project_name"), "domain": {"id": "default"}}},
        }});
        let mut cloud =
            Self { base: format!("https://127.0.0.1:{https}"), token: String::new(), project: String::new() };
        let deadline = Instant::now() + limit;
        loop {
            let (status, headers, body) = cloud.call("POST", "identity/v3/auth/tokens", Some(&auth));
            if status == 201 {
                let header =
                    headers.lines().find(|line| line.to_ascii_lowercase().starts_with("x-subject-token:"));
                let (_, token) = header.and_then(|line| line.split_once(':')).expect("a token");
                cloud.token = token.trim().to_owned();
                cloud.project = body["token"]["project"]["id"].as_str().expect("a project").to_owned();
                return cloud;
            }
            assert!(Instant::now() < deadline, "no token: {status} {body}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// One request: status (0 when nothing answered), headers, JSON body (null when there is none).
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String, Value) {
        let mut curl = Command::new("curl");
        // The certificate names the address inside, not this forwarded port.
        curl.args([
            "-sSk",
            "-i",
            "--max-time",
            "60",
            "-X",
            method,
            "-H",
            &format!("X-Auth-Token: {}", self.token),
        ]);
        curl.args(["-H", "OpenStack-API-Version: compute 2.1"]);
        if let Some(body) = body {
            curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
        }
        let output = curl.arg(format!("{}/{path}", self.base)).output().expect("curl is installed");
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn get(&self, path: &str) -> Value {
        let (status, _, body) = self.call("GET", path, None);
        assert!(status == 200, "GET {path}: {status} {body}");
        body
    }

    /// Creates.
    pub fn post(&mut self, path: &str, body: &Value) -> Value {
        let (status, _, answer) = self.call("POST", path, Some(body));
        assert!((200..300).contains(&status), "POST {path} {body}: {status} {answer}");
        answer
    }

    /// Deletes.
    pub fn delete(&mut self, path: &str) {
        let (status, _, answer) = self.call("DELETE", path, None);
        assert!((200..300).contains(&status), "DELETE {path}: {status} {answer}");
    }

    /// The text at `pointer` of the answer.
    pub fn first(&self, path: &str, pointer: &str) -> String {
        let body = self.get(path);
        body.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("{path} has no {pointer}: {body}"))
            .to_owned()
    }

    /// The id of what is called `name` in a list.
    pub fn find(&self, path: &str, list: &str, name: &str) -> String {
        let body = self.get(path);
        let found = body[list].as_array().into_iter().flatten().find(|entry| entry["name"] == name);
        let id = found.and_then(|entry| entry["id"].as_str());
        id.unwrap_or_else(|| panic!("{path} has no {name}: {body}")).to_owned()
    }

    /// Waits until the text at `pointer` is `wanted`. The API may be restarting meanwhile.
    pub fn wait(&self, path: &str, pointer: &str, wanted: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let (status, _, body) = self.call("GET", path, None);
            let now = body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            if status == 200 && now == wanted {
                return;
            }
            assert!(
                !now.eq_ignore_ascii_case("error") && Instant::now() < deadline,
                "{path} is not {wanted}: {status} {body}"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until there is no such thing.
    pub fn wait_gone(&self, path: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let (status, _, body) = self.call("GET", path, None);
            if status == 404 {
                return;
            }
            assert!(Instant::now() < deadline, "{path} is still there: {status} {body}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}
