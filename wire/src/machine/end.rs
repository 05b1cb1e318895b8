//! How a machine ends.

use serde::{Deserialize, Serialize};

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEnd {
    /// The kind.
    pub reason: EndReason,
    /// More, for people; empty when the kind says it all.
    #[serde(default)]
    pub detail: String,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The guest powered itself off (ACPI S5), unasked.
    PowerOff,
    /// The guest powered itself off after it took notice of the power button.
    PowerButton,
    /// The guest asked for a reset (i8042, ACPI reset register): start it again.
    Reset,
    /// The guest triple-faulted, which is also how some guests reset: start it again, with a limit on how often.
    TripleFault,
    /// The guest's kernel panicked and then reset: start it again, with a limit on how often.
    Panicked,
    /// The guest started its watchdog and then stopped calling it: it hangs. Start it again.
    Watchdog,
    /// It goes on in another monitor: see [`MachineCall::Migrate`](super::MachineCall::Migrate).
    Migrated,
    /// [`MachineCall::Stop`](super::MachineCall::Stop).
    Stopped,
    /// It could not be built: bad configuration, or the host refused something.
    NotStarted,
    /// KVM gave up on a vCPU, or the monitor found a bug in itself.
    Failed,
}

impl EndReason {
    /// Exit status of the process.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::NotStarted => 1,
            Self::Reset => 3,
            Self::TripleFault => 4,
            Self::Stopped => 5,
            Self::Failed => 6,
            Self::PowerButton => 7,
            Self::Panicked => 8,
            Self::Watchdog => 9,
            Self::Migrated => 10,
        }
    }
}
