//! The registry: all apps and credentials of the process at one moment.
//!
//! A snapshot, built anew at each change and shared by all shards. It answers; it is never changed. Invariants: a key
//! or signing key whose app is not there is not there either; a `kid` names one signing key.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::app::App;
use super::key::{KeyRecord, KeyRing};
use super::revocation::Revocation;
use super::signing::SigningKey;

/// Apps, keys, signing keys and revocations.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    apps: BTreeMap<Arc<str>, Arc<App>>,
    keys: BTreeMap<(Arc<str>, Arc<str>), Arc<KeyRecord>>,
    ring: KeyRing,
    signing_keys: BTreeMap<Arc<str>, Arc<SigningKey>>,
    revocations: BTreeMap<(Arc<str>, Arc<str>), Arc<Revocation>>,
}

impl Registry {
    /// An app.
    #[must_use]
    pub fn app(&self, id: &str) -> Option<&Arc<App>> {
        self.apps.get(id)
    }

    /// All apps, by id.
    pub fn apps(&self) -> impl Iterator<Item = &Arc<App>> {
        self.apps.values()
    }

    /// An app's API keys, by id.
    pub fn keys<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Arc<KeyRecord>> {
        self.keys.values().filter(move |key| key.app == app)
    }

    /// An app's signing keys, by kid.
    pub fn signing_keys<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Arc<SigningKey>> {
        self.signing_keys.values().filter(move |key| key.app == app)
    }

    /// An app's revocations, by id, those that are over not yet removed among them.
    pub fn revocations<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Arc<Revocation>> {
        self.revocations.values().filter(move |r| r.app == app)
    }

    /// All API keys, by hash.
    #[must_use]
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }
}
