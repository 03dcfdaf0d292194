//! Who may do what: apps, API keys, tokens, capabilities per channel, and revocations.
//!
//! Holds no secrets beyond hashes and the signing keys' own, makes no random numbers and looks nothing up outside what
//! it is given. Where all of it is stored is decided elsewhere.
//!
//! Invariants: what is not granted is refused; an unreadable grant is an error, never a smaller or larger grant.

pub mod app;
pub mod capability;
pub mod change;
pub mod edit;
pub mod jwt;
pub mod key;
mod ops;
pub mod registry;
pub mod revocation;
pub mod signing;

use std::sync::Arc;

use self::app::App;
use self::capability::{Capabilities, Ops};
use self::jwt::Claims;
use self::key::{KeyKind, KeyRecord};
use self::revocation::Revocation;
use self::signing::SigningKey;
use crate::limits::CLIENT_ID_BYTES_MAX;
use crate::rate::RateLimit;

/// What somebody has come with. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Credential {
    /// An API key.
    Key(Arc<KeyRecord>),
    /// A token.
    Token {
        /// What it was verified with.
        key: Arc<SigningKey>,
        /// What it says.
        claims: Arc<Claims>,
    },
}

impl Credential {
    /// Whether it is a server key: of a back end, which has no rate limit of its own.
    #[must_use]
    pub fn is_server_key(&self) -> bool {
        matches!(self, Self::Key(key) if key.kind == KeyKind::Server)
    }

    /// The rate of publishes that an API key gives each of its connections.
    #[must_use]
    pub fn publish_rate(&self) -> Option<RateLimit> {
        match self {
            Self::Key(key) => key.publish_rate,
            Self::Token { .. } => None,
        }
    }

    /// When it ends by itself while in use: a token's `exp`, Unix ms.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        match self {
            Self::Key(_) => None,
            Self::Token { claims, .. } => Some(claims.expires_ms),
        }
    }

    /// What back ends and operators are told about the client: JSON text of an object.
    #[must_use]
    pub fn info(&self) -> Option<&str> {
        match self {
            Self::Key(_) => None,
            Self::Token { claims, .. } => claims.info.as_deref(),
        }
    }

    /// The client id that a token vouches for.
    #[must_use]
    pub fn client_id(&self) -> Option<&Arc<str>> {
        match self {
            Self::Key(_) => None,
            Self::Token { claims, .. } => claims.client_id.as_ref(),
        }
    }
}

/// The revocations of channel patterns that concern somebody; usually none.
pub type Denied = Option<Box<[Arc<Revocation>]>>;

/// Somebody whose credentials have been found good.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The app.
    pub app: Arc<App>,
    /// What it has come with.
    pub credential: Credential,
    /// What that grants: of a token what its key grants as well.
    pub capabilities: Capabilities,
    /// What has been taken back of it.
    pub denied: Denied,
}

impl Caller {
    /// Whether every operation of `ops` is granted on `channel`.
    #[must_use]
    pub fn permits(&self, channel: &str, ops: Ops) -> bool {
        permits(&self.capabilities, &self.denied, channel, ops)
    }
}

/// Whether every operation of `ops` is granted on `channel` and not taken back. Does not allocate.
pub(crate) fn permits(
    capabilities: &Capabilities,
    denied: &Denied,
    channel: &str,
    ops: Ops,
) -> bool {
    let covers = |r: &Arc<Revocation>| r.covers(channel);
    capabilities.permits(channel, ops) && !denied.iter().flatten().any(covers)
}

/// Whether `id` may be a client id (contract D8): 1 to 128 bytes, no control characters.
#[must_use]
pub fn is_valid_client_id(id: &str) -> bool {
    (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::is_valid_client_id;

    #[test]
    fn client_ids_are_bounded_in_bytes_and_free_of_controls() {
        assert!(is_valid_client_id("Zoë 1"));
        assert!(is_valid_client_id(&"x".repeat(128)));
        for id in [
            String::new(),
            "x".repeat(129),
            "é".repeat(65),
            "a\nb".into(),
            "a\u{85}".into(),
        ] {
            assert!(!is_valid_client_id(&id), "{id:?}");
        }
    }
}
