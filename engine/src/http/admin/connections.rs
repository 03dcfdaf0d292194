//! Connections, as an operator looks at them: list, find, end.

use hyper::StatusCode;
use serde_json::{Value, json};
use shardwire_proto::error::{CloseCause, ErrorCode, ProtocolError};
use shardwire_proto::ids::ConnName;
use shardwire_proto::msg::{Answer, ConnInfo, Query};

use super::{Caller, Reply, limit, reply, wrong_field};
use crate::http::everywhere::{self, NODE_END};

/// Stands for the connections of all apps.
const ANY_APP: &str = "";

impl Caller<'_> {
    pub(super) async fn connections(&self) -> Reply {
        let mut parameters = self.parameters(&["app", "clientId", "limit", "cursor"])?;
        let limit = limit(&parameters)?;
        let after = parameters.get("cursor").map(|cursor| {
            read_name(cursor).ok_or_else(|| wrong_field("`cursor` is not one of this list"))
        });
        let (node, after) = after.transpose()?.unzip();
        let app = parameters.remove("app");
        let query = Query::Connections {
            client_id: parameters.remove("clientId"),
            after,
            limit: limit + 1,
        };
        let app = app.as_deref().unwrap_or(ANY_APP);
        let mut found: Vec<ConnInfo> = Vec::new();
        for answer in self.ask_everywhere(app, query, node.flatten()).await? {
            if let Answer::Connections(part) = answer {
                found.extend(part);
            }
        }
        // Each shard gave its first ones; the first of all are among them.
        found.sort_unstable_by(|a, b| (&a.node, a.id.place()).cmp(&(&b.node, b.id.place())));
        let more = found.len() > limit;
        found.truncate(limit);
        let listed: Vec<_> = found.iter().map(describe).collect();
        let mut body = json!({ "connections": listed });
        if let (true, Some(last)) = (more, found.last()) {
            body["cursor"] = write_name(last).into();
        }
        Ok(reply(StatusCode::OK, &body))
    }

    pub(super) async fn connection(&self) -> Reply {
        let (node, name) = self.connection_name()?;
        let query = Query::Connection { name };
        let answers = self.ask_everywhere(ANY_APP, query, node).await?;
        let found = answers.into_iter().find_map(|answer| match answer {
            Answer::Connection(found) => found,
            _ => None,
        });
        let found = found.ok_or(ErrorCode::NotFound)?;
        Ok(reply(StatusCode::OK, &describe(&found)))
    }

    /// Ends a connection (4010).
    pub(super) async fn end_connection(&self) -> Reply {
        let (node, name) = self.connection_name()?;
        let cause = CloseCause::EndedByAdmin;
        let query = Query::End {
            name,
            code: cause.code(),
            reason: cause.reason().to_owned(),
        };
        let answers = self.ask_everywhere(ANY_APP, query, node).await?;
        let ended = answers
            .iter()
            .any(|answer| matches!(answer, Answer::Count(count) if *count > 0));
        if !ended {
            return Err(ErrorCode::NotFound.into());
        }
        log::info!(connection:% = name; "connection ended by an administrator");
        Ok(reply(StatusCode::OK, &json!({ "disconnected": 1 })))
    }

    /// A connection, and the node that has it: this one where the name has none. What is not the form of a name names no
    /// connection.
    fn connection_name(&self) -> Result<(Option<String>, ConnName), ErrorCode> {
        let (node, name) = read_name(&self.call.id).ok_or(ErrorCode::NotFound)?;
        let here = || {
            let cluster = self.server.settings.cluster.as_ref();
            cluster.map(|cluster| cluster.name().to_string())
        };
        Ok((node.or_else(here), name))
    }

    async fn ask_everywhere(
        &self,
        app: &str,
        query: Query,
        node: Option<String>,
    ) -> Result<Vec<Answer>, ProtocolError> {
        let nodes = everywhere::ask(self.server, app, query, node).await?;
        Ok(nodes.into_iter().flatten().collect())
    }
}

fn read_name(text: &str) -> Option<(Option<String>, ConnName)> {
    let (node, name) = match text.split_once(NODE_END) {
        Some((node, name)) => (Some(node.to_owned()), name),
        None => (None, text),
    };
    Some((node, name.parse().ok()?))
}

/// A connection under the name by which any node finds it.
fn describe(connection: &ConnInfo) -> Value {
    let mut described = json!(connection);
    described["id"] = write_name(connection).into();
    described
}

fn write_name(connection: &ConnInfo) -> String {
    match &connection.node {
        Some(node) => format!("{node}{NODE_END}{}", connection.id),
        None => connection.id.to_string(),
    }
}
