//! The `vmm` binary.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmm::boot_entries::{BootEntriesArgs, main_boot_entries};
use vmm::machine::by_hand::{RunArgs, main_run};
use vmm::machine::probe::probe;
use vmm::machine::serve::main_serve;

/// Ferrostack's virtual machine monitor.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start one guest with its serial console on the terminal (Ctrl-A x ends it).
    Run(Box<RunArgs>),
    /// Be one machine of hostd: everything comes as descriptors.
    Serve {
        /// Descriptor to read the JSON configuration from.
        #[arg(long)]
        config_fd: i32,
        /// Do without the jail: on a developer's machine only.
        #[arg(long)]
        no_jail: bool,
    },
    /// Say, as JSON, whether this host has KVM and whether it is real.
    Probe {
        /// KVM device.
        #[arg(long, default_value = "/dev/kvm")]
        device: PathBuf,
    },
    /// Find the kernel that a whole-disk image boots.
    BootEntries(BootEntriesArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => main_run(&args),
        Command::Serve { config_fd, no_jail } => main_serve(config_fd, !no_jail),
        Command::Probe { device } => match serde_json::to_string(&probe(&device)) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("vmm: {error}");
                ExitCode::FAILURE
            }
        },
        Command::BootEntries(args) => main_boot_entries(&args),
    }
}
