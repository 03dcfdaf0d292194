//! Changes of the registry: from one snapshot to the next, and what has to be stored for it.
//!
//! Not here: storing, and telling shards. Invariant: the snapshot that [`Registry::changed`] returns is the one that
//! [`Registry::from_documents`] makes of what is stored once its document changes are applied.

use std::sync::Arc;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::app::{App, AppSettings, is_valid_id};
use super::change::{
    AppPatch, Change, Changed, KeyPatch, NewApp, NewKey, NewRevocation, NewSigningKey, NewToken,
    SigningKeyPatch,
};
use super::key::{KeyKind, KeyRecord, default_capabilities, generate_key};
use super::registry::{Entry, Registry, Verifier};
use super::revocation::Revocation;
use super::signing::{Algorithm, KeyMaterial, SigningKey};
use super::{is_valid_client_id, jwt};
use crate::error::{ErrorCode, ProtocolError};
use crate::limits::{
    APPS_MAX, KEYS_PER_APP_MAX, NAME_BYTES_MAX, PLANS_MAX, REVOCATIONS_PER_APP_MAX,
    ROTATION_OVERLAP_S_MAX, TOKEN_LIFETIME_S_MAX,
};
use crate::quota::Plan;
use crate::rate::table::Setting;

/// What is stored, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKind {
    /// A [`Plan`], by its id.
    Plan,
    /// An [`App`], by its id.
    App,
    /// A [`KeyRecord`], by app and id.
    Key,
    /// A [`SigningKey`], by its kid.
    SigningKey,
    /// A [`Revocation`], by app and id.
    Revocation,
    /// When a key was last used, Unix ms, by app and id.
    KeyUse,
}

impl DocumentKind {
    /// All kinds; what a later one refers to is of an earlier one.
    pub const ALL: [Self; 6] = [
        Self::Plan,
        Self::App,
        Self::Key,
        Self::SigningKey,
        Self::Revocation,
        Self::KeyUse,
    ];

    /// Its name in storage.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::App => "app",
            Self::Key => "key",
            Self::SigningKey => "signing-key",
            Self::Revocation => "revocation",
            Self::KeyUse => "key-use",
        }
    }
}

/// A change of what is stored. Those of one registry change are applied together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentChange {
    /// Makes or replaces a document.
    Put {
        /// Its kind.
        kind: DocumentKind,
        /// Its id, unique in its kind.
        id: String,
        /// What it says.
        json: String,
    },
    /// Removes a document.
    Delete {
        /// Its kind.
        kind: DocumentKind,
        /// Its id.
        id: String,
    },
}

/// The next snapshot, what to store for it, and the answer.
#[derive(Debug)]
pub struct Edited {
    /// The registry as it will be.
    pub registry: Registry,
    /// To be stored first.
    pub documents: Vec<DocumentChange>,
    /// For who asked.
    pub changed: Changed,
}

/// Where random bytes come from; every call gives others.
pub type Random<'a> = &'a mut dyn FnMut() -> [u8; 24];

impl Registry {
    /// Makes a change. `now_ms` is Unix time.
    ///
    /// # Errors
    /// 40003 for what is wrong with it, 40400 for what is not there.
    pub fn changed(
        &self,
        change: Change,
        random: Random<'_>,
        now_ms: u64,
    ) -> Result<Edited, ProtocolError> {
        let mut edit = Edit {
            next: self.clone(),
            documents: Vec::new(),
            random,
            now_ms,
        };
        let changed = edit.apply(change)?;
        Ok(Edited {
            registry: edit.next,
            documents: edit.documents,
            changed,
        })
    }

    /// Puts together what is stored.
    ///
    /// # Errors
    /// The first document that cannot be understood, or that does not fit the others.
    pub fn from_documents(documents: &[(DocumentKind, String, String)]) -> Result<Self, String> {
        fn read<T: DeserializeOwned>(
            documents: &[(DocumentKind, String, String)],
            kind: DocumentKind,
        ) -> Result<Vec<T>, String> {
            let of_kind = documents.iter().filter(|(k, ..)| *k == kind);
            of_kind
                .map(|(_, id, json)| {
                    serde_json::from_str(json)
                        .map_err(|error| format!("{} {id}: {error}", kind.name()))
                })
                .collect()
        }
        let mut registry = Self::new(
            read::<App>(documents, DocumentKind::App)?,
            read::<KeyRecord>(documents, DocumentKind::Key)?,
            read::<SigningKey>(documents, DocumentKind::SigningKey)?,
            read::<Revocation>(documents, DocumentKind::Revocation)?,
        )?;
        for plan in read::<Plan>(documents, DocumentKind::Plan)? {
            plan.validate()?;
            registry
                .plans
                .insert(plan.id.as_str().into(), Arc::new(plan));
        }
        Ok(registry)
    }

    /// Everything, as it is stored.
    #[must_use]
    pub fn documents(&self) -> Vec<DocumentChange> {
        let mut all = Vec::new();
        for plan in self.plans.values() {
            all.push(put(DocumentKind::Plan, plan.id.clone(), &**plan));
        }
        for entry in self.apps.values() {
            all.push(put(DocumentKind::App, entry.app.id.clone(), &*entry.app));
            for key in entry.keys.values() {
                all.push(put(DocumentKind::Key, within(&key.app, &key.id), &**key));
            }
            for r in entry.revocations.values() {
                all.push(put(DocumentKind::Revocation, within(&r.app, &r.id), &**r));
            }
        }
        for verifier in self.signing_keys.values() {
            let key = &*verifier.key;
            all.push(put(DocumentKind::SigningKey, key.kid.clone(), key));
        }
        all
    }

    /// Gives a key of the start this record, in an app that is made where it is missing. Nothing happens where it has the
    /// key already.
    ///
    /// # Errors
    /// Another key has its value.
    pub fn put_key(
        &mut self,
        key: KeyRecord,
        now_ms: u64,
        changes: &mut Vec<DocumentChange>,
    ) -> Result<(), String> {
        if let Some(known) = self.ring.of_hash(&key.hash) {
            if known.id == key.id && known.app == key.app {
                return Ok(());
            }
            return Err(format!(
                "the value given for key {} is that of key {} already",
                key.id, known.id
            ));
        }
        self.ensure_app(&key.app, now_ms, changes);
        let id = within(&key.app, &key.id);
        changes.push(put(DocumentKind::Key, id, &key));
        let key = Arc::new(key);
        if let Some(entry) = self.apps.get_mut(key.app.as_str()) {
            let replaced = entry.keys.insert(key.id.as_str().into(), key.clone());
            if let Some(replaced) = replaced {
                self.ring.remove(&replaced.hash);
            }
        }
        self.ring.insert(key);
        Ok(())
    }

    /// Makes or replaces a signing key of the start, unless it has this material already.
    ///
    /// # Errors
    /// The material is not a key of its algorithm.
    pub fn put_signing_key(
        &mut self,
        key: SigningKey,
        now_ms: u64,
        changes: &mut Vec<DocumentChange>,
    ) -> Result<(), String> {
        let known = self.signing_keys.get(key.kid.as_str());
        if known.is_some_and(|known| known.key.material == key.material) {
            return Ok(());
        }
        self.ensure_app(&key.app, now_ms, changes);
        changes.push(put(DocumentKind::SigningKey, key.kid.clone(), &key));
        let verifier = Verifier::new(Arc::new(key))?;
        let kid = verifier.key.kid.as_str().into();
        self.signing_keys.insert(kid, verifier);
        Ok(())
    }

    fn ensure_app(&mut self, id: &str, now_ms: u64, changes: &mut Vec<DocumentChange>) {
        if self.apps.contains_key(id) {
            return;
        }
        let mut app = App::new(id);
        app.created_ms = now_ms;
        changes.push(put(DocumentKind::App, id.to_owned(), &app));
        self.apps.insert(id.into(), Entry::new(Arc::new(app)));
    }

    /// Without what is over: keys whose time has come and revocations that have ended. `None` where there is nothing.
    #[must_use]
    pub fn pruned(&self, now_ms: u64) -> Option<(Self, Vec<DocumentChange>)> {
        let mut next = self.clone();
        let mut documents = Vec::new();
        let over = |end: Option<u64>| end.is_some_and(|end| end.saturating_add(KEPT_MS) <= now_ms);
        for entry in next.apps.values_mut() {
            entry.revocations.retain(|_, r| {
                let stays = r.until_ms > now_ms;
                if !stays {
                    documents.push(delete(DocumentKind::Revocation, within(&r.app, &r.id)));
                }
                stays
            });
            entry.keys.retain(|_, key| {
                let stays = !over(key.expires_ms);
                if !stays {
                    next.ring.remove(&key.hash);
                    documents.extend(delete_key(&key.app, &key.id));
                }
                stays
            });
        }
        next.signing_keys.retain(|kid, verifier| {
            let stays = !over(verifier.key.expires_ms);
            if !stays {
                documents.push(delete(DocumentKind::SigningKey, kid.to_string()));
            }
            stays
        });
        (!documents.is_empty()).then_some((next, documents))
    }
}

/// How long a key that is over is still listed, ms: a day, for whoever looks why clients were ended.
const KEPT_MS: u64 = 24 * 3600 * 1000;

struct Edit<'a> {
    next: Registry,
    documents: Vec<DocumentChange>,
    random: Random<'a>,
    now_ms: u64,
}

type Outcome = Result<Changed, ProtocolError>;

impl Edit<'_> {
    fn apply(&mut self, change: Change) -> Outcome {
        match change {
            Change::CreateApp(app) => self.create_app(app),
            Change::UpdateApp { id, patch } => self.update_app(&id, patch),
            Change::DeleteApp { id } => self.delete_app(&id),
            Change::CreateKey { app, key } => self.create_key(&app, key),
            Change::UpdateKey { app, id, patch } => self.update_key(&app, &id, patch),
            Change::RotateKey { app, id, overlap_s } => self.rotate_key(&app, &id, overlap_s),
            Change::DeleteKey { app, id } => self.delete_key(&app, &id),
            Change::CreateSigningKey { app, key } => self.create_signing_key(&app, key),
            Change::UpdateSigningKey { app, kid, patch } => {
                self.update_signing_key(&app, &kid, patch)
            }
            Change::DeleteSigningKey { app, kid } => {
                self.signing_key(&app, &kid)?;
                self.next.signing_keys.remove(&*kid);
                self.documents.push(delete(DocumentKind::SigningKey, kid));
                Ok(Changed::Deleted {})
            }
            Change::Revoke { app, revocation } => self.revoke(&app, revocation),
            Change::DeleteRevocation { app, id } => {
                let removed = self.entry(&app)?.revocations.remove(&*id);
                removed.ok_or(ErrorCode::NotFound)?;
                let id = within(&app, &id);
                self.documents.push(delete(DocumentKind::Revocation, id));
                Ok(Changed::Deleted {})
            }
            Change::MintToken { app, token } => self.mint(&app, &token),
            Change::PutPlan(plan) => self.put_plan(plan),
            Change::DeletePlan { id } => self.delete_plan(&id),
        }
    }

    fn put_plan(&mut self, plan: Plan) -> Outcome {
        plan.validate().map_err(refused)?;
        let id = plan.id.as_str();
        if self.next.plans.len() >= PLANS_MAX && !self.next.plans.contains_key(id) {
            return Err(refused("there are as many plans as there may be"));
        }
        self.documents
            .push(put(DocumentKind::Plan, plan.id.clone(), &plan));
        let shared = Arc::new(plan.clone());
        self.next.plans.insert(id.into(), shared);
        Ok(Changed::Plan(plan))
    }

    /// Not while an app has it.
    fn delete_plan(&mut self, id: &str) -> Outcome {
        let mut apps = self.next.apps.values();
        if let Some(entry) = apps.find(|entry| entry.app.settings.plan.as_deref() == Some(id)) {
            return Err(refused(format!("app {} has the plan", entry.app.id)));
        }
        self.next.plans.remove(id).ok_or(ErrorCode::NotFound)?;
        self.documents
            .push(delete(DocumentKind::Plan, id.to_owned()));
        Ok(Changed::Deleted {})
    }

    fn create_app(&mut self, new: NewApp) -> Outcome {
        if self.next.apps.len() >= APPS_MAX {
            return Err(refused("there are as many apps as there may be"));
        }
        let app = App {
            id: new.id.unwrap_or_else(|| self.make_id("app")),
            name: new.name,
            disabled: false,
            settings: new.settings,
            created_ms: self.now_ms,
        };
        if self.next.apps.contains_key(app.id.as_str()) {
            return Err(refused("the app is there already"));
        }
        self.put_app(app)
    }

    fn update_app(&mut self, id: &str, patch: AppPatch) -> Outcome {
        let mut app = (*self.entry(id)?.app).clone();
        app.name = patch.name.unwrap_or(app.name);
        app.disabled = patch.disabled.unwrap_or(app.disabled);
        if let Some(patch) = patch.settings {
            app.settings = merge_settings(&app.settings, patch)?;
        }
        self.put_app(app)
    }

    fn put_app(&mut self, app: App) -> Outcome {
        if let Some(plan) = &app.settings.plan
            && !self.next.plans.contains_key(plan.as_str())
        {
            return Err(refused(format!("there is no plan {plan:?}")));
        }
        app.validate().map_err(refused)?;
        self.documents
            .push(put(DocumentKind::App, app.id.clone(), &app));
        let shared = Arc::new(app.clone());
        let entry = self.next.apps.entry(app.id.as_str().into());
        entry
            .and_modify(|entry| {
                if entry.app.settings.jwks_file != shared.settings.jwks_file
                    || entry.app.settings.jwks_url != shared.settings.jwks_url
                {
                    entry.fetched = Arc::default();
                }
                entry.app = shared.clone();
            })
            .or_insert_with(|| Entry::new(shared.clone()));
        Ok(Changed::App(Box::new(app)))
    }

    fn delete_app(&mut self, id: &str) -> Outcome {
        let entry = self.next.apps.remove(id).ok_or(ErrorCode::NotFound)?;
        for key in entry.keys.values() {
            self.next.ring.remove(&key.hash);
            self.documents.extend(delete_key(id, &key.id));
        }
        for revocation in entry.revocations.keys() {
            let id = within(id, revocation);
            self.documents.push(delete(DocumentKind::Revocation, id));
        }
        let documents = &mut self.documents;
        self.next.signing_keys.retain(|kid, verifier| {
            let stays = verifier.key.app != id;
            if !stays {
                documents.push(delete(DocumentKind::SigningKey, kid.to_string()));
            }
            stays
        });
        documents.push(delete(DocumentKind::App, id.to_owned()));
        Ok(Changed::Deleted {})
    }

    fn create_key(&mut self, app: &str, new: NewKey) -> Outcome {
        let secret = generate_key(new.kind.key_prefix(), &(self.random)());
        let grants = new
            .capabilities
            .unwrap_or_else(|| default_capabilities(new.kind));
        let id = self.make_id("key");
        let mut key = KeyRecord::new(id, app.to_owned(), new.kind, &secret, grants)?;
        key.name = new.name;
        key.created_ms = self.now_ms;
        key.expires_ms = new.expires_ms;
        key.publish_rate = new.publish_rate;
        self.add_key(key, secret)
    }

    fn add_key(&mut self, key: KeyRecord, secret: String) -> Outcome {
        if self.entry(&key.app)?.keys.len() >= KEYS_PER_APP_MAX {
            return Err(refused("the app has as many keys as it may have"));
        }
        if self.next.ring.contains(&key.hash) {
            return Err(refused("the key is there already"));
        }
        let info = key.info(None);
        self.put_key(key)?;
        Ok(Changed::Key {
            info,
            secret: Some(secret),
        })
    }

    fn update_key(&mut self, app: &str, id: &str, patch: KeyPatch) -> Outcome {
        let mut key = self.key(app, id)?;
        key.name = patch.name.unwrap_or(key.name);
        key.disabled = patch.disabled.unwrap_or(key.disabled);
        key.capabilities = patch.capabilities.unwrap_or(key.capabilities);
        key.publish_rate = match patch.publish_rate {
            None => key.publish_rate,
            Some(Setting::Off) => None,
            Some(Setting::Limit(limit)) => Some(limit),
        };
        let info = key.info(None);
        self.put_key(key)?;
        Ok(Changed::Key { info, secret: None })
    }

    fn rotate_key(&mut self, app: &str, id: &str, overlap_s: u64) -> Outcome {
        if overlap_s > ROTATION_OVERLAP_S_MAX {
            return Err(refused("both keys may be valid for 90 days at most"));
        }
        let mut old = self.key(app, id)?;
        if !old.is_valid(self.now_ms) {
            return Err(refused("the key is not valid any more: make another one"));
        }
        let secret = generate_key(old.kind.key_prefix(), &(self.random)());
        let (grants, new_id) = (old.capabilities.clone(), self.make_id("key"));
        let mut new = KeyRecord::new(new_id, app.to_owned(), old.kind, &secret, grants)?;
        new.name.clone_from(&old.name);
        new.created_ms = self.now_ms;
        new.expires_ms = old.expires_ms;
        new.publish_rate = old.publish_rate;
        let end = self.now_ms.saturating_add(overlap_s * 1000);
        old.expires_ms = Some(old.expires_ms.map_or(end, |known| known.min(end)));
        self.put_key(old)?;
        self.add_key(new, secret)
    }

    fn put_key(&mut self, key: KeyRecord) -> Result<(), ProtocolError> {
        check_name(&key.name)?;
        let id = within(&key.app, &key.id);
        self.documents.push(put(DocumentKind::Key, id, &key));
        let key = Arc::new(key);
        self.next.ring.insert(key.clone());
        let keys = &mut self.entry(&key.app)?.keys;
        keys.insert(key.id.as_str().into(), key);
        Ok(())
    }

    fn delete_key(&mut self, app: &str, id: &str) -> Outcome {
        let key = self.entry(app)?.keys.remove(id);
        let key = key.ok_or(ErrorCode::NotFound)?;
        self.next.ring.remove(&key.hash);
        self.documents.extend(delete_key(app, id));
        Ok(Changed::Deleted {})
    }

    fn create_signing_key(&mut self, app: &str, new: NewSigningKey) -> Outcome {
        self.entry(app)?;
        if self.next.signing_keys(app).count() >= KEYS_PER_APP_MAX {
            return Err(refused("the app has as many signing keys as it may have"));
        }
        let kid = new.kid.unwrap_or_else(|| self.make_id("sig"));
        if !is_valid_id(&kid) {
            return Err(refused(
                "`kid` must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -",
            ));
        }
        if self.next.signing_keys.contains_key(kid.as_str()) {
            return Err(refused("a signing key of this `kid` is there already"));
        }
        let mut secret = None;
        let material = match (new.material, new.algorithm) {
            (Some(material), _) => material,
            (None, Algorithm::Hs256) => {
                let (first, second) = ((self.random)(), (self.random)());
                let made = BASE64URL_NOPAD.encode(&[first, second].concat());
                secret = Some(made.clone());
                KeyMaterial::Secret(made)
            }
            (None, Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa) => {
                return Err(refused("`material` is missing: the public key"));
            }
        };
        let grants = new.capabilities;
        let key = SigningKey {
            kid,
            app: app.to_owned(),
            algorithm: new.algorithm,
            material,
            capabilities: grants.unwrap_or_else(|| default_capabilities(KeyKind::Client)),
            disabled: false,
            created_ms: self.now_ms,
            expires_ms: new.expires_ms,
        };
        self.put_signing_key(key, secret)
    }

    fn update_signing_key(&mut self, app: &str, kid: &str, patch: SigningKeyPatch) -> Outcome {
        let mut key = (*self.signing_key(app, kid)?).clone();
        key.disabled = patch.disabled.unwrap_or(key.disabled);
        key.capabilities = patch.capabilities.unwrap_or(key.capabilities);
        key.expires_ms = patch.expires_ms.or(key.expires_ms);
        self.put_signing_key(key, None)
    }

    fn put_signing_key(&mut self, key: SigningKey, secret: Option<String>) -> Outcome {
        self.documents
            .push(put(DocumentKind::SigningKey, key.kid.clone(), &key));
        let key = Arc::new(key);
        let verifier = Verifier::new(key.clone()).map_err(refused)?;
        let keys = &mut self.next.signing_keys;
        keys.insert(key.kid.as_str().into(), verifier);
        Ok(Changed::SigningKey {
            info: key.info(),
            secret,
        })
    }

    fn revoke(&mut self, app: &str, new: NewRevocation) -> Outcome {
        let ttl_s = new.ttl_s.unwrap_or(TOKEN_LIFETIME_S_MAX);
        let revocation = Revocation {
            id: self.make_id("rev"),
            app: app.to_owned(),
            subject: new.subject,
            channel: new.channel,
            until_ms: self.now_ms.saturating_add(ttl_s.saturating_mul(1000)),
            issued_before_ms: new.issued_before_ms,
            created_ms: self.now_ms,
        };
        revocation.validate().map_err(refused)?;
        let now_ms = self.now_ms;
        let entry = self.entry(app)?;
        let live = entry.revocations.values().filter(|r| r.until_ms > now_ms);
        if live.count() >= REVOCATIONS_PER_APP_MAX {
            return Err(refused(
                "the app has as many revocations as it may have: disable the key instead",
            ));
        }
        let id = revocation.id.as_str().into();
        entry.revocations.insert(id, Arc::new(revocation.clone()));
        let id = within(app, &revocation.id);
        self.documents
            .push(put(DocumentKind::Revocation, id, &revocation));
        Ok(Changed::Revocation(Box::new(revocation)))
    }

    fn mint(&mut self, app: &str, new: &NewToken) -> Outcome {
        self.entry(app)?;
        let signs =
            |key: &SigningKey| key.algorithm == Algorithm::Hs256 && key.is_valid(self.now_ms);
        let key = match &new.kid {
            Some(kid) => self.signing_key(app, kid)?,
            None => {
                let mut keys = self.next.signing_keys(app).filter(|key| signs(key));
                let none = "the app has no valid HS256 signing key";
                keys.next().ok_or_else(|| refused(none))?.clone()
            }
        };
        if !signs(&key) {
            return Err(refused("only a valid HS256 key can sign"));
        }
        let client_id = new.client_id.as_deref();
        if client_id.is_some_and(|id| !is_valid_client_id(id)) {
            return Err(refused(
                "`clientId` must be 1 to 128 bytes without control characters",
            ));
        }
        let ttl_s = new.ttl_s.unwrap_or(3600);
        if !(1..=TOKEN_LIFETIME_S_MAX).contains(&ttl_s) {
            return Err(refused("`ttlS` must be between 1 and 86400"));
        }
        let (jti, issued_s) = (self.make_id("tok"), self.now_ms / 1000);
        let capabilities = new.capabilities.as_ref();
        let expires_s = issued_s + ttl_s;
        let token = jwt::sign(&key, client_id, capabilities, &jti, issued_s, expires_s)?;
        Ok(Changed::Token {
            token,
            jti,
            expires_ms: expires_s * 1000,
        })
    }

    fn entry(&mut self, app: &str) -> Result<&mut Entry, ErrorCode> {
        self.next.apps.get_mut(app).ok_or(ErrorCode::NotFound)
    }

    fn key(&self, app: &str, id: &str) -> Result<KeyRecord, ErrorCode> {
        let key = self.next.key(app, id).ok_or(ErrorCode::NotFound)?;
        Ok((**key).clone())
    }

    fn signing_key(&self, app: &str, kid: &str) -> Result<Arc<SigningKey>, ErrorCode> {
        let verifier = self.next.signing_keys.get(kid);
        let key = verifier.map(|v| &v.key).filter(|key| key.app == app);
        key.cloned().ok_or(ErrorCode::NotFound)
    }

    /// `<prefix>_` and 12 hex digits of a random number.
    fn make_id(&mut self, prefix: &str) -> String {
        let random = (self.random)();
        let digits = HEXLOWER.encode(random.get(..6).unwrap_or_default());
        format!("{prefix}_{digits}")
    }
}

/// Applies a merge patch (RFC 7396) to settings.
fn merge_settings(
    settings: &AppSettings,
    patch: Map<String, Value>,
) -> Result<AppSettings, ProtocolError> {
    let mut merged = serde_json::to_value(settings).map_err(|_| ErrorCode::Internal)?;
    merge(&mut merged, Value::Object(patch));
    serde_json::from_value(merged).map_err(|error| refused(format!("`settings`: {error}")))
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (name, value) in patch {
            if value.is_null() {
                target.remove(&name);
            } else {
                merge(target.entry(name).or_insert(Value::Null), value);
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), ProtocolError> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(refused(format!("`name` is above {NAME_BYTES_MAX} bytes")))
}

fn refused(text: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}

/// A key's documents.
fn delete_key(app: &str, id: &str) -> [DocumentChange; 2] {
    let id = within(app, id);
    let used = delete(DocumentKind::KeyUse, id.clone());
    [delete(DocumentKind::Key, id), used]
}

/// The id of a document that belongs to an app; no app's id holds a slash.
#[must_use]
pub fn within(app: &str, id: &str) -> String {
    format!("{app}/{id}")
}

fn put<T: Serialize>(kind: DocumentKind, id: String, document: &T) -> DocumentChange {
    let json = serde_json::to_string(document);
    debug_assert!(json.is_ok(), "documents are maps with string keys");
    DocumentChange::Put {
        kind,
        id,
        json: json.unwrap_or_default(),
    }
}

fn delete(kind: DocumentKind, id: String) -> DocumentChange {
    DocumentChange::Delete { kind, id }
}

#[cfg(test)]
mod tests;
