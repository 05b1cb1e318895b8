//! Wanted state on disk: one JSON file per network and router, written before it is acted on, so that a restart
//! settles by itself without the control plane.
//!
//! What was forgotten leaves a tombstone with its generation for a day, so that a late, repeated call of the past does
//! not bring it back.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use wire::{Generation, Refused, RefusedKind};

/// How long a tombstone stays.
const TOMBSTONE: Duration = Duration::from_secs(24 * 3600);

/// A subject as it should be; without `spec`, it should not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<S> {
    /// Number of this wanted state.
    pub generation: Generation,
    /// How it should be.
    pub spec: Option<S>,
}

/// The files of one kind of subject.
#[derive(Debug)]
pub struct Shelf<K, S> {
    dir: PathBuf,
    entries: BTreeMap<K, Entry<S>>,
}

impl<K, S> Shelf<K, S>
where
    K: Copy + Ord + FromStr + std::fmt::Display,
    S: Clone + PartialEq + Serialize + DeserializeOwned,
{
    /// Reads all files; drops leftovers of writes that a crash cut short, and old tombstones.
    ///
    /// # Errors
    /// When the folder or a file cannot be read; a file that is not what we wrote is named.
    pub fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut entries = BTreeMap::new();
        for file in std::fs::read_dir(&dir)? {
            let path = file?.path();
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if extension == "new" {
                std::fs::remove_file(&path)?;
                continue;
            }
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let (Ok(id), "json") = (stem.parse::<K>(), extension) else { continue };
            let bytes = std::fs::read(&path)?;
            let entry: Entry<S> = serde_json::from_slice(&bytes).map_err(|error| {
                let message = format!("{} is damaged: {error}; remove it and restart", path.display());
                std::io::Error::new(std::io::ErrorKind::InvalidData, message)
            })?;
            let old = path.metadata()?.modified()?.elapsed().unwrap_or_default() > TOMBSTONE;
            if entry.spec.is_none() && old {
                std::fs::remove_file(&path)?;
                continue;
            }
            entries.insert(id, entry);
        }
        Ok(Self { dir, entries })
    }

    /// Takes a wanted state, durably. Repeating the one in force is harmless.
    ///
    /// # Errors
    /// `Stale` for an older generation, `Conflict` for the same generation with other content.
    pub fn put(&mut self, id: K, generation: Generation, spec: Option<S>) -> Result<(), Refused> {
        if let Some(known) = self.entries.get(&id) {
            if generation < known.generation {
                let message =
                    format!("generation {} of {id} is older than {}", generation.0, known.generation.0);
                return Err(Refused::new(RefusedKind::Stale, message));
            }
            if generation == known.generation {
                if known.spec == spec {
                    return Ok(());
                }
                let message =
                    format!("generation {} of {id} was already given, and said otherwise", generation.0);
                return Err(Refused::conflict(message).remedy("number every change with a higher generation"));
            }
        } else if spec.is_none() {
            return Ok(());
        }
        let entry = Entry { generation, spec };
        write(&self.dir, &id.to_string(), &entry).map_err(|error| {
            Refused::unavailable(format!("cannot keep {id} in {}: {error}", self.dir.display()))
        })?;
        self.entries.insert(id, entry);
        Ok(())
    }

    /// The wanted state of one subject.
    #[must_use]
    pub fn get(&self, id: K) -> Option<&Entry<S>> {
        self.entries.get(&id)
    }

    /// Forgets in memory only, for a purge: the files stay.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// All subjects that should be.
    pub fn live(&self) -> impl Iterator<Item = (K, Generation, &S)> {
        self.entries.iter().filter_map(|(id, entry)| Some((*id, entry.generation, entry.spec.as_ref()?)))
    }
}

fn write<T: Serialize>(dir: &Path, stem: &str, value: &T) -> std::io::Result<()> {
    let (new, path) = (dir.join(format!("{stem}.new")), dir.join(format!("{stem}.json")));
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::RouterId;

    #[test]
    fn generations_rule_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Shelf::<RouterId, String>::open(dir.path().join("routers")).unwrap();
        let (mut shelf, id) = (open(), RouterId::new());
        shelf.put(id, Generation(2), Some("a".into())).unwrap();
        shelf.put(id, Generation(2), Some("a".into())).unwrap();
        let kind = |outcome: Result<(), Refused>| outcome.unwrap_err().kind;
        assert_eq!(kind(shelf.put(id, Generation(2), Some("b".into()))), RefusedKind::Conflict);
        assert_eq!(kind(shelf.put(id, Generation(1), Some("a".into()))), RefusedKind::Stale);
        std::fs::write(dir.path().join(format!("routers/{}.new", RouterId::new())), "half").unwrap();
        let mut shelf = open();
        assert_eq!(shelf.get(id).unwrap().spec.as_deref(), Some("a"));
        assert_eq!(std::fs::read_dir(dir.path().join("routers")).unwrap().count(), 1);
        shelf.put(id, Generation(3), None).unwrap();
        assert_eq!(kind(open().put(id, Generation(2), Some("a".into()))), RefusedKind::Stale);
        assert_eq!(open().live().count(), 0);
    }
}
