//! The `api` binary: serves the REST services, or takes a new cloud's first steps.

use api::bootstrap::{self, Options};
use api::config::Config;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// The control plane of Ferrostack.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to end.
    Serve {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Make what a new cloud needs: CA, certificate, keys, users, catalog, networks, flavors, image. May be repeated.
    Bootstrap {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        #[command(flatten)]
        options: Options,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let path = match &command {
        Command::Serve { config } | Command::Bootstrap { config, .. } => config,
    };
    let config: Config = match base::config::load(path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("api: {error}");
            return ExitCode::FAILURE;
        }
    };
    let threads = config.threads.max(1);
    base::daemon::run("api", threads, move |shutdown| async move {
        match command {
            Command::Serve { .. } => api::serve::serve(config, shutdown).await,
            Command::Bootstrap { options, .. } => {
                tokio::select! {
                    done = bootstrap::run(config, options) => done,
                    () = shutdown.cancelled() => Err("interrupted; run it again to finish".into()),
                }
            }
        }
    })
}
