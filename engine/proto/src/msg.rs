//! What shards say to each other. The enum is the architecture: each variant says who sends it
//! to whom, and what happens when the way is full.
//!
//! One lane per pair of shards, in order. Publishes are refused before the lane is full (see
//! [`crate::limits::MESH_PENDING_BYTES_MAX`]), so that what was accepted is never dropped; all
//! else is bounded by the number of connections, subscriptions and requests.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::channel::log::ReplayFrom;
use crate::channel::presence::{Notice, weight as notice_weight};
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnId, ConnName, RequestId, ShardId};
use crate::meter::LimitMsg;
use crate::record::Record;
use crate::shard::Stats;
use crate::url::Shape;
use crate::wire::wsocket::{MemberPage, Position};

/// A channel's entry on a shard with subscribers; the generation tells tenants of a slot apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRef {
    pub slot: u32,
    pub generation: u32,
}

/// Who waits for a publish's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Conn {
        shard: ShardId,
        conn: ConnId,
        /// The publisher wants its own message (contract D15).
        echo: bool,
        /// The publisher wants to be told that it was accepted.
        ack: bool,
    },
    Request {
        shard: ShardId,
        request: RequestId,
        /// Index of the item in the request.
        item: u32,
    },
}

impl Origin {
    /// The connection on a shard that is not to get its own message back.
    pub fn excluded_on(self, shard: ShardId) -> Option<ConnId> {
        match self {
            Self::Conn {
                shard: from,
                conn,
                echo: false,
                ..
            } if from == shard => Some(conn),
            Self::Conn { .. } | Self::Request { .. } => None,
        }
    }
}

/// A publish on its way to the home shard, checked but not yet ordered.
#[derive(Debug, Clone, Copy)]
pub struct Publish<'a> {
    pub app: &'a Arc<str>,
    pub channel: &'a str,
    /// Hash of app and channel, see [`crate::ids::Placement`].
    pub hash: u64,
    /// JSON text.
    pub data: &'a str,
    pub id: &'a str,
    /// Client id of the publisher.
    pub publisher: &'a str,
    pub persist: bool,
    /// The id was made here: nobody has used it before.
    pub is_made: bool,
    pub origin: Origin,
}

/// [`Publish`] in one allocation: channel, id, publisher and data follow each other in
/// `text`.
#[derive(Debug)]
pub struct OwnedPublish {
    app: Arc<str>,
    hash: u64,
    text: Box<str>,
    channel_len: u32,
    id_len: u32,
    publisher_len: u32,
    persist: bool,
    is_made: bool,
    origin: Origin,
}

impl OwnedPublish {
    pub fn new(publish: &Publish<'_>) -> Self {
        let length =
            publish.channel.len() + publish.id.len() + publish.publisher.len() + publish.data.len();
        let mut text = String::with_capacity(length);
        text.push_str(publish.channel);
        text.push_str(publish.id);
        text.push_str(publish.publisher);
        text.push_str(publish.data);
        Self {
            app: publish.app.clone(),
            hash: publish.hash,
            text: text.into_boxed_str(),
            channel_len: u32::try_from(publish.channel.len()).unwrap_or(0),
            id_len: u32::try_from(publish.id.len()).unwrap_or(0),
            publisher_len: u32::try_from(publish.publisher.len()).unwrap_or(0),
            persist: publish.persist,
            is_made: publish.is_made,
            origin: publish.origin,
        }
    }

    /// Bytes of all that is text.
    pub fn text_len(&self) -> usize {
        self.text.len()
    }

    pub fn borrow(&self) -> Publish<'_> {
        let (channel, rest) = self.text.split_at(self.channel_len as usize);
        let (id, rest) = rest.split_at(self.id_len as usize);
        let (publisher, data) = rest.split_at(self.publisher_len as usize);
        Publish {
            app: &self.app,
            channel,
            hash: self.hash,
            data,
            id,
            publisher,
            persist: self.persist,
            is_made: self.is_made,
            origin: self.origin,
        }
    }
}

/// What became of an accepted publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub id: Arc<str>,
    pub position: Position,
    /// The id was already known inside the window; nothing was delivered again.
    pub duplicate: bool,
}

/// A question to every shard about its part of an app's channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Query {
    /// Occupied channels with this prefix, after this name, at most so many, by name.
    Channels {
        prefix: String,
        after: Option<String>,
        limit: usize,
    },
    /// One channel's counts.
    Channel { name: String },
    /// Ends the connections of a client id.
    Disconnect {
        client_id: String,
        code: u16,
        reason: String,
    },
    /// Takes a client id's connections out of a channel.
    Unsubscribe { client_id: String, channel: String },
    /// Open connections of the app, of one client id or all, after this one, at most so many, in
    /// the order of [`ConnName::place`]. For this and the next two an empty app stands for any.
    Connections {
        client_id: Option<String>,
        after: Option<ConnName>,
        limit: usize,
    },
    /// One connection of the app, with its channels.
    Connection { name: ConnName },
    /// Ends one connection of the app.
    End {
        name: ConnName,
        code: u16,
        reason: String,
    },
    /// Which of these clients have a connection.
    Connected { clients: Vec<Box<str>> },
    /// Everything a shard has counted.
    Stats,
}

/// What an operator is told of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnInfo {
    pub id: ConnName,
    /// The node that has it, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Box<str>>,
    pub app: Box<str>,
    pub client_id: Box<str>,
    /// The API key it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<Box<str>>,
    /// The signing key of its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<Box<str>>,
    /// When it opened, Unix ms.
    pub connected_ms: u64,
    /// Where it comes from: of a proxy in between, the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    pub subscriptions: usize,
    /// Bytes waiting to be sent to it.
    pub outbox_bytes: usize,
    /// Its channels; where one connection is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<Box<str>>>,
}

/// One shard's answer to a [`Query`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// Occupied channels with their occupants as far as this shard knows them, by name.
    Channels(Vec<(Arc<str>, Occupants)>),
    Channel {
        occupants: Occupants,
        /// From the home shard alone, unless its store cannot be read; 0 where nothing was stored.
        last_sequence: Option<u64>,
    },
    /// Connections ended or unsubscribed.
    Count(usize),
    /// In the order of [`ConnName::place`].
    Connections(Vec<ConnInfo>),
    /// From the connection's shard, if it is there.
    Connection(Option<Box<ConnInfo>>),
    /// Some of those that were asked for.
    Connected(Vec<Box<str>>),
    /// For the process's own use.
    #[serde(skip)]
    Stats(Box<Stats>),
}

/// Who is in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Occupants {
    /// On the answering shard.
    pub subscribers: usize,
    /// From the home shard alone.
    pub members: usize,
}

impl std::ops::AddAssign for Occupants {
    fn add_assign(&mut self, other: Self) {
        self.subscribers += other.subscribers;
        self.members += other.members;
    }
}

/// What a connection does to a channel's presence, on its way to the home shard.
#[derive(Debug)]
pub struct Presence {
    pub channel: ChannelKey,
    pub hash: u64,
    pub conn: ConnName,
    pub client_id: Arc<str>,
    pub op: PresenceOp,
}

/// `number` counts a connection's requests: an answer to one that was followed by another is
/// recognised.
#[derive(Debug)]
pub enum PresenceOp {
    /// The client enters or updates, with this state.
    Put {
        number: u32,
        state: Option<Arc<str>>,
    },
    Leave {
        number: u32,
    },
    /// The connection has ended. Where its client may come back, `silent_ms` is for how long it may
    /// have been dead.
    Lost {
        silent_ms: Option<u64>,
    },
    /// The client asks for the members; `place` is the request's among those of its connection.
    Get {
        place: u32,
        shape: Shape,
    },
}

/// The connection that waits for a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayTo {
    pub shard: ShardId,
    pub conn: ConnId,
    /// Number of the job on its connection: an answer to one given up is recognised.
    pub job: u32,
}

/// The resume that waits for a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountTo {
    pub shard: ShardId,
    pub conn: ConnId,
    /// Index of the channel among those of the resume.
    pub index: u32,
}

/// What the home shard (or its store) has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayResult {
    /// Oldest first, ending at `through`.
    pub records: Vec<Arc<Record>>,
    /// Everything up to this sequence was delivered or is in `records`; later messages come live.
    pub through: u64,
    /// Nothing between the position asked for and `through` is missing.
    pub recovered: bool,
    pub epoch: Box<str>,
    /// The store could not be asked.
    pub failed: bool,
}

#[derive(Debug)]
pub enum ShardMsg {
    /// A publisher's shard to the home shard. Way full: refused with 50300 before it is sent.
    Publish(OwnedPublish),
    /// Home shard to every shard with a subscriber. Way full: the publish is refused with 50300
    /// before it gets a sequence.
    Deliver {
        to: LocalRef,
        frame: Arc<[u8]>,
        /// None for an ephemeral message.
        sequence: Option<u64>,
        /// The publishing connection, where it does not want its own message.
        exclude: Option<ConnId>,
        /// When the home shard accepted it; for the latency histogram.
        accepted_us: u64,
    },
    /// Home shard to a publisher's shard: an ack or an error, encoded.
    Unicast { conn: ConnId, frame: Arc<[u8]> },
    /// Home shard to the shard of an HTTP publish.
    PublishDone {
        request: RequestId,
        item: u32,
        result: Result<Published, ErrorCode>,
    },
    /// A shard's first subscriber of a channel came, to the home shard. Bounded by subscriptions.
    Interest {
        channel: ChannelKey,
        hash: u64,
        local: LocalRef,
    },
    /// Home shard's answer: from here on every message is delivered to that entry.
    InterestReady { local: LocalRef },
    /// A shard's last subscriber of a channel left, to the home shard.
    InterestGone {
        channel: ChannelKey,
        hash: u64,
        local: LocalRef,
    },
    /// A connection's shard to the home shard: what has it missed? One per connection at a time.
    AskReplay {
        channel: ChannelKey,
        hash: u64,
        to: ReplayTo,
        from: ReplayFrom,
    },
    /// The answer to [`ShardMsg::AskReplay`].
    Replay { to: ReplayTo, result: ReplayResult },
    /// A connection's shard to the home shard: how many messages have this timestamp? One per
    /// channel of a resume.
    AskCount {
        channel: ChannelKey,
        hash: u64,
        timestamp: u64,
        to: CountTo,
    },
    /// The answer to [`ShardMsg::AskCount`]; 0 where the store could not tell.
    Count { to: CountTo, count: u64 },
    /// Between a limit's home shard and one that spends of it. Bounded: a question or a recall of each limit at a time.
    Limit(Box<LimitMsg>),
    /// The shard of an HTTP request to the home shard: remove a channel's messages.
    Clear {
        channel: ChannelKey,
        hash: u64,
        shard: ShardId,
        request: RequestId,
    },
    /// The answer to [`ShardMsg::Clear`]: messages removed.
    Cleared {
        request: RequestId,
        result: Result<u64, ErrorCode>,
    },
    /// A connection's shard to the home shard. Way full: entering, updating and asking are refused
    /// with 50300; leaves and ends are bounded by memberships and always sent.
    Presence(Box<Presence>),
    /// Home shard to every shard with a subscriber or watcher. Not refused when the way is full:
    /// bounded by the members, and entering is refused then.
    PresenceNotices {
        to: LocalRef,
        notices: Arc<[Notice]>,
    },
    /// Home shard to a connection's shard: the answer to [`PresenceOp::Get`], encoded.
    PresenceMembers {
        conn: ConnId,
        place: u32,
        frame: Arc<[u8]>,
    },
    /// Home shard to a connection's shard: by its request `number` it is not a member any more, or
    /// did not become one.
    PresenceEnded {
        conn: ConnId,
        channel: ChannelKey,
        hash: u64,
        number: u32,
        refused: Option<ErrorCode>,
    },
    /// A connection's shard to all shards: a client with an id of its own has connected. One per
    /// connection.
    PresenceOpened {
        app: Arc<str>,
        client_id: Arc<str>,
        conn: ConnId,
    },
    /// Home shard to a connection's shard: its client was away and is a member again by it. Bounded
    /// by memberships.
    PresenceReturned {
        conn: ConnId,
        channel: ChannelKey,
        hash: u64,
        client_id: Arc<str>,
    },
    /// The shard of an HTTP request to the home shard: members after a client id.
    AskMembers {
        channel: ChannelKey,
        hash: u64,
        after: Option<Box<str>>,
        limit: usize,
        shard: ShardId,
        request: RequestId,
    },
    /// The answer to [`ShardMsg::AskMembers`].
    Members {
        request: RequestId,
        page: MemberPage,
    },
    /// The shard of an HTTP request to all others. Bounded by requests.
    Ask {
        app: Arc<str>,
        request: RequestId,
        query: Arc<Query>,
    },
    /// The answer to [`ShardMsg::Ask`].
    Answer {
        from: ShardId,
        request: RequestId,
        answer: Answer,
    },
}

impl ShardMsg {
    /// Bytes that this message holds on to, roughly; what the pending bound counts.
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Publish(publish) => publish.text.len(),
                Self::Deliver { frame, .. }
                | Self::Unicast { frame, .. }
                | Self::PresenceMembers { frame, .. } => frame.len(),
                Self::Presence(presence) => match &presence.op {
                    PresenceOp::Put { state, .. } => {
                        size_of::<Presence>() + state.as_ref().map_or(0, |s| s.len())
                    }
                    PresenceOp::Leave { .. } | PresenceOp::Lost { .. } | PresenceOp::Get { .. } => {
                        size_of::<Presence>()
                    }
                },
                Self::PresenceNotices { notices, .. } => notices.iter().map(notice_weight).sum(),
                // Shared with the home's ring, or bounded per connection.
                Self::Replay { .. }
                | Self::PublishDone { .. }
                | Self::Interest { .. }
                | Self::InterestReady { .. }
                | Self::InterestGone { .. }
                | Self::AskReplay { .. }
                | Self::AskCount { .. }
                | Self::Count { .. }
                | Self::Limit(_)
                | Self::Clear { .. }
                | Self::Cleared { .. }
                | Self::PresenceEnded { .. }
                | Self::PresenceOpened { .. }
                | Self::PresenceReturned { .. }
                | Self::AskMembers { .. }
                | Self::Members { .. }
                | Self::Ask { .. }
                | Self::Answer { .. } => 0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owned_publish_reads_back_as_it_was() {
        let app: Arc<str> = "app".into();
        let origin = Origin::Request {
            shard: ShardId(1),
            request: RequestId(9),
            item: 3,
        };
        let publish = Publish {
            app: &app,
            channel: "room:é",
            hash: 5,
            data: "{\"a\":1}",
            id: "",
            publisher: "me",
            persist: false,
            is_made: false,
            origin,
        };
        let owned = OwnedPublish::new(&publish);
        let back = owned.borrow();
        assert_eq!(
            (
                back.channel,
                back.id,
                back.publisher,
                back.data,
                back.persist,
                back.origin
            ),
            ("room:é", "", "me", "{\"a\":1}", false, origin)
        );
    }
}
