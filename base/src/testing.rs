//! Help for tests of this crate.
#![allow(unsafe_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Does something as another user, who may write in `dir`. Needs root, as which the tests run.
pub fn as_uid<T: Send>(uid: u32, dir: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the bare system call changes the user of this thread alone, which ends right after.
            let outcome = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(outcome, 0, "the tests run as root");
            work()
        });
        thread.join().unwrap()
    })
}
