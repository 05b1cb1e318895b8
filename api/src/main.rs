//! The `api` binary: serves the REST services, or takes a new cloud's first steps.

use api::bootstrap::{self, Options, ResetOptions};
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
    /// Print the OpenAPI document of all services.
    Openapi,
    /// Give the user admin a new password and write clouds.yaml and openrc: the way back when these are lost.
    ResetAdminPassword {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        #[command(flatten)]
        options: ResetOptions,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let path = match &command {
        Command::Openapi => return print_openapi(),
        Command::Serve { config }
        | Command::Bootstrap { config, .. }
        | Command::ResetAdminPassword { config, .. } => config,
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
            Command::Openapi => Ok(()),
            Command::Serve { .. } => api::serve::serve(config, shutdown).await,
            Command::Bootstrap { options, .. } => {
                tokio::select! {
                    done = bootstrap::run(config, options) => done,
                    () = shutdown.cancelled() => Err("interrupted; run it again to finish".into()),
                }
            }
            Command::ResetAdminPassword { options, .. } => {
                bootstrap::reset_admin_password(config, options).await
            }
        }
    })
}

fn print_openapi() -> ExitCode {
    match api::kit::openapi::document(api::app::services()) {
        Ok(document) => {
            println!("{document}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("api: {error}");
            ExitCode::FAILURE
        }
    }
}
