//! Landlock: no file, directory, device or socket can be reached by a name, even through io_uring or a bug in the other walls.
//!
//! Descriptors that are open already keep their rights; nothing can be opened any more. Kernels know more rights with each version of
//! the interface, so the version is asked for and all that it knows is denied.

use nix::errno::Errno;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: libc::c_ulong = 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ruleset {
    /// Denied access to files.
    files: u64,
    /// Denied use of the network (version 4 on).
    network: u64,
    /// Denied reach of what is outside (version 6 on).
    scoped: u64,
}

/// Scope: signals to processes outside.
const SIGNALS: u64 = 2;

/// Everything that a version can deny.
fn all_of(version: i32) -> Ruleset {
    // Execute, read and write files, list, remove and make entries; then moving between directories, truncating, and ioctls on devices.
    let file_rights = match version {
        ..=1 => 13,
        2 => 14,
        3 | 4 => 15,
        5.. => 16,
    };
    Ruleset {
        files: (1 << file_rights) - 1,
        // Binding and connecting TCP sockets.
        network: if version >= 4 { 0b11 } else { 0 },
        // Abstract unix sockets and signals.
        scoped: if version >= 6 { 0b11 } else { 0 },
    }
}

/// Bytes of the ruleset that a version knows.
fn length(version: i32) -> usize {
    match version {
        ..=3 => 8,
        4 | 5 => 16,
        6.. => 24,
    }
}

/// The interface's version, or `None` where this kernel has no Landlock or it is switched off.
///
/// # Errors
/// When the kernel answers something else.
pub fn version() -> nix::Result<Option<i32>> {
    // SAFETY: with this flag the call takes no memory and makes nothing.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    match Errno::result(answer) {
        Ok(version) => Ok(i32::try_from(version).ok().filter(|version| *version > 0)),
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Denies everything that Landlock can deny, to this thread and those that it starts; signals to other processes only if `signals`.
/// Answers the interface's version, or `None` where the kernel has no Landlock. The thread must have given up new privileges.
///
/// # Errors
/// When the kernel has Landlock and refuses; the process must not go on then.
pub fn deny_all(signals: bool) -> nix::Result<Option<i32>> {
    let Some(version) = version()? else { return Ok(None) };
    let mut ruleset = all_of(version);
    if !signals {
        ruleset.scoped &= !SIGNALS;
    }
    // SAFETY: the kernel reads the given number of bytes of a structure that is at least that long.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            length(version),
            0 as libc::c_ulong,
        )
    };
    let ruleset = Errno::result(made)?;
    // SAFETY: takes a descriptor that was just made, and no memory.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0 as libc::c_ulong) };
    let restricted = Errno::result(restricted);
    // SAFETY: the descriptor is ours, and nobody else knows it.
    unsafe { libc::syscall(libc::SYS_close, ruleset) };
    restricted.map(|_| Some(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_deny_more_and_have_room_for_it() {
        let first = Ruleset { files: 0x1fff, network: 0, scoped: 0 };
        assert_eq!((all_of(1), length(1)), (first, 8));
        assert_eq!((all_of(3).files, all_of(4).network, length(4)), (0x7fff, 3, 16));
        assert_eq!((all_of(7), length(7)), (Ruleset { files: 0xffff, network: 3, scoped: 3 }, 24));
    }
}
