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
