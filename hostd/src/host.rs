//! The host itself: which hypervisor it gets and why, how big it is.

use crate::config::{Choice, Config};
use crate::hypervisor::{Kind, simulated};
use crate::process::MIN_GUEST_UID;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::MiB;
use wire::host::HostFacts;

/// How long the probe may take: an emulated KVM runs its tiny guest in about two seconds.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);

/// A hypervisor, why it was chosen, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Which one.
    pub kind: Kind,
    /// Why, for people.
    pub reason: String,
    /// What keeps it from working.
    pub troubles: Vec<String>,
}

/// What `vmm probe` prints: the verdict of a tiny guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Probe {
    /// Whether KVM is there and real.
    pub kvm: Kvm,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// Whether KVM is there and real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kvm {
    /// Hardware virtualisation.
    Hardware,
    /// There, but guest kernel code is emulated.
    Emulated,
    /// Not there, or not usable.
    Missing,
}

/// Checks what the configuration alone cannot.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub fn check(config: &Config) -> Result<(), String> {
    if config.guest_uid_first < MIN_GUEST_UID {
        return Err(format!(
            "guest_uid_first is {}, which may be a person's user id; give at least {MIN_GUEST_UID}",
            config.guest_uid_first
        ));
    }
    if config.guest_uid_first.checked_add(config.guest_uid_count).is_none() || config.guest_uid_count == 0 {
        return Err("guest_uid_first and guest_uid_count make no range of user ids".into());
    }
    if config.console_kib < 8 {
        return Err(format!("console_kib is {}: a console log needs at least 8", config.console_kib));
    }
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !config.cgroup_parent.split('/').all(plain) {
        return Err(format!("cgroup_parent '{}' is not a relative path of names", config.cgroup_parent));
    }
    Ok(())
}

/// Chooses the hypervisor for new machines.
pub async fn choose(config: &Config) -> Chosen {
    match config.hypervisor {
        Choice::Simulated => Chosen {
            kind: Kind::Simulated,
            reason: "the configuration asks for it: servers have no guests, and the host's size is made up"
                .into(),
            troubles: Vec::new(),
        },
        Choice::Qemu => qemu(config, "the configuration asks for QEMU software emulation".into()),
        Choice::Vmm => {
            let troubles = match probe(&config.vmm).await {
                Ok(Probe { kvm: Kvm::Missing, reason }) => vec![format!(
                    "the configuration asks for vmm, but KVM cannot be used: {reason}; load the kvm module or choose hypervisor = \"auto\""
                )],
                Ok(_) => Vec::new(),
                Err(why) => vec![why],
            };
            Chosen { kind: Kind::Vmm, reason: "the configuration asks for vmm".into(), troubles }
        }
        Choice::Auto => auto(config, probe(&config.vmm).await),
    }
}

fn auto(config: &Config, probe: Result<Probe, String>) -> Chosen {
    match probe {
        Ok(Probe { kvm: Kvm::Hardware, reason }) => Chosen {
            kind: Kind::Vmm,
            reason: format!("KVM with hardware virtualisation: {reason}"),
            troubles: Vec::new(),
        },
        Ok(Probe { kvm: Kvm::Emulated, reason }) => qemu(
            config,
            format!("{reason}: QEMU software emulation is used; enable VT-x/AMD-V for full speed"),
        ),
        Ok(Probe { kvm: Kvm::Missing, reason }) => qemu(
            config,
            format!(
                "{reason}: QEMU software emulation is used; enable VT-x/AMD-V and load the kvm module for full speed"
            ),
        ),
        Err(why) => {
            let mut chosen = qemu(config, format!("{why}: QEMU software emulation is used"));
            chosen.troubles.push(why);
            chosen
        }
    }
}

fn qemu(config: &Config, reason: String) -> Chosen {
    let troubles = if find_program(&config.qemu).is_some() {
        Vec::new()
    } else {
        vec![format!(
            "{} is not installed, so no server can start; install the package qemu-system-x86",
            config.qemu.display()
        )]
    };
    Chosen { kind: Kind::Qemu, reason, troubles }
}

/// Finds a program as `execvp` would with the guests' search path.
#[must_use]
pub fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

async fn probe(vmm: &Path) -> Result<Probe, String> {
    let asked = tokio::process::Command::new(vmm)
        .arg("probe")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PROBE_PATIENCE, asked)
        .await
        .map_err(|_| format!("'{} probe' did not end within {} s", vmm.display(), PROBE_PATIENCE.as_secs()))?
        .map_err(|error| {
            format!(
                "cannot run '{} probe': {error}; check the vmm path in hostd's configuration",
                vmm.display()
            )
        })?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said: String = String::from_utf8_lossy(&output.stderr).chars().take(300).collect();
        format!("'{} probe' gave no verdict ({}): {}", vmm.display(), output.status, said.trim())
    })
}

/// What the host has. A simulated one has what [`simulated`] says, not what the machine below it has: its servers use
/// none of that, and a list of a hundred of them must fit.
#[must_use]
pub fn facts(config: &Config, chosen: &Chosen) -> HostFacts {
    if chosen.kind == Kind::Simulated {
        return HostFacts {
            name: config.name.clone(),
            cpus: simulated::CPUS,
            memory: simulated::MEMORY,
            hypervisor: chosen.kind.to_string(),
            reason: chosen.reason.clone(),
            cpu_model: chosen.kind.to_string(),
            disk: Some(simulated::DISK),
        };
    }
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    HostFacts {
        name: config.name.clone(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory: memory(),
        hypervisor: chosen.kind.to_string(),
        reason: chosen.reason.clone(),
        cpu_model: cpu_model(),
        disk: None,
    }
}

fn memory() -> MiB {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    MiB(kib.unwrap_or_default() / 1024)
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    model.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostd.toml");
        let base = "run_dir = '/run/x'\nstate_dir = '/var/x'\nnetd_fd_socket = '/run/x/netd.fd.sock'\ndisks_dir = '/d'\nkernels_dir = '/k'\n";
        std::fs::write(&path, format!("{base}{text}")).unwrap();
        base::config::load(&path).unwrap()
    }

    fn probed(kvm: Kvm, reason: &str) -> Result<Probe, String> {
        Ok(Probe { kvm, reason: reason.into() })
    }

    #[test]
    fn only_real_kvm_gets_our_monitor_and_simulated_is_never_chosen() {
        let config = config("");
        let why = "KVM emulates guest kernel code (2 M instr/s)";
        assert_eq!(auto(&config, probed(Kvm::Hardware, "fine")).kind, Kind::Vmm);
        let emulated = auto(&config, probed(Kvm::Emulated, why));
        assert_eq!(emulated.kind, Kind::Qemu);
        assert_eq!(
            emulated.reason,
            "KVM emulates guest kernel code (2 M instr/s): QEMU software emulation is used; enable VT-x/AMD-V for full speed"
        );
        assert_eq!(auto(&config, probed(Kvm::Missing, "no /dev/kvm")).kind, Kind::Qemu);
        let broken = auto(&config, Err("cannot run vmm".into()));
        assert_eq!((broken.kind, broken.troubles.len()), (Kind::Qemu, 1));
    }

    #[test]
    fn a_missing_emulator_is_a_trouble_with_its_remedy() {
        let chosen = auto(&config("qemu = '/none/qemu'"), probed(Kvm::Missing, "no /dev/kvm"));
        assert!(chosen.troubles[0].contains("install the package"), "{chosen:?}");
    }

    #[test]
    fn configurations_that_cannot_work_are_refused_in_words() {
        assert!(check(&config("")).is_ok());
        for bad in
            ["guest_uid_first = 1000", "guest_uid_count = 0", "console_kib = 1", "cgroup_parent = '../x'"]
        {
            assert!(check(&config(bad)).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_probe_that_says_nothing_is_quoted() {
        let error = probe(Path::new("false")).await.unwrap_err();
        assert!(error.contains("no verdict"), "{error}");
        let error = probe(Path::new("/none/vmm")).await.unwrap_err();
        assert!(error.contains("check the vmm path"), "{error}");
    }
}
