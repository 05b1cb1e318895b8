//! Places where tests end the daemon as a power cut would.
//!
//! Every passage of [`point`] is counted; the one whose number is in `HOSTD_CRASH_AT` kills the process. A test runs the
//! same story with 1, 2, 3... until the story passes without a kill, so no step is forgotten. Release builds have the
//! points too: what is tested is what is shipped, and only who starts the daemon can set the variable.

/// A place where the daemon may be killed.
pub fn point(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static AT: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("HOSTD_CRASH_AT").ok().and_then(|text| text.parse().ok()));
    static PASSED: AtomicU64 = AtomicU64::new(0);
    if let Some(at) = *AT
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == at
    {
        eprintln!("hostd: killing itself at fault point {at}, {name}");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}
