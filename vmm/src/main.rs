//! The `vmm` binary.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmm::boot_entries::{BootEntriesArgs, main_boot_entries};

/// Ferrostack's virtual machine monitor.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find the kernel that a whole-disk image boots.
    BootEntries(BootEntriesArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::BootEntries(args) => main_boot_entries(&args),
    }
}
