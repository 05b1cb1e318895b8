//! The source's side of a migration.

use super::describe::Description;
use super::frame::{Kind, Stream, StreamError};
use super::pace::Pace;
use crate::machine::job::{Job, Outcome};
use crate::snapshot::copy::{Place, Sink, copy};
use crate::snapshot::dirty::Log;
use crate::snapshot::pages::Pages;
use crate::snapshot::{SnapshotError, file};
use crate::virtio::Memory;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::Refused;
use wire::machine::{MigrationPlan, TransferPhase, Unconverged};

/// Rounds in which memory may not become clearly less before the guest is slowed down.
const PATIENCE: u32 = 2;
/// By how many percent more the guest is slowed down each time, and at most.
const SLOWER: u8 = 20;
const SLOWEST: u8 = 95;

/// A machine to be sent.
pub struct Sender {
    /// Whose memory it is.
    pub vm: Arc<VmFd>,
    /// Memory.
    pub memory: Arc<Memory>,
    /// What was written since the last snapshot, when that is tracked.
    pub log: Option<Log>,
    /// Where it goes.
    pub stream: Stream,
    /// What it is.
    pub description: Description,
    /// How.
    pub plan: MigrationPlan,
    /// It runs.
    pub running: bool,
}

/// Why it did not work.
enum Failure {
    Snapshot(SnapshotError),
    Stream(StreamError),
    /// In the destination's words.
    Refused(String),
    Unconverged(String),
    InDoubt(String),
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// The stream as a place for memory.
struct Pipe<'s> {
    stream: &'s mut Stream,
    job: &'s Job,
}

impl Sink for Pipe<'_> {
    type Error = Failure;

    fn data(&mut self, place: Place, bytes: &[u8]) -> Result<(), Failure> {
        let job = self.job;
        Ok(self.stream.send(Kind::Data, place.at, 0, bytes, &mut || wanted(job))?)
    }

    fn zeros(&mut self, place: Place, len: usize) -> Result<(), Failure> {
        let job = self.job;
        Ok(self.stream.send(Kind::Zeros, place.at, len as u64, &[], &mut || wanted(job))?)
    }
}

/// Ends waits of a migration that nobody wants any more.
fn wanted(job: &Job) -> Result<(), StreamError> {
    if job.cancelled() { Err(StreamError::Cancelled) } else { Ok(()) }
}

impl Sender {
    /// Sends it.
    pub fn run(mut self, job: &Job) {
        let tracked = self.log.is_some();
        let sent = self.send(job);
        let mut log = self.log;
        if !tracked && let Some(log) = log.take() {
            // Costs the guest a little time, nothing else.
            let _ = log.stop(&self.vm, &self.memory);
        }
        let outcome = match sent {
            Ok(()) => Outcome::Gone,
            Err(Failure::InDoubt(why)) => Outcome::InDoubt(why),
            Err(Failure::Snapshot(SnapshotError::Cancelled) | Failure::Stream(StreamError::Cancelled)) => {
                Outcome::Cancelled
            }
            Err(Failure::Refused(why)) => Outcome::Failed(Refused::conflict(format!("the destination refused: {why}"))),
            Err(Failure::Unconverged(why)) => Outcome::Failed(Refused::conflict(why).remedy(
                "try again when the guest has less to do, allow it to be slowed down, a longer downtime or more bandwidth, or let it stand still for as long as it takes (finish)",
            )),
            Err(Failure::Snapshot(error)) => Outcome::Failed(Refused::unavailable(error.to_string())),
            Err(Failure::Stream(error)) => Outcome::Failed(Refused::unavailable(format!("the migration broke off: {error}"))),
        };
        job.finish(outcome, log);
    }

    fn send(&mut self, job: &Job) -> Result<(), Failure> {
        let mut idle = || wanted(job);
        self.stream.greet(&mut idle)?;
        self.stream.greeted(&mut idle)?;
        let description = serde_json::to_vec(&self.description)
            .map_err(|error| Failure::Snapshot(SnapshotError::Other(error.to_string())))?;
        self.stream.send(Kind::Describe, 0, 0, &description, &mut idle)?;
        self.stream.expect(Kind::Accept, &mut idle)?.map_err(Failure::Refused)?;

        if self.log.is_none() {
            self.log = Some(Log::start(&self.vm, &self.memory)?);
        }
        let mut todo = Pages::all(&self.memory);
        self.collect()?;
        if self.running {
            todo = self.rounds(job, todo)?;
        }
        let state = job.stop()?;
        job.report(|status| status.throttle = 0);
        self.stream.send(Kind::Stopped, 0, 0, &[], &mut idle)?;
        todo.add(&self.collect()?);
        let runs = job.runs();
        self.round(job, &todo, None)?;
        let bytes = file::encode(&state).map_err(SnapshotError::from)?;
        self.stream.send(Kind::State, 0, u64::from(runs), &bytes, &mut idle)?;
        self.stream.expect(Kind::Ready, &mut idle)?.map_err(Failure::Refused)?;
        self.hand_over(job)
    }

    /// The point of no return.
    fn hand_over(&mut self, job: &Job) -> Result<(), Failure> {
        if !job.commit() {
            return Err(Failure::Stream(StreamError::Cancelled));
        }
        let mut idle = || Ok(());
        // When it fails, it did not go out whole, and a part of it is nothing to the destination.
        self.stream.send(Kind::Commit, 0, 0, &[], &mut idle)?;
        match self.stream.expect(Kind::Running, &mut idle) {
            Ok(Ok(_)) => Ok(()),
            // Whoever refuses does not run it.
            Ok(Err(why)) => Err(Failure::Refused(why)),
            Err(error) => Err(doubt(&error)),
        }
    }

    fn collect(&mut self) -> Result<Pages, SnapshotError> {
        match &mut self.log {
            Some(log) => log.collect(&self.vm, &self.memory),
            None => Ok(Pages::none(&self.memory)),
        }
    }

    /// Sends memory while the guest runs, until what is left is sent in no more time than the guest may stand still. Answers that.
    fn rounds(&mut self, job: &Job, mut todo: Pages) -> Result<Pages, Failure> {
        let mut slow = 0;
        let mut least = u64::MAX;
        let mut stuck = 0;
        let downtime = Duration::from_millis(self.plan.downtime_ms);
        for _ in 0..self.plan.rounds.max(1) {
            let start = Instant::now();
            let sent = self.round(job, &todo, self.plan.bytes_per_second)?;
            let took = start.elapsed();
            todo = self.collect()?;
            let left = todo.bytes();
            let expected = expect(left, sent, took);
            job.report(|status| {
                status.remaining = left;
                status.expected_downtime_ms = Some(u64::try_from(expected.as_millis()).unwrap_or(u64::MAX));
                status.throttle = slow;
            });
            if expected <= downtime {
                return Ok(todo);
            }
            // Clearly less than ever before is progress.
            if left < least / 4 * 3 {
                (least, stuck) = (left, 0);
            } else {
                stuck += 1;
            }
            if self.plan.throttle && stuck >= PATIENCE && slow < SLOWEST {
                slow = (slow + SLOWER).min(SLOWEST);
                stuck = 0;
                job.report(|status| status.throttle = slow);
            }
        }
        match self.plan.otherwise {
            Unconverged::GiveUp => Err(Failure::Unconverged(format!(
                "the guest writes its memory faster than it can be sent: after {} rounds {} MiB were left",
                self.plan.rounds,
                todo.bytes() >> 20
            ))),
            Unconverged::Finish => Ok(todo),
        }
    }

    /// Sends pages once; answers how many bytes of memory they were.
    fn round(&mut self, job: &Job, todo: &Pages, limit: Option<u64>) -> Result<u64, Failure> {
        let mut left = todo.bytes();
        let mut sent = 0;
        let mut pace = Pace::new(limit);
        job.report(|status| {
            if status.phase == TransferPhase::Preparing {
                status.phase = TransferPhase::Copying;
            }
            (status.rounds, status.remaining) = (status.rounds + 1, left);
        });
        let mut pipe = Pipe { stream: &mut self.stream, job };
        copy(&self.memory, todo, &mut pipe, |seen, went| {
            left = left.saturating_sub(seen);
            sent += seen;
            job.report(|status| {
                status.bytes += went;
                status.remaining = left;
            });
            pace.spend(went);
            wanted(job)?;
            while let Some(nap) = pace.nap() {
                std::thread::sleep(nap);
                wanted(job)?;
            }
            Ok::<_, Failure>(())
        })?;
        Ok(sent)
    }
}

/// How long sending so many bytes takes when others took that long.
fn expect(left: u64, sent: u64, took: Duration) -> Duration {
    let nanos = u128::from(left) * took.as_nanos() / u128::from(sent.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn doubt(error: &StreamError) -> Failure {
    Failure::InDoubt(format!(
        "the machine was handed over and its destination did not say whether it runs there ({error}); look there, then say take_back (by hand: Ctrl-A b) when it never ran there, or stop"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_in_proportion() {
        let second = Duration::from_secs(1);
        assert_eq!(expect(50, 100, second), second / 2);
        assert_eq!(expect(0, 0, second), Duration::ZERO);
        assert!(expect(u64::MAX, 1, second) > second);
    }
}
