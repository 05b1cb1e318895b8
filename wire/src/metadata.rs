//! `netd` to `api`: what a guest reads at 169.254.169.254.

use crate::Call;
use crate::ids::{PortId, ServerId};
use serde::{Deserialize, Serialize};

/// A guest's metadata request, with the identity that `netd` proved by the port it came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadMetadata {
    /// Whose guest it is.
    pub server: ServerId,
    /// Through which port it came.
    pub port: PortId,
    /// Request path, at most 1,024 bytes, without query.
    pub path: String,
}

impl Call for ReadMetadata {
    const PATH: &'static str = "/v1/read-metadata";
    type Reply = MetadataReply;
}

/// What to answer the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataReply {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub content_type: String,
    /// Body.
    pub body: Vec<u8>,
}
