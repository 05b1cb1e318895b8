//! A link between two monitors, with somebody in the middle.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// A frame on its way.
pub struct Passing {
    /// It comes from the source.
    pub forth: bool,
    /// Its kind; 0 for a greeting.
    pub kind: u32,
    /// How many of this kind and direction passed before.
    pub before: usize,
    /// Greeting, or header and body.
    pub bytes: Vec<u8>,
}

pub const DESCRIBE: u32 = 1;
pub const DATA: u32 = 2;
pub const STOPPED: u32 = 4;
pub const STATE: u32 = 6;
pub const COMMIT: u32 = 7;
pub const ACCEPT: u32 = 32;
pub const READY: u32 = 34;
pub const RUNNING: u32 = 35;

fn next(from: &mut UnixStream, greeted: bool) -> std::io::Result<(u32, Vec<u8>)> {
    let mut bytes = vec![0; if greeted { 24 } else { 16 }];
    from.read_exact(&mut bytes)?;
    if !greeted {
        return Ok((0, bytes));
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (kind, length) = (word(0), word(4) as usize);
    let header = bytes.len();
    bytes.resize(header + length, 0);
    from.read_exact(&mut bytes[header..])?;
    Ok((kind, bytes))
}

/// Makes a link: the source's end and the destination's. `each` sees (and may change) every frame, and cuts the link by answering
/// `false`: the frame does not pass then.
pub fn link(each: impl FnMut(&mut Passing) -> bool + Send + 'static) -> (OwnedFd, OwnedFd) {
    let (source, ours) = UnixStream::pair().unwrap();
    let (destination, theirs) = UnixStream::pair().unwrap();
    let each = Arc::new(Mutex::new(each));
    for forth in [true, false] {
        let (from, to) = if forth { (&ours, &theirs) } else { (&theirs, &ours) };
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let each = each.clone();
        std::thread::spawn(move || {
            let mut seen = std::collections::BTreeMap::<u32, usize>::new();
            while let Ok((kind, bytes)) = next(&mut from, !seen.is_empty()) {
                let count = seen.entry(kind).or_default();
                let mut passing = Passing { forth, kind, before: *count, bytes };
                *count += 1;
                if !(each.lock().unwrap())(&mut passing) || to.write_all(&passing.bytes).is_err() {
                    break;
                }
            }
            for socket in [&from, &to] {
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
    }
    (source.into(), destination.into())
}
