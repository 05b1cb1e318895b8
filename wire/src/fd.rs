//! Requests whose answer is a file descriptor, on a daemon's `*.fd.sock` (unix `SOCK_SEQPACKET`): one JSON request
//! per packet, one JSON [`FdReply`] back, with the descriptor as `SCM_RIGHTS` when it is [`FdReply::Here`].

use crate::Refused;
use crate::ids::{BlobId, PortId};
use serde::{Deserialize, Serialize};

/// A request for a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "want", rename_all = "snake_case")]
pub enum FdRequest {
    /// The tap of a port, opened `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` with a 12-byte header (`netd`).
    Tap {
        /// Which port.
        port: PortId,
    },
    /// A blob's bytes, for reading (`blockd`; one request a connection).
    Blob {
        /// Which blob.
        blob: BlobId,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum FdReply {
    /// The descriptor came along.
    Here,
    /// It did not, and why.
    Refused(Refused),
}

/// The descriptors that the kernel put into a control buffer of `recvmsg`, which was all zero before: the numbers of one `SCM_RIGHTS`
/// message. Also when the message was cut (`MSG_CTRUNC`): what arrived before the cut is in the process's table all the same, and is
/// leaked unless somebody closes it.
#[must_use]
pub fn received_rights(control: &[u8]) -> Vec<i32> {
    /// `struct cmsghdr` on 64-bit Linux: length with the header, level, type.
    const HEADER: usize = 16;
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    let word =
        |at: usize| control.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let length = control.get(..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, usize::from_ne_bytes);
    if (word(8), word(12)) != (Some(SOL_SOCKET), Some(SCM_RIGHTS)) {
        return Vec::new();
    }
    let end = length.min(control.len());
    (HEADER..end).step_by(4).filter(|at| at + 4 <= end).filter_map(word).collect()
}
