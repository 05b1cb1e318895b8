//! Whose word it is: which cloud, by which state of its database, wants something deleted.
//!
//! Daemons outlive databases. One that was restored, lost or mistaken for another's does not name what is here, and "nobody
//! names it" is the reason for which collectors delete. So a deletion carries a [`Warrant`], and a daemon that has heard of
//! another cloud, or of a later [`Epoch`] of the same one, refuses it.

use crate::Call;
use crate::ids::CloudId;
use serde::{Deserialize, Serialize};

/// How far a cloud's database has come: it counts up while the cloud is used. An older copy has a lower one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// By whose word something is deleted, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warrant {
    /// The cloud.
    pub cloud: CloudId,
    /// Why.
    pub ground: Ground,
}

/// Why something is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ground", rename_all = "snake_case")]
pub enum Ground {
    /// The database names it, as something to be deleted: also an older copy may say so.
    Asked,
    /// The database does not name it: only one that is not older than what the daemon has heard of may say so.
    Unknown {
        /// How far that database has come.
        epoch: Epoch,
    },
}

/// Tells a daemon whose it is. The first call claims it; another cloud, or an older state of the same, is refused.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Attest {
    /// The cloud.
    pub cloud: CloudId,
    /// How far its database has come.
    pub epoch: Epoch,
}

impl Call for Attest {
    const PATH: &'static str = "/v1/attest";
    type Reply = ();
}
