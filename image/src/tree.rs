//! A directory tree that becomes a file system: chosen files of unpacked packages, own files, links. One `bin` and one `lib`
//! (everything else links there), so each command is on the search path of every user and every SSH session.

use crate::Fault;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The tree under construction.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Starts an empty tree with the merged layout.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(root: &Path) -> Result<Self, Fault> {
        let tree = Self { root: root.to_path_buf() };
        for dir in ["", "usr", "usr/bin", "usr/lib", "usr/lib64"] {
            tree.directory(dir, 0o755)?;
        }
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/bin"),
            ("usr/sbin", "bin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            tree.symlink(link, target)?;
        }
        Ok(tree)
    }

    /// Where the tree is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a directory and its parents.
    ///
    /// # Errors
    /// When that fails.
    pub fn directory(&self, path: &str, mode: u32) -> Result<(), Fault> {
        let full = self.root.join(path);
        std::fs::create_dir_all(&full).map_err(Fault::file("make folder", &full))?;
        set_mode(&full, mode)
    }

    /// Writes a file with its parents.
    ///
    /// # Errors
    /// When that fails.
    pub fn file(&self, path: &str, mode: u32, content: &[u8]) -> Result<(), Fault> {
        let full = self.vacant(path)?;
        std::fs::write(&full, content).map_err(Fault::file("write", &full))?;
        set_mode(&full, mode)
    }

    /// Makes a symbolic link, replacing what is there.
    ///
    /// # Errors
    /// When that fails.
    pub fn symlink(&self, path: &str, target: &str) -> Result<(), Fault> {
        let full = self.vacant(path)?;
        symlink(target, &full).map_err(Fault::file("link", &full))
    }

    /// Copies `pick` from an unpacked package: a path, whose last part may hold one `*`. Gives the number of files.
    ///
    /// # Errors
    /// [`Fault::PackageLayout`] when nothing matches.
    pub fn pick(&self, package: &str, unpacked: &Path, pick: &str) -> Result<usize, Fault> {
        let missing = || Fault::PackageLayout { package: package.to_owned(), path: pick.to_owned() };
        let (dir, pattern) = pick.rsplit_once('/').ok_or_else(missing)?;
        // Debian is moving files from / to /usr, package by package: either place will do.
        let other = dir.strip_prefix("usr/").map_or_else(|| format!("usr/{dir}"), str::to_owned);
        let mut count = 0;
        for source_dir in [unpacked.join(dir), unpacked.join(other)] {
            let Ok(entries) = std::fs::read_dir(&source_dir) else { continue };
            for entry in entries {
                let entry = entry.map_err(Fault::file("read folder", &source_dir))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if matches(pattern, &name) {
                    self.copy(&entry.path(), &format!("{}/{name}", merged(dir)))?;
                    count += 1;
                }
            }
        }
        if count == 0 { Err(missing()) } else { Ok(count) }
    }

    /// Copies one file or link with its permission bits.
    ///
    /// # Errors
    /// When that fails.
    pub fn copy(&self, source: &Path, path: &str) -> Result<(), Fault> {
        let data = source.symlink_metadata().map_err(Fault::file("read", source))?;
        if data.is_symlink() {
            let target = std::fs::read_link(source).map_err(Fault::file("read", source))?;
            return self.symlink(path, &target.to_string_lossy());
        }
        let full = self.vacant(path)?;
        std::fs::copy(source, &full).map_err(Fault::file("copy", source))?;
        set_mode(&full, data.permissions().mode())
    }

    /// The full path, with its folder made and nothing there: writing through an old link would change what it points to.
    fn vacant(&self, path: &str) -> Result<PathBuf, Fault> {
        let full = self.root.join(path);
        if let Some(parent) = full.parent() {
            std::fs::create_dir_all(parent).map_err(Fault::file("make folder", parent))?;
        }
        if full.symlink_metadata().is_ok() {
            std::fs::remove_file(&full).map_err(Fault::file("replace", &full))?;
        }
        Ok(full)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Fault> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777))
        .map_err(Fault::file("set permissions of", path))
}

/// Where a package's folder lies in the merged layout.
fn merged(dir: &str) -> String {
    for (from, to) in [
        ("usr/sbin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("bin", "usr/bin"),
        ("lib64", "usr/lib64"),
        ("lib", "usr/lib"),
    ] {
        if dir == from {
            return to.to_owned();
        }
        if let Some(rest) = dir.strip_prefix(from).filter(|rest| rest.starts_with('/')) {
            return format!("{to}{rest}");
        }
    }
    dir.to_owned()
}

/// Shell-like match with at most one `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => {
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Tree, matches, merged};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn patterns() {
        assert!(matches("libz.so.*", "libz.so.1"));
        assert!(!matches("libz.so.*", "libzstd.so.1"));
        assert!(!matches("ab*ba", "aba"));
        assert!(matches("dropbear", "dropbear") && !matches("dropbear", "dropbearkey"));
    }

    #[test]
    fn folders_merge() {
        assert_eq!(merged("sbin"), "usr/bin");
        assert_eq!(merged("lib/x86_64-linux-gnu"), "usr/lib/x86_64-linux-gnu");
        assert_eq!(merged("usr/libexec/sudo"), "usr/libexec/sudo");
        assert_eq!(merged("etc"), "etc");
    }

    #[test]
    fn replacing_a_link_leaves_its_target_alone() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let source = dir.path().join("real");
        std::fs::write(&source, b"real").expect("write");
        let tree = Tree::new(&dir.path().join("tree")).expect("tree");
        tree.file("usr/bin/box", 0o755, b"box").expect("file");
        tree.symlink("usr/bin/tool", "box").expect("link");
        tree.copy(&source, "usr/bin/tool").expect("copy");
        assert_eq!(std::fs::read(tree.root().join("usr/bin/box")).expect("read"), b"box");
        assert_eq!(std::fs::read(tree.root().join("usr/bin/tool")).expect("read"), b"real");
    }

    #[test]
    fn picks_keep_modes_and_links_and_report_what_is_missing() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let package = dir.path().join("package");
        std::fs::create_dir_all(package.join("usr/sbin")).expect("folder");
        std::fs::write(package.join("usr/sbin/tool"), b"x").expect("write");
        std::fs::set_permissions(package.join("usr/sbin/tool"), std::fs::Permissions::from_mode(0o4755))
            .expect("mode");
        std::os::unix::fs::symlink("tool", package.join("usr/sbin/tool2")).expect("link");
        let tree = Tree::new(&dir.path().join("tree")).expect("tree");
        assert_eq!(tree.pick("p", &package, "usr/sbin/tool*").expect("picked"), 2);
        let mode = tree.root().join("usr/bin/tool").metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o4755);
        let fault = tree.pick("p", &package, "usr/sbin/gone").expect_err("missing");
        assert!(fault.to_string().contains("package p has no usr/sbin/gone"), "{fault}");
    }
}
