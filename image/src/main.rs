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
    }
}
