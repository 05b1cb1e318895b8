//! The header of a socket packet.

/// Bytes of a header.
pub const HEADER: usize = 44;

/// Stream sockets, the only type that is offered.
pub const STREAM: u16 = 1;

/// Flag of [`Op::Shutdown`]: the sender takes nothing more.
pub const NO_RECEIVE: u32 = 1;
/// Flag of [`Op::Shutdown`]: the sender sends nothing more.
pub const NO_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// There is no such connection (any more).
    Reset = 3,
    /// One or both directions end.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Tells how much the sender can take.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    fn from(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sender's address.
    pub from: u64,
    /// Receiver's address.
    pub to: u64,
    /// Sender's port.
    pub from_port: u32,
    /// Receiver's port.
    pub to_port: u32,
    /// Bytes of data.
    pub len: u32,
    /// Kind of socket.
    pub kind: u16,
    /// What for; `None` for a number that is not known.
    pub op: Option<Op>,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes that the sender can hold.
    pub room: u32,
    /// Bytes that the sender has passed on of those it got, modulo 2^32.
    pub passed: u32,
}

impl Header {
    /// Reads one.
    #[must_use]
    pub fn read(raw: &[u8; HEADER]) -> Self {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let half = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        Self {
            from: long(0),
            to: long(8),
            from_port: word(16),
            to_port: word(20),
            len: word(24),
            kind: half(28),
            op: Op::from(half(30)),
            flags: word(32),
            room: word(36),
            passed: word(40),
        }
    }

    /// Writes it.
    #[must_use]
    pub fn write(&self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        let op = self.op.map_or(0, |op| op as u16);
        let parts: [&[u8]; 10] = [
            &self.from.to_le_bytes(),
            &self.to.to_le_bytes(),
            &self.from_port.to_le_bytes(),
            &self.to_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.room.to_le_bytes(),
            &self.passed.to_le_bytes(),
        ];
        for (to, from) in raw.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER, Header, Op};
    use proptest::prelude::any;

    proptest::proptest! {
        #[test]
        fn what_is_read_is_written(raw in any::<[u8; 32]>(), tail in any::<[u8; 12]>(), op in 1..8_u16) {
            let mut bytes = [0; HEADER];
            bytes[..32].copy_from_slice(&raw);
            bytes[32..].copy_from_slice(&tail);
            bytes[30..32].copy_from_slice(&op.to_le_bytes());
            let header = Header::read(&bytes);
            proptest::prop_assert_eq!(header.write(), bytes);
            proptest::prop_assert_eq!(header.op.map(|op| op as u16), Some(op));
        }
    }

    #[test]
    fn unknown_operations_are_seen() {
        let header = Header::read(&[9; HEADER]);
        assert_eq!((header.op, header.len), (None, 0x0909_0909));
        assert_eq!(Op::from(0), None);
    }
}
