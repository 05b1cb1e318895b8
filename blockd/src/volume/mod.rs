//! Raw disks and their snapshots.

use crate::image::convert::{Program, ensure_raw};
use crate::image::iso;
use crate::pool::{Making, Pool};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use wire::Refused;
use wire::block::{DiskInfo, DiskSource, EnsureDisk, EnsureSnapshot};

/// Makes a disk as it should be. The caller holds the locks of the disk and of its source.
///
/// # Errors
/// When the size is not usable, the source does not fit into it, is not there or is not a good image.
pub fn ensure(pool: &Pool, program: &Program, wanted: &EnsureDisk) -> Result<DiskInfo, Refused> {
    let is_files = matches!(wanted.source, DiskSource::Files { .. });
    if !wanted.bytes.is_multiple_of(512) || (wanted.bytes == 0 && !is_files) {
        return Err(Refused::invalid(format!(
            "a disk of {} bytes cannot be made: the size must be a positive multiple of 512",
            wanted.bytes
        )));
    }
    if wanted.bytes > pool.limits.disk_bytes {
        return Err(Refused::invalid(format!(
            "a disk may have at most {} GiB (limits.disk_bytes of the storage daemon)",
            pool.limits.disk_bytes >> 30
        )));
    }
    let path = pool.disk(wanted.id);
    match path.metadata() {
        Ok(facts) => grow(pool, wanted, facts.len(), is_files),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(pool, program, wanted),
        Err(error) => Err(pool.fault("look at", &path, &error)),
    }
}

fn grow(pool: &Pool, wanted: &EnsureDisk, have: u64, is_files: bool) -> Result<DiskInfo, Refused> {
    let path = pool.disk(wanted.id);
    if wanted.bytes > have {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| {
                file.set_len(wanted.bytes)?;
                file.sync_all()
            })
            .map_err(|error| pool.fault("grow", &path, &error))?;
        return Ok(DiskInfo { path, bytes: wanted.bytes });
    }
    if wanted.bytes < have && !is_files {
        return Err(Refused::invalid(format!(
            "disk {} has {have} bytes and cannot shrink to {}",
            wanted.id, wanted.bytes
        ))
        .remedy("ask for its present size or more"));
    }
    Ok(DiskInfo { path, bytes: have })
}

fn create(pool: &Pool, program: &Program, wanted: &EnsureDisk) -> Result<DiskInfo, Refused> {
    // A disk is thin, but one that could not take a single write is refused now rather than in the guest.
    pool.room_for(0)?;
    let making = pool.make()?;
    let bytes = match &wanted.source {
        DiskSource::Blank => wanted.bytes,
        DiskSource::Image { blob, format } => {
            let raw = ensure_raw(pool, program, *blob, format)?;
            let from = pool.open_read(&raw.path, &format!("blob {blob}"))?;
            fill(pool, &making, &from, wanted.bytes, "image")?
        }
        DiskSource::Snapshot { snapshot } => {
            let from = pool.open_read(&pool.snapshot(*snapshot), &format!("snapshot {snapshot}"))?;
            fill(pool, &making, &from, wanted.bytes, "snapshot")?
        }
        DiskSource::Disk { disk } => {
            let from = pool.open_read(&pool.disk(*disk), &format!("disk {disk}"))?;
            fill(pool, &making, &from, wanted.bytes, "source disk")?
        }
        DiskSource::Files { label, files } => {
            let image = iso::build(label, files)?;
            making
                .file()
                .write_all_at(&image, 0)
                .map_err(|error| pool.fault("write", making.path(), &error))?;
            wanted.bytes.max(image.len() as u64)
        }
    };
    making.resize(bytes)?;
    let path = pool.disk(wanted.id);
    making.publish(&path)?;
    Ok(DiskInfo { path, bytes })
}

fn fill(pool: &Pool, making: &Making<'_>, from: &File, wanted: u64, what: &str) -> Result<u64, Refused> {
    let bytes = from.metadata().map_err(|error| pool.fault("look at", making.path(), &error))?.len();
    if bytes > wanted {
        return Err(Refused::invalid(format!(
            "the {what} describes a disk of {} MiB, and the wanted disk has only {} MiB",
            bytes.div_ceil(1 << 20),
            wanted >> 20
        ))
        .remedy("choose a larger disk (or flavor)"));
    }
    pool.clone_into(from, making.file())?;
    Ok(wanted)
}

/// Makes a snapshot of a disk unless it exists. The caller holds the locks of both.
///
/// # Errors
/// When the disk is not there or there is no room.
pub fn ensure_snapshot(pool: &Pool, wanted: &EnsureSnapshot) -> Result<DiskInfo, Refused> {
    let path = pool.snapshot(wanted.id);
    if let Ok(facts) = path.metadata() {
        return Ok(DiskInfo { path, bytes: facts.len() });
    }
    let from = pool.open_read(&pool.disk(wanted.disk), &format!("disk {}", wanted.disk))?;
    pool.room_for(0)?;
    let making = pool.make()?;
    pool.clone_into(&from, making.file())?;
    let bytes = making.file().metadata().map_err(|error| pool.fault("look at", &path, &error))?.len();
    making.publish(&path)?;
    Ok(DiskInfo { path, bytes })
}
