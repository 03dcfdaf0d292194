//! Which cores shards are pinned to.

/// Shards in one process at most: the mesh has a queue per pair.
pub const SHARDS_MAX: usize = 128;

/// What this process may use of the host; read once, so that resolving a configuration is a pure function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The cores of the affinity mask, ascending, never empty.
    pub cores: Vec<usize>,
    /// Cores' worth of time the process may use: a container's CPU quota can be smaller than its affinity mask.
    pub parallelism: usize,
    /// File descriptors the process may open: the hard limit, which the server raises itself to.
    pub nofile: u64,
}

impl Host {
    /// Reads affinity mask, CPU quota and file descriptor limit of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let mask = rustix::thread::sched_getaffinity(None).ok();
        let all = 0..rustix::thread::CpuSet::MAX_CPU;
        let mut cores: Vec<usize> = mask
            .map(|mask| all.filter(|core| mask.is_set(*core)).collect())
            .unwrap_or_default();
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        if cores.is_empty() {
            cores = (0..parallelism).collect();
        }
        let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            cores,
            parallelism,
            nofile: nofile.maximum.unwrap_or(u64::MAX),
        }
    }
}

/// Parses `0-3,6`. Cores may repeat and come in any order; the order is kept.
///
/// # Errors
/// A message for the operator: not a list, a core the process may not use, or too long.
pub(super) fn parse_list(text: &str, host: &Host) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| digits.trim().parse::<usize>().ok();
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!(
                "{part:?} is not a core or a range of cores; write a list such as 0-3,6"
            ));
        };
        if first > last {
            return Err(format!("the range {part:?} is backwards"));
        }
        for core in first..=last {
            if !host.cores.contains(&core) {
                return Err(format!(
                    "core {core} is not one of those this process may use ({})",
                    show(&host.cores)
                ));
            }
            cores.push(core);
        }
        if cores.len() > SHARDS_MAX {
            return Err(format!("more than {SHARDS_MAX} cores"));
        }
    }
    Ok(cores)
}

/// The core of each shard, and a warning when cores are used twice. Without `shards` there is one per listed core, or
/// without a list one per core's worth of time.
pub(super) fn assign(
    shards: Option<usize>,
    listed: Option<Vec<usize>>,
    host: &Host,
) -> (Vec<usize>, Option<String>) {
    let unlisted = listed.is_none();
    let cores = listed.unwrap_or_else(|| host.cores.clone());
    let default = if unlisted {
        host.parallelism.min(cores.len())
    } else {
        cores.len()
    };
    let shards = shards.unwrap_or(default).clamp(1, SHARDS_MAX);
    let warning = (shards > cores.len()).then(|| {
        format!(
            "{shards} shards share {} cores ({}); one per core is faster",
            cores.len(),
            show(&cores)
        )
    });
    (cores.into_iter().cycle().take(shards).collect(), warning)
}

/// Cores in list form, runs shortened: `0-3,6`.
#[must_use]
pub fn show(cores: &[usize]) -> String {
    let runs = cores.chunk_by(|a, b| a + 1 == *b);
    let shown: Vec<String> = runs
        .filter_map(|run| match run {
            [] => None,
            [one] => Some(one.to_string()),
            [first, .., last] => Some(format!("{first}-{last}")),
        })
        .collect();
    shown.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cores: &[usize]) -> Host {
        Host {
            cores: cores.to_vec(),
            parallelism: cores.len(),
            nofile: 4096,
        }
    }

    #[test]
    fn lists_are_read_and_shown() {
        let host = host(&[0, 1, 2, 3, 6]);
        assert_eq!(parse_list("0-2, 6", &host), Ok(vec![0, 1, 2, 6]));
        assert_eq!(show(&[0, 1, 2, 6]), "0-2,6");
        assert_eq!(parse_list("3,1", &host), Ok(vec![3, 1]));
    }

    #[test]
    fn wrong_lists_are_refused() {
        let host = host(&[0, 1]);
        for bad in [
            "",
            "a",
            "1-",
            "-1",
            "1-0",
            "0,,1",
            "2",
            "0-18446744073709551615",
        ] {
            assert!(parse_list(bad, &host).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn shards_take_the_first_cores_and_reuse_them_with_a_warning() {
        let host = host(&[0, 1, 4]);
        assert_eq!(assign(None, None, &host), (vec![0, 1, 4], None));
        assert_eq!(assign(Some(2), None, &host), (vec![0, 1], None));
        let (cores, warning) = assign(Some(3), Some(vec![4]), &host);
        assert_eq!(cores, [4, 4, 4]);
        assert!(warning.unwrap().contains("3 shards share 1 cores"));
    }

    #[test]
    fn a_cpu_quota_bounds_the_default_but_not_an_explicit_list() {
        let quota = Host {
            parallelism: 2,
            ..host(&[0, 1, 2, 3])
        };
        assert_eq!(assign(None, None, &quota).0, [0, 1]);
        assert_eq!(assign(None, Some(vec![1, 2, 3]), &quota).0, [1, 2, 3]);
    }
}
