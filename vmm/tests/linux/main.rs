//! Linux guests. They need hardware virtualisation (or hours), which few machines for tests have: so each test here starts a machine
//! around them in QEMU (see `outer`), and `guests` runs there.
//!
//! Tests that are ignored run inside: those of `guests` in the machine around, those of `inside` in a guest.
//!
//! `VMM_LINUX_TESTS`: a part of the names of the tests to run, as `devices`. `VMM_TEST_REBOOTS`: how often the reboot loop goes round, 5 unless given. `VMM_LINUX_PACKAGE`: a kernel package (`.deb`) to take
//! instead of Debian's cloud kernel.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod guests;
mod inside;
mod outer;

use outer::{Outer, Plan};
use std::path::{Path, PathBuf};
use std::process::Command;

fn reboots() -> (&'static str, String) {
    ("VMM_TEST_REBOOTS", std::env::var("VMM_TEST_REBOOTS").unwrap_or_else(|_| "5".into()))
}

#[test]
fn linux_guests_work() {
    let tests = [
        "guests::linux_boots_and_takes_disks_in_and_out",
        "guests::linux_drives_every_device",
        "guests::linux_goes_on_from_a_snapshot",
        "guests::linux_loads_a_disk_and_a_network_interface",
        "guests::linux_grows_and_shrinks",
        "guests::linux_reboots_again_and_again",
        "guests::eight_guests_at_once",
    ];
    let only = std::env::var("VMM_LINUX_TESTS").ok();
    let wanted = |test: &&str| only.as_ref().is_none_or(|only| test.contains(only));
    let tests: Vec<&str> = tests.into_iter().filter(wanted).collect();
    outer::run(&Plan { tests: &tests, env: &[reboots()], ..Plan::default() });
}

/// Kills the whole machine around a guest that writes, and looks at what is there after a new start.
#[test]
fn what_a_guest_flushed_survives_a_power_cut() {
    // Not on a file system in memory, which knows no direct access.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status().unwrap();
    assert!(made.success());
    let writing = ["guests::writes_until_the_power_is_cut"];
    let mut outer = Outer::start(&Plan { tests: &writing, disk: Some(&disk), ..Plan::default() });
    // Enough for a lot to be under way. What was acknowledged is what the console says at the moment of the cut.
    outer.wait("acknowledged 40 ");
    let said = outer.said();
    drop(outer);
    let number =
        |line: &str, at: usize| line.split_whitespace().nth(at).and_then(|word| word.parse::<u64>().ok());
    let last =
        said.lines().rfind(|line| line.starts_with("acknowledged ") && line.ends_with(" written")).unwrap();
    let (flushed, loose) = (number(last, 1).unwrap(), number(last, 3).unwrap());

    let looking = ["guests::looks_at_what_is_left"];
    let said = outer::run(&Plan { tests: &looking, disk: Some(&disk), ..Plan::default() });
    let found = said.lines().find_map(|line| line.strip_prefix("figure records ")).unwrap();
    let found: Vec<u64> = found.split_whitespace().map(|word| word.parse().unwrap()).collect();
    println!("flushed {flushed}, there {}; never flushed {loose}, there {}", found[0], found[1]);
    assert!(found[0] >= flushed, "a flush was acknowledged and {} of {flushed} records are there", found[0]);
    // Otherwise the cut cut nothing, and the line above shows nothing.
    assert!(found[1] < loose, "all that was never flushed is there: the power was not cut");
}

/// Prints what a guest gets of its disk and its network interface, and how many exits that costs; with `VMM_FIRECRACKER=FILE` turn by turn
/// with that monitor. `VMM_TEST_ROUNDS` is how many turns each has (3).
#[test]
#[ignore = "measures: cargo nextest run --cargo-profile release -p vmm --test linux --run-ignored all monitors_side_by_side --no-capture"]
fn monitors_side_by_side() {
    let rounds = std::env::var("VMM_TEST_ROUNDS").unwrap_or_else(|_| "3".into());
    let firecracker = std::env::var_os("VMM_FIRECRACKER").map(PathBuf::from);
    let programs: Vec<(&str, &Path)> = firecracker.iter().map(|file| ("bin/firecracker", &**file)).collect();
    let files = [("guest/vmlinux", outer::vmlinux())];
    let said = outer::run(&Plan {
        tests: &["guests::monitors_are_measured"],
        env: &[("VMM_TEST_ROUNDS", rounds)],
        programs: &programs,
        files: &files,
        ..Plan::default()
    });
    let lines: Vec<Vec<&str>> = said
        .lines()
        .filter_map(|line| Some(line.strip_prefix("figure ")?.split_whitespace().collect()))
        .collect();
    let monitors = if firecracker.is_some() { vec!["ours", "firecracker"] } else { vec!["ours"] };
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let number = |text: &str| text.parse::<f64>().unwrap();
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    let names = ["boot", "read-4k", "write-4k", "read-seq", "write-seq", "tcp-out", "tcp-in", "udp-out"];
    for name in names {
        for monitor in &monitors {
            let of: Vec<_> = lines.iter().filter(|line| line[0] == *monitor && line[1] == name).collect();
            if name == "boot" {
                let mut seconds: Vec<f64> = of.iter().map(|line| number(line[2]) / 1e6).collect();
                seconds.sort_by(f64::total_cmp);
                let middle = median(seconds.clone());
                println!(
                    "{name} {monitor}: least {:.2} s, median {middle:.2} s of {}",
                    seconds[0],
                    seconds.len()
                );
                continue;
            }
            let per_second =
                |at: usize| median(of.iter().map(|line| number(line[at]) * 1e6 / number(line[4])).collect());
            let exits = median(of.iter().map(|line| number(line[5]) / number(line[2])).collect());
            let (operations, mega) = (per_second(2), per_second(3) / 1e6);
            println!("{name} {monitor}: {operations:.0} per second, {mega:.1} MB/s, {exits:.2} exits each");
        }
    }
}
