//! The registry: all apps and credentials of the process at one moment, and who a credential makes its holder.
//!
//! A snapshot, shared by all shards; a change makes another one (see `edit`). Invariants: a key, signing key or
//! revocation belongs to an app that is there; a `kid` that an operator has given names one signing key, which no key
//! set fetched from elsewhere can take over.

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonwebtoken::DecodingKey;

use super::app::App;
use super::jwt::{self, TokenRules};
use super::key::{KeyRecord, KeyRing};
use super::revocation::{Holder, Revocation};
use super::signing::SigningKey;
use super::{Caller, Credential};
use crate::error::{ErrorCode, ProtocolError};
use crate::quota::Plan;

/// A signing key, ready to verify.
#[derive(Debug, Clone)]
pub(super) struct Verifier {
    pub(super) key: Arc<SigningKey>,
    pub(super) decoding: Arc<DecodingKey>,
}

impl Verifier {
    pub(super) fn new(key: Arc<SigningKey>) -> Result<Self, String> {
        let decoding = Arc::new(jwt::decoding_key(&key)?);
        Ok(Self { key, decoding })
    }
}

/// What is kept for one app.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) app: Arc<App>,
    /// By id.
    pub(super) keys: BTreeMap<Box<str>, Arc<KeyRecord>>,
    /// By id.
    pub(super) revocations: BTreeMap<Box<str>, Arc<Revocation>>,
    /// Of its key set elsewhere, by kid.
    pub(super) fetched: Arc<BTreeMap<Box<str>, Verifier>>,
}

impl Entry {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            keys: BTreeMap::new(),
            revocations: BTreeMap::new(),
            fetched: Arc::default(),
        }
    }
}

/// Apps, keys, signing keys and revocations.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    pub(super) apps: BTreeMap<Box<str>, Entry>,
    pub(super) ring: KeyRing,
    /// By kid.
    pub(super) signing_keys: BTreeMap<Box<str>, Verifier>,
    /// By id.
    pub(super) plans: BTreeMap<Box<str>, Arc<Plan>>,
}

/// What a request presents. Not `Debug`: it holds secrets.
#[derive(Clone, Copy, Default)]
pub struct Presented<'a> {
    /// `?key=`.
    pub key: Option<&'a str>,
    /// `?token=`.
    pub token: Option<&'a str>,
    /// `Authorization: Bearer`: a key or a token.
    pub bearer: Option<&'a str>,
}

impl Registry {
    /// Puts a snapshot together.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn new(
        apps: impl IntoIterator<Item = App>,
        keys: impl IntoIterator<Item = KeyRecord>,
        signing_keys: impl IntoIterator<Item = SigningKey>,
        revocations: impl IntoIterator<Item = Revocation>,
    ) -> Result<Self, String> {
        let mut registry = Self::default();
        for app in apps {
            app.validate()?;
            let id = app.id.as_str().into();
            registry.apps.insert(id, Entry::new(Arc::new(app)));
        }
        for key in keys {
            let entry = registry.apps.get_mut(key.app.as_str());
            let entry = entry.ok_or_else(|| format!("key {}: no app {}", key.id, key.app))?;
            let key = Arc::new(key);
            registry.ring.insert(key.clone());
            entry.keys.insert(key.id.as_str().into(), key);
        }
        for key in signing_keys {
            if !registry.apps.contains_key(key.app.as_str()) {
                return Err(format!("signing key {}: no app {}", key.kid, key.app));
            }
            let (kid, key) = (key.kid.as_str().into(), Arc::new(key));
            registry.signing_keys.insert(kid, Verifier::new(key)?);
        }
        for revocation in revocations {
            let entry = registry.apps.get_mut(revocation.app.as_str());
            let entry = entry.ok_or_else(|| format!("revocation {}: no app", revocation.id))?;
            let id = revocation.id.as_str().into();
            entry.revocations.insert(id, Arc::new(revocation));
        }
        Ok(registry)
    }

    /// With the keys of an app's key set elsewhere replaced. Those that cannot be used are left out.
    #[must_use]
    pub fn with_fetched(&self, app: &str, keys: Vec<SigningKey>) -> Self {
        let mut next = self.clone();
        if let Some(entry) = next.apps.get_mut(app) {
            let keys = keys.into_iter().filter(|key| key.app == app);
            let usable = keys.filter_map(|key| {
                Some((key.kid.as_str().into(), Verifier::new(Arc::new(key)).ok()?))
            });
            entry.fetched = Arc::new(usable.collect());
        }
        next
    }

    /// Whether keys of an app's key set elsewhere are there.
    #[must_use]
    pub fn has_fetched(&self, app: &str) -> bool {
        self.apps
            .get(app)
            .is_some_and(|entry| !entry.fetched.is_empty())
    }

    /// A plan.
    #[must_use]
    pub fn plan(&self, id: &str) -> Option<&Arc<Plan>> {
        self.plans.get(id)
    }

    /// All plans, by id.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.plans.values()
    }

    /// The plan that an app has.
    #[must_use]
    pub fn plan_of(&self, app: &App) -> Option<&Arc<Plan>> {
        self.plan(app.settings.plan.as_deref()?)
    }

    /// An app.
    #[must_use]
    pub fn app(&self, id: &str) -> Option<&Arc<App>> {
        self.apps.get(id).map(|entry| &entry.app)
    }

    /// All apps, by id.
    pub fn apps(&self) -> impl Iterator<Item = &Arc<App>> {
        self.apps.values().map(|entry| &entry.app)
    }

    /// An app's API keys, by id.
    pub fn keys(&self, app: &str) -> impl Iterator<Item = &Arc<KeyRecord>> {
        self.apps
            .get(app)
            .into_iter()
            .flat_map(|entry| entry.keys.values())
    }

    /// One of an app's API keys.
    #[must_use]
    pub fn key(&self, app: &str, id: &str) -> Option<&Arc<KeyRecord>> {
        self.apps.get(app)?.keys.get(id)
    }

    /// An app's signing keys, by kid; those of a key set elsewhere are not among them.
    pub fn signing_keys<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a Arc<SigningKey>> {
        let keys = self.signing_keys.values().map(|verifier| &verifier.key);
        keys.filter(move |key| key.app == app)
    }

    /// An app's revocations, by id, those that are over but not yet removed among them.
    pub fn revocations(&self, app: &str) -> impl Iterator<Item = &Arc<Revocation>> {
        self.apps
            .get(app)
            .into_iter()
            .flat_map(|entry| entry.revocations.values())
    }

    /// All API keys, by hash.
    #[must_use]
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// The Unix time in ms, after `now_ms`, at which the first key or revocation ends.
    #[must_use]
    pub fn next_end_ms(&self, now_ms: u64) -> Option<u64> {
        let apps = self.apps.values();
        let ends = apps.flat_map(|entry| {
            let keys = entry.keys.values().filter_map(|key| key.expires_ms);
            keys.chain(entry.revocations.values().map(|r| r.until_ms))
        });
        let signing = self.signing_keys.values();
        ends.chain(signing.filter_map(|verifier| verifier.key.expires_ms))
            .filter(|end| *end > now_ms)
            .min()
    }

    /// Who presents these credentials. A token decides; a key beside it must be of the same app (contract D3).
    ///
    /// # Errors
    /// 40100 for none, 40101 for an unknown key, 40102 for a token that is not valid here, 40142 for one that has
    /// expired, 40301 where app or key is disabled.
    pub fn authenticate(
        &self,
        presented: Presented<'_>,
        rules: &TokenRules,
        now_ms: u64,
    ) -> Result<Caller, ProtocolError> {
        let Presented { key, token, bearer } = presented;
        let bearer_token = bearer.filter(|text| text.contains('.'));
        let Some(token) = token.or(bearer_token.filter(|_| key.is_none())) else {
            let presented = key.or(bearer).ok_or(ErrorCode::NoCredentials)?;
            return self.key_caller(presented, now_ms);
        };
        let beside = key.or(bearer.filter(|text| !text.contains('.')));
        let beside = beside.map(|key| self.ring.authenticate(key, now_ms));
        let beside = beside.transpose()?;
        let app = beside.map(|key| key.app.as_str());
        let (key, claims) = jwt::verify(token, self, app, rules, now_ms)?;
        if app.is_some_and(|app| app != key.app) {
            let text = "key and token are of different apps";
            return Err(ProtocolError::with_text(ErrorCode::BadToken, text));
        }
        self.token_caller(key, Arc::new(claims), None, now_ms)
    }

    /// What a connection's credential is worth after a change of the registry or at a later time.
    ///
    /// # Errors
    /// [`ErrorCode::Disabled`] where app or key is gone, disabled or over; [`ErrorCode::BadToken`] where it is revoked.
    pub fn renew(
        &self,
        app: &str,
        credential: &Credential,
        client_id: &str,
        now_ms: u64,
    ) -> Result<Caller, ErrorCode> {
        let entry = self.apps.get(app).ok_or(ErrorCode::Disabled)?;
        let caller = match credential {
            Credential::Key(key) => {
                let known = entry.keys.get(key.id.as_str());
                let known = known.filter(|known| known.hash == key.hash && known.is_valid(now_ms));
                self.caller_of_key(known.ok_or(ErrorCode::Disabled)?, Some(client_id), now_ms)
            }
            Credential::Token { key, claims } => {
                let known = self.verifier(&key.kid, Some(app)).map(|v| &v.key);
                let known = known.filter(|known| known.app == app && known.is_valid(now_ms));
                let known = known.ok_or(ErrorCode::Disabled)?.clone();
                self.token_caller(known, claims.clone(), Some(client_id), now_ms)
            }
        };
        caller.map_err(|error| error.code)
    }

    fn key_caller(&self, presented: &str, now_ms: u64) -> Result<Caller, ProtocolError> {
        let key = self.ring.authenticate(presented, now_ms)?;
        self.caller_of_key(key, None, now_ms)
    }

    fn caller_of_key(
        &self,
        key: &Arc<KeyRecord>,
        client_id: Option<&str>,
        now_ms: u64,
    ) -> Result<Caller, ProtocolError> {
        let entry = self.apps.get(key.app.as_str());
        let entry = entry.ok_or(ErrorCode::UnknownKey)?;
        let holder = Holder {
            client_id,
            key_id: Some(&key.id),
            ..Holder::default()
        };
        let denied = entry.denied(&holder, now_ms)?;
        Ok(Caller {
            app: entry.app.clone(),
            capabilities: key.capabilities.clone(),
            credential: Credential::Key(key.clone()),
            denied,
        })
    }

    fn token_caller(
        &self,
        key: Arc<SigningKey>,
        claims: Arc<jwt::Claims>,
        anonymous: Option<&str>,
        now_ms: u64,
    ) -> Result<Caller, ProtocolError> {
        let entry = self.apps.get(key.app.as_str()).ok_or(ErrorCode::BadToken)?;
        let holder = Holder {
            client_id: claims.client_id.as_deref().or(anonymous),
            jti: claims.jti.as_deref(),
            key_id: None,
            kid: Some(&key.kid),
            issued_ms: claims.issued_ms,
        };
        let denied = entry.denied(&holder, now_ms)?;
        let granted = &key.capabilities;
        Ok(Caller {
            app: entry.app.clone(),
            capabilities: match &claims.capabilities {
                Some(claimed) => granted.intersect(claimed),
                None => granted.clone(),
            },
            credential: Credential::Token { key, claims },
            denied,
        })
    }

    /// What a `kid` names: an operator's key, else one of a fetched set, of `app` or of the only app that has it.
    pub(super) fn verifier(&self, kid: &str, app: Option<&str>) -> Option<&Verifier> {
        if let Some(verifier) = self.signing_keys.get(kid) {
            return Some(verifier);
        }
        if let Some(app) = app {
            return self.apps.get(app)?.fetched.get(kid);
        }
        let mut found = self
            .apps
            .values()
            .filter_map(|entry| entry.fetched.get(kid));
        found.next().filter(|_| found.next().is_none())
    }
}

impl Entry {
    /// The channel patterns that revocations take from `holder`.
    ///
    /// # Errors
    /// The app is disabled, or all of it is taken.
    fn denied(&self, holder: &Holder<'_>, now_ms: u64) -> Result<super::Denied, ProtocolError> {
        if self.app.disabled {
            return Err(ErrorCode::Disabled.into());
        }
        let mut denied = Vec::new();
        for revocation in self.revocations.values() {
            if revocation.concerns(holder, now_ms) {
                if revocation.channel.is_none() {
                    return Err(ProtocolError::with_text(ErrorCode::BadToken, "revoked"));
                }
                denied.push(revocation.clone());
            }
        }
        Ok((!denied.is_empty()).then(|| denied.into()))
    }
}
