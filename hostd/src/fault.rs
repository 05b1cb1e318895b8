//! Places where tests end the daemon as a power cut would.
//!
//! Debug builds count every passage of [`point`]; the one whose number is in `HOSTD_CRASH_AT` kills the process. A test
//! runs the same story with 1, 2, 3... until the story passes without a kill, so no step is forgotten.

/// A place where the daemon may be killed.
#[cfg(debug_assertions)]
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

/// A place where the daemon may be killed: not in release builds.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}
