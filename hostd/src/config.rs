//! What `hostd` is told by its configuration file.

use serde::Deserialize;
use std::path::PathBuf;
use wire::machine::CpuModel;

/// `hostd`'s configuration. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Compute host name; the machine's host name when it is not given.
    #[serde(default = "host_name")]
    pub name: String,
    /// Sockets and what does not outlive a boot of the host.
    pub run_dir: PathBuf,
    /// What should be, and how far it got. Console logs.
    pub state_dir: PathBuf,
    /// `netd`'s descriptor socket, where taps come from.
    pub netd_fd_socket: PathBuf,
    /// The folder that disks are opened from, and no other.
    pub disks_dir: PathBuf,
    /// The folder that kernels and initial RAM disks are read from, and no other.
    pub kernels_dir: PathBuf,
    /// The `vmm` program; beside this program when it is not given.
    #[serde(default = "vmm_beside")]
    pub vmm: PathBuf,
    /// The QEMU program, used when KVM cannot be.
    #[serde(default = "qemu")]
    pub qemu: PathBuf,
    /// Run QEMU also where the kernel gives it no namespaces of its own: a guest that breaks out of it is then on the
    /// host's network.
    #[serde(default)]
    pub qemu_unconfined: bool,
    /// Which hypervisor runs new machines.
    #[serde(default)]
    pub hypervisor: Choice,
    /// What guests of `vmm` find of the host's processor: `host`, or `x86-64-v2`, `-v3` or `-v4` so that they may go on
    /// on other hosts of that generation. QEMU's emulated processor has always all that it can do.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// UEFI firmware for guests that ask for it (QEMU only).
    #[serde(default = "firmware")]
    pub firmware: PathBuf,
    /// What such a guest's firmware variables are at first.
    #[serde(default = "firmware_variables")]
    pub firmware_variables: PathBuf,
    /// Users besides root and `hostd`'s own that may call.
    #[serde(default)]
    pub allow_uids: Vec<u32>,
    /// First of the user ids that guests' processes get, one each. The default lies above the ranges that
    /// distributions and container managers hand out.
    #[serde(default = "guest_uid_first")]
    pub guest_uid_first: u32,
    /// Number of those user ids: the most servers that this host can have.
    #[serde(default = "guest_uid_count")]
    pub guest_uid_count: u32,
    /// Control group below which each guest gets one of its own.
    #[serde(default = "cgroup_parent")]
    pub cgroup_parent: String,
    /// Limit of a server's console log in KiB.
    #[serde(default = "console_kib")]
    pub console_kib: u64,
    /// Seconds that a guest may take to give a device back.
    #[serde(default = "unplug_secs")]
    pub unplug_secs: u64,
}

/// Which hypervisor runs new machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// `vmm` when KVM is there and has hardware under it, else `qemu`.
    #[default]
    Auto,
    /// Our own monitor on KVM, whatever the probe says.
    Vmm,
    /// QEMU's software emulation.
    Qemu,
    /// No guest at all: for figures of the control plane.
    Simulated,
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".into(), |name| name.trim().to_owned())
}

fn vmm_beside() -> PathBuf {
    std::env::current_exe().map_or_else(|_| "vmm".into(), |program| program.with_file_name("vmm"))
}

fn qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn firmware() -> PathBuf {
    "/usr/share/OVMF/OVMF_CODE_4M.fd".into()
}

fn firmware_variables() -> PathBuf {
    "/usr/share/OVMF/OVMF_VARS_4M.fd".into()
}

fn guest_uid_first() -> u32 {
    1_880_000_000
}

fn guest_uid_count() -> u32 {
    10_000
}

fn cgroup_parent() -> String {
    "ferrostack-guests".into()
}

fn console_kib() -> u64 {
    1024
}

fn unplug_secs() -> u64 {
    30
}
