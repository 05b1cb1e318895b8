//! A pool and a daemon of the test's own; both vanish on drop.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use axum::http::Request;
use base::rpc::Client;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::block::BlobInfo;
use wire::cloud::{Ground, Warrant};
use wire::fd::{FdReply, FdRequest};
use wire::ids::{BlobId, CloudId};
use wire::{Health, Refused};

const BLOCKD: &str = env!("CARGO_BIN_EXE_blockd");

/// The word of the cloud that the tests play.
pub fn ours() -> Warrant {
    Warrant { cloud: CloudId(uuid::Uuid::from_u128(1)), ground: Ground::Asked }
}

/// A directory with a mounted pool.
pub struct Lab {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Lab {
    /// With an XFS pool of 400 MiB (sparse).
    pub fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), mounted: true };
        for _ in 0..2 {
            // Twice: it is idempotent.
            let output = Command::new(BLOCKD)
                .args(["pool-mount", "--size", "400M", "--file"])
                .arg(lab.dir.path().join("pool.xfs"))
                .arg("--dir")
                .arg(lab.dir.path().join("pool"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        lab
    }

    /// On the file system that the temporary directory is on.
    pub fn without_mount() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), mounted: false };
        std::fs::create_dir(lab.dir.path().join("pool")).unwrap();
        lab
    }

    /// A path in the pool; names that begin with `tmp-` are the test's own files beside it.
    pub fn path(&self, name: &str) -> String {
        let base =
            if name.starts_with("tmp-") { self.dir.path().to_owned() } else { self.dir.path().join("pool") };
        base.join(name).to_str().unwrap().to_owned()
    }

    /// The daemon's configuration file, once it was started.
    pub fn config(&self) -> String {
        self.dir.path().join("blockd.toml").to_str().unwrap().to_owned()
    }

    pub fn qemu_img(&self, arguments: &[&str]) {
        let output =
            Command::new("qemu-img").args(arguments).output().expect("qemu-img (package qemu-utils)");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }

    pub fn leftovers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("tmp/")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    pub async fn settle(&self, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < deadline, "it does not settle");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn start(&self) -> Daemon {
        self.start_with("").await
    }

    pub async fn start_with(&self, more: &str) -> Daemon {
        self.launch(more, None).await
    }

    /// Dies at this point of making something.
    pub async fn start_crashing(&self, at: u32) -> Daemon {
        self.launch("", Some(at)).await
    }

    pub fn start_and_fail(&self) -> String {
        let output = self.command("", None).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn command(&self, more: &str, crash: Option<u32>) -> Command {
        let config = self.config();
        let run = self.dir.path().display();
        let text = format!(
            "pool_dir = '{run}/pool'\nrun_dir = '{run}'\n{more}[limits]\nreserve_bytes = 33554432\nconversion_secs = 30\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(BLOCKD);
        command.arg("--config").arg(config).env("RUST_LOG", "error");
        if let Some(at) = crash {
            command.env("BLOCKD_CRASH_AT", at.to_string());
        }
        command
    }

    async fn launch(&self, more: &str, crash: Option<u32>) -> Daemon {
        let child = self.command(more, crash).stdin(Stdio::null()).spawn().unwrap();
        let daemon = Daemon {
            child,
            client: Client::new(self.dir.path().join("blockd.sock")),
            files: self.dir.path().join("blockd.fd.sock"),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while daemon.client.call(&Health {}).await.is_err() {
            assert!(Instant::now() < deadline, "blockd does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.mounted {
            let pool = self.dir.path().join("pool");
            let output = Command::new(BLOCKD).arg("pool-unmount").arg("--dir").arg(pool).output();
            let clean = output.as_ref().is_ok_and(|output| output.status.success());
            if !clean && !std::thread::panicking() {
                panic!("cannot unmount: {output:?}");
            }
            let left = Command::new("losetup").arg("-j").arg(self.dir.path().join("pool.xfs")).output();
            let left = left.map(|output| output.stdout).unwrap_or_default();
            if !left.is_empty() && !std::thread::panicking() {
                panic!("a loop device is left: {}", String::from_utf8_lossy(&left));
            }
        }
    }
}

/// A running daemon, killed on drop.
pub struct Daemon {
    child: Child,
    pub client: Client,
    files: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub async fn put(&self, id: BlobId, content: Vec<u8>, sha512: bool) -> Result<BlobInfo, Refused> {
        let query = if sha512 { "?sha512=1" } else { "" };
        let request = Request::put(format!("/v1/blob/{id}{query}"));
        let answer = self.client.send(request, Body::from(content)).await?;
        let bytes = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| Refused::internal(error.to_string()))
    }

    /// Says that `length` bytes come.
    pub async fn put_announced(&self, id: BlobId, length: u64) -> Result<(), Refused> {
        let request = Request::put(format!("/v1/blob/{id}")).header("content-length", length);
        let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![1u8; 4096])));
        self.client.send(request, Body::from_stream(pieces)).await.map(drop)
    }

    /// Sends until it is refused.
    pub async fn put_endless(&self, id: BlobId) -> Result<(), Refused> {
        let request = Request::put(format!("/v1/blob/{id}"));
        let piece = Bytes::from(random(1 << 20));
        let pieces = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        self.client.send(request, Body::from_stream(pieces)).await.map(drop)
    }

    /// Breaks off in the middle.
    pub async fn put_cut(&self, id: BlobId) {
        let request = Request::put(format!("/v1/blob/{id}")).header("content-length", 10_000_000);
        let pieces = futures::stream::repeat_with(|| Ok(Bytes::from(vec![1u8; 4096])))
            .take(50)
            .chain(futures::stream::iter([Err(std::io::Error::other("gone"))]));
        assert!(self.client.send(request, Body::from_stream(pieces)).await.is_err());
    }

    /// Reads a blob's file, which must not be writable.
    pub fn get(&self, id: BlobId) -> Result<Vec<u8>, Refused> {
        let socket = base::fdpass::connect(&self.files).unwrap();
        let request = serde_json::to_vec(&FdRequest::Blob { blob: id }).unwrap();
        base::fdpass::send(socket.as_fd(), &request, &[]).unwrap();
        let (bytes, mut fds) = base::fdpass::receive(socket.as_fd()).unwrap();
        match serde_json::from_slice(&bytes).unwrap() {
            FdReply::Here => {
                let mut file = std::fs::File::from(fds.pop().unwrap());
                assert!(file.write_all(b"x").is_err(), "a blob can be written to");
                let mut content = Vec::new();
                file.read_to_end(&mut content).unwrap();
                Ok(content)
            }
            FdReply::Refused(refused) => Err(refused),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> Refused {
    Refused::internal(error.to_string())
}

/// Bytes that do not compress.
pub fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn fill(path: &Path, at: u64, content: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(content, at).unwrap();
    file.sync_all().unwrap();
}
