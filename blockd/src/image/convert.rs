//! The daemon's side of a conversion: starts the child, bounds its time, and keeps what it made.

use super::detect::Form;
use super::sandbox::Task;
use crate::object;
use crate::pool::Pool;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::Refused;
use wire::block::{BlobInfo, DiskInfo, DiskSource, ImageFacts};
use wire::ids::BlobId;

/// Largest answer of the child in bytes.
const ANSWER: u64 = 64 << 10;

/// Checks a blob against its claimed format.
///
/// # Errors
/// What is wrong with the image, or that there is no such blob.
pub fn inspect(pool: &Pool, program: &Program, id: BlobId, format: &str) -> Result<ImageFacts, Refused> {
    Form::claimed(format)?;
    let (file, _) = object::open(pool, id)?;
    program.run(pool, Task::Inspect, format, file, None)
}

/// Makes sure that the raw form of a blob exists. The caller holds the blob's lock.
///
/// # Errors
/// What is wrong with the image, or that there is no such blob.
pub fn ensure_raw(pool: &Pool, program: &Program, id: BlobId, format: &str) -> Result<DiskInfo, Refused> {
    let (file, info) = object::open(pool, id)?;
    if Form::claimed(format)? == Form::Raw {
        program.run(pool, Task::Inspect, format, file, None)?;
        return Ok(DiskInfo { path: pool.blob(id), bytes: info.bytes });
    }
    let path = pool.raw(id);
    if let Ok(facts) = path.metadata() {
        return Ok(DiskInfo { path, bytes: facts.len() });
    }
    let making = pool.make()?;
    let to = making.file().try_clone().map_err(|error| pool.fault("reopen", making.path(), &error))?;
    let facts = program.run(pool, Task::Raw, format, file, Some(to))?;
    let bytes = facts.virtual_bytes.checked_next_multiple_of(512).unwrap_or(facts.virtual_bytes);
    making.resize(bytes)?;
    making.publish(&path)?;
    Ok(DiskInfo { path, bytes })
}

/// Makes sure that a blob with a disk's or snapshot's content exists. The caller holds the locks of both.
///
/// # Errors
/// When the source or the format is not one of those that can be exported, or there is no room.
pub fn ensure_blob(
    pool: &Pool,
    program: &Program,
    id: BlobId,
    source: &DiskSource,
    format: &str,
) -> Result<BlobInfo, Refused> {
    match object::describe(pool, id) {
        Err(refused) if refused.kind == wire::RefusedKind::Missing => (),
        known => return known,
    }
    let from = match source {
        DiskSource::Disk { disk } => pool.open_read(&pool.disk(*disk), &format!("disk {disk}"))?,
        DiskSource::Snapshot { snapshot } => {
            pool.open_read(&pool.snapshot(*snapshot), &format!("snapshot {snapshot}"))?
        }
        DiskSource::Blank | DiskSource::Image { .. } | DiskSource::Files { .. } => {
            return Err(Refused::invalid("only a disk or a snapshot can be turned into a blob"));
        }
    };
    pool.room_for(0)?;
    let making = pool.make()?;
    match format {
        "raw" => pool.clone_into(&from, making.file())?,
        "qcow2" => {
            // A guest may write meanwhile: the image is made from a reflink, which stands still.
            let still = pool.make()?;
            pool.clone_into(&from, still.file())?;
            let clone =
                |file: &File| file.try_clone().map_err(|error| pool.fault("reopen", making.path(), &error));
            program.run(pool, Task::Qcow2, "raw", clone(still.file())?, Some(clone(making.file())?))?;
        }
        other => {
            let shown: String = other.chars().take(32).collect();
            return Err(Refused::invalid(format!("a disk cannot be exported as '{shown}'"))
                .remedy("ask for raw or qcow2"));
        }
    }
    let digests = object::digest_file(pool, making.file(), making.path())?;
    object::publish(pool, making, id, digests)
}

/// The program whose `convert` sub-command is the child: this one.
#[derive(Debug, Clone)]
pub struct Program(pub std::path::PathBuf);

impl Program {
    /// The running program, also after an upgrade has replaced its file.
    #[must_use]
    pub fn own() -> Self {
        Self("/proc/self/exe".into())
    }

    fn run(
        &self,
        pool: &Pool,
        task: Task,
        format: &str,
        from: File,
        to: Option<File>,
    ) -> Result<ImageFacts, Refused> {
        let limits = &pool.limits;
        let mut command = Command::new(&self.0);
        command
            .env_clear()
            .args(["convert", "--task", task.word(), "--format", format])
            .args(["--virtual-limit", &limits.image_bytes.to_string()])
            .args(["--reserve", &limits.reserve_bytes.to_string()])
            .args(["--seconds", &limits.conversion_secs.to_string()])
            .current_dir("/")
            .stdin(from)
            .stdout(to.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| Refused::unavailable(format!("cannot start the image sandbox: {error}")))?;
        let limit = Duration::from_secs(limits.conversion_secs);
        let answer = answer(&mut child, limit);
        if answer.is_err() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
        }
        let status = child.wait();
        if let Ok(status) = &status
            && let Some(signal) = status.signal()
            && answer.is_ok()
        {
            return Err(Refused::invalid(format!(
                "reading the image was stopped by signal {signal}: it needs more time or memory than allowed, or misled its reader"
            ))
            .remedy("check the image with `qemu-img check` or convert it with `qemu-img convert`"));
        }
        let answer = answer?;
        serde_json::from_slice::<Result<ImageFacts, Refused>>(&answer).unwrap_or_else(|_| {
            let said: String = String::from_utf8_lossy(&answer).chars().take(300).collect();
            Err(Refused::internal(format!("the image sandbox ended without an answer ({status:?}): {said}")))
        })
    }
}

/// Everything the child says until it closes its end, within `limit`.
fn answer(child: &mut Child, limit: Duration) -> Result<Vec<u8>, Refused> {
    let failed = |error: std::io::Error| Refused::internal(format!("the image sandbox: {error}"));
    let deadline = Instant::now() + limit;
    let mut pipe = child.stderr.take().ok_or_else(|| Refused::internal("the image sandbox has no pipe"))?;
    let mut answer = Vec::new();
    let mut piece = [0u8; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left.min(Duration::from_secs(60))).unwrap_or(PollTimeout::MAX);
        let ready = match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait) {
            Err(nix::errno::Errno::EINTR) => continue,
            ready => ready.map_err(|error| failed(error.into()))?,
        };
        if ready == 0 {
            if left.is_zero() {
                return Err(Refused::invalid(format!(
                    "the conversion of the image took longer than {} s",
                    limit.as_secs()
                ))
                .remedy("upload the image in raw format, or raise limits.conversion_secs"));
            }
            continue;
        }
        let read = pipe.read(&mut piece).map_err(failed)?;
        if read == 0 {
            return Ok(answer);
        }
        if (answer.len() + read) as u64 <= ANSWER {
            answer.extend_from_slice(&piece[..read]);
        }
    }
}
