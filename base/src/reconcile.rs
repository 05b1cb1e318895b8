//! The driver of reconcilers. A reconciler takes no input: woken by a nudge or a timer, it reads the world and closes
//! the gap. There is no second, hinted path, so the one that repairs is the one that always runs.

use crate::CancellationToken;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Wakes a reconciler. Nudges that come while it runs are merged into one further run.
#[derive(Debug, Clone, Default)]
pub struct Nudge(Arc<Notify>);

impl Nudge {
    /// Asks for a run soon.
    pub fn nudge(&self) {
        self.0.notify_one();
    }

    /// Resolves at the next nudge, or at once when one came since the last time.
    pub async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Runs `settle` at once, then after each nudge and at least every `every`, until cancelled.
///
/// A failed run is logged and tried again after a delay that doubles from one second up to `every`.
pub async fn drive<F, Fut, E>(
    name: &'static str,
    nudge: Nudge,
    every: Duration,
    shutdown: CancellationToken,
    mut settle: F,
) where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Display,
{
    let mut backoff = Duration::from_secs(1);
    loop {
        let pause = match settle().await {
            Ok(()) => {
                backoff = Duration::from_secs(1);
                every
            }
            Err(error) => {
                tracing::warn!(reconciler = name, %error, retry_secs = backoff.as_secs(), "could not settle");
                let pause = backoff;
                backoff = (backoff * 2).min(every);
                pause
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = nudge.woken() => (),
            () = tokio::time::sleep(pause) => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn failed_runs_are_repeated_and_nudges_wake() {
        let (runs, nudge, shutdown) =
            (Arc::new(AtomicU32::new(0)), Nudge::default(), CancellationToken::new());
        let counter = runs.clone();
        let driver = tokio::spawn(drive(
            "test",
            nudge.clone(),
            Duration::from_secs(600),
            shutdown.clone(),
            move || {
                let run = counter.fetch_add(1, Ordering::SeqCst);
                async move { if run < 2 { Err("not yet") } else { Ok(()) } }
            },
        ));
        let settled = async |wanted: u32| {
            while runs.load(Ordering::SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        settled(3).await; // two failures, then success, by backoff alone
        nudge.nudge();
        tokio::time::timeout(Duration::from_secs(60), settled(4)).await.expect("the nudge beats the timer");
        shutdown.cancel();
        driver.await.unwrap();
    }
}
