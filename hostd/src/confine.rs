//! Opens files that `api` names, and only below a folder that the operator named: `hostd` is root and may open anything,
//! so a path must never decide by itself what is opened.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use wire::Refused;

/// Opens the file at `path`, which must be a plain file below `folder`, reached without symbolic links and without `..`
/// out of the folder. `what` names it in refusals.
///
/// # Errors
/// `Invalid` when the path leads elsewhere or to something else than a file, `Missing` when nothing is there, else what
/// the file system says.
pub fn open(folder: &Path, path: &Path, writable: bool, what: &str) -> Result<File, Refused> {
    let (shown, home) = (path.display(), folder.display());
    let elsewhere = |why: &str| {
        Refused::invalid(format!("{what} at {shown} is not a file below {home}: {why}")).remedy(
            "hostd's configuration names the folders (disks_dir, kernels_dir) that it opens files from",
        )
    };
    let trouble = |error: io::Error| {
        let message = format!("cannot open {what} at {shown}: {error}");
        match error.kind() {
            io::ErrorKind::NotFound => Refused::missing(message),
            _ => Refused::internal(message),
        }
    };
    let Ok(inside) = path.strip_prefix(folder) else {
        return Err(elsewhere("it is in another folder"));
    };
    if inside.as_os_str().is_empty() {
        return Err(elsewhere("it is the folder itself"));
    }
    let root = File::open(folder).map_err(trouble)?;
    // Only looked at first: opening a pipe or a device for real could block or do something.
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    let found = match openat2(&root, inside, how) {
        Ok(found) => found,
        Err(Errno::EXDEV) => return Err(elsewhere("it leads out of the folder")),
        Err(Errno::ELOOP) => return Err(elsewhere("there is a symbolic link on the way")),
        Err(errno) => return Err(trouble(errno.into())),
    };
    let found = File::from(found);
    if !found.metadata().map_err(trouble)?.is_file() {
        return Err(elsewhere("it is something else than a file"));
    }
    // This very file, whatever the path leads to by now.
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    OpenOptions::new().read(true).write(writable).open(same).map_err(trouble)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use wire::RefusedKind;

    #[test]
    fn only_plain_files_below_the_folder_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("disks/sub")).unwrap();
        std::fs::create_dir(at("secret")).unwrap();
        std::fs::write(at("disks/a"), "mine").unwrap();
        std::fs::write(at("disks/sub/b"), "mine too").unwrap();
        std::fs::write(at("secret/key"), "not yours").unwrap();
        symlink(at("secret/key"), at("disks/link")).unwrap();
        symlink("a", at("disks/near")).unwrap();
        symlink(at("secret"), at("disks/way")).unwrap();
        nix::unistd::mkfifo(&at("disks/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let home = at("disks");

        let mut text = String::new();
        open(&home, &at("disks/a"), true, "disk a").unwrap().read_to_string(&mut text).unwrap();
        open(&home, &at("disks/sub/b"), false, "disk b").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "minemine too");
        for (path, word) in [
            ("secret/key", "another folder"),
            ("disks", "folder itself"),
            ("disks/../secret/key", "out of the folder"),
            ("disks/sub/../../secret/key", "out of the folder"),
            ("disks/link", "symbolic link"),
            ("disks/near", "symbolic link"),
            ("disks/way/key", "symbolic link"),
            ("disks/sub", "something else"),
            ("disks/pipe", "something else"),
        ] {
            let refused = open(&home, &at(path), false, "disk x").unwrap_err();
            assert_eq!(refused.kind, RefusedKind::Invalid, "{path}: {refused}");
            assert!(refused.message.contains(word), "{path}: {refused}");
        }
        let magic = open(Path::new("/proc/self"), Path::new("/proc/self/exe"), false, "disk x").unwrap_err();
        assert_eq!(magic.kind, RefusedKind::Invalid, "{magic}");
        let refused = open(&home, &at("disks/none"), false, "disk none").unwrap_err();
        assert_eq!(refused.kind, RefusedKind::Missing, "{refused}");
    }
}
