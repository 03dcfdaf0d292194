//! The store of messages in MongoDB.
//!
//! A batch is two writes: its messages, unordered, into `messages`; then the **heads** of the channels it touches, in
//! `channels`. A head says which numbers a channel has, and readers see no message above it: so the messages of a batch
//! appear when its head does, and what a batch that broke off has left behind is never seen. Both writes may be
//! repeated: messages carry ids of their own and are unique by number, heads only rise. While the database is away a
//! batch is repeated for a bounded time; after that it has failed, see [`doubts`].
//!
//! There are two regimes. [`Regime::Alone`]: this process numbers messages, each one its channel's last plus one.
//! [`Regime::Cluster`]: numbers come from Redis, several servers write one channel, in any order and each message
//! perhaps twice; a message is what its number says, so a failed batch is not taken back, and its publisher, who was
//! told of an error, may still find it.
//!
//! Invariants: what was acknowledged is in the journal of the members that the write concern names; a number is one
//! message's; every query walks along an index. What is in the collections: [`crate::mongo`].

mod archive;
mod doubts;
mod heads;
mod read;
#[cfg(test)]
pub(super) mod tests;
mod trim;
mod write;

use std::sync::Arc;
use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{Document, doc};
use shardwire_proto::record::{StoreAnswer, StoreOp, StoreRead};

use self::doubts::Doubts;
use self::heads::Heads;
use self::trim::Trims;
use super::{Applied, Backend, BackendError, Expired, Role, Storage};
use crate::mongo::{META, Mongo, MongoError, names};

/// Who numbers messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regime {
    /// This process, alone.
    Alone,
    /// Redis, for several servers.
    Cluster,
}

/// The database, for messages.
#[derive(Clone)]
pub struct MongoStorage {
    mongo: Mongo,
    regime: Regime,
    doubts: Arc<Doubts>,
}

impl MongoStorage {
    #[must_use]
    pub fn new(mongo: Mongo, regime: Regime) -> Self {
        Self {
            mongo,
            regime,
            doubts: Arc::default(),
        }
    }
}

impl Storage for MongoStorage {
    type Backend = MongoBackend;

    fn open(&self, role: Role) -> Result<MongoBackend, BackendError> {
        let mut backend = MongoBackend {
            messages: self.mongo.collection(names::MESSAGES),
            channels: self.mongo.collection(names::CHANNELS),
            mongo: self.mongo.clone(),
            regime: self.regime,
            doubts: self.doubts.clone(),
            heads: Heads::default(),
            trims: Trims::default(),
        };
        if role == Role::Writer {
            backend.settle()?;
            backend.check()?;
        }
        Ok(backend)
    }
}

/// What one thread knows of the database.
pub struct MongoBackend {
    mongo: Mongo,
    messages: Collection<Document>,
    channels: Collection<Document>,
    regime: Regime,
    /// Shared with the other threads of this process.
    doubts: Arc<Doubts>,
    /// The writer's: heads as committed.
    heads: Heads,
    /// The writer's: what is to be deleted.
    trims: Trims,
}

impl Backend for MongoBackend {
    fn apply(&mut self, ops: &[StoreOp], now_ms: u64) -> Result<Applied, BackendError> {
        self.settle()?;
        write::apply(self, ops, int(now_ms))
    }

    fn read(&mut self, read: &StoreRead, now_ms: u64) -> Result<StoreAnswer, BackendError> {
        read::answer(self, read, int(now_ms))
    }

    fn expire(&mut self, _now_ms: u64, budget: Duration) -> Result<Expired, BackendError> {
        trim::step(self, budget)
    }

    fn check(&mut self) -> Result<(), BackendError> {
        let ping = self.mongo.database().run_command(doc! {"ping": 1});
        self.mongo.run(ping)?;
        Ok(())
    }

    fn probe(&mut self) -> Result<(), BackendError> {
        self.settle()?;
        let meta = self.mongo.collection(META);
        let write = meta.update_one(doc! {"_id": "probe"}, doc! {"$inc": {"writes": 1_i64}});
        self.mongo.run(write.upsert(true))?;
        Ok(())
    }
}

impl From<MongoError> for BackendError {
    fn from(error: MongoError) -> Self {
        match error {
            MongoError::Away(text) => Self::Broken(format!("MongoDB: {text}")),
            MongoError::Refused(text) => Self::Refused(format!("MongoDB: {text}")),
        }
    }
}

/// BSON's integers are signed. Bounds beyond them mean the same as the greatest.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Back from BSON: none of ours is negative.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
