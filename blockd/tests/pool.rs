//! The daemon as a process, on an XFS pool of the test's own.

mod common;

use common::{Daemon, Lab, fill, ours, random};
use std::process::Command;
use wire::RefusedKind;
use wire::block::{
    DescribeBlob, DiskSource, EnsureBlobFromDisk, EnsureDisk, EnsureRaw, EnsureSnapshot, ForgetBlob,
    ForgetDisk, ForgetSnapshot, InspectImage, ListPool,
};
use wire::cloud::{Attest, Epoch, Ground, Warrant};
use wire::ids::{BlobId, CloudId, DiskId, SnapshotId};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn blobs_go_in_and_out_with_digests() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    let (id, content) = (BlobId::new(), random(5_000_000));
    let info = daemon.put(id, content.clone(), true).await.unwrap();
    assert_eq!(info.bytes, 5_000_000);
    assert_eq!(info.sha512.len(), 128);
    let output =
        Command::new("md5sum").arg(lab.path(&format!("blobs/{}/{id}", &id.to_string()[..2]))).output();
    assert!(String::from_utf8_lossy(&output.unwrap().stdout).starts_with(&info.md5));
    assert_eq!(daemon.client.call(&DescribeBlob { id }).await.unwrap(), info);

    assert!(daemon.get(id).unwrap() == content);

    let again = daemon.put(id, b"other".to_vec(), false).await.unwrap_err();
    assert_eq!(again.kind, RefusedKind::Conflict);
    let empty = BlobId::new();
    assert_eq!(daemon.put(empty, Vec::new(), false).await.unwrap().md5, "d41d8cd98f00b204e9800998ecf8427e");
    assert!(daemon.get(empty).unwrap().is_empty());

    for _ in 0..2 {
        daemon.client.call(&ForgetBlob { id, by: ours() }).await.unwrap();
    }
    assert_eq!(daemon.get(id).unwrap_err().kind, RefusedKind::Missing);
    assert_eq!(daemon.client.call(&DescribeBlob { id }).await.unwrap_err().kind, RefusedKind::Missing);
}

#[tokio::test]
async fn disks_grow_never_shrink_and_share_blocks_with_their_source() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    let id = DiskId::new();
    let ensure = |bytes, source| EnsureDisk { id, bytes, source };
    let disk = daemon.client.call(&ensure(64 * MIB, DiskSource::Blank)).await.unwrap();
    assert_eq!(disk.bytes, 64 * MIB);
    fill(&disk.path, 0, &random(40 << 20));
    assert_eq!(daemon.client.call(&ensure(80 * MIB, DiskSource::Blank)).await.unwrap().bytes, 80 * MIB);
    let refused = daemon.client.call(&ensure(MIB, DiskSource::Blank)).await.unwrap_err();
    assert!(refused.message.contains("shrink"), "{refused}");
    assert!(daemon.client.call(&ensure(100 * MIB + 1, DiskSource::Blank)).await.is_err());

    let snapshot = SnapshotId::new();
    let free = daemon.client.call(&ListPool {}).await.unwrap().free_bytes;
    let taken = daemon.client.call(&EnsureSnapshot { id: snapshot, disk: id }).await.unwrap();
    let before = std::fs::read(&taken.path).unwrap();
    fill(&disk.path, 0, &[7; 4096]);
    assert!(std::fs::read(&taken.path).unwrap() == before, "a snapshot changed with its disk");
    let copy = DiskId::new();
    let source = DiskSource::Snapshot { snapshot };
    let made = daemon.client.call(&EnsureDisk { id: copy, bytes: 80 * MIB, source }).await.unwrap();
    assert!(std::fs::read(&made.path).unwrap() == before);
    let small = EnsureDisk { id: DiskId::new(), bytes: MIB, source: DiskSource::Disk { disk: id } };
    let refused = daemon.client.call(&small).await.unwrap_err();
    assert!(refused.message.contains("80 MiB") && refused.remedy.contains("larger"), "{refused}");
    let pool = daemon.client.call(&ListPool {}).await.unwrap();
    assert!(
        free.saturating_sub(pool.free_bytes) < 16 * MIB,
        "two copies of 40 MiB took {} bytes",
        free - pool.free_bytes
    );
    assert_eq!((pool.disks.len(), pool.snapshots, pool.blobs.len()), (2, vec![snapshot], 0));

    for _ in 0..2 {
        daemon.client.call(&ForgetSnapshot { id: snapshot, by: ours() }).await.unwrap();
        daemon.client.call(&ForgetDisk { id, by: ours() }).await.unwrap();
    }
    assert!(std::fs::read(&made.path).unwrap() == before, "a copy depends on its source");
    let gone = EnsureSnapshot { id: snapshot, disk: id };
    assert_eq!(daemon.client.call(&gone).await.unwrap_err().kind, RefusedKind::Missing);
}

#[tokio::test]
async fn qcow2_becomes_a_disk_and_a_disk_becomes_qcow2() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    let image = lab.path("tmp-image.qcow2");
    let raw = lab.path("tmp-image.raw");
    let mut content = random(3 << 20);
    content.resize(8 << 20, 0);
    std::fs::write(&raw, &content).unwrap();
    lab.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let blob = BlobId::new();
    daemon.put(blob, std::fs::read(&image).unwrap(), true).await.unwrap();
    let inspect = |format: &str| InspectImage { blob, format: format.into() };
    assert_eq!(daemon.client.call(&inspect("qcow2")).await.unwrap().virtual_bytes, 8 * MIB);
    let refused = daemon.client.call(&inspect("raw")).await.unwrap_err();
    assert!(refused.message.contains("'raw'") && refused.message.contains("qcow2"), "{refused}");
    let refused = daemon.client.call(&inspect("vmdk")).await.unwrap_err();
    assert!(refused.remedy.contains("qemu-img"), "{refused}");

    let id = DiskId::new();
    let source = || DiskSource::Image { blob, format: "qcow2".into() };
    let small = EnsureDisk { id, bytes: 4 * MIB, source: source() };
    assert!(daemon.client.call(&small).await.unwrap_err().message.contains("8 MiB"));
    let disk = daemon.client.call(&EnsureDisk { id, bytes: 16 * MIB, source: source() }).await.unwrap();
    let written = std::fs::read(&disk.path).unwrap();
    assert!(written[..8 << 20] == content && written[8 << 20..].iter().all(|byte| *byte == 0));
    let cached = daemon.client.call(&EnsureRaw { blob, format: "qcow2".into() }).await.unwrap();
    assert!(std::fs::read(&cached.path).unwrap() == content);

    for format in ["raw", "qcow2"] {
        let export = EnsureBlobFromDisk {
            blob: BlobId::new(),
            source: DiskSource::Disk { disk: id },
            format: format.into(),
        };
        let info = daemon.client.call(&export).await.unwrap();
        assert_eq!(daemon.client.call(&export).await.unwrap(), info, "repeating it is harmless");
        let check = InspectImage { blob: export.blob, format: format.into() };
        assert_eq!(daemon.client.call(&check).await.unwrap().virtual_bytes, 16 * MIB);
        let got = lab.path("tmp-back");
        std::fs::write(&got, daemon.get(export.blob).unwrap()).unwrap();
        lab.qemu_img(&["compare", "-f", "raw", "-F", format, disk.path.to_str().unwrap(), &got]);
    }
    daemon.client.call(&ForgetBlob { id: blob, by: ours() }).await.unwrap();
    assert!(!cached.path.exists(), "the raw form outlived its blob");
}

#[tokio::test]
async fn bad_images_are_refused_and_leave_nothing() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    let (raw, image) = (lab.path("tmp-x.raw"), lab.path("tmp-x.qcow2"));
    std::fs::write(&raw, random(2 << 20)).unwrap();
    lab.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let whole = std::fs::read(&image).unwrap();
    let backed = lab.path("tmp-backed");
    lab.qemu_img(&["create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", &backed, "1M"]);
    let cases = [
        (whole[..whole.len() / 2].to_vec(), "truncated"),
        (std::fs::read(&backed).unwrap(), "/etc/passwd"),
        (b"MZ nothing of the kind".to_vec(), "said to be 'qcow2'"),
        (Vec::new(), "no bytes"),
    ];
    for (content, word) in cases {
        let blob = BlobId::new();
        daemon.put(blob, content, false).await.unwrap();
        let refused = daemon.client.call(&InspectImage { blob, format: "qcow2".into() }).await.unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Invalid, "{refused}");
        assert!(refused.message.contains(word) && !refused.remedy.is_empty(), "{refused}");
        let source = DiskSource::Image { blob, format: "qcow2".into() };
        let disk = EnsureDisk { id: DiskId::new(), bytes: 64 * MIB, source };
        assert!(daemon.client.call(&disk).await.is_err());
    }
    let pool = daemon.client.call(&ListPool {}).await.unwrap();
    assert_eq!(pool.disks, []);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_config_drive_holds_its_files() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    let files = vec![("openstack/latest/meta_data.json".to_owned(), b"{}".to_vec())];
    let source = DiskSource::Files { label: "config-2".into(), files };
    let call = EnsureDisk { id: DiskId::new(), bytes: 0, source };
    let disk = daemon.client.call(&call).await.unwrap();
    assert_eq!(daemon.client.call(&call).await.unwrap(), disk);
    let output = Command::new("isoinfo")
        .arg("-i")
        .arg(&disk.path)
        .args(["-R", "-x", "/openstack/latest/meta_data.json"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"{}");
}

#[tokio::test]
async fn a_full_pool_says_so_and_keeps_nothing() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    // Announced too large: refused before a byte is taken.
    let free = daemon.client.call(&ListPool {}).await.unwrap().free_bytes;
    let refused = daemon.put_announced(BlobId::new(), free).await.unwrap_err();
    assert_eq!(refused.kind, RefusedKind::NoSpace, "{refused}");
    // Not announced: found while writing.
    let refused = daemon.put_endless(BlobId::new()).await.unwrap_err();
    assert_eq!(refused.kind, RefusedKind::NoSpace, "{refused}");
    assert!(refused.message.contains("MiB") && refused.remedy.contains("delete"), "{refused}");
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    // XFS gives the blocks of a removed file back in the background.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let after = daemon.client.call(&ListPool {}).await.unwrap();
        assert!(after.blobs.is_empty());
        if free.saturating_sub(after.free_bytes) < 8 * MIB {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{after:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // The daemon still works.
    daemon.put(BlobId::new(), random(1 << 20), false).await.unwrap();
}

#[tokio::test]
async fn an_upload_cut_short_leaves_nothing() {
    let lab = Lab::new();
    let daemon = lab.start().await;
    let id = BlobId::new();
    daemon.put_cut(id).await;
    lab.settle(|| lab.leftovers().is_empty()).await;
    assert_eq!(daemon.client.call(&DescribeBlob { id }).await.unwrap_err().kind, RefusedKind::Missing);
}

#[tokio::test]
async fn a_file_system_without_reflinks_is_refused_unless_allowed() {
    let lab = Lab::without_mount();
    let said = lab.start_and_fail();
    assert!(said.contains("no reflinks") && said.contains("allow_copies"), "{said}");
    let daemon = lab.start_with("allow_copies = true\n").await;
    let health = daemon.client.call(&wire::Health {}).await.unwrap();
    assert!(health.troubles.iter().any(|line| line.contains("full copies")), "{health:?}");
    let id = DiskId::new();
    let disk =
        daemon.client.call(&EnsureDisk { id, bytes: 8 * MIB, source: DiskSource::Blank }).await.unwrap();
    let content = random(100_000);
    fill(&disk.path, MIB, &content);
    let snapshot = EnsureSnapshot { id: SnapshotId::new(), disk: id };
    let taken = daemon.client.call(&snapshot).await.unwrap();
    let copy = std::fs::read(&taken.path).unwrap();
    assert!(copy.len() == 8 << 20 && copy[1 << 20..(1 << 20) + 100_000] == content);
}

/// For every operation that makes something: die at each point in turn, start again, and find all or nothing; then the
/// repeated call succeeds and no rest of the first is left.
#[tokio::test]
async fn a_crash_at_any_step_leaves_all_or_nothing() {
    let lab = Lab::new();
    let (image, raw) = (lab.path("tmp-c.qcow2"), lab.path("tmp-c.raw"));
    std::fs::write(&raw, random(1 << 20)).unwrap();
    lab.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let content = std::fs::read(&image).unwrap();
    for operation in ["blob", "disk", "image", "snapshot", "export"] {
        let mut survived = false;
        for step in 0..40 {
            let daemon = lab.start().await;
            let (blob, disk) = (BlobId::new(), DiskId::new());
            let (copy, snapshot, export) = (DiskId::new(), SnapshotId::new(), BlobId::new());
            daemon.put(blob, content.clone(), false).await.unwrap();
            let blank = EnsureDisk { id: disk, bytes: 4 * MIB, source: DiskSource::Blank };
            daemon.client.call(&blank).await.unwrap();
            drop(daemon);

            let act = async |daemon: &Daemon| match operation {
                "blob" => daemon.put(export, content.clone(), true).await.map(drop),
                "disk" => daemon
                    .client
                    .call(&EnsureDisk { id: copy, bytes: 8 * MIB, source: DiskSource::Disk { disk } })
                    .await
                    .map(drop),
                "image" => {
                    let source = DiskSource::Image { blob, format: "qcow2".into() };
                    daemon.client.call(&EnsureDisk { id: copy, bytes: 8 * MIB, source }).await.map(drop)
                }
                "snapshot" => daemon.client.call(&EnsureSnapshot { id: snapshot, disk }).await.map(drop),
                _ => {
                    let source = DiskSource::Disk { disk };
                    let call = EnsureBlobFromDisk { blob: export, source, format: "qcow2".into() };
                    daemon.client.call(&call).await.map(drop)
                }
            };
            let daemon = lab.start_crashing(step).await;
            let outcome = act(&daemon).await;
            drop(daemon);
            let daemon = lab.start().await;
            assert_eq!(lab.leftovers(), Vec::<String>::new(), "{operation}, crash at {step}");
            // Whatever has a name is whole.
            for id in daemon.client.call(&ListPool {}).await.unwrap().blobs {
                daemon.client.call(&InspectImage { blob: id, format: "qcow2".into() }).await.unwrap();
            }
            for path in [lab.path(&format!("disks/{copy}")), lab.path(&format!("snapshots/{snapshot}"))] {
                if let Ok(facts) = std::fs::metadata(&path) {
                    assert!(facts.len() >= 4 * MIB, "{operation}, crash at {step}: {path} is half made");
                }
            }
            if outcome.is_ok() {
                survived = true;
                break;
            }
            match (operation, act(&daemon).await) {
                (_, Ok(())) => (),
                // It was complete before the crash: the name is there, and blobs never change.
                ("blob", Err(refused)) => assert_eq!(refused.kind, RefusedKind::Conflict),
                (_, Err(refused)) => panic!("{operation} after a crash at {step}: {refused}"),
            }
            for call in [blob, export] {
                daemon.client.call(&ForgetBlob { id: call, by: ours() }).await.unwrap();
            }
            for id in [disk, copy] {
                daemon.client.call(&ForgetDisk { id, by: ours() }).await.unwrap();
            }
            daemon.client.call(&ForgetSnapshot { id: snapshot, by: ours() }).await.unwrap();
        }
        assert!(survived, "{operation} has more steps than the loop");
    }
}

#[tokio::test]
async fn things_go_by_the_word_of_their_own_cloud_only() {
    let lab = Lab::without_mount();
    let daemon = lab.start_with("allow_copies = true\n").await;
    let (blob, disk) = (BlobId::new(), DiskId::new());
    daemon.put(blob, b"bytes".to_vec(), false).await.unwrap();
    daemon.client.call(&EnsureDisk { id: disk, bytes: MIB, source: DiskSource::Blank }).await.unwrap();
    let (ours, theirs) = (ours().cloud, CloudId::new());
    daemon.client.call(&Attest { cloud: ours, epoch: Epoch(8) }).await.unwrap();
    drop(daemon);
    let daemon = lab.start_with("allow_copies = true\n").await;
    for (cloud, ground, kind) in [
        (theirs, Ground::Asked, RefusedKind::Forbidden),
        (theirs, Ground::Unknown { epoch: Epoch(9) }, RefusedKind::Forbidden),
        (ours, Ground::Unknown { epoch: Epoch(7) }, RefusedKind::Stale),
    ] {
        let by = Warrant { cloud, ground };
        let refused = daemon.client.call(&ForgetBlob { id: blob, by }).await.unwrap_err();
        assert_eq!(refused.kind, kind, "{refused}");
        assert!(refused.remedy.contains(&format!("blockd adopt --config FILE {cloud}")), "{refused}");
        assert_eq!(daemon.client.call(&ForgetDisk { id: disk, by }).await.unwrap_err().kind, kind);
        let snapshot = ForgetSnapshot { id: SnapshotId::new(), by };
        assert_eq!(daemon.client.call(&snapshot).await.unwrap_err().kind, kind);
    }
    let pool = daemon.client.call(&ListPool {}).await.unwrap();
    assert_eq!((pool.blobs.as_slice(), pool.disks.as_slice()), (&[blob][..], &[disk][..]));

    let adopt = Command::new(env!("CARGO_BIN_EXE_blockd"))
        .args(["adopt", "--config", &lab.config(), &theirs.to_string()])
        .output()
        .unwrap();
    assert!(adopt.status.success(), "{}", String::from_utf8_lossy(&adopt.stderr));
    assert!(String::from_utf8_lossy(&adopt.stdout).contains(&ours.to_string()));
    let by = Warrant { cloud: theirs, ground: Ground::Unknown { epoch: Epoch(1) } };
    daemon.client.call(&ForgetBlob { id: blob, by }).await.unwrap();
    assert!(daemon.client.call(&ListPool {}).await.unwrap().blobs.is_empty());
}
