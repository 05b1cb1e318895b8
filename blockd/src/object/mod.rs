//! Blobs: immutable bytes, with their digests in an extended attribute of the same file.

mod digest;
mod stream;

pub use digest::Digests;
pub use stream::receive;

use crate::pool::{Making, Pool};
use crate::sys;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use wire::Refused;
use wire::block::BlobInfo;
use wire::ids::BlobId;

/// Name of the attribute that holds the digests.
const ATTRIBUTE: &CStr = c"user.ferrostack.blob";
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Facts {
    md5: String,
    sha512: String,
}

/// Makes a filled file a blob: its digests become an attribute, then it gets its name.
///
/// # Errors
/// What the file system says; nothing is left then.
pub fn publish(pool: &Pool, making: Making<'_>, id: BlobId, digests: Digests) -> Result<BlobInfo, Refused> {
    let bytes = digests.bytes();
    let (md5, sha512) = digests.finish().map_err(|error| Refused::internal(error.to_string()))?;
    let facts = serde_json::to_vec(&Facts { md5: md5.clone(), sha512: sha512.clone() })
        .map_err(|error| Refused::internal(error.to_string()))?;
    sys::set_attribute(making.file(), ATTRIBUTE, &facts)
        .map_err(|error| pool.fault("describe", making.path(), &error))?;
    making.publish(&pool.blob(id))?;
    Ok(BlobInfo { id, bytes, md5, sha512 })
}

/// What is known of a blob.
///
/// # Errors
/// [`Refused::missing`] when there is none.
pub fn describe(pool: &Pool, id: BlobId) -> Result<BlobInfo, Refused> {
    let (_, info) = open(pool, id)?;
    Ok(info)
}

/// Opens a blob for reading.
///
/// # Errors
/// [`Refused::missing`] when there is none.
pub fn open(pool: &Pool, id: BlobId) -> Result<(File, BlobInfo), Refused> {
    let path = pool.blob(id);
    let file = pool.open_read(&path, &format!("blob {id}"))?;
    let bytes = file.metadata().map_err(|error| pool.fault("read", &path, &error))?.len();
    let facts = sys::attribute(&file, ATTRIBUTE)
        .ok()
        .and_then(|value| serde_json::from_slice::<Facts>(&value).ok())
        .ok_or_else(|| {
            Refused::internal(format!("blob {id} has lost its digests (attribute of {})", path.display()))
                .remedy("restore the pool from a backup that keeps extended attributes")
        })?;
    Ok((file, BlobInfo { id, bytes, md5: facts.md5, sha512: facts.sha512 }))
}

/// Removes a blob and its raw form.
///
/// # Errors
/// What the file system says.
pub fn forget(pool: &Pool, id: BlobId) -> Result<(), Refused> {
    // The derived form first: the blob is what a later call would look for.
    pool.remove(&pool.raw(id))?;
    pool.remove(&pool.blob(id))?;
    Ok(())
}

/// Digests of a whole file.
///
/// # Errors
/// What the file system says.
pub fn digest_file(pool: &Pool, file: &File, path: &Path) -> Result<Digests, Refused> {
    let mut digests = Digests::new(true);
    let mut at = 0u64;
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK);
        let read = file.read_at(&mut chunk, at).map_err(|error| pool.fault("read", path, &error))?;
        if read == 0 {
            return Ok(digests);
        }
        chunk.truncate(read);
        let chunk: Bytes = chunk.freeze();
        digests.update(&chunk);
        at = at.saturating_add(read as u64);
    }
}
