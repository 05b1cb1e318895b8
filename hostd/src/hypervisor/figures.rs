//! What the kernel says of a guest's processes.

use wire::{MiB, Refused};

/// What a guest's processes used.
#[derive(Debug, Default)]
pub struct Usage {
    /// Seconds since the first of them started.
    pub uptime_secs: Option<u64>,
    /// CPU time of the vCPU threads in their order, in nanoseconds.
    pub cpus_ns: Vec<u64>,
    /// Memory that they have of the host now.
    pub resident: Option<MiB>,
}

/// Reads it, for a process and its children. vCPU threads are told by their name: `prefix`, then their number. What
/// cannot be read is left out: a process may end at any moment.
///
/// # Errors
/// When the daemon is ending.
pub async fn usage(pid: i32, prefix: &'static str) -> Result<Usage, Refused> {
    tokio::task::spawn_blocking(move || read(pid, prefix))
        .await
        .map_err(|error| Refused::internal(error.to_string()))
}

fn read(pid: i32, prefix: &str) -> Usage {
    let mut pids = vec![pid];
    pids.extend(children(pid));
    let mut cpus: Vec<(u32, u64)> = pids.iter().flat_map(|pid| vcpus(*pid, prefix)).collect();
    cpus.sort_unstable();
    let resident: Vec<u64> = pids.iter().filter_map(|pid| resident_kib(*pid)).collect();
    Usage {
        uptime_secs: pids.iter().filter_map(|pid| age_secs(*pid)).max(),
        cpus_ns: cpus.into_iter().map(|(_, time)| time).collect(),
        resident: (!resident.is_empty()).then(|| MiB(resident.iter().sum::<u64>() >> 10)),
    }
}

/// The children of a process, by its threads.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn vcpus(pid: i32, prefix: &str) -> Vec<(u32, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let one = |thread: std::fs::DirEntry| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let number: String =
            name.trim_end().strip_prefix(prefix)?.chars().take_while(char::is_ascii_digit).collect();
        let stat = std::fs::read_to_string(thread.path().join("stat")).ok()?;
        Some((number.parse().ok()?, cpu_ns(&stat)?))
    };
    threads.filter_map(one).collect()
}

/// Fields of a `stat` file behind the name, which may hold anything: the first is number 3 of proc(5).
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

/// User and system time (fields 14 and 15), which the kernel tells in hundredths of a second on every architecture.
fn cpu_ns(stat: &str) -> Option<u64> {
    let fields = fields(stat)?;
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    ticks(11)?.checked_add(ticks(12)?)?.checked_mul(10_000_000)
}

fn age_secs(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let started: u64 = fields(&stat)?.get(19)?.parse().ok()?;
    let up = std::fs::read_to_string("/proc/uptime").ok()?;
    let (secs, _) = up.split_once('.')?;
    secs.parse::<u64>().ok()?.checked_sub(started / 100)
}

fn resident_kib(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::cpu_ns;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) (c) S 1 1 1 0 -1 4194304 10 0 0 0 12 30 0 0 20 0 1 0 99 1 1";
        assert_eq!(cpu_ns(stat), Some(420_000_000));
        assert_eq!(cpu_ns("7 no name"), None);
        assert_eq!(cpu_ns("7 (a) S 1"), None);
    }
}
