//! Whether this host can run the server: what `shardwire check` prints, and what the server looks at before it starts.
//!
//! Not here: whether the configuration is valid ([`crate::config`]). Invariants: looking changes nothing on the host but
//! this process's own limits; a `fail` is only what cannot work, everything that merely costs capacity is a `warn`; each
//! of both says what to do.

mod holder;
mod kernel;
mod redis;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::Access;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::config::cli::Flags;
use crate::config::{Config, Env, Host, NOFILE_RESERVE, show_cores};
use crate::keys::{DataDir, DevKeys};
use crate::tls::Acceptors;

/// Locked memory, in bytes, below which the runtime refuses to start (glommio 0.9, `Reactor::new`).
const MEMLOCK_MIN: u64 = 512 * 1024;
/// Locked memory of one shard: three rings that register the same 64 KiB of buffers, and their queues.
const MEMLOCK_PER_SHARD: u64 = 512 * 1024;
/// Descriptors from which the default limits of distributions no longer are the first thing in the way.
const NOFILE_GOOD: u64 = 65_536;
/// Entries of the ring that is made to see whether one can be.
const PROBE_RING_ENTRIES: u32 = 8;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Works, with less capacity or safety.
    Warn,
    /// The server cannot run.
    Fail,
}

/// One thing looked at. [`Display`](fmt::Display) gives the line people read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub grade: Grade,
    /// What was looked at.
    pub what: &'static str,
    /// What was found.
    pub value: String,
    /// What to do about it; `None` when it is well.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, value: impl Into<String>) -> Self {
        Self {
            grade: Grade::Ok,
            what,
            value: value.into(),
            remedy: None,
        }
    }

    fn bad(
        grade: Grade,
        what: &'static str,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            grade,
            what,
            value: value.into(),
            remedy: Some(remedy.into()),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        write!(f, "{grade:4}  {}: {}", self.what, self.value)?;
        self.remedy
            .as_ref()
            .map_or(Ok(()), |remedy| write!(f, " — {remedy}"))
    }
}

/// `shardwire check`: prints what it finds, one line or JSON object each. Exit code 0 when nothing fails, else 2.
#[must_use]
pub fn command(flags: &Flags, env: &Env, json: bool) -> ExitCode {
    raise_limits();
    let findings = all(flags, env, &Host::of_process());
    let text = if json {
        serde_json::to_string_pretty(&findings)
            .map_or_else(|error| error.to_string(), |text| text + "\n")
    } else {
        findings
            .iter()
            .map(|finding| format!("{finding}\n"))
            .collect()
    };
    // Whoever closed stdout still gets the exit code.
    _ = io::stdout().write_all(text.as_bytes());
    if findings.iter().any(|finding| finding.grade == Grade::Fail) {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}

/// Raises the soft limits of descriptors and locked memory to the hard ones. What cannot be raised is left, and found by
/// [`host`].
pub fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let limit = getrlimit(resource);
        if limit.current != limit.maximum {
            // A refusal leaves the limit as it was.
            _ = setrlimit(
                resource,
                Rlimit {
                    current: limit.maximum,
                    maximum: limit.maximum,
                },
            );
        }
    }
}

fn all(flags: &Flags, env: &Env, this_host: &Host) -> Vec<Finding> {
    const MEND: &str = "correct it; the README lists all settings";
    let mut findings = Vec::new();
    if let Err(problem) = DevKeys::from_env(env) {
        findings.push(Finding::bad(Grade::Fail, "configuration", problem, MEND));
    }
    match Config::load(flags, env, this_host) {
        Err(error) => {
            let problem = |text| Finding::bad(Grade::Fail, "configuration", text, MEND);
            findings.extend(error.problems.into_iter().map(problem));
        }
        Ok(config) => {
            let file = config.file.as_ref().map(|file| file.display().to_string());
            findings.push(Finding::ok(
                "configuration",
                file.as_deref().unwrap_or("no file"),
            ));
            let warning = |text: &String| Finding::bad(Grade::Warn, "configuration", text, MEND);
            findings.extend(config.warnings.iter().map(warning));
            findings.push(data_dir(&config.data_dir));
            findings.extend(certificates(&config));
            findings.extend(host(&config));
            findings.extend(redis::findings(&config.redis));
            let own = [Some(config.listen), Some(config.admin_listen)];
            findings.extend(addresses(&config, own, Holding::Allowed));
        }
    }
    findings
}

/// Nothing where no listener has TLS.
fn certificates(config: &Config) -> Option<Finding> {
    const WHAT: &str = "certificates";
    const MEND: &str = "PEM files, each key with its certificate, readable by the server's user";
    if !config.tls.is_on() && config.admin_tls.is_none() {
        return None;
    }
    Some(match Acceptors::load(config) {
        Ok(_) => Finding::ok(WHAT, "read, each with its key"),
        Err(error) => Finding::bad(Grade::Fail, WHAT, error, MEND),
    })
}

/// Looks at the host, without the data folder (which the server locks by itself) and the addresses.
#[must_use]
pub fn host(config: &Config) -> Vec<Finding> {
    let shards = config.cores.len();
    let mut findings = vec![
        Finding::ok(
            "shards",
            format!("{shards} on cores {}", show_cores(&config.cores)),
        ),
        io_uring(),
        memlock(getrlimit(Resource::Memlock).current, shards),
        nofile(
            getrlimit(Resource::Nofile).current,
            config.runtime.connections_max,
        ),
    ];
    findings.extend(kernel::findings(
        &config.cores,
        config.runtime.connections_max,
    ));
    findings
}

/// What it means that an address is held by systemd or by a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// All is well, should this process not be about to listen itself.
    Allowed,
    /// This process wants it for itself.
    Refused,
}

/// Looks at the addresses for clients and for the admin port; those that are `None` come with their sockets.
#[must_use]
pub fn addresses(config: &Config, own: [Option<SocketAddr>; 2], holding: Holding) -> Vec<Finding> {
    let running = DataDir::is_in_use(&config.data_dir);
    ["listen", "admin.listen"]
        .into_iter()
        .zip(own)
        .filter_map(|(what, own)| Some(address(what, own?, running, holding)))
        .collect()
}

fn io_uring() -> Finding {
    const WHAT: &str = "io_uring";
    let error = match io_uring::IoUring::new(PROBE_RING_ENTRIES) {
        Ok(_) => return Finding::ok(WHAT, "available"),
        Err(error) => error,
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let remedy = match (disabled.trim(), error.raw_os_error()) {
        ("2", _) => "it is switched off for everybody: sysctl kernel.io_uring_disabled=0",
        ("1", Some(libc::EPERM)) => {
            "it is kept to a group: sysctl kernel.io_uring_disabled=0, or put the user into kernel.io_uring_group"
        }
        (_, Some(libc::EPERM)) => {
            "a seccomp filter forbids it: use a profile that allows io_uring_setup, io_uring_enter, io_uring_register"
        }
        (_, Some(libc::ENOSYS)) => {
            "the kernel lacks it, or a container's seccomp profile hides it: use Linux 5.10 or later and allow io_uring_*"
        }
        (_, Some(libc::ENOMEM)) => {
            "raise the limit of locked memory: LimitMEMLOCK=infinity in the unit, or ulimit -l"
        }
        _ => "see io_uring_setup(2) for this error",
    };
    Finding::bad(Grade::Fail, WHAT, error.to_string(), remedy)
}

/// `limit` in bytes, `None` for no limit.
fn memlock(limit: Option<u64>, shards: usize) -> Finding {
    const WHAT: &str = "locked memory (RLIMIT_MEMLOCK)";
    const REMEDY: &str = "LimitMEMLOCK=infinity in the unit, ulimit -l unlimited, or --ulimit memlock=-1 for a container";
    let Some(limit) = limit else {
        return Finding::ok(WHAT, "unlimited");
    };
    let wanted = MEMLOCK_PER_SHARD * shards as u64;
    let value = format!("{} KiB", limit / 1024);
    if limit < MEMLOCK_MIN {
        Finding::bad(Grade::Fail, WHAT, value, REMEDY)
    } else if limit < wanted {
        let value = format!("{value}, {shards} shards use up to {} KiB", wanted / 1024);
        Finding::bad(Grade::Warn, WHAT, value, REMEDY)
    } else {
        Finding::ok(WHAT, value)
    }
}

/// `limit` in descriptors, `None` for no limit.
fn nofile(limit: Option<u64>, connections_max: usize) -> Finding {
    const WHAT: &str = "open files (RLIMIT_NOFILE)";
    const REMEDY: &str =
        "LimitNOFILE=1048576 in the unit, ulimit -Hn, or --ulimit nofile=1048576 for a container";
    let Some(limit) = limit else {
        return Finding::ok(WHAT, "unlimited");
    };
    let value = format!("{limit}, for up to {connections_max} connections");
    let wanted = (connections_max + NOFILE_RESERVE) as u64;
    if limit <= NOFILE_RESERVE as u64 {
        Finding::bad(Grade::Fail, WHAT, limit.to_string(), REMEDY)
    } else if limit < wanted || limit < NOFILE_GOOD {
        Finding::bad(Grade::Warn, WHAT, value, REMEDY)
    } else {
        Finding::ok(WHAT, value)
    }
}

/// Binds the address, and lets it go. `running`: a server runs on the same data folder, so that it is no surprise when
/// somebody listens there.
fn address(what: &'static str, address: SocketAddr, running: bool, holding: Holding) -> Finding {
    let error = match bind(address) {
        Ok(()) => return Finding::ok(what, address.to_string()),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::AddrInUse
        && holding == Holding::Allowed
        && let Some(finding) = held(what, address, holder::of_port(address.port()))
    {
        return finding;
    }
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse if running => {
            let remedy = "stop the running server before another is started on this address";
            return Finding::bad(Grade::Warn, what, format!("{address}, in use"), remedy);
        }
        io::ErrorKind::AddrInUse => format!(
            "another program has the port (systemd while shardwire.socket is active: start shardwire.service then): \
             ss -ltnp 'sport = :{}'",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            "no interface has this address; 0.0.0.0 or [::] stands for all".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; use a higher one".to_owned()
        }
        _ => "choose another address".to_owned(),
    };
    Finding::bad(Grade::Fail, what, format!("{address}: {error}"), remedy)
}

/// An address that is in use, and rightly so.
fn held(what: &'static str, address: SocketAddr, holder: holder::Holder) -> Option<Finding> {
    match holder {
        holder::Holder::Manager(unit) => Some(Finding::ok(
            what,
            format!("{address}, held for the server by {unit}"),
        )),
        holder::Holder::Server(pid) => Some(Finding::bad(
            Grade::Warn,
            what,
            format!("{address}, served by a running shardwire (process {pid})"),
            "stop it before another is started on this address, or start that with --takeover",
        )),
        holder::Holder::Other => None,
    }
}

/// Waits, up to `patience`, while an address is taken: the kernel lets go of a killed process's
/// rings, and of the sockets in them, some milliseconds after the process has gone. Whoever
/// restarts at once would meet its own predecessor.
pub fn await_free(address: SocketAddr, patience: Duration) {
    let until = Instant::now() + patience;
    while bind(address).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
        && Instant::now() < until
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Refused when anybody listens there. Does not listen itself, so nobody can connect to it by mistake.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Whether the data folder can be used, without making it.
fn data_dir(path: &Path) -> Finding {
    const WHAT: &str = "data folder";
    let shown = path.display();
    if DataDir::is_in_use(path) {
        let remedy = "a second server on it would be refused; choose another --data-dir for one";
        return Finding::bad(
            Grade::Warn,
            WHAT,
            format!("{shown}, in use by a running server"),
            remedy,
        );
    }
    let existing = path
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("."));
    let writable = rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    if !existing.is_dir() || !writable {
        let value = format!(
            "{shown}: {} is not a folder this process may write to",
            existing.display()
        );
        let remedy =
            "give the user of this process the right to write there, or choose another --data-dir";
        return Finding::bad(Grade::Fail, WHAT, value, remedy);
    }
    let fate = if existing == path {
        ""
    } else {
        ", made at the first start"
    };
    Finding::ok(WHAT, format!("{shown}{fate}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_json_carry_the_same() {
        let finding = Finding::bad(Grade::Warn, "x", "1", "do y");
        assert_eq!(finding.to_string(), "warn  x: 1 — do y");
        assert_eq!(Finding::ok("x", "1").to_string(), "ok    x: 1");
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"grade": "warn", "what": "x", "value": "1", "remedy": "do y"})
        );
    }

    #[test]
    fn limits_are_graded() {
        assert_eq!(memlock(None, 128).grade, Grade::Ok);
        assert_eq!(memlock(Some(64 * 1024), 1).grade, Grade::Fail);
        assert_eq!(memlock(Some(8 * 1024 * 1024), 16).grade, Grade::Ok);
        assert_eq!(memlock(Some(8 * 1024 * 1024), 17).grade, Grade::Warn);
        assert_eq!(nofile(Some(512), 1).grade, Grade::Fail);
        assert_eq!(nofile(Some(20_000), 19_488).grade, Grade::Warn);
        assert_eq!(nofile(Some(1 << 20), 100_000).grade, Grade::Ok);
        assert_eq!(nofile(Some(70_000), 100_000).grade, Grade::Warn);
    }

    #[test]
    fn an_occupied_port_fails_and_names_it() {
        let occupant = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = occupant.local_addr().unwrap();
        let finding = address("listen", taken, false, Holding::Allowed);
        assert_eq!(finding.grade, Grade::Fail);
        assert!(
            finding.to_string().contains(&taken.to_string()),
            "{finding}"
        );
        assert_eq!(
            address(
                "listen",
                "127.0.0.1:0".parse().unwrap(),
                false,
                Holding::Refused
            )
            .grade,
            Grade::Ok
        );
        assert_eq!(
            address(
                "listen",
                "192.0.2.1:0".parse().unwrap(),
                false,
                Holding::Refused
            )
            .grade,
            Grade::Fail
        );
        let unit = holder::Holder::Manager("shardwire.socket".to_owned());
        let grade = |holder| held("listen", taken, holder).map(|finding| finding.grade);
        assert_eq!(grade(unit), Some(Grade::Ok));
        assert_eq!(grade(holder::Holder::Server(1)), Some(Grade::Warn));
        assert_eq!(
            address("listen", taken, false, Holding::Refused).grade,
            Grade::Fail
        );
    }

    #[test]
    fn a_data_folder_is_looked_at_without_being_made() {
        let temp = tempfile::tempdir().unwrap();
        let absent = temp.path().join("a/b");
        assert_eq!(data_dir(&absent).grade, Grade::Ok);
        assert!(!absent.exists());
        fs::write(temp.path().join("a"), "").unwrap();
        assert_eq!(data_dir(&absent).grade, Grade::Fail);
        let held = DataDir::lock(&temp.path().join("held")).unwrap();
        let finding = data_dir(&temp.path().join("held"));
        assert_eq!(finding.grade, Grade::Warn, "{finding}");
        drop(held);
        assert_eq!(data_dir(&temp.path().join("held")).grade, Grade::Ok);
    }

    #[test]
    fn a_wrong_configuration_fails_once_per_mistake() {
        let flags = Flags {
            shards: Some("0".into()),
            log_level: Some("loud".into()),
            ..Flags::default()
        };
        let env = [("SHARDWIRE_DEV_KEY".to_owned(), "short".to_owned())]
            .into_iter()
            .collect();
        let host = Host {
            cores: vec![0],
            parallelism: 1,
            nofile: 1024,
        };
        let findings = all(&flags, &env, &host);
        assert_eq!(
            findings
                .iter()
                .filter(|finding| finding.grade == Grade::Fail)
                .count(),
            3,
            "{findings:?}"
        );
    }
}
