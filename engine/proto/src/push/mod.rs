//! Push notifications: what back ends and devices ask for (contract section 6, D22), what providers are sent, and what
//! follows from their answers.
//!
//! [`request`] reads every SDK's forms, [`content`] writes what each provider wants, [`verdict`] reads what they answer,
//! [`bridge`] makes notifications of messages, [`retry`] says when to try again, [`job`] is a send on its way. Not here: encryption, connections and the store.
//! Invariants: what has been read here is bounded and fits into one notification of each provider; a job's counts and
//! its open pages together always tell where each recipient is.

pub mod bridge;
pub mod content;
pub mod job;
pub mod request;
pub mod retry;
pub mod verdict;

use serde::{Deserialize, Serialize};

/// Who delivers to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// A browser's push service (RFC 8030).
    Web,
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm,
    /// Apple Push Notification service.
    Apns,
}

impl Platform {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Web, Self::Fcm, Self::Apns];

    /// As on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Fcm => "fcm",
            Self::Apns => "apns",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|platform| platform.name() == name)
    }
}

/// Where a device is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", untagged)]
pub enum Address {
    /// A browser's push subscription.
    Web {
        /// `https://…` of its push service.
        endpoint: String,
        /// What it encrypts for: an uncompressed P-256 point, base64url.
        p256dh: String,
        /// The shared secret of RFC 8291, 16 bytes, base64url.
        auth: String,
    },
    /// A device token.
    Device {
        /// As FCM or APNs gave it.
        token: String,
    },
}

impl Address {
    /// What tells it from every other of its platform.
    #[must_use]
    pub fn identity(&self) -> &str {
        match self {
            Self::Web { endpoint, .. } => endpoint,
            Self::Device { token } => token,
        }
    }
}
