//! The folders of the daemons' sockets: made, guarded, and taken over from the time when there was one for all.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tests::{finished, root};

/// Runs `socket_folders` of `ferro` for a data folder; prints whether it stopped the daemons.
fn socket_folders(data: &Path) -> String {
    let script = r#"
        set -euo pipefail
        eval "$(grep '^GROUP=' "$1")"
        eval "$(sed -n '/^socket_folders() {$/,/^}$/p' "$1")"
        say() { :; }
        stop_daemons() { echo stopped; }
        DATA=$2
        socket_folders"#;
    let mut command = std::process::Command::new("bash");
    finished(command.args(["-c", script, "-"]).arg(root().join("ferro")).arg(data)).unwrap()
}

/// Whether a command succeeds as a user, with the daemons' common group.
fn may(uid: u32, words: &[&str]) -> bool {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--groups", "64100"]);
    command.args(words).stderr(std::process::Stdio::null()).status().unwrap().success()
}

#[test]
fn each_daemon_makes_sockets_in_its_own_folder_only_and_an_old_folder_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| dir.path().join("run").join(name);
    // As it was: one folder, stale sockets, and a guest's machine that listens.
    std::fs::create_dir_all(at("servers/one")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("hostd.sock")).unwrap());
    let machine = std::os::unix::net::UnixListener::bind(at("servers/one/control")).unwrap();

    assert_eq!(socket_folders(dir.path()).trim(), "stopped");
    assert!(!at("hostd.sock").exists() && !at("servers").exists());
    std::os::unix::net::UnixStream::connect(at("hostd/servers/one/control")).unwrap();
    machine.accept().unwrap();
    // Again, and after a stop between its steps: nothing more to do, and nothing lost.
    assert_eq!(socket_folders(dir.path()).trim(), "");
    std::fs::rename(at("hostd/servers"), at("servers")).unwrap();
    assert_eq!(socket_folders(dir.path()).trim(), "stopped");
    std::os::unix::net::UnixStream::connect(at("hostd/servers/one/control")).unwrap();

    let (api, block, stranger) = (64_101, 64_102, 64_999);
    for (uid, own) in [(api, "api"), (block, "blockd")] {
        for folder in ["api", "blockd", "hostd", "netd", "."] {
            let file = at(folder).join(format!("by-{uid}"));
            assert_eq!(may(uid, &["touch", file.to_str().unwrap()]), folder == own, "{uid} in {folder}");
            // Calling is possible everywhere.
            assert!(may(uid, &["test", "-x", at(folder).to_str().unwrap()]), "{uid} into {folder}");
        }
    }
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", &stranger.to_string(), "--regid", &stranger.to_string(), "--clear-groups"]);
    assert!(!command.args(["test", "-x"]).arg(at("netd")).status().unwrap().success());
}
