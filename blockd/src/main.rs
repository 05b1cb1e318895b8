//! The `blockd` binary: the daemon, its image sandbox, and the pool's mount for a development machine.

use blockd::{config::Config, image::sandbox, mount, pool, server};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wire::Refused;
use wire::ids::CloudId;

#[derive(Debug, Parser)]
#[command(name = "blockd", version, about = "Ferrostack's storage daemon")]
struct Arguments {
    /// Configuration file of the daemon.
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Parses one image in a sandbox; started by the daemon.
    #[command(hide = true)]
    Convert(sandbox::Arguments),
    /// Makes (when new), grows and mounts the pool on a sparse file.
    PoolMount(mount::MountArguments),
    /// Gives the pool to a cloud. What that cloud's database does not name is deleted then.
    Adopt {
        /// Configuration file of the daemon.
        #[arg(long)]
        config: PathBuf,
        /// The cloud's id, as the API's health report shows it.
        cloud: CloudId,
    },
    /// Unmounts the pool and leaves no loop device behind.
    PoolUnmount(mount::UnmountArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Convert(arguments)) => sandbox::main(&arguments),
        Some(Command::PoolMount(arguments)) => said(mount::mount(&arguments)),
        Some(Command::Adopt { config, cloud }) => said(adopt(&config, cloud)),
        Some(Command::PoolUnmount(arguments)) => said(mount::unmount(&arguments)),
        None => match arguments.config {
            Some(path) => base::daemon::run("blockd", 2, |shutdown| async move {
                let config: Config = base::config::load(&path)?;
                server::run(config, shutdown).await
            }),
            None => {
                eprintln!("blockd: give --config FILE to run the daemon, or a sub-command; see --help");
                ExitCode::from(2)
            }
        },
    }
}

fn adopt(config: &Path, cloud: CloudId) -> Result<(), Refused> {
    let config: Config = base::config::load(config).map_err(|error| Refused::invalid(error.to_string()))?;
    match pool::owner(&config.pool_dir).adopt(cloud)? {
        Some(before) => println!("blockd: the pool belonged to cloud {before}, and now to {cloud}"),
        None => println!("blockd: the pool belongs to cloud {cloud}"),
    }
    Ok(())
}

fn said(outcome: Result<(), Refused>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            eprintln!("blockd: {refused}");
            ExitCode::FAILURE
        }
    }
}
