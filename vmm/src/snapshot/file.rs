//! The state file.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `FERROVMS` |
//! | 8 | 4 | version of the body, little-endian |
//! | 12 | 4 | CRC-32 (IEEE) of the body, little-endian |
//! | 16 | 8 | length of the body, little-endian |
//! | 24 | | [`MachineState`] as JSON |
//!
//! JSON, because a later version must read it: fields that it adds have defaults, and fields that it drops are ignored. Structures of KVM
//! are arrays of their bytes, whose layout is the kernel's promise. [`read`] takes any bytes: it is bounded in time and memory by their
//! length, and the length by [`LARGEST`].

use super::MachineState;
use std::fs::File;
use std::io::{Read, Write};

const MAGIC: [u8; 8] = *b"FERROVMS";
const HEADER: usize = 24;

/// Version of the body that is written. Readers take this and all before it.
pub const VERSION: u32 = 1;

/// Largest state file in bytes: 64 processors with all their registers are far below it.
pub const LARGEST: u64 = 16 << 20;

/// Why a state file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("cannot read or write the snapshot's state file: {0}")]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("this is no state file of a snapshot: it does not begin with FERROVMS")]
    Kind,
    /// A later monitor wrote it.
    #[error(
        "the snapshot has format version {0}, and this monitor reads up to {VERSION}; use the monitor that took it, or a later one"
    )]
    Version(u32),
    /// It is cut, was changed, or was never finished.
    #[error("the snapshot's state file is damaged: {0}")]
    Damaged(String),
}

/// Writes a state into an empty file. Syncing it is the caller's.
///
/// # Errors
/// What the file system says.
pub fn write(mut to: &File, state: &MachineState) -> Result<(), FileError> {
    Ok(to.write_all(&encode(state)?)?)
}

/// A state as the bytes of its file.
///
/// # Errors
/// Never in practice: the types have nothing that JSON cannot hold.
pub fn encode(state: &MachineState) -> Result<Vec<u8>, FileError> {
    Ok(frame(&serde_json::to_vec(state).map_err(std::io::Error::from)?))
}

/// A body with its header.
#[must_use]
pub fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32(body).to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Reads a state from a file's start.
///
/// # Errors
/// [`FileError`]
pub fn load(from: &mut File) -> Result<MachineState, FileError> {
    std::io::Seek::rewind(from)?;
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(FileError::Damaged(format!("it has more than {LARGEST} bytes")));
    }
    read(&bytes)
}

/// Reads a state from a file's bytes.
///
/// # Errors
/// [`FileError`]
pub fn read(bytes: &[u8]) -> Result<MachineState, FileError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FileError::Kind);
    }
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map(u32::from_le_bytes).ok_or_else(|| FileError::Damaged("it ends in its header".into()))
    };
    let (version, sum) = (word(8)?, word(12)?);
    if version == 0 || version > VERSION {
        return Err(FileError::Version(version));
    }
    let length = u64::from(word(16)?) | (u64::from(word(20)?) << 32);
    let body = bytes.get(HEADER..).unwrap_or_default();
    if body.len() as u64 != length {
        return Err(FileError::Damaged(format!("its body has {} bytes instead of {length}", body.len())));
    }
    if crc32(body) != sum {
        return Err(FileError::Damaged("its checksum does not match".into()));
    }
    let state: MachineState =
        serde_json::from_slice(body).map_err(|error| FileError::Damaged(error.to_string()))?;
    state.check()?;
    Ok(state)
}

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut byte = 0;
    let mut index = 0u32;
    while byte < table.len() {
        let mut value = index;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
        index += 1;
    }
    table
}

fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        let index = usize::from((sum ^ u32::from(*byte)).to_le_bytes()[0]);
        TABLE.get(index).copied().unwrap_or_default() ^ (sum >> 8)
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_is_no_state_is_refused_in_words() {
        let said = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(said(b"ELF").contains("FERROVMS"));
        assert!(said(b"FERROVMS").contains("ends in its header"));
        let mut later = frame(b"{}");
        later[8] = 2;
        assert!(said(&later).contains("format version 2") && said(&later).contains("later one"));
        assert!(said(&frame(b"{}")).contains("missing field"));
        let deep = "[".repeat(100_000);
        assert!(said(&frame(deep.as_bytes())).contains("damaged"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(head in prop::bool::ANY, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let bytes = if head { frame(&bytes) } else { [&MAGIC[..], &bytes].concat() };
            prop_assert!(read(&bytes).is_err());
        }
    }
}
