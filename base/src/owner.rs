//! Whose a daemon's belongings are: a small file that remembers the cloud which claimed them and how far its database had
//! come. What it refuses is in [`wire::cloud`].

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use wire::cloud::{Attest, Epoch, Ground, Warrant};
use wire::ids::CloudId;
use wire::{Refused, RefusedKind};

/// What is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The cloud that claimed it.
    pub cloud: CloudId,
    /// The latest state of its database that was heard of.
    pub epoch: Epoch,
}

impl Mark {
    /// What is remembered after `claim` was heard, given what was remembered before.
    ///
    /// # Errors
    /// [`RefusedKind::Forbidden`] for another cloud, [`RefusedKind::Stale`] for an older state. The remedy is the caller's.
    pub fn heard(before: Option<Self>, claim: Attest) -> Result<Self, Refused> {
        let Some(mark) = before else { return Ok(Self { cloud: claim.cloud, epoch: claim.epoch }) };
        if mark.cloud != claim.cloud {
            let message = format!("this belongs to cloud {}, and cloud {} asks", mark.cloud, claim.cloud);
            return Err(Refused::new(RefusedKind::Forbidden, message));
        }
        if claim.epoch < mark.epoch {
            let message = format!(
                "the database of cloud {} is an older copy: it is at epoch {}, and epoch {} was heard of before; what it does not name may be newer than it",
                mark.cloud, claim.epoch.0, mark.epoch.0
            );
            return Err(Refused::new(RefusedKind::Stale, message));
        }
        Ok(Self { cloud: mark.cloud, epoch: claim.epoch })
    }

    /// What is remembered after a deletion was asked for.
    ///
    /// # Errors
    /// As [`Mark::heard`].
    pub fn permits(before: Option<Self>, warrant: &Warrant) -> Result<Self, Refused> {
        let epoch = match warrant.ground {
            Ground::Unknown { epoch } => epoch,
            Ground::Asked => before.map_or(Epoch(0), |mark| mark.epoch),
        };
        Self::heard(before, Attest { cloud: warrant.cloud, epoch })
    }
}

/// The file. It is read at each use, so that an [`Owner::adopt`] by another process holds at once.
#[derive(Debug)]
pub struct Owner {
    path: PathBuf,
    /// What is owned and the command that gives it to another cloud, for messages.
    what: &'static str,
    adopt: &'static str,
    writing: Mutex<()>,
}

impl Owner {
    /// The file at `path`. `what` is owned by it ("this storage pool"); `adopt` is the command which, followed by a cloud's
    /// id, gives that to another cloud.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, what: &'static str, adopt: &'static str) -> Self {
        Self { path: path.into(), what, adopt, writing: Mutex::new(()) }
    }

    /// Remembers who this belongs to.
    ///
    /// # Errors
    /// As [`Mark::heard`], with the remedy; when the file cannot be used.
    pub fn attest(&self, claim: Attest) -> Result<(), Refused> {
        self.update(claim.cloud, |before| Mark::heard(before, claim))
    }

    /// Whether this may be deleted by this word. Nothing else may be done before.
    ///
    /// # Errors
    /// As [`Owner::attest`].
    pub fn permits(&self, warrant: &Warrant) -> Result<(), Refused> {
        self.update(warrant.cloud, |before| Mark::permits(before, warrant))
    }

    /// Gives all of it to `cloud`, whatever state its database is in; tells whose it was.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn adopt(&self, cloud: CloudId) -> Result<Option<CloudId>, Refused> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // A damaged file is no obstacle: this is its remedy.
        let before = self.read().ok().flatten();
        self.write(&Mark { cloud, epoch: Epoch(0) })?;
        Ok(before.map(|mark| mark.cloud))
    }

    fn update(
        &self,
        asking: CloudId,
        judge: impl FnOnce(Option<Mark>) -> Result<Mark, Refused>,
    ) -> Result<(), Refused> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.read()?;
        let after = judge(before).map_err(|refused| {
            let message = format!("{}: {}; nothing was deleted", self.what, refused.message);
            let (file, adopt) = (self.path.display(), self.adopt);
            Refused::new(refused.kind, message).remedy(format!(
                "give the API the cloud's newest database back; or, to leave all of this to the database that it has now (what that does not name is then deleted), run '{adopt} {asking}' on this host; the owner is in {file}"
            ))
        })?;
        if before == Some(after) { Ok(()) } else { self.write(&after) }
    }

    fn read(&self) -> Result<Option<Mark>, Refused> {
        let trouble = |why: String| {
            Refused::unavailable(format!(
                "{}: it is not known whose it is: {} {why}; nothing was deleted",
                self.what,
                self.path.display()
            ))
            .remedy(format!("restore that file, or run '{} CLOUD' on this host", self.adopt))
        };
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| trouble(format!("is damaged: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(trouble(format!("cannot be read: {error}"))),
        }
    }

    fn write(&self, mark: &Mark) -> Result<(), Refused> {
        replace(&self.path, mark).map_err(|error| {
            let message = format!("cannot write {}: {error}", self.path.display());
            match error.kind() {
                io::ErrorKind::StorageFull => {
                    Refused::no_space(message).remedy("free some space on its file system")
                }
                _ => Refused::internal(message),
            }
        })
    }
}

/// Old or new, whenever the power goes. Readable by all: an operator's command may write it, the daemon must read it.
fn replace(path: &Path, mark: &Mark) -> io::Result<()> {
    let beside = path.with_extension("new");
    // Not one that another user left.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
    serde_json::to_writer(&mut file, mark)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cloud: CloudId, epoch: u64) -> Attest {
        Attest { cloud, epoch: Epoch(epoch) }
    }

    fn by(cloud: CloudId, ground: Ground) -> Warrant {
        Warrant { cloud, ground }
    }

    #[test]
    fn the_first_cloud_owns_it_and_no_other_deletes() {
        let dir = tempfile::tempdir().unwrap();
        let owner = || Owner::new(dir.path().join("owner.json"), "this pool", "blockd adopt");
        let (ours, theirs) = (CloudId::new(), CloudId::new());
        owner().attest(at(ours, 3)).unwrap();
        for ground in [Ground::Asked, Ground::Unknown { epoch: Epoch(99) }] {
            let refused = owner().permits(&by(theirs, ground)).unwrap_err();
            assert_eq!(refused.kind, RefusedKind::Forbidden);
            let text = refused.to_string();
            assert!(text.contains(&ours.to_string()), "{text}");
            assert!(text.contains(&format!("'blockd adopt {theirs}'")), "{text}");
        }
        assert_eq!(owner().attest(at(theirs, 99)).unwrap_err().kind, RefusedKind::Forbidden);
        owner().permits(&by(ours, Ground::Unknown { epoch: Epoch(3) })).unwrap();
        assert_eq!(owner().adopt(theirs).unwrap(), Some(ours));
        owner().permits(&by(theirs, Ground::Asked)).unwrap();
        assert_eq!(owner().permits(&by(ours, Ground::Asked)).unwrap_err().kind, RefusedKind::Forbidden);
    }

    #[test]
    fn an_older_copy_may_not_conclude_from_what_it_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner::new(dir.path().join("owner.json"), "this pool", "blockd adopt");
        let cloud = CloudId::new();
        for epoch in [7, 9, 9] {
            owner.attest(at(cloud, epoch)).unwrap();
        }
        assert_eq!(owner.attest(at(cloud, 8)).unwrap_err().kind, RefusedKind::Stale);
        let unknown = |epoch| by(cloud, Ground::Unknown { epoch: Epoch(epoch) });
        assert_eq!(owner.permits(&unknown(8)).unwrap_err().kind, RefusedKind::Stale);
        owner.permits(&by(cloud, Ground::Asked)).unwrap();
        assert_eq!(
            owner.permits(&unknown(8)).unwrap_err().kind,
            RefusedKind::Stale,
            "asking forgets nothing"
        );
        owner.permits(&unknown(9)).unwrap();
        assert_eq!(owner.adopt(cloud).unwrap(), Some(cloud));
        owner.attest(at(cloud, 8)).unwrap();
    }

    #[test]
    fn a_damaged_file_permits_nothing_and_a_write_cut_short_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owner.json");
        let owner = Owner::new(&path, "this pool", "blockd adopt");
        let cloud = CloudId::new();
        std::fs::write(path.with_extension("new"), "{").unwrap();
        owner.attest(at(cloud, 1)).unwrap();
        std::fs::write(&path, "{").unwrap();
        let refused = owner.permits(&by(cloud, Ground::Asked)).unwrap_err();
        assert!(refused.message.contains("damaged") && refused.remedy.contains("blockd adopt"), "{refused}");
        assert_eq!(owner.adopt(cloud).unwrap(), None);
        owner.permits(&by(cloud, Ground::Asked)).unwrap();
    }
}
