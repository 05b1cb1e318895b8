//! Configuration: one TOML file, then the files of `NAME.d/*.toml` beside it in the order of their names.
//!
//! Unknown keys are errors, so that a misspelt option never goes unnoticed. Tables merge, everything else replaces.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Why the configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; check that it exists and that this user may read it")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not TOML, or the merged whole has wrong or unknown keys.
    #[error("{path} is not a valid configuration: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why, from the parser.
        message: String,
    },
}

/// Reads `path` and its drop-ins into `T`, which should `deny_unknown_fields`.
///
/// # Errors
/// When a file cannot be read or what it says does not fit `T`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let mut merged = read(path)?;
    let mut drop_ins: Vec<PathBuf> = match std::fs::read_dir(path.with_extension("d")) {
        Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
        Err(_) => Vec::new(),
    };
    drop_ins.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    drop_ins.sort();
    for file in drop_ins {
        merge(&mut merged, read(&file)?);
    }
    T::deserialize(toml::Value::Table(merged))
        .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })
}

fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|error: toml::de::Error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        inner: Inner,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        a: u32,
        b: u32,
    }

    #[test]
    fn drop_ins_override_key_by_key_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("x.toml");
        std::fs::write(&main, "name = 'one'\n[inner]\na = 1\nb = 2\n").unwrap();
        std::fs::create_dir(dir.path().join("x.d")).unwrap();
        std::fs::write(dir.path().join("x.d/10.toml"), "[inner]\nb = 3\n").unwrap();
        std::fs::write(dir.path().join("x.d/20.toml.bak"), "not toml").unwrap();
        let sample: Sample = load(&main).unwrap();
        assert_eq!(sample, Sample { name: "one".into(), inner: Inner { a: 1, b: 3 } });

        std::fs::write(dir.path().join("x.d/10.toml"), "[inner]\nbee = 3\n").unwrap();
        let error = load::<Sample>(&main).unwrap_err().to_string();
        assert!(error.contains("bee"), "{error}");
    }
}
