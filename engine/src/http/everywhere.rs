//! Questions that concern every node: this process's shards are asked, and through the bus those of the others.

use std::rc::Rc;

use futures_lite::future;
use serde_json::Value;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::msg::{Answer, ConnInfo, Query};

use crate::cluster::{Call, Incoming};
use crate::shard::Server;
use crate::shard::inbox::Inbox;

/// What stands between the name of a node and that of one of its connections.
pub(super) const NODE_END: char = '~';

/// The answers of all shards of each node, this one first.
///
/// # Errors
/// 50300 when not everybody has answered: a part of the truth would look like the whole.
pub(crate) async fn ask(
    server: &Server,
    app: &str,
    query: Query,
    node: Option<String>,
) -> Result<Vec<Vec<Answer>>, ProtocolError> {
    let call = Call {
        app: app.to_owned(),
        node,
        query,
    };
    let Some(cluster) = &server.settings.cluster else {
        return Ok(vec![ask_here(server, call).await?]);
    };
    let (here, others) = future::zip(ask_here(server, call.clone()), cluster.call(call)).await;
    let silent = || {
        let text = "not every node has answered";
        ProtocolError::with_text(ErrorCode::Unavailable, text)
    };
    let mut all = vec![here?];
    for reply in others.map_err(|_| silent())? {
        all.push(serde_json::from_value(reply.answer).map_err(|_| silent())?);
    }
    Ok(all)
}

/// Answers what other nodes ask, until the task is dropped.
pub async fn answer_calls(server: Server, calls: Inbox<Incoming>) {
    loop {
        let Incoming { call, from } = calls.recv().await;
        let server = Rc::clone(&server);
        glommio::spawn_local(async move {
            // Whoever asks takes null for no answer.
            let answers = ask_here(&server, call).await.ok();
            let answer = answers.and_then(|answers| serde_json::to_value(answers).ok());
            if let Some(cluster) = &server.settings.cluster {
                cluster.answer(from, answer.unwrap_or(Value::Null));
            }
        })
        .detach();
    }
}

/// The answers of this process's shards, as a node of several gives them.
async fn ask_here(server: &Server, call: Call) -> Result<Vec<Answer>, ProtocolError> {
    let name = server.settings.cluster.as_ref().map(|c| c.name().clone());
    let Call {
        app,
        node,
        mut query,
    } = call;
    if let (Some(name), Some(node)) = (&name, node) {
        match &mut query {
            // The names of nodes come first in the order of connections.
            Query::Connections { .. } if **name < *node => return Ok(Vec::new()),
            Query::Connections { after, .. } if **name > *node => *after = None,
            Query::Connection { .. } | Query::End { .. } if **name != *node => {
                return Ok(Vec::new());
            }
            _ => {}
        }
    }
    let answers = server.ask(&app, query).await;
    if answers.len() < server.http.shards {
        let text = "not every shard has answered";
        return Err(ProtocolError::with_text(ErrorCode::Unavailable, text));
    }
    let mut answers: Vec<Answer> = answers.into_iter().map(|(_, answer)| answer).collect();
    let put_name = |info: &mut ConnInfo| info.node = name.as_deref().map(Into::into);
    for answer in &mut answers {
        match answer {
            Answer::Connections(all) => all.iter_mut().for_each(put_name),
            Answer::Connection(Some(info)) => put_name(info),
            _ => {}
        }
    }
    Ok(answers)
}
