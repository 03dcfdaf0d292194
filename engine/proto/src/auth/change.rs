//! What an operator may change about apps and credentials, and what comes of it, as data.
//!
//! Both are JSON in camelCase. A secret is in the one answer that shows it, and nowhere else.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::app::{App, AppSettings};
use super::capability::Capabilities;
use super::key::{KeyInfo, KeyKind};
use super::revocation::{Revocation, Subject};
use crate::quota::Plan;
use crate::rate::RateLimit;
use crate::rate::table::Setting;

use super::signing::{Algorithm, KeyMaterial, SigningKeyInfo};

/// One change. What names something that is not there is refused with 40400.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Makes an app. 40003 where the id is taken.
    CreateApp(NewApp),
    /// Changes an app.
    UpdateApp {
        /// The app.
        id: String,
        /// What changes.
        patch: AppPatch,
    },
    /// Removes an app with its keys and revocations; its connections are ended (4003). Messages stay until they expire.
    DeleteApp {
        /// The app.
        id: String,
    },
    /// Makes an API key. Answered with its value, this once.
    CreateKey {
        /// The app.
        app: String,
        /// What it is to be.
        key: NewKey,
    },
    /// Changes an API key. Connections made with it are ended when it is disabled, and have its new rights otherwise.
    UpdateKey {
        /// The app.
        app: String,
        /// The key.
        id: String,
        /// What changes.
        patch: KeyPatch,
    },
    /// Makes a second key like this one, which itself ends after `overlap_s` seconds.
    RotateKey {
        /// The app.
        app: String,
        /// The key.
        id: String,
        /// Seconds that the old key stays valid; 0: none.
        overlap_s: u64,
    },
    /// Removes an API key; its connections are ended (4003).
    DeleteKey {
        /// The app.
        app: String,
        /// The key.
        id: String,
    },
    /// Makes or takes in a signing key.
    CreateSigningKey {
        /// The app.
        app: String,
        /// What it is to be.
        key: NewSigningKey,
    },
    /// Changes a signing key.
    UpdateSigningKey {
        /// The app.
        app: String,
        /// The key.
        kid: String,
        /// What changes.
        patch: SigningKeyPatch,
    },
    /// Removes a signing key; connections of its tokens are ended (4003).
    DeleteSigningKey {
        /// The app.
        app: String,
        /// The key.
        kid: String,
    },
    /// Takes rights back.
    Revoke {
        /// The app.
        app: String,
        /// Whose, and which.
        revocation: NewRevocation,
    },
    /// Ends a revocation early.
    DeleteRevocation {
        /// The app.
        app: String,
        /// The revocation.
        id: String,
    },
    /// Signs a token with an HS256 key of the app. Stores nothing.
    MintToken {
        /// The app.
        app: String,
        /// What it is to say.
        token: NewToken,
    },
    /// Makes or replaces a plan.
    PutPlan(Plan),
    /// Removes a plan that no app has.
    DeletePlan {
        /// The plan.
        id: String,
    },
}

/// A new app. [`Change::CreateApp`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewApp {
    /// Absent: `app_` and 12 random characters.
    #[serde(default)]
    pub id: Option<String>,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Its settings.
    #[serde(default)]
    pub settings: AppSettings,
}

/// Changes to an app. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppPatch {
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it is disabled.
    #[serde(default)]
    pub disabled: Option<bool>,
    /// A JSON merge patch (RFC 7396) of [`AppSettings`]: `null` takes a setting back to the process's.
    #[serde(default)]
    pub settings: Option<Map<String, Value>>,
}

/// A new API key. [`Change::CreateKey`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewKey {
    /// Client or server.
    pub kind: KeyKind,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Absent: what is usual for its kind (D4).
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// Unix time in ms at which it ends; absent: never.
    #[serde(default)]
    pub expires_ms: Option<u64>,
    /// Publishes of each connection made with it; absent: as the app has it, for a server key none.
    #[serde(default)]
    pub publish_rate: Option<RateLimit>,
}

/// Changes to an API key. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyPatch {
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it is disabled.
    #[serde(default)]
    pub disabled: Option<bool>,
    /// What it grants.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// Publishes of each connection made with it; `false`: no rate of its own.
    #[serde(default)]
    pub publish_rate: Option<Setting>,
}

/// A new signing key. [`Change::CreateSigningKey`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSigningKey {
    /// Absent: `sig_` and 12 random characters.
    #[serde(default)]
    pub kid: Option<String>,
    /// The only one it verifies.
    pub algorithm: Algorithm,
    /// Absent: a random secret, for HS256 alone; it is in the answer, this once.
    #[serde(default)]
    pub material: Option<KeyMaterial>,
    /// Absent: what is usual for client keys (D4).
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// Unix time in ms at which it ends; absent: never.
    #[serde(default)]
    pub expires_ms: Option<u64>,
}

/// Changes to a signing key. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SigningKeyPatch {
    /// Whether it is disabled.
    #[serde(default)]
    pub disabled: Option<bool>,
    /// What it grants.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// Unix time in ms at which it ends.
    #[serde(default)]
    pub expires_ms: Option<u64>,
}

/// A right to be taken back. [`Change::Revoke`]. In JSON the subject is one of `clientId`, `jti`, `keyId`, `kid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewRevocation {
    /// Whom it concerns.
    #[serde(flatten)]
    pub subject: Subject,
    /// The channels concerned; absent: the connection as a whole.
    #[serde(default)]
    pub channel: Option<String>,
    /// Seconds it lasts; absent: the longest life of a token.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Tokens issued at or after this Unix time in ms are not concerned.
    #[serde(default)]
    pub issued_before_ms: Option<u64>,
}

/// A token to be signed. [`Change::MintToken`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewToken {
    /// The signing key, an HS256 one; absent: the app's first.
    #[serde(default)]
    pub kid: Option<String>,
    /// `sub`; absent: the client is anonymous.
    #[serde(default)]
    pub client_id: Option<String>,
    /// `cap`; absent: what the signing key grants.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// Seconds it is valid; absent: 3600.
    #[serde(default)]
    pub ttl_s: Option<u64>,
}

/// What came of a [`Change`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Changed {
    /// The app as it is.
    App(Box<App>),
    /// The key as it is (of a rotation: the second one).
    #[serde(rename_all = "camelCase")]
    Key {
        /// What may be shown of it.
        #[serde(flatten)]
        info: KeyInfo,
        /// The key's value, where it has just been made.
        #[serde(rename = "key", skip_serializing_if = "Option::is_none")]
        secret: Option<String>,
    },
    /// The signing key as it is.
    #[serde(rename_all = "camelCase")]
    SigningKey {
        /// What may be shown of it.
        #[serde(flatten)]
        info: SigningKeyInfo,
        /// Its secret, where it has just been made.
        #[serde(skip_serializing_if = "Option::is_none")]
        secret: Option<String>,
    },
    /// The revocation.
    Revocation(Box<Revocation>),
    /// A signed token.
    #[serde(rename_all = "camelCase")]
    Token {
        /// The token.
        token: String,
        /// Its `jti`.
        jti: String,
        /// Unix time in ms at which it ends.
        expires_ms: u64,
    },
    /// The plan as it is.
    Plan(Plan),
    /// It is gone.
    Deleted {},
}
