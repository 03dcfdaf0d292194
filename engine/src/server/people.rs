//! The start of what people use: accounts, and where the dashboard is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::sockets::Sockets;
use crate::config::Config;
use crate::records::RecordStorage;
use crate::side::accounts::{self, AccountsHandle};

/// Everything is absent where there is no dashboard.
#[derive(Default)]
pub(super) struct People {
    pub(super) accounts: Option<AccountsHandle>,
    /// The dashboard's address.
    pub(super) url: Option<String>,
    /// The page that makes the first account, while there is none.
    pub(super) setup: Option<String>,
}

pub(super) fn start(
    config: &Config,
    sockets: &Sockets,
    storage: &dyn RecordStorage,
) -> Result<People, String> {
    if !config.dashboard.enabled {
        return Ok(People::default());
    }
    let own = sockets.dashboard_address();
    let is_secure = match own {
        Some(_) => config.tls.is_on(),
        None => config.admin_tls.is_some(),
    };
    let admin = sockets.addresses().map(|(_, admin)| admin);
    let address = reachable(own.or(admin).unwrap_or(config.admin_listen));
    let url = match config.dashboard.public_url.trim_end_matches('/') {
        "" => format!(
            "http{}://{address}/dashboard",
            if is_secure { "s" } else { "" }
        ),
        // With the path or without.
        url => format!(
            "{}/dashboard",
            url.strip_suffix("/dashboard").unwrap_or(url)
        ),
    };
    let (accounts, setup) = accounts::start(config, &url, &config.data_dir, storage)?;
    Ok(People {
        accounts: Some(accounts),
        url: Some(url),
        setup,
    })
}

/// The address as one on this machine can be reached at: of all interfaces, the loopback.
#[must_use]
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
