//! Taking a snapshot of a machine that runs on meanwhile.
//!
//! Memory is written while the guest runs, then what changed meanwhile, again and again as long as that becomes less; for the rest the
//! guest stands still. A machine that is paused anyway is written at once.

use super::copy::copy;
use super::dirty::Log;
use super::memory::{MemoryFile, present};
use super::pages::Pages;
use super::{SnapshotError, file};
use crate::machine::job::{Job, Outcome};
use crate::virtio::Memory;
use kvm_ioctls::VmFd;
use std::fs::File;
use std::sync::Arc;
use wire::Refused;
use wire::machine::TransferPhase;

/// What is left may be so many pages when the guest is stopped: they are written in about a millisecond.
const FEW: u64 = 512;
/// Most times that memory is written while the guest runs.
const ROUNDS: u32 = 6;

/// A snapshot to be taken.
pub struct Live {
    /// Whose memory it is.
    pub vm: Arc<VmFd>,
    /// Memory.
    pub memory: Arc<Memory>,
    /// What was written since the last snapshot, when that is tracked.
    pub log: Option<Log>,
    /// Where the state goes.
    pub state_file: File,
    /// Where memory goes.
    pub memory_file: File,
    /// As [`wire::machine::MachineCall::Snapshot`] says.
    pub track: bool,
    /// Likewise.
    pub changes: bool,
    /// The machine runs, and is to run on.
    pub running: bool,
}

impl Live {
    /// Takes it.
    pub fn run(mut self, job: &Job) {
        let tracked = self.log.is_some();
        let taken = self.take(job);
        let keep = if taken.is_ok() { self.track } else { tracked };
        let mut log = self.log;
        if !keep && let Some(log) = log.take() {
            // Without it there is only more to do for the guest: no reason to call a good snapshot bad.
            let _ = log.stop(&self.vm, &self.memory);
        }
        let outcome = match taken {
            Ok(bytes) => Outcome::Saved(bytes),
            Err(SnapshotError::Cancelled) => Outcome::Cancelled,
            Err(error) => Outcome::Failed(refuse(&error)),
        };
        job.finish(outcome, log);
    }

    fn take(&mut self, job: &Job) -> Result<u64, SnapshotError> {
        let Self { vm, memory, .. } = self;
        if self.changes && self.log.is_none() {
            return Err(SnapshotError::NotTracked);
        }
        if self.log.is_none() && (self.running || self.track) {
            self.log = Some(Log::start(vm, memory)?);
        }
        let mut todo = if self.changes { Pages::none(memory) } else { present(memory)? };
        if let Some(log) = &mut self.log {
            log.collect(vm, memory)?;
            // Of a copy of an older file, all that is in the log is missing.
            todo.add(log.pages());
        }
        let mut to = if self.changes {
            MemoryFile::older(memory, &self.memory_file)?
        } else {
            MemoryFile::whole(memory, &self.memory_file)?
        };
        if self.running {
            for _ in 0..ROUNDS {
                let before = todo.count();
                round(job, memory, &todo, &mut to)?;
                todo.clear();
                if let Some(log) = &mut self.log {
                    todo.add(&log.collect(vm, memory)?);
                }
                if todo.count() <= FEW || todo.count() > before / 2 {
                    break;
                }
            }
        }
        let state = job.stop()?;
        if let Some(log) = &mut self.log {
            todo.add(&log.collect(vm, memory)?);
        }
        round(job, memory, &todo, &mut to)?;
        // Last: a state file that is whole goes with a memory file that is.
        file::write(&self.state_file, &state)?;
        if let Some(log) = &mut self.log {
            log.clear();
        }
        Ok(to.written())
    }
}

/// Goes through memory once.
fn round(job: &Job, memory: &Memory, todo: &Pages, to: &mut MemoryFile<'_>) -> Result<(), SnapshotError> {
    let mut left = todo.bytes();
    job.report(|status| {
        if status.phase == TransferPhase::Preparing {
            status.phase = TransferPhase::Copying;
        }
        (status.rounds, status.remaining) = (status.rounds + 1, left);
    });
    copy(memory, todo, to, |seen, went| {
        left = left.saturating_sub(seen);
        job.report(|status| {
            status.bytes += went;
            status.remaining = left;
        });
        if job.cancelled() { Err(SnapshotError::Cancelled) } else { Ok(()) }
    })
}

/// A failed snapshot as an answer.
fn refuse(error: &SnapshotError) -> Refused {
    match error {
        SnapshotError::Nested
        | SnapshotError::LargeState(_)
        | SnapshotError::NotTracked
        | SnapshotError::Cancelled
        | SnapshotError::Unsaved(_)
        | SnapshotError::Ended => Refused::conflict(error.to_string()),
        SnapshotError::File(_)
        | SnapshotError::Io { .. }
        | SnapshotError::Kvm { .. }
        | SnapshotError::Msr { .. }
        | SnapshotError::Other(_)
        | SnapshotError::Processor(_)
        | SnapshotError::Device { .. } => Refused::unavailable(error.to_string()),
    }
}
