//! API keys: their form, their hash at rest, and the ring they are looked up in (contract D4).
//!
//! Not here: tokens, where records are stored, and where random bytes come from. Invariants: a key exists in clear only
//! while it is presented or made; records hold its hash and first characters; comparison takes the same time for every
//! wrong key.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hashbrown::HashMap;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::capability::{Capabilities, Ops};
use crate::error::ErrorCode;
use crate::rate::RateLimit;

/// Characters in the shortest key.
pub const KEY_BYTES_MIN: usize = 16;
/// Characters in the longest key.
pub const KEY_BYTES_MAX: usize = 128;
/// Characters of a key kept in clear, so that people can tell keys apart in a listing.
const PREFIX_BYTES: usize = 6;

/// Who a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Shipped in clients: the socket, and of push only `vapid-key` and `register`.
    Client,
    /// Kept on back ends: everything.
    Server,
}

impl KeyKind {
    /// What generated keys of this kind begin with.
    #[must_use]
    pub const fn key_prefix(self) -> &'static str {
        match self {
            Self::Client => "ck_",
            Self::Server => "sk_",
        }
    }
}

/// SHA-256 of a key. A slow password hash would buy nothing and make refusals dear: keys are random, with at least
/// 128 bits, so there is no dictionary to try. Compared in constant time; shown and stored as 64 lower-case hex digits.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes a key.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// The text is not 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHashError;

impl fmt::Display for KeyHashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key hash is 64 lower-case hex digits")
    }
}

impl std::error::Error for KeyHashError {}

impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(hex: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| KeyHashError)?;
        bytes.try_into().map(Self).map_err(|_| KeyHashError)
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// What is stored about a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// Names the key without revealing it.
    pub id: String,
    /// The app it belongs to.
    pub app: String,
    /// Who it is for.
    pub kind: KeyKind,
    /// Hash of the key.
    pub hash: KeyHash,
    /// The key's first characters, for listings.
    pub prefix: String,
    /// What it grants.
    pub capabilities: Capabilities,
    /// Refused with [`ErrorCode::Disabled`] while true.
    #[serde(default)]
    pub disabled: bool,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Unix time, ms; 0: before it was noted.
    #[serde(default)]
    pub created_ms: u64,
    /// Unix time in ms from which on it is refused like a disabled one, if ever: the end of a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Publishes of each connection made with it, in place of what else counts for a connection (contract D25).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_rate: Option<RateLimit>,
}

/// A key as it is listed: by its first characters, without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    /// As in [`KeyRecord`], and so are the others.
    pub id: String,
    /// The app.
    pub app: String,
    /// For people.
    pub name: String,
    /// Who it is for.
    pub kind: KeyKind,
    /// The key's first characters.
    pub prefix: String,
    /// What it grants.
    pub capabilities: Capabilities,
    /// Whether it is disabled.
    pub disabled: bool,
    /// Unix time, ms.
    pub created_ms: u64,
    /// Unix time, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// As in [`KeyRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_rate: Option<RateLimit>,
    /// Unix time in ms of its last use, to about a minute; absent: unused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_ms: Option<u64>,
}

impl KeyRecord {
    /// The record of an enabled key.
    ///
    /// # Errors
    /// [`ErrorCode::BadField`] when `key` does not have the form of a key.
    pub fn new(
        id: String,
        app: String,
        kind: KeyKind,
        key: &str,
        grants: Capabilities,
    ) -> Result<Self, ErrorCode> {
        if !is_well_formed(key) {
            return Err(ErrorCode::BadField);
        }
        let prefix = key.chars().take(PREFIX_BYTES).collect();
        Ok(Self {
            id,
            app,
            kind,
            hash: KeyHash::of(key),
            prefix,
            capabilities: grants,
            disabled: false,
            name: String::new(),
            created_ms: 0,
            expires_ms: None,
            publish_rate: None,
        })
    }

    /// The record of a server key that does not exist: every right in the app, and a hash that no key has.
    #[must_use]
    pub fn of_nobody(id: &str, app: &str) -> Self {
        Self {
            id: id.to_owned(),
            app: app.to_owned(),
            kind: KeyKind::Server,
            hash: KeyHash([0; 32]),
            prefix: String::new(),
            capabilities: default_capabilities(KeyKind::Server),
            disabled: false,
            name: String::new(),
            created_ms: 0,
            expires_ms: None,
            publish_rate: None,
        }
    }

    /// What may be shown of it.
    #[must_use]
    pub fn info(&self, last_used_ms: Option<u64>) -> KeyInfo {
        KeyInfo {
            id: self.id.clone(),
            app: self.app.clone(),
            name: self.name.clone(),
            kind: self.kind,
            prefix: self.prefix.clone(),
            capabilities: self.capabilities.clone(),
            disabled: self.disabled,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            publish_rate: self.publish_rate,
            last_used_ms,
        }
    }

    /// Whether it may be used at `now_ms`.
    #[must_use]
    pub fn is_valid(&self, now_ms: u64) -> bool {
        !self.disabled && self.expires_ms.is_none_or(|end| now_ms < end)
    }

    /// Whether the key grants every operation of `ops` on `channel`.
    #[must_use]
    pub fn permits(&self, channel: &str, ops: Ops) -> bool {
        self.capabilities.permits(channel, ops)
    }
}

/// All keys of the process, by hash. A snapshot: built anew when a key changes, shared by the shards.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    by_hash: HashMap<KeyHash, Arc<KeyRecord>, foldhash::fast::RandomState>,
}

impl KeyRing {
    /// Builds the ring. Of two records with one hash the later stands.
    pub fn new<R: Into<Arc<KeyRecord>>>(records: impl IntoIterator<Item = R>) -> Self {
        let records = records.into_iter().map(Into::into);
        Self {
            by_hash: records.map(|record| (record.hash, record)).collect(),
        }
    }

    /// Adds or replaces a key.
    pub(super) fn insert(&mut self, record: Arc<KeyRecord>) {
        self.by_hash.insert(record.hash, record);
    }

    /// Takes a key out.
    pub(super) fn remove(&mut self, hash: &KeyHash) {
        self.by_hash.remove(hash);
    }

    /// The key of this hash, valid or not.
    pub(super) fn of_hash(&self, hash: &KeyHash) -> Option<&Arc<KeyRecord>> {
        self.by_hash.get(hash)
    }

    /// Whether a key has this hash.
    pub(super) fn contains(&self, hash: &KeyHash) -> bool {
        self.by_hash.contains_key(hash)
    }

    /// Finds the record of a presented key.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownKey`], or [`ErrorCode::Disabled`] for a known key that is disabled or over at `now_ms`.
    pub fn authenticate(&self, presented: &str, now_ms: u64) -> Result<&Arc<KeyRecord>, ErrorCode> {
        if !is_well_formed(presented) {
            return Err(ErrorCode::UnknownKey);
        }
        // How long the lookup takes depends on the hash alone, which a guesser cannot steer towards a stored one.
        let record = self
            .by_hash
            .get(&KeyHash::of(presented))
            .ok_or(ErrorCode::UnknownKey)?;
        if record.is_valid(now_ms) {
            Ok(record)
        } else {
            Err(ErrorCode::Disabled)
        }
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }
}

/// Whether `key` has the form of a key: 16 to 128 characters of `[A-Za-z0-9_-]`, since several SDKs put it into a URL
/// unescaped.
#[must_use]
pub fn is_well_formed(key: &str) -> bool {
    (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Makes a key from 24 random bytes (192 bits): `prefix` (see [`KeyKind::key_prefix`]) and 32 base64url characters.
#[must_use]
pub fn generate_key(prefix: &str, random: &[u8; 24]) -> String {
    let key = format!("{prefix}{}", BASE64URL_NOPAD.encode(random));
    debug_assert!(is_well_formed(&key), "the prefix must be of key characters");
    key
}

/// What a key grants when its maker says nothing (contract D4): a client key the socket and push registration, a
/// server key everything.
#[must_use]
pub fn default_capabilities(kind: KeyKind) -> Capabilities {
    Capabilities::everywhere(match kind {
        KeyKind::Client => Ops::SUBSCRIBE
            .union(Ops::PUBLISH)
            .union(Ops::PRESENCE)
            .union(Ops::HISTORY)
            .union(Ops::PUSH_SUBSCRIBE),
        KeyKind::Server => Ops::ALL,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(id: &str, key: &str) -> KeyRecord {
        let grants = default_capabilities(KeyKind::Client);
        KeyRecord::new(id.into(), "app".into(), KeyKind::Client, key, grants).unwrap()
    }

    #[test]
    fn hash_is_sha256_in_hex() {
        // FIPS 180-2, appendix B.1.
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::of("abc").to_string(), hex);
        assert_eq!(hex.parse(), Ok(KeyHash::of("abc")));
        for bad in [
            "",
            &hex[1..],
            &hex[2..],
            &format!("{hex}00"),
            &hex.replace('b', "g"),
            &hex.replace("ba", "+a"),
        ] {
            assert_eq!(bad.parse::<KeyHash>(), Err(KeyHashError), "{bad}");
        }
    }

    #[test]
    fn authenticates_only_the_exact_key() {
        let ring = KeyRing::new([
            record("one", "ck_aaaaaaaaaaaaaaaa"),
            record("two", "ck_bbbbbbbbbbbbbbbb"),
        ]);
        assert_eq!(
            ring.authenticate("ck_bbbbbbbbbbbbbbbb", 0).unwrap().id,
            "two"
        );
        for wrong in [
            "",
            "ck_aaaaaaaaaaaaaaab",
            "ck_aaaaaaaaaaaaaaaaa",
            "ck_aaaaaaaaaaaaaaa\u{e9}",
        ] {
            assert_eq!(
                ring.authenticate(wrong, 0).unwrap_err(),
                ErrorCode::UnknownKey,
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_disabled_key_is_told_apart() {
        let ring = KeyRing::new([KeyRecord {
            disabled: true,
            ..record("one", "ck_aaaaaaaaaaaaaaaa")
        }]);
        assert_eq!(
            ring.authenticate("ck_aaaaaaaaaaaaaaaa", 0).unwrap_err(),
            ErrorCode::Disabled
        );
    }

    #[test]
    fn records_survive_storage_and_never_hold_the_key() {
        let key = generate_key(KeyKind::Client.key_prefix(), &[0xfb; 24]);
        assert_eq!(key, "ck_-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7");
        let record = record("one", &key);
        let stored = serde_json::to_value(&record).unwrap();
        assert_eq!(
            stored["capabilities"],
            json!({"*": ["subscribe", "publish", "presence", "history", "push-subscribe"]})
        );
        assert_eq!(stored["prefix"], "ck_-_v");
        assert!(!stored.to_string().contains(&key) && !format!("{record:?}").contains(&key));
        assert_eq!(serde_json::from_value::<KeyRecord>(stored).unwrap(), record);
    }

    #[test]
    fn server_keys_may_do_everything_and_client_keys_may_not_administer() {
        assert!(default_capabilities(KeyKind::Server).permits_everywhere(Ops::ALL));
        let client = default_capabilities(KeyKind::Client);
        assert!(client.permits("a", Ops::PUBLISH));
        assert!(
            !client.permits_somewhere(Ops::PUSH_ADMIN) && !client.permits_somewhere(Ops::ADMIN)
        );
    }

    #[test]
    fn malformed_keys_make_no_record() {
        for key in ["short", "has space in it....", &"x".repeat(129)] {
            let made = KeyRecord::new(
                String::new(),
                String::new(),
                KeyKind::Server,
                key,
                Capabilities::default(),
            );
            assert_eq!(made.unwrap_err(), ErrorCode::BadField);
        }
    }
}
