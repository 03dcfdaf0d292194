//! Non-blocking TCP sockets for the generator, and the process limits that many of them need.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Ports tried on a source address: above the well-known ones, below the usual ephemeral end.
const PORT_MIN: u16 = 16_384;
const PORT_MAX: u16 = 61_439;
/// Connections that one source address carries without running short of ports.
pub const CONNECTIONS_PER_SOURCE: u64 = 25_000;
/// Descriptors that the process needs besides connections.
const SPARE_DESCRIPTORS: u64 = 128;

/// Gives each connection its source address and port.
///
/// With no source addresses the kernel chooses. Otherwise ports are counted through explicitly, since
/// the kernel's own search slows down as an address fills up. Each thread counts through its own part.
pub struct Sources {
    addresses: u8,
    next_address: u8,
    first_port: u16,
    last_port: u16,
    next_port: u16,
}

impl Sources {
    /// The share of thread `index` of `threads` in `addresses` source addresses (0: kernel's choice).
    pub fn new(addresses: u8, index: usize, threads: usize) -> Self {
        let share = (PORT_MAX - PORT_MIN) / threads as u16;
        let first_port = PORT_MIN + share * index as u16;
        Self {
            addresses,
            next_address: 0,
            first_port,
            last_port: first_port + share - 1,
            next_port: first_port,
        }
    }

    /// Source addresses that `connections` need.
    pub fn needed(connections: u64) -> u8 {
        if connections <= CONNECTIONS_PER_SOURCE - 5_000 {
            return 0;
        }
        connections.div_ceil(CONNECTIONS_PER_SOURCE).min(250) as u8
    }

    fn next(&mut self) -> Option<SocketAddrV4> {
        if self.addresses == 0 {
            return None;
        }
        let source = SocketAddrV4::new(
            Ipv4Addr::new(127, 0, 0, 2 + self.next_address),
            self.next_port,
        );
        self.next_address += 1;
        if self.next_address == self.addresses {
            self.next_address = 0;
            self.next_port = if self.next_port >= self.last_port {
                self.first_port
            } else {
                self.next_port + 1
            };
        }
        Some(source)
    }

    /// Starts to connect to `target`.
    pub fn connect(&mut self, target: SocketAddr) -> rustix::io::Result<OwnedFd> {
        let family = if target.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        if target.is_ipv4() {
            self.bind(&fd)?;
        }
        match net::connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
            Err(error) => Err(error),
        }
    }

    fn bind(&mut self, fd: &OwnedFd) -> rustix::io::Result<()> {
        // Ports that an earlier run has left in TIME_WAIT will do.
        sockopt::set_socket_reuseaddr(fd, true)?;
        for _ in 0..1000 {
            let Some(source) = self.next() else {
                return Ok(());
            };
            match net::bind(fd, &source) {
                Err(Errno::ADDRINUSE) => {}
                other => return other,
            }
        }
        Err(Errno::ADDRINUSE)
    }
}

/// Closes with a reset, as a vanished peer would, leaving no port behind in TIME_WAIT.
pub fn reset(fd: OwnedFd) {
    // Without the option the close is an orderly one: nothing to mend.
    let _ = sockopt::set_socket_linger(&fd, Some(Duration::ZERO));
}

/// Whether `addr` can be reached from 127.0.0.2 and up.
pub fn is_ipv4_loopback(addr: SocketAddr) -> bool {
    matches!(addr.ip(), IpAddr::V4(ip) if ip.is_loopback())
}

/// Raises the limit of open files for `connections`, or says how to.
pub fn raise_file_limit(connections: u64) -> anyhow::Result<()> {
    let needed = connections + SPARE_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(needed),
            maximum,
        },
    );
    raised.with_context(|| {
        format!(
            "{needed} open files are needed, {} allowed; raise the limit with: ulimit -n {needed}",
            limit.maximum.unwrap_or_default()
        )
    })?;
    ensure!(
        getrlimit(Resource::Nofile)
            .current
            .is_none_or(|c| c >= needed),
        "limit of open files not raised"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_distinct_over_threads_and_addresses() {
        let mut seen = std::collections::HashSet::new();
        for index in 0..2 {
            let mut sources = Sources::new(3, index, 2);
            for _ in 0..3 * 22_000 {
                let source = sources.next().unwrap();
                assert!((2..5).contains(&source.ip().octets()[3]));
                assert!((PORT_MIN..=PORT_MAX).contains(&source.port()));
                assert!(seen.insert(source));
            }
        }
    }

    #[test]
    fn few_connections_need_no_source() {
        assert_eq!(Sources::needed(10_000), 0);
        assert_eq!(Sources::needed(50_000), 2);
        assert_eq!(Sources::needed(50_001), 3);
        assert!(Sources::new(0, 0, 1).next().is_none());
    }
}
