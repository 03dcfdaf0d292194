//! Plans, and what apps have used.

use hyper::StatusCode;
use serde_json::{Map, Value};
use shardwire_proto::auth::change::Change;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::quota::Plan;

use super::{Caller, Endpoint, Reply, reply, wrong_field};
use crate::usage::{Question, Step};

/// Where the question does not say: so many rows up to this moment.
const ROWS_DEFAULT: u64 = 60;

impl Caller<'_> {
    /// Lists and shows plans.
    pub(super) fn plans(&self) -> Reply {
        let snapshot = self.registry()?.snapshot();
        if self.call.endpoint == Endpoint::Plan {
            let plan = snapshot.plan(&self.call.id).ok_or(ErrorCode::NotFound)?;
            return Ok(reply(StatusCode::OK, &**plan));
        }
        let plans = snapshot.plans().map(|plan| (&*plan.id, &**plan));
        Ok(reply(StatusCode::OK, &self.page("plans", plans)?))
    }

    /// Makes, replaces or removes a plan.
    pub(super) async fn change_plan(&self) -> Reply {
        let id = self.call.id.clone();
        let change = match self.call.endpoint {
            Endpoint::DeletePlan => Change::DeletePlan { id },
            _ => Change::PutPlan(self.read_plan(id)?),
        };
        let changed = self.registry()?.change(change).await?;
        log::info!(id = self.call.id; "{:?} over the admin API", self.call.endpoint);
        Ok(reply(StatusCode::OK, &changed))
    }

    /// The body, named by the path.
    fn read_plan(&self, id: String) -> Result<Plan, ProtocolError> {
        let mut fields: Map<String, Value> = self.read()?;
        fields.insert("id".into(), id.into());
        serde_json::from_value(Value::Object(fields)).map_err(|e| wrong_field(e.to_string()))
    }

    /// An app's usage: totals, and a series by minute, hour or day.
    pub(super) async fn usage(&self) -> Reply {
        let parameters = self.parameters(&["from", "to", "step"])?;
        let step = match parameters.get("step").map(String::as_str) {
            None | Some("minute") => Step::Minute,
            Some("hour") => Step::Hour,
            Some("day") => Step::Day,
            Some(_) => return Err(wrong_field("`step` must be minute, hour or day").into()),
        };
        let time = |name: &str| {
            let text = parameters.get(name);
            text.map(|text| {
                let wrong = |_| wrong_field(format!("`{name}` must be a Unix time in ms"));
                text.parse::<u64>().map_err(wrong)
            })
            .transpose()
        };
        let now_ms = self.server.now().unix_ms;
        let to_ms = time("to")?.unwrap_or(now_ms.saturating_add(1));
        let span_ms = ROWS_DEFAULT * step.seconds() * 1000;
        let from_ms = time("from")?.unwrap_or(to_ms.saturating_sub(span_ms));
        if self.registry()?.snapshot().app(&self.call.app).is_none() {
            return Err(ErrorCode::NotFound.into());
        }
        let usage = self.server.settings.usage.as_ref();
        let question = Question {
            app: self.call.app.clone(),
            step,
            from_ms,
            to_ms,
        };
        let report = usage.ok_or(ErrorCode::Unavailable)?.ask(question).await?;
        Ok(reply(StatusCode::OK, &report))
    }
}
