//! An event, as a shard raises it and as it is kept and delivered.

use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::record::Record;

/// Something that has happened, as whoever saw it raises it.
#[derive(Debug, Clone)]
pub struct Raised {
    pub app: Arc<str>,
    /// ms since the Unix epoch.
    pub timestamp: u64,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Occupied {
        channel: Arc<str>,
    },
    Vacated {
        channel: Arc<str>,
    },
    Presence {
        turn: Turn,
        channel: Arc<str>,
        client_id: Arc<str>,
        /// JSON text of an object.
        state: Option<Arc<str>>,
    },
    Message {
        channel: Arc<str>,
        record: Arc<Record>,
    },
    /// A message that is not stored.
    Ephemeral {
        channel: Arc<str>,
        id: Box<str>,
        publisher: Box<str>,
        /// JSON text.
        data: Box<str>,
    },
    Connected {
        connection: String,
        client_id: Arc<str>,
        /// JSON text of an object: the token's `info`.
        info: Option<Box<str>>,
    },
    Disconnected {
        connection: String,
        client_id: Arc<str>,
        /// JSON text of an object: the token's `info`.
        info: Option<Box<str>>,
    },
    /// How many subscribers of a channel one shard has.
    Subscribers {
        channel: Arc<str>,
        shard: u16,
        count: u64,
    },
    Quota {
        quota: String,
        percent: u8,
        used: u64,
        limit: u64,
    },
    PushFailed {
        /// JSON text of an object: what failed, and why.
        data: String,
        client_id: Option<Arc<str>>,
    },
}

/// What an event means for something that stands for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turn {
    /// Nothing.
    Moment,
    Begins,
    /// It goes on, and nobody is told: it has begun in the sight of another process.
    Stands,
    Changes,
    Ends,
}

/// An event on its way to the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub app: String,
    pub kind: Kind,
    pub turn: Turn,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The client or connection that it is about: orders its events where there is no channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Place of a stored message in its channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Shard and its number of subscribers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<(u16, u64)>,
    /// ms since the Unix epoch.
    pub at_ms: u64,
    /// The event's JSON object without what a delivery puts first: its fields after the name, and the closing brace.
    pub fields: String,
}

impl Note {
    /// The form in which an event is kept that a node has raised.
    #[must_use]
    pub fn of(raised: &Raised, node: &str) -> Self {
        let at_ms = raised.timestamp;
        let mut note = Self {
            app: raised.app.to_string(),
            kind: Kind::Occupied,
            turn: Turn::Moment,
            channel: None,
            subject: None,
            sequence: None,
            part: None,
            at_ms,
            fields: String::new(),
        };
        let mut fields = Fields::default();
        match &raised.what {
            What::Occupied { channel } | What::Vacated { channel } => {
                let begins = matches!(raised.what, What::Occupied { .. });
                note.kind = if begins {
                    Kind::Occupied
                } else {
                    Kind::Vacated
                };
                note.turn = if begins { Turn::Begins } else { Turn::Ends };
                note.channel = Some(channel.to_string());
                fields.text("channel", channel);
            }
            What::Presence {
                turn,
                channel,
                client_id,
                state,
            } => {
                note.kind = match turn {
                    Turn::Begins | Turn::Stands => Kind::Enter,
                    Turn::Changes | Turn::Moment => Kind::Update,
                    Turn::Ends => Kind::Leave,
                };
                note.turn = *turn;
                note.channel = Some(channel.to_string());
                note.subject = Some(client_id.to_string());
                fields.text("channel", channel).text("clientId", client_id);
                fields.optional("data", state.as_deref());
            }
            What::Message { channel, record } => {
                note.kind = Kind::Published;
                note.channel = Some(channel.to_string());
                note.sequence = Some(record.sequence);
                note.at_ms = record.timestamp;
                fields.text("channel", channel);
                fields.text("clientId", &record.publisher);
                fields.text("id", &record.id).json("data", &record.data);
                fields.json("timestamp", record.timestamp);
                fields.json("sequence", record.sequence);
            }
            What::Ephemeral {
                channel,
                id,
                publisher,
                data,
            } => {
                note.kind = Kind::Published;
                note.channel = Some(channel.to_string());
                fields.text("channel", channel).text("clientId", publisher);
                fields.text("id", id).json("data", data);
            }
            What::Connected {
                connection,
                client_id,
                info,
            }
            | What::Disconnected {
                connection,
                client_id,
                info,
            } => {
                let begins = matches!(raised.what, What::Connected { .. });
                note.kind = if begins {
                    Kind::Connected
                } else {
                    Kind::Disconnected
                };
                note.turn = if begins { Turn::Begins } else { Turn::Ends };
                note.subject = Some(format!("{connection}\n{client_id}\n{node}"));
                fields.text("clientId", client_id);
                fields.text("connectionId", connection);
                fields.optional("info", info.as_deref());
            }
            What::Subscribers {
                channel,
                shard,
                count,
            } => {
                note.kind = Kind::SubscriptionCount;
                note.channel = Some(channel.to_string());
                note.part = Some((*shard, *count));
            }
            What::Quota {
                quota,
                percent,
                used,
                limit,
            } => {
                note.kind = Kind::Quota;
                note.subject = Some(quota.clone());
                fields.text("quota", quota).json("percent", percent);
                fields.json("used", used).json("limit", limit);
            }
            What::PushFailed { data, client_id } => {
                note.kind = Kind::PushFailed;
                note.subject = client_id.as_ref().map(ToString::to_string);
                if let Some(client_id) = client_id {
                    fields.text("clientId", client_id);
                }
                fields.json("data", data);
            }
        }
        note.fields = fields.end(note.sequence.is_none().then_some(at_ms));
        note
    }

    /// The end of what a [`Note`] has begun, for when nobody is left who could tell.
    #[must_use]
    pub fn end_of(begun: &super::standing::Fact, at_ms: u64) -> Self {
        let mut fields = Fields::default();
        if let Some(channel) = &begun.channel {
            fields.text("channel", channel);
        }
        if let Some(subject) = &begun.subject {
            let mut parts = subject.split('\n');
            match (parts.next(), parts.next()) {
                (Some(connection), Some(client_id)) => fields
                    .text("clientId", client_id)
                    .text("connectionId", connection),
                _ => fields.text("clientId", subject),
            };
        }
        Self {
            app: begun.app.clone(),
            kind: begun.kind.pair().map_or(begun.kind, |(_, ends)| ends),
            turn: Turn::Ends,
            channel: begun.channel.clone(),
            subject: begun.subject.clone(),
            sequence: None,
            part: None,
            at_ms,
            fields: fields.end(Some(at_ms)),
        }
    }

    /// How many subscribers a channel has.
    #[must_use]
    pub fn count_of(app: &str, channel: &str, count: u64, at_ms: u64) -> Self {
        let mut fields = Fields::default();
        fields.text("channel", channel).json("count", count);
        Self {
            app: app.to_owned(),
            kind: Kind::SubscriptionCount,
            turn: Turn::Moment,
            channel: Some(channel.to_owned()),
            subject: None,
            sequence: None,
            part: None,
            at_ms,
            fields: fields.end(Some(at_ms)),
        }
    }

    /// What an operator sends to try an endpoint.
    #[must_use]
    pub fn test(app: &str, at_ms: u64) -> Self {
        let mut fields = Fields::default();
        fields.json("data", r#"{"message":"a test of this endpoint"}"#);
        Self {
            app: app.to_owned(),
            kind: Kind::Test,
            turn: Turn::Moment,
            channel: None,
            subject: None,
            sequence: None,
            part: None,
            at_ms,
            fields: fields.end(Some(at_ms)),
        }
    }

    /// Events with the same key are delivered in order.
    #[must_use]
    pub fn order_key(&self) -> &str {
        let subject = self.subject.as_deref();
        self.channel.as_deref().or(subject).unwrap_or_default()
    }

    /// The JSON object of a delivery.
    #[must_use]
    pub fn encode(&self, number: u64, name: &str) -> String {
        let mut text = String::with_capacity(self.fields.len() + 64);
        // Writing to a string does not fail.
        _ = write!(text, r#"{{"number":{number},"event":"{name}""#);
        text.push_str(&self.fields);
        text
    }
}

/// Puts fields of a JSON object together, each with a comma before it.
#[derive(Default)]
struct Fields(String);

impl Fields {
    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        let quoted = serde_json::to_string(value).unwrap_or_default();
        self.json(name, quoted)
    }

    fn json(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        _ = write!(self.0, r#","{name}":{value}"#);
        self
    }

    fn optional(&mut self, name: &str, json: Option<&str>) -> &mut Self {
        if let Some(json) = json {
            self.json(name, json);
        }
        self
    }

    fn end(mut self, timestamp: Option<u64>) -> String {
        if let Some(timestamp) = timestamp {
            self.json("timestamp", timestamp);
        }
        self.0.push('}');
        self.0
    }
}

/// The body of a delivery.
#[must_use]
pub fn encode_body<'a>(
    id: &str,
    app: &str,
    time_ms: u64,
    events: impl Iterator<Item = &'a str>,
) -> String {
    let app = serde_json::to_string(app).unwrap_or_default();
    let mut body = format!(r#"{{"id":"{id}","app":{app},"timeMs":{time_ms},"events":["#);
    for (index, event) in events.enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(event);
    }
    body.push_str("]}");
    body
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn encoded(what: What) -> Value {
        let note = Note::of(
            &Raised {
                app: "a".into(),
                timestamp: 5,
                what,
            },
            "n",
        );
        serde_json::from_str(&note.encode(7, note.kind.name())).unwrap()
    }

    #[test]
    fn events_have_the_contracts_form() {
        let record = Record {
            sequence: 3,
            timestamp: 9,
            id: "m\"1".into(),
            publisher: "p".into(),
            data: r#"{"x":1}"#.into(),
        };
        let message = What::Message {
            channel: "c".into(),
            record: record.into(),
        };
        assert_eq!(
            encoded(message),
            json!({"number": 7, "event": "message.published", "channel": "c", "clientId": "p", "id": "m\"1",
                "data": {"x": 1}, "timestamp": 9, "sequence": 3})
        );
        let enter = What::Presence {
            turn: Turn::Begins,
            channel: "c".into(),
            client_id: "u".into(),
            state: Some("{}".into()),
        };
        assert_eq!(
            encoded(enter),
            json!({"number": 7, "event": "presence.enter", "channel": "c", "clientId": "u", "data": {}, "timestamp": 5})
        );
    }

    #[test]
    fn a_note_survives_being_kept() {
        let note = Note::of(
            &Raised {
                app: "a".into(),
                timestamp: 5,
                what: What::Subscribers {
                    channel: "c".into(),
                    shard: 1,
                    count: 4,
                },
            },
            "n",
        );
        let text = serde_json::to_string(&note).unwrap();
        assert_eq!(serde_json::from_str::<Note>(&text).unwrap(), note);
    }

    #[test]
    fn a_body_is_json_whatever_it_holds() {
        let events = [r#"{"a":1}"#, r#"{"b":2}"#];
        let body = encode_body("d1", "a\"b", 3, events.into_iter());
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            body,
            json!({"id": "d1", "app": "a\"b", "timeMs": 3, "events": [{"a": 1}, {"b": 2}]})
        );
    }
}
