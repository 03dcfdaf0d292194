//! Webhooks, as an operator looks at them and changes them; what a call means is the webhooks' thread's matter.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::Deserialize;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::{Caller, Endpoint, Reply, limit, reply, wrong_field};
use crate::side::webhooks::{Call, Order};

/// Seconds that a rotated secret signs too where the request does not say: a day to bring out the other one.
const OVERLAP_DEFAULT_S: u64 = 24 * 3600;

/// Body of a rotation.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotate {
    overlap_seconds: Option<u64>,
}

impl Caller<'_> {
    pub(super) async fn webhooks(&self) -> Reply {
        let order = self.order()?;
        let changes = !matches!(
            order,
            Order::List { .. }
                | Order::Show(_)
                | Order::Events { .. }
                | Order::Log(_)
                | Order::DeadLetters { .. }
                | Order::DeadLetter { .. }
        );
        let status = match order {
            Order::Create(_) => StatusCode::CREATED,
            _ => StatusCode::OK,
        };
        let webhooks = self.server.settings.webhooks.as_ref();
        let webhooks = webhooks.ok_or(ErrorCode::Unavailable)?;
        let app = self.call.app.clone();
        let answer = webhooks.call(Call { app, order }).await?;
        if changes {
            log::info!(app = self.call.app, id = self.call.id; "{:?} over the admin API", self.call.endpoint);
        }
        Ok(reply(status, &answer))
    }

    fn order(&self) -> Result<Order, ProtocolError> {
        let id = self.call.id.clone();
        let letter = self.call.item.clone();
        let parameters = self.parameters(&["limit", "cursor", "from"])?;
        let after = parameters.get("cursor").cloned().unwrap_or_default();
        Ok(match self.call.endpoint {
            Endpoint::Webhooks => Order::List {
                after,
                limit: limit(&parameters)?,
            },
            Endpoint::CreateWebhook => Order::Create(self.read()?),
            Endpoint::Webhook => Order::Show(id),
            Endpoint::UpdateWebhook => Order::Patch(id, self.read()?),
            Endpoint::DeleteWebhook => Order::Delete(id),
            Endpoint::RotateWebhook => {
                let Rotate { overlap_seconds } = self.read_or_default()?;
                Order::Rotate(id, overlap_seconds.unwrap_or(OVERLAP_DEFAULT_S))
            }
            Endpoint::TestWebhook => Order::Test(id),
            Endpoint::WebhookEvents => Order::Events {
                id,
                from: from(&parameters)?,
                limit: limit(&parameters)?,
            },
            Endpoint::WebhookDeliveries => Order::Log(id),
            Endpoint::DeadLetters => Order::DeadLetters {
                id,
                after,
                limit: limit(&parameters)?,
            },
            Endpoint::PurgeDeadLetters => Order::Purge { id, letter: None },
            Endpoint::ReplayDeadLetters => Order::Replay { id, letter: None },
            Endpoint::DeadLetter => Order::DeadLetter { id, letter },
            Endpoint::PurgeDeadLetter => Order::Purge {
                id,
                letter: Some(letter),
            },
            Endpoint::ReplayDeadLetter => Order::Replay {
                id,
                letter: Some(letter),
            },
            _ => return Err(ErrorCode::NotFound.into()),
        })
    }
}

fn from(parameters: &BTreeMap<String, String>) -> Result<u64, ProtocolError> {
    let Some(text) = parameters.get("from") else {
        return Ok(1);
    };
    let number = text.parse();
    number.map_err(|_| wrong_field("`from` must be the number of an event"))
}
