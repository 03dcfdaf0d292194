//! Calls from one node to the others, by publish/subscribe. What is lost is not sent again: whoever asks knows how many
//! answers there should be.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisError, RedisResult, Value as Reply};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::ids::{ChannelKey, ConnName};
use shardwire_proto::msg::Query;
use tokio::sync::mpsc;

use super::session::{Session, node_of};
use super::thread::Out;
use super::{CALL_DEADLINE, Incoming};
use crate::broker::connect::Access;
use crate::shard::inbox::InboxSender;

/// A question to other nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Empty: any.
    pub app: String,
    /// Of one connection, the node that has it; of a list of them, where the page begins.
    pub node: Option<String>,
    pub query: Query,
}

/// What a node has answered.
#[derive(Debug, Clone)]
pub struct CallReply {
    pub node: Arc<str>,
    pub answer: Value,
}

/// What goes over the bus.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Message {
    Call {
        from: String,
        number: u64,
        call: Call,
    },
    Answer {
        from: String,
        number: u64,
        answer: Value,
    },
    /// Apps and credentials have been changed in the store that all nodes share.
    Stored { from: String },
    /// A member is the receiver's again.
    Returned {
        app: String,
        channel: String,
        client_id: String,
        conn: String,
    },
}

/// Tells a node that a member is its own again.
pub(super) async fn tell_returned(
    session: &Session,
    lease: &str,
    channel: &ChannelKey,
    client_id: &str,
    conn: ConnName,
) -> RedisResult<()> {
    let message = Message::Returned {
        app: channel.app.to_string(),
        channel: channel.name.to_string(),
        client_id: client_id.to_owned(),
        conn: conn.to_string(),
    };
    publish(session, &topic_of(session, node_of(lease)), &message).await
}

async fn publish(session: &Session, topic: &str, message: &Message) -> RedisResult<()> {
    let text = serde_json::to_string(message).unwrap_or_default();
    redis::cmd("PUBLISH")
        .arg(topic)
        .arg(text)
        .query_async(&mut session.commands.clone())
        .await
}

fn topic_of(session: &Session, node: &str) -> String {
    session.keys.global(&format!("bus:{node}"))
}

fn topic_of_all(session: &Session) -> String {
    session.keys.global("bus")
}

/// The connection on which the bus is heard, and the calls that wait for answers.
pub(super) struct Bus {
    connection: MultiplexedConnection,
    pushes: mpsc::UnboundedReceiver<PushInfo>,
    waiting: HashMap<u64, Waiting>,
    calls: u64,
}

struct Waiting {
    reply: InboxSender<Vec<CallReply>>,
    answers: Vec<CallReply>,
    wanted: usize,
    until: Instant,
}

impl Bus {
    /// Hears the bus from here on.
    pub(super) async fn open(access: &Access, session: &Session, name: &str) -> RedisResult<Self> {
        let mut last = RedisError::from((redis::ErrorKind::InvalidClientConfig, "no URL"));
        for addr in access.seeds() {
            let (sender, pushes) = mpsc::unbounded_channel();
            match access.open(addr, Some(sender)).await {
                Ok(mut connection) => {
                    connection.subscribe(topic_of_all(session)).await?;
                    connection.subscribe(topic_of(session, name)).await?;
                    return Ok(Self {
                        connection,
                        pushes,
                        waiting: HashMap::new(),
                        calls: 0,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The connection on which it is heard.
    pub(super) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    /// The next that is pushed; none when the connection is lost.
    pub(super) async fn next(&mut self) -> Option<PushInfo> {
        self.pushes.recv().await
    }

    /// Takes what was pushed. False when the connection is lost.
    pub(super) async fn take(&mut self, push: PushInfo, out: &Out) -> bool {
        match push.kind {
            PushKind::Disconnection => return false,
            PushKind::Message => {}
            _ => return true,
        }
        if let Some(Reply::BulkString(payload)) = push.data.get(1)
            && let Ok(message) = serde_json::from_slice(payload)
        {
            self.handle(message, out).await;
        }
        true
    }

    async fn handle(&mut self, message: Message, out: &Out) {
        match message {
            Message::Call { from, number, call } => {
                if *from != *out.shared.name {
                    let from = (from.into(), number);
                    // Not answered where there is no room: the caller notices.
                    _ = out.calls.try_send(Incoming { call, from });
                }
            }
            Message::Answer {
                from,
                number,
                answer,
            } => {
                let Some(waiting) = self.waiting.get_mut(&number) else {
                    return;
                };
                let node = from.into();
                waiting.answers.push(CallReply { node, answer });
                if waiting.answers.len() >= waiting.wanted {
                    self.finish(number);
                }
            }
            Message::Stored { from } => {
                if *from != *out.shared.name {
                    out.registry.look();
                }
            }
            Message::Returned {
                app,
                channel,
                client_id,
                conn,
            } => {
                let Ok(conn) = conn.parse() else {
                    return;
                };
                let home = out.home(&app, &channel);
                let channel = ChannelKey {
                    app: app.into(),
                    name: channel.into(),
                };
                let reply = SharedReply::Returned {
                    channel,
                    client_id: client_id.into(),
                    conn,
                };
                out.tell(home, reply).await;
            }
        }
    }

    /// Asks the other nodes.
    pub(super) async fn call(
        &mut self,
        session: &Session,
        out: &Out,
        call: Call,
        reply: InboxSender<Vec<CallReply>>,
    ) {
        self.calls += 1;
        let number = self.calls;
        let message = Message::Call {
            from: out.shared.name.to_string(),
            number,
            call,
        };
        out.shared.counters.calls_sent.fetch_add(1, Relaxed);
        let wanted = out.shared.others();
        let waiting = Waiting {
            reply,
            answers: Vec::new(),
            wanted,
            until: Instant::now() + CALL_DEADLINE,
        };
        self.waiting.insert(number, waiting);
        let sent = publish(session, &topic_of_all(session), &message).await;
        if sent.is_err() || wanted == 0 {
            self.finish(number);
        }
    }

    /// Sends this node's answer to a call of another.
    pub(super) async fn answer(
        session: &Session,
        out: &Out,
        (to, number): (Arc<str>, u64),
        answer: Value,
    ) {
        out.shared.counters.calls_answered.fetch_add(1, Relaxed);
        let message = Message::Answer {
            from: out.shared.name.to_string(),
            number,
            answer,
        };
        if let Err(error) = publish(session, &topic_of(session, &to), &message).await {
            log::debug!("cluster: an answer could not be sent: {error}");
        }
    }

    /// Has the other nodes look at the store that all share.
    pub(super) async fn tell_stored(session: &Session, out: &Out) {
        let from = out.shared.name.to_string();
        let message = Message::Stored { from };
        if let Err(error) = publish(session, &topic_of_all(session), &message).await {
            log::debug!("cluster: a change could not be told: {error}");
        }
    }

    /// Ends the calls that have waited too long, with the answers that there are.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over = self.waiting.iter().filter(|(_, w)| w.until <= now);
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        for number in over {
            self.finish(number);
        }
    }

    fn finish(&mut self, number: u64) {
        if let Some(Waiting { reply, answers, .. }) = self.waiting.remove(&number) {
            // Whoever asked may have given up.
            _ = reply.try_send(answers);
        }
    }
}
