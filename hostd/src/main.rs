//! The `hostd` binary.

use clap::Parser;
use hostd::config::Config;
use std::path::PathBuf;
use std::process::ExitCode;
use wire::ids::CloudId;

/// Runs the guests of this host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML); `NAME.d/*.toml` beside it are read too.
    #[arg(long)]
    config: PathBuf,
    /// End all guests of this instance, remove what is left of them, and exit.
    #[arg(long)]
    purge: bool,
    /// Give the servers of this host to the cloud with this id, and exit. What its database does not name is ended then.
    #[arg(long, value_name = "CLOUD", conflicts_with = "purge")]
    adopt: Option<CloudId>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config: Config = match base::config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("hostd: {error}");
            return ExitCode::FAILURE;
        }
    };
    base::daemon::run("hostd", 2, async move |shutdown| {
        if arguments.purge {
            let ended = hostd::purge::purge(&config).await?;
            println!("hostd: removed {ended} servers");
            return Ok(());
        }
        if let Some(cloud) = arguments.adopt {
            match hostd::serve::owner(&config.state_dir).adopt(cloud)? {
                Some(before) => {
                    println!("hostd: the servers of this host belonged to cloud {before}, and now to {cloud}")
                }
                None => println!("hostd: the servers of this host belong to cloud {cloud}"),
            }
            return Ok(());
        }
        hostd::serve::run(config, shutdown).await
    })
}
