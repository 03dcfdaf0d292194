//! Access to push providers, per app.

use serde_json::Value;
use shardwire_proto::error::ErrorCode;
use shardwire_proto::push::Platform;

use super::{Caller, Endpoint, Reply};
use crate::http::json;
use crate::side::push::Question;

impl Caller<'_> {
    /// Shows, sets or removes providers.
    pub(super) async fn push_providers(&self) -> Reply {
        let registry = self.registry()?.snapshot();
        registry.app(&self.call.app).ok_or(ErrorCode::NotFound)?;
        let push = self.server.settings.push.as_ref();
        let push = push.ok_or(ErrorCode::Unavailable)?;
        let platform = || Platform::from_name(&self.call.id).ok_or(ErrorCode::NotFound);
        let question = match self.call.endpoint {
            Endpoint::PutPushProvider => Question::PutProvider {
                platform: platform()?,
                body: Value::Object(self.read()?),
            },
            Endpoint::DeletePushProvider => Question::DeleteProvider(platform()?),
            _ => Question::Providers,
        };
        let answer = push.ask(&self.call.app, question).await?;
        if self.call.endpoint != Endpoint::PushProviders {
            log::info!(app = self.call.app, id = self.call.id; "{:?} over the admin API", self.call.endpoint);
        }
        Ok(json(answer))
    }
}
