//! Who listens on a port that is taken: a service manager that keeps it for the server, a server, or somebody else.
//!
//! Read from /proc, and where that does not say (other users' descriptors) asked of systemd. Not here: what follows
//! from it ([`super::addresses`]). Invariant: nothing is changed, and whatever cannot be read counts as not known.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::readlink;

/// State of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";

/// Whose the port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// A service manager's, which passes it on; with the unit where that is known.
    Manager(String),
    /// A server's, with its process.
    Server(u32),
    /// Somebody's, or not known.
    Other,
}

/// Who listens on `port`.
pub(super) fn of_port(port: u16) -> Holder {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let text = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    let inodes: Vec<String> = text.iter().flat_map(|t| inodes(t, port)).collect();
    let holders: Vec<(u32, String)> = processes_with(&inodes);
    let manager = holders
        .iter()
        .find(|(_, name)| name.starts_with("systemd"))
        .map(|(pid, name)| format!("{name}, process {pid}"));
    // A server that was given the socket has it, too: the manager keeps it when that one ends.
    if let Some(unit) = unit_of(port).or(manager) {
        return Holder::Manager(unit);
    }
    let server = holders.iter().find(|(_, name)| name == "shardwire");
    server.map_or(Holder::Other, |(pid, _)| Holder::Server(*pid))
}

/// The inodes of the listening sockets of a table in the form of /proc/net/tcp.
fn inodes(table: &str, port: u16) -> Vec<String> {
    let port = format!("{port:04X}");
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, own) = fields.get(1)?.rsplit_once(':')?;
        let is_it = own == port && *fields.get(3)? == LISTENING;
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// Processes, with their names, that have one of the sockets open; of those whose descriptors may be read.
fn processes_with(inodes: &[String]) -> Vec<(u32, String)> {
    let wanted: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let has_it = |process: &Path| {
        entries(&process.join("fd")).any(|fd| {
            let target = readlink(fd.path(), Vec::new()).unwrap_or_default();
            wanted.iter().any(|w| w.as_bytes() == target.as_bytes())
        })
    };
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let pid = process.file_name().to_str().and_then(|n| n.parse().ok());
        if let Some(pid) = pid
            && has_it(&process.path())
        {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

/// The socket unit that listens on `port`, where systemd runs.
fn unit_of(port: u16) -> Option<String> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let asked = Command::new("systemctl")
        .args(["list-sockets", "--no-legend", "--no-pager", "--plain"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    listed(&String::from_utf8_lossy(&asked.stdout), port)
}

/// The unit of a line `ADDRESS:PORT UNIT ACTIVATES…`.
fn listed(lines: &str, port: u16) -> Option<String> {
    let suffix = format!(":{port}");
    let unit_of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let is_it = words.next()?.ends_with(&suffix);
        words.next().filter(|_| is_it).map(str::to_owned)
    };
    lines.lines().find_map(unit_of_line)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_listening_sockets_of_a_port_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1 0 100 0 0 10 0\n\
             1: 0100007F:2329 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000 0 0 4712 1 0 100 0 0 10 0\n\
             2: 0100007F:232A 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4713 1 0 100 0 0 10 0\nx\n";
        assert_eq!(inodes(table, 9001), ["4711"]);
        assert_eq!(inodes(table, 9002), ["4713"]);
        assert_eq!(inodes(table, 1), Vec::<String>::new());
    }

    #[test]
    fn a_unit_is_read_from_the_list() {
        let lines = "/run/x.socket x.socket x.service\n[::]:19001 other.socket o.service\n0.0.0.0:9001 shardwire.socket shardwire.service\n";
        assert_eq!(listed(lines, 9001).as_deref(), Some("shardwire.socket"));
        assert_eq!(listed(lines, 1), None);
    }

    #[test]
    fn this_process_is_found_by_its_socket_and_is_no_server() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let found = processes_with(&inodes(&table, port));
        assert!(
            found.iter().any(|(pid, _)| *pid == std::process::id()),
            "{found:?}"
        );
        assert_eq!(of_port(port), Holder::Other);
    }
}
