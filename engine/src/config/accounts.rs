//! File sections `[accounts]`, `[dashboard]` and `[mail]`: people, and the pages they use.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::source::Reader;
use super::{Config, parse_address, share_port};

/// Longest life of a session, and of an entry in the audit log, in days: ten years.
const DAYS_MAX: u64 = 3660;
/// Hashing threads at most.
const HASH_THREADS_MAX: u64 = 64;

/// File section `[accounts]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Accounts {
    /// Whether anybody may make an account; otherwise by invitation only.
    pub signup: bool,
    /// Threads that hash passwords.
    pub hash_threads: u64,
    /// Seconds that an access token is good for.
    pub access_s: u64,
    /// Seconds after which an unused session ends.
    pub session_idle_s: u64,
    /// Seconds after which any session ends.
    pub session_life_s: u64,
    /// Days that the audit log is kept.
    pub audit_days: u64,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            signup: false,
            hash_threads: 1,
            access_s: 600,
            session_idle_s: 7 * 24 * 3600,
            session_life_s: 30 * 24 * 3600,
            audit_days: 400,
        }
    }
}

/// File section `[dashboard]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dashboard {
    /// Whether there is one.
    pub enabled: bool,
    /// A listener of its own, where the admin API is not served; empty: only on the admin listener.
    pub listen: String,
    /// Where people find it, for links in letters; empty: the listener's address.
    pub public_url: String,
    /// Where browsers find the WebSocket; empty: this host with the public port.
    pub socket_url: String,
}

impl Default for Dashboard {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: String::new(),
            public_url: String::new(),
            socket_url: String::new(),
        }
    }
}

/// File section `[mail]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mail {
    /// The mail server; empty: letters go to the log.
    pub smtp_host: String,
    /// Its port.
    pub smtp_port: u16,
    /// How it is spoken to.
    pub smtp_tls: SmtpTls,
    /// The name to sign in with; empty: none.
    pub username: String,
    /// The file with its password.
    pub password_file: String,
    /// A file of a certificate authority (PEM) that is trusted for the mail server too; empty: none.
    pub ca_file: String,
    /// Whom letters are from.
    pub from: String,
}

impl Default for Mail {
    fn default() -> Self {
        Self {
            smtp_host: String::new(),
            smtp_port: 587,
            smtp_tls: SmtpTls::Starttls,
            username: String::new(),
            password_file: String::new(),
            ca_file: String::new(),
            from: "Shardwire <shardwire@localhost>".into(),
        }
    }
}

/// How a mail server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// TLS after a plain greeting, or not at all.
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// Plain: for a server on the same machine.
    None,
}

impl Dashboard {
    /// The listener of its own, if there is one. Checked when the configuration was read.
    #[must_use]
    pub fn own_listener(&self) -> Option<SocketAddr> {
        let is_wanted = self.enabled && !self.listen.is_empty();
        is_wanted
            .then(|| parse_address(&self.listen).ok())
            .flatten()
    }
}

/// Checks the three sections.
pub(super) fn check(config: &Config, reader: &mut Reader<'_>) {
    let Config {
        accounts,
        dashboard,
        mail,
        ..
    } = config;
    for (key, value, min, max) in [
        (
            "accounts.hash_threads",
            accounts.hash_threads,
            1,
            HASH_THREADS_MAX,
        ),
        ("accounts.access_s", accounts.access_s, 30, 24 * 3600),
        (
            "accounts.session_idle_s",
            accounts.session_idle_s,
            60,
            DAYS_MAX * 24 * 3600,
        ),
        (
            "accounts.session_life_s",
            accounts.session_life_s,
            60,
            DAYS_MAX * 24 * 3600,
        ),
        ("accounts.audit_days", accounts.audit_days, 1, DAYS_MAX),
    ] {
        if !(min..=max).contains(&value) {
            let place = reader.place(key);
            reader.problem(format!("{place}: {value} is not between {min} and {max}"));
        }
    }
    if !dashboard.listen.is_empty() {
        match parse_address(&dashboard.listen) {
            Err(error) => {
                let place = reader.place("dashboard.listen");
                reader.problem(format!("{place}: {error}"));
            }
            Ok(own) if share_port(own, config.listen) || share_port(own, config.admin_listen) => {
                let place = reader.place("dashboard.listen");
                reader.problem(format!("{place}: {own} is another listener's port"));
            }
            Ok(_) => {}
        }
    }
    for (key, url, schemes) in [
        (
            "dashboard.public_url",
            &dashboard.public_url,
            ["http://", "https://"],
        ),
        (
            "dashboard.socket_url",
            &dashboard.socket_url,
            ["ws://", "wss://"],
        ),
    ] {
        let is_url = schemes.iter().any(|scheme| url.starts_with(scheme))
            && !url.contains(|c: char| c.is_whitespace() || c.is_control() || "\"';,".contains(c));
        if !url.is_empty() && !is_url {
            let place = reader.place(key);
            reader.problem(format!(
                "{place}: {url:?} does not begin with {} or {}",
                schemes[0], schemes[1]
            ));
        }
    }
    if !mail.smtp_host.is_empty() && !mail.username.is_empty() && mail.password_file.is_empty() {
        let place = reader.place("mail.username");
        reader.problem(format!("{place}: mail.password_file is missing"));
    }
}
