//! The `image` program: packs the guest image and the appliance.

use clap::{Parser, Subcommand};
use image::Fault;
use std::path::PathBuf;
use std::process::ExitCode;

/// Packs Ferrostack's disk images from Debian packages.
#[derive(Debug, Parser)]
#[command(name = "image", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the small guest image: guest.raw, guest.qcow2 (to upload), guest.vmlinuz, guest.initrd, guest.json.
    Guest {
        /// Folder for the results; nothing happens when they are there already.
        #[arg(long)]
        out: PathBuf,
        /// Folder for fetched packages (default: `packages` in the result folder).
        #[arg(long)]
        cache: Option<PathBuf>,
    },
    /// Makes the appliance: a raw UEFI disk image for a USB stick, a disk or a virtual machine.
    Appliance {
        /// The image file.
        #[arg(long)]
        out: PathBuf,
        /// Folder with the built programs: hostd, netd, blockd, api, vmm.
        #[arg(long)]
        binaries: PathBuf,
        /// Folder for fetched packages (default: `packages` beside the image).
        #[arg(long)]
        cache: Option<PathBuf>,
    },
    /// Boots an appliance image in QEMU on a throw-away copy of its disk, console on this terminal.
    ApplianceRun {
        /// The image file.
        file: PathBuf,
        /// Loopback port that leads to the appliance's port 443.
        #[arg(long, default_value_t = 9443)]
        port: u16,
        /// Memory in MiB.
        #[arg(long, default_value_t = 2048)]
        memory: u32,
        /// Size of the disk in GiB.
        #[arg(long, default_value_t = 16)]
        disk: u32,
        /// Start the kernel directly instead of through UEFI: some seconds faster.
        #[arg(long)]
        direct: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("image: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Fault> {
    match command {
        Command::Guest { out, cache } => {
            let cache = cache.unwrap_or_else(|| out.join("packages"));
            let facts = image::guest::build(&out, &cache)?;
            println!(
                "guest image: {} ({:.1} MiB to upload), log in as {} with an SSH key",
                out.join("guest.qcow2").display(),
                facts.qcow2_bytes as f64 / 1_048_576.0,
                facts.user
            );
            Ok(())
        }
        Command::Appliance { out, binaries, cache } => {
            let folder = out.parent().map(PathBuf::from).unwrap_or_default();
            let cache = cache.unwrap_or_else(|| folder.join("packages"));
            let guest = folder.join("appliance-guest");
            image::guest::build(&guest, &cache)?;
            let guest = guest.join("guest.qcow2");
            let source = image::appliance::Source { binaries: &binaries, guest: Some(&guest), cache: &cache };
            let facts = image::appliance::build(&out, &source)?;
            println!(
                "appliance: {} ({} MiB); write it to a disk, or try it with appliance-run",
                out.display(),
                facts.bytes >> 20
            );
            Ok(())
        }
        Command::ApplianceRun { file, port, memory, disk, direct } => {
            image::appliance::run::run(&file, port, memory, disk, !direct)
        }
    }
}
