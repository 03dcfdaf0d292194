//! A stored message, and what is asked of whoever stores it.
//!
//! Pure data: a shard leaves [`StoreOp`]s and [`StoreRead`]s, the driver carries them to the store's
//! threads and brings [`StoreReply`]s back. The store is the only one that blocks.

use std::sync::Arc;

/// One stored message. Shared by the ring of its home shard, the store's queue and replays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place in the channel, from 1, rising by 1.
    pub sequence: u64,
    /// Server time of acceptance, ms since the Unix epoch; never falls within a channel.
    pub timestamp: u64,
    pub id: Box<str>,
    /// Client id of the publisher (contract D8).
    pub publisher: Box<str>,
    /// JSON text, as it was published.
    pub data: Box<str>,
}

impl Record {
    /// Bytes that holding it costs, roughly.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.id.len() + self.publisher.len() + self.data.len()
    }
}

/// A channel as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChannel {
    pub app: Arc<str>,
    pub name: Arc<str>,
    /// Which numbering the sequences belong to: changes when a channel's history was lost.
    pub epoch: Box<str>,
}

/// How long and how durably a channel's messages are kept (contract D17). Per namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most messages kept; older ones go first.
    pub messages_max: u64,
    /// Age at which a message goes, ms.
    pub age_ms: u64,
    pub sync: Sync,
}

/// What an ack of a stored message means.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// Survives the end of the process at any moment; a power cut may take the last moments.
    #[default]
    Process,
    /// Survives a power cut: the disk has confirmed.
    Disk,
}

/// Number of an operation among those of one shard, rising by 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What changes the store, in the order of a shard's tickets.
#[derive(Debug, Clone)]
pub struct StoreOp {
    pub ticket: Ticket,
    /// Raised by the shard when it has seen an operation fail. The store fails whatever still
    /// comes of a generation in which something has failed, so that a channel's sequences never
    /// have a hole: what was numbered behind a failed message fails too.
    pub generation: u32,
    pub channel: Arc<StoredChannel>,
    pub change: Change,
}

#[derive(Debug, Clone)]
pub enum Change {
    /// Adds a message; its sequence is the channel's last plus one.
    Append {
        record: Arc<Record>,
        retention: Retention,
    },
    /// Removes all messages; the channel keeps its numbering.
    Clear,
}

/// A question to the store, answered out of order by its readers. Sees everything that was
/// committed before it was asked.
#[derive(Debug, Clone)]
pub struct StoreRead {
    pub ticket: Ticket,
    pub app: Arc<str>,
    pub channel: Arc<str>,
    pub question: Question,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// State of a channel and its newest messages, for the home shard: the newest `messages_max`
    /// up to `bytes_max` in all, and ids of messages not older than `ids_after_ms`.
    Load {
        messages_max: usize,
        bytes_max: usize,
        ids_after_ms: u64,
    },
    /// A page of messages.
    Page(Page),
    /// Number of messages with this timestamp.
    CountAt { timestamp: u64 },
    /// Channels of all apps behind the one asked about (empty names: from the first), whose last message is not older.
    /// Each store has its own order.
    ChangedSince { timestamp: u64, limit: usize },
}

/// Which messages, and in which order (contract D17). All bounds are exclusive and absent where
/// none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Page {
    pub after_sequence: Option<u64>,
    pub before_sequence: Option<u64>,
    pub after_ms: Option<u64>,
    pub before_ms: Option<u64>,
    /// Oldest first; otherwise newest first.
    pub forward: bool,
    /// Most messages. The page goes on by up to `ties_max` more while they have the timestamp of
    /// its last one, so that paging by timestamp loses nothing.
    pub limit: usize,
    pub ties_max: usize,
    /// Bytes of messages ([`Record::weight`]); at least one message is given.
    pub bytes_max: usize,
}

/// An answer of the store to one shard.
#[derive(Debug)]
pub enum StoreReply {
    /// All operations up to this ticket are done: those in `failed` failed, the others are
    /// committed. `removed` counts the messages that each [`Change::Clear`] removed.
    Done {
        up_to: Ticket,
        failed: Vec<Ticket>,
        removed: Vec<(Ticket, u64)>,
    },
    Answer {
        ticket: Ticket,
        answer: Result<StoreAnswer, StoreError>,
    },
}

#[derive(Debug)]
pub enum StoreAnswer {
    Loaded(Option<Box<Loaded>>),
    Page {
        messages: Vec<Arc<Record>>,
        /// More exist beyond this page in its direction.
        has_more: bool,
    },
    Count(u64),
    /// App and name.
    Channels(Vec<(Arc<str>, Arc<str>)>),
}

/// What the store has of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub epoch: Box<str>,
    /// Sequence and timestamp of the last message ever stored.
    pub last_sequence: u64,
    pub last_timestamp: u64,
    /// Sequence and timestamp of the newest message that is gone (expired, trimmed or cleared);
    /// 0 where none is.
    pub gone_sequence: u64,
    pub gone_timestamp: u64,
    /// The newest messages without a hole, oldest first.
    pub newest: Vec<Arc<Record>>,
    /// Id, timestamp and sequence of recent messages, oldest first.
    pub recent_ids: Vec<(Box<str>, u64, u64)>,
}

/// Why the store did not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// Its queue is full.
    Overloaded,
    /// It failed: disk full, unwritable, corrupt.
    Failed,
}
