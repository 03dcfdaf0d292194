//! What is known of channels: documents of `channels`, and the writer's memory of those it has used lately.

use std::collections::HashMap;
use std::sync::Arc;

use mongodb::bson::{Document, doc};
use shardwire_proto::record::StoredChannel;

/// Channels remembered, about 300 bytes each. Past it all are forgotten: a miss costs a part of one query.
const HEADS_CACHED_MAX: usize = 1 << 17;

/// A channel by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) app: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Key {
    pub(super) fn of(channel: &StoredChannel) -> Self {
        Self {
            app: channel.app.clone(),
            name: channel.name.clone(),
        }
    }

    /// `_id` of its head: no app's id has a slash.
    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.app, self.name)
    }

    /// Filter of its messages, to be completed.
    pub(super) fn messages(&self) -> Document {
        doc! {"app": &*self.app, "channel": &*self.name}
    }
}

/// A channel's numbering, and how much of it is visible.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) epoch: Box<str>,
    /// Of the last message; 0: there never was one.
    pub(super) last_seq: i64,
    pub(super) last_ts: i64,
    /// Messages up to here are cleared; 0: none.
    pub(super) gone_seq: i64,
    pub(super) gone_ts: i64,
    /// Retention, as of the last append.
    pub(super) messages_max: i64,
    pub(super) age_ms: i64,
    /// Changed by whoever takes a failed batch back: a write of that batch which arrives later finds another one.
    pub(super) fence: i64,
    /// Messages up to here have been deleted for their number; in memory only.
    pub(super) trimmed_seq: i64,
}

impl Head {
    /// From its document. A field that is missing counts as 0.
    pub(super) fn read(document: &Document) -> Self {
        let int = |name: &str| document.get_i64(name).unwrap_or(0);
        Self {
            epoch: document.get_str("epoch").unwrap_or_default().into(),
            last_seq: int("last_seq"),
            last_ts: int("last_ts"),
            gone_seq: int("gone_seq"),
            gone_ts: int("gone_ts"),
            messages_max: int("messages_max"),
            age_ms: int("age_ms"),
            fence: int("fence"),
            trimmed_seq: int("gone_seq"),
        }
    }

    /// The update that brings the document to this state, whoever has raised it meanwhile.
    pub(super) fn raise(&self, key: &Key, fenced: bool) -> Document {
        let mut query = doc! {"_id": key.id()};
        if fenced {
            query.insert("fence", self.fence);
        }
        doc! {
            "q": query,
            "u": {
                "$max": {
                    "last_seq": self.last_seq,
                    "last_ts": self.last_ts,
                    "gone_seq": self.gone_seq,
                    "gone_ts": self.gone_ts,
                },
                "$set": {
                    "app": &*key.app,
                    "channel": &*key.name,
                    "epoch": &*self.epoch,
                    "messages_max": self.messages_max,
                    "age_ms": self.age_ms,
                },
            },
            "upsert": true,
        }
    }

    /// The update that puts the document back to this state, with another fence.
    pub(super) fn put_back(&self, key: &Key, fence: i64) -> Document {
        doc! {
            "q": {"_id": key.id()},
            "u": {"$set": {
                "app": &*key.app,
                "channel": &*key.name,
                "epoch": &*self.epoch,
                "last_seq": self.last_seq,
                "last_ts": self.last_ts,
                "gone_seq": self.gone_seq,
                "gone_ts": self.gone_ts,
                "messages_max": self.messages_max,
                "age_ms": self.age_ms,
                "fence": fence,
            }},
            "upsert": true,
        }
    }
}

/// Heads as the writer has left them. Forgotten when a batch fails.
#[derive(Debug, Default)]
pub(super) struct Heads {
    known: HashMap<Key, Head>,
}

impl Heads {
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    /// Keeps the memory within its bound. Between batches only.
    pub(super) fn make_room(&mut self) {
        if self.known.len() >= HEADS_CACHED_MAX {
            self.clear();
        }
    }

    pub(super) fn knows(&self, key: &Key) -> bool {
        self.known.contains_key(key)
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Head> {
        self.known.get(key)
    }

    pub(super) fn set(&mut self, key: Key, head: Head) {
        self.known.insert(key, head);
    }
}
