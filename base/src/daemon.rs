//! The frame of a daemon's `main`: runtime, signals, readiness and an orderly end.

use crate::CancellationToken;
use std::future::Future;
use std::process::ExitCode;

/// Runs a daemon until SIGTERM or SIGINT cancels the token it was given, or until it fails.
///
/// A failure is logged and printed as one plain line, and makes the exit code 1.
pub fn run<F, Fut>(name: &'static str, threads: usize, body: F) -> ExitCode
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>>,
{
    crate::log::init(name);
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("{name}: cannot start the runtime: {error}");
                return ExitCode::FAILURE;
            }
        };
    let outcome = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        body(shutdown).await
    });
    // Blocking threads (a conversion, say) must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %error, "daemon failed");
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cancel_on_signal(token: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => (), _ = int.recv() => () }
        token.cancel();
        tracing::info!("asked to end");
    });
    Ok(())
}

/// Tells the service manager that the daemon answers now (`sd_notify`), when it runs under one.
pub fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let outcome = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(b"READY=1", std::path::Path::new(&path)));
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot tell the service manager that the daemon is ready");
    }
}
