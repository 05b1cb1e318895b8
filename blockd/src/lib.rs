//! The storage daemon: raw disks, snapshots and immutable blobs in one pool.
//!
//! The pool is an XFS file system with reflinks, so a volume from an image, a snapshot or a copy of a disk is one
//! `FICLONE`: instant, and sharing space until written. Everything is made as a file in `tmp/`, synced, renamed into its
//! place and made durable by syncing the directory; what lies in `tmp/` at start is removed. Hence a crash at any moment
//! leaves either the whole thing or nothing.
//!
//! ```text
//! blobs/ab/ID     immutable bytes; digests in an extended attribute, so that both appear in one rename
//! raw/ID          the raw form of the blob ID, when the blob is not raw itself (a cache)
//! disks/ID        writable raw disks
//! snapshots/ID    read-only reflinks of disks
//! tmp/            what is being made
//! owner.json      the cloud that it belongs to
//! ```
//!
//! Bytes that a tenant uploaded are only ever parsed in a child process that can neither open a file nor a socket
//! ([`image::sandbox`]).

pub mod config;
pub mod fd_server;
pub mod image;
pub mod mount;
pub mod object;
pub mod pool;
pub mod server;
pub mod sys;
pub mod volume;
