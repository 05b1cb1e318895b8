//! The words that Ferrostack's processes speak with each other.
//!
//! Everything here is plain data: no I/O, no runtime. Calls say what *should be*, with a [`Generation`];
//! repeating one is harmless and an older one is refused with [`RefusedKind::Stale`].
//!
//! One type per internal operation, used by both ends: see [`Call`].

pub mod block;
pub mod cloud;
pub mod fd;
pub mod host;
pub mod ids;
pub mod machine;
pub mod metadata;
pub mod net;
pub mod range;

use serde::Deserialize;
use serde::{Serialize, de::DeserializeOwned};

/// One operation of a daemon. The request is the implementing type itself; the path names it on the socket.
pub trait Call: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Path of the call below the daemon's socket, `/v1/verb-noun`.
    const PATH: &'static str;
    /// What a successful call answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// Number of a wanted state. Each change of what is wanted of one subject takes a higher one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Mebibytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MiB(pub u64);

impl MiB {
    /// The size in bytes, or `None` past 2^64.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(1 << 20)
    }
}

/// Gibibytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GiB(pub u64);

impl GiB {
    /// The size in bytes, or `None` past 2^64.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(1 << 30)
    }
}

/// Why a daemon did not do what it was asked; travels as the body of a non-2xx answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", if remedy.is_empty() { String::new() } else { format!("; {remedy}") })]
pub struct Refused {
    /// What kind of refusal it is: decides the status and whether a retry can help.
    pub kind: RefusedKind,
    /// What is wrong, in a sentence that an operator understands.
    pub message: String,
    /// What to do about it; empty when the message already says so.
    #[serde(default)]
    pub remedy: String,
}

/// The kinds of [`Refused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedKind {
    /// The subject is not known here.
    Missing,
    /// The subject is in a state that does not allow it.
    Conflict,
    /// A newer generation was already asked for.
    Stale,
    /// The request contradicts itself or the world.
    Invalid,
    /// No room: disk, memory, addresses.
    NoSpace,
    /// The daemon or the kernel cannot do it now; a retry may help.
    Unavailable,
    /// The caller may not ask this.
    Forbidden,
    /// A bug or an unexpected error of the system.
    Internal,
}

impl RefusedKind {
    /// The HTTP status that carries this refusal on the internal socket.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Missing => 404,
            Self::Conflict | Self::Stale => 409,
            Self::Invalid => 400,
            Self::NoSpace => 507,
            Self::Unavailable => 503,
            Self::Forbidden => 403,
            Self::Internal => 500,
        }
    }

    /// Whether the same call may succeed later with nothing changed by the caller.
    #[must_use]
    pub fn transient(self) -> bool {
        match self {
            Self::Unavailable | Self::Internal => true,
            Self::Missing
            | Self::Conflict
            | Self::Stale
            | Self::Invalid
            | Self::NoSpace
            | Self::Forbidden => false,
        }
    }
}

impl Refused {
    /// A refusal without a remedy.
    pub fn new(kind: RefusedKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: String::new() }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// [`RefusedKind::Missing`]
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Missing, message)
    }
    /// [`RefusedKind::Conflict`]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Conflict, message)
    }
    /// [`RefusedKind::Invalid`]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Invalid, message)
    }
    /// [`RefusedKind::NoSpace`]
    pub fn no_space(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::NoSpace, message)
    }
    /// [`RefusedKind::Unavailable`]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Unavailable, message)
    }
    /// [`RefusedKind::Internal`]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Internal, message)
    }
}

/// Asks any daemon how it is. Every daemon serves it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {}

impl Call for Health {
    const PATH: &'static str = "/v1/health";
    type Reply = HealthReport;
}

/// A daemon's own word on its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthReport {
    /// `hostd`, `netd`, `blockd` or `api`.
    pub daemon: String,
    /// Cargo version of the binary.
    pub version: String,
    /// What is wrong, a line each, with the remedy; empty when all is well.
    pub troubles: Vec<String>,
    /// Facts worth showing in `ferro status`, as (name, value).
    pub facts: Vec<(String, String)>,
}
