//! Connections, as an operator looks at them: list, find, end.

use hyper::StatusCode;
use serde_json::json;
use shardwire_proto::error::{CloseCause, ErrorCode, ProtocolError};
use shardwire_proto::ids::ConnName;
use shardwire_proto::msg::{Answer, ConnInfo, Query};

use super::{Caller, Reply, limit, reply, wrong_field};

/// Stands for the connections of all apps.
const ANY_APP: &str = "";

impl Caller<'_> {
    pub(super) async fn connections(&self) -> Reply {
        let mut parameters = self.parameters(&["app", "clientId", "limit", "cursor"])?;
        let limit = limit(&parameters)?;
        let after = parameters.get("cursor").map(|cursor| {
            cursor
                .parse()
                .map_err(|_| wrong_field("`cursor` is not one of this list"))
        });
        let app = parameters.remove("app");
        let query = Query::Connections {
            client_id: parameters.remove("clientId"),
            after: after.transpose()?,
            limit: limit + 1,
        };
        let mut found: Vec<ConnInfo> = Vec::new();
        for answer in self
            .ask_all(app.as_deref().unwrap_or(ANY_APP), query)
            .await?
        {
            if let Answer::Connections(part) = answer {
                found.extend(part);
            }
        }
        // Each shard gave its first ones; the first of all are among them.
        found.sort_unstable_by_key(|connection| connection.id.place());
        let more = found.len() > limit;
        found.truncate(limit);
        let mut body = json!({ "connections": found });
        if let (true, Some(last)) = (more, found.last()) {
            body["cursor"] = last.id.to_string().into();
        }
        Ok(reply(StatusCode::OK, &body))
    }

    pub(super) async fn connection(&self) -> Reply {
        let name = self.connection_name()?;
        let answers = self.ask_all(ANY_APP, Query::Connection { name }).await?;
        let found = answers.into_iter().find_map(|answer| match answer {
            Answer::Connection(found) => found,
            _ => None,
        });
        let found = found.ok_or(ErrorCode::NotFound)?;
        Ok(reply(StatusCode::OK, &found))
    }

    /// Ends a connection (4010).
    pub(super) async fn end_connection(&self) -> Reply {
        let name = self.connection_name()?;
        let cause = CloseCause::EndedByAdmin;
        let query = Query::End {
            name,
            code: cause.code(),
            reason: cause.reason().to_owned(),
        };
        let answers = self.ask_all(ANY_APP, query).await?;
        let ended = answers
            .iter()
            .any(|answer| matches!(answer, Answer::Count(count) if *count > 0));
        if !ended {
            return Err(ErrorCode::NotFound.into());
        }
        log::info!(connection:% = name; "connection ended by an administrator");
        Ok(reply(StatusCode::OK, &json!({ "disconnected": 1 })))
    }

    /// What is not the form of a name names no connection.
    fn connection_name(&self) -> Result<ConnName, ErrorCode> {
        self.call.id.parse().map_err(|_| ErrorCode::NotFound)
    }

    /// The answers of all shards: a part of the truth would look like the whole.
    pub(super) async fn ask_all(
        &self,
        app: &str,
        query: Query,
    ) -> Result<Vec<Answer>, ProtocolError> {
        let answers = self.server.ask(app, query).await;
        if answers.len() < self.settings.shards {
            let text = "not every shard has answered";
            return Err(ProtocolError::with_text(ErrorCode::Unavailable, text));
        }
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}
