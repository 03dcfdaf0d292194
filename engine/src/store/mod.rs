//! The store of messages: what a shard leaves in [`StoreOp`]s becomes durable here, and comes back in answers.
//!
//! One writer thread turns what is queued into transactions (group commit); reader threads answer questions. Shards
//! reach both through a [`StoreHandle`], never wait, and get their answers in an inbox. What is stored where is the
//! [`Backend`]'s matter: [`sqlite`] is the embedded one, [`mongo`] keeps it in a
//! database.
//!
//! Not here: numbering, dedup and retention settings, which are the home shard's. Invariants: every queue is bounded;
//! every accepted operation and question is answered once; operations of a shard are committed in their order; of a
//! failed generation nothing is committed behind the failure, so a channel's sequences have no hole.

pub mod archive;
mod handle;
pub mod mongo;
mod page;
mod readers;
pub mod sqlite;
mod stats;
mod writer;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shardwire_proto::record::{StoreAnswer, StoreOp, StoreRead};

pub use self::handle::{StoreHandle, start};
pub(crate) use self::stats::SharedHistogram;
pub use self::stats::StoreStats;
use crate::clock::now_ms;

/// Entries that a shard's inbox of [`StoreReply`](shardwire_proto::record::StoreReply) should hold: all questions that
/// may wait at once, and some commits. A full inbox loses nothing: commits are merged, answers wait for a while.
pub const INBOX_ENTRIES: usize = READS_QUEUED_MAX + 1024;

/// Questions that may wait for a reader: a second's work of one.
const READS_QUEUED_MAX: usize = 4096;

/// File section `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreConfig {
    /// Operations that may wait or be in the making, over all shards. At 200,000 a second a third of a second.
    pub queue_ops_max: usize,
    /// Bytes of their records.
    pub queue_bytes_max: usize,
    /// Operations per transaction.
    pub batch_ops_max: usize,
    /// Bytes of records per transaction.
    pub batch_bytes_max: usize,
    /// Longest wait for a transaction to fill, µs. 0: what is there is committed at once; while that is done the next
    /// batch gathers by itself.
    pub commit_wait_us: u64,
    /// Reader threads, at least 1.
    pub readers: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            queue_ops_max: 65_536,
            queue_bytes_max: 256 << 20,
            batch_ops_max: 4096,
            batch_bytes_max: 8 << 20,
            commit_wait_us: 0,
            readers: 2,
        }
    }
}

/// What a connection to the storage is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The only one that changes anything; it brings the schema up to date.
    Writer,
    Reader,
}

/// Where connections come from.
pub trait Storage: Send + Sync + 'static {
    type Backend: Backend;

    /// Opens a connection. Takes as long as it takes: a writer may have to recover or migrate.
    ///
    /// # Errors
    /// It cannot be used: not there, not writable, corrupt, or of a version this program does not know.
    fn open(&self, role: Role) -> Result<Self::Backend, BackendError>;
}

/// A connection to the storage, owned by one thread.
///
/// **What an ack means**: when [`Backend::apply`] has returned `Ok`, everything of the batch is found by every later
/// [`Backend::read`] of any connection, and is there after the end of this process at any moment; where an operation
/// asked for [`Sync::Disk`](shardwire_proto::record::Sync::Disk), after a power cut as well. When it has returned an
/// error, nothing of the batch is found by later reads of this process; but where several servers write a channel and
/// somebody else has numbered its messages, they may be.
pub trait Backend: Send + 'static {
    /// Commits a batch as one transaction, in order.
    ///
    /// # Errors
    /// Nothing of it is done. [`BackendError::Order`] where an operation contradicts what is stored.
    fn apply(&mut self, ops: &[StoreOp], now_ms: u64) -> Result<Applied, BackendError>;

    /// Answers a question of one consistent state. Retention holds exactly at `now_ms`, whether or not what is beyond
    /// it has been removed.
    ///
    /// # Errors
    /// There is no answer.
    fn read(&mut self, read: &StoreRead, now_ms: u64) -> Result<StoreAnswer, BackendError>;

    /// Removes some of what retention no longer covers, going on where the last call ended, for about `budget`.
    ///
    /// # Errors
    /// Nothing was removed by this call.
    fn expire(&mut self, now_ms: u64, budget: Duration) -> Result<Expired, BackendError>;

    /// A cheap look whether what is open is still what a restart would find. Changes nothing.
    ///
    /// # Errors
    /// It is not: the connection has to be opened again.
    fn check(&mut self) -> Result<(), BackendError>;

    /// Proves with a small write that writing works.
    ///
    /// # Errors
    /// It does not.
    fn probe(&mut self) -> Result<(), BackendError>;
}

/// What a committed batch has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Index of each [`Change::Clear`](shardwire_proto::record::Change::Clear) in the batch, with the number of
    /// messages that it removed, counting those that a reader could still have got.
    pub removed: Vec<(usize, u64)>,
}

/// What one step of expiry has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// Messages removed.
    pub messages: u64,
    /// Every channel has been looked at since the round began.
    pub round_done: bool,
}

/// Why a backend did not do something, by what is to be done about it. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendError {
    /// Somebody else was in the way: worth another try at once.
    Busy(String),
    /// The environment refuses, the connection is good: disk full, read-only.
    Refused(String),
    /// The connection or what it is connected to is unusable: open it again.
    Broken(String),
    /// An operation contradicts what is stored: a mistake of this program.
    Order(String),
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(text) | Self::Refused(text) | Self::Broken(text) | Self::Order(text) => {
                f.write_str(text)
            }
        }
    }
}

impl std::error::Error for BackendError {}
