//! Signing keys: what tokens are verified with (contract D6). The algorithm belongs to the key, never to the token.
//!
//! Data and its form. Verifying is [`jwt`](super::jwt)'s. Invariant: the secret of a key is in its stored form, and in
//! no `Debug` output, listing or log.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::capability::Capabilities;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256: whoever can verify can sign.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// Its name in tokens (RFC 7518, 3.1).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// What a signature is checked with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyMaterial {
    /// The bytes of an HS256 secret are those of this text, as issuers' libraries take it.
    Secret(String),
    /// A public key in PEM (SubjectPublicKeyInfo).
    Pem(String),
    /// A public key as a JSON Web Key (RFC 7517).
    Jwk(serde_json::Value),
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret(…)",
            Self::Pem(_) => "Pem(…)",
            Self::Jwk(_) => "Jwk(…)",
        })
    }
}

/// What is stored about a signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningKey {
    /// What tokens name it by; unique in the process, so that it selects the app too.
    pub kid: String,
    /// The app of its tokens.
    pub app: String,
    /// The only algorithm it verifies.
    pub algorithm: Algorithm,
    /// What it verifies with.
    pub material: KeyMaterial,
    /// What its tokens grant at most, and where they claim nothing.
    pub capabilities: Capabilities,
    /// Refused with 40301 while true.
    #[serde(default)]
    pub disabled: bool,
    /// Unix time, ms.
    #[serde(default)]
    pub created_ms: u64,
    /// Unix time in ms from which on it is refused, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// A signing key as it is listed: without what it verifies with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningKeyInfo {
    /// As in [`SigningKey`], and so are the others.
    pub kid: String,
    /// The app.
    pub app: String,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What it grants.
    pub capabilities: Capabilities,
    /// Whether it is disabled.
    pub disabled: bool,
    /// Unix time, ms.
    pub created_ms: u64,
    /// Unix time, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

impl SigningKey {
    /// What may be shown of it.
    #[must_use]
    pub fn info(&self) -> SigningKeyInfo {
        SigningKeyInfo {
            kid: self.kid.clone(),
            app: self.app.clone(),
            algorithm: self.algorithm,
            capabilities: self.capabilities.clone(),
            disabled: self.disabled,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
        }
    }

    /// Whether it may be used at `now_ms`.
    #[must_use]
    pub fn is_valid(&self, now_ms: u64) -> bool {
        !self.disabled && self.expires_ms.is_none_or(|end| now_ms < end)
    }
}
