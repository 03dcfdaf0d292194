//! Listening sockets that were passed on: by a service manager (`sd_listen_fds(3)`), or by a predecessor
//! ([`crate::takeover`]).
//!
//! Not here: sockets the process makes itself ([`crate::server`]). Invariant: a socket that is given out listens on TCP.

use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

use socket2::{Domain, Socket};

use crate::sys;

/// The first descriptor that is passed on.
const FIRST_FD: RawFd = 3;
/// Descriptors that may be passed on: far more than there are addresses.
const SOCKETS_MAX: usize = 64;

/// The name of the sockets clients come by. Those without a name we know are theirs, too.
pub const CLIENT: &str = "client";
/// The name of the admin port's socket.
pub const ADMIN: &str = "admin";

/// Sockets by what they are for. Empty where nothing was passed on.
#[derive(Debug, Default)]
pub struct Inherited {
    pub client: Vec<Socket>,
    pub admin: Vec<Socket>,
}

impl Inherited {
    /// Takes what a service manager has passed on to this process. Call once, before any thread runs.
    ///
    /// # Errors
    /// A message for the operator: the variables are not as documented, or a descriptor is no listening TCP socket.
    pub fn from_service_manager() -> Result<Self, String> {
        let var = |name| std::env::var(name).ok();
        let names = names(
            std::process::id(),
            var("LISTEN_PID").as_deref(),
            var("LISTEN_FDS").as_deref(),
            var("LISTEN_FDNAMES").as_deref(),
        )?;
        let mut inherited = Self::default();
        for (fd, name) in (FIRST_FD..).zip(names) {
            let owned = sys::adopt(fd)
                .map_err(|error| format!("LISTEN_FDS: descriptor {fd} ({name}): {error}"))?;
            inherited.add(&name, owned)?;
        }
        Ok(inherited)
    }

    /// Adds a socket under its name.
    ///
    /// # Errors
    /// It is not a listening TCP socket.
    pub fn add(&mut self, name: &str, fd: OwnedFd) -> Result<(), String> {
        let socket = Socket::from(fd);
        let is_tcp = matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6));
        if !is_tcp || !socket.is_listener().unwrap_or(false) {
            return Err(format!(
                "the socket {name:?} that was passed on does not listen on TCP; use ListenStream=PORT and Accept=no"
            ));
        }
        if name == ADMIN {
            self.admin.push(socket);
        } else {
            self.client.push(socket);
        }
        Ok(())
    }

    /// Keeps the sockets of the addresses that are configured; where a port is 0, any.
    #[must_use]
    pub fn only(mut self, client: SocketAddr, admin: SocketAddr) -> Self {
        let is_at = |wanted: SocketAddr| {
            move |socket: &Socket| {
                let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
                bound.is_some_and(|bound| {
                    bound.ip() == wanted.ip()
                        && (wanted.port() == 0 || bound.port() == wanted.port())
                })
            }
        };
        self.client.retain(is_at(client));
        self.admin.retain(is_at(admin));
        self
    }
}

/// The names of the descriptors that were passed on to `pid`.
fn names(
    pid: u32,
    listen_pid: Option<&str>,
    fds: Option<&str>,
    fd_names: Option<&str>,
) -> Result<Vec<String>, String> {
    let (Some(listen_pid), Some(fds)) = (listen_pid, fds) else {
        return Ok(Vec::new());
    };
    if listen_pid.parse() != Ok(pid) {
        // Meant for another process, whose environment this one has inherited.
        return Ok(Vec::new());
    }
    let count = fds.parse().ok().filter(|count| *count <= SOCKETS_MAX);
    let count = count.ok_or_else(|| {
        format!("LISTEN_FDS={fds} is not a number of descriptors up to {SOCKETS_MAX}")
    })?;
    let mut names: Vec<String> = fd_names
        .filter(|names| !names.is_empty())
        .map(|names| names.split(':').map(str::to_owned).collect())
        .unwrap_or_default();
    names.resize(count, "unknown".to_owned());
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        assert_eq!(names(7, None, None, None), Ok(vec![]));
        assert_eq!(names(7, Some("8"), Some("1"), None), Ok(vec![]));
        assert_eq!(
            names(7, Some("7"), Some("2"), Some("client:admin")),
            Ok(vec!["client".to_owned(), "admin".to_owned()])
        );
        assert_eq!(
            names(7, Some("7"), Some("1"), None),
            Ok(vec!["unknown".to_owned()])
        );
        assert_eq!(names(7, Some("7"), Some("0"), Some("")), Ok(vec![]));
        for wrong in ["-1", "x", "65", "99999999999999999999"] {
            assert!(names(7, Some("7"), Some(wrong), None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sockets_that_do_not_listen_on_tcp_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut inherited = Inherited::default();
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listening.local_addr().unwrap();
        inherited.add("shardwire.socket", listening.into()).unwrap();
        inherited
            .add(ADMIN, TcpListener::bind("127.0.0.1:0").unwrap().into())
            .unwrap();
        assert_eq!((inherited.client.len(), inherited.admin.len()), (1, 1));
        let refused: [OwnedFd; 2] = [
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            UnixListener::bind(folder.path().join("s")).unwrap().into(),
        ];
        for fd in refused {
            assert!(
                inherited
                    .add(CLIENT, fd)
                    .unwrap_err()
                    .contains("does not listen")
            );
        }
        let elsewhere = "127.0.0.1:1".parse().unwrap();
        let left = inherited.only(at, elsewhere);
        assert_eq!((left.client.len(), left.admin.len()), (1, 0));
    }
}
