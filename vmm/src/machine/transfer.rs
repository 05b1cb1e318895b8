//! The driver's side of snapshots and migrations: see [`super::job`].

use super::Machine;
use super::job::{Job, Outcome};
use crate::control::ClientId;
use crate::jail::{self, ThreadKind};
use crate::migration::frame::Stream;
use crate::migration::send::Sender;
use crate::snapshot::SnapshotError;
use crate::snapshot::live::Live;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::Refused;
use wire::machine::{
    MachineReply, MigrationPlan, SnapshotTaken, TransferKind, TransferPhase, TransferStatus,
};

/// A transfer under way.
pub struct Transfer {
    job: Arc<Job>,
    /// Who gets an answer at its end.
    client: Option<ClientId>,
    /// Since when the machine stands still for it, and whether it runs afterwards.
    stopped: Option<(Instant, bool)>,
    stood: Duration,
    kind: TransferKind,
    /// Why it is in doubt, when it is.
    doubt: Option<String>,
}

/// How a transfer ended.
pub struct Ended {
    /// Who waits for the answer.
    pub client: Option<ClientId>,
    /// The answer.
    pub reply: MachineReply,
    /// For the machine's status.
    pub status: TransferStatus,
    /// The machine is elsewhere, with what is to be said about that.
    pub gone: Option<String>,
}

fn handed_over() -> Refused {
    Refused::conflict("the machine is being handed over to another monitor")
        .remedy("ask again in a moment, here or there")
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
        let mut transfer = Self::new(job, client, TransferKind::Snapshot);
        if !running {
            // So it stays until all is written, whatever anybody asks for.
            transfer.stop(machine);
        }
        let (vm, memory, log) = machine.lend();
        let live = Live { vm, memory, log, state_file, memory_file, track, changes, running };
        transfer.start(machine, move |job| live.run(job))?;
        Ok(transfer)
    }

    /// Starts to send the machine to another monitor.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn migration(machine: &mut Machine, stream: Stream, plan: MigrationPlan) -> Result<Self, Refused> {
        if let Some(why) = machine.slots.unsaved(true) {
            return Err(
                Refused::conflict(format!("the machine cannot migrate with {why}")).remedy("unplug it first")
            );
        }
        if machine.can_grow() {
            return Err(Refused::conflict("a machine whose memory can be plugged in and out cannot migrate")
                .remedy("start it without max_memory"));
        }
        let job = Arc::new(Job::new(TransferKind::Outgoing, machine.signals().clone()));
        let running = machine.running();
        let mut transfer = Self::new(job, None, TransferKind::Outgoing);
        let description = machine.describe();
        if !running {
            transfer.stop(machine);
        }
        let (vm, memory, log) = machine.lend();
        let sender = Sender { vm, memory, log, stream, description, plan, running };
        transfer.start(machine, move |job| sender.run(job))?;
        Ok(transfer)
    }

    fn new(job: Arc<Job>, client: Option<ClientId>, kind: TransferKind) -> Self {
        Self { job, client, stopped: None, stood: Duration::ZERO, kind, doubt: None }
    }

    /// Share of time that is taken from the guest, in percent.
    #[must_use]
    pub fn throttle(&self) -> u8 {
        if self.stopped.is_some() { 0 } else { self.job.status().throttle }
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
        self.job.give(state, ran);
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> TransferStatus {
        let status = TransferStatus { stood_us: micros(self.stood), ..self.job.status() };
        match &self.doubt {
            Some(why) => TransferStatus { phase: TransferPhase::InDoubt, detail: why.clone(), ..status },
            None => status,
        }
    }

    /// Somebody wants the machine to run, or not. Answers whether that has to wait until the transfer is over.
    ///
    /// # Errors
    /// When the machine is being handed over, and it is not ours to say any more.
    pub fn wants(&mut self, run: bool) -> Result<bool, Refused> {
        self.changeable()?;
        let Some((_, runs)) = &mut self.stopped else { return Ok(false) };
        *runs = run;
        Ok(true)
    }

    /// Whether a change of the machine lasts.
    ///
    /// # Errors
    /// When its state is on the way elsewhere: a change would be lost.
    pub fn changeable(&self) -> Result<(), Refused> {
        if self.doubt.is_some() {
            return Err(Refused::conflict("it is not known whether this machine runs at its destination")
                .remedy("look there; then say take_back when it never ran there, or stop"));
        }
        if self.stopped.is_some() && self.kind == TransferKind::Outgoing {
            return Err(handed_over());
        }
        Ok(())
    }

    /// Whether the machine may be ended here. A migration that is under way is cancelled by that.
    ///
    /// # Errors
    /// When it may run at its destination before long, and the answer is not known yet.
    pub fn may_end(&self) -> Result<(), Refused> {
        // Somebody who ends a machine in doubt has looked.
        if self.doubt.is_some() || self.job.cancel() { Ok(()) } else { Err(handed_over()) }
    }

    /// The machine ends here, before the transfer was over as far as the driver knows. Answers who waits, and for what.
    pub fn abandon(&mut self) -> Option<(ClientId, MachineReply)> {
        // Also when nobody asked for the end, as when the guest switched itself off.
        let _ = self.job.cancel();
        let client = self.client.take()?;
        let stood = self.stopped.map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let reply = match self.job.take_outcome() {
            Some((Outcome::Saved(memory_bytes), _)) => {
                MachineReply::Snapshot(SnapshotTaken { memory_bytes, stood_us: micros(stood) })
            }
            Some((Outcome::Failed(why), _)) => MachineReply::Refused(why),
            Some((Outcome::Gone | Outcome::InDoubt(_) | Outcome::Cancelled, _)) | None => {
                MachineReply::Refused(Refused::conflict(SnapshotError::Ended.to_string()))
            }
        };
        Some((client, reply))
    }

    /// A machine that is in doubt goes on here. Answers whether it was.
    pub fn take_back(&mut self, machine: &mut Machine) -> Option<Ended> {
        let doubt = self.doubt.take()?;
        if let Some((since, runs)) = self.stopped.take() {
            if runs {
                machine.resume();
            }
            self.stood = since.elapsed();
        }
        let status = TransferStatus { phase: TransferPhase::Failed, detail: doubt, ..self.status() };
        Some(Ended { client: None, reply: MachineReply::Done, status, gone: None })
    }

    /// Wants it no more. Answers whether it was in time.
    #[must_use]
    pub fn cancel(&self) -> bool {
        self.job.cancel()
    }

    /// Does what the thread asks for. Answers how it ended, once it has.
    pub fn tend(&mut self, machine: &mut Machine) -> Option<Ended> {
        if self.stopped.is_none() && self.job.wants_stop() {
            self.stop(machine);
        }
        let (outcome, log) = self.job.take_outcome()?;
        machine.keep_log(log);
        if let Outcome::InDoubt(why) = outcome {
            eprintln!("vmm: {why}");
            self.doubt = Some(why);
            return None;
        }
        if let Outcome::Gone = &outcome {
            self.stood = self.stopped.map_or(Duration::ZERO, |(since, _)| since.elapsed());
        }
        let mut phase = TransferPhase::Done;
        let mut detail = String::new();
        let elsewhere = matches!(outcome, Outcome::Gone);
        if let Some((since, runs)) = self.stopped.take_if(|_| !elsewhere) {
            if runs {
                machine.resume();
            }
            self.stood = since.elapsed();
        }
        let mut gone = None;
        let reply = match outcome {
            Outcome::Saved(memory_bytes) => {
                MachineReply::Snapshot(SnapshotTaken { memory_bytes, stood_us: micros(self.stood) })
            }
            Outcome::Gone => {
                gone = Some(String::new());
                MachineReply::Done
            }
            Outcome::InDoubt(why) => {
                detail = why.clone();
                gone = Some(why);
                MachineReply::Done
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
        Some(Ended { client: self.client, reply, status, gone })
    }
}
