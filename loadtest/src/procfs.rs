//! CPU time and memory of processes, from `/proc`.

use std::fs;

use serde::Serialize;

/// Clock ticks per second in `/proc/PID/stat`: fixed for user space on Linux.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of one thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadCpu {
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub name: String,
    /// Nanoseconds on a CPU.
    pub cpu_ns: u64,
}

/// CPU time of a process.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// Nanoseconds of all threads.
    pub total_ns: u64,
    /// Per living thread.
    pub threads: Vec<ThreadCpu>,
}

/// CPU time of `pids` together. A process that is gone counts as nothing.
pub fn cpu(pids: &[u32]) -> Cpu {
    let mut all = Cpu::default();
    for &pid in pids {
        let threads = thread_cpu(pid);
        let precise: u64 = threads.iter().map(|t| t.cpu_ns).sum();
        // Ended threads are missing from the precise sum and included in the coarse one.
        let coarse = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|s| parse_stat(&s));
        let tick_ns = 1_000_000_000 / TICKS_PER_SECOND;
        let coarse_ns = coarse.unwrap_or(0) * tick_ns;
        let error_ns = tick_ns * (threads.len() as u64 + 1) * 2;
        all.total_ns += if coarse_ns > precise + precise / 20 + error_ns {
            coarse_ns
        } else {
            precise.max(1)
        };
        all.threads.extend(threads);
    }
    all
}

fn thread_cpu(pid: u32) -> Vec<ThreadCpu> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let of_task = |task: fs::DirEntry| {
        let tid = task.file_name().to_str()?.parse().ok()?;
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some(ThreadCpu {
            tid,
            name: name.trim_end().to_owned(),
            cpu_ns: parse_schedstat(&schedstat)?,
        })
    };
    tasks.flatten().filter_map(of_task).collect()
}

/// Nanoseconds on a CPU: the first field (Linux `Documentation/scheduler/sched-stats.rst`).
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// `utime` plus `stime` in ticks (fields 14 and 15 of proc_pid_stat(5); the name may hold anything).
fn parse_stat(text: &str) -> Option<u64> {
    let after_name = text.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let utime: u64 = fields.next()?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    Some(utime + stime)
}

/// Resident memory of `pids` together in bytes, exact but slow: for moments outside the measuring.
pub fn rss_bytes(pids: &[u32]) -> u64 {
    let of_pid = |pid: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
        let rollup = rollup.and_then(|text| parse_kib(&text, "Rss:"));
        let status = || {
            fs::read_to_string(format!("/proc/{pid}/status"))
                .ok()
                .and_then(|t| parse_kib(&t, "VmRSS:"))
        };
        rollup.or_else(status).unwrap_or(0) * 1024
    };
    pids.iter().map(of_pid).sum()
}

/// Resident memory of `pids` together in bytes, from a counter that may lag a little.
pub fn rss_bytes_quick(pids: &[u32]) -> u64 {
    let of_pid = |pid: &u32| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    };
    pids.iter().filter_map(of_pid).sum()
}

fn parse_kib(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(label))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The machine, for the report.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// This machine.
    pub fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find(|l| l.starts_with("model name"))
            .and_then(|l| l.split_once(':'));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: cpuinfo
                .lines()
                .filter(|l| l.starts_with("processor"))
                .count()
                .max(1),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            memory_bytes: parse_kib(&meminfo, "MemTotal:").unwrap_or(0) * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_name_holds() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 100 200 300";
        assert_eq!(parse_stat(stat), Some(200));
        assert_eq!(parse_stat("7 (x"), None);
        assert_eq!(parse_schedstat("123456 789 10\n"), Some(123_456));
        assert_eq!(
            parse_kib("Pss: 1 kB\nRss:      2048 kB\n", "Rss:"),
            Some(2048)
        );
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pid = [std::process::id()];
        let before = cpu(&pid).total_ns;
        let mut x = 1u64;
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 30 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(cpu(&pid).total_ns > before + 5_000_000);
        assert!(rss_bytes(&pid) > 100_000 && rss_bytes_quick(&pid) > 100_000);
        assert_eq!(rss_bytes(&[u32::MAX]), 0);
    }
}
