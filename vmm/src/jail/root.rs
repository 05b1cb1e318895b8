//! An empty root directory.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, pivot_root};
use std::path::Path;

/// Directories that exist on every host; what is mounted there is only seen in our own mount namespace.
const PLACES: [&str; 4] = ["/tmp", "/run", "/var", "/dev"];

/// Makes an empty, read-only file system the root. Only to be called in a mount namespace of our own.
pub fn empty() -> nix::Result<()> {
    // Private first: nothing mounted here may be seen outside.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let place = PLACES.iter().find(|place| Path::new(place).is_dir()).ok_or(nix::Error::ENOENT)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), *place, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=0555"))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, *place, None::<&str>, read_only, None::<&str>)?;
    chdir(*place)?;
    // Both names are the same directory: the old root ends up stacked on top of the new one, and is then taken away.
    // A root that is the initial RAM file system cannot be pivoted away from.
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        Err(_) => chroot(".")?,
    }
    chdir("/")
}
