use super::*;
use std::process::Command;

fn files() -> Vec<(String, Vec<u8>)> {
    let long = "a-name-that-is-rather-long-and-has.several.dots-in_it.json";
    vec![
        ("openstack/latest/meta_data.json".into(), b"{\"uuid\": \"u\"}".to_vec()),
        ("openstack/latest/user_data".into(), vec![b'#'; 70_000]),
        ("openstack/2012-08-10/meta_data.json".into(), b"{}".to_vec()),
        (format!("ec2/latest/{long}"), b"long".to_vec()),
        ("empty".into(), Vec::new()),
    ]
}

fn read(image: &std::path::Path, mode: &str, path: &str) -> Vec<u8> {
    // The Joliet tree carries version numbers, which kernels do not show but this program does.
    let version = if mode == "-J" { ";1" } else { "" };
    let output = Command::new("isoinfo")
        .args(["-i"])
        .arg(image)
        .args([mode, "-x", &format!("{path}{version}")])
        .output()
        .expect("isoinfo");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Read back by another's program (package genisoimage), through both trees.
#[test]
fn every_file_is_found_under_its_name_in_both_trees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.iso");
    let image = build("config-2", &files()).unwrap();
    std::fs::write(&path, &image).unwrap();
    for mode in ["-R", "-J"] {
        for (name, content) in files() {
            assert_eq!(read(&path, mode, &format!("/{name}")), content, "{mode} {name}");
        }
    }
    let output = Command::new("isoinfo").arg("-d").arg("-i").arg(&path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Volume id: config-2") && text.contains("Rock Ridge"), "{text}");
    assert!(text.contains("Joliet with UCS level 3"), "{text}");
}

#[test]
fn a_directory_of_many_files_spans_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.iso");
    let many: Vec<_> = (0..200).map(|n| (format!("d/file-{n}"), format!("{n}").into_bytes())).collect();
    std::fs::write(&path, build("config-2", &many).unwrap()).unwrap();
    for n in [0, 57, 199] {
        assert_eq!(read(&path, "-R", &format!("/d/file-{n}")), format!("{n}").into_bytes());
        assert_eq!(read(&path, "-J", &format!("/d/file-{n}")), format!("{n}").into_bytes());
    }
}

#[test]
fn odd_paths_and_labels_are_refused() {
    for path in ["", "/", "../x", "a//../b", "a/b:c", "a\nb", "1/2/3/4/5/6/7/8", "ä"] {
        assert!(build("config-2", &[(path.into(), Vec::new())]).is_err(), "{path}");
    }
    let twice = [("a".to_owned(), Vec::new()), ("a".to_owned(), Vec::new())];
    assert!(build("config-2", &twice).is_err());
    let below_a_file = [("a".to_owned(), Vec::new()), ("a/b".to_owned(), Vec::new())];
    assert!(build("config-2", &below_a_file).is_err());
    assert!(build("a label that is long", &[]).is_err());
    assert!(build("config-2", &[("big".into(), vec![0; LIMIT])]).is_err());
}
