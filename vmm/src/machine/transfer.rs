//! The driver's side of snapshots and migrations: see [`super::job`].

use super::Machine;
use super::job::{Job, Outcome};
use crate::control::ClientId;
use crate::jail::{self, ThreadKind};
use crate::snapshot::live::Live;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::Refused;
use wire::machine::{MachineReply, SnapshotTaken, TransferKind, TransferPhase, TransferStatus};

/// A transfer under way.
pub struct Transfer {
    job: Arc<Job>,
    /// Who gets an answer at its end.
    pub client: Option<ClientId>,
    /// Since when the machine stands still for it, and whether it runs afterwards.
    stopped: Option<(Instant, bool)>,
    stood: Duration,
}

/// How a transfer ended.
pub struct Ended {
    /// Who waits for the answer.
    pub client: Option<ClientId>,
    /// The answer.
    pub reply: MachineReply,
    /// For the machine's status.
    pub status: TransferStatus,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Transfer {
    /// Starts to take a snapshot.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn snapshot(
        machine: &mut Machine,
        [state_file, memory_file]: [File; 2],
        track: bool,
        changes: bool,
        client: Option<ClientId>,
    ) -> Result<Self, Refused> {
        let job = Arc::new(Job::new(TransferKind::Snapshot, machine.signals().clone()));
        if let Some(why) = machine.slots.unsaved(track || changes) {
            return Err(Refused::conflict(format!("there can be no such snapshot with {why}")));
        }
        // What other processes write is only known not to change while they stand still.
        let running = machine.running() && machine.slots.unsaved(true).is_none();
        let mut transfer = Self { job: job.clone(), client, stopped: None, stood: Duration::ZERO };
        if !running {
            // So it stays until all is written, whatever anybody asks for.
            transfer.stop(machine);
        }
        let (vm, memory, log) = machine.lend();
        let live = Live { vm, memory, log, state_file, memory_file, track, changes, running };
        transfer.start(machine, move |job| live.run(job))?;
        Ok(transfer)
    }

    /// Starts the thread. Its log is lost when there is none: then changes are not tracked any more, and the next snapshot says so.
    fn start(&self, machine: &mut Machine, run: impl FnOnce(&Job) + Send + 'static) -> Result<(), Refused> {
        let job = self.job.clone();
        let thread = std::thread::Builder::new().name("mover".into()).spawn(move || {
            if let Err(error) = jail::confine(ThreadKind::Mover) {
                let why = Refused::unavailable(format!("cannot confine the copying thread: {error}"));
                return job.finish(Outcome::Failed(why), None);
            }
            run(&job);
        });
        thread.map(drop).map_err(|error| {
            if let Some((_, true)) = self.stopped {
                machine.resume();
            }
            Refused::unavailable(format!("cannot start a thread that copies memory: {error}"))
        })
    }

    fn stop(&mut self, machine: &mut Machine) {
        let ran = machine.running();
        self.stopped = Some((Instant::now(), ran));
        let state = machine.save();
        self.job.give(state);
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> TransferStatus {
        TransferStatus { stood_us: micros(self.stood), ..self.job.status() }
    }

    /// Somebody wants the machine to run, or not. Answers whether that has to wait until the transfer is over.
    pub fn wants(&mut self, run: bool) -> bool {
        if let Some((_, runs)) = &mut self.stopped {
            *runs = run;
        }
        self.stopped.is_some()
    }

    /// Wants it no more.
    pub fn cancel(&self) {
        self.job.cancel();
    }

    /// Does what the thread asks for. Answers how it ended, once it has.
    pub fn tend(&mut self, machine: &mut Machine) -> Option<Ended> {
        if self.stopped.is_none() && self.job.wants_stop() {
            self.stop(machine);
        }
        let (outcome, log) = self.job.take_outcome()?;
        machine.keep_log(log);
        let mut phase = TransferPhase::Done;
        let mut detail = String::new();
        let go_on = self.stopped.take();
        if let Some((since, runs)) = go_on {
            if runs {
                machine.resume();
            }
            self.stood = since.elapsed();
        }
        let reply = match outcome {
            Outcome::Saved(memory_bytes) => {
                MachineReply::Snapshot(SnapshotTaken { memory_bytes, stood_us: micros(self.stood) })
            }
            Outcome::Failed(why) => {
                (phase, detail) = (TransferPhase::Failed, why.message.clone());
                MachineReply::Refused(why)
            }
            Outcome::Cancelled => {
                phase = TransferPhase::Cancelled;
                MachineReply::Refused(Refused::conflict("it was cancelled"))
            }
        };
        let remaining = if phase == TransferPhase::Done { 0 } else { self.job.status().remaining };
        let status = TransferStatus { phase, detail, remaining, throttle: 0, ..self.status() };
        Some(Ended { client: self.client, reply, status })
    }
}
