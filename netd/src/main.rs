//! The `netd` binary.

use clap::Parser;
use netd::config::Config;
use netd::engine::Engine;
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes the kernel have the networks, filters and routers that the control plane wants.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Take every kernel object of this instance away, and end.
    #[arg(long)]
    purge: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config: Config = match base::config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return refuse(&error.to_string()),
    };
    if let Err(error) = config.check() {
        return refuse(&format!("{}: {error}", arguments.config.display()));
    }
    if !nix::unistd::geteuid().is_root() {
        return refuse("networks are made by root only; start it as root");
    }
    base::daemon::run("netd", 2, |end| async move {
        if arguments.purge {
            Engine::open(config)?.purge().await?;
            return Ok(());
        }
        netd::run(config, end).await
    })
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("netd: {message}");
    ExitCode::from(2)
}
