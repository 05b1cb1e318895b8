//! What goes over the stream between two monitors.
//!
//! Each side begins with a greeting of 16 bytes: `FERROMIG`, the version that it speaks (32 bits, little-endian) and 32 bits of zero. The
//! lower version counts. Then come frames: a header of 24 bytes and what belongs to it.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | [`Kind`] |
//! | 4 | 4 | bytes that follow the header |
//! | 8 | 8 | place in guest RAM, region after region, in bytes |
//! | 16 | 8 | a number, see [`Kind`] |
//!
//! Nothing that comes in is believed: lengths are bounded by the kind of frame before anything is reserved, and whoever takes a frame
//! checks its place.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Version that this monitor speaks. It understands all before it.
pub const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"FERROMIG";
const HEADER: usize = 24;

/// Most bytes of memory in a frame.
pub const MOST_DATA: usize = 256 << 10;
/// Most bytes of text in a frame.
const MOST_TEXT: usize = 4096;
/// Most bytes that describe a machine.
const MOST_DESCRIPTION: usize = 1 << 20;

/// For how long a stream may stand still before it counts as broken.
pub const STALL: Duration = Duration::from_secs(30);
/// How often whoever waits looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(50);

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// To the destination: the machine as JSON, before anything else.
    Describe = 1,
    /// Whole pages.
    Data = 2,
    /// The number is how many bytes of zeros there are.
    Zeros = 3,
    /// The guest stands still from now on.
    Stopped = 4,
    /// The state, as in a state file. The number is 1 when the guest is to run.
    State = 6,
    /// The machine is the destination's.
    Commit = 7,
    /// To the source: the machine fits.
    Accept = 32,
    /// Why not, as text.
    Refuse = 33,
    /// All has come, and the machine can run.
    Ready = 34,
    /// The machine runs.
    Running = 35,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Describe,
        Self::Data,
        Self::Zeros,
        Self::Stopped,
        Self::State,
        Self::Commit,
        Self::Accept,
        Self::Refuse,
        Self::Ready,
        Self::Running,
    ];

    /// Most bytes that may follow its header.
    fn most(self) -> usize {
        match self {
            Self::Describe => MOST_DESCRIPTION,
            Self::Data => MOST_DATA,
            Self::State => usize::try_from(crate::snapshot::file::LARGEST).unwrap_or(usize::MAX),
            Self::Refuse => MOST_TEXT,
            Self::Zeros | Self::Stopped | Self::Commit | Self::Accept | Self::Ready | Self::Running => 0,
        }
    }
}

/// A frame that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Place in guest RAM.
    pub at: u64,
    /// A number.
    pub number: u64,
    /// What follows.
    pub body: Vec<u8>,
}

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The other side is gone.
    #[error("the other side closed the stream")]
    Closed,
    /// The system said something else.
    #[error("the stream broke: {0}")]
    Broken(std::io::Error),
    /// Nothing moves.
    #[error("nothing moved on the stream for {} s", STALL.as_secs())]
    Stalled,
    /// There is something else at the other end.
    #[error("the other side does not speak the migration protocol: it does not begin with FERROMIG")]
    Protocol,
    /// No version in common.
    #[error("the other side speaks version {0} of the migration protocol, and this monitor 1 to {VERSION}")]
    Version(u32),
    /// Nonsense.
    #[error("the other side broke the migration protocol: {0}")]
    Wrong(String),
    /// Whoever waits is not to wait any more.
    #[error("it was cancelled")]
    Cancelled,
}

impl From<std::io::Error> for StreamError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

/// What whoever waits for a stream does meanwhile, again and again; an error ends the wait.
pub type Idle<'i> = &'i mut dyn FnMut() -> Result<(), StreamError>;

/// A stream to another monitor.
#[derive(Debug)]
pub struct Stream {
    file: File,
}

impl Stream {
    /// Over a connected stream socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(socket: OwnedFd) -> nix::Result<Self> {
        crate::control::set_nonblocking(socket.as_fd())?;
        Ok(Self { file: socket.into() })
    }

    /// The socket, to poll.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Greets.
    ///
    /// # Errors
    /// [`StreamError`]
    pub fn greet(&mut self, idle: Idle<'_>) -> Result<(), StreamError> {
        let mut greeting = MAGIC.to_vec();
        greeting.extend(VERSION.to_le_bytes());
        greeting.extend([0; 4]);
        self.write(&greeting, idle)
    }

    /// Takes the other side's greeting; answers the version that counts.
    ///
    /// # Errors
    /// [`StreamError`]
    pub fn greeted(&mut self, idle: Idle<'_>) -> Result<u32, StreamError> {
        let mut greeting = [0; 16];
        self.read(&mut greeting, idle)?;
        if !greeting.starts_with(&MAGIC) {
            return Err(StreamError::Protocol);
        }
        match word(&greeting, 8) {
            0 => Err(StreamError::Version(0)),
            version => Ok(version.min(VERSION)),
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// [`StreamError`]: the frame did not go out whole.
    pub fn send(
        &mut self,
        kind: Kind,
        at: u64,
        number: u64,
        body: &[u8],
        idle: Idle<'_>,
    ) -> Result<(), StreamError> {
        let length = u32::try_from(body.len()).map_err(|_| StreamError::Wrong("too much at once".into()))?;
        let mut header = [0; HEADER];
        let fields = [
            &(kind as u32).to_le_bytes()[..],
            &length.to_le_bytes(),
            &at.to_le_bytes(),
            &number.to_le_bytes(),
        ];
        for (to, from) in header.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        self.write(&header, idle)?;
        if !body.is_empty() {
            self.write(body, idle)?;
        }
        Ok(())
    }

    /// Takes a frame.
    ///
    /// # Errors
    /// [`StreamError`]
    pub fn receive(&mut self, idle: Idle<'_>) -> Result<Frame, StreamError> {
        let mut header = [0; HEADER];
        self.read(&mut header, idle)?;
        let (kind, length) = (word(&header, 0), word(&header, 4));
        let long = |at| u64::from(word(&header, at)) | (u64::from(word(&header, at + 4)) << 32);
        let known = Kind::ALL.into_iter().find(|known| *known as u32 == kind);
        let Some(kind) = known else {
            return Err(StreamError::Wrong(format!("there is no frame of kind {kind}")));
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > kind.most() {
            return Err(StreamError::Wrong(format!("a frame {kind:?} with {length} bytes")));
        }
        let mut body = vec![0; length];
        self.read(&mut body, idle)?;
        Ok(Frame { kind, at: long(8), number: long(16), body })
    }

    /// Takes a frame that must be of a kind; a refusal becomes an error.
    ///
    /// # Errors
    /// [`StreamError`]; the other side's words in [`StreamError::Wrong`] when it refused.
    pub fn expect(&mut self, kind: Kind, idle: Idle<'_>) -> Result<Result<Frame, String>, StreamError> {
        let frame = self.receive(idle)?;
        match frame.kind {
            Kind::Refuse => Ok(Err(text(&frame.body))),
            other if other == kind => Ok(Ok(frame)),
            other => Err(StreamError::Wrong(format!("{other:?} came instead of {kind:?}"))),
        }
    }

    fn write(&mut self, bytes: &[u8], idle: Idle<'_>) -> Result<(), StreamError> {
        let mut rest = bytes;
        let mut still = Instant::now();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(StreamError::Closed),
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    still = Instant::now();
                }
                Err(error) => self.wait(error, PollFlags::POLLOUT, still, idle)?,
            }
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8], idle: Idle<'_>) -> Result<(), StreamError> {
        let mut done = 0;
        let mut still = Instant::now();
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read(rest) {
                Ok(0) => return Err(StreamError::Closed),
                Ok(count) => {
                    done += count;
                    still = Instant::now();
                }
                Err(error) => self.wait(error, PollFlags::POLLIN, still, idle)?,
            }
        }
        Ok(())
    }

    fn wait(
        &self,
        error: std::io::Error,
        events: PollFlags,
        still: Instant,
        idle: Idle<'_>,
    ) -> Result<(), StreamError> {
        match error.kind() {
            ErrorKind::Interrupted => return Ok(()),
            ErrorKind::WouldBlock => {}
            _ => return Err(error.into()),
        }
        if still.elapsed() >= STALL {
            return Err(StreamError::Stalled);
        }
        idle()?;
        let mut fds = [PollFd::new(self.file.as_fd(), events)];
        match poll(&mut fds, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(StreamError::Broken(error.into())),
        }
    }
}

/// A text that came in, harmless to show.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|letter| !letter.is_control()).collect()
}

/// A text to send, not too long.
#[must_use]
pub fn words(text: &str) -> Vec<u8> {
    text.bytes().take(MOST_TEXT).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Stream, Stream) {
        let (one, two) = UnixStream::pair().unwrap();
        (Stream::new(one.into()).unwrap(), Stream::new(two.into()).unwrap())
    }

    fn go_on() -> Result<(), StreamError> {
        Ok(())
    }

    #[test]
    fn what_is_sent_comes() {
        let (mut one, mut two) = pair();
        one.greet(&mut go_on).unwrap();
        assert_eq!(two.greeted(&mut go_on).unwrap(), VERSION);
        one.send(Kind::Data, 4096, 7, &[5; 4096], &mut go_on).unwrap();
        let frame = two.receive(&mut go_on).unwrap();
        assert_eq!(frame, Frame { kind: Kind::Data, at: 4096, number: 7, body: vec![5; 4096] });
        two.send(Kind::Refuse, 0, 0, b"no\n", &mut go_on).unwrap();
        assert_eq!(one.expect(Kind::Accept, &mut go_on).unwrap(), Err("no".into()));
        two.send(Kind::Ready, 0, 0, b"", &mut go_on).unwrap();
        assert!(matches!(one.expect(Kind::Accept, &mut go_on), Err(StreamError::Wrong(_))));
        one.send(Kind::Commit, 0, 0, b"", &mut go_on).unwrap();
        drop(two);
        assert!(matches!(one.send(Kind::Commit, 0, 0, b"", &mut go_on), Err(StreamError::Closed)));
        assert!(matches!(one.receive(&mut go_on), Err(StreamError::Closed | StreamError::Wrong(_))));
    }

    #[test]
    fn strangers_are_told_in_words() {
        let said = |bytes: &[u8]| {
            let (mut one, two) = pair();
            (&two.file).write_all(bytes).unwrap();
            drop(two);
            one.greeted(&mut go_on).unwrap_err().to_string()
        };
        assert!(said(b"GET / HTTP/1.1\r\n\r\n").contains("FERROMIG"));
        assert!(said(b"FERROMIG\0\0\0\0\0\0\0\0").contains("version 0"));
        assert!(said(b"FERRO").contains("closed"));
        let (mut one, two) = pair();
        (&two.file).write_all(b"FERROMIG\x63\0\0\0\0\0\0\0").unwrap();
        assert_eq!(one.greeted(&mut go_on).unwrap(), VERSION);
    }

    #[test]
    fn waiting_ends_when_it_is_to() {
        let (mut one, _two) = pair();
        let mut ticks = 0;
        let mut idle = || {
            ticks += 1;
            if ticks > 1 { Err(StreamError::Cancelled) } else { Ok(()) }
        };
        assert!(matches!(one.receive(&mut idle), Err(StreamError::Cancelled)));
        let mut never = || Err(StreamError::Cancelled);
        let sent = one.send(Kind::Data, 0, 0, &vec![0; 8 << 20], &mut never);
        assert!(matches!(sent, Err(StreamError::Cancelled)));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u32..40, length in any::<u32>()) {
            let (mut one, two) = pair();
            let header = [&kind.to_le_bytes()[..], &length.to_le_bytes(), &bytes].concat();
            (&two.file).write_all(&header).unwrap();
            drop(two);
            while one.receive(&mut go_on).is_ok() {}
        }
    }
}
