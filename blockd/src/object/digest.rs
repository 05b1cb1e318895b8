//! Digests at the speed of the disk: small content is hashed in place, large content on a thread per digest.

use bytes::Bytes;
use md5::Md5;
use sha2::{Digest, Sha512};
use std::fmt::Write as _;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Content up to this many bytes is not worth a thread.
const INLINE: u64 = 1 << 20;
/// Chunks in flight to a hashing thread.
const DEPTH: usize = 8;

enum Worker<H> {
    Here(H),
    Thread(SyncSender<Bytes>, JoinHandle<H>),
}

impl<H: Digest + Send + 'static> Worker<H> {
    fn update(&mut self, bytes: &Bytes) {
        match self {
            Self::Here(hasher) => hasher.update(bytes),
            // The thread ends only after its sender is dropped, so it is there to receive.
            Self::Thread(sender, _) => drop(sender.send(bytes.clone())),
        }
    }

    fn threaded(self) -> Self {
        match self {
            Self::Here(mut hasher) => {
                let (sender, receiver) = sync_channel::<Bytes>(DEPTH);
                let thread = std::thread::spawn(move || {
                    while let Ok(bytes) = receiver.recv() {
                        hasher.update(&bytes);
                    }
                    hasher
                });
                Self::Thread(sender, thread)
            }
            Self::Thread(sender, thread) => Self::Thread(sender, thread),
        }
    }

    fn finish(self) -> std::io::Result<String> {
        let hasher = match self {
            Self::Here(hasher) => hasher,
            Self::Thread(sender, thread) => {
                drop(sender);
                thread.join().map_err(|_| std::io::Error::other("a hashing thread died"))?
            }
        };
        Ok(hex(&hasher.finalize()))
    }
}

/// MD5 and, when asked, SHA-512 of bytes that come in pieces.
pub struct Digests {
    md5: Option<Worker<Md5>>,
    sha512: Option<Worker<Sha512>>,
    bytes: u64,
}

impl Digests {
    /// Of nothing yet.
    #[must_use]
    pub fn new(sha512: bool) -> Self {
        Self {
            md5: Some(Worker::Here(Md5::new())),
            sha512: sha512.then(|| Worker::Here(Sha512::new())),
            bytes: 0,
        }
    }

    /// Takes the next piece. Blocks while the hashing threads are behind.
    pub fn update(&mut self, bytes: &Bytes) {
        let before = self.bytes;
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if before <= INLINE && self.bytes > INLINE {
            self.md5 = self.md5.take().map(Worker::threaded);
            self.sha512 = self.sha512.take().map(Worker::threaded);
        }
        if let Some(worker) = &mut self.md5 {
            worker.update(bytes);
        }
        if let Some(worker) = &mut self.sha512 {
            worker.update(bytes);
        }
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digests in lower-case hex; the second is empty unless it was asked for.
    ///
    /// # Errors
    /// When a hashing thread died.
    pub fn finish(self) -> std::io::Result<(String, String)> {
        let md5 = self.md5.map(Worker::finish).transpose()?.unwrap_or_default();
        let sha512 = self.sha512.map(Worker::finish).transpose()?.unwrap_or_default();
        Ok((md5, sha512))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_inline_agree_with_known_digests() {
        let mut small = Digests::new(true);
        small.update(&Bytes::from_static(b"abc"));
        let (md5, sha512) = small.finish().unwrap();
        assert_eq!(md5, "900150983cd24fb0d6963f7d28e17f72");
        assert!(sha512.starts_with("ddaf35a193617abacc417349ae204131"), "{sha512}");

        // A million times "a" twice over: past the limit at which threads start.
        let mut large = Digests::new(true);
        for _ in 0..2000 {
            large.update(&Bytes::from(vec![b'a'; 1000]));
        }
        assert_eq!(large.bytes(), 2_000_000);
        let (threaded, long) = large.finish().unwrap();
        assert_eq!(threaded, hex(&Md5::digest(vec![b'a'; 2_000_000])));
        assert_eq!(long, hex(&Sha512::digest(vec![b'a'; 2_000_000])));
        assert_eq!(Digests::new(false).finish().unwrap().1, "");
    }
}
