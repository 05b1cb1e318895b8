//! `hostd` to `vmm`: one machine and its control socket.
//!
//! `hostd` starts `vmm serve --config-fd N` as root. N is a readable descriptor (memfd, file or pipe, read to its end)
//! with one JSON [`MachineConfig`], which names every other descriptor by its number in the new process. The started
//! process stays the parent of the machine (it holds no privilege and only waits): killing it kills the machine, and
//! its exit status is the machine's. It says what goes wrong on stderr, in lines of text.
//!
//! The control socket is the listening unix `SOCK_SEQPACKET` socket [`MachineConfig::control_fd`], made (and bound to
//! a path) by `hostd`; whoever connects sends one JSON [`MachineCall`] per packet of at most [`MAX_PACKET`] bytes,
//! with a descriptor as `SCM_RIGHTS` where the call says so, and gets one JSON [`MachineReply`] packet for each, in
//! order. Several clients may be connected; a client that waits does not hold up the others or the machine.
//!
//! How a machine ends: the reason is written as one JSON [`MachineEnd`] to [`MachineConfig::end_fd`] (and synced)
//! before the process exits with [`EndReason::exit_code`]. A file that stays empty means that the process was killed.
//! **A guest's reset ends the process with [`EndReason::Reset`] and `hostd` starts the next one**, because a new start
//! also reads the guest's own boot entries again: the guest may have installed another kernel.

mod backend;
mod calls;
mod config;
mod counts;
mod cpu;
mod end;
mod limits;
mod memory;
mod snapshot;
mod status;
mod transfer;

pub use backend::{BackendConfig, BackendDevice, BackendName, BackendState, BackendStatus};
pub use calls::{MachineCall, MachineReply};
pub use config::{
    BalloonConfig, BlockSize, ConsoleConfig, DiskConfig, Identity, JailConfig, MachineConfig, NicConfig,
    VsockConfig,
};
pub use counts::{Counts, DeviceCounts, MachineCounts, WatchdogAction};
pub use cpu::{CpuModel, Topology};
pub use end::{EndReason, MachineEnd};
pub use limits::{Limit, Limits, NicLimits};
pub use memory::{MAX_NODES, MemoryBacking, MemoryStatus, NumaNode, Pages};
pub use snapshot::{RestoreConfig, SnapshotTaken};
pub use status::{BalloonStatistics, BalloonStatus, DiskStatus, MachineState, MachineStatus, NicStatus};
pub use transfer::{IncomingConfig, MigrationPlan, TransferKind, TransferPhase, TransferStatus, Unconverged};

/// Version of these types. A monitor outlives upgrades of `hostd`, so [`MachineStatus::protocol`] tells which it speaks.
///
/// 3: [`MachineCall::Counts`] is known for certain; a monitor that does not know a call refuses it and closes the connection.
pub const PROTOCOL: u32 = 3;

/// Largest packet on the control socket, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most disks that a machine can have.
pub const MAX_DISKS: usize = 18;

/// Most network interfaces that a machine can have.
pub const MAX_NICS: usize = 8;

/// Number of a descriptor in the monitor's process.
pub type Fd = i32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_their_words_on_the_wire() {
        let limits = Limits { bytes: Some(Limit { per_second: 5, burst: 6 }), operations: None };
        let call = MachineCall::PlugDisk {
            key: "v1".into(),
            read_only: true,
            serial: "abc".into(),
            block_size: BlockSize::B4096,
            limits,
        };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"call":"plug_disk","key":"v1","read_only":true,"serial":"abc","block_size":"4096","#,
                r#""limits":{"bytes":{"per_second":5,"burst":6},"operations":null}}"#
            )
        );
        assert_eq!(serde_json::from_str::<MachineCall>(&text).unwrap(), call);
        // As a daemon of the previous version says it.
        let old = r#"{"call":"plug_disk","key":"v1","read_only":true,"serial":"abc"}"#;
        let (block_size, limits) = (BlockSize::B512, Limits::default());
        let as_now = MachineCall::PlugDisk {
            key: "v1".into(),
            read_only: true,
            serial: "abc".into(),
            block_size,
            limits,
        };
        assert_eq!(serde_json::from_str::<MachineCall>(old).unwrap(), as_now);
        assert_eq!(serde_json::from_str::<MachineCall>(r#"{"call":"pause"}"#).unwrap(), MachineCall::Pause);
        let end = MachineEnd { reason: EndReason::TripleFault, detail: String::new() };
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"reason":"triple_fault","detail":""}"#);
    }

    #[test]
    fn models_are_called_the_same_everywhere() {
        for model in CpuModel::ALL {
            assert_eq!(serde_json::to_string(&model).unwrap(), format!("\"{model}\""));
            assert_eq!(model.name().parse(), Ok(model));
        }
        assert!("v5".parse::<CpuModel>().unwrap_err().contains("x86-64-v2"));
        assert_eq!("2,4,1".parse(), Ok(Topology { sockets: 2, cores: 4, threads: 1 }));
        for wrong in ["", "2,4", "2,x,1,1", "1,2,3,4", "-1,1,1"] {
            assert!(wrong.parse::<Topology>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn exit_codes_differ() {
        let all = [
            EndReason::PowerOff,
            EndReason::Reset,
            EndReason::TripleFault,
            EndReason::Stopped,
            EndReason::NotStarted,
            EndReason::Failed,
            EndReason::PowerButton,
            EndReason::Panicked,
            EndReason::Watchdog,
            EndReason::Migrated,
        ];
        let codes: std::collections::BTreeSet<u8> = all.iter().map(|reason| reason.exit_code()).collect();
        assert_eq!(codes.len(), all.len());
    }
}
