//! What is wanted of a server, and which requests may change it. Pure.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use wire::host::{Boot, DiskSpec, EnsureServer, Power, Reboots, ServerSpec};
use wire::machine::{Limits, MAX_DISKS, MAX_NICS};
use wire::{Generation, Refused, RefusedKind};

/// A server as it should be, as it is on disk in `wanted.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Number of this state.
    pub generation: Generation,
    /// What it is made of.
    pub spec: ServerSpec,
    /// Power.
    pub power: Power,
    /// Reboots asked for.
    pub reboots: Reboots,
    /// User id of its processes.
    pub uid: u32,
    /// The server should be no more.
    pub forget: bool,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is what is wanted from now on.
    Accept(Box<Wanted>),
    /// It is what is wanted already.
    Same,
}

/// Decides about a request. `uid` is what a new server would get.
///
/// # Errors
/// `Stale` for an old generation, `Conflict` while the server is being forgotten or when its generation was already
/// used for something else, `Invalid` for a state that no machine can have.
pub fn decide(current: Option<&Wanted>, call: &EnsureServer, uid: u32) -> Result<Decision, Refused> {
    check(&call.spec)?;
    let new = Wanted {
        generation: call.generation,
        spec: call.spec.clone(),
        power: call.power,
        reboots: call.reboots,
        uid: current.map_or(uid, |current| current.uid),
        forget: false,
    };
    let Some(current) = current else { return Ok(Decision::Accept(Box::new(new))) };
    if current.forget {
        return Err(Refused::conflict(format!("server {} is being removed from this host", call.id))
            .remedy("wait until it is gone"));
    }
    match call.generation.cmp(&current.generation) {
        std::cmp::Ordering::Less => Err(Refused::new(
            RefusedKind::Stale,
            format!(
                "generation {} of server {} is older than {}, which was already asked for",
                call.generation.0, call.id, current.generation.0
            ),
        )),
        std::cmp::Ordering::Equal if new == *current => Ok(Decision::Same),
        std::cmp::Ordering::Equal => Err(Refused::conflict(format!(
            "generation {} of server {} was already asked for with another content",
            call.generation.0, call.id
        ))
        .remedy("take a higher generation for each change")),
        std::cmp::Ordering::Greater => Ok(Decision::Accept(Box::new(new))),
    }
}

fn check(spec: &ServerSpec) -> Result<(), Refused> {
    let invalid = |message: String| Err(Refused::invalid(message));
    if !(1..=64).contains(&spec.vcpus) {
        return invalid(format!("{} virtual CPUs: 1 to 64 are possible", spec.vcpus));
    }
    if !(8..=1 << 22).contains(&spec.memory.0) {
        return invalid(format!("{} MiB of memory: 8 MiB to 4 TiB are possible", spec.memory.0));
    }
    if spec.disks.len() > MAX_DISKS {
        return invalid(format!("{} disks: at most {MAX_DISKS} are possible", spec.disks.len()));
    }
    if spec.nics.len() > MAX_NICS {
        return invalid(format!("{} network interfaces: at most {MAX_NICS} are possible", spec.nics.len()));
    }
    for disk in &spec.disks {
        check_disk(disk)?;
    }
    let keys: BTreeSet<&str> = spec.disks.iter().map(|disk| disk.key.as_str()).collect();
    let ports: BTreeSet<_> = spec.nics.iter().map(|nic| nic.port).collect();
    if keys.len() != spec.disks.len() || ports.len() != spec.nics.len() {
        return invalid("a disk or port is listed twice".into());
    }
    if let Some(nic) = spec.nics.iter().find(|nic| nic.mtu < 68) {
        return invalid(format!("an MTU of {} bytes: at least 68 are needed", nic.mtu));
    }
    if let Some(topology) = spec.hardware.topology {
        let product =
            topology.sockets.checked_mul(topology.cores).and_then(|n| n.checked_mul(topology.threads));
        if product != Some(spec.vcpus) {
            return invalid(format!(
                "{} sockets of {} cores of {} threads are not {} virtual CPUs",
                topology.sockets, topology.cores, topology.threads, spec.vcpus
            ));
        }
    }
    for limits in spec.nics.iter().flat_map(|nic| [nic.limits.to_guest, nic.limits.from_guest]) {
        check_limits(limits)?;
    }
    match &spec.boot {
        Boot::Disk if spec.disks.is_empty() => {
            invalid("a server without a disk needs a kernel to boot from".into())
        }
        Boot::Kernel { command_line, .. } if command_line.len() > 2047 || command_line.contains('\0') => {
            invalid("a kernel command line has at most 2047 bytes and no NUL".into())
        }
        Boot::Disk | Boot::Kernel { .. } => Ok(()),
    }
}

fn check_limits(limits: Limits) -> Result<(), Refused> {
    if [limits.bytes, limits.operations].into_iter().flatten().any(|it| it.per_second == 0 || it.burst == 0) {
        return Err(Refused::invalid(
            "a limit of nothing would stop a device for ever; leave it out for none",
        ));
    }
    Ok(())
}

fn check_disk(disk: &DiskSpec) -> Result<(), Refused> {
    check_limits(disk.limits)?;
    let plain = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    if disk.key.is_empty() || disk.key.len() > 64 || !plain(&disk.key) {
        return Err(Refused::invalid(
            "a disk's key has 1 to 64 letters, digits, dots, dashes and underscores",
        ));
    }
    if disk.serial.len() > 20 || !plain(&disk.serial) {
        return Err(Refused::invalid(format!(
            "the serial of disk {} has at most 20 letters, digits, dots, dashes and underscores",
            disk.key
        )));
    }
    if !disk.path.is_absolute() {
        return Err(Refused::invalid(format!("the path of disk {} is not absolute", disk.key)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::MiB;
    use wire::host::Hardware;
    use wire::ids::ServerId;
    use wire::machine::{Limit, Topology};

    fn call(generation: u64) -> EnsureServer {
        EnsureServer {
            id: ServerId::new(),
            generation: Generation(generation),
            spec: ServerSpec {
                name: "one".into(),
                vcpus: 1,
                memory: MiB(64),
                boot: Boot::Disk,
                disks: vec![DiskSpec {
                    key: "root".into(),
                    path: "/pool/root".into(),
                    read_only: false,
                    serial: "root".into(),
                    limits: Limits::default(),
                }],
                nics: Vec::new(),
                hardware: Hardware::default(),
            },
            power: Power::On,
            reboots: Reboots::default(),
            wait_ms: 0,
        }
    }

    fn accepted(current: Option<&Wanted>, call: &EnsureServer) -> Wanted {
        match decide(current, call, 7).unwrap() {
            Decision::Accept(wanted) => *wanted,
            Decision::Same => panic!("a change was expected"),
        }
    }

    #[test]
    fn newer_is_taken_same_is_harmless_older_and_ambiguous_are_refused() {
        let first = accepted(None, &call(5));
        assert_eq!((first.generation, first.uid), (Generation(5), 7));
        assert_eq!(decide(Some(&first), &call(5), 9).unwrap(), Decision::Same);
        assert_eq!(accepted(Some(&first), &call(6)).uid, 7, "the user id stays");
        assert_eq!(decide(Some(&first), &call(4), 9).unwrap_err().kind, RefusedKind::Stale);
        let other = EnsureServer { power: Power::Paused, ..call(5) };
        assert_eq!(decide(Some(&first), &other, 9).unwrap_err().kind, RefusedKind::Conflict);
        let going = Wanted { forget: true, ..first };
        assert_eq!(decide(Some(&going), &call(6), 9).unwrap_err().kind, RefusedKind::Conflict);
    }

    #[test]
    fn impossible_machines_are_refused() {
        let spoils: [fn(&mut ServerSpec); 12] = [
            |spec| spec.hardware.topology = Some(Topology { sockets: 2, cores: 1, threads: 1 }),
            |spec| spec.disks[0].limits.bytes = Some(Limit { per_second: 0, burst: 1 }),
            |spec| spec.vcpus = 0,
            |spec| spec.vcpus = 65,
            |spec| spec.memory = MiB(u64::MAX),
            |spec| spec.disks.clear(),
            |spec| spec.disks[0].key = "a,b".into(),
            |spec| spec.disks[0].key = String::new(),
            |spec| spec.disks[0].serial = "123456789012345678901".into(),
            |spec| spec.disks[0].path = "relative".into(),
            |spec| spec.disks.push(spec.disks[0].clone()),
            |spec| {
                spec.boot = Boot::Kernel { kernel: "/k".into(), initrd: None, command_line: "x".repeat(5000) }
            },
        ];
        for (number, spoil) in spoils.iter().enumerate() {
            let mut bad = call(1);
            spoil(&mut bad.spec);
            let refused = decide(None, &bad, 1).unwrap_err();
            assert_eq!(refused.kind, RefusedKind::Invalid, "{number}");
        }
    }
}
