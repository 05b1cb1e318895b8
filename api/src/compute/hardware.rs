//! What extra specs of flavors and properties of images ask of the machine: topology, watchdog, firmware, limits.
//!
//! Names and values are upstream's. What the monitors cannot do is refused before anything is made, rather than left out in
//! silence; what only steers a choice that there is none of here (a disk bus, a model of a device) is left alone.

use super::neighbours::volume;
use super::records::flavors::Flavor;
use super::records::servers::Image;
use api_kit::Fault;
use wire::host::{Bite, Firmware, Hardware};
use wire::machine::{Limit, Limits, NicLimits, Topology};

/// What a server asks of its machine beyond its size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Topology, watchdog, firmware.
    pub hardware: Hardware,
    /// Limits of each of its own disks.
    pub disk: Limits,
    /// Limits of each of its interfaces.
    pub nic: NicLimits,
}

/// Kinds of values of extra specs.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A whole number from this on.
    Whole(u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// A truth in any of its spellings.
    Truth,
    /// Anything.
    Text,
}

const TRUTHS: &[&str] = &["1", "true", "t", "yes", "y", "on", "0", "false", "f", "no", "n", "off"];
const WATCHDOG: &[&str] = &["none", "pause", "poweroff", "reset", "disabled"];

/// Extra specs of the namespaces `hw` and `quota`, by their names; a trailing `.` stands for any number.
const KNOWN: &[(&str, Kind)] = &[
    ("hw:boot_menu", Kind::Truth),
    ("hw:cpu_cores", Kind::Whole(1)),
    ("hw:cpu_dedicated_mask", Kind::Text),
    ("hw:cpu_max_cores", Kind::Whole(1)),
    ("hw:cpu_max_sockets", Kind::Whole(1)),
    ("hw:cpu_max_threads", Kind::Whole(1)),
    ("hw:cpu_policy", Kind::Word(&["dedicated", "mixed", "shared"])),
    ("hw:cpu_realtime", Kind::Truth),
    ("hw:cpu_realtime_mask", Kind::Text),
    ("hw:cpu_sockets", Kind::Whole(1)),
    ("hw:cpu_thread_policy", Kind::Word(&["isolate", "prefer", "require"])),
    ("hw:cpu_threads", Kind::Whole(1)),
    ("hw:emulator_threads_policy", Kind::Word(&["isolate", "share"])),
    ("hw:hide_hypervisor_id", Kind::Truth),
    ("hw:input_bus", Kind::Word(&["usb", "virtio"])),
    ("hw:locked_memory", Kind::Truth),
    ("hw:maxphysaddr_bits", Kind::Whole(0)),
    ("hw:maxphysaddr_mode", Kind::Word(&["emulate", "passthrough"])),
    ("hw:mem_encryption", Kind::Truth),
    ("hw:mem_page_size", Kind::Text),
    ("hw:numa_cpus.", Kind::Text),
    ("hw:numa_mem.", Kind::Whole(1)),
    ("hw:numa_nodes", Kind::Whole(1)),
    ("hw:pci_numa_affinity_policy", Kind::Word(&["required", "preferred", "legacy", "socket"])),
    ("hw:pmu", Kind::Truth),
    ("hw:pointer_model", Kind::Word(&["ps2mouse", "usbtablet"])),
    ("hw:serial_port_count", Kind::Whole(0)),
    ("hw:tpm_model", Kind::Word(&["tpm-crb", "tpm-tis"])),
    ("hw:tpm_version", Kind::Word(&["1.2", "2.0"])),
    ("hw:vif_multiqueue_enabled", Kind::Truth),
    ("hw:viommu_model", Kind::Word(&["auto", "intel", "smmuv3", "virtio"])),
    ("hw:virtio_packed_ring", Kind::Truth),
    ("hw:watchdog_action", Kind::Word(WATCHDOG)),
    ("quota:cpu_period", Kind::Whole(0)),
    ("quota:cpu_quota", Kind::Whole(0)),
    ("quota:cpu_shares", Kind::Whole(0)),
    ("quota:disk_read_bytes_sec", Kind::Whole(0)),
    ("quota:disk_read_iops_sec", Kind::Whole(0)),
    ("quota:disk_total_bytes_sec", Kind::Whole(0)),
    ("quota:disk_total_iops_sec", Kind::Whole(0)),
    ("quota:disk_write_bytes_sec", Kind::Whole(0)),
    ("quota:disk_write_iops_sec", Kind::Whole(0)),
    ("quota:vif_inbound_average", Kind::Whole(0)),
    ("quota:vif_inbound_burst", Kind::Whole(0)),
    ("quota:vif_inbound_peak", Kind::Whole(0)),
    ("quota:vif_outbound_average", Kind::Whole(0)),
    ("quota:vif_outbound_burst", Kind::Whole(0)),
    ("quota:vif_outbound_peak", Kind::Whole(0)),
];

fn cut(text: &str) -> String {
    text.chars().take(255).collect()
}

fn known(name: &str) -> Option<Kind> {
    let plain = name.trim_end_matches(|it: char| it.is_ascii_digit());
    KNOWN
        .iter()
        .find(|(known, _)| *known == name || (known.ends_with('.') && *known == plain))
        .map(|(_, kind)| *kind)
}

/// Checks an extra spec as upstream does from version 2.86 on: names of the namespaces that it knows all names of, and values.
///
/// # Errors
/// 400 in nova's words.
pub fn validate(name: &str, value: &str) -> Result<(), Fault> {
    let Some((space, _)) = name.split_once(':') else { return Ok(()) };
    let Some(kind) = known(name) else {
        if ["hw", "quota"].contains(&space) {
            return Err(Fault::bad_request(format!(
                "Validation failed; extra spec '{}' does not appear to be a valid extra spec.",
                cut(name)
            )));
        }
        return Ok(());
    };
    let wrong = |why: String| {
        Err(Fault::bad_request(format!(
            "Validation failed; extra spec '{}' has an invalid value: {why}",
            cut(name)
        )))
    };
    match kind {
        Kind::Text => Ok(()),
        Kind::Truth if TRUTHS.contains(&value.to_lowercase().as_str()) => Ok(()),
        Kind::Truth => wrong(format!("'{}' is not a boolean.", cut(value))),
        Kind::Word(words) if words.contains(&value) => Ok(()),
        Kind::Word(words) => wrong(format!("'{}' is not one of {}.", cut(value), words.join(", "))),
        Kind::Whole(least) => match value.parse::<u64>() {
            Ok(number) if number >= least => Ok(()),
            Ok(_) => wrong(format!("'{}' is less than {least}.", cut(value))),
            Err(_) => wrong(format!("'{}' is not a whole number.", cut(value))),
        },
    }
}

/// What a flavor and an image ask of the machine.
///
/// # Errors
/// 400 for values that cannot be, and for what no monitor here can do.
pub fn of(flavor: &Flavor, image: Option<&Image>) -> Result<Asked, Fault> {
    let spec = |name: &str| flavor.extra_specs.get(name).map(String::as_str);
    for (name, value) in flavor.extra_specs.iter().filter(|(name, _)| known(name).is_some()) {
        validate(name, value)?;
    }
    let property = |name: &str| image?.properties.get(name)?.as_str().filter(|text| !text.is_empty());
    refuse(&spec, &property)?;
    let number = |name: &str| spec(&format!("quota:disk_{name}")).and_then(|value| value.parse().ok());
    let carried = |way: &str| {
        let number = |what: &str| {
            let value = spec(&format!("quota:vif_{way}_{what}"))?.parse::<u64>().ok();
            value.filter(|value| *value > 0)
        };
        // Kilobytes a second, and a burst in kibibytes, as libvirt counts. What is saved up goes at any speed, so a peak is not kept.
        let per_second = number("average")?.saturating_mul(1000);
        let burst = number("burst").map_or(per_second, |burst| burst.saturating_mul(1024));
        Some(Limit { per_second, burst })
    };
    let bytes = |way: &str| Limits { bytes: carried(way), operations: None };
    Ok(Asked {
        hardware: Hardware {
            topology: topology(flavor.vcpus, &spec, &property)?,
            watchdog: watchdog(property("hw_watchdog_action").or_else(|| spec("hw:watchdog_action")))?,
            firmware: firmware(property("hw_firmware_type"))?,
        },
        disk: volume::limits(number),
        nic: NicLimits { to_guest: bytes("inbound"), from_guest: bytes("outbound") },
    })
}

/// Refuses what is asked for and cannot be had: a server that silently lacked it would not be what was asked for.
fn refuse<'a>(
    spec: &impl Fn(&str) -> Option<&'a str>,
    property: &impl Fn(&str) -> Option<&'a str>,
) -> Result<(), Fault> {
    let truth = |value: &str| ["1", "true", "t", "yes", "y", "on"].contains(&value.to_lowercase().as_str());
    let no = |what: &str, value: &str| {
        Err(Fault::bad_request(format!(
            "The flavor or image asks for {what}={}, which the hosts of this cloud cannot give.",
            cut(value)
        )))
    };
    for (name, own, fine) in [
        ("hw:cpu_policy", "hw_cpu_policy", &["shared"][..]),
        ("hw:mem_page_size", "hw_mem_page_size", &["any", "small", "4", "4KB", "4096"][..]),
        ("hw:numa_nodes", "hw_numa_nodes", &["1"][..]),
        ("hw:tpm_version", "hw_tpm_version", &[][..]),
        ("hw:viommu_model", "hw_viommu_model", &[][..]),
    ] {
        if let Some(value) = spec(name).or_else(|| property(own)).filter(|value| !fine.contains(value)) {
            return no(name, value);
        }
    }
    for (name, own) in [("hw:cpu_realtime", "hw_cpu_realtime"), ("hw:mem_encryption", "hw_mem_encryption")] {
        if let Some(value) = spec(name).or_else(|| property(own)).filter(|value| truth(value)) {
            return no(name, value);
        }
    }
    if let Some(value) = property("os_secure_boot").filter(|value| *value == "required") {
        return no("os_secure_boot", value);
    }
    Ok(())
}

fn watchdog(action: Option<&str>) -> Result<Option<Bite>, Fault> {
    match action {
        None | Some("disabled") => Ok(None),
        Some("reset") => Ok(Some(Bite::Reset)),
        Some("poweroff") => Ok(Some(Bite::PowerOff)),
        Some("pause") => Ok(Some(Bite::Pause)),
        Some("none") => Ok(Some(Bite::Nothing)),
        Some(other) => {
            Err(Fault::bad_request(format!("Provided watchdog action ({}) is not supported.", cut(other))))
        }
    }
}

fn firmware(kind: Option<&str>) -> Result<Firmware, Fault> {
    match kind {
        None | Some("bios") => Ok(Firmware::Direct),
        Some("uefi") => Ok(Firmware::Uefi),
        Some(other) => Err(Fault::bad_request(format!(
            "Firmware type {} of the image is unknown: use uefi, or leave it out.",
            cut(other)
        ))),
    }
}

/// The arrangement of vCPUs that fits best to what is preferred within what is allowed; `None` when nothing is said.
///
/// The flavor's word counts before the image's, and an image may not allow more than the flavor.
fn topology<'a>(
    vcpus: u32,
    spec: &impl Fn(&str) -> Option<&'a str>,
    property: &impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<Topology>, Fault> {
    const PARTS: [&str; 3] = ["sockets", "cores", "threads"];
    let number = |name: &str, value: &str| {
        value.parse::<u32>().ok().filter(|number| *number > 0).ok_or_else(|| {
            Fault::bad_request(format!(
                "Invalid input: {name} must be a whole number above 0, not '{}'.",
                cut(value)
            ))
        })
    };
    let flavor = |name: String| spec(&name).map(|value| number(&name, value)).transpose();
    let image = |name: String| property(&name).map(|value| number(&name, value)).transpose();
    let (mut preferred, mut most) = ([None; 3], [None; 3]);
    for (at, part) in PARTS.iter().enumerate() {
        let own = flavor(format!("hw:cpu_{part}"))?;
        preferred[at] = if own.is_some() { own } else { image(format!("hw_cpu_{part}"))? };
        most[at] = flavor(format!("hw:cpu_max_{part}"))?;
        if let Some(wanted) = image(format!("hw_cpu_max_{part}"))? {
            if most[at].is_some_and(|most| wanted > most) {
                return Err(Fault::bad_request(format!(
                    "Image vCPU limits: hw_cpu_max_{part}={wanted} is more than the flavor allows."
                )));
            }
            most[at] = Some(wanted);
        }
        if let (Some(wanted), Some(most)) = (preferred[at], most[at])
            && wanted > most
        {
            return Err(Fault::bad_request(format!(
                "vCPU topology: {wanted} {part} are asked for where at most {most} are allowed."
            )));
        }
    }
    if preferred == [None; 3] && most == [None; 3] {
        return Ok(None);
    }
    let mut best: Option<(usize, [u32; 3])> = None;
    for sockets in (1..=vcpus).rev().filter(|it| vcpus.is_multiple_of(*it)) {
        let rest = vcpus / sockets;
        for cores in (1..=rest).rev().filter(|it| rest.is_multiple_of(*it)) {
            let parts = [sockets, cores, rest / cores];
            if parts.iter().zip(most).any(|(part, most)| most.is_some_and(|most| *part > most)) {
                continue;
            }
            let fit = parts.iter().zip(preferred).filter(|(part, wanted)| *wanted == Some(**part)).count();
            // More sockets come first, so a later one has to fit better.
            if best.is_none_or(|(known, _)| fit > known) {
                best = Some((fit, parts));
            }
        }
    }
    match best {
        Some((_, [sockets, cores, threads])) => Ok(Some(Topology { sockets, cores, threads })),
        None => Err(Fault::bad_request(format!(
            "No valid vCPU topology: {vcpus} vCPUs cannot be arranged within the limits of the flavor and the image."
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, of, topology, validate};
    use crate::compute::records::flavors::Flavor;
    use std::collections::{BTreeMap, BTreeSet};
    use wire::host::Bite;
    use wire::machine::{Limit, Topology};

    fn flavor(specs: &[(&str, &str)]) -> Flavor {
        Flavor {
            id: "f".into(),
            name: "f".into(),
            vcpus: 8,
            memory_mb: 64,
            disk_gb: 1,
            ephemeral_gb: 0,
            swap_mb: 0,
            rxtx_factor: 1.0,
            is_public: true,
            description: None,
            extra_specs: specs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            access: BTreeSet::new(),
            created_at: String::new(),
        }
    }

    fn asked(specs: &[(&str, &str)]) -> Asked {
        of(&flavor(specs), None).unwrap()
    }

    #[test]
    fn limits_are_those_of_the_flavor() {
        let asked = asked(&[
            ("quota:disk_total_iops_sec", "100"),
            ("quota:vif_inbound_average", "5"),
            ("quota:vif_inbound_burst", "2"),
            ("quota:vif_outbound_peak", "7"),
        ]);
        assert_eq!(asked.disk.operations, Some(Limit { per_second: 100, burst: 100 }));
        assert_eq!(asked.nic.to_guest.bytes, Some(Limit { per_second: 5000, burst: 2048 }));
        assert_eq!(asked.nic.from_guest.bytes, None, "a peak alone is no rate");
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        assert_eq!(asked(&[("hw:watchdog_action", "poweroff")]).hardware.watchdog, Some(Bite::PowerOff));
        for (name, value) in [
            ("hw:watchdog_action", "bark"),
            ("hw:cpu_policy", "dedicated"),
            ("hw:mem_page_size", "large"),
            ("hw:numa_nodes", "2"),
            ("hw:cpu_sockets", "0"),
            ("quota:disk_total_iops_sec", "many"),
        ] {
            let fault = of(&flavor(&[(name, value)]), None).unwrap_err();
            assert!(fault.status == 400 && fault.message.contains(value), "{fault}");
        }
        assert_eq!(asked(&[("hw:cpu_policy", "shared"), ("hw:mem_page_size", "any")]), Asked::default());
    }

    #[test]
    fn vcpus_are_arranged_as_preferred_within_what_is_allowed() {
        let arranged = |specs: &[(&str, &str)], own: &[(&str, &str)]| {
            let find = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
                all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
            };
            let (specs, own) = (find(specs), find(own));
            topology(8, &|name: &str| specs.get(name).map(String::as_str), &|name: &str| {
                own.get(name).map(String::as_str)
            })
        };
        assert_eq!(arranged(&[], &[]).unwrap(), None);
        let parts = |sockets, cores, threads| Some(Topology { sockets, cores, threads });
        assert_eq!(arranged(&[("hw:cpu_sockets", "2")], &[]).unwrap(), parts(2, 4, 1));
        assert_eq!(arranged(&[("hw:cpu_max_sockets", "1")], &[]).unwrap(), parts(1, 8, 1));
        assert_eq!(
            arranged(&[("hw:cpu_threads", "2"), ("hw:cpu_sockets", "1")], &[("hw_cpu_cores", "4")]).unwrap(),
            parts(1, 4, 2)
        );
        assert!(arranged(&[("hw:cpu_max_cores", "2")], &[("hw_cpu_max_cores", "4")]).is_err());
        assert!(
            arranged(
                &[("hw:cpu_max_cores", "1"), ("hw:cpu_max_sockets", "1"), ("hw:cpu_max_threads", "2")],
                &[]
            )
            .is_err()
        );
    }

    #[test]
    fn names_and_values_are_checked_where_upstream_knows_them_all() {
        for (name, value) in
            [("hw:numa_mem.0", "5"), ("own", "x"), ("resources:VCPU", "1"), ("hw:pmu", "True")]
        {
            validate(name, value).unwrap();
        }
        for (name, value) in
            [("hw:nonsense", "1"), ("quota:disk_total_iops_sec", "x"), ("hw:cpu_policy", "Shared")]
        {
            assert_eq!(validate(name, value).unwrap_err().status, 400, "{name}");
        }
    }
}
