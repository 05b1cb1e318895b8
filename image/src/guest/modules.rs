//! Kernel modules: which of them are needed and in which order they load. The order lets the initrd use plain `insmod`.

use crate::Fault;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The modules of one kernel package, by name (with `_`, as the kernel writes names).
#[derive(Debug)]
pub struct Modules {
    base: PathBuf,
    files: BTreeMap<String, PathBuf>,
}

/// One module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Path below the kernel's module folder, as `kernel/drivers/block/virtio_blk.ko`.
    pub path: String,
    /// The module.
    pub content: Vec<u8>,
}

impl Modules {
    /// Lists the modules below `base` (a `/lib/modules/VERSION` folder).
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(base: &Path) -> Result<Self, Fault> {
        let mut files = BTreeMap::new();
        let mut pending = vec![base.to_path_buf()];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(&dir).map_err(Fault::file("read folder", &dir))? {
                let entry = entry.map_err(Fault::file("read folder", &dir))?;
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(path);
                } else if let Some(stem) = entry.file_name().to_string_lossy().strip_suffix(".ko") {
                    files.insert(stem.replace('-', "_"), path);
                }
            }
        }
        Ok(Self { base: base.to_path_buf(), files })
    }

    /// `wanted` and everything they need, each after what it needs.
    ///
    /// # Errors
    /// [`Fault::PackageLayout`] when the kernel has no such module.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, Fault> {
        let mut ordered = Vec::new();
        for name in wanted {
            self.add(name, &mut ordered, 0)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, ordered: &mut Vec<Module>, depth: usize) -> Result<(), Fault> {
        let name = name.replace('-', "_");
        if ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        // A kernel's module graph has no cycles; a broken package must not overflow the stack.
        let missing =
            || Fault::PackageLayout { package: "linux-image".into(), path: format!("module {name}") };
        if depth > 32 {
            return Err(missing());
        }
        let file = self.files.get(&name).ok_or_else(missing)?;
        let content = std::fs::read(file).map_err(Fault::file("read", file))?;
        for needed in depends(&content) {
            self.add(&needed, ordered, depth + 1)?;
        }
        let path = file.strip_prefix(&self.base).unwrap_or(file).to_string_lossy().into_owned();
        ordered.push(Module { name, path, content });
        Ok(())
    }
}

/// The names in a module's `depends=` note. The note is a NUL-terminated string in section `.modinfo`; scanning for it spares
/// an ELF reader, and the kernel's own tools guarantee one such note.
fn depends(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &content[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Modules;

    fn write(dir: &std::path::Path, name: &str, depends: &str) {
        let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
        std::fs::create_dir_all(dir.join("kernel/drivers")).expect("folder");
        std::fs::write(dir.join(format!("kernel/drivers/{name}.ko")), content).expect("write");
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        write(dir.path(), "virtio", "");
        write(dir.path(), "virtio_ring", "virtio");
        write(dir.path(), "virtio-rng", "virtio,virtio_ring");
        let modules = Modules::open(dir.path()).expect("open");
        let names: Vec<String> = modules
            .closure(&["virtio_rng", "virtio_ring"])
            .expect("closure")
            .into_iter()
            .map(|m| m.name)
            .collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_rng"]);
        assert_eq!(
            modules.closure(&["virtio_rng"]).expect("closure")[2].path,
            "kernel/drivers/virtio-rng.ko"
        );
    }

    #[test]
    fn missing_and_circular_are_errors() {
        let dir = tempfile::tempdir().expect("temporary folder");
        write(dir.path(), "a", "b");
        write(dir.path(), "b", "a");
        let modules = Modules::open(dir.path()).expect("open");
        assert!(modules.closure(&["a"]).is_err());
        assert!(modules.closure(&["nothing"]).is_err());
    }
}
