use super::*;
use proptest::prelude::*;
use std::process::Command;

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img (package qemu-utils)");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A sparse disk of 20 MiB and a bit with data at the ends and in the middle.
fn sample(path: &std::path::Path) -> Vec<u8> {
    let mut disk = vec![0u8; (20 << 20) + 512 * 3];
    let length = disk.len();
    for (at, seed) in [(0usize, 1u8), (70_000, 2), (9 << 20, 3), (length - 600, 4)] {
        for (offset, byte) in disk[at..at + 600].iter_mut().enumerate() {
            *byte = u8::try_from(offset % 251).unwrap() ^ seed;
        }
    }
    let file = File::create(path).unwrap();
    file.set_len(length as u64).unwrap();
    for at in [0u64, 70_000, 9 << 20, length as u64 - 600] {
        let from = usize::try_from(at).unwrap();
        file.write_all_at(&disk[from..from + 600], at).unwrap();
    }
    disk
}

#[test]
fn images_made_by_qemu_read_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let disk = sample(&dir.path().join("disk.raw"));
    let kinds: [(&str, &[&str]); 6] = [
        ("plain", &[]),
        ("packed", &["-c"]),
        ("zstd", &["-c", "-o", "compression_type=zstd"]),
        ("old", &["-o", "compat=0.10"]),
        ("small", &["-o", "cluster_size=512"]),
        ("big", &["-c", "-o", "cluster_size=2M"]),
    ];
    for (name, options) in kinds {
        let image = at(name);
        let raw = at("disk.raw");
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options);
        arguments.extend([raw.as_str(), image.as_str()]);
        qemu_img(&arguments);
        let from = File::open(&image).unwrap();
        assert_eq!(check(&from, 1 << 40).unwrap().virtual_bytes, disk.len() as u64, "{name}");
        let to = File::options().read(true).write(true).create_new(true).open(at("out")).unwrap();
        assert_eq!(to_raw(&from, &to, 1 << 40, 0).unwrap(), disk.len() as u64);
        assert!(std::fs::read(at("out")).unwrap() == disk, "{name} differs");
        use std::os::unix::fs::MetadataExt;
        assert!(to.metadata().unwrap().blocks() * 512 < 8 << 20, "{name} is not sparse");
        std::fs::remove_file(at("out")).unwrap();

        // Cut anywhere, it is refused as truncated.
        let whole = std::fs::read(&image).unwrap();
        for cut in [4, 50, whole.len() / 2, whole.len() * 8 / 10] {
            let refused = check(&whole[..cut], 1 << 40).unwrap_err();
            assert!(matches!(refused, Bad::Truncated { .. }), "{name} cut at {cut}: {refused}");
        }
    }
}

#[test]
fn what_is_written_here_qemu_reads_and_finds_clean() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let disk = sample(&dir.path().join("disk.raw"));
    let to = File::options().read(true).write(true).create_new(true).open(at("new.qcow2")).unwrap();
    from_raw(&File::open(at("disk.raw")).unwrap(), &to, 0).unwrap();
    let checked = qemu_img(&["check", &at("new.qcow2")]);
    assert!(checked.contains("No errors were found"), "{checked}");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &at("new.qcow2"), &at("back.raw")]);
    assert!(std::fs::read(at("back.raw")).unwrap() == disk);
    assert_eq!(check(&to, 1 << 40).unwrap().virtual_bytes, disk.len() as u64);
}

#[test]
fn an_empty_disk_is_an_image_too() {
    let dir = tempfile::tempdir().unwrap();
    let empty = File::create_new(dir.path().join("empty.raw")).unwrap();
    empty.set_len(6 << 40).unwrap();
    let empty = File::open(dir.path().join("empty.raw")).unwrap();
    let path = dir.path().join("empty.qcow2");
    let to = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    from_raw(&empty, &to, 0).unwrap();
    assert!(qemu_img(&["check", path.to_str().unwrap()]).contains("No errors"));
    assert!(matches!(check(&to, 1 << 40), Err(Bad::TooLarge { .. })));
}

#[test]
fn other_files_encryption_and_unknown_features_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    sample(&dir.path().join("disk.raw"));
    let raw = at("disk.raw");
    qemu_img(&["create", "-f", "qcow2", "-b", &raw, "-F", "raw", &at("backed")]);
    let bad = check(&File::open(at("backed")).unwrap(), 1 << 40).unwrap_err();
    assert!(bad.to_string().contains("a backing file") && bad.to_string().contains(&raw[..20]), "{bad}");

    qemu_img(&["create", "-f", "qcow2", "-o", &format!("data_file={}", at("data")), &at("external"), "1M"]);
    let bad = check(&File::open(at("external")).unwrap(), 1 << 40).unwrap_err();
    assert!(bad.to_string().contains("an external data file"), "{bad}");

    qemu_img(&["create", "-f", "qcow2", "-o", "extended_l2=on", &at("subclusters"), "1M"]);
    let bad = check(&File::open(at("subclusters")).unwrap(), 1 << 40).unwrap_err();
    assert!(matches!(bad, Bad::Unsupported(_)), "{bad}");
}

fn header(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = vec![0u8; 4 << 16];
    image[..4].copy_from_slice(&MAGIC);
    image[4..8].copy_from_slice(&3u32.to_be_bytes());
    image[20..24].copy_from_slice(&16u32.to_be_bytes());
    image[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
    image[36..40].copy_from_slice(&2u32.to_be_bytes());
    image[40..48].copy_from_slice(&(1u64 << 16).to_be_bytes());
    image[100..104].copy_from_slice(&104u32.to_be_bytes());
    for (at, bytes) in fields {
        image[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

#[test]
fn absurd_headers_are_refused() {
    assert!(check(&header(&[])[..], 1 << 40).is_ok());
    let cases: [&[(usize, &[u8])]; 8] = [
        &[(20, &[0, 0, 0, 63])],
        &[(20, &[0, 0, 0, 0])],
        &[(24, &[0; 8])],
        &[(24, &[0xff; 8])],
        &[(36, &[0; 4])],
        &[(36, &[0xff; 4])],
        &[(40, &[0xff; 8])],
        &[(72, &[0xff; 8])],
    ];
    for fields in cases {
        assert!(check(&header(fields)[..], 1 << 40).is_err(), "{fields:?}");
    }
}

proptest! {
    /// Whatever the header and tables say: an answer, never a panic, and no cluster outside the file.
    #[test]
    fn hostile_images_never_mislead(
        patches in proptest::collection::vec((0usize..200, any::<u8>()), 0..12),
        entries in proptest::collection::vec((0usize..16384, any::<u64>()), 0..12),
        l1 in any::<u64>(),
    ) {
        let mut image = header(&[]);
        image[1 << 16..(1 << 16) + 8].copy_from_slice(&l1.to_be_bytes());
        image[(1 << 16) + 8..(1 << 16) + 16].copy_from_slice(&(2u64 << 16).to_be_bytes());
        for (slot, entry) in entries {
            let at = (2 << 16) + slot * 8;
            image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        for (at, byte) in patches {
            image[at] = byte;
        }
        let source = image.as_slice();
        if let Ok(header) = Header::read(source, 1 << 34) {
            let _ = clusters(source, &header, |at, bytes, place| {
                assert!(at + bytes <= header.virtual_bytes);
                match place {
                    Cluster::Plain { host } => assert!(host + bytes <= header.file_bytes),
                    Cluster::Compressed { host, length } => assert!(host + length <= header.file_bytes),
                }
                Ok(())
            });
        }
    }
}
