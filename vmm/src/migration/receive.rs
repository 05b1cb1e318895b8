//! The destination's side of a migration, up to where the machine can be built.

use super::describe::{Description, Host};
use super::frame::{Frame, Kind, Stream, StreamError, words};
use crate::machine::job::begun;
use crate::snapshot::memory::PAGE;
use crate::snapshot::pages::Pages;
use crate::snapshot::{MachineState, file};
use crate::virtio::Memory;
use std::time::{Duration, Instant};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use wire::machine::{TransferKind, TransferPhase, TransferStatus};

/// How often whoever watches is heard while frames keep coming.
const LOOK_UP: Duration = Duration::from_millis(20);

/// Why no machine came.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream.
    #[error("no machine came: {0}")]
    Stream(#[from] StreamError),
    /// It does not fit.
    #[error("the machine that wants to come does not fit: {0}")]
    Unfit(String),
    /// No memory for it.
    #[error("no memory for the machine that wants to come: {0}")]
    Memory(#[from] crate::machine::memory::MemoryError),
    /// Its state cannot be used.
    #[error("the machine that came cannot be used: {0}")]
    State(#[from] file::FileError),
    /// The source gave up.
    #[error("the source gave up: {0}")]
    GivenUp(String),
    /// No thread that may read the stream.
    #[error("cannot start a confined thread that takes the machine in: {0}")]
    Thread(std::io::Error),
}

/// Whoever watches a machine come: hears how far it is, and may end it.
pub type Watch<'w> = &'w mut dyn FnMut(&TransferStatus) -> Result<(), StreamError>;

/// Makes memory for the machine, once it is known to fit.
pub type Reserve<'r> = &'r mut dyn FnMut() -> Result<Memory, ReceiveError>;

/// A machine that came and does not run yet.
#[derive(Debug)]
pub struct Received {
    /// To the source.
    pub stream: Stream,
    /// Its state.
    pub state: Box<MachineState>,
    /// Its memory.
    pub memory: Memory,
    /// Since when its guest stands still, by this host's clock.
    pub stopped: Instant,
    /// It is to run.
    pub runs: bool,
    /// For the machine's status.
    pub status: TransferStatus,
}

/// Takes a machine in. On an error the source has been told as far as possible.
///
/// # Errors
/// [`ReceiveError`]
pub fn receive(
    mut stream: Stream,
    host: &Host,
    reserve: Reserve<'_>,
    watch: Watch<'_>,
) -> Result<Received, ReceiveError> {
    let mut status = begun(TransferKind::Incoming);
    match take(&mut stream, host, reserve, &mut status, watch) {
        Ok(taken) => {
            let Taken { state, memory, stopped, runs } = taken;
            Ok(Received { stream, state, memory, stopped, runs, status })
        }
        Err(error) => {
            refuse(&mut stream, &error.to_string());
            Err(error)
        }
    }
}

/// Tells the source why the machine cannot run here, as far as that is possible at once.
pub fn refuse(stream: &mut Stream, why: &str) {
    let mut at_once = || Err(StreamError::Cancelled);
    let _ = stream.send(Kind::Refuse, 0, 0, &words(why), &mut at_once);
}

struct Taken {
    state: Box<MachineState>,
    memory: Memory,
    stopped: Instant,
    runs: bool,
}

fn take(
    stream: &mut Stream,
    host: &Host,
    reserve: Reserve<'_>,
    status: &mut TransferStatus,
    watch: Watch<'_>,
) -> Result<Taken, ReceiveError> {
    // First, so that the other side knows whom it talks to whatever comes next.
    stream.greet(&mut || watch(status))?;
    stream.greeted(&mut || watch(status))?;
    let described = stream.receive(&mut || watch(status))?;
    let described: Description = match described.kind {
        Kind::Describe => serde_json::from_slice(&described.body)
            .map_err(|error| StreamError::Wrong(format!("a description that cannot be read: {error}")))?,
        other => return Err(StreamError::Wrong(format!("{other:?} came instead of Describe")).into()),
    };
    let unfit = described.unfit(host);
    if let Some(why) = unfit {
        return Err(ReceiveError::Unfit(why));
    }
    let memory = reserve()?;
    stream.send(Kind::Accept, 0, 0, &[], &mut || watch(status))?;

    let mut place = Inbox { came: Pages::none(&memory), memory: &memory };
    let mut stopped = None;
    let mut looked = Instant::now();
    status.phase = TransferPhase::Copying;
    loop {
        let frame = stream.receive(&mut || watch(status))?;
        match frame.kind {
            Kind::Data | Kind::Zeros => status.bytes += place.take(&frame)?,
            Kind::Stopped => {
                stopped = Some(Instant::now());
                status.phase = TransferPhase::Stopped;
            }
            Kind::State => {
                let Some(stopped) = stopped else {
                    return Err(StreamError::Wrong("State came before Stopped".into()).into());
                };
                let state = Box::new(file::read(&frame.body)?);
                return Ok(Taken { state, stopped, runs: frame.number & 1 != 0, memory });
            }
            Kind::Refuse => return Err(ReceiveError::GivenUp(super::frame::text(&frame.body))),
            other @ (Kind::Describe | Kind::Commit | Kind::Accept | Kind::Ready | Kind::Running) => {
                return Err(StreamError::Wrong(format!("{other:?} came among memory")).into());
            }
        }
        if looked.elapsed() >= LOOK_UP {
            looked = Instant::now();
            watch(status)?;
        }
    }
}

/// Where memory comes to.
struct Inbox<'m> {
    memory: &'m Memory,
    /// Pages that are not zero any more.
    came: Pages,
}

impl Inbox<'_> {
    /// Takes pages; answers how many bytes of data they had.
    fn take(&mut self, frame: &Frame) -> Result<u64, StreamError> {
        let zeros = frame.kind == Kind::Zeros;
        let length = if zeros { frame.number } else { frame.body.len() as u64 };
        let (region, bytes) = place(self.memory, frame.at, length)?;
        let Some(start) = self.memory.iter().nth(region).map(GuestMemoryRegion::start_addr) else {
            return Ok(0);
        };
        if zeros {
            for page in bytes.step_by(PAGE).filter(|page| self.came.has(region, *page)) {
                write(self.memory, start, page, &[0; PAGE])?;
            }
            return Ok(0);
        }
        write(self.memory, start, bytes.start, &frame.body)?;
        self.came.set(region, bytes);
        Ok(length)
    }
}

fn write(memory: &Memory, start: GuestAddress, offset: usize, bytes: &[u8]) -> Result<(), StreamError> {
    let at = start.checked_add(offset as u64);
    let written = at.map(|at| memory.write_slice(bytes, at));
    match written {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) | None => Err(StreamError::Wrong("memory that the machine does not have".into())),
    }
}

/// The region of whole pages and where they are in it.
///
/// # Errors
/// When they are not in one region, or are no whole pages.
pub fn place(memory: &Memory, at: u64, length: u64) -> Result<(usize, std::ops::Range<usize>), StreamError> {
    let page = PAGE as u64;
    let wrong = || StreamError::Wrong(format!("{length} bytes of memory at {at:#x}"));
    if !at.is_multiple_of(page) || !length.is_multiple_of(page) || length == 0 {
        return Err(wrong());
    }
    let mut before = 0u64;
    for (index, region) in memory.iter().enumerate() {
        if let Some(offset) = at.checked_sub(before).filter(|offset| *offset < region.len()) {
            let end = offset.checked_add(length).filter(|end| *end <= region.len()).ok_or_else(wrong)?;
            let (Ok(start), Ok(end)) = (usize::try_from(offset), usize::try_from(end)) else {
                return Err(wrong());
            };
            return Ok((index, start..end));
        }
        before = before.saturating_add(region.len());
    }
    Err(wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Ram;
    use crate::machine::slots::Role;
    use crate::migration::describe::Tsc;
    use kvm_bindings::{CpuId, kvm_cpuid_entry2};
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use wire::MiB;
    use wire::machine::MemoryBacking;

    fn host() -> Host {
        let cpuid = [kvm_cpuid_entry2::default()];
        let tsc = Tsc { khz: 0, scales: false };
        Host {
            vcpus: 1,
            memory: MiB(32),
            supported: CpuId::from_entries(&cpuid).unwrap(),
            roles: vec![Role::Rng],
            tsc,
        }
    }

    fn description() -> Vec<u8> {
        let cpuid = vec![kvm_cpuid_entry2::default()];
        let roles = vec![Role::Rng];
        let described = Description { vcpus: 1, memory: MiB(32), cpuid, tsc_khz: 0, roles };
        serde_json::to_vec(&described).unwrap()
    }

    fn frame(kind: Kind, at: u64, number: u64, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        [&(kind as u32).to_le_bytes()[..], &length, &at.to_le_bytes(), &number.to_le_bytes(), body].concat()
    }

    /// What becomes of a machine that is sent so.
    fn came(frames: &[Vec<u8>]) -> Result<Received, String> {
        let (one, two) = UnixStream::pair().unwrap();
        let bytes = [b"FERROMIG\x01\0\0\0\0\0\0\0".to_vec(), frames.concat()].concat();
        let writer = std::thread::spawn(move || {
            let _ = (&two).write_all(&bytes);
            let _ = two.shutdown(std::net::Shutdown::Write);
            two
        });
        let ram = Ram::new(MiB(32), MemoryBacking::default());
        let stream = Stream::new(one.into()).unwrap();
        let came = receive(stream, &host(), &mut || Ok(ram.reserve()?), &mut |_| Ok(()));
        drop(writer.join().unwrap());
        came.map_err(|error| error.to_string())
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let describe = || frame(Kind::Describe, 0, 0, &description());
        let page = vec![7; PAGE];
        let said = |frames: &[Vec<u8>]| came(frames).unwrap_err();
        assert!(said(&[]).contains("closed the stream"));
        assert!(said(&[frame(Kind::Data, 0, 0, &page)]).contains("instead of Describe"));
        assert!(said(&[frame(Kind::Describe, 0, 0, b"{}")]).contains("cannot be read"));
        assert!(said(&[describe(), frame(Kind::Commit, 0, 0, b"")]).contains("Commit came among memory"));
        assert!(said(&[describe(), frame(Kind::State, 0, 0, b"")]).contains("before Stopped"));
        assert!(said(&[describe(), frame(Kind::Refuse, 0, 0, b"not now")]).contains("gave up: not now"));
        for (at, number, body) in [
            (1, 0, page.as_slice()),
            (0, 0, &page[1..]),
            (32 << 20, 0, &page),
            ((32 << 20) - 4096, 0, &[page.clone(), page.clone()].concat()),
            (u64::MAX - 4095, 0, &page),
        ] {
            assert!(
                said(&[describe(), frame(Kind::Data, at, number, body)]).contains("bytes of memory at"),
                "{at:#x}"
            );
        }
        assert!(
            said(&[describe(), frame(Kind::Zeros, 0, u64::MAX - 4095, b"")]).contains("bytes of memory at")
        );
        let state = [
            describe(),
            frame(Kind::Data, 8192, 0, &page),
            frame(Kind::Stopped, 0, 0, b""),
            frame(Kind::State, 0, 1, b"x"),
        ];
        assert!(said(&state).contains("cannot be used"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_stream_is_too_strange(kinds in prop::collection::vec((0usize..8, any::<u64>(), any::<u64>(), 0usize..3), 0..8)) {
            let all = [Kind::Data, Kind::Zeros, Kind::Stopped, Kind::State, Kind::Commit, Kind::Accept, Kind::Refuse, Kind::Describe];
            let mut frames = vec![frame(Kind::Describe, 0, 0, &description())];
            for (kind, at, number, pages) in kinds {
                let at = if at % 2 == 0 { at % (33 << 20) / 4096 * 4096 } else { at };
                let body = if matches!(all[kind], Kind::Data | Kind::State | Kind::Refuse | Kind::Describe) { vec![1; pages * 2048] } else { Vec::new() };
                frames.push(frame(all[kind], at, number / 4096 * 4096, &body));
            }
            prop_assert!(came(&frames).is_err());
        }
    }
}
