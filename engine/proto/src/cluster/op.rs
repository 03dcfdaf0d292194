//! What a shard asks of the other nodes through Redis, and what it hears from there.

use std::sync::Arc;

use super::view::{Position, Snapshot};
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnName};
use crate::quota::Elsewhere;

/// Left by a shard for the driver. Those of one channel are carried out in their order. Not carried out, for want of room
/// or of Redis: those with a ticket are answered with 50300, those of which a home keeps the outcome in mind are made good
/// by a [`SharedOp::Sync`] later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedOp {
    /// A connection of this node makes its client a member, or sets its state.
    Put {
        ticket: u64,
        channel: ChannelKey,
        client_id: Arc<str>,
        state: Option<Arc<str>>,
        members_max: usize,
    },
    /// This node holds the member no longer; nor does its being away.
    Leave {
        ticket: u64,
        channel: ChannelKey,
        client_id: Arc<str>,
        /// This node holds no member of the channel any more.
        last: bool,
    },
    /// The last connection of this node that held the member was lost; its client may come back for `grace_ms`, or has
    /// within the last `silent_ms`, by another connection than `lost`.
    Away {
        channel: ChannelKey,
        client_id: Arc<str>,
        lost: ConnName,
        silent_ms: u64,
        grace_ms: u64,
        last: bool,
    },
    /// A client with an id of its own has connected.
    Opened {
        app: Arc<str>,
        client_id: Arc<str>,
        conn: ConnName,
    },
    /// All members of a channel are wanted.
    Snapshot { channel: ChannelKey, number: u32 },
    /// The same, for a list: `ticket` is the caller's.
    List { channel: ChannelKey, ticket: u64 },
    /// These and no others are the members that this node holds.
    Sync {
        channel: ChannelKey,
        held: Vec<Held>,
    },
}

/// A member that a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub client_id: Arc<str>,
    /// ms since the Unix epoch; 0 where that is not known.
    pub joined_at: u64,
    pub state: Option<Arc<str>>,
}

/// To a channel's home shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedReply {
    /// A [`SharedOp::Put`] or [`SharedOp::Leave`] is done, with the last change that it made or met; or it is not, or
    /// nobody knows (50300).
    Done {
        ticket: u64,
        channel: ChannelKey,
        result: Result<Position, ErrorCode>,
    },
    Snapshot {
        channel: ChannelKey,
        number: u32,
        /// None: Redis could not be asked.
        snapshot: Option<Snapshot>,
    },
    Listed {
        ticket: u64,
        snapshot: Option<Snapshot>,
    },
    /// A member that was away is this node's again, by this connection.
    Returned {
        channel: ChannelKey,
        client_id: Arc<str>,
        conn: ConnName,
    },
    /// Something that has no ticket was not done, or nobody knows.
    Failed { channel: ChannelKey },
    /// What apps use on other nodes; of those that are not named nothing has changed.
    Elsewhere(Arc<Vec<(Arc<str>, Elsewhere)>>),
    /// Redis can be reached, or not. When it can be again, what this node holds is to be told anew.
    Health { is_up: bool },
}
