//! File sections `[tls]` and `[admin.tls]`: which certificates the two listeners show.
//!
//! Not here: reading them (see [`crate::tls`]).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// File section `[tls]`: the public listener's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// Chosen by the name that a client asks for; the first one where none fits. Empty: no TLS.
    pub certificates: Vec<CertificateFiles>,
}

impl Tls {
    /// Whether the public listener speaks TLS.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.certificates.is_empty()
    }
}

/// A certificate with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM: the certificate, then those that lead to a root.
    pub cert: PathBuf,
    /// PEM: its private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

/// File section `[admin.tls]`: the admin listener's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminTls {
    /// As in [`CertificateFiles`].
    pub cert: PathBuf,
    /// As in [`CertificateFiles`].
    pub key: PathBuf,
    /// PEM: who signs the certificates that clients have to show; without it they need none.
    pub client_ca: Option<PathBuf>,
}
