//! Debian packages as archives: fetched once by apt (which checks the archive's signatures), kept in a cache folder, unpacked
//! without being installed.

use crate::fault::{Fault, Tool};
use crate::outdir::publish;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const APT: Tool = Tool { name: "apt-get", package: "apt" };
const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg" };

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// The `.deb` file.
    pub file: PathBuf,
}

impl Package {
    /// File name, which holds name, version and architecture.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Unpacks the package's files below `into`.
    ///
    /// # Errors
    /// When the file is no Debian package or the disk is full.
    pub fn unpack(&self, into: &Path) -> Result<(), Fault> {
        std::fs::create_dir_all(into).map_err(Fault::file("make folder", into))?;
        DPKG_DEB.run(["-x".as_ref(), self.file.as_os_str(), into.as_os_str()]).map(drop)
    }

    /// A field of the package's description, as `Depends`.
    ///
    /// # Errors
    /// When the file is no Debian package.
    pub fn field(&self, field: &str) -> Result<String, Fault> {
        let out = DPKG_DEB.run(["-f".as_ref(), self.file.as_os_str(), field.as_ref()])?;
        Ok(String::from_utf8_lossy(&out).trim().to_owned())
    }
}

/// The cache of package files.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens (and makes) the cache folder.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        std::fs::create_dir_all(dir).map_err(Fault::file("make folder", dir))?;
        let dir = dir.canonicalize().map_err(Fault::file("find", dir))?;
        Ok(Self { dir })
    }

    /// Gives every named package, fetching those that the cache lacks.
    ///
    /// # Errors
    /// [`Fault::Mirror`] when a package is neither in the cache nor to be had.
    pub fn get(&self, names: &[&str]) -> Result<Vec<Package>, Fault> {
        let have = self.scan()?;
        let missing: Vec<&str> = names.iter().copied().filter(|name| !have.contains_key(*name)).collect();
        if !missing.is_empty() {
            self.fetch(&missing)?;
        }
        let have = self.scan()?;
        names
            .iter()
            .map(|name| {
                let file = have
                    .get(*name)
                    .cloned()
                    .ok_or_else(|| self.mirror(&[name], "apt brought no such file"))?;
                Ok(Package { name: (*name).to_owned(), file })
            })
            .collect()
    }

    /// The package that `meta` depends on and whose name begins with `prefix`: how a name without a version leads to today's
    /// kernel.
    ///
    /// # Errors
    /// As [`Cache::get`]; [`Fault::PackageLayout`] when there is no such dependency.
    pub fn dependency(&self, meta: &Package, prefix: &str) -> Result<Package, Fault> {
        let depends = meta.field("Depends")?;
        let missing =
            || Fault::PackageLayout { package: meta.name.clone(), path: format!("dependency on {prefix}*") };
        let name = depends.split([' ', ',']).find(|name| name.starts_with(prefix)).ok_or_else(missing)?;
        self.get(&[name])?.pop().ok_or_else(missing)
    }

    /// The cache folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Package name to newest file (by time stamp, as apt sets the archive's).
    fn scan(&self) -> Result<BTreeMap<String, PathBuf>, Fault> {
        let mut found: BTreeMap<String, (std::time::SystemTime, PathBuf)> = BTreeMap::new();
        for entry in std::fs::read_dir(&self.dir).map_err(Fault::file("read folder", &self.dir))? {
            let entry = entry.map_err(Fault::file("read folder", &self.dir))?;
            let file = entry.path();
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let Some((name, _)) = file_name.strip_suffix(".deb").and_then(|stem| stem.split_once('_')) else {
                continue;
            };
            let changed =
                entry.metadata().and_then(|data| data.modified()).map_err(Fault::file("read", &file))?;
            match found.get(name) {
                Some((newest, _)) if *newest >= changed => {}
                Some(_) | None => {
                    found.insert(name.to_owned(), (changed, file));
                }
            }
        }
        Ok(found.into_iter().map(|(name, (_, file))| (name, file)).collect())
    }

    pub(crate) fn mirror(&self, names: &[&str], message: &str) -> Fault {
        Fault::Mirror { packages: names.join(" "), message: message.to_owned(), cache: self.dir.clone() }
    }

    fn fetch(&self, names: &[&str]) -> Result<(), Fault> {
        let partial = self.dir.join(format!(".partial-{}", std::process::id()));
        std::fs::create_dir_all(&partial).map_err(Fault::file("make folder", &partial))?;
        let result = self.fetch_into(&partial, names);
        // What was fetched has been moved; the rest is of no use.
        let _ = std::fs::remove_dir_all(&partial);
        result
    }

    fn fetch_into(&self, partial: &Path, names: &[&str]) -> Result<(), Fault> {
        if let Err(first) = download(partial, names) {
            let Fault::ToolFailed { .. } = &first else { return Err(first) };
            // Old or absent package lists are the usual cause: renew them once.
            println!("package lists are out of date: apt-get update");
            APT.run(["update", "-q"]).map_err(|fault| self.mirror(names, &tool_message(&fault)))?;
            download(partial, names).map_err(|fault| self.mirror(names, &tool_message(&fault)))?;
        }
        for entry in std::fs::read_dir(partial).map_err(Fault::file("read folder", partial))? {
            let entry = entry.map_err(Fault::file("read folder", partial))?;
            publish(&entry.path(), &self.dir.join(entry.file_name()))?;
        }
        Ok(())
    }
}

fn download(into: &Path, names: &[&str]) -> Result<(), Fault> {
    let mut command = Command::new(APT.name);
    // The folder belongs to whoever builds: apt's own unprivileged user could not write there.
    command.args(["download", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"]);
    command.args(["-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]);
    command.args(names).current_dir(into);
    APT.run_command(command).map(drop)
}

fn tool_message(fault: &Fault) -> String {
    match fault {
        Fault::ToolFailed { message, .. } => message.clone(),
        Fault::File { .. }
        | Fault::ToolMissing { .. }
        | Fault::Mirror { .. }
        | Fault::PackageLayout { .. }
        | Fault::TooLarge { .. }
        | Fault::Input(_) => fault.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;

    #[test]
    fn a_cached_package_needs_no_network() {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join("tool_1%3a2-3_amd64.deb"), b"x").expect("write");
        std::fs::write(dir.path().join("tool-extra_9_amd64.deb"), b"x").expect("write");
        let cache = Cache::open(dir.path()).expect("open");
        let packages = cache.get(&["tool"]).expect("cached");
        assert_eq!(packages[0].file_name(), "tool_1%3a2-3_amd64.deb");
    }

    #[test]
    fn a_file_that_is_no_package_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join("tool_1_amd64.deb"), b"not an archive").expect("write");
        let cache = Cache::open(dir.path()).expect("open");
        let package = cache.get(&["tool"]).expect("cached").remove(0);
        let fault = package.unpack(&dir.path().join("out")).expect_err("no archive");
        assert!(fault.to_string().contains("dpkg-deb"), "{fault}");
    }
}
