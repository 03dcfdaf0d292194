//! Providers in the store, sealed; and those in use, ready.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::Platform;

use super::super::provider::{Access, Credentials, Provider};
use super::{Keeper, PROVIDER, Provided, now_ms, to_json, unavailable};
use crate::records::{Change, Record};

/// How long one is used without a look whether another process has changed it, or its files have.
const FRESH: Duration = Duration::from_secs(30);

/// Ready ones by app and platform, and absent ones.
#[derive(Default)]
pub(super) struct Cache(HashMap<(Arc<str>, Platform), Known>);

/// What was found, and when.
type Known = (Option<Arc<Provider>>, Instant);

impl Cache {
    pub(super) fn forget_old(&mut self) {
        self.0.retain(|_, (_, read)| read.elapsed() < FRESH);
    }
}

/// A record's body.
#[derive(Serialize, Deserialize)]
struct Stored {
    sealed: String,
    #[serde(rename = "updatedMs")]
    updated_ms: u64,
}

fn id_of(app: &str, platform: Platform) -> String {
    format!("{app}/{}", platform.name())
}

type Done = Result<Vec<u8>, ProtocolError>;

impl Keeper {
    /// The providers of an app that can be used.
    pub(super) fn provided(&mut self, app: &Arc<str>) -> Result<Provided, ProtocolError> {
        let mut all = Provided::new();
        for platform in Platform::ALL {
            if let Some(provider) = self.provider(app, platform)? {
                all.insert(platform, provider);
            }
        }
        Ok(all)
    }

    pub(super) fn provider(
        &mut self,
        app: &Arc<str>,
        platform: Platform,
    ) -> Result<Option<Arc<Provider>>, ProtocolError> {
        let key = (app.clone(), platform);
        if let Some((provider, read)) = self.providers.0.get(&key)
            && read.elapsed() < FRESH
        {
            return Ok(provider.clone());
        }
        let provider = match self.credentials(app, platform)? {
            None => None,
            Some((credentials, record)) => match credentials.load(record.version) {
                Ok(provider) => Some(Arc::new(provider)),
                Err(error) => {
                    let platform = platform.name();
                    log::error!(app = &**app, platform, error; "push: a provider cannot be used");
                    None
                }
            },
        };
        let entry = (provider.clone(), Instant::now());
        self.providers.0.insert(key, entry);
        Ok(provider)
    }

    fn credentials(
        &mut self,
        app: &str,
        platform: Platform,
    ) -> Result<Option<(Credentials, Record)>, ProtocolError> {
        let id = id_of(app, platform);
        let found = self.store.get(PROVIDER, &id, now_ms());
        let Some(record) = found.map_err(|e| unavailable(&e))? else {
            return Ok(None);
        };
        let opened = serde_json::from_str::<Stored>(&record.body)
            .ok()
            .and_then(|stored| self.vault.unseal(&id, &stored.sealed))
            .ok_or("it was sealed with another key file".to_owned())
            .and_then(|text| Credentials::from_stored(platform, &text));
        match opened {
            Ok(credentials) => Ok(Some((credentials, record))),
            Err(error) => {
                log::error!(id = &*id, error; "push: a provider cannot be read");
                Ok(None)
            }
        }
    }

    pub(super) fn put_provider(&mut self, app: &Arc<str>, platform: Platform, body: Value) -> Done {
        self.commit()?;
        let known = self.credentials(app, platform)?;
        let known = known.as_ref().map(|(credentials, _)| credentials);
        let credentials = Credentials::read(platform, body, known)
            .map_err(|text| ProtocolError::with_text(ErrorCode::BadField, text))?;
        let id = id_of(app, platform);
        let sealed = self.vault.seal(&id, &credentials.to_stored());
        let stored = Stored {
            sealed: sealed.ok_or(ErrorCode::Internal)?,
            updated_ms: now_ms(),
        };
        let record = Record {
            id,
            labels: vec![("app".into(), app.to_string())],
            body: String::from_utf8(to_json(&stored)).unwrap_or_default(),
            ..Record::default()
        };
        self.work.asked.push(Change::put(PROVIDER, record));
        self.providers.0.remove(&(app.clone(), platform));
        Ok(to_json(&credentials.shown()))
    }

    pub(super) fn delete_provider(&mut self, app: &Arc<str>, platform: Platform) -> Done {
        self.commit()?;
        let id = id_of(app, platform);
        let found = self.store.get(PROVIDER, &id, now_ms());
        let is_there = found.map_err(|e| unavailable(&e))?.is_some();
        self.work.asked.push(Change::delete(PROVIDER, id));
        self.providers.0.remove(&(app.clone(), platform));
        Ok(to_json(&json!({ "deleted": is_there })))
    }

    pub(super) fn show_providers(&mut self, app: &str) -> Done {
        let mut shown = Vec::new();
        for platform in Platform::ALL {
            if let Some((credentials, _)) = self.credentials(app, platform)? {
                shown.push(credentials.shown());
            }
        }
        Ok(to_json(&json!({ "providers": shown })))
    }

    pub(super) fn vapid_public(&mut self, app: &Arc<str>) -> Result<Option<String>, ProtocolError> {
        let provider = self.provider(app, Platform::Web)?;
        Ok(provider.and_then(|provider| match &provider.access {
            Access::Web { key, .. } => Some(key.public.clone()),
            _ => None,
        }))
    }
}
