//! The `hostd` binary.

use clap::Parser;
use hostd::config::Config;
use std::path::PathBuf;
use std::process::ExitCode;

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
        hostd::serve::run(config, shutdown).await
    })
}
