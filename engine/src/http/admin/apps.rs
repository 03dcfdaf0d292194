//! Apps and credentials: what there is, from the registry's snapshot, and changes, which the registry makes.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardwire_proto::auth::change::{Change, Changed, NewSigningKey};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::{Caller, Endpoint, Refusal, Reply, limit, reply, wrong_field};
use crate::registry::RegistryHandle;
use crate::side::push::Question;

/// Seconds that a rotated key stays valid where the request does not say: a day to bring out the other one.
const OVERLAP_DEFAULT_S: u64 = 24 * 3600;

/// Body of a rotation.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotate {
    overlap_seconds: Option<u64>,
}

impl Caller<'_> {
    /// Lists and shows.
    pub(super) fn look_up(&self) -> Reply {
        let registry = self.registry()?;
        let snapshot = registry.snapshot();
        let (app, id) = (&*self.call.app, &*self.call.id);
        if self.call.endpoint != Endpoint::Apps && snapshot.app(app).is_none() {
            return Err(ErrorCode::NotFound.into());
        }
        let key_info = |key: &shardwire_proto::auth::key::KeyRecord| {
            key.info(registry.last_used_ms(app, &key.id))
        };
        let body = match self.call.endpoint {
            Endpoint::Apps => self.page("apps", snapshot.apps().map(|a| (&*a.id, &**a)))?,
            Endpoint::App => show(snapshot.app(app).map(|app| &**app))?,
            Endpoint::Keys => {
                self.page("keys", snapshot.keys(app).map(|k| (&*k.id, key_info(k))))?
            }
            Endpoint::Key => show(snapshot.keys(app).find(|k| k.id == id).map(|k| key_info(k)))?,
            Endpoint::SigningKeys => {
                let keys = snapshot.signing_keys(app);
                self.page("signingKeys", keys.map(|k| (&*k.kid, k.info())))?
            }
            Endpoint::SigningKey => {
                let mut keys = snapshot.signing_keys(app);
                show(keys.find(|k| k.kid == id).map(|k| k.info()))?
            }
            _ => {
                let now_ms = self.server.now().unix_ms;
                let lasting = snapshot
                    .revocations(app)
                    .filter(|revocation| now_ms < revocation.until_ms);
                self.page("revocations", lasting.map(|r| (&*r.id, &**r)))?
            }
        };
        Ok(reply(StatusCode::OK, &body))
    }

    /// A page of a list in the order of its ids.
    pub(super) fn page<'s, T: Serialize>(
        &self,
        name: &str,
        entries: impl Iterator<Item = (&'s str, T)>,
    ) -> Result<Value, ProtocolError> {
        let parameters = self.parameters(&["limit", "cursor"])?;
        let limit = limit(&parameters)?;
        let after = parameters.get("cursor").map_or("", String::as_str);
        let mut entries = entries.skip_while(|(id, _)| *id <= after).peekable();
        let (mut page, mut last) = (Vec::new(), "");
        while let Some((id, entry)) = entries.next_if(|_| page.len() < limit) {
            last = id;
            page.push(entry);
        }
        let mut body = json!({ name: page });
        if entries.peek().is_some() {
            body["cursor"] = last.into();
        }
        Ok(body)
    }

    /// Makes a change.
    pub(super) async fn change(&self) -> Reply {
        let registry = self.registry()?;
        let change = self.parse_change()?;
        if let Some(taken) = taken(&registry.snapshot(), &change) {
            return Err(taken);
        }
        let changed = registry.change(change).await?;
        log::info!(app = self.call.app, id = self.call.id; "{:?} over the admin API", self.call.endpoint);
        if self.call.endpoint == Endpoint::DeleteApp
            && let Some(push) = &self.server.settings.push
            && let Err(error) = push.ask(&self.call.app, Question::ForgetApp).await
        {
            log::error!(app = self.call.app, error = &*error.text; "push: what is kept of a removed app stays");
        }
        let status = match (self.call.endpoint, &changed) {
            (_, Changed::Deleted {}) => StatusCode::OK,
            (Endpoint::UpdateApp | Endpoint::UpdateKey | Endpoint::UpdateSigningKey, _) => {
                StatusCode::OK
            }
            _ => StatusCode::CREATED,
        };
        Ok(reply(status, &changed))
    }

    fn parse_change(&self) -> Result<Change, ProtocolError> {
        let (app, id) = (self.call.app.clone(), self.call.id.clone());
        Ok(match self.call.endpoint {
            Endpoint::CreateApp => Change::CreateApp(self.read()?),
            Endpoint::UpdateApp => Change::UpdateApp {
                id: app,
                patch: self.read()?,
            },
            Endpoint::DeleteApp => Change::DeleteApp { id: app },
            Endpoint::CreateKey => Change::CreateKey {
                app,
                key: self.read()?,
            },
            Endpoint::UpdateKey => Change::UpdateKey {
                app,
                id,
                patch: self.read()?,
            },
            Endpoint::DeleteKey => Change::DeleteKey { app, id },
            Endpoint::RotateKey => {
                let Rotate { overlap_seconds } = self.read_or_default()?;
                Change::RotateKey {
                    app,
                    id,
                    overlap_s: overlap_seconds.unwrap_or(OVERLAP_DEFAULT_S),
                }
            }
            Endpoint::CreateSigningKey => Change::CreateSigningKey {
                app,
                key: self.read()?,
            },
            Endpoint::UpdateSigningKey => Change::UpdateSigningKey {
                app,
                kid: id,
                patch: self.read()?,
            },
            Endpoint::DeleteSigningKey => Change::DeleteSigningKey { app, kid: id },
            Endpoint::Revoke => Change::Revoke {
                app,
                revocation: self.read()?,
            },
            Endpoint::DeleteRevocation => Change::DeleteRevocation { app, id },
            Endpoint::MintToken => Change::MintToken {
                app,
                token: self.read_or_default()?,
            },
            _ => return Err(ErrorCode::NotFound.into()),
        })
    }

    pub(super) fn registry(&self) -> Result<&RegistryHandle, ErrorCode> {
        self.server
            .settings
            .registry
            .as_ref()
            .ok_or(ErrorCode::Unavailable)
    }
}

/// One thing that is there.
fn show<T: Serialize>(found: Option<T>) -> Result<Value, ProtocolError> {
    let found = found.ok_or(ErrorCode::NotFound)?;
    serde_json::to_value(found).map_err(|_| ErrorCode::Internal.into())
}

/// The refusal of a change that makes something under an id that is there: 409.
fn taken(registry: &Registry, change: &Change) -> Option<Refusal> {
    let text = match change {
        Change::CreateApp(app) => {
            let id = app.id.as_deref()?;
            registry.app(id)?;
            format!("there is an app {id} already")
        }
        Change::CreateSigningKey {
            key: NewSigningKey { kid: Some(kid), .. },
            ..
        } => {
            let mut apps = registry.apps();
            apps.find(|app| registry.signing_keys(&app.id).any(|key| key.kid == *kid))?;
            format!("there is a signing key {kid} already")
        }
        _ => return None,
    };
    let mut refusal = Refusal::from(wrong_field(text));
    refusal.status = StatusCode::CONFLICT;
    Some(refusal)
}
