//! What a shard asks of the broker between the nodes of a cluster, and what it hears from it.
//!
//! Pure data, as with the store ([`crate::record`]): a shard leaves [`BrokerOp`]s, the driver carries them to the
//! broker's thread and brings [`BrokerReply`]s back. With a broker, the sequence of a message, its timestamp and the
//! recognition of its id are the broker's; every node, the publishing one too, delivers what comes back from it.
//!
//! ```text
//!  publish ──► home: Publish ──► broker: dedup, number, append, tell all nodes
//!  publisher ◄── ack ◄── Published ◄──┤
//!  subscribers ◄── fan-out ◄── Message ◄┘   (in sequence order; a hole is filled by another Follow)
//! ```

use std::sync::Arc;

use crate::ids::{ChannelKey, ConnId, ShardId};
use crate::msg::OwnedPublish;
use crate::record::{Loaded, Record, Retention, StoreAnswer, StoreError, Ticket};

/// A channel at its home shard, as the broker names it: the slot, and the number that tells its
/// tenants apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FollowRef {
    pub slot: u32,
    pub number: u64,
}

/// A place in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub epoch: Box<str>,
    pub sequence: u64,
}

/// What a shard asks. Publishes of one channel are carried out in their order.
#[derive(Debug, Clone)]
pub enum BrokerOp {
    /// Answered by [`BrokerReply::Published`]. The queue is full: refused with 50300.
    Publish(BrokerPublish),
    /// Tell me of the channel's messages, and where it stands: once the node hears them, answered by
    /// [`BrokerReply::Followed`], however long that takes. Asked again for what was missed. Bounded by channels.
    Follow(Box<Follow>),
    /// No more.
    Unfollow {
        channel: ChannelKey,
        follow: FollowRef,
    },
    /// Remove a channel's messages. Answered by [`BrokerReply::ClearDone`].
    Clear { ticket: Ticket, channel: ChannelKey },
}

#[derive(Debug, Clone)]
pub struct BrokerPublish {
    pub ticket: Ticket,
    /// Shared with the shard's note of who waits.
    pub publish: Arc<OwnedPublish>,
    /// Keep it, by this; none for an ephemeral message.
    pub retention: Option<Retention>,
}

#[derive(Debug, Clone)]
pub struct Follow {
    pub channel: ChannelKey,
    pub follow: FollowRef,
    /// What is known already: only later messages are wanted.
    pub after: Option<Place>,
    /// The newest messages, at most so many and so many bytes.
    pub messages_max: usize,
    pub bytes_max: usize,
}

/// What a shard hears.
#[derive(Debug)]
pub enum BrokerReply {
    Published {
        ticket: Ticket,
        result: Result<BrokerPublished, BrokerError>,
    },
    /// The node hears the channel from here on; what it missed is in the answer.
    Followed {
        follow: FollowRef,
        /// Where the channel stands; of `newest` only what is later than [`Follow::after`].
        loaded: Box<Loaded>,
        /// The epoch's messages are those behind this sequence.
        epoch_from: u64,
    },
    /// The node does not hear the channel any more (a connection was lost): it has to be followed again.
    Unheard { follow: FollowRef },
    Message {
        follow: FollowRef,
        message: BrokerMessage,
    },
    /// All messages up to this sequence were removed.
    Cleared { follow: FollowRef, through: u64 },
    ClearDone {
        ticket: Ticket,
        result: Result<u64, BrokerError>,
    },
    /// What came over the channel's topic about its presence, as it was sent.
    Presence {
        follow: FollowRef,
        payload: Box<[u8]>,
    },
    /// To a [`StoreRead`](crate::record::StoreRead), where the broker keeps the messages.
    Answer {
        ticket: Ticket,
        answer: Result<StoreAnswer, StoreError>,
    },
    /// Whether publishing is of use at all.
    Health { up: bool },
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerPublished {
    /// The numbering that the sequence belongs to.
    pub epoch: Box<str>,
    /// None for an ephemeral message.
    pub sequence: Option<u64>,
    pub timestamp: u64,
    /// The id was known: this is the first one's place.
    pub duplicate: bool,
}

/// A message of any node.
#[derive(Debug, Clone)]
pub struct BrokerMessage {
    /// The sequence is 0 in an ephemeral message.
    pub record: Arc<Record>,
    /// The numbering it belongs to.
    pub epoch: Arc<str>,
    /// The connection of this process that published it and does not want it back.
    pub exclude: Option<(ShardId, ConnId)>,
}

/// Why the broker did not do something. Whether it was done all the same is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerError {
    /// It is away, or did not answer in time.
    Away,
    /// Its queue is full.
    Overloaded,
    /// It answered with an error.
    Failed,
}
