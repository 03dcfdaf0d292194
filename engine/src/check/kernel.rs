//! What the kernel allows and how it is set up, as far as it costs capacity or latency: nothing here is fatal.

use std::fs;

use super::{Finding, Grade};

/// Connections that can wait in a listening socket before a crowd is made to try again.
const BACKLOG_GOOD: u64 = 4096;
/// Half-open connections before the kernel falls back to SYN cookies.
const SYN_BACKLOG_GOOD: u64 = 4096;

/// Looks at it all. `cores`: those of the shards.
pub(super) fn findings(cores: &[usize], connections_max: usize) -> Vec<Finding> {
    let mut cores = cores.to_vec();
    cores.sort_unstable();
    cores.dedup();
    let governors = cores
        .iter()
        .map(|core| {
            read(&format!(
                "/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
            ))
        })
        .collect();
    vec![
        number(
            "accept backlog (net.core.somaxconn)",
            read("/proc/sys/net/core/somaxconn"),
            BACKLOG_GOOD,
            "sysctl net.core.somaxconn=65535: a crowd that reconnects waits there instead of trying again",
        ),
        number(
            "half-open connections (net.ipv4.tcp_max_syn_backlog)",
            read("/proc/sys/net/ipv4/tcp_max_syn_backlog"),
            SYN_BACKLOG_GOOD,
            "sysctl net.ipv4.tcp_max_syn_backlog=65535: for crowds that reconnect at once",
        ),
        system_files(read("/proc/sys/fs/file-max"), connections_max),
        ports(read("/proc/sys/net/ipv4/ip_local_port_range")),
        huge_pages(read("/sys/kernel/mm/transparent_hugepage/enabled")),
        isolation(
            &cores,
            read("/sys/devices/system/cpu/isolated"),
            std::thread::available_parallelism().map_or(1, usize::from),
        ),
        governor(governors),
    ]
}

/// The trimmed text of a file; `None` when it cannot be read.
fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A setting that is to be `wanted` or more.
fn number(what: &'static str, text: Option<String>, wanted: u64, remedy: &str) -> Finding {
    match text.as_deref().map(str::parse::<u64>) {
        Some(Ok(value)) if value >= wanted => Finding::ok(what, value.to_string()),
        Some(Ok(value)) => Finding::bad(Grade::Warn, what, value.to_string(), remedy),
        Some(Err(_)) | None => Finding::bad(Grade::Warn, what, "cannot be read", remedy),
    }
}

fn system_files(text: Option<String>, connections_max: usize) -> Finding {
    let wanted = connections_max.saturating_add(connections_max / 4) as u64;
    let remedy = format!(
        "sysctl fs.file-max={wanted}: the whole machine has fewer descriptors than this server may use"
    );
    number(
        "open files of the machine (fs.file-max)",
        text,
        wanted,
        &remedy,
    )
}

/// Ports below the range are the machine's own to listen on; within it an outgoing connection may sit on ours.
fn ports(text: Option<String>) -> Finding {
    const WHAT: &str = "outgoing ports (net.ipv4.ip_local_port_range)";
    let numbers = text.as_deref().and_then(|text| {
        let (first, last) = text.split_once(char::is_whitespace)?;
        Some((first.parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?))
    });
    let Some((first, last)) = numbers else {
        return Finding::ok(WHAT, "cannot be read");
    };
    let value = format!("{first} to {last}");
    if last.saturating_sub(first) < 20_000 {
        let remedy = "sysctl net.ipv4.ip_local_port_range=\"10240 65535\": a proxy on this machine has a port for each \
                      of its connections to the server";
        return Finding::bad(Grade::Warn, WHAT, value, remedy);
    }
    Finding::ok(WHAT, value)
}

fn huge_pages(text: Option<String>) -> Finding {
    const WHAT: &str = "transparent huge pages";
    let Some(text) = text else {
        return Finding::ok(WHAT, "not built in");
    };
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match chosen.map(|(chosen, _)| chosen) {
        Some("always") => Finding::bad(
            Grade::Warn,
            WHAT,
            "always",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: memory per connection grows, and its compaction \
             stops threads",
        ),
        Some(other) => Finding::ok(WHAT, other),
        None => Finding::ok(WHAT, text),
    }
}

/// A shard on a core that the scheduler gives to nobody else never waits for one. Worth it on machines with cores to
/// spare.
fn isolation(cores: &[usize], isolated: Option<String>, parallelism: usize) -> Finding {
    const WHAT: &str = "cores to themselves (isolcpus)";
    let isolated = isolated.unwrap_or_default();
    let alone = |core: &usize| {
        isolated.split(',').any(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            matches!((first.parse::<usize>(), last.parse::<usize>()),
                (Ok(first), Ok(last)) if (first..=last).contains(core))
        })
    };
    let value = match cores.iter().filter(|core| alone(core)).count() {
        0 if cores.len() >= parallelism => {
            "no; the shards have every core, so the system's work shares them: cores = \"1-…\" leaves it one"
        }
        0 => "no; the system's work may share the shards' cores",
        count if count == cores.len() => "yes",
        _ => "some of the shards' cores",
    };
    Finding::ok(WHAT, value)
}

fn governor(governors: Vec<Option<String>>) -> Finding {
    const WHAT: &str = "CPU frequency governor";
    let slow = governors
        .iter()
        .flatten()
        .find(|governor| matches!(governor.as_str(), "powersave" | "ondemand" | "conservative"));
    let driver = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").unwrap_or_default();
    match (slow, governors.iter().flatten().next()) {
        // These two scale by hardware; their "powersave" is the balanced way.
        (Some(governor), _) if !matches!(driver.as_str(), "intel_pstate" | "amd-pstate-epp") => {
            Finding::bad(
                Grade::Warn,
                WHAT,
                governor.clone(),
                "cpupower frequency-set -g performance: a shard that wakes meets a slow core",
            )
        }
        (_, Some(governor)) => Finding::ok(WHAT, governor.clone()),
        (_, None) => Finding::ok(WHAT, "not this machine's to set"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn numbers_are_graded_and_every_complaint_has_a_remedy() {
        let backlog = |text| number("x", text, BACKLOG_GOOD, "do y");
        assert_eq!(backlog(some("4096")).grade, Grade::Ok);
        for bad in [some("128"), some("many"), None] {
            let finding = backlog(bad);
            assert_eq!(finding.grade, Grade::Warn);
            assert!(finding.remedy.is_some());
        }
        assert_eq!(
            system_files(some("9223372036854775807"), 1 << 20).grade,
            Grade::Ok
        );
        let few = system_files(some("100000"), 1 << 20);
        assert!(few.remedy.unwrap().contains("fs.file-max=1310720"));
        assert_eq!(ports(some("32768\t60999")).grade, Grade::Ok);
        assert_eq!(ports(some("60000 60999")).grade, Grade::Warn);
    }

    #[test]
    fn the_chosen_value_of_a_list_counts() {
        assert_eq!(
            huge_pages(some("always [madvise] never")),
            Finding::ok("transparent huge pages", "madvise")
        );
        assert_eq!(
            huge_pages(some("[always] madvise never")).grade,
            Grade::Warn
        );
        assert_eq!(huge_pages(None).grade, Grade::Ok);
    }

    #[test]
    fn isolated_cores_are_found_in_lists_and_ranges() {
        let value = |cores: &[usize], list: &str| isolation(cores, some(list), 8).value;
        assert_eq!(value(&[2, 3], "2-5"), "yes");
        assert_eq!(value(&[1, 3], "2-5,7"), "some of the shards' cores");
        assert!(value(&[1], "").starts_with("no"));
        assert!(isolation(&[0, 1], None, 2).value.contains("every core"));
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        for finding in findings(&[0], 1000) {
            assert_ne!(finding.grade, Grade::Fail, "{finding}");
            assert_eq!(finding.remedy.is_some(), finding.grade == Grade::Warn);
        }
    }
}
