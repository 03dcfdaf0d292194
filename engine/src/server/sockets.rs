//! The listening sockets: those that were passed on, else made here.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::Socket;

use super::RunError;
use crate::activation::Inherited;
use crate::config::Config;
use crate::sys;

/// What the process listens on.
pub(super) struct Sockets {
    /// Clients come by any of them. Never empty.
    pub(super) client: Vec<Socket>,
    /// Never empty.
    pub(super) admin: Vec<Socket>,
    /// The dashboard's own, if it has one. A successor makes its own when this process has ended.
    pub(super) dashboard: Vec<Socket>,
}

impl Sockets {
    /// Listens on the configured addresses where nothing was passed on for them.
    pub(super) fn open(config: &Config, inherited: Inherited) -> Result<Self, RunError> {
        let unacked = Duration::from_millis(config.limits.unacked_data_ms);
        Ok(Self {
            client: ready(inherited.client, config.listen, unacked)?,
            admin: ready(inherited.admin, config.admin_listen, unacked)?,
            dashboard: match config.dashboard.own_listener() {
                Some(address) => ready(Vec::new(), address, unacked)?,
                None => Vec::new(),
            },
        })
    }

    /// Where clients and operators come; the first address where there are several.
    pub(super) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let address = |sockets: &[Socket]| sockets.first()?.local_addr().ok()?.as_socket();
        Some((address(&self.client)?, address(&self.admin)?))
    }

    /// Where the dashboard listens by itself.
    pub(super) fn dashboard_address(&self) -> Option<SocketAddr> {
        self.dashboard.first()?.local_addr().ok()?.as_socket()
    }

    /// More descriptors of the same sockets.
    pub(super) fn share(&self) -> std::io::Result<Inherited> {
        let share = |sockets: &[Socket]| {
            let shared = sockets.iter().map(Socket::try_clone);
            shared.collect::<std::io::Result<Vec<_>>>()
        };
        Ok(Inherited {
            client: share(&self.client)?,
            admin: share(&self.admin)?,
        })
    }
}

fn ready(
    inherited: Vec<Socket>,
    addr: SocketAddr,
    unacked: Duration,
) -> Result<Vec<Socket>, RunError> {
    let failed = |error| RunError::Listen { addr, error };
    if inherited.is_empty() {
        return Ok(vec![sys::listen(addr, unacked).map_err(failed)?]);
    }
    for socket in &inherited {
        sys::tune_listener(socket, unacked).map_err(failed)?;
        // Another process may hold it too: an accept must not wait where the other was faster.
        socket.set_nonblocking(true).map_err(failed)?;
    }
    Ok(inherited)
}
