//! How far a server got: `record.json`, and the server's directories.

use crate::hypervisor::{Kind, Seat};
use crate::{durable, fault};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use wire::Generation;
use wire::host::DiskSpec;
use wire::ids::PortId;
use wire::machine::{MachineEnd, NicLimits};

/// How far a server got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Latest generation that was reached or failed.
    pub settled: Generation,
    /// Why the latest one failed.
    pub fault: Option<String>,
    /// Reboots done of those asked for.
    pub reboots: u64,
    /// Whether there is a machine.
    pub run: Run,
    /// The boot of the host that `run` is about.
    pub boot: String,
    /// Disks as they were plugged in.
    #[serde(default)]
    pub plugged: BTreeMap<String, DiskSpec>,
    /// Limits of network interfaces as they were set.
    #[serde(default)]
    pub carried: BTreeMap<PortId, NicLimits>,
    /// How the latest machine that has ended did so.
    #[serde(default)]
    pub ended: Option<MachineEnd>,
}

/// Whether there is a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "run", rename_all = "snake_case")]
pub enum Run {
    /// There is none; a process that is found is to be killed.
    Down(Down),
    /// One is being started. A process that is found is the new one: an earlier one was gone before this was written.
    Starting {
        /// By which hypervisor.
        kind: Kind,
        /// Count of reboots that this start fulfils.
        reboots: u64,
        /// It goes on from [`suspended`], and stands still until the record says [`Run::Up`]: as long as it does not, the
        /// guest has run nothing and touched no disk, so what was suspended is still the server.
        #[serde(default)]
        held: bool,
    },
    /// There is one.
    Up {
        /// By which hypervisor.
        kind: Kind,
    },
}

/// Why there is no machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "down", rename_all = "snake_case")]
pub enum Down {
    /// It was never started, was asked to be off, or could not be started.
    Off,
    /// The guest shut itself down.
    Guest,
    /// It crashed.
    Crashed {
        /// How, and what to do.
        fault: String,
    },
    /// Its memory is in [`suspended`].
    Suspended,
    /// It is to be started again at once.
    Restart,
}

impl Record {
    /// Of a server that was never started.
    #[must_use]
    pub fn new(boot: String) -> Self {
        Self {
            settled: Generation(0),
            fault: None,
            reboots: 0,
            run: Run::Down(Down::Off),
            boot,
            plugged: BTreeMap::new(),
            carried: BTreeMap::new(),
            ended: None,
        }
    }

    /// Reads a server's record.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(seat: &Seat) -> io::Result<Option<Self>> {
        durable::read(&path(seat))
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, seat: &Seat) -> io::Result<()> {
        durable::write(&path(seat), self)
    }
}

/// Where a suspended server's memory is.
#[must_use]
pub fn suspended(seat: &Seat) -> PathBuf {
    seat.state.join("suspended")
}

/// Gives up what was suspended, for good: from the rename on it is never gone on from, whenever the power goes.
///
/// # Errors
/// What the file system says.
pub fn discard(seat: &Seat) -> io::Result<()> {
    let (kept, used) = (suspended(seat), suspended(seat).with_extension("used"));
    durable::remove_dir(&used)?;
    match std::fs::rename(&kept, &used) {
        Ok(()) => {
            durable::sync_parent(&kept)?;
            fault::point("gave up what was suspended");
            durable::remove_dir(&used)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn path(seat: &Seat) -> PathBuf {
    seat.state.join("record.json")
}
